"""What is computed between the sweeps of a step, on the host: scalars out of sums and of scalar states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.plan import SIZE, Plan
from fastgd.kernels.reference import compile_text


class SummingSweep(Protocol):
    """What is needed of the sweep that sums; see `fastgd.kernels.cpu.CpuSweep`."""

    def sums(self) -> NDArray[np.float64]: ...  # noqa: D102
    def total(self) -> NDArray[np.float64]: ...  # noqa: D102


@dataclass(frozen=True)
class Terms:
    """What code between two sweeps is for.

    Attributes
    ----------
    plan
        The rule's; it has a `combine`.
    label
        What kernels are named after.
    groups
        Number of groups.
    group_of
        Group of each row of the last sweep: of each segment, or, of sums in total, of each group.
    summed
        Number of elements that each sum is over.
    starts
        Values of the scalar states that `combine` takes or gives, one for each sum.
    """

    plan: Plan
    label: str
    groups: int
    group_of: NDArray[np.int64]
    summed: NDArray[np.float64]
    starts: dict[str, NDArray[np.float64]]


class NamedStates(MutableMapping[str, NDArray[np.float64]]):
    """Scalar states by name, each a row of an array; set in place.

    Parameters
    ----------
    names
        In the order of the rows.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._rows = {name: k for k, name in enumerate(names)}

    def row(self, name: str) -> int:
        """Give the row of a state."""
        return self._rows[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError("scalar states are fixed by the rule")

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class HostBetween:
    """Runs a rule's `derive` in front of its first sweep and its `combine` behind it.

    Parameters
    ----------
    terms
        What for.
    sweep
        The first.
    rows
        Scalars of the first and of the last sweep, a row each, which are written here.

    Attributes
    ----------
    prepared
        Names of the scalars that it must be given of each group.
    states
        The scalar states.
    """

    def __init__(self, terms: Terms, sweep: SummingSweep, rows: Sequence[NDArray[Any]]) -> None:
        plan = terms.plan
        assert plan.combine is not None
        self._plan = plan
        self._group_of = terms.group_of
        self._summed = terms.summed
        self._sweep = sweep
        self._first, self._last = rows
        self.states: MutableMapping[str, NDArray[np.float64]] = terms.starts
        self.prepared = plan.given
        self._given = np.zeros((terms.groups, len(self.prepared)))
        self._scalars: dict[str, NDArray[np.float64]] = {}
        self._next: dict[str, NDArray[np.float64]] = {}
        double = np.dtype(np.float64)
        self._combine = compile_text(plan.combine, double)
        self._derive = compile_text(plan.derive, double) if plan.derive else None

    def prepare(self) -> None:
        """Do nothing: all has been compiled."""

    def put(self, index: int, values: Mapping[str, float]) -> None:
        """Take what is prepared for a group."""
        self._given[index] = [values[name] for name in self.prepared]

    def begin(self) -> None:
        """Make the scalars of the first sweep that are made of scalar states."""
        self._scalars = dict(zip(self.prepared, self._given.T, strict=True))
        derive = self._plan.derive
        if derive is not None and self._derive is not None:
            with np.errstate(all="ignore"):
                results = self._derive(
                    *(self.states[a] for a in derive.arrays), *(self._scalars[s] for s in derive.scalars)
                )
            count = len(self._given)
            self._scalars |= {n: np.broadcast_to(x, count) for n, x in zip(derive.writes, results, strict=True)}
            self._fill(self._first, self._plan.sweeps[0].scalars, self._scalars)

    def combine(self) -> None:
        """Make the scalars of the last sweep out of the sums; the same again if it is done twice."""
        combine, per_segment = self._plan.combine, self._plan.level == "per_segment"
        assert combine is not None
        sums = self._sweep.sums() if per_segment else self._sweep.total()[None]
        terms = dict(zip(self._plan.sweeps[0].sums, sums.T, strict=True)) | {SIZE: self._summed}
        scalars = {n: x[self._group_of] for n, x in self._scalars.items()}
        with np.errstate(all="ignore"):
            results = self._combine(
                *(terms[a] if a in terms else self.states[a] for a in combine.arrays),
                *(scalars[s] for s in combine.scalars),
            )
        for name, value in zip(combine.writes, results, strict=True):
            if name in self.states:
                one = value if per_segment else np.ravel(value)[:1]  # of all groups, which agree
                self._next[name] = np.array(np.broadcast_to(one, self.states[name].shape), float)
            scalars[name] = value
        self._fill(self._last, self._plan.sweeps[-1].scalars, scalars)

    @staticmethod
    def _fill(rows: NDArray[Any], names: Sequence[str], scalars: Mapping[str, NDArray[np.float64]]) -> None:
        with np.errstate(over="ignore"):
            for k, name in enumerate(names):
                rows[:, k] = scalars[name]

    def keep(self) -> None:
        """Take the new scalar states: the step is done."""
        self.states.update(self._next)

    def share(self, other: Any) -> None:
        """Keep the scalar states together with another one."""
        self.states = other.states
