"""CUDA C++ compiled by NVRTC to the machine code of one architecture: no GPU and no driver is needed, and it is cached.

CuPy's own compilation is not used: it always adds ``-ftz=true``, which turns denormal numbers into zero. NVRTC is
called through NVIDIA's bindings rather than through cuda.core, whose import takes six times as long (0.37 s), also
where the cache has the file, and which wants the driver for PTX.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from fastgd.kernels import disk_cache
from fastgd.kernels.errors import ADD_CUPY, ADD_NUMBA_CUDA, BackendUnavailable

log = logging.getLogger("fastgd")

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""What makes the bits those of the CPU: no contraction, denormal numbers kept, division and root of IEEE 754."""


def cubin(text: str, arch: str, label: str) -> Path:
    """Compile a whole translation unit, or find it compiled in the cache.

    Parameters
    ----------
    text
        CUDA C++ that includes nothing.
    arch
        Number of the architecture, such as ``"90"``.
    label
        What it is, for the name of the file and for messages: letters, digits, ``_`` and ``-``.

    Returns
    -------
    Path
        The machine code, as a driver loads it. Without a cache it lies in a folder that goes with this process.

    Raises
    ------
    BackendUnavailable
        If NVRTC is not installed, does not know the architecture, or does not compile the text; with its log.
    """
    key = text, arch, *OPTIONS, nvrtc_version()
    return stored(key, arch, label, lambda: _compiled(text, arch, label, "CUBIN"))


def stored(key: Sequence[str], arch: str, label: str, make: Callable[[], bytes]) -> Path:
    """Find machine code in the cache, or make it and put it there.

    Parameters
    ----------
    key
        All that the code depends on.
    arch, label
        As of `cubin`.
    make
        Compiles it.
    """
    name = f"{label}-sm{arch}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}"
    folder, reason = disk_cache.status()
    if folder is None:
        log.info("kernels are compiled anew in each process: %s", reason)
        folder = _folder_of_this_process()
    found = _cached(folder, name)
    if found is not None:
        return found
    content = make()
    file = f"{name}-{hashlib.sha256(content).hexdigest()}.cubin"
    try:
        disk_cache.write(folder / file, content)
    except OSError as error:
        log.warning("kernels are compiled anew in each process: %s", error)
        folder = _folder_of_this_process()
        disk_cache.write(folder / file, content)
    return folder / file


def _cached(folder: Path, name: str) -> Path | None:
    """File of that name that holds what the digest in its name says; others are deleted."""
    for path in sorted(folder.glob(f"{name}-*.cubin")):
        content = disk_cache.read(path)
        if content is None:
            continue
        if path.stem == f"{name}-{hashlib.sha256(content).hexdigest()}":
            return path
        log.warning("%s is damaged and is compiled again", path)
        disk_cache.discard(path)
    return None


@cache
def _folder_of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fastgd-"))
    atexit.register(_clear, folder, os.getpid())
    return folder


def _clear(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # a forked child that ends leaves it to its parent
        shutil.rmtree(folder, ignore_errors=True)


def ptx(text: str, arch: str, label: str) -> str:
    """Compile a translation unit to PTX, the assembly language that its machine code is made from; see `cubin`."""
    return _compiled(text, arch, label, "PTX").rstrip(b"\0").decode()


# ---- the compiler ------------------------------------------------------------------------------------------------


def _nvrtc() -> ModuleType:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library
    except ImportError:
        raise BackendUnavailable(f"CUDA C++ needs NVIDIA's bindings, which are not installed; {ADD_CUPY}") from None
    except RuntimeError as error:  # that is what its search for a library raises
        raise BackendUnavailable(
            f"CUDA C++ needs NVIDIA's compiler NVRTC, which cannot be loaded: {str(error).splitlines()[0]}; {ADD_CUPY}"
        ) from None
    return nvrtc  # type: ignore[no-any-return]


@cache
def nvrtc_version() -> str:
    """Version of the compiler, in full where it came as a package.

    Raises
    ------
    BackendUnavailable
        If it is not installed.
    """
    _, major, minor = _nvrtc().nvrtcVersion()
    for distribution in ("nvidia-cuda-nvrtc", f"nvidia-cuda-nvrtc-cu{major}"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if version.startswith(f"{major}.{minor}."):  # else another one has been found first
            return version
    return f"{major}.{minor}"


def architectures() -> tuple[str, ...]:
    """Numbers of the architectures that the compiler knows, such as ``"90"``.

    Raises
    ------
    BackendUnavailable
        If it is not installed.
    """
    nvrtc = _nvrtc()
    _, count = nvrtc.nvrtcGetNumSupportedArchs()
    return tuple(str(arch) for arch in nvrtc.nvrtcGetSupportedArchs()[1][:count])


def closest(arch: str) -> str:
    """Give an architecture that the compiler knows and whose machine code runs on another, newer one of its family.

    Where there is none the given one comes back, which `cubin` then refuses by its name.
    """
    known = architectures()
    family, number = arch[:-1], arch[-1]
    older = [a for a in known if a[:-1] == family and a[-1] < number]
    return arch if arch in known or not older else max(older)


def _compiled(text: str, arch: str, label: str, form: str) -> bytes:
    nvrtc = _nvrtc()
    if arch not in architectures():
        known = ", ".join(architectures())
        raise BackendUnavailable(
            f"NVRTC {nvrtc_version()} compiles for architectures {known}, given {arch}: for a newer GPU "
            "pip install --upgrade nvidia-cuda-nvrtc, older ones are served by an older CUDA"
        )
    program = _checked(nvrtc.nvrtcCreateProgram(text.encode(), f"{label}.cu".encode(), 0, [], []))
    try:
        options = [f"--gpu-architecture=sm_{arch}".encode(), *(option.encode() for option in OPTIONS)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            messages = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc.nvrtcGetProgramLog(program, messages))
            said = messages.rstrip(b"\0").decode(errors="replace").strip()
            raise BackendUnavailable(f"NVRTC {nvrtc_version()} cannot compile {label} for sm_{arch}:\n{said}")
        content = bytearray(_checked(getattr(nvrtc, f"nvrtcGet{form}Size")(program)))
        _checked(getattr(nvrtc, f"nvrtcGet{form}")(program, content))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(content)


def _checked(answer: tuple[Any, ...]) -> Any:
    """Value of a call that does not fail unless the bindings are used wrongly."""
    result, *values = answer
    if result.value:
        raise RuntimeError(f"NVRTC: {result.name}")
    return values[0] if values else None


def linker() -> ModuleType:
    """Give NVIDIA's linker, which makes machine code of assembly language.

    Raises
    ------
    BackendUnavailable
        If it is not installed.
    """
    try:
        from cuda.bindings import nvjitlink

        nvjitlink.version()  # loads the library
    except (ImportError, RuntimeError) as error:  # the latter is what its search for a library raises
        reason = str(error).splitlines()[0]
        raise BackendUnavailable(
            f"numba-cuda needs NVIDIA's linker nvJitLink, which cannot be loaded: {reason}; {ADD_NUMBA_CUDA}"
        ) from None
    return nvjitlink  # type: ignore[no-any-return]


# ---- machine code to read ----------------------------------------------------------------------------------------


def sass(path: Path) -> str:
    """Disassemble machine code.

    Raises
    ------
    BackendUnavailable
        If NVIDIA's disassembler is not installed, or cannot read the file.
    """
    # without its analysis of the flow, which takes a third of its time and adds nothing to these kernels
    return _output("nvdisasm", "--print-code", "--no-dataflow", str(path))


def resources(path: Path) -> dict[str, dict[str, int]]:
    """Tell the registers and bytes of memory that each kernel takes: ``reg``, ``stack``, ``shared``, ``local``.

    Raises
    ------
    BackendUnavailable
        If NVIDIA's tool for that is not installed, or cannot read the file.
    """
    found = re.findall(r"Function (\S+):\s+(.*)", _output("cuobjdump", "--dump-resource-usage", str(path)))
    return {
        kernel: {what.lower(): int(value) for what, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
        for kernel, usage in found
    }


def tool(name: str) -> str:
    """Find a program of NVIDIA's: one of its packages, else of a toolkit that is installed.

    Raises
    ------
    BackendUnavailable
        If it is not there; with the command that adds it.
    """
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        program = None
    else:
        program = find_nvidia_binary_utility(name)
    program = program or shutil.which(name)
    if program is None:
        raise BackendUnavailable(f"{name} is not installed; pip install nvidia-cuda-{name}")
    return program


def _output(name: str, *arguments: str) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BackendUnavailable(f"{name} cannot read {arguments[-1]}: {done.stderr.strip()}")
    return done.stdout
