"""The roof: the least that any step could do with its arrays, in as many passes as it must make, with no arithmetic.

A pass adds to the arrays that a step changes, in place, and reads the others. A copy would not do: it writes lines that
it never read, which costs a read that nobody counts, and flatters the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fastgd.bench.cases import Pass
from fastgd.kernels.cpu import CROSSOVER
from fastgd.kernels.cpu_threads import layer

_BLOCK = 16384


def sweeps(passes: Sequence[Pass], arrays: Mapping[str, NDArray[Any]], *, threads: int) -> Callable[[], None]:
    """Compile passes over arrays.

    Parameters
    ----------
    passes
        What a step reads and writes.
    arrays
        All that the passes name, of one size. Best aligned as fastgd's own: at 1 M elements that makes a pass faster by
        a third, and the roof is the limit of the machine.
    threads
        As many as those of the step it is compared with. Below fastgd's own crossover a pass is serial.

    Returns
    -------
    callable
        Makes all passes once.
    """
    runs = [_bound(one, arrays, threads) for one in passes]

    def run() -> None:
        for each in runs:
            each()

    return runs[0] if len(runs) == 1 else run


def _bound(one: Pass, arrays: Mapping[str, NDArray[Any]], threads: int) -> Callable[[], None]:
    taken = [arrays[name] for name in (*one.changed, *one.read)]
    parallel = threads > 1 and taken[0].nbytes * one.streams >= CROSSOVER
    if parallel:
        layer()  # on the threads that the step has: whatever of Numba's is called first would choose others
        numba.set_num_threads(threads)
    if not one.changed:  # whole numbers are added in any order, which makes vectors
        taken = [a.view(f"i{a.itemsize}") for a in taken]
        taken.append(np.zeros(-(-taken[0].size // _BLOCK), taken[0].dtype))
    return partial(_kernel(len(one.changed), len(one.read), parallel), *taken)


@cache
def _kernel(changed: int, read: int, parallel: bool) -> Callable[..., None]:
    names = [f"a{k}" for k in range(changed + read)]
    total = " + ".join(f"{name}[i]" for name in names[changed:] or names[-1:])
    if changed:
        before, after = [], []
        inner = [f"x = {total}", *(f"{name}[i] += x" for name in names[:changed])]
    else:
        before, inner, after = ["s = _sums[b] - _sums[b]"], [f"s += {total}"], ["_sums[b] = s"]
    # by blocks: an offset index into an array would keep Numba's wrap-around check, and no vectors
    text = "\n".join(
        [
            f"def sweep({', '.join(['_' + name for name in names] + ['_sums'] * (not changed))}):",
            f"    for b in prange((_a0.size + {_BLOCK - 1}) // {_BLOCK}):",
            f"        lo, hi = b * {_BLOCK}, min((b + 1) * {_BLOCK}, _a0.size)",
            *(f"        {name} = _{name}[lo:hi]" for name in names),
            *(f"        {line}" for line in before),
            "        for i in range(a0.size):",
            *(f"            {line}" for line in inner),
            *(f"        {line}" for line in after),
        ]
    )
    scope: dict[str, Any] = {"prange": numba.prange if parallel else range}
    exec(text, scope)
    made: Callable[..., None] = numba.njit(parallel=parallel, error_model="numpy", nogil=True)(scope["sweep"])
    return made
