"""Backends by name: which there are, which one serves an array, and why one cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata, util
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.blocks import Where
from fastgd.kernels.errors import ArrayError, BackendUnavailable, HyperparameterError

Backend = Literal["numpy", "numba", "numba-cuda", "cupy"]
_NAMES: tuple[Backend, ...] = ("numpy", "numba", "numba-cuda", "cupy")


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
    library, module, distribution = {
        "numba-cuda": ("numba-cuda", "numba_cuda", "numba-cuda"),
        "cupy": ("CuPy", "cupy", "cupy-cuda13x"),
    }[name]
    installed = util.find_spec(module) is not None
    reason = f"fastgd {metadata.version('fastgd')} has no kernels for {library} yet"
    if not installed:
        reason += f", and {library} is not installed"
    remedy = "wait for a release that has them; until then move the arrays to NumPy, which backend='numba' serves"
    return Status(False, reason, remedy, _version(distribution) if installed else None)


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
