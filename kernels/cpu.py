"""The numba backend: a rule as a parallel, vectorised, disk-cached sweep on the CPU.

Two loops are written by hand, over the rows of a table of tiles. What is done in a tile is printed text: the rule,
and around it the views of the arrays, the scalars out of their row, the stores and the lanes of the sums. Everything
printed is a global of the hand-written template, because Numba caches a function of a file, and neither a closure
nor executed text.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import carray, njit, prange, types  # type: ignore[attr-defined]  # carray is public, unmarked
from numba.core import config as _config
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastgd.kernels.blocks import LANES, SUM_BLOCK, Where, block_counts, equal_cuts, tiles
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.language import Sweep
from fastgd.kernels.printers import scalar_text

log = logging.getLogger("fastgd")
config: Any = _config  # its attributes are made at run time

FLAGS: Any = {"error_model": "numpy", "nogil": True}  # Python's error model has a branch at every division: no vectors
CROSSOVER = 32768  # elements in all from which two threads are faster than one
CHUNKS_PER_THREAD = 8  # more than one, so that a layer that steals work can balance a busy core

# ---- the loops written by hand -----------------------------------------------------------------------------------
# `_tile` is put in by `specialise`. The columns of a table are those of `fastgd.kernels.blocks`.


def _sweep(addresses, rows, table, cuts):  # type: ignore[no-untyped-def]
    for c in prange(cuts.size - 1):
        for b in range(cuts[c], cuts[c + 1]):
            _tile(addresses[table[b, 3]], rows[table[b, 2]], table[b, 0], table[b, 1])  # type: ignore[name-defined]  # noqa: F821


def _sweep_sums(addresses, rows, table, cuts, sums):  # type: ignore[no-untyped-def]
    for c in prange(cuts.size - 1):
        for b in range(cuts[c], cuts[c + 1]):
            _tile(addresses[table[b, 3]], rows[table[b, 2]], table[b, 0], table[b, 1], sums, table[b, 4])  # type: ignore[name-defined]  # noqa: F821


@intrinsic
def _pointer(context, address, scalar):  # type: ignore[no-untyped-def]
    """Turn an address into a pointer to numbers of the given scalar type."""
    signature = types.CPointer(scalar.dtype)(address, scalar)  # type: ignore[no-untyped-call]

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@njit(**FLAGS)
def _fold(lanes):  # type: ignore[no-untyped-def]
    width = LANES // 2
    while width > 0:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    return lanes[0]


@njit(cache=True, **FLAGS)
def _segment_sums(sums, first, out):  # type: ignore[no-untyped-def]
    """Add the block sums of each segment by the pairwise tree of `blocks.tree_sum`; overwrites `sums`."""
    for s in range(out.shape[0]):
        for k in range(out.shape[1]):
            n = first[s + 1] - first[s]
            base = first[s]
            out[s, k] = 0.0
            while n > 1:
                for j in range(n // 2):
                    sums[base + j, k] = sums[base + 2 * j, k] + sums[base + 2 * j + 1, k]
                if n % 2:
                    sums[base + n // 2, k] = sums[base + n - 1, k]
                n = (n + 1) // 2
            if n == 1:
                out[s, k] = sums[base, k]


# ---- the printed part --------------------------------------------------------------------------------------------


def tile_text(sweep: Sweep) -> str:
    """Text of ``_tile``: one tile of one segment."""
    a = sweep.arrays
    scalars = [f"    {name} = _row[{k}]" for k, name in enumerate(sweep.scalars)]  # before the loop: aliasing
    bases = [f"    _p_{name} = _carray(_pointer(_addresses[{k}], _T), _hi)" for k, name in enumerate(a)]
    call = f"_rule({', '.join([f'{name}[_i]' for name in a] + list(sweep.scalars))})"
    stores = [f"{name}[_i]" for name in sweep.writes]
    if not sweep.sums:
        # a view that starts at the tile: an offset index keeps Numba's wrap-around check, and no vectors
        views = [f"    {name} = _p_{name}[_lo:_hi]" for name in a]
        loop = [f"    for _i in range({a[0]}.size):", f"        {', '.join(stores)}, = {call}"]
        return "\n".join(["def _tile(_addresses, _row, _lo, _hi):", *scalars, *bases, *views, *loop]) + "\n"
    n = range(len(sweep.sums))
    results = stores + [f"_t{k}" for k in n]
    lines = ["def _tile(_addresses, _row, _lo, _hi, _sums, _block):", *scalars, *bases]
    lines += [f"    _l{k} = _np.empty({LANES}, _T)" for k in n]
    lines += [
        f"    for _b in range(_lo, _hi, {SUM_BLOCK}):",
        f"        _e = min(_b + {SUM_BLOCK}, _hi)",
        f"        for _i in range({LANES}):",
        *(f"            _l{k}[_i] = _T(0)" for k in n),
        f"        for _c in range(_b, _e, {LANES}):",
        f"            _d = min(_c + {LANES}, _e)",
        *(f"            {name} = _p_{name}[_c:_d]" for name in a),
        f"            for _i in range({a[0]}.size):",
        f"                {', '.join(results)}, = {call}",
        *(f"                _l{k}[_i] += _t{k}" for k in n),
        *(f"        _sums[_block, {k}] = _fold(_l{k})" for k in n),
        "        _block += 1",
    ]
    return "\n".join(lines) + "\n"


_KERNELS: dict[str, Callable[..., None]] = {}


def kernel(sweep: Sweep, dtype: np.dtype[Any], label: str, *, parallel: bool) -> Callable[..., None]:
    """Compiled sweep: takes addresses, rows, table, cuts, and for a sweep with sums the block sums."""
    text = scalar_text(sweep, "_rule", dtype.name) + tile_text(sweep)  # type: ignore[arg-type]
    name = f"{label}_{sweep.name}_{dtype.name}_{'parallel' if parallel else 'serial'}_{_digest(text, parallel)}"
    if name not in _KERNELS:
        names: dict[str, Any] = {
            "_math": math,
            "_np": np,
            "_T": dtype.type,
            "_carray": carray,
            "_pointer": _pointer,
            "_fold": _fold,
        }
        exec(compile(text, f"<{name}>", "exec"), names)
        for inner in ("_rule", "_tile"):
            # The name is part of the machine code's symbol: two kernels that were cached by different processes would
            # otherwise each bring a `_tile`, and the second one loaded would run the first one's.
            names[inner].__qualname__ = f"{name}{inner}"
            names[inner] = njit(**FLAGS)(names[inner])
        template = specialise(_sweep_sums if sweep.sums else _sweep, name, _tile=names["_tile"])
        _KERNELS[name] = _jit(template, dtype, bool(sweep.sums), parallel)
    return _KERNELS[name]


def specialise(template: Callable[..., Any], name: str, **names: Any) -> FunctionType:
    """Copy of a template that sees `names` as globals and is known to Numba's cache as `name`."""
    assert isinstance(template, FunctionType)
    copy = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    copy.__qualname__ = name
    copy.__module__ = template.__module__
    return copy


_OWN_TEXT = Path(__file__).read_bytes()


def _digest(text: str, parallel: bool) -> str:
    # Numba's own key knows this file and the machine, not what a global holds, nor any of these switches.
    switches = [config.OPT, config.BOUNDSCHECK, config.LOOP_VECTORIZE, config.SLP_VECTORIZE, parallel]
    key = repr((text, sorted(FLAGS.items()), switches)).encode() + _OWN_TEXT
    return hashlib.sha256(key).hexdigest()[:16]


def _jit(template: FunctionType, dtype: np.dtype[Any], sums: bool, parallel: bool) -> Callable[..., None]:
    integers = types.Array(types.int64, 2, "C")
    signature = [integers, types.Array(numba.from_dtype(dtype), 2, "C"), integers, types.Array(types.int64, 1, "C")]
    if sums:
        signature.append(types.Array(types.float64, 2, "C"))
    flags = {**FLAGS, "parallel": parallel}
    try:
        dispatcher = njit(cache=True, **flags)(template)
    except RuntimeError as error:  # nowhere to write
        log.warning("kernels are compiled anew in each process: %s", error)
        dispatcher = njit(**flags)(template)
    dispatcher.compile(tuple(signature))
    dispatcher.disable_compile()
    result: Callable[..., None] = dispatcher
    return result


# ---- threads -----------------------------------------------------------------------------------------------------

_parallel_launch = threading.Lock()  # Numba's workqueue layer aborts the process on two launches at once
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # GNU OpenMP kills a forked child that goes parallel


os.register_at_fork(after_in_child=_after_fork)


def available_threads(asked: int | None = None) -> int:
    """Decide how many threads to use: those asked for, or as many as the process may run at once.

    Affinity and the cgroup's CPU quota count, ``FASTGD_NUM_THREADS`` overrides both.

    Raises
    ------
    HyperparameterError
        If more are asked for than Numba has (``NUMBA_NUM_THREADS``), or less than one.
    """
    most: int = config.NUMBA_NUM_THREADS
    source = "threads"
    if asked is None and (text := os.environ.get("FASTGD_NUM_THREADS")):
        source = "FASTGD_NUM_THREADS"
        try:
            asked = int(text)
        except ValueError:
            raise HyperparameterError(f"FASTGD_NUM_THREADS must be a number of threads, given {text!r}") from None
    if asked is None:
        return max(1, min(most, int(_quota())))
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= most:
        raise HyperparameterError(f"{source} must be a whole number from 1 to {most}, given {asked!r}")
    return asked


def _quota() -> float:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1.0, int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return float(config.NUMBA_NUM_THREADS)


# ---- a sweep, bound to arrays ------------------------------------------------------------------------------------


class CpuSweep:
    """One sweep over all segments of an optimizer.

    Parameters
    ----------
    sweep
        What is done.
    dtype
        float32 or float64, of arrays and scalars alike.
    sizes
        Elements of each segment.
    rows
        Row of scalars of each segment.
    label
        First part of the kernel's name.
    threads
        See `available_threads`.
    """

    def __init__(
        self,
        sweep: Sweep,
        dtype: np.dtype[Any],
        sizes: Sequence[int],
        rows: Sequence[int],
        label: str,
        threads: int = 1,
    ) -> None:
        self.sweep = sweep
        self.dtype = dtype
        self._label = label
        self._threads = threads
        self._addresses = np.zeros((len(sizes), len(sweep.arrays)), np.int64)
        self._table = tiles(sizes, rows)
        self._first = block_counts(sizes)
        self._block_sums = np.zeros((self._first[-1] if sweep.sums else 0, len(sweep.sums)))
        self._segment_sums = np.zeros((len(sizes), len(sweep.sums)))
        self._parallel = threads > 1 and sum(sizes) >= CROSSOVER
        self._cuts = equal_cuts(self._table, threads * CHUNKS_PER_THREAD if self._parallel else 1)
        self._kernel: Callable[..., None] | None = None
        self._kept: dict[str, Sequence[NDArray[Any]]] = {}

    def bind(self, name: str, arrays: Sequence[NDArray[Any]], where: Where) -> None:
        """Take the arrays of one quantity; they are kept alive until others are bound under this name."""
        if name not in self.sweep.arrays:
            return
        start = np.array([a.ctypes.data for a in arrays], np.int64)
        self._addresses[:, self.sweep.arrays.index(name)] = start[where.array] + where.offset * self.dtype.itemsize
        self._kept[name] = arrays

    def prepare(self) -> None:
        """Compile the kernel or load it from the cache; otherwise the first run does it."""
        if self._kernel is None:
            self._kernel = kernel(self.sweep, self.dtype, self._label, parallel=self._parallel)

    def run(self, rows: NDArray[Any]) -> None:
        """Update the arrays in place."""
        if self._kernel is None or (self._parallel and _forked):
            self._refresh()
        if self._parallel:
            self._launch(rows)
        else:
            self._kernel(self._addresses, rows, self._table, self._cuts)  # type: ignore[misc]

    def sums(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Update the arrays in place and return the sums, float64, of shape (segments, terms)."""
        if self._kernel is None or (self._parallel and _forked):
            self._refresh()
        if self._parallel:
            self._launch(rows, self._block_sums)
        else:
            self._kernel(self._addresses, rows, self._table, self._cuts, self._block_sums)  # type: ignore[misc]
        _segment_sums(self._block_sums, self._first, self._segment_sums)
        return self._segment_sums

    def _refresh(self) -> None:
        if _forked and self._parallel:
            self._parallel, self._kernel = False, None
        self.prepare()

    def _launch(self, *arguments: NDArray[Any]) -> None:
        assert self._kernel is not None
        with _parallel_launch:
            before = numba.get_num_threads()
            if before != self._threads:
                numba.set_num_threads(self._threads)
            try:
                self._kernel(self._addresses, arguments[0], self._table, self._cuts, *arguments[1:])
            finally:
                if before != self._threads:
                    numba.set_num_threads(before)
