"""The step of a matrix rule over the arrays of an optimizer, array by array, with what is fused into other sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.blocks import Where
from fastgd.kernels.errors import RuleError
from fastgd.kernels.matrix import MatrixUpdate, size_of


class MatrixSweep:
    """One update over all segments; see `fastgd.kernels.cpu.CpuSweep`, whose interface this has.

    New values are computed before they are stored, an array at a time: a step that was interrupted is taken up where
    it was left.

    Parameters
    ----------
    update
        What is done.
    shapes
        Shape of each segment.
    rows
        Row of scalars of each segment.
    scalars
        The scalars by name, a dict for each row; read at every run.
    """

    atomic = False

    def __init__(
        self,
        update: MatrixUpdate,
        shapes: Sequence[tuple[int, ...]],
        rows: Sequence[int],
        scalars: Sequence[Mapping[str, float]],
    ) -> None:
        self.update = update
        self.shapes = tuple(shapes)
        self.rows = tuple(rows)
        self._scalars = scalars
        self._views: dict[str, list[NDArray[Any] | None]] = {}
        self._sums = np.zeros((len(self.shapes), len(update.sums)))
        self.run: Callable[[], None] = self._run
        """Updates the arrays in place."""
        self._runs = 0
        self._done = (0, 0)  # segments of the run of this number that are stored
        self._computed: tuple[tuple[int, int], list[tuple[NDArray[Any], Any]]] | None = None

    def bind(self, name: str, arrays: Sequence[NDArray[Any]], where: Where) -> None:
        """Take the arrays of one quantity; each segment's part is cut out of them."""
        if name not in self.update.reads:
            return
        self._views[name] = []
        for shape, array, offset in zip(self.shapes, where.array, where.offset, strict=True):
            own = self.update.rule.state_shape(name, shape) if name in self.update.states else shape
            view = None if own is None else arrays[array][offset : offset + size_of(own)].reshape(own)
            self._views[name].append(view)

    def prepare(self) -> None:
        """Compile what is left to compile: nothing."""

    @property
    def runs(self) -> int:
        """How often it has run to its end."""
        return self._runs

    @runs.setter
    def runs(self, count: int) -> None:
        self._done = (count, 0)
        self._computed = None
        self._runs = count

    def _run(self) -> None:
        self.runs = self._runs  # what a run left that was broken off is not taken up
        self.resume()

    def resume(self) -> None:
        """Go on with a run that was interrupted, or begin one."""
        with np.errstate(all="ignore"):  # NaN and infinity are the caller's data, not news
            while (segment := self._done[1] if self._done[0] == self._runs else 0) < len(self.shapes):
                place = self._runs, segment
                if self._computed is None or self._computed[0] != place:
                    self._computed = place, self._compute(segment)
                for into, value in self._computed[1]:
                    into[...] = value
                self._done = self._runs, segment + 1
        self._computed = None
        self._runs += 1

    def sums(self) -> NDArray[np.float64]:
        """Give the sums of the last dry run, float64, of shape (segments, terms)."""
        return self._sums

    def total(self) -> NDArray[np.float64]:
        """Give the sums of the last dry run over all segments, float64, of shape (terms,)."""
        total: NDArray[np.float64] = self._sums.sum(axis=0)
        return total

    def _compute(self, segment: int) -> list[tuple[NDArray[Any], Any]]:
        """Compute new values of one segment, each with the place it goes to."""
        update, tail = self.update, self.update.tail
        if not size_of(self.shapes[segment]):
            return []
        scalars = self._scalars[self.rows[segment]]
        views = {name: parts[segment] for name, parts in self._views.items()}
        p, g = views["p"], views["g"]
        assert p is not None and g is not None
        if scalars["gscale"] != 1:
            g = scalars["gscale"] * g
        if tail.max_value:
            g = g.clip(-scalars["gmax"], scalars["gmax"])
        states: dict[str, Any] = dict.fromkeys(update.absent) | {s: views.get(s) for s in update.states}
        made = update.function(p, g, **states, **{s: scalars[s] for s in update.scalars}, **update.options)
        new = self._checked(made, views)
        if update.sums:
            return [(self._sums[segment], _reported(p, views["g"], new["p"], scalars["_shift"]))]
        if tail.average:
            ema = views["ema"]
            new["ema"] = ema + scalars["ema_c"] * (new["p"] - ema)
        if tail.average == "lookahead":
            new["p"] = new["ema"]
        if tail.zero_grad:
            new["g"] = 0.0
        return [(into, new[name]) for name, into in views.items() if name in new and into is not None]

    def _checked(self, made: Any, views: Mapping[str, NDArray[Any] | None]) -> dict[str, Any]:
        """Take what a rule returned; what lies in memory that is going to be written is copied."""
        title = type(self.update.rule).__name__
        if not isinstance(made, Mapping):
            raise RuleError(f"{title}: update must return a dict of p and of its states, given {type(made).__name__}")
        new: dict[str, Any] = {}
        for name in ("p", *made):
            into = views.get(name)
            if name not in made or name not in self.update.arrays or name == "g" or into is None:
                raise RuleError(f"{title}: update must return a dict of p and of its states, given {', '.join(made)}")
            value = made[name]
            if np.shape(value) != into.shape:
                raise RuleError(f"{title}: the new {name} must have shape {into.shape}, given {np.shape(value)}")
            shared = isinstance(value, np.ndarray) and any(
                view is not None and np.may_share_memory(value, view) for view in views.values()
            )
            new[name] = value.copy() if shared else value
        return new


def _reported(p: NDArray[Any], g: Any, new: NDArray[Any], shift: float) -> list[float]:
    """Terms of a dry run, in the order of `fastgd.kernels.tail.REPORTED`."""
    squares = [float(np.square(np.multiply(x, shift, dtype=np.float64)).sum()) for x in (p, g, new - p)]
    return [*squares, float(np.count_nonzero(g == 0)), float(np.count_nonzero(g - g != 0))]
