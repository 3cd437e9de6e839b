"""Arrays in memory, of the host or of a GPU: what is asked of both alike, with CuPy loaded only where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import refuse_missing
from fastgd.kernels.errors import ArrayError, BackendUnavailable

ALIGNMENT = 64
"""Bytes to which a block is aligned, and elements to which a segment's start is."""

_CUDA = (2, 13)  # device types of DLPack: a GPU's memory, and managed memory


def on_gpu(value: object) -> bool:
    """Whether a value lies in a GPU's memory."""
    if is_own(value):
        return not isinstance(value, np.ndarray)
    try:
        return value.__dlpack_device__()[0] in _CUDA  # type: ignore[attr-defined]
    except Exception:  # it has none, or whatever another library raises
        pass
    try:
        return hasattr(value, "__cuda_array_interface__")
    except Exception:  # torch raises no AttributeError for what requires a gradient
        return False


def any_on_gpu(params: Any) -> bool:
    """Whether one of the arrays in a user's parameters, of any form, lies in a GPU's memory."""
    if hasattr(params, "flat") and hasattr(params, "segments"):  # a FlatParams
        return on_gpu(params.flat)
    if isinstance(params, Mapping):
        return any_on_gpu(params["params"]) if "params" in params else any(map(on_gpu, params.values()))
    if isinstance(params, list | tuple):
        return any(any_on_gpu(p) if isinstance(p, Mapping) else on_gpu(p) for p in params)
    return on_gpu(params)


def refuse_other_memory(backend: str, params: Any) -> None:
    """Refuse parameters that lie where a backend does not serve them.

    Raises
    ------
    BackendUnavailable
        With the way out.
    """
    gpu = any_on_gpu(params)
    if gpu == (backend == "cupy"):
        return
    if gpu:
        where, ways = "on a GPU", "backend='auto', or copies on the host, as of params.to('numpy') and x.get()"
    else:
        where, ways = "on the host", "backend='auto', or copies on a GPU, as of params.to('cupy') and cupy.asarray(x)"
    raise BackendUnavailable(f"backend {backend!r} does not serve arrays {where}, where params lie: pass {ways}")


def is_own(value: object) -> bool:
    """Whether an array is NumPy's or CuPy's, whose memory stays its own, and none that another library lends."""
    if isinstance(value, np.ndarray):
        return True
    return type(value).__module__.partition(".")[0] == "cupy"


def place(value: Any) -> tuple[Any, ...] | None:
    """Tell where an array that another library lends lies, and how, at a look; None where only a loan would tell.

    What a tensor is asked here costs a tenth of taking it through DLPack.
    """
    try:
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    except Exception:  # it has none of this, or whatever another library raises
        return None


def refuse_other_stream(value: Any, what: str) -> None:
    """Refuse a GPU's tensor of torch where torch would order its work on another stream than CuPy's current one.

    Raises
    ------
    ArrayError
        If it would.
    """
    from fastgd.kernels.cuda_arrays import refuse_other_stream

    refuse_other_stream(value, what)


def address(array: Any) -> int:
    """Address of an array's first element."""
    where: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return where


def zeros(size: int, dtype: np.dtype[Any], *, gpu: bool = False) -> Any:
    """1-D array of zeros that starts at a multiple of 64 bytes; on a GPU of 256.

    Raises
    ------
    MemoryError
        If it does not fit.
    """
    if gpu:
        from fastgd.kernels.cuda_arrays import device_zeros

        return device_zeros(size, dtype)
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def refuse_elsewhere(what: str, device: int) -> None:
    """Refuse to be called on another device than the arrays' one, or while CuPy's current stream is captured.

    Raises
    ------
    ArrayError, FastGDError
        If it is.
    """
    from fastgd.kernels.cuda_arrays import refuse_capture, refuse_other_device

    refuse_other_device(what, device)
    refuse_capture(what)


def namespace(array: Any) -> Any:
    """Give the library, NumPy or CuPy, whose functions take an array."""
    if isinstance(array, np.ndarray):
        return np
    from fastgd.kernels import cuda_arrays

    return cuda_arrays.namespace()


def to_host(array: Any) -> NDArray[Any]:
    """Copy an array to the host's memory."""
    copied: NDArray[Any] = array.copy() if isinstance(array, np.ndarray) else array.get()
    return copied


def copy_into(array: Any, values: Any) -> None:
    """Copy values of the array's shape, or a number, into an array, whichever memory either lies in."""
    if isinstance(array, np.ndarray):
        array[...] = to_host(values) if on_gpu(values) else values
        return
    if not on_gpu(values):
        from fastgd.kernels.cuda_arrays import to_device

        given = np.asarray(values, array.dtype, order="C")
        values = to_device(given) if given.ndim else given.item()  # a number goes along with a kernel: nobody waits
    array[...] = values


def as_array(value: object, what: str, *, writeable: bool = True) -> Any:
    """Take an array as it lies in memory: NumPy's, CuPy's, or what another library lends through DLPack.

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
        If it is no array, or a kernel could not use it in place: dtype other than float32 and float64, not
        C-contiguous, not aligned, foreign byte order, read-only, masked, on another device than the current one.
    BackendUnavailable
        If it lies on a GPU that cannot be served.
    """
    if on_gpu(value):
        refuse_missing("cupy")
        from fastgd.kernels.cuda_arrays import as_device_array

        return as_device_array(value, what, writeable=writeable)
    array = _lent(value, what) if not isinstance(value, np.ndarray) else value
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


def _lent(value: object, what: str) -> NDArray[Any]:
    if not hasattr(value, "__dlpack__"):
        raise ArrayError(f"{what} must be an array, given {type(value).__name__}")
    try:
        return np.from_dlpack(value, copy=False)
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        raise ArrayError(
            f"{what} cannot be shared with NumPy, given {type(value).__name__}: {str(error).splitlines()[0]}"
        ) from error
