"""The numpy backend: each sweep as a plain vectorised expression. The reference for bits, and the readable baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.blocks import Where, lane_sums, tree_sum
from fastgd.kernels.language import Sweep
from fastgd.kernels.printers import numpy_text


def compile_text(sweep: Sweep, dtype: np.dtype[Any]) -> Callable[..., tuple[Any, ...]]:
    """Vectorised function of a sweep: takes arrays and scalars, returns what is written and summed."""
    return _compile(numpy_text(sweep, "_rule", dtype.name), dtype.type)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _compile(text: str, scalar: type[np.generic]) -> Callable[..., tuple[Any, ...]]:
    names: dict[str, Any] = {"_np": np, "_T": scalar}
    exec(compile(text, "<rule printed for NumPy>", "exec"), names)
    function: Callable[..., tuple[Any, ...]] = names["_rule"]
    return function


class NumpySweep:
    """One sweep over all segments; see `fastgd.kernels.cpu.CpuSweep`, whose interface this has."""

    atomic = False

    def __init__(
        self, sweep: Sweep, sizes: Sequence[int], rows: Sequence[int], scalars: NDArray[Any], label: str
    ) -> None:
        self.sweep = sweep
        self.sizes = tuple(sizes)
        self.rows = tuple(rows)
        self._scalars = scalars
        self._rule = compile_text(sweep, scalars.dtype)
        self._views: dict[str, list[NDArray[Any]]] = {}
        self._sums = np.zeros((len(sizes), len(sweep.sums)))
        self.run: Callable[[], None] = self._run
        """Updates the arrays in place."""
        self._computed: tuple[int, list[tuple[NDArray[Any], Any]]] | None = None
        self._runs = 0

    def bind(self, name: str, arrays: Sequence[NDArray[Any]], where: Where) -> None:
        """Take the arrays of one quantity; each segment's part is cut out of them."""
        if name in self.sweep.arrays:
            self._views[name] = [
                arrays[a][o : o + n] for a, o, n in zip(where.array, where.offset, self.sizes, strict=True)
            ]

    def prepare(self) -> None:
        """Compile what is left to compile: nothing."""

    @property
    def runs(self) -> int:
        """How often it has run to its end."""
        return self._runs

    @runs.setter
    def runs(self, count: int) -> None:
        self._computed = None
        self._runs = count

    def _run(self) -> None:
        self._computed = None
        self.resume()

    def resume(self) -> None:
        """Finish a run that was interrupted: what was computed before anything was stored is kept for it."""
        if self._computed is None or self._computed[0] != self._runs:
            self._computed = self._runs, self._compute()
        for into, value in self._computed[1]:
            into[...] = value
        self._runs += 1
        self._computed = None

    def sums(self) -> NDArray[np.float64]:
        """Give the sums of the last run, float64, of shape (segments, terms)."""
        return self._sums

    def total(self) -> NDArray[np.float64]:
        """Give the sums of the last run over all segments, float64, of shape (terms,)."""
        return tree_sum(self._sums)

    def _compute(self) -> list[tuple[NDArray[Any], Any]]:
        """Compute new values, each with the place it goes to."""
        computed: list[tuple[NDArray[Any], Any]] = []
        with np.errstate(all="ignore"):  # NaN and infinity are the caller's data, not news
            for segment, (size, row) in enumerate(zip(self.sizes, self.rows, strict=True)):
                arrays = [self._views[a][segment] for a in self.sweep.arrays]
                results = self._rule(*arrays, *self._scalars[row])
                written = len(self.sweep.writes)
                for name, value in zip(self.sweep.writes, results, strict=False):
                    computed.append((self._views[name][segment], value))
                for k, term in enumerate(results[written:]):
                    blocks = lane_sums(np.broadcast_to(term, (size,))).astype(np.float64)
                    computed.append((self._sums[segment, k : k + 1], tree_sum(blocks)))
        return computed
