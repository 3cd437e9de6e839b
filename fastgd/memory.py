"""Arrays in memory, of the host or of a GPU: what is asked of all alike. A GPU's library is loaded where it is needed.

Each array stays what it is: NumPy's, CuPy's or numba-cuda's. What another library lends is taken as one of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import Backend, lender_backend, refuse_missing
from fastgd.kernels.errors import ArrayError, BackendUnavailable
from fastgd.kernels.gpu_arrays import library_of

ALIGNMENT = 64
"""Bytes to which a block is aligned, and elements to which a segment's start is."""

HUGE_PAGE = 1 << 21
"""Bytes of a large page of memory, to which a block of that size is aligned."""

Memory = Literal["numpy", "cupy", "numba"]
"""Whose an array is: on the host NumPy's, on a GPU CuPy's or numba-cuda's."""

_CUDA = (2, 13)  # device types of DLPack: a GPU's memory, and managed memory
_OF_BACKEND: dict[str, Memory] = {"numpy": "numpy", "numba": "numpy", "cupy": "cupy", "numba-cuda": "numba"}


def memory_of_backend(backend: Backend) -> Memory:
    """Tell in whose memory a backend puts arrays that are made for it."""
    return _OF_BACKEND[backend]


def memory_of(array: Any) -> Memory:
    """Tell whose an array is, of those that `is_own` knows."""
    if isinstance(array, np.ndarray):
        return "numpy"
    return "numba" if library_of(array) == "numba" else "cupy"


@cache
def _gpu(memory: Memory) -> Any:
    """Give the module of what is asked of a GPU's arrays."""
    return import_module(f"fastgd.kernels.{memory}_arrays")


def _of(array: Any) -> Any:
    return _gpu(memory_of(array))


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


def _on_gpu_in(params: Any) -> Any:
    """Find an array in a user's parameters, of any form, that lies on a GPU; None where there is none."""
    if hasattr(params, "flat") and hasattr(params, "segments"):  # a FlatParams
        params = params.flat
    if isinstance(params, Mapping):
        params = [params["params"]] if "params" in params else list(params.values())
    if isinstance(params, list | tuple):
        return next((a for a in map(_on_gpu_in, params) if a is not None), None)
    return params if on_gpu(params) else None


def backend_of(params: Any) -> Backend:
    """Give the backend that serves parameters where they lie, of any form."""
    array = _on_gpu_in(params)
    if array is None:
        return "numba"
    library = library_of(array)
    if library == "numba":
        return "numba-cuda"
    return "cupy" if library == "cupy" else lender_backend()


def refuse_other_memory(backend: str, params: Any) -> None:
    """Refuse parameters that lie where a backend does not serve them.

    Raises
    ------
    BackendUnavailable
        With the way out.
    """
    array = _on_gpu_in(params)
    if array is None and backend in ("numpy", "numba"):
        return
    if array is None:
        where = "on the host"
        copy = "cupy.asarray(x)" if backend == "cupy" else "cuda.to_device(x)"
        ways = f"copies on a GPU, as of params.to({backend!r}) and {copy}"
    elif backend in ("numpy", "numba"):
        where = "on a GPU"
        copy = "x.copy_to_host()" if library_of(array) == "numba" else "x.get()"
        ways = f"copies on the host, as of params.to('numpy') and {copy}"
    elif backend == "cupy" and library_of(array) == "numba":
        where = "of numba-cuda"
        ways = "cupy.asarray(x), which shares their memory"
    else:
        return
    raise BackendUnavailable(
        f"backend {backend!r} does not serve arrays {where}, where params lie: pass backend='auto', or {ways}"
    )


def is_own(value: object) -> bool:
    """Whether an array is NumPy's, CuPy's or numba-cuda's, whose memory stays its own, and none that is lent."""
    if isinstance(value, np.ndarray) or library_of(value) == "cupy":
        return True
    return library_of(value) == "numba" and hasattr(value, "__cuda_ndarray__")


def place(value: Any) -> tuple[Any, ...] | None:
    """Tell where an array that another library lends lies, and how, at a look; None where only a loan would tell.

    What a tensor is asked here costs a tenth of taking it through DLPack.
    """
    try:
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    except Exception:  # it has none of this, or whatever another library raises
        return None


def refuse_other_stream(value: Any, what: str, params: Any) -> None:
    """Refuse an array of another library, such as torch, where that would order its work on another stream.

    Parameters
    ----------
    value, what
        The array, and what it is, for the message.
    params
        One of the parameters: work on them goes to the current stream of their library.

    Raises
    ------
    ArrayError
        If it would.
    """
    _of(params).refuse_other_stream(value, what)


def work_where(array: Any) -> None:
    """Have what this thread copies go to the stream of an array; only of a library without a current one."""
    if memory_of(array) == "numba":
        _gpu("numba").work_where(array)


def reach(array: Any, backend: Backend) -> Callable[[str], None]:
    """Give what begins a call's work beside the steps, as `entry` does for these; a stream may be captured."""
    if backend != "numba-cuda":
        return _reach_nothing
    return partial(_gpu("numba").reach, array, _of(array).device_of(array))


def _reach_nothing(what: str) -> None:
    """Begin nothing: the arrays' library finds its device and stream itself."""


def entry(array: Any, backend: Backend) -> Callable[[str], None]:
    """Give what begins a call's work on a GPU where an array lies, on the current stream of the array's library.

    It takes what is called, and raises ArrayError if another device is the current one, FastGDError if the stream is
    captured.
    """
    arrays = _of(array)
    enter: Callable[[str], None] = partial(arrays.enter, array, arrays.device_of(array))
    if backend != "numba-cuda" or memory_of(array) == "numba":
        return enter
    launcher = _gpu("numba")

    def enter_on_stream(what: str) -> None:
        enter(what)
        launcher.work_where(array)

    return enter_on_stream


def address(array: Any) -> int:
    """Address of an array's first element."""
    where: int = array.ctypes.data if isinstance(array, np.ndarray) else _of(array).address(array)
    return where


def stream_of(array: Any) -> int:
    """Give the handle of the stream on which work on an array goes; 0 for the host."""
    stream: int = 0 if isinstance(array, np.ndarray) else _of(array).stream_of(array)
    return stream


def device_of(array: Any) -> int | None:
    """Give the number of the GPU on which an array lies; None for the host."""
    return None if isinstance(array, np.ndarray) else _of(array).device_of(array)


def zeros(size: int, dtype: np.dtype[Any], memory: Memory = "numpy") -> Any:
    """1-D array of zeros that starts at a multiple of 64 bytes, from 2 MiB on at a huge page; on a GPU at one of 256.

    Raises
    ------
    MemoryError
        If it does not fit.
    """
    if memory != "numpy":
        return _gpu(memory).zeros(size, dtype)
    length = size * dtype.itemsize
    # NumPy asks for huge pages from 4 MiB on. An array that does not start at one lies in small and huge ones mixed,
    # and a step of 1 M elements takes up to twice as long. What is not used of the 2 MiB more is never touched.
    alignment = HUGE_PAGE if length >= HUGE_PAGE else ALIGNMENT
    raw = np.zeros(length + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + length].view(dtype)


def view(array: Any, start: int, shape: tuple[int, ...]) -> Any:
    """View of a contiguous array's elements from `start` on, in a shape."""
    if not isinstance(array, np.ndarray):
        return _of(array).view(array, start, shape)
    return array.reshape(-1)[start : start + math.prod(shape)].reshape(shape)


def namespace(array: Any) -> Any:
    """Give the library, NumPy or CuPy, whose functions take an array.

    Raises
    ------
    BackendUnavailable
        For arrays of numba-cuda, which has none.
    """
    return np if isinstance(array, np.ndarray) else _of(array).namespace()


def to_host(array: Any) -> NDArray[Any]:
    """Copy an array to the host's memory."""
    copied: NDArray[Any] = array.copy() if isinstance(array, np.ndarray) else _of(array).to_host(array)
    return copied


def copy_of(array: Any) -> Any:
    """Copy an array where it lies."""
    return array.copy() if isinstance(array, np.ndarray) else _of(array).copy_of(array)


def _taken(values: Any) -> Any:
    return values if is_own(values) else as_array(values, "values", writeable=False)


def copy_into(array: Any, values: Any) -> None:
    """Copy values of the array's shape, or a number, into an array, whichever memory either lies in."""
    if isinstance(array, np.ndarray):
        array[...] = to_host(_taken(values)) if on_gpu(values) else values
        return
    _of(array).assign(array, values if on_gpu(values) else np.asarray(values))


def as_array(value: object, what: str, *, writeable: bool = True, memory: Memory | None = None) -> Any:
    """Take an array as it lies in memory: NumPy's, CuPy's, or what another library lends through DLPack.

    Parameters
    ----------
    value
        The array.
    what
        What it is, for the message of an error.
    writeable
        Whether it is going to be written.
    memory
        Whose array of a GPU it is to become, if not its own library's.

    Raises
    ------
    ArrayError
        If it is no array, or a kernel could not use it in place: dtype other than float32 and float64, not
        C-contiguous, not aligned, foreign byte order, read-only, masked, on another device than the current one.
    BackendUnavailable
        If it lies on a GPU that cannot be served.
    """
    if on_gpu(value):
        backend = backend_of(value)
        refuse_missing(backend)
        whose = memory_of_backend(backend) if memory in (None, "numpy") else memory
        return _gpu(whose).as_device_array(value, what, writeable=writeable)
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
