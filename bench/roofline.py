"""The roof: the least that any step could do with its arrays, read and written in place once, with no arithmetic.

A copy would not do: it writes lines that it never read, which costs a read that nobody counts, and flatters the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.cpu import CROSSOVER
from fastgd.kernels.cpu_threads import layer
from fastgd.memory import zeros

_BLOCK = 16384


def sweep(changed: Sequence[NDArray[Any]], read: Sequence[NDArray[Any]], *, threads: int) -> Callable[[], None]:
    """Compile a sweep that adds the sum of the `read` arrays to every `changed` one.

    Parameters
    ----------
    changed
        Arrays read and written: parameters and states.
    read
        Arrays only read: the gradient. Where there is none, the last of `changed` is added.
    threads
        As many as those of the step it is compared with. Below fastgd's own crossover it is serial.

    Returns
    -------
    callable
        Runs the sweep once.
    """
    arrays = (*changed, *read)
    parallel = threads > 1 and arrays[0].nbytes * (2 * len(changed) + len(read)) >= CROSSOVER
    if parallel:
        layer()  # on the threads that the step has: whatever of Numba's is called first would choose others
        numba.set_num_threads(threads)
    return partial(_kernel(len(changed), len(read), parallel), *arrays)


@cache
def _kernel(changed: int, read: int, parallel: bool) -> Callable[..., None]:
    names = [f"a{k}" for k in range(changed + read)]
    adds = [f"            {name}[i] += x" for name in names[:changed]]
    # by blocks, as the step: an offset index would keep Numba's wrap-around check, and no vectors
    text = "\n".join(
        [
            f"def sweep({', '.join('_' + name for name in names)}):",
            f"    for b in prange((_a0.size + {_BLOCK - 1}) // {_BLOCK}):",
            f"        lo, hi = b * {_BLOCK}, min((b + 1) * {_BLOCK}, _a0.size)",
            *(f"        {name} = _{name}[lo:hi]" for name in names),
            "        for i in range(a0.size):",
            f"            x = {' + '.join(f'{name}[i]' for name in names[changed:] or names[-1:])}",
            *adds,
        ]
    )
    scope: dict[str, Any] = {"prange": numba.prange if parallel else range}
    exec(text, scope)
    made: Callable[..., None] = numba.njit(parallel=parallel, error_model="numpy", nogil=True)(scope["sweep"])
    return made


def arrays(p: NDArray[Any], g: NDArray[Any], changed: int, read: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Make the arrays of a sweep: p and zeros to be changed, copies of g to be read; g is the last anyway.

    Aligned, unlike NumPy's own: at 1 M elements that makes the sweep faster by a third, and the roof is the limit of
    the machine.
    """
    made = [zeros(p.size, p.dtype) for _ in range(changed + read)]
    np.copyto(made[0], p)
    for own in made[changed:] or made[-1:]:
        np.copyto(own, g)
    return made[:changed], made[changed:]
