"""Every sweep as launches of kernels of a GPU, and what keeps the numbers on it up to date.

The same for both launchers, which are modules that have the functions of `Gpu`: `fastgd.kernels.cuda_cupy` and
`fastgd.kernels.cuda_numba`. Nothing here waits for the device but what is asked for its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.between_code import BetweenCode
from fastgd.kernels.blocks import HI, LO, SEGMENT, SUM_BLOCK, Where, block_counts, branches, tiles
from fastgd.kernels.cuda_source import FOLDED, VECTOR
from fastgd.kernels.language import Sweep

Call = Callable[[], object]
"""What may stand among launches; what it gives is true only for a launch that has failed."""


class Gpu(Protocol):
    """What a launcher offers: memory of the current device, kernels, and launches of them."""

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        """Give an array of zeros."""

    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array of the host."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """Wait for an array, and copy it."""

    def set_from_host(self, array: Any, values: NDArray[Any]) -> None:
        """Copy values of the array's shape and dtype into it."""

    def address(self, array: Any) -> int:
        """Address of an array's first element."""

    def sender(self, size: int) -> tuple[Any, Callable[[bytes], None]]:
        """Give memory of `size` bytes, and what fills it on the current stream; the bytes may go when it returns."""

    def sweep_kernels(self, sweep: Sweep, dtype: str, label: str) -> tuple[Any, Any]:
        """Give a sweep's kernels, loaded: of vectors, and of single elements."""

    def add_kernel(self) -> Any:
        """Give the kernel that adds sums, loaded."""

    def between_kernel(self, code: BetweenCode, label: str) -> Any:
        """Give the kernel of code between sweeps, loaded."""

    def launch(self, kernel: Any, work: int, arguments: Sequence[Any]) -> Any:
        """Give what launches a kernel for so many tiles, parts or blocks; arguments are arrays and whole numbers."""

    def run_all(self, launches: Sequence[Any]) -> None:
        """Call launches one behind the other, in one call of C: Ctrl-C is raised behind the last, not in between."""

    def record(self, before: Callable[[], object] | None, launches: Sequence[Any]) -> tuple[Any, Any]:
        """Record launches in a graph, behind what `before` launches; nothing of it is run.

        Returns
        -------
        graph
            Whose ``launch`` launches it, on the current stream.
        memory
            What the graph uses and must not be freed before it.
        """


class Carried:
    """An array of the host with its copy on the device, which launches bring up to date.

    Parameters
    ----------
    gpu
        Where to.
    host
        C-contiguous; whoever changes it calls `upload`.
    """

    def __init__(self, gpu: Gpu, host: NDArray[Any]) -> None:
        self.host = host
        self._gpu = gpu
        self.memory, self._send = gpu.sender(host.nbytes)
        """The copy, an argument of launches, and what fills it."""
        self._sent = bytes(host.nbytes)

    def upload(self) -> None:
        """Bring the copy up to date, on the current stream, if the array has changed since the last time."""
        content = self.host.tobytes()
        if content != self._sent:
            self._send(content)
            self._sent = content

    def cells(self, column: int) -> list[int]:
        """Addresses of a column's numbers."""
        rows, columns = self.host.shape
        start = self._gpu.address(self.memory)
        return [start + self.host.itemsize * (r * columns + column) for r in range(rows)]


class _Sums:
    """Block sums of a sweep, and their sums: of each segment, and, where that is wanted, of all."""

    def __init__(self, gpu: Gpu, sizes: Sequence[int], columns: int, *, total: bool) -> None:
        first = block_counts(sizes).tolist()
        self._gpu = gpu
        self.columns = columns
        self.blocks = gpu.zeros((first[-1], columns), np.float64)
        self.launches: list[Any] = []
        self._add = gpu.add_kernel()
        self.segments = self._added(self.blocks, list(pairwise(first)))
        self.total = self._added(self.segments, [(0, len(sizes))]) if total and len(sizes) != 1 else self.segments

    def _added(self, numbers: Any, spans: list[tuple[int, int]]) -> Any:
        for parts in branches(spans, FOLDED):
            out = self._gpu.zeros((max(1, len(parts)), self.columns), np.float64)
            if len(parts):
                arguments = (numbers, self._gpu.to_device(parts), len(parts), self.columns, out)
                self.launches.append(self._gpu.launch(self._add, len(parts), arguments))
            numbers = out
        return numbers


class GpuSweep:
    """One sweep over all segments; see `fastgd.kernels.cpu.CpuSweep`, whose interface this has."""

    atomic = False

    def __init__(
        self, gpu: Gpu, sweep: Sweep, sizes: Sequence[int], rows: Sequence[int], scalars: NDArray[Any], label: str
    ) -> None:
        self.gpu = gpu
        self.sweep = sweep
        self.dtype = scalars.dtype
        self.rows = Carried(gpu, scalars)
        self._label = label
        self._table = tiles(sizes, rows, SUM_BLOCK)
        self._addresses = Carried(gpu, np.zeros((len(sizes), len(sweep.arrays)), np.int64))
        self._aligned = np.ones(len(sizes), bool)
        self._bound: dict[str, Sequence[Any]] = {}
        self.summed = _Sums(gpu, sizes, len(sweep.sums), total=sweep.level == "total") if sweep.sums else None
        self._runs = np.zeros((), np.int64)
        self.count: Call = partial(np.add.at, self._runs, (), 1)
        """Counts a run; it must stand behind the launches, with nothing that could part them. It gives None."""
        self._before: list[Any] = []
        self._launches: list[Any] = []
        self._counted: list[Any] = []
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
        start = np.array([self.gpu.address(a) for a in arrays], np.int64)
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
        sums = self.summed.blocks if self.summed else 0
        launches = []
        kernels = self.gpu.sweep_kernels(self.sweep, self.dtype.name, self._label)
        for kernel, table in zip(kernels, self._parted(), strict=True):
            if len(table):
                tiles_there = self.gpu.to_device(table)
                arguments = (self._addresses.memory, self.rows.memory, tiles_there, len(table), sums)
                launches.append(self.gpu.launch(kernel, len(table), arguments))
        self._launches = [*self._before, *launches, *(self.summed.launches if self.summed else ())]
        self._counted = [*self._launches, self.count]
        self._is_laid_out = True  # not before: a compiler or memory may have failed

    def put_before(self, launches: list[Any]) -> None:
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
    def launches(self) -> list[Any]:
        """What `run` launches, in a list that is replaced when it changes."""
        self.prepare()
        return self._launches

    def run(self) -> None:
        """Call the update of the arrays; nothing waits for it."""
        self.prepare()
        self.upload()
        self.gpu.run_all(self._counted)

    def resume(self) -> None:
        """Finish a run that was interrupted: all of it is launched or nothing is."""
        self.run()

    def sums(self) -> NDArray[np.float64]:
        """Wait for the sums of the last run, float64, of shape (segments, terms)."""
        assert self.summed is not None
        sums: NDArray[np.float64] = self.gpu.to_host(self.summed.segments)
        return sums

    def total(self) -> NDArray[np.float64]:
        """Wait for the sums of the last run over all segments, float64, of shape (terms,)."""
        assert self.summed is not None and self.sweep.level == "total"
        total: NDArray[np.float64] = self.gpu.to_host(self.summed.total)[0]
        return total
