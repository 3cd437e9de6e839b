"""Gradient health: what a step would do to each array, and whether its gradient vanishes, explodes or is dead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import Maker
from fastgd.checks import checked_number
from fastgd.kernels.plan import Plan, plan
from fastgd.kernels.rule import Rule
from fastgd.kernels.tail import Tail
from fastgd.program import Program
from fastgd.targets import Arrays, Targets

_SHIFT = 2.0**500


@dataclass(frozen=True)
class SegmentHealth:
    """One array of the parameters, its gradient, and the change that a step would make.

    Attributes
    ----------
    name : str
    shape : tuple of int
    group : int
        Number of its group.
    param_norm, grad_norm, update_norm : float
        Euclidean norms of the parameters, of the scaled gradient before it is clipped, and of the change.
    ratio : float
        ``update_norm / param_norm``; infinite for a change of parameters that are all zero, 0 for none.
    zeros, nonfinite : float
        Shares of the gradient's elements, 0 to 1, that are exactly zero, and that are NaN or infinite.
    verdict : {"exploding", "dead", "vanishing", "ok"}
        See `Report`.
    """

    name: str
    shape: tuple[int, ...]
    group: int
    param_norm: float
    grad_norm: float
    update_norm: float
    ratio: float
    zeros: float
    nonfinite: float
    verdict: str


@dataclass(frozen=True)
class Report(Sequence[SegmentHealth]):
    """Health of every array, in the order of the parameters: a sequence, and a table when it is printed.

    The verdicts go by the root mean square of the gradient's elements, so that arrays of all sizes compare. An
    unhealthy gradient is named by the first that holds: ``"exploding"``: an element is not finite, or the root mean
    square is above `exploding`; ``"dead"``: at least the share `dead` of the elements is exactly zero;
    ``"vanishing"``: the root mean square is below `vanishing`.

    Attributes
    ----------
    rows : tuple of SegmentHealth
    vanishing, exploding : float
        Bounds of the root mean square.
    dead : float
        Share of zeros from which a gradient is dead.
    """

    rows: tuple[SegmentHealth, ...]
    vanishing: float
    exploding: float
    dead: float

    def __getitem__(self, index: Any) -> Any:
        """Give one array's health, by its position or its name."""
        if isinstance(index, str):
            found = [row for row in self.rows if row.name == index]
            if not found:
                raise KeyError(f"there is no array {index!r}; there are {', '.join(repr(r.name) for r in self.rows)}")
            return found[0]
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[SegmentHealth]:
        return iter(self.rows)

    @property
    def healthy(self) -> bool:
        """Whether every verdict is ``"ok"``."""
        return all(row.verdict == "ok" for row in self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Give the rows as plain data, as for JSON or a data frame."""
        return [asdict(row) for row in self.rows]

    def cells(self) -> list[tuple[str, ...]]:
        """Text of the table, its head first."""
        head = ("array", "group", "|p|", "|g|", "|Δp|", "ratio", "zeros", "nan/inf", "verdict")
        return [head] + [
            (
                row.name,
                str(row.group),
                *(f"{x:.1e}" for x in (row.param_norm, row.grad_norm, row.update_norm, row.ratio)),
                *(f"{x:.1%}" for x in (row.zeros, row.nonfinite)),
                row.verdict,
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        left = (0, len(widths) - 1)
        return "\n".join(
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        )

    def __rich__(self) -> Any:
        """Table for ``rich.print``, unhealthy rows in colour."""
        from rich.table import Table

        (first, *numbers, last), *rows = self.cells()
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns must do
        table.add_column(first, overflow="fold")
        for name in numbers:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(last, no_wrap=True)
        colours = {"exploding": "red", "dead": "magenta", "vanishing": "yellow", "ok": None}
        for cells in rows:
            table.add_row(*cells, style=colours[cells[-1]])
        return table


def thresholds(vanishing: Any, exploding: Any, dead: Any) -> tuple[float, float, float]:
    """Check the thresholds of a report.

    Raises
    ------
    HyperparameterError
        For one that is no number or out of range.
    """
    return (
        checked_number("vanishing", vanishing, 0.0),
        checked_number("exploding", exploding, 0.0),
        checked_number("dead", dead, 0.0, 1.0, open_low=True, closed=True),
    )


class DryRun:
    """A step that stores nothing and sums what a report needs, in one pass more than the rule's own.

    Parameters
    ----------
    rules
        Rule of each group.
    max_value
        Whether the tail clips elements.
    targets
        All segments of the optimizer.
    make
        Makes sweeps on the backend.
    states
        State arrays by their outer names.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        max_value: bool,
        targets: Targets,
        make: Maker,
        states: Mapping[str, Arrays],
    ) -> None:
        def planned(rule: Rule) -> Plan:
            return plan(rule, Tail(max_value=max_value)).dry()

        self._targets = targets
        self._program = Program(rules, planned, targets, make)
        self._program.bind("p", targets.parameters)
        self._program.bind_states(states)

    def report(
        self,
        gradients: Arrays,
        steps: Sequence[tuple[Rule, int]],
        tail: Mapping[str, float],
        scale: float,
        state: Program,
        limits: tuple[float, float, float],
    ) -> Report:
        """Measure a step and judge it.

        Parameters
        ----------
        gradients
            Of the step.
        steps
            Rule and number of the step of each group.
        tail
            Scalars of the tail.
        scale
            What the gradients are multiplied by before they are clipped.
        state
            Whose scalar states the step starts from.
        limits
            As `thresholds` gives them.
        """
        self._program.bind("g", gradients)
        plain = self._norms(steps, tail, 1.0, state)
        norms = plain[:, :3]
        if self._targets.dtype == np.float64:
            # Squares of very large and very small numbers leave its range; those of shifted numbers do not.
            if not np.isfinite(norms).all():
                norms = np.where(np.isfinite(norms), norms, self._norms(steps, tail, 1 / _SHIFT, state)[:, :3])
            lost = norms <= 1 / np.sqrt(_SHIFT)
            if lost.any():
                small = self._norms(steps, tail, _SHIFT, state)[:, :3]
                norms = np.where(lost & np.isfinite(small), small, norms)
        rows = []
        for segment, group, (p, g, change), (zeros, bad) in zip(
            self._targets.segments, self._targets.group, norms.tolist(), plain[:, 3:].tolist(), strict=True
        ):
            size = max(1, segment.size)
            rows.append(
                SegmentHealth(
                    name=segment.name,
                    shape=segment.shape,
                    group=group,
                    param_norm=p,
                    grad_norm=g * abs(scale),
                    update_norm=change,
                    ratio=change / p if p else (change * math.inf if change else 0.0),  # NaN stays
                    zeros=zeros / size,
                    nonfinite=bad / size,
                    verdict=_verdict(g * abs(scale) / math.sqrt(size), zeros, bad, limits, segment.size),
                )
            )
        return Report(tuple(rows), *limits)

    def _norms(
        self, steps: Sequence[tuple[Rule, int]], tail: Mapping[str, float], shift: float, state: Program
    ) -> NDArray[np.float64]:
        """Norms of parameters, gradient and change, and both counts, a row for each segment."""
        found = np.zeros((len(self._targets.segments), 5))
        for launch, real in zip(self._program.launches, state.launches, strict=True):
            launch.scalar_states = real.scalar_states
        for prepare, index, i in self._program.prepares:
            rule, t = steps[i]
            prepare(index, rule, t, {**tail, "_shift": shift})
        for launch in self._program.launches:
            launch.run()
            found[launch.segments] = launch.sums()
        with np.errstate(all="ignore"):
            found[:, :3] = np.sqrt(found[:, :3]) / shift
        return found


def _verdict(rms: float, zeros: float, bad: float, limits: tuple[float, float, float], size: int) -> str:
    vanishing, exploding, dead = limits
    if bad or rms > exploding:
        return "exploding"
    if not size:
        return "ok"
    return "dead" if zeros >= dead * size else "vanishing" if rms < vanishing else "ok"
