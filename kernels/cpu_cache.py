"""Kernels that Numba has compiled, on disk: one file each, verified before it is used.

Numba's own cache is not used. It runs whatever lies in its folder, keeps raising when a file is damaged, and looks at
one source file only; and before it loads a kernel it sets up the whole compiler, SciPy included, which takes longer
than all the rest of a first step. A file here is named after a digest of all that its machine code depends on.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys  # type: ignore[attr-defined]  # public, unmarked
from numba.core.serialize import dumps

from fastgd.kernels import disk_cache

log = logging.getLogger("fastgd")

_HEAD = b"fastgd kernel 1\n"
_CHECK = 64  # hexadecimal digits of a SHA-256


def machine() -> tuple[str, ...]:
    """Name what machine code depends on besides its text: versions, and the processor as LLVM sees it."""
    target = cpu_target.target_context.codegen().magic_tuple()
    return (sys.version, numba.__version__, llvmlite.__version__, *map(str, target))


class KernelFile(_Cache):
    """The cache of one kernel, as a dispatcher of Numba asks for it.

    Parameters
    ----------
    name
        Name of the kernel, its digest included.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder, reason = disk_cache.status()
        if self._folder is None:
            log.info("kernels are compiled anew in each process: %s", reason)

    @property
    def cache_path(self) -> str | None:
        """Folder of the file."""
        return None if self._folder is None else str(self._folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Kernel of the file; None where there is none that can be used."""
        if self._folder is None:
            return None
        path = self._folder / f"{self._name}.kernel"
        content = disk_cache.read(path)
        if content is None:
            return None
        rebuild: Any = CompileResult._rebuild
        start = len(_HEAD) + _CHECK
        payload = content[start:]
        if content[:start] == _HEAD + _digest(payload):
            try:
                rtsys.initialize(target_context)  # all of the compiler that a compiled kernel calls
                return rebuild(target_context, *pickle.loads(payload))
            except Exception as error:  # whatever a foreign unpickler and linker raise: it can be compiled again
                log.warning("%s cannot be loaded and is compiled again: %s", path, error)
        else:
            log.warning("%s is damaged and is compiled again", path)
        disk_cache.discard(path)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the kernel; where that fails it is compiled again next time."""
        if self._folder is None or data.lifted or data.library.has_dynamic_globals:
            return  # the latter holds addresses of this process
        payload: bytes = dumps(data._reduce())  # type: ignore[no-untyped-call]  # Numba types some functions only
        try:
            disk_cache.write(self._folder / f"{self._name}.kernel", _HEAD + _digest(payload) + payload)
        except OSError as error:
            log.warning("kernels are compiled anew in each process: %s", error)

    def enable(self) -> None:
        """Do nothing: it is made only where it is wanted."""

    def disable(self) -> None:
        """Use the file no more."""
        self._folder = None

    def flush(self) -> None:
        """Delete the file."""
        if self._folder is not None:
            (self._folder / f"{self._name}.kernel").unlink(missing_ok=True)


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()
