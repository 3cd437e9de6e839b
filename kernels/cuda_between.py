"""What is computed between the sweeps of a step on a GPU: kernels of float64 that make scalars of sums and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.between import NamedStates, Terms
from fastgd.kernels.between_code import BetweenCode, codes_between
from fastgd.kernels.cuda_source import THREADS
from fastgd.kernels.cuda_sweep import Carried, Gpu, GpuSweep
from fastgd.kernels.language import Sweep


class Scalars(NamedStates):
    """Scalar states on the device; read and set as arrays of the host."""

    def __init__(self, gpu: Gpu, starts: dict[str, NDArray[np.float64]]) -> None:
        super().__init__(starts)
        self._gpu = gpu
        self.array = gpu.to_device(np.array([*starts.values()], np.float64) if starts else np.zeros((0, 1)))

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self._gpu.to_host(self.array[self.row(name)])

    def __setitem__(self, name: str, values: NDArray[np.float64]) -> None:
        self._gpu.set_from_host(self.array[self.row(name)], np.ascontiguousarray(values, np.float64))


class GpuBetween:
    """What is computed between two sweeps, where the sums are; see `fastgd.kernels.between.HostBetween`."""

    def __init__(self, terms: Terms, sweeps: Sequence[GpuSweep]) -> None:
        plan = terms.plan
        first, last = sweeps
        assert plan.combine is not None and first.summed is not None
        self.prepared = plan.given
        self.states = Scalars(first.gpu, terms.starts)
        self._columns = [*self.prepared, *(plan.derive.writes if plan.derive else ())]
        self.given = Carried(first.gpu, np.zeros((terms.groups, len(self._columns))))
        self._arguments = (terms, first, last)
        self._is_ready = False

    def cells(self, name: str) -> list[int]:
        """Addresses of what is given for each group under a name, float64."""
        if name not in self.prepared:
            return []
        return self.given.cells(self._columns.index(name))

    def prepare(self) -> None:
        """Compile the kernels and put their launches in front of the sweeps'."""
        if self._is_ready:
            return
        terms, first, last = self._arguments
        plan, label = terms.plan, terms.label
        assert plan.combine is not None and first.summed is not None
        per_segment = plan.level == "per_segment"
        sums = first.summed.segments if per_segment else first.summed.total
        gpu = first.gpu
        sizes, groups_of = gpu.to_device(terms.summed), gpu.to_device(terms.group_of)
        every_group = gpu.to_device(np.arange(len(self.given.host)))
        codes = codes_between(plan, first.dtype.name)  # type: ignore[arg-type]

        def launch(function: Sweep, sweep: GpuSweep, groups: Any) -> Any:
            code = codes[function.name]
            count = len(groups)
            arguments = (sums, sizes, self.states.array, self.given.memory, groups, sweep.rows.memory, count)
            blocks = -(-count // THREADS) if code.per_segment else 1
            return gpu.launch(gpu.between_kernel(code, label), max(1, blocks), arguments)

        if plan.derive:
            first.put_before([launch(plan.derive, first, every_group)])
        last.put_before([launch(plan.combine, last, groups_of)])
        self._is_ready = True

    def put(self, index: int, values: Any) -> None:
        """Take what is prepared for a group."""
        for column, name in enumerate(self.prepared):
            self.given.host[index, column] = values[name]

    def begin(self) -> None:
        """Send what is given; the kernels in front of the sweeps do the rest."""
        self.prepare()
        self.given.upload()

    def combine(self) -> None:
        """Do nothing: the kernel is launched with the last sweep."""

    def keep(self) -> None:
        """Do nothing: the kernel has stored the states."""

    def share(self, other: Any) -> None:
        """Keep the states together with another one."""
        self.states, self._is_ready = other.states, False


class GpuClip:
    """The gradient's norm, and the factor that clips it, put where the sweeps of a step read it; nobody waits."""

    def __init__(self, sweep: GpuSweep, function: Sweep, dtype: np.dtype[Any]) -> None:
        assert sweep.summed is not None
        gpu = sweep.gpu
        self._sums = sweep
        self._function = function
        self._given = Carried(gpu, np.zeros((1, len(self._function.scalars))))
        self._results = gpu.zeros(len(self._function.writes), np.float64)
        self._one = gpu.to_device(np.ones(1))
        self._zero = gpu.zeros(1, np.int64)
        self._dtype = dtype
        self._cells: tuple[Sequence[int], Sequence[int]] | None = None
        self._launch: Any = None
        self._launches: list[Any] = []

    def aim(self, cells: tuple[Sequence[int], Sequence[int]]) -> None:
        """Say where the factor goes: addresses of numbers of the parameters' dtype, and of float64."""
        if self._cells is cells:
            return
        sums = self._sums.summed
        assert sums is not None
        gpu = self._sums.gpu
        code = BetweenCode(
            self._function,
            self._dtype.name,  # type: ignore[arg-type]
            sums=tuple(self._sums.sweep.sums),
            states=tuple(self._function.writes),
            given=self._function.scalars,
            spread="gscale",
        )
        narrow, wide = (gpu.to_device(np.array(addresses, np.int64)) for addresses in cells)
        given = self._given.memory
        no_rows = 0
        arguments: tuple[Any, ...] = (sums.total, self._one, self._results, given, self._zero, no_rows, 1)
        arguments += (narrow, len(narrow), wide, len(wide))
        self._launch = gpu.launch(gpu.between_kernel(code, "gradient"), 1, arguments)
        self._cells = cells  # last: what ran out of memory above is done again

    def upload(self, **values: float) -> None:
        """Send what the factor is made of."""
        for column, name in enumerate(self._function.scalars):
            self._given.host[0, column] = values[name]
        self._given.upload()
        self._sums.prepare()
        self._sums.upload()

    @property
    def launches(self) -> list[Any]:
        """What `run` launches, in a list that is replaced when it changes."""
        assert self._launch is not None
        launches = [*self._sums.launches, self._launch]
        if self._launches != launches:
            self._launches = launches
        return self._launches

    def run(self) -> None:
        """Call the norm and the factor, behind what brings the sweeps' scalars up to date."""
        self._sums.gpu.run_all(self.launches)

    def norm(self) -> float:
        """Wait for the norm of the last run."""
        return float(self._sums.gpu.to_host(self._results)[list(self._function.writes).index("norm")])
