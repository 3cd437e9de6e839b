"""Arrays in the memory of a GPU: CuPy's own, and what other libraries lend through DLPack or CUDA's array interface."""

from __future__ import annotations

import sys
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.errors import ArrayError, FastGDError

_IMMUTABLE = ("jax", "jaxlib")


def is_own(value: object) -> bool:
    """Whether a value is CuPy's, and no other library's."""
    return isinstance(value, cupy.ndarray)


def as_device_array(value: Any, what: str, *, writeable: bool) -> Any:
    """Take an array as it lies on the current device, as CuPy's; nothing is copied.

    Raises
    ------
    ArrayError
        If it lies elsewhere, is another stream's, or a kernel could not use it in place.
    """
    array = value if is_own(value) else _lent(value, what, writeable)
    if array.dtype.char not in "fd":
        raise ArrayError(f"{what} must be float32 or float64, given dtype {array.dtype}")
    if not array.flags.c_contiguous:
        raise ArrayError(
            f"{what} must be C-contiguous, given shape {array.shape} with strides {array.strides}: "
            "it is updated in place, so pass cupy.ascontiguousarray(x) and keep that"
        )
    if array.data.ptr % array.itemsize:
        raise ArrayError(f"{what} must be aligned to its {array.itemsize} byte elements, given a shifted view")
    here = cupy.cuda.Device().id
    if array.device.id != here:
        raise ArrayError(
            f"{what} lies on device {array.device.id}, and the current one is {here}: build and step the optimizer "
            f"inside `with cupy.cuda.Device({array.device.id}):`, with all its arrays there"
        )
    return array


def _lent(value: Any, what: str, writeable: bool) -> Any:
    library = type(value).__module__.partition(".")[0]
    if writeable and library in _IMMUTABLE:
        raise ArrayError(f"{what} must be writeable, given a {type(value).__name__} of {library}, which is immutable")
    refuse_other_stream(value, what)
    if writeable and _is_read_only(value):
        raise ArrayError(f"{what} must be writeable, given a read-only {type(value).__name__}")
    try:
        if hasattr(value, "__dlpack__"):
            return cupy.from_dlpack(value)
        return cupy.asarray(value)
    except (RuntimeError, BufferError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        advice = ": pass x.detach()" if "grad" in reason else ""
        raise ArrayError(
            f"{what} cannot be shared with CuPy, given {type(value).__name__}: {reason}{advice}"
        ) from error


def _is_read_only(value: Any) -> bool:
    try:
        return bool(value.__cuda_array_interface__["data"][1])
    except Exception:  # it has none, or whatever another library raises
        return False


def refuse_other_stream(tensor: Any, what: str) -> None:
    """Refuse a tensor whose work torch would order on another stream than that of the step.

    Raises
    ------
    ArrayError
        If it would; not for arrays of other libraries.
    """
    if type(tensor).__module__.partition(".")[0] != "torch":
        return
    torch = sys.modules["torch"]
    theirs, ours = torch.cuda.current_stream(tensor.device).cuda_stream, cupy.cuda.get_current_stream().ptr
    if theirs != ours and not {theirs, ours} <= {0, 1}:  # two names of the legacy default stream
        raise ArrayError(
            f"{what} is a tensor of torch, whose current stream is {theirs:#x}, and CuPy's is {ours:#x}: step inside "
            "`with cupy.cuda.Stream.from_external(torch.cuda.current_stream()):`"
        )


def device_zeros(size: int, dtype: np.dtype[Any]) -> Any:
    """1-D array of zeros on the current device.

    Raises
    ------
    MemoryError
        If it does not fit.
    """
    try:
        return cupy.zeros(size, dtype)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise MemoryError(f"{size * dtype.itemsize:,} bytes do not fit into the GPU's memory: {error}") from error


def namespace() -> Any:
    """Give CuPy, whose functions take these arrays."""
    return cupy


def to_device(array: NDArray[Any]) -> Any:
    """Copy an array of the host to the current device."""
    return cupy.asarray(array)


def refuse_other_device(what: str, device: int) -> None:
    """Refuse to be called while another device than the arrays' one is the current one.

    Raises
    ------
    ArrayError
        If it is.
    """
    here = cupy.cuda.Device().id
    if here != device:
        raise ArrayError(
            f"{what} must be called where params lie, on device {device}, and the current one is {here}: call it "
            f"inside `with cupy.cuda.Device({device}):`"
        )


def refuse_capture(what: str) -> None:
    """Refuse to be called while the current stream is captured into a graph.

    Raises
    ------
    FastGDError
        If it is.
    """
    if cupy.cuda.get_current_stream().is_capturing():
        raise FastGDError(
            f"{what} cannot be captured: a graph would repeat the numbers of this one step; opt.capture() makes a "
            "graph that takes new ones"
        )
