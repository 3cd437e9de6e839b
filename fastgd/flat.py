"""Many named arrays in one aligned block of memory, and views back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastgd.backend import resolve
from fastgd.kernels.errors import ArrayError
from fastgd.memory import (
    ALIGNMENT,
    Memory,
    as_array,
    backend_of,
    copy_into,
    is_own,
    memory_of,
    memory_of_backend,
    on_gpu,
    to_host,
    view,
    work_where,
    zeros,
)


class Segment(NamedTuple):
    """One named array in a block."""

    name: str
    offset: int
    size: int
    shape: tuple[int, ...]


def lay_out(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Segment, ...]:
    """Place arrays one behind the other, each at a multiple of 64 elements."""
    segments, offset = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        segments.append(Segment(name, offset, size, shape))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(segments)


def extent(segments: Sequence[Segment]) -> int:
    """Elements from the start of a block to the end of its last segment."""
    return segments[-1].offset + segments[-1].size if segments else 0


class Block(Mapping[str, Any]):
    """Named views of one block of memory; a Mapping.

    ``block["w"]`` is a view in its shape, ``block["w"] = a`` copies `a` into it.

    Attributes
    ----------
    flat : ndarray
        The block, 1-D, NumPy's, CuPy's or numba-cuda's. Between segments lies padding, which stays zero.
    segments : tuple of Segment
        Name, offset, size and shape of each array.
    """

    def __init__(self, segments: tuple[Segment, ...], dtype: np.dtype[Any], memory: Memory = "numpy") -> None:
        self._segments = segments
        self._flat: Any = zeros(extent(segments), dtype, memory)
        self._views = {s.name: view(self._flat, s.offset, s.shape) for s in segments}

    @property
    def flat(self) -> Any:
        """The block as a 1-D array."""
        return self._flat

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Where each array lies."""
        return self._segments

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        dtype: np.dtype[Any] = self._flat.dtype
        return dtype

    def __getitem__(self, name: str) -> Any:
        """Give the view of an array."""
        return self._views[name]

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        """Copy an array of the same shape, or a number, into its place."""
        if name not in self._views:
            raise ArrayError(f"there is no array {name!r} here; there are {', '.join(map(repr, self._views))}")
        given: Any = value if on_gpu(value) else np.asarray(value)
        if given.shape not in ((), self._views[name].shape):
            raise ArrayError(f"{name!r} has shape {self._views[name].shape}, given {given.shape}")
        if given.dtype.kind not in "fiu":
            raise ArrayError(f"{name!r} takes real numbers, given dtype {given.dtype}")
        work_where(self._flat)
        copy_into(self._views[name], given)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __deepcopy__(self, memo: dict[int, Any]) -> Block:
        return _block(self._segments, self.dtype.name, self._flat, memory_of(self._flat))

    def __reduce__(self) -> tuple[Any, ...]:
        work_where(self._flat)
        # by the block: the views, pickled one by one, would come back as arrays of their own
        return _block, (self._segments, self.dtype.name, to_host(self._flat), memory_of(self._flat))

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        arrays = f"{len(self)} array{'s' * (len(self) != 1)}"
        elements = f"{sum(s.size for s in self._segments)} elements"
        return f"{type(self).__name__}({arrays}, {elements}, {self.dtype})"


class FlatParams(Block):
    """Parameters, packed: many named arrays in one aligned block, with a block of gradients beside it.

    One optimizer step over it is one launch, however many arrays there are.

    Parameters
    ----------
    arrays : mapping of str to array or shape
        Real arrays, which are copied, or shapes (an int or a tuple of ints), which start at zero.
    dtype : dtype, optional
        ``float32`` or ``float64``. By default the common dtype of the arrays, and float32 for shapes alone.
    backend : str
        Where the memory lies: ``"numpy"`` and ``"numba"``: the host's; ``"cupy"`` and ``"numba-cuda"``: the current
        GPU's, as arrays of these libraries; ``"auto"``: where the arrays given lie, for shapes alone the host's.

    Attributes
    ----------
    grad : Block
        Gradients, of the same names and shapes; zero at first.

    Raises
    ------
    ArrayError
        For arrays of mixed or other dtypes without `dtype`, and for what is neither array nor shape.
    BackendUnavailable
        For a backend that cannot serve here.
    MemoryError
        If it does not fit.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> params = fastgd.FlatParams({"w": np.ones((2, 3)), "b": np.zeros(3)})
    >>> params["w"].shape, params.flat.size, params.segments[1].offset
    ((2, 3), 67, 64)
    >>> params["b"] = [1.0, 2.0, 3.0]
    >>> params.grad["w"][:] = 0.5
    """

    def __init__(
        self,
        arrays: Mapping[str, ArrayLike | int | tuple[int, ...]],
        dtype: DTypeLike | None = None,
        backend: str = "auto",
    ) -> None:
        if not isinstance(arrays, Mapping):
            raise ArrayError(f"FlatParams takes a mapping of names to arrays or shapes, given {type(arrays).__name__}")
        self.backend = resolve(backend, backend_of(list(arrays.values())))
        given = {name: _array_or_shape(name, value) for name, value in arrays.items()}
        values = {name: v for name, v in given.items() if not isinstance(v, tuple)}
        common = _dtype(dtype, values)
        shapes = {name: v if isinstance(v, tuple) else v.shape for name, v in given.items()}
        memory = memory_of_backend(self.backend)
        super().__init__(lay_out(shapes), common, memory)
        self._grad = Block(self._segments, common, memory)
        for name, value in values.items():
            self[name] = value

    @property
    def grad(self) -> Block:
        """Gradients, of the same names and shapes."""
        return self._grad

    def to(self, backend: str) -> FlatParams:
        """Copy parameters and gradients to the memory of another backend; of ``"auto"`` to where they are."""
        shapes = {s.name: s.shape for s in self._segments}
        moved = FlatParams(shapes, self.dtype, self.backend if backend == "auto" else backend)
        work_where(self.flat)
        copy_into(moved.flat, self.flat)
        copy_into(moved.grad.flat, self.grad.flat)
        return moved

    def copy(self) -> FlatParams:
        """Copy parameters and gradients."""
        return self.to(self.backend)

    def __deepcopy__(self, memo: dict[int, Any]) -> FlatParams:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        work_where(self._flat)
        shapes = {s.name: s.shape for s in self._segments}
        return _restore, (shapes, self.dtype.name, self.backend, to_host(self.flat), to_host(self.grad.flat))


def _block(segments: tuple[Segment, ...], dtype: str, flat: Any, memory: Memory) -> Block:
    block = Block(segments, np.dtype(dtype), memory)
    work_where(block.flat)
    copy_into(block.flat, flat)
    return block


def _restore(
    shapes: dict[str, tuple[int, ...]], dtype: str, backend: str, flat: NDArray[Any], grad: NDArray[Any]
) -> FlatParams:
    params = FlatParams(shapes, dtype, backend)
    work_where(params.flat)
    copy_into(params.flat, flat)
    copy_into(params.grad.flat, grad)
    return params


def _array_or_shape(name: str, value: Any) -> Any:
    if not isinstance(name, str):
        raise ArrayError(f"FlatParams takes names that are str, given {name!r}")
    if isinstance(value, bool):
        raise ArrayError(f"{name!r} must be an array or a shape, given {value!r}")
    shape = (value,) if isinstance(value, int) else value
    if isinstance(shape, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        if any(n < 0 for n in shape):
            raise ArrayError(f"{name!r} must have a shape of whole numbers from 0, given {value!r}")
        return shape
    if not is_own(value):
        if isinstance(value, np.generic) or not (hasattr(value, "__dlpack__") or on_gpu(value)):
            try:
                value = np.asarray(value)
            except ValueError as error:
                raise ArrayError(f"{name!r} must be an array or a shape: {error}") from error
        else:
            value = as_array(value, repr(name), writeable=False)
    if isinstance(value, np.ma.MaskedArray) or value.dtype.kind not in "fiu":
        raise ArrayError(f"{name!r} must be an array of real numbers, given {type(value).__name__} of {value.dtype}")
    return value


def _dtype(dtype: DTypeLike | None, arrays: Mapping[str, Any]) -> np.dtype[Any]:
    if dtype is not None:
        try:
            asked = np.dtype(dtype)
        except TypeError:
            raise ArrayError(f"dtype must be float32 or float64, given {dtype!r}") from None
        if asked not in (np.float32, np.float64):
            raise ArrayError(f"dtype must be float32 or float64, given {asked}")
        return asked.newbyteorder("=")
    found = {a.dtype.newbyteorder("="): name for name, a in arrays.items()}
    if len(found) > 1:
        listed = ", ".join(f"{name!r} {d}" for d, name in found.items())
        raise ArrayError(f"the arrays have several dtypes ({listed}): say which with dtype=")
    common = next(iter(found), np.dtype(np.float32))
    if common not in (np.float32, np.float64):
        raise ArrayError(f"the arrays are {common}: say dtype='float32' or 'float64'")
    return common
