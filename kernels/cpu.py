"""The numba backend: a rule as a parallel, vectorised, disk-cached sweep on the CPU.

Two loops are written by hand, over the rows of a table of tiles. What is done in a tile is printed text: the rule,
and around it the scalars out of their row, the pointers to the arrays, loads, stores and the lanes of the sums.
Everything printed is a global of the hand-written template. A kernel takes one number, the address of its control
block: each array handed over would cost 0.1 µs at every call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numba import carray, njit, prange, types  # type: ignore[attr-defined]  # carray is public, unmarked
from numba.core import config as _config
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastgd.kernels.blocks import LANES, SUM_BLOCK, Where, block_counts, equal_cuts, tiles
from fastgd.kernels.cpu_cache import KernelFile, machine
from fastgd.kernels.cpu_threads import forked, launch, layer
from fastgd.kernels.language import Sweep
from fastgd.kernels.printers import scalar_text

config: Any = _config  # its attributes are made at run time

FLAGS: Any = {"error_model": "numpy", "nogil": True}  # Python's error model has a branch at every division: no vectors
CROSSOVER = 1 << 21  # bytes read and written from which two threads are faster than one: docs/performance.md
CHUNKS_PER_THREAD = 8  # more than one, so that a layer that steals work can balance a busy core

# Cells of a control block, int64: addresses of the arrays below, and their lengths.
ADDRESSES, ROWS, TABLE, CUTS, SCRATCH, BLOCK_SUMS, FIRST, SUMS, TOTAL = range(9)
SEGMENTS, ROW_COUNT, TILES, CUT_COUNT, RUNS = range(9, 14)
CELLS = 14

# ---- the loops written by hand -----------------------------------------------------------------------------------
# `_tile`, the scalar type `_T` and the counts `_A`, `_S` and `_K` of arrays, scalars and sums are put in by
# `specialise`. The columns of a table are those of `fastgd.kernels.blocks`. A kernel counts its runs itself, so that
# whatever interrupts the caller, it is known whether the kernel has run.


@intrinsic
def _typed(context, address, scalar):  # type: ignore[no-untyped-def]
    """Turn an address into a pointer to numbers of the given scalar type."""
    signature = types.CPointer(scalar.dtype)(address, scalar)  # type: ignore[no-untyped-call]

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


_pointer: Any = _typed  # Numba's decorator does not say that the context is not given


@cache
def _stream(k: int, count: int) -> tuple[Any, Any]:
    """Make the functions that load and store an element of the k-th of so many arrays that share no memory.

    LLVM is told so and need not ask in front of each loop whether they overlap; with sums these loops are short. Who
    binds arrays has refused those that do.
    """

    def mark(builder: Any, instruction: Any) -> Any:
        add = builder.module.add_metadata
        domain = add(["fastgd"])
        scopes = [add([f"fastgd {j} of {count}", domain]) for j in range(count)]
        instruction.set_metadata("alias.scope", add([scopes[k]]))
        if count > 1:
            instruction.set_metadata("noalias", add([scope for j, scope in enumerate(scopes) if j != k]))
        return instruction

    @intrinsic
    def load(context, pointer, index):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return mark(builder, builder.load(builder.gep(arguments[0], [arguments[1]])))

        return pointer.dtype(pointer, index), generate

    @intrinsic
    def store(context, pointer, index, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            mark(builder, builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]])))
            return context.get_dummy_value()

        return types.void(pointer, index, pointer.dtype), generate

    return load, store


def _sweep(control):  # type: ignore[no-untyped-def]
    c = carray(_pointer(control, np.int64), CELLS)
    addresses = carray(_pointer(c[ADDRESSES], np.int64), (c[SEGMENTS], _A))  # type: ignore[name-defined]  # noqa: F821
    rows = carray(_pointer(c[ROWS], _T), (c[ROW_COUNT], _S))  # type: ignore[name-defined]  # noqa: F821
    table = carray(_pointer(c[TABLE], np.int64), (c[TILES], 5))
    cuts = carray(_pointer(c[CUTS], np.int64), c[CUT_COUNT])
    for k in prange(cuts.size - 1):
        for b in range(cuts[k], cuts[k + 1]):
            t = table[b]
            _tile(addresses[t[3]], rows[t[2]], t[0], t[1])  # type: ignore[name-defined]  # noqa: F821
    c[RUNS] += 1


def _sweep_sums(control):  # type: ignore[no-untyped-def]
    c = carray(_pointer(control, np.int64), CELLS)
    addresses = carray(_pointer(c[ADDRESSES], np.int64), (c[SEGMENTS], _A))  # type: ignore[name-defined]  # noqa: F821
    rows = carray(_pointer(c[ROWS], _T), (c[ROW_COUNT], _S))  # type: ignore[name-defined]  # noqa: F821
    table = carray(_pointer(c[TABLE], np.int64), (c[TILES], 5))
    cuts = carray(_pointer(c[CUTS], np.int64), c[CUT_COUNT])
    first = carray(_pointer(c[FIRST], np.int64), c[SEGMENTS] + 1)
    block_sums = carray(_pointer(c[BLOCK_SUMS], np.float64), (first[c[SEGMENTS]], _K))  # type: ignore[name-defined]  # noqa: F821
    sums = carray(_pointer(c[SUMS], np.float64), (c[SEGMENTS], _K))  # type: ignore[name-defined]  # noqa: F821
    for k in prange(cuts.size - 1):
        for b in range(cuts[k], cuts[k + 1]):
            t = table[b]
            _tile(addresses[t[3]], rows[t[2]], t[0], t[1], c[SCRATCH] + k * _K * _ROOM, block_sums, t[4])  # type: ignore[name-defined]  # noqa: F821
    _add_blocks(block_sums, first, sums)
    total = carray(_pointer(c[TOTAL], np.float64), (c[SEGMENTS], _K))  # type: ignore[name-defined]  # noqa: F821
    for k in range(_K):  # type: ignore[name-defined]  # noqa: F821
        for s in range(c[SEGMENTS]):  # a copy of the whole would compile what it says about wrong shapes
            total[s, k] = sums[s, k]
        _tree(total, 0, c[SEGMENTS], k)
    c[RUNS] += 1


@njit(**FLAGS)
def _fold(pointer):  # type: ignore[no-untyped-def]
    lanes = carray(pointer, LANES)
    width = LANES // 2
    while width > 0:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    return lanes[0]


@njit(**FLAGS)
def _tree(sums, base, n, k):  # type: ignore[no-untyped-def]
    """Add `n` numbers of column `k` from `base` on by the pairwise tree of `blocks.tree_sum`; they are overwritten."""
    while n > 1:
        for j in range(n // 2):
            sums[base + j, k] = sums[base + 2 * j, k] + sums[base + 2 * j + 1, k]
        if n % 2:
            sums[base + n // 2, k] = sums[base + n - 1, k]
        n = (n + 1) // 2


@njit(**FLAGS)
def _add_blocks(sums, first, out):  # type: ignore[no-untyped-def]
    """Add the block sums of each segment; `sums` are overwritten."""
    for s in range(out.shape[0]):
        for k in range(out.shape[1]):
            _tree(sums, first[s], first[s + 1] - first[s], k)
            out[s, k] = sums[first[s], k] if first[s] < first[s + 1] else 0.0


# ---- the printed part --------------------------------------------------------------------------------------------


def tile_text(sweep: Sweep) -> str:
    """Text of ``_tile``: one tile of one segment."""
    a, sums = sweep.arrays, range(len(sweep.sums))
    scalars = [f"    {name} = _row[{k}]" for k, name in enumerate(sweep.scalars)]
    pointers = [f"    _p_{name} = _pointer(_addresses[{k}], _T)" for k, name in enumerate(a)]
    call = f"_rule({', '.join([f'_load_{name}(_p_{name}, _i)' for name in a] + list(sweep.scalars))})"
    results = [f"_new_{name}" for name in sweep.writes] + [f"_t{k}" for k in sums]
    step = [f"{', '.join(results)}, = {call}", *(f"_store_{x}(_p_{x}, _i, _new_{x})" for x in sweep.writes)]
    if not sweep.sums:
        loop = ["    for _i in range(_lo, _hi):", *(f"        {line}" for line in step)]
        return "\n".join(["def _tile(_addresses, _row, _lo, _hi):", *scalars, *pointers, *loop]) + "\n"
    lines = ["def _tile(_addresses, _row, _lo, _hi, _lanes, _sums, _block):", *scalars, *pointers]
    lines += [f"    _l{k} = _pointer(_lanes + {k} * _ROOM, _T)" for k in sums]
    lines += [
        f"    for _b in range(_lo, _hi, {SUM_BLOCK}):",
        f"        _e = min(_b + {SUM_BLOCK}, _hi)",
        f"        for _j in range({LANES}):",
        *(f"            _store_{k}(_l{k}, _j, _T(0))" for k in sums),
        f"        for _c in range(_b, _e, {LANES}):",
        f"            for _i in range(_c, min(_c + {LANES}, _e)):",
        *(f"                {line}" for line in step),
        *(f"                _store_{k}(_l{k}, _i - _c, _load_{k}(_l{k}, _i - _c) + _t{k})" for k in sums),
        *(f"        _sums[_block, {k}] = _fold(_l{k})" for k in sums),
        "        _block += 1",
    ]
    return "\n".join(lines) + "\n"


def printed(sweep: Sweep, dtype: np.dtype[Any]) -> str:
    """Text of the functions ``_rule`` and ``_tile``, which a kernel is made of."""
    return scalar_text(sweep, "_rule", dtype.name) + tile_text(sweep)  # type: ignore[arg-type]


Kernel = Callable[[int], None]
_KERNELS: dict[str, Kernel] = {}


def kernel(sweep: Sweep, dtype: np.dtype[Any], label: str, *, parallel: bool) -> Kernel:
    """Compiled sweep, from the cache on disk if it is there: takes the address of a control block."""
    name = f"{label}_{sweep.name}_{dtype.name}_{'parallel' if parallel else 'serial'}"
    name += f"_{_digest(printed(sweep, dtype), parallel)}"
    if name not in _KERNELS:
        made = _compiled(name, sweep, dtype, parallel=parallel, stored=True)
        # The entry point without the dispatcher, which would look for the type of the one argument at every call.
        _KERNELS[name] = made.overloads[(types.int64,)].entry_point
    return _KERNELS[name]


def scalar_kernel(name: str, text: str, make: Callable[[str], FunctionType]) -> Kernel:
    """Compiled function of a few numbers, from the cache on disk if it is there: takes the address of a control block.

    Parameters
    ----------
    name
        Of the kernel, without a digest.
    text
        All that it depends on.
    make
        Makes the function, given its whole name.
    """
    name += f"_{_digest(text, parallel=False)}"
    if name not in _KERNELS:
        made: Any = njit(**FLAGS)(make(name))
        made._cache = KernelFile(name)
        made.compile((types.int64,))
        _KERNELS[name] = made.overloads[(types.int64,)].entry_point
    return _KERNELS[name]


def dispatcher(sweep: Sweep, dtype: np.dtype[Any], label: str, *, parallel: bool) -> Any:
    """Numba's own view of a kernel, compiled anew: it can be asked for its LLVM and machine code."""
    return _compiled(f"{label}_{sweep.name}_{dtype.name}", sweep, dtype, parallel=parallel, stored=False)


def _compiled(name: str, sweep: Sweep, dtype: np.dtype[Any], *, parallel: bool, stored: bool) -> Any:
    room = LANES * dtype.itemsize
    names: dict[str, Any] = {
        "_math": math,
        "_T": dtype.type,
        "_pointer": _pointer,
        "_fold": _fold,
        "_ROOM": room,
    }
    streams = (*sweep.arrays, *range(len(sweep.sums)))
    for k, stream in enumerate(streams):
        names[f"_load_{stream}"], names[f"_store_{stream}"] = _stream(k, len(streams))
    exec(compile(printed(sweep, dtype), f"<{name}>", "exec"), names)
    for inner in ("_rule", "_tile"):
        # The name is part of the machine code's symbol: two kernels that were cached by different processes would
        # otherwise each bring a `_tile`, and the second one loaded would run the first one's.
        names[inner].__qualname__ = f"{name}{inner}"
        names[inner] = njit(**FLAGS)(names[inner])
    template = specialise(
        _sweep_sums if sweep.sums else _sweep,
        name,
        _tile=names["_tile"],
        _T=dtype.type,
        _A=len(sweep.arrays),
        _S=len(sweep.scalars),
        _K=len(sweep.sums),
        _ROOM=room,
    )
    made: Any = njit(parallel=parallel, **FLAGS)(template)
    if stored:
        made._cache = KernelFile(name)
    if parallel:
        layer()  # a kernel from the cache starts the threads: they are started our way
    made.compile((types.int64,))
    made.disable_compile()
    return made


def specialise(template: Callable[..., Any], name: str, **names: Any) -> FunctionType:
    """Copy of a template that sees `names` as globals and is compiled under `name`."""
    assert isinstance(template, FunctionType)
    copy = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    copy.__qualname__ = name
    copy.__module__ = template.__module__
    return copy


_OWN_TEXT = Path(__file__).read_bytes()


def _digest(text: str, parallel: bool) -> str:
    switches = [config.OPT, config.BOUNDSCHECK, config.LOOP_VECTORIZE, config.SLP_VECTORIZE, parallel]
    key = repr((text, sorted(FLAGS.items()), switches, machine())).encode() + _OWN_TEXT
    return hashlib.sha256(key).hexdigest()[:16]


# ---- a sweep, bound to arrays ------------------------------------------------------------------------------------


class CpuSweep:
    """One sweep over all segments of an optimizer.

    Parameters
    ----------
    sweep
        What is done.
    sizes
        Elements of each segment.
    rows
        Row of scalars of each segment.
    scalars
        The rows, of shape (rows, scalars of the sweep), in the dtype of the arrays; read at every run.
    label
        First part of the kernel's name.
    threads
        See `fastgd.kernels.cpu_threads.available_threads`.
    """

    atomic = True
    """Whether Python finds either nothing of a run written, or all and the run counted."""

    def __init__(
        self,
        sweep: Sweep,
        sizes: Sequence[int],
        rows: Sequence[int],
        scalars: NDArray[Any],
        label: str,
        threads: int = 1,
    ) -> None:
        self.sweep = sweep
        self.dtype = scalars.dtype
        self._label = label
        self._threads = threads
        moved = sum(sizes) * sweep.bytes_per_element(self.dtype.itemsize)
        self._parallel = threads > 1 and moved >= CROSSOVER
        self._addresses = np.zeros((len(sizes), len(sweep.arrays)), np.int64)
        table = tiles(sizes, rows)
        cuts = equal_cuts(table, threads * CHUNKS_PER_THREAD if self._parallel else 1)
        first = block_counts(sizes)
        block_sums = np.zeros((first[-1] if sweep.sums else 0, len(sweep.sums)))
        self._sums = np.zeros((len(sizes), len(sweep.sums)))
        self._total = np.zeros((max(1, len(sizes)), len(sweep.sums)))  # in the first row, when all is added
        self._control = np.zeros(CELLS, np.int64)
        lanes = np.zeros((len(cuts) - 1, len(sweep.sums), LANES), scalars.dtype)
        self._held = (
            self._addresses,
            scalars,
            table,
            cuts,
            lanes,
            block_sums,
            first,
            self._sums,
            self._total,
        )  # in the cells' order
        for cell, array in enumerate(self._held):
            self._control[cell] = array.ctypes.data
        self._control[[SEGMENTS, ROW_COUNT, TILES, CUT_COUNT]] = len(sizes), len(scalars), len(table), len(cuts)
        self._address: int = self._control.ctypes.data
        self.run: Callable[[], None] = self._first_run
        """Updates the arrays in place."""
        self._bound: dict[str, Sequence[NDArray[Any]]] = {}

    @property
    def runs(self) -> int:
        """How often it has run to its end; the kernel itself counts."""
        return int(self._control[RUNS])

    @runs.setter
    def runs(self, count: int) -> None:
        self._control[RUNS] = count

    def bind(self, name: str, arrays: Sequence[NDArray[Any]], where: Where) -> None:
        """Take the arrays of one quantity; they are kept alive until others are bound under this name."""
        if name not in self.sweep.arrays:
            return
        column = self._addresses[:, self.sweep.arrays.index(name)]
        if len(arrays) == 1:
            column[:] = where.offset * self.dtype.itemsize + arrays[0].ctypes.data
        else:
            start = np.array([a.ctypes.data for a in arrays], np.int64)
            column[:] = start[where.array] + where.offset * self.dtype.itemsize
        self._bound[name] = arrays

    def prepare(self) -> None:
        """Compile the kernel or load it from the cache; otherwise the first run does it."""
        self._parallel = self._parallel and not forked()
        made = kernel(self.sweep, self.dtype, self._label, parallel=self._parallel)
        if self._parallel:
            self.run = partial(launch, made, self._address, self._threads, self._run_serial)
        else:
            self.run = partial(made, self._address)

    def _run_serial(self) -> None:
        if self._parallel:
            self.prepare()
        self.run()

    def _first_run(self) -> None:
        self.prepare()
        self.run()

    def resume(self) -> None:
        """Finish a run that was interrupted: a kernel has run or it has not."""
        self.run()

    def sums(self) -> NDArray[np.float64]:
        """Give the sums of the last run, float64, of shape (segments, terms)."""
        return self._sums

    @property
    def totals(self) -> NDArray[np.float64]:
        """Array that has the sums over all segments in its first row."""
        return self._total

    def total(self) -> NDArray[np.float64]:
        """Give the sums of the last run over all segments, float64, of shape (terms,)."""
        total: NDArray[np.float64] = self._total[0]
        return total
