"""The cupy backend: kernels of CUDA C++ on CuPy's current stream, and every sweep as launches of them.

Nothing here waits for the device but what is asked for its sums. The numbers of a step travel as an argument of a
launch, so that no memory of the host is read when the step has returned.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.blocks import HI, LO, SEGMENT, SUM_BLOCK, Where, block_counts, branches, tiles
from fastgd.kernels.cubin import closest, cubin
from fastgd.kernels.cuda_source import (
    CARRIED,
    FOLDED,
    THREADS,
    VECTOR,
    entry,
    service_source,
    sweep_source,
)
from fastgd.kernels.language import Sweep

BLOCKS_PER_PROCESSOR = 16  # more than run at once, so that none waits long for the last

Call = Callable[[], object]


@cache
def _properties(device: int) -> tuple[str, int]:
    """Architecture of a device, as a cubin is made for it, and number of its processors."""
    found = cupy.cuda.Device(device)
    return closest(found.compute_capability), found.attributes["MultiProcessorCount"]


@cache
def _module(text: str, label: str, arch: str) -> Any:
    return cupy.RawModule(path=str(cubin(text, arch, label)))


def kernel(text: str, label: str, name: str) -> Any:
    """Give a kernel of a translation unit for the current device, loaded."""
    arch, _ = _properties(cupy.cuda.Device().id)
    function = _module(text, label, arch).get_function(name)
    function.num_regs  # noqa: B018  # loads it, which would otherwise be done at the first launch
    return function


def grid(blocks: int) -> tuple[int]:
    """Give how many blocks are launched for work of so many."""
    _, processors = _properties(cupy.cuda.Device().id)
    return (min(blocks, processors * BLOCKS_PER_PROCESSOR),)


def run_all(launches: Sequence[Call]) -> None:
    """Call launches one behind the other, in one call of C: Ctrl-C is raised behind the last and not in between."""
    deque(map(operator.call, launches), maxlen=0)


def record(before: Callable[[], object] | None, launches: Sequence[Call]) -> tuple[Any, list[Any]]:
    """Record launches in a graph, behind what `before` launches; nothing of it is run.

    Returns
    -------
    graph
    memory
        Of the arrays that `before` makes on its way: the graph uses it, so it must not go back to a pool before that.
    """
    memory: list[Any] = []
    allocate = cupy.cuda.get_allocator()

    def keep(size: int) -> Any:
        memory.append(allocate(size))
        return memory[-1]

    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()  # what was allocated or sent there must be there
    with stream:
        try:
            stream.begin_capture()
            if before is not None:
                with cupy.cuda.using_allocator(keep):
                    before()
            run_all(launches)
        except BaseException:
            with suppress(Exception):  # it has failed with the capture, and says less
                stream.end_capture()
            raise
        return stream.end_capture(), memory


class Carried:
    """An array of the host with its copy on the device, which launches bring up to date.

    Parameters
    ----------
    host
        C-contiguous; whoever changes it calls `upload`.
    """

    def __init__(self, host: NDArray[Any]) -> None:
        self.host = host
        words = -(-host.nbytes // 8)
        self.memory = cupy.zeros(max(1, words), np.int64)
        """The copy; an argument of launches."""
        self._sent = bytes(host.nbytes)
        # what launches take along: the driver has copied it when a launch returns
        taken = np.zeros(-(-host.nbytes // CARRIED) * CARRIED, np.uint8)
        self._taken = memoryview(taken.data)
        self._puts: list[Call] = []
        put: Any = kernel(service_source(), "service", "fgd_put") if words else None
        for start in range(0, words, CARRIED // 8):
            # an array of one element is handed over by value
            value = taken[8 * start : 8 * start + CARRIED].view(f"V{CARRIED}")
            count = min(words - start, CARRIED // 8)
            self._puts.append(partial(put, (1,), (THREADS,), (value, self.memory[start:], count)))

    def upload(self) -> None:
        """Bring the copy up to date, on the current stream, if the array has changed since the last time."""
        content = self.host.tobytes()
        if content != self._sent:
            self._taken[: len(content)] = content
            run_all(self._puts)
            self._sent = content

    def cells(self, column: int) -> list[int]:
        """Addresses of a column's numbers."""
        rows, columns = self.host.shape
        start: int = self.memory.data.ptr
        return [start + self.host.itemsize * (r * columns + column) for r in range(rows)]


class _Sums:
    """Block sums of a sweep, and their sums: of each segment, and, where that is wanted, of all."""

    def __init__(self, sizes: Sequence[int], columns: int, *, total: bool) -> None:
        first = block_counts(sizes).tolist()
        self.columns = columns
        self.blocks = cupy.zeros((first[-1], columns), np.float64)
        self.launches: list[Call] = []
        self._add = kernel(service_source(), "service", "fgd_add")
        self.segments = self._added(self.blocks, list(pairwise(first)))
        self.total = self._added(self.segments, [(0, len(sizes))]) if total and len(sizes) != 1 else self.segments

    def _added(self, numbers: Any, spans: list[tuple[int, int]]) -> Any:
        for parts in branches(spans, FOLDED):
            table, out = cupy.asarray(parts), cupy.zeros((max(1, len(parts)), self.columns), np.float64)
            if len(parts):
                arguments = (numbers, table, len(parts), self.columns, out)
                self.launches.append(partial(self._add, grid(len(parts)), (THREADS,), arguments))
            numbers = out
        return numbers


class CupySweep:
    """One sweep over all segments; see `fastgd.kernels.cpu.CpuSweep`, whose interface this has."""

    def __init__(
        self, sweep: Sweep, sizes: Sequence[int], rows: Sequence[int], scalars: NDArray[Any], label: str
    ) -> None:
        self.sweep = sweep
        self.dtype = scalars.dtype
        self.rows = Carried(scalars)
        self._label = label
        self._table = tiles(sizes, rows, SUM_BLOCK)
        self._addresses = Carried(np.zeros((len(sizes), len(sweep.arrays)), np.int64))
        self._aligned = np.ones(len(sizes), bool)
        self._bound: dict[str, Sequence[Any]] = {}
        self.summed = _Sums(sizes, len(sweep.sums), total=sweep.level == "total") if sweep.sums else None
        self._runs = np.zeros((), np.int64)
        self.count: Call = partial(np.add, self._runs, 1, self._runs)
        """Counts a run; it must stand behind the launches, with nothing that could part them."""
        self._before: list[Call] = []
        self._launches: list[Call] = []
        self._counted: list[Call] = []
        self._is_laid_out = self._is_bound_anew = False

    @property
    def runs(self) -> int:
        """How often it has been launched to its end; it is counted with the launches, which nothing parts."""
        return int(self._runs)

    @runs.setter
    def runs(self, count: int) -> None:
        self._runs[()] = count

    def bind(self, name: str, arrays: Sequence[Any], where: Where) -> None:
        """Take the arrays of one quantity; they are kept alive until others are bound under this name."""
        if name not in self.sweep.arrays:
            return
        start = np.array([a.data.ptr for a in arrays], np.int64)
        addresses = self._addresses.host
        addresses[:, self.sweep.arrays.index(name)] = start[where.array] + where.offset * self.dtype.itemsize
        self._bound[name] = arrays
        self._is_bound_anew = True
        aligned = (addresses % VECTOR == 0).all(axis=1)
        if (aligned != self._aligned).any():
            self._aligned = aligned
            self._is_laid_out = False
        if self._launches and not self._is_laid_out:  # at once: in a step nothing may fail any more
            self.prepare()

    def prepare(self) -> None:
        """Compile the kernels or load them from the cache, and lay out their launches."""
        if self._is_laid_out:
            return
        text = sweep_source(self.sweep, self.dtype.name, self._label)  # type: ignore[arg-type]
        sums = self.summed.blocks if self.summed else 0
        launches = []
        width = VECTOR // self.dtype.itemsize  # of sums, as many tiles are done by one block
        for (kind, teams), table in zip((("vector", width), ("scalar", 1)), self._parted(), strict=True):
            function = kernel(text, self._label, entry(self._label, self.sweep, kind))
            if len(table):
                arguments = (self._addresses.memory, self.rows.memory, cupy.asarray(table), len(table), sums)
                blocks = -(-len(table) // teams) if self.sweep.sums else len(table)
                launches.append(partial(function, grid(blocks), (THREADS,), arguments))
        self._launches = [*self._before, *launches, *(self.summed.launches if self.summed else ())]
        self._counted = [*self._launches, self.count]
        self._is_laid_out = True  # not before: a compiler or memory may have failed

    def put_before(self, launches: list[Call]) -> None:
        """Have launches in front of the sweep's own, as a part of it."""
        self._before = launches
        self._is_laid_out = False

    def _parted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tiles that vectors can take, and the others; a block of a sum is not parted."""
        width = VECTOR // self.dtype.itemsize
        table = self._table
        aligned = self._aligned[table[:, SEGMENT]]
        rest = (table[:, HI] - table[:, LO]) % width
        if self.sweep.sums:
            fits = aligned & (rest == 0)
            return table[fits], table[~fits]
        vector, scalar = table.copy(), table.copy()
        vector[:, HI] -= rest
        scalar[aligned, LO] = vector[aligned, HI]
        return vector[aligned & (vector[:, LO] < vector[:, HI])], scalar[scalar[:, LO] < scalar[:, HI]]

    def cells(self, name: str) -> list[int]:
        """Addresses of a scalar in all rows."""
        if name not in self.sweep.scalars:
            return []
        return self.rows.cells(self.sweep.scalars.index(name))

    def upload(self) -> None:
        """Bring addresses and scalars on the device up to date."""
        if self._is_bound_anew:
            self._addresses.upload()
            self._is_bound_anew = False
        self.rows.upload()

    @property
    def launches(self) -> list[Call]:
        """What `run` launches, in a list that is replaced when it changes."""
        self.prepare()
        return self._launches

    def run(self) -> None:
        """Call the update of the arrays; nothing waits for it."""
        self.prepare()
        self.upload()
        run_all(self._counted)

    def resume(self) -> None:
        """Finish a run that was interrupted: all of it is launched or nothing is."""
        self.run()

    def sums(self) -> NDArray[np.float64]:
        """Wait for the sums of the last run, float64, of shape (segments, terms)."""
        assert self.summed is not None
        sums: NDArray[np.float64] = self.summed.segments.get()
        return sums

    def total(self) -> NDArray[np.float64]:
        """Wait for the sums of the last run over all segments, float64, of shape (terms,)."""
        assert self.summed is not None and self.sweep.level == "total"
        total: NDArray[np.float64] = self.summed.total.get()[0]
        return total
