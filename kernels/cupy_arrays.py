"""Arrays in the memory of a GPU: CuPy's own, and what other libraries lend through DLPack or CUDA's array interface."""

from __future__ import annotations

import sys
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from fastgd.kernels import gpu_arrays
from fastgd.kernels.errors import ArrayError

# ---- own arrays --------------------------------------------------------------------------------------------------

to_device = cupy.asarray


def is_own(value: object) -> bool:
    """Whether a value is CuPy's, and no other library's."""
    return isinstance(value, cupy.ndarray)


def address(array: Any) -> int:
    """Address of an array's first element."""
    where: int = array.data.ptr
    return where


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Give an array of zeros on the current device.

    Raises
    ------
    MemoryError
        If it does not fit.
    """
    try:
        return cupy.zeros(shape, dtype)
    except cupy.cuda.memory.OutOfMemoryError as error:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raise MemoryError(f"{nbytes:,} bytes do not fit into the GPU's memory: {error}") from error


def to_host(array: Any) -> NDArray[Any]:
    """Wait for an array, and copy it."""
    copied: NDArray[Any] = array.get()
    return copied


def set_from_host(array: Any, values: NDArray[Any]) -> None:
    """Copy values of the array's shape and dtype into it."""
    array.set(values)


def copy_of(array: Any) -> Any:
    """Copy an array on the device."""
    return array.copy()


def assign(array: Any, values: Any) -> None:
    """Copy values of the array's shape, or a number, into an array; of the host or of a GPU."""
    if isinstance(values, np.ndarray | np.generic | int | float):
        given = np.asarray(values, array.dtype, order="C")
        values = to_device(given) if given.ndim else given.item()  # a number goes along with a kernel: nobody waits
    array[...] = values


def view(array: Any, start: int, shape: tuple[int, ...]) -> Any:
    """View of a contiguous array's elements from `start` on."""
    if shape == (array.size,):
        return array.reshape(-1)
    return array.reshape(-1)[start : start + int(np.prod(shape))].reshape(shape)


def device_of(array: Any) -> int:
    """Tell the number of the device on which an array lies."""
    number: int = array.device.id
    return number


def stream_of(array: Any) -> int:
    """Handle of the stream on which CuPy puts its work now."""
    handle: int = cupy.cuda.get_current_stream().ptr
    return handle


def namespace() -> Any:
    """Give CuPy, whose functions take these arrays."""
    return cupy


# ---- a user's ----------------------------------------------------------------------------------------------------


def as_device_array(value: Any, what: str, *, writeable: bool) -> Any:
    """Take an array as it lies on the current device, as CuPy's; nothing is copied.

    Raises
    ------
    ArrayError
        If it lies elsewhere, is another stream's, or a kernel could not use it in place.
    """
    array = value if is_own(value) else _lent(value, what, writeable)
    gpu_arrays.refuse_unfit(
        array, what, address(array), is_contiguous=array.flags.c_contiguous, copy="cupy.ascontiguousarray(x)"
    )
    device = device_of(array)
    gpu_arrays.refuse_device(what, device, cupy.cuda.Device().id, _inside(device))
    return array


def _inside(device: int) -> str:
    return f"cupy.cuda.Device({device})"


def _lent(value: Any, what: str, writeable: bool) -> Any:
    refuse_other_stream(value, what)
    if writeable:
        gpu_arrays.refuse_read_only(value, what)
    try:
        return cupy.from_dlpack(value) if hasattr(value, "__dlpack__") else cupy.asarray(value)
    except (RuntimeError, BufferError, TypeError, ValueError, AttributeError) as error:
        raise gpu_arrays.not_shared(value, what, "CuPy", error) from error


def refuse_other_stream(tensor: Any, what: str) -> None:
    """Refuse a tensor whose work torch would order on another stream than that of the step.

    Raises
    ------
    ArrayError
        If it would; not for arrays of other libraries.
    """
    if gpu_arrays.library_of(tensor) != "torch":
        return
    torch = sys.modules["torch"]
    theirs, ours = torch.cuda.current_stream(tensor.device).cuda_stream, cupy.cuda.get_current_stream().ptr
    if theirs != ours and not {theirs, ours} <= {0, 1}:  # two names of the legacy default stream
        raise ArrayError(
            f"{what} is a tensor of torch, whose current stream is {theirs:#x}, and CuPy's is {ours:#x}: step inside "
            "`with cupy.cuda.Stream.from_external(torch.cuda.current_stream()):`"
        )


def enter(array: Any, device: int, what: str) -> None:
    """Refuse to be called on another device than an array's one, or while CuPy's current stream is captured.

    Raises
    ------
    ArrayError, FastGDError
        If it is.
    """
    gpu_arrays.refuse_call_elsewhere(what, device, cupy.cuda.Device().id, _inside(device))
    gpu_arrays.refuse_capture(what, is_capturing=cupy.cuda.get_current_stream().is_capturing())
