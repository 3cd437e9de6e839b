"""Arrays in the memory of a GPU: numba-cuda's own, and what other libraries lend through CUDA's array interface.

numba-cuda's arrays have no arithmetic and no fill. What is missing is asked of the driver, through the bindings to it
that numba-cuda itself stands on.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from cuda.bindings import driver
from numpy.typing import NDArray

from fastgd.kernels import gpu_arrays
from fastgd.kernels.cuda_device import numba_cuda
from fastgd.kernels.errors import ArrayError, BackendUnavailable

cuda = numba_cuda()


class _Here(threading.local):
    """What a thread works on."""

    stream = 0


_here = _Here()


def current_stream() -> int:
    """Handle of the stream on which this thread puts copies and launches: numba-cuda itself has no current one."""
    return _here.stream


def work_on(stream: int) -> None:
    """Make a stream this thread's, by its handle; 0 is the default one."""
    _here.stream = stream


def work_where(array: Any) -> None:
    """Make the stream of an array this thread's, and the current device ready for it."""
    _current_device()
    work_on(stream_of(array))


def stream_of(array: Any) -> int:
    """Handle of the stream on which an array's library would put its work now: an array of numba-cuda's has its own."""
    library = gpu_arrays.library_of(array)
    if library == "numba":  # its own `int(stream)` warns for the default one
        stream = array.stream.handle if array.stream else 0
    elif library == "cupy":
        stream = sys.modules["cupy"].cuda.get_current_stream().ptr
    elif library == "torch":
        stream = sys.modules["torch"].cuda.current_stream(array.device).cuda_stream
    else:
        stream = array.__cuda_array_interface__.get("stream") or 0
    return 0 if int(stream) == 1 else int(stream)  # two names of the legacy default stream


def checked(answer: tuple[Any, ...]) -> Any:
    """Value of a call of the driver.

    Raises
    ------
    RuntimeError
        With the driver's name of what went wrong.
    """
    result, *values = answer
    if result.value:
        raise RuntimeError(f"the NVIDIA driver says {result.name}")
    return values[0] if values else None


def wait() -> None:
    """Wait for this thread's stream."""
    _wait_for(current_stream())


def _wait_for(stream: int) -> None:
    checked(driver.cuStreamSynchronize(stream))


# ---- own arrays --------------------------------------------------------------------------------------------------

_DEFAULT = 0  # stream on which new memory is filled: the one that this thread last worked on may be gone


def is_own(value: object) -> bool:
    """Whether a value is numba-cuda's, and no other library's."""
    return gpu_arrays.library_of(value) == "numba"


def address(array: Any) -> int:
    """Address of an array's first element; CuPy's too."""
    where: int = array.device_ctypes_pointer.value if is_own(array) else array.data.ptr
    return where or 0  # an array without elements has none


def _empty(shape: int | tuple[int, ...], dtype: Any, stream: Any = 0) -> Any:
    try:
        return cuda.device_array(shape, dtype, stream=stream)
    except Exception as error:  # numba-cuda's own, of which it names no class
        if "MEMORY" not in str(error):
            raise
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raise MemoryError(f"{nbytes:,} bytes do not fit into the GPU's memory: {error}") from error


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Give an array of zeros on the current device, and wait for them.

    Raises
    ------
    MemoryError
        If it does not fit.
    """
    array = _empty(shape, dtype)
    if array.nbytes:
        checked(driver.cuMemsetD8Async(address(array), 0, array.nbytes, _DEFAULT))
        _wait_for(_DEFAULT)
    return array


def to_device(array: NDArray[Any]) -> Any:
    """Copy an array of the host to the current device, and wait for that."""
    made = _empty(array.shape, array.dtype)
    _send(made, array, _DEFAULT)
    return made


def set_from_host(array: Any, values: NDArray[Any]) -> None:
    """Copy values of the array's shape and dtype into it, and wait for that."""
    _send(array, values, current_stream())


def _send(array: Any, values: NDArray[Any], stream: int) -> None:
    values = np.ascontiguousarray(values)
    if values.nbytes:
        checked(driver.cuMemcpyHtoDAsync(address(array), values.ctypes.data, values.nbytes, stream))
        _wait_for(stream)


def to_host(array: Any) -> NDArray[Any]:
    """Wait for an array, and copy it."""
    if not array.is_c_contiguous():
        spread: NDArray[Any] = array.copy_to_host(stream=array.stream)
        _wait_for(stream_of(array))  # with a stream it may come back before the copy is there
        return spread
    copied: NDArray[Any] = np.empty(array.shape, array.dtype)
    if copied.nbytes:
        checked(driver.cuMemcpyDtoHAsync(copied.ctypes.data, address(array), copied.nbytes, current_stream()))
        wait()
    return copied


def copy_of(array: Any) -> Any:
    """Copy an array on the device, on its stream."""
    work_where(array)
    made = _empty(array.shape, array.dtype, array.stream)
    assign(made, array)
    return made


def assign(array: Any, values: Any) -> None:
    """Copy values of the array's shape, or a number, into an array; of the host or of a GPU."""
    if isinstance(values, np.ndarray | np.generic | int | float):
        given = np.asarray(values, array.dtype)
        if given.ndim or given.tobytes().strip(b"\0"):
            set_from_host(array, np.broadcast_to(given, array.shape))
        elif array.nbytes:  # zero, as bytes too: nobody waits
            checked(driver.cuMemsetD8Async(address(array), 0, array.nbytes, current_stream()))
        return
    given = values if is_own(values) else _lent(values, "values")
    theirs = stream_of(given)
    if theirs != current_stream():
        _wait_for(theirs)
    if (given.shape, given.dtype) != (array.shape, array.dtype) or not given.is_c_contiguous():
        set_from_host(array, np.broadcast_to(to_host(given).astype(array.dtype), array.shape))
    elif given.nbytes:
        checked(driver.cuMemcpyDtoDAsync(address(array), address(given), given.nbytes, current_stream()))
        if theirs != current_stream():  # which may overwrite it when this returns
            wait()


def view(array: Any, start: int, shape: tuple[int, ...]) -> Any:
    """View of a contiguous array's elements from `start` on; numba-cuda's own reshape forgets the stream."""
    if shape == array.shape:
        return array.bind(array.stream)
    described = {
        "shape": shape,
        "typestr": array.dtype.str,
        "data": (address(array) + start * array.dtype.itemsize, False),
        "version": 3,
    }
    return cuda.from_cuda_array_interface(described, owner=array, sync=False).bind(array.stream)


def device_of(array: Any) -> int:
    """Tell the number of the device on which an array lies."""
    if not array.size:
        return _current_device()
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(checked(driver.cuPointerGetAttribute(kind, address(array))))


def _current_device() -> int:
    result, *found = driver.cuCtxGetDevice()
    # A new thread has none until numba-cuda is asked, which makes it ready; that takes 4 µs, too much for each step.
    number = cuda.get_current_device().id if result.value else found[0]
    return int(number)


def namespace() -> Any:
    """Refuse: numba-cuda has no functions of whole arrays.

    Raises
    ------
    BackendUnavailable
        With the way out.
    """
    raise BackendUnavailable(
        "numba-cuda's arrays have no arithmetic, which this needs: take arrays of CuPy, as cupy.asarray(x), which "
        "shares their memory, or of NumPy"
    )


# ---- a user's ----------------------------------------------------------------------------------------------------


def as_device_array(value: Any, what: str, *, writeable: bool) -> Any:
    """Take an array as it lies on the current device, as numba-cuda's; nothing is copied.

    Raises
    ------
    ArrayError
        If it lies elsewhere, or a kernel could not use it in place.
    """
    if writeable and not is_own(value):
        gpu_arrays.refuse_read_only(value, what)
    array = value if is_own(value) else _lent(value, what)
    gpu_arrays.refuse_unfit(
        array, what, address(array), is_contiguous=array.is_c_contiguous(), copy="a contiguous copy of it"
    )
    device = device_of(array)
    gpu_arrays.refuse_device(what, device, _current_device(), _inside(device))
    return array


def _inside(device: int) -> str:
    return f"numba.cuda.gpus[{device}]"


def _lent(value: Any, what: str) -> Any:
    try:
        array, stream = cuda.as_cuda_array(value, sync=False), stream_of(value)
    except Exception as error:  # whatever another library raises
        raise gpu_arrays.not_shared(value, what, "numba-cuda", error) from error
    return array.bind(cuda.external_stream(stream) if stream else 0)


def refuse_other_stream(value: Any, what: str) -> None:
    """Refuse an array whose library would put its work on another stream than this thread's.

    Raises
    ------
    ArrayError
        If it would.
    """
    theirs, ours = stream_of(value), current_stream()
    if theirs != ours:
        raise ArrayError(
            f"{what} is an array of {gpu_arrays.library_of(value)}, whose current stream is {theirs:#x}, and the "
            f"parameters were taken on {ours:#x}: build and step the optimizer on one stream"
        )


def reach(array: Any, device: int, what: str) -> None:
    """Have this thread work on an array's stream; refuse another device.

    Raises
    ------
    ArrayError
        If another one is current.
    """
    gpu_arrays.refuse_call_elsewhere(what, device, _current_device(), _inside(device))
    work_on(stream_of(array))


def enter(array: Any, device: int, what: str) -> None:
    """Have this thread work on an array's stream; refuse another device, or that its stream is captured.

    Raises
    ------
    ArrayError, FastGDError
        If it is.
    """
    reach(array, device, what)
    if current_stream():  # the default one cannot be captured
        status = checked(driver.cuStreamIsCapturing(current_stream()))
        gpu_arrays.refuse_capture(what, is_capturing=status.value != 0)
