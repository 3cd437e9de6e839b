"""Compiled kernels on disk: one file each, verified before it is used, in a folder that nobody else may write.

Numba's own cache is not used. It runs whatever lies in its folder, keeps raising when a file is damaged, and looks at
one source file only; and before it loads a kernel it sets up the whole compiler, SciPy included, which takes longer
than all the rest of a first step. A file here is named after a digest of all that its machine code depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys  # type: ignore[attr-defined]  # public, unmarked
from numba.core.serialize import dumps

log = logging.getLogger("fastgd")

_HEAD = b"fastgd kernel 1\n"
_CHECK = 64  # hexadecimal digits of a SHA-256


def status() -> tuple[Path | None, str]:
    """Find the folder of compiled kernels and make it where it is missing.

    ``FASTGD_CACHE=0`` switches the cache off, ``FASTGD_CACHE=folder`` names it. Otherwise it is ``fastgd`` in
    ``NUMBA_CACHE_DIR``, in ``XDG_CACHE_HOME`` or ``~/.cache``, or one of the user's in the folder for temporary files:
    the first that can be used.

    Returns
    -------
    folder : Path or None
        None where kernels are compiled anew in each process.
    reason : str
        Why that is so; else empty.
    """
    asked = os.environ.get("FASTGD_CACHE")
    if asked == "0":
        return None, "FASTGD_CACHE=0 switches it off"
    reasons = []
    for folder in [Path(asked).expanduser().absolute()] if asked else _usual():
        reason = _refusal(folder)
        if not reason:
            return folder, ""
        reasons.append(f"{folder} {reason}")
    return None, "; ".join(reasons)


def _usual() -> list[Path]:
    numbas = os.environ.get("NUMBA_CACHE_DIR")
    folders = [Path(numbas).absolute() / "fastgd"] if numbas else []
    with contextlib.suppress(RuntimeError):  # no home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.append(Path(home).absolute() / "fastgd")
    return [*folders, Path(tempfile.gettempdir()) / f"fastgd-{os.geteuid()}"]


def _refusal(folder: Path) -> str:
    """Why code must not be taken from a folder; empty where it may. What lies there is run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, above = folder.lstat(), folder.parent.stat()
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder but a link"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    if above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX:
        return "lies in a folder in which anybody may replace it"
    return ""


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
        self._folder, reason = status()
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
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise PermissionError  # somebody else has put it, or another folder, there
                content = file.read()
        except OSError:
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
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the kernel; where that fails it is compiled again next time."""
        if self._folder is None or data.lifted or data.library.has_dynamic_globals:
            return  # the latter holds addresses of this process
        payload: bytes = dumps(data._reduce())  # type: ignore[no-untyped-call]  # Numba types some functions only
        try:
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{self._name}-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_HEAD + _digest(payload) + payload)
                os.replace(temporary, self._folder / f"{self._name}.kernel")
            except BaseException:
                os.unlink(temporary)
                raise
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
