"""One launch: the groups of an optimizer that share static options, from their rules to updated memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import Between, Maker, SweepOnArrays
from fastgd.kernels.between import Terms
from fastgd.kernels.blocks import sums_of_terms
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.matrix_sweep import MatrixSweep
from fastgd.kernels.plan import Plan
from fastgd.kernels.rule import Rule, fallback_of, prepare_arguments, state_name
from fastgd.targets import Arrays, Targets

_LARGEST = {char: float(np.finfo(char).max) for char in "fd"}


class Prepares(Protocol):
    """What gives the scalars of a step, as a rule does."""

    @property
    def prepare(self) -> Callable[..., dict[str, float]]: ...  # noqa: D102  # as of Rule


class Rows:
    """Scalars of one sweep, a row for each group, packed in the arrays' dtype."""

    def __init__(self, names: tuple[str, ...], count: int, dtype: np.dtype[Any]) -> None:
        self.array = np.zeros((count, len(names)), dtype)
        self._names = names
        # of one name itemgetter gives a value and no tuple, as struct wants it
        self._pick: Callable[[Mapping[str, float]], Any] = itemgetter(*names) if names[1:] else self._few
        # "=": the native format packs a number that float32 cannot hold as infinity
        self._pack = struct.Struct(f"={len(names)}{'f' if dtype == np.float32 else 'd'}").pack_into
        self._memory = memoryview(self.array.data).cast("B") if self.array.size else memoryview(bytearray())
        self._stride = len(names) * dtype.itemsize

    def _few(self, values: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(values[n] for n in self._names)

    def put(self, row: int, values: Mapping[str, float]) -> None:
        """Round values, float64, into a row."""
        try:
            self._pack(self._memory, row * self._stride, *self._pick(values))
        except OverflowError:
            refuse_unfit(self._names, values, self.array.dtype)
            raise


def refuse_unfit(names: Iterable[str], values: Mapping[str, float], dtype: np.dtype[Any]) -> None:
    """Refuse a step's scalars that the arrays' dtype cannot hold.

    Raises
    ------
    HyperparameterError
        That names one.
    """
    largest = _LARGEST[dtype.char]
    for name in names:
        if largest < abs(values[name]) < math.inf:
            raise HyperparameterError(f"a step's {name} is {values[name]!r}, which {dtype} cannot hold")


class Values(list[Mapping[str, float]]):
    """Scalars of a matrix rule, a dict for each group: Python's floats, as its operators take them."""

    def __init__(self, names: tuple[str, ...], count: int, dtype: np.dtype[Any]) -> None:
        super().__init__({} for _ in range(count))
        self._names = names
        self._dtype = dtype

    def put(self, row: int, values: Mapping[str, float]) -> None:
        """Keep values."""
        refuse_unfit(self._names, values, self._dtype)
        self[row] = values


class Launch:
    """The sweeps of one plan over the segments of its groups.

    Parameters
    ----------
    plan
        Sweeps and the code between them.
    rules
        Of the groups that take part, by their numbers; they agree in all but numbers.
    segments
        Numbers of the segments that take part.
    targets
        All segments of the optimizer.
    make
        Makes sweeps on the backend.
    is_fallback
        Whether the rules are the fallbacks of the groups' own.
    """

    def __init__(
        self,
        plan: Plan,
        rules: Mapping[int, Rule],
        segments: Sequence[int],
        targets: Targets,
        make: Maker,
        is_fallback: bool = False,
    ) -> None:
        self.plan = plan
        self._dtype = targets.dtype
        self.rules = rules
        self.groups = tuple(rules)
        self.is_fallback = is_fallback
        rule = rules[self.groups[0]]
        self.title = type(rule).__name__
        self.states = {short: state_name(rule, short) for short in plan.states}
        self.segments = list(segments)
        self._group_of = np.array([self.groups.index(targets.group[s]) for s in segments], np.int64)
        self._per_segment = plan.level == "per_segment"
        self._prepare_takes = tuple(n for n in prepare_arguments(type(rule)) if n in plan.scalar_states)
        self._shared = plan.shared
        self._given: list[dict[str, float]] = [{} for _ in self.groups]
        self._next: dict[str, NDArray[np.float64]] = {}
        starts = {
            name: np.array([self._start(name, kind, i, targets) for kind, i in self._owners(name)], float)
            for name in plan.scalar_states
        }
        self._own = {name: values for name, values in starts.items() if name not in plan.summed_states}
        sizes = [targets.segments[s].size for s in self.segments]
        by_group = self._group_of.tolist()
        self.sweeps: list[SweepOnArrays] = []
        self._rows: list[Rows | Values] = []
        if plan.matrix is not None:
            make.matrix(self.title)
            values = Values(plan.matrix.scalars, len(self.groups), targets.dtype)
            shapes = [targets.segments[s].shape for s in self.segments]
            self._rows.append(values)
            self.sweeps.append(MatrixSweep(plan.matrix, shapes, by_group, values))
        for sweep in plan.sweeps:
            last = plan.combine is not None and sweep is plan.sweeps[-1]
            rows = list(range(len(sizes))) if last and self._per_segment else by_group
            count = len(rows) if last and self._per_segment else len(self.groups)
            packed = Rows(sweep.scalars, count, targets.dtype)
            self._rows.append(packed)
            self.sweeps.append(make(sweep, sizes, rows, packed.array, self.title.lower()))
        self._last = self.sweeps[-1]
        self._between: Between | None = None
        self._filled = self._rows  # those that `prepare` fills
        if plan.combine is not None:
            self._filled = [] if plan.derive else self._rows[:-1]
            terms = Terms(
                plan=plan,
                label=self.title.lower(),
                groups=len(self.groups),
                group_of=self._group_of if self._per_segment else np.arange(len(self.groups)),
                summed=np.array(sizes if self._per_segment else [sum(sizes)], float),
                starts={name: values for name, values in starts.items() if name not in self._own},
            )
            rows_of = [rows.array for rows in self._rows if isinstance(rows, Rows)]
            self._between = make.between(terms, self.sweeps, rows_of)

    def _owners(self, name: str) -> list[tuple[str, int]]:
        """Whose each of a scalar state's numbers is: a group's, a segment's, or of all together."""
        if name not in self.plan.summed_states:
            return [("group", g) for g in self.groups]
        return [("segment", s) for s in self.segments] if self._per_segment else [("all", 0)]

    def _start(self, name: str, kind: str, owner: int, targets: Targets) -> Any:
        """Value that one of a scalar state's numbers starts with."""
        starts = {i: rule.init()[name] for i, rule in self.rules.items()}
        if kind == "all" and len(set(starts.values())) > 1:
            raise HyperparameterError(
                f"{self.title} has one {name} for all its groups, which must agree in where it starts: "
                f"given {' and '.join(map(repr, starts.values()))}"
            )
        if kind == "all":
            return starts[self.groups[0]]
        return starts[owner if kind == "group" else targets.group[owner]]

    @property
    def scalar_states(self) -> dict[str, NDArray[np.float64]]:
        """Values of the scalar states by name, copies."""
        made = self._between.states if self._between is not None else {}
        return {n: np.array(self._own[n] if n in self._own else made[n]) for n in self.plan.scalar_states}

    @scalar_states.setter
    def scalar_states(self, values: Mapping[str, NDArray[np.float64]]) -> None:
        for name, new in values.items():
            (self._own if name in self._own or self._between is None else self._between.states)[name] = new

    def share_scalars(self, other: Launch) -> None:
        """Keep the scalar states together with a launch of the same groups."""
        self._own = other._own
        if self._between is not None:
            self._between.share(other._between)

    def scalars(self) -> dict[tuple[str, str, int], float]:
        """Every number of the scalar states by its name, the rule's in front, and owner."""
        return {
            (self._key(name), *owner): float(value)
            for name, values in self.scalar_states.items()
            for owner, value in zip(self._owners(name), values, strict=True)
        }

    def _key(self, name: str) -> str:
        return f"{'fallback ' * self.is_fallback}{self.title}.{name}"

    def take_scalars(self, scalars: Mapping[tuple[str, str, int], float]) -> None:
        """Take over what `scalars` gave, also of a launch with other groups; a number that is not there stays."""
        states = self.scalar_states
        for name, values in states.items():
            for i, owner in enumerate(self._owners(name)):
                values[i] = scalars.get((self._key(name), *owner), values[i])
        self.scalar_states = states

    def bind(self, name: str, quantity: Arrays) -> None:
        """Take the arrays of a quantity: ``p``, ``g``, ``ema`` or a state."""
        arrays, where = quantity
        if len(self.segments) < len(where.array):
            where = type(where)(where.array[self.segments], where.offset[self.segments])
        for sweep in self.sweeps:
            sweep.bind(name, arrays, where)

    def compile(self) -> Callable[[], None]:
        """Have every kernel ready before the first is run; give the shortest way to `run`."""
        if self._between is not None:
            self._between.prepare()  # first: on a GPU it becomes a part of the sweeps
        for sweep in self.sweeps:
            sweep.prepare()
        return self._last.run if self._between is None and not self._prepare_takes else self.run

    def prepare(self, index: int, rule: Prepares, t: int, tail: Mapping[str, float]) -> None:
        """Compute the scalars of one group for step `t`, beside those of the tail; nothing is written yet."""
        if self._prepare_takes:
            if index == 0:
                self._next = {}
            values = rule.prepare(t, **{k: float(self._own[k][index]) for k in self._prepare_takes})
            for name in self._own.keys() & values.keys():
                new = self._next.setdefault(name, self._own[name].copy())
                new[index] = values[name]
        else:
            values = rule.prepare(t)
        values.update(tail)
        if self._between is not None:
            refuse_unfit(self._between.prepared, values, self._dtype)
            self._given[index] = values
            for name in self._shared if index else ():
                if values[name] != self._given[0][name]:
                    raise HyperparameterError(
                        f"{self.title} has one {' and one '.join(self.plan.scalar_states)} for all its groups, which "
                        f"must agree in {name}: given {self._given[0][name]!r} and {values[name]!r}"
                    )
            self._between.put(index, values)
        for rows in self._filled:
            rows.put(index, values)

    def prepare_fallback(self, index: int, rule: Rule, t: int, tail: Mapping[str, float]) -> None:
        """As `prepare`, given the rule that this launch's is the fallback of."""
        fallback = fallback_of(rule)
        assert fallback is not None
        self.prepare(index, fallback, t, tail)

    def run(self) -> None:
        """Update the arrays and keep the new scalar states."""
        if self._between is not None:
            self._between.begin()
            self.sweeps[0].run()
            self._between.combine()
        self._last.run()
        self.keep()

    def keep(self) -> None:
        """Take the new scalar states: the step is done."""
        if self._between is not None:
            self._between.keep()
        if self._next:
            self._own.update(self._next)

    def finish(self, runs: int) -> None:
        """Do what is left of a run that was interrupted; `runs` of each sweep came before it."""
        if self._last.runs == runs:
            if self._between is not None:
                if self.sweeps[0].runs == runs:
                    self._between.begin()
                    self.sweeps[0].resume()
                self._between.combine()
            self._last.resume()
        self.keep()

    def ran(self, runs: int) -> bool:
        """Whether all sweeps have run so often."""
        return all(sweep.runs == runs for sweep in self.sweeps)

    def untouched(self, runs: int) -> bool:
        """Whether nothing was written since all sweeps had run so often, as far as can be told."""
        return all(sweep.atomic and sweep.runs == runs for sweep in self.sweeps)

    def count_from(self, runs: int) -> None:
        """Have all sweeps say that they ran so often."""
        for sweep in self.sweeps:
            sweep.runs = runs

    def cells(self, name: str) -> tuple[list[int], list[int]]:
        """Addresses on the device of a step's scalar, for every group: in the arrays' dtype, and in float64."""
        filled: Any = self.sweeps[: len(self._filled)]
        made: Any = self._between
        return [c for sweep in filled for c in sweep.cells(name)], made.cells(name) if made is not None else []

    def upload(self) -> None:
        """Send the scalars of a step to the device, in front of the step itself."""
        sweeps: Any = self.sweeps
        for sweep in sweeps:
            sweep.upload()
        if self._between is not None:
            self._between.begin()

    def sums(self) -> NDArray[np.float64]:
        """Give the sums of the last sweep, of shape (segments, terms)."""
        sums = self._last.sums()
        if self.plan.matrix is not None:
            return sums
        return np.stack([*sums_of_terms(self.plan.sweeps[-1], sums).values()], axis=1)
