"""What a step updates: the user's arrays, in whatever form they came, as segments in memory."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.flat import Block, FlatParams, Segment, extent, lay_out
from fastgd.kernels.blocks import Where
from fastgd.kernels.errors import ArrayError
from fastgd.memory import (
    Memory,
    address,
    as_array,
    backend_of,
    copy_into,
    copy_of,
    is_own,
    memory_of,
    memory_of_backend,
    on_gpu,
    place,
    refuse_other_stream,
    to_host,
    view,
)


class Arrays(NamedTuple):
    """The arrays of one quantity, 1-D, and where each segment lies in them."""

    arrays: list[Any]
    where: Where


@dataclass(frozen=True)
class _Form:
    """One thing the user gave as parameters: an array, a FlatParams, or a list or dict of arrays.

    Attributes
    ----------
    keys
        Keys of the arrays in a list or dict; None for an array or a FlatParams.
    """

    given: Any
    keys: tuple[Any, ...] | None
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, given: Any, title: str) -> _Form:
        if isinstance(given, FlatParams):
            return cls(given, None, given.segments)
        if isinstance(given, Mapping):
            keys: tuple[Any, ...] | None = tuple(given)
        elif isinstance(given, list | tuple):
            keys = tuple(range(len(given)))
        else:
            array = as_array(given, title)
            return cls(given, None, lay_out({title: array.shape}))
        shapes = {}
        for key in keys or ():
            if str(key) in shapes:
                raise ArrayError(f"{title} must have keys of different names, given {str(key)!r} twice")
            shapes[str(key)] = as_array(given[key], f"{title}[{key!r}]").shape
        return cls(given, keys, lay_out(shapes))

    def take(self, value: Any, title: str, dtype: np.dtype[Any] | None, writeable: bool) -> list[tuple[Any, int]]:
        """Split what mirrors this form into one array and offset for each segment."""
        if isinstance(self.given, FlatParams):
            if isinstance(value, Block) and value.segments == self.segments:
                value = value.flat
            if not isinstance(value, Mapping):
                return self._block(value, title, dtype, writeable)
            keys: Iterable[Any] = self.given
        elif self.keys is None:
            return [(self._array(value, title, self.segments[0].shape, dtype, writeable), 0)]
        else:
            keys = self.keys
        wanted = list(keys)
        mapping = isinstance(self.given, Mapping)
        if not isinstance(value, Mapping if mapping else list | tuple) or len(value) != len(wanted):
            kind = f"a dict with {', '.join(map(repr, wanted))}" if mapping else f"a list of {len(wanted)} arrays"
            raise ArrayError(f"{title} must be {kind}, given {_describe(value)}")
        taken = []
        for key, segment in zip(wanted, self.segments, strict=True):
            if mapping and key not in value:
                raise ArrayError(f"{title} has no {key!r}; it has {', '.join(map(repr, value))}")
            array = self._array(value[key], f"{title}[{key!r}]", segment.shape, dtype, writeable)
            taken.append((array, 0))
        return taken

    def _block(self, value: Any, title: str, dtype: np.dtype[Any] | None, writeable: bool) -> list[tuple[Any, int]]:
        array = self._array(value, title, self.given.flat.shape, dtype, writeable)
        return [(array, s.offset) for s in self.segments]

    def _array(
        self, value: Any, title: str, shape: tuple[int, ...], dtype: np.dtype[Any] | None, writeable: bool
    ) -> Any:
        array = as_array(value, title, writeable=writeable, memory=None if dtype is None else self.memory)
        on_host, ours_on_host = isinstance(array, np.ndarray), self.memory == "numpy"
        if dtype is not None and on_host != ours_on_host:
            there, here = ("a GPU", "the host") if ours_on_host else ("the host", "a GPU")
            raise ArrayError(f"{title} lies on {there} and the parameters on {here}: move it there")
        if dtype is not None and self.memory == "numba" and not (is_own(value) and memory_of(value) == "numba"):
            refuse_other_stream(value, title, array)
        if array.shape != shape:
            raise ArrayError(f"{title} must have shape {shape}, given {array.shape}")
        if dtype is not None and array.dtype != dtype:
            raise ArrayError(f"{title} must have the parameters' dtype {dtype}, given {array.dtype}")
        # an object of its own, also where it is 1-D: one given twice is found by its memory
        return array.reshape(-1) if on_host else view(array, 0, (array.size,))

    @cached_property
    def memory(self) -> Memory:
        """Whose the arrays are."""
        return memory_of_backend(backend_of(self.given))

    def leaves(self) -> list[Any]:
        """Arrays that the user gave, as they were given."""
        if isinstance(self.given, FlatParams):
            return [self.given.flat]
        return [self.given] if self.keys is None else [self.given[key] for key in self.keys]

    def copy(self) -> Any:
        """Copy of the parameters in the same form."""
        if isinstance(self.given, FlatParams):
            return self.given.copy()
        if self.keys is None:
            return copy_of(as_array(self.given, "params"))
        copies = {key: copy_of(as_array(self.given[key], "params")) for key in self.keys}
        return copies if isinstance(self.given, Mapping) else list(copies.values())


class Targets:
    """Parameters of an optimizer.

    Parameters
    ----------
    forms
        What the user gave, one for each group with ``params``.
    group
        Number of each segment's group.
    single
        Whether the user gave no list of groups.

    Raises
    ------
    ArrayError
        For arrays that cannot be updated in place, of different dtypes, or that share memory.
    """

    def __init__(self, forms: Sequence[_Form], group: Sequence[int], single: bool) -> None:
        self._single = single
        self._forms = list(forms)
        self.group = list(group)
        named = [segment for form in forms for segment in form.segments]
        laid = lay_out({str(i): s.shape for i, s in enumerate(named)})
        self.segments = tuple(p._replace(name=s.name) for p, s in zip(laid, named, strict=True))
        self.parameters = self._collect([f.given for f in self._forms], "params", None, writeable=True)
        dtypes = {a.dtype for a in self.parameters.arrays}
        if len(dtypes) > 1:
            raise ArrayError(f"params must have one dtype, given {' and '.join(sorted(map(str, dtypes)))}")
        self.dtype: np.dtype[Any] = dtypes.pop() if dtypes else np.dtype(np.float32)
        memories = sorted({memory_of(a) for a in self.parameters.arrays} or {form.memory for form in forms})
        if len(memories) > 1:
            where = "on the host and on a GPU" if "numpy" in memories else "of CuPy and of numba-cuda"
            raise ArrayError(f"params must lie in one memory, given arrays {where}")
        self.memory: Memory = memories[0] if memories else "numpy"
        lent = [leaf for form in self._forms for leaf in form.leaves() if not is_own(leaf)]
        self.foreign = [(value, address(as_array(value, "params")), place(value)) for value in lent]
        self._taken: list[tuple[int, int, str]] = []
        self.take("params", self.parameters.arrays)
        n = len(self.segments)
        self.flat = Where(np.zeros(n, np.int64), np.array([s.offset for s in self.segments], np.int64))

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]], single: bool) -> Targets:
        """Take the parameters of groups, each with ``params``, or with ``match``: patterns of names that it claims.

        Parameters
        ----------
        groups
            As the user gave them.
        single
            Whether the user gave no list of groups.
        """
        forms: list[_Form] = []
        group: list[int] = []
        for i, given in enumerate(groups):
            if "params" in given:
                forms.append(_Form.of(given["params"], "params" if single else f"params of group {i}"))
                group += [i] * len(forms[-1].segments)
        claimed: set[int] = set()
        for i, given in enumerate(groups):
            for k in _matching([s for f in forms for s in f.segments], i, given):
                if k not in claimed:  # the first to name it has it
                    claimed.add(k)
                    group[k] = i
        return cls(forms, group, single)

    def with_group(self, given: Mapping[str, Any], index: int) -> Targets:
        """Give the same parameters with one more group: of ``params`` of its own, or of what it takes by ``match``."""
        if "params" in given:
            form = _Form.of(given["params"], f"params of group {index}")
            return Targets([*self._forms, form], [*self.group, *[index] * len(form.segments)], False)
        claimed = _matching(self.segments, index, given)
        return Targets(self._forms, [index if k in claimed else g for k, g in enumerate(self.group)], self._single)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(s.size for s in self.segments)

    @property
    def extent(self) -> int:
        """Length of a flat state array, padding between segments included."""
        return extent(self.segments)

    def take(self, what: str, arrays: Sequence[Any]) -> None:
        """Remember memory that a step writes: nothing else may lie there.

        Raises
        ------
        ArrayError
            If it is taken already.
        """
        spans = sorted([*self._taken, *_spans(what, arrays)])
        _refuse_overlap(spans)
        self._taken = spans

    def refuse_moved(self) -> None:
        """Refuse parameters that another library has moved in memory since they were taken.

        Raises
        ------
        ArrayError
            If one of them lies elsewhere now.
        """
        if self.memory != "numpy" and self.foreign:
            refuse_other_stream(self.foreign[0][0], "params", self.parameters.arrays[0])
        for value, before, there in self.foreign:
            if there is not None and place(value) == there:
                continue
            if address(as_array(value, "params")) != before:
                raise ArrayError(
                    f"params must stay where they are, given a {type(value).__name__} that has been moved in memory "
                    "since the optimizer was built: build a new one"
                )

    def leaves(self, grads: Any) -> tuple[list[Any], list[tuple[Any, ...]]] | None:
        """Tell what `grads` is made of, to find out whether that is what the last step had; None where nothing tells.

        Returns
        -------
        tuple of list
            The objects, and where those lie that only lend their memory, and may have other memory at the next step.
        """
        if grads is None:
            return [grads], []
        if self._single:
            grads = [grads]
        if not isinstance(grads, list | tuple) or len(grads) != len(self._forms):
            return None
        found: list[Any] = []
        for form, value in zip(self._forms, grads, strict=True):
            if form.keys is None and not isinstance(value, Mapping | list | tuple):
                found.append(value)
            elif isinstance(value, Mapping) and isinstance(form.given, Mapping) and value.keys() == form.given.keys():
                found += [value[key] for key in form.given]
            elif (
                isinstance(value, list | tuple)
                and isinstance(form.given, list | tuple)
                and len(value) == len(form.segments)
            ):
                found += value
            else:
                return None
        if self.memory == "numpy":
            lent = [value for value in found if not is_own(value)]
        else:
            lent = [value for value in found if not is_own(value) or memory_of(value) != self.memory]
        if self.memory != "numpy" and lent and on_gpu(lent[0]):
            refuse_other_stream(lent[0], "grads", self.parameters.arrays[0])
        places = [there for there in map(place, lent) if there is not None]
        if len(places) < len(lent):
            return None
        return found, places

    def gradients(self, grads: Any, *, writeable: bool) -> Arrays:
        """Take what mirrors the parameters; None stands for their own ``grad``.

        Raises
        ------
        ArrayError
            Where it does not mirror them, or shares memory with what a step writes.
        """
        taken = self._mirroring(grads, writeable=writeable)
        spans = _spans("grads", taken.arrays)
        if writeable:
            _refuse_overlap(sorted([*self._taken, *spans]))
        else:  # they may share memory with each other
            starts = [start for start, _, _ in self._taken]
            for span in spans:
                near = bisect(starts, span[0])
                _refuse_overlap(sorted([*self._taken[max(0, near - 1) : near + 1], span]))
        return taken

    def _mirroring(self, grads: Any, *, writeable: bool) -> Arrays:
        if grads is None:
            if not self.carries_grad:
                raise ArrayError("grads must be given: these params are plain arrays and carry no grad")
            grads = [f.given.grad for f in self._forms]
        elif self._single:
            grads = [grads]
        elif not isinstance(grads, list | tuple) or len(grads) != len(self._forms):
            raise ArrayError(
                f"grads must be a list of {len(self._forms)}, one for each group with params, given {_describe(grads)}"
            )
        return self._collect(grads, "grads", self.dtype, writeable=writeable)

    @property
    def carries_grad(self) -> bool:
        """Whether the parameters have gradients of their own."""
        return all(isinstance(f.given, FlatParams) for f in self._forms)

    def copies(self, known: Sequence[Any] = ()) -> list[Any]:
        """Copy what the user gave, form by form; the first are `known` already."""
        return [*known, *(f.copy() for f in self._forms[len(known) :])]

    def copy_leaves(self, memo: dict[int, Any]) -> None:
        """Put copies of the user's arrays into a memo of `copy.deepcopy`, of a library that cannot copy them deeply."""
        if self.memory == "numba":
            for form in self._forms:
                for leaf in form.leaves() if not isinstance(form.given, FlatParams) else ():
                    if is_own(leaf):
                        memo[id(leaf)] = copy_of(leaf)

    def of_copies(self, copies: list[Any]) -> tuple[Any, Arrays]:
        """Give what `copies` gave as a user sees it, and its arrays."""
        return (copies[0] if self._single else copies), self._collect(copies, "copy", self.dtype, writeable=True)

    def gather(self, source: Arrays) -> NDArray[Any]:
        """Copy a quantity into one flat array of the host, laid out as a state is."""
        flat = np.zeros(self.extent, self.dtype)
        for segment, part in zip(self.segments, self.views(source), strict=True):
            flat[segment.offset : segment.offset + segment.size] = to_host(part)
        return flat

    def scatter(self, flat: NDArray[Any], into: Arrays) -> None:
        """Copy back what `gather` gave."""
        for segment, part in zip(self.segments, self.views(into), strict=True):
            copy_into(part, flat[segment.offset : segment.offset + segment.size])

    def views(self, source: Arrays) -> list[Any]:
        """Each segment's part of a quantity, 1-D."""
        arrays, where = source
        parts = zip(where.array, where.offset, self.segments, strict=True)
        return [view(arrays[a], int(o), (s.size,)) for a, o, s in parts]

    def _collect(self, values: Sequence[Any], title: str, dtype: np.dtype[Any] | None, *, writeable: bool) -> Arrays:
        arrays: list[Any] = []
        index: list[int] = []
        offsets: list[int] = []
        for i, (form, value) in enumerate(zip(self._forms, values, strict=True)):
            for array, offset in form.take(value, title if self._single else f"{title}[{i}]", dtype, writeable):
                if not arrays or arrays[-1] is not array:
                    arrays.append(array)
                index.append(len(arrays) - 1)
                offsets.append(offset)
        return Arrays(arrays, Where(np.array(index, np.int64), np.array(offsets, np.int64)))


def _patterns(index: int, group: Mapping[str, Any]) -> tuple[str, ...]:
    match = group.get("match", ())
    patterns = (match,) if isinstance(match, str) else match
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise ArrayError(f"group {index}: match must be a name pattern or a list of them, given {match!r}")
    return tuple(patterns)


def _matching(segments: Sequence[Segment], index: int, group: Mapping[str, Any]) -> list[int]:
    """Segments that a group claims by name."""
    found: list[int] = []
    for pattern in _patterns(index, group):
        matching = [k for k, s in enumerate(segments) if fnmatchcase(s.name, pattern)]
        if not matching:
            raise ArrayError(
                f"group {index}: match {pattern!r} fits no array; there are {', '.join(repr(s.name) for s in segments)}"
            )
        found += matching
    return found


def _spans(what: str, arrays: Iterable[Any]) -> list[tuple[int, int, str]]:
    """First and last address of arrays, which are contiguous."""
    starts = ((address(a), a.nbytes) for a in arrays if a.nbytes)
    return [(start, start + size, what) for start, size in starts]


def _refuse_overlap(spans: Sequence[tuple[int, int, str]]) -> None:
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            if one == other:
                raise ArrayError(f"{one} must not share memory: an array, or a part of one, was given twice")
            raise ArrayError(f"{one} and {other} must not share memory: a step would read what it has written")


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}" + (f" of shape {value.shape}" if is_own(value) else "")


__all__ = ["Arrays", "Targets"]
