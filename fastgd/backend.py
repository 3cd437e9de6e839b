"""Backends by name: which there are, which one serves an array, and why one cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata, util
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.blocks import Where
from fastgd.kernels.driver import find as find_driver
from fastgd.kernels.errors import ADD_CUPY, ArrayError, BackendUnavailable, HyperparameterError

Backend = Literal["numpy", "numba", "numba-cuda", "cupy"]
_NAMES: tuple[Backend, ...] = ("numpy", "numba", "numba-cuda", "cupy")
_CUPY = {"cupy-cuda13x": 13, "cupy-cuda12x": 12}  # distributions of CuPy, and the CUDA they are built for


class Status(NamedTuple):
    """What `backends` says of one backend."""

    available: bool
    reason: str
    remedy: str
    version: str | None


class SweepOnArrays(Protocol):
    """One sweep of a rule over all segments, as every backend offers it; see `fastgd.kernels.cpu.CpuSweep`."""

    # D102: the docstrings are those of CpuSweep

    runs: int
    run: Callable[[], None]

    def bind(self, name: str, arrays: list[NDArray[Any]], where: Where) -> None: ...  # noqa: D102
    def prepare(self) -> None: ...  # noqa: D102
    def resume(self) -> None: ...  # noqa: D102
    def sums(self) -> NDArray[np.float64]: ...  # noqa: D102
    def total(self) -> NDArray[np.float64]: ...  # noqa: D102


def backends() -> dict[str, Status]:
    """Tell which backends can serve here.

    Returns
    -------
    dict of str to Status
        For ``"numpy"``, ``"numba"``, ``"numba-cuda"`` and ``"cupy"``: whether it is available, if not the reason and
        the remedy, and the version of its library, or None where that is not installed.

    Examples
    --------
    >>> import fastgd
    >>> fastgd.backends()["numba"].available
    True
    """
    return {name: _status(name) for name in _NAMES}


def _status(name: Backend) -> Status:
    if name in ("numpy", "numba"):
        return Status(True, "", "", metadata.version(name))
    if name == "cupy":
        version = next(filter(None, map(_version, (*_CUPY, "cupy"))), None)
        refusal = cupy_refusal()
        return Status(True, "", "", version) if refusal is None else Status(False, *refusal, version)
    installed = util.find_spec("numba_cuda") is not None
    reason = f"fastgd {metadata.version('fastgd')} has no kernels for numba-cuda yet"
    if not installed:
        reason += ", and numba-cuda is not installed"
    remedy = "wait for a release that has them; until then move the arrays to NumPy, which backend='numba' serves"
    return Status(False, reason, remedy, _version("numba-cuda") if installed else None)


def cupy_refusal() -> tuple[str, str] | None:
    """Tell why arrays of CuPy cannot be served here.

    CuPy is not imported for that, and where it is installed the driver is started: children that are forked from now on
    cannot use it.

    Returns
    -------
    tuple of str or None
        The reason and the remedy; None where they can be served.
    """
    if util.find_spec("cupy") is None:
        return "CuPy is not installed", ADD_CUPY
    bindings = _version("cuda-bindings")
    if bindings is None:
        return "NVIDIA's bindings to its compiler, cuda-bindings, are not installed", ADD_CUPY
    driver, reason = find_driver()
    if driver is None:
        return reason, "run on a machine with an NVIDIA GPU and its driver; backend='numba' serves NumPy arrays here"
    name = next((name for name in _CUPY if _version(name)), "cupy")
    cuda = _CUPY.get(name) or int(bindings.partition(".")[0])
    if driver.version[0] < cuda:
        return (
            f"the driver serves CUDA {driver.version[0]}.{driver.version[1]}, and the CuPy installed needs CUDA {cuda}",
            f'update the driver, or pip uninstall {name} and pip install "fastgd[cupy12]"',
        )
    if not driver.devices:
        return (
            "the driver has no GPU to offer",
            "unset CUDA_VISIBLE_DEVICES if it hides them; in a container or a batch job, ask for a GPU",
        )
    oldest = (7, 5) if cuda >= 13 else (7, 0)
    if max(device.capability for device in driver.devices) < oldest:
        found = ", ".join(f"{d.name} has {d.capability[0]}.{d.capability[1]}" for d in driver.devices)
        older = 'pip install "fastgd[cupy12]" serves from 7.0 on, else ' if cuda >= 13 else ""
        return (
            f"CUDA {cuda} needs compute capability {oldest[0]}.{oldest[1]}, and {found}",
            f"{older}use a newer GPU; backend='numba' serves NumPy arrays here",
        )
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # the module came with another distribution
        return None


def resolve(name: str) -> Literal["numpy", "numba"]:
    """Turn the name a user gave into a backend that serves NumPy arrays.

    Raises
    ------
    BackendUnavailable
        If the name is unknown, or the backend cannot serve; with the reason and the remedy.
    """
    if name == "auto":
        return "numba"
    if name not in _NAMES:
        raise BackendUnavailable(f"backend must be 'auto' or one of {', '.join(map(repr, _NAMES))}, given {name!r}")
    status = _status(name)
    if not status.available:
        raise BackendUnavailable(f"backend {name!r}: {status.reason}; {status.remedy}")
    return name  # type: ignore[return-value]


def sweep_maker(backend: Literal["numpy", "numba"], threads: int | None) -> Callable[..., SweepOnArrays]:
    """Give the constructor of sweeps on a backend; its library is loaded here and not before.

    Raises
    ------
    HyperparameterError
        If the backend does not have that many threads.
    """
    if backend == "numpy":
        from fastgd.kernels.reference import NumpySweep

        if threads not in (None, 1):
            raise HyperparameterError(f"threads must be None or 1 with backend 'numpy', given {threads!r}")
        return NumpySweep
    from fastgd.kernels.cpu import CpuSweep
    from fastgd.kernels.cpu_threads import available_threads, config

    if config.DISABLE_JIT:
        raise BackendUnavailable("backend 'numba': NUMBA_DISABLE_JIT switches its compiler off; unset it")
    return partial(CpuSweep, threads=available_threads(threads))


def as_array(value: object, what: str, *, writeable: bool = True) -> NDArray[Any]:
    """Take an array as it lies in memory: an ndarray, or what exports its CPU memory through DLPack.

    Parameters
    ----------
    value
        The array.
    what
        What it is, for the message of an error.
    writeable
        Whether it is going to be written.

    Raises
    ------
    ArrayError
        If it is no array on the CPU, or a kernel could not use it in place: dtype other than float32 and float64, not
        C-contiguous, not aligned, foreign byte order, read-only, masked.
    """
    array = _foreign(value, what) if not isinstance(value, np.ndarray) else value
    if type(array) not in (np.ndarray, np.memmap):
        raise ArrayError(f"{what} must be a plain ndarray, given {type(array).__name__}: pass np.asarray(x)")
    if array.dtype.char not in "fd" or not array.dtype.isnative:
        raise ArrayError(f"{what} must be float32 or float64 in native byte order, given dtype {array.dtype.str}")
    flags = array.flags
    if not flags.c_contiguous:
        raise ArrayError(
            f"{what} must be C-contiguous, given shape {array.shape} with strides {array.strides}: "
            "it is updated in place, so pass np.ascontiguousarray(x) and keep that"
        )
    if not flags.aligned:
        raise ArrayError(f"{what} must be aligned to its {array.itemsize} byte elements, given a shifted view")
    if writeable and not flags.writeable:
        raise ArrayError(f"{what} must be writeable, given a read-only array")
    return array


def _foreign(value: object, what: str) -> NDArray[Any]:
    if hasattr(value, "__cuda_array_interface__"):
        _, reason, _, _ = _status("cupy")
        raise ArrayError(f"{what} lies on a GPU, given {type(value).__name__}: {reason}")
    if not hasattr(value, "__dlpack__"):
        raise ArrayError(f"{what} must be an array, given {type(value).__name__}")
    try:
        return np.from_dlpack(value, copy=False)
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        raise ArrayError(
            f"{what} cannot be shared with NumPy, given {type(value).__name__}: {str(error).splitlines()[0]}"
        ) from error
