"""What is asked of an array in a GPU's memory, whichever library it is of, and the words in which it is refused."""

from __future__ import annotations

from typing import Any

from fastgd.kernels.errors import ArrayError, FastGDError

_IMMUTABLE = ("jax", "jaxlib")


def library_of(value: object) -> str:
    """Name of the package that an object's type comes from."""
    return type(value).__module__.partition(".")[0]


def refuse_unfit(array: Any, what: str, address: int, *, is_contiguous: bool, copy: str) -> None:
    """Refuse an array that a kernel could not use in place.

    Parameters
    ----------
    array, what
        The array, and what it is, for the message.
    address
        Of its first element.
    is_contiguous
        Whether it is C-contiguous.
    copy
        What makes a copy that is.

    Raises
    ------
    ArrayError
        That says why.
    """
    if array.dtype.char not in "fd":
        raise ArrayError(f"{what} must be float32 or float64, given dtype {array.dtype}")
    if not is_contiguous:
        raise ArrayError(
            f"{what} must be C-contiguous, given shape {array.shape} with strides {array.strides}: "
            f"it is updated in place, so pass {copy} and keep that"
        )
    if address % array.dtype.itemsize:
        raise ArrayError(f"{what} must be aligned to its {array.dtype.itemsize} byte elements, given a shifted view")


def refuse_device(what: str, device: int, here: int, inside: str) -> None:
    """Refuse an array of another device than the current one; `inside` makes its own the current one.

    Raises
    ------
    ArrayError
        If it is.
    """
    if device != here:
        raise ArrayError(
            f"{what} lies on device {device}, and the current one is {here}: build and step the optimizer "
            f"inside `with {inside}:`, with all its arrays there"
        )


def refuse_call_elsewhere(what: str, device: int, here: int, inside: str) -> None:
    """Refuse a call while another device than the arrays' one is the current one.

    Raises
    ------
    ArrayError
        If it is.
    """
    if device != here:
        raise ArrayError(
            f"{what} must be called where params lie, on device {device}, and the current one is {here}: call it "
            f"inside `with {inside}:`"
        )


def refuse_capture(what: str, *, is_capturing: bool) -> None:
    """Refuse a call while the stream it works on is captured into a graph.

    Raises
    ------
    FastGDError
        If it is.
    """
    if is_capturing:
        raise FastGDError(
            f"{what} cannot be captured: a graph would repeat the numbers of this one step; opt.capture() makes a "
            "graph that takes new ones"
        )


def refuse_read_only(value: Any, what: str) -> None:
    """Refuse an array that another library does not lend for writing.

    Raises
    ------
    ArrayError
        If it says so.
    """
    library = library_of(value)
    if library in _IMMUTABLE:
        raise ArrayError(f"{what} must be writeable, given a {type(value).__name__} of {library}, which is immutable")
    try:
        is_read_only = bool(value.__cuda_array_interface__["data"][1])
    except Exception:  # it has none, or whatever another library raises
        return
    if is_read_only:
        raise ArrayError(f"{what} must be writeable, given a read-only {type(value).__name__}")


def not_shared(value: Any, what: str, library: str, error: Exception) -> ArrayError:
    """Give the error of an array that cannot be borrowed, with the way out where there is one."""
    reason = str(error).partition("\n")[0]
    advice = ": pass x.detach()" if "grad" in reason else ""
    return ArrayError(f"{what} cannot be shared with {library}, given {type(value).__name__}: {reason}{advice}")
