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

    def __init__(
        self, sweep: Sweep, dtype: np.dtype[Any], sizes: Sequence[int], rows: Sequence[int], label: str
    ) -> None:
        self.sweep = sweep
        self.dtype = dtype
        self.sizes = tuple(sizes)
        self.rows = tuple(rows)
        self._rule = compile_text(sweep, dtype)
        self._views: dict[str, list[NDArray[Any]]] = {}

    def bind(self, name: str, arrays: Sequence[NDArray[Any]], where: Where) -> None:
        """Take the arrays of one quantity; each segment's part is cut out of them."""
        if name in self.sweep.arrays:
            self._views[name] = [
                arrays[a][o : o + n] for a, o, n in zip(where.array, where.offset, self.sizes, strict=True)
            ]

    def prepare(self) -> None:
        """Compile what is left to compile: nothing."""

    def run(self, rows: NDArray[Any]) -> None:
        """Update the arrays in place."""
        self._run(rows)

    def sums(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Update the arrays in place and return the sums, float64, of shape (segments, terms)."""
        return np.array([tree_sum(np.stack(terms, axis=1).astype(np.float64)) for terms in self._run(rows)]).reshape(
            len(self.sizes), len(self.sweep.sums)
        )

    def _run(self, rows: NDArray[Any]) -> list[list[NDArray[Any]]]:
        summed = []
        with np.errstate(all="ignore"):  # NaN and infinity are the caller's data, not news
            for segment, (size, row) in enumerate(zip(self.sizes, self.rows, strict=True)):
                arrays = [self._views[a][segment] for a in self.sweep.arrays]
                results = self._rule(*arrays, *rows[row])
                for name, value in zip(self.sweep.writes, results, strict=False):
                    self._views[name][segment][:] = value
                terms = results[len(self.sweep.writes) :]
                summed.append([lane_sums(np.broadcast_to(t, (size,))) for t in terms])
        return summed
