"""The cupy backend: CuPy's memory, kernels of CUDA C++, and launches of them on CuPy's current stream."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastgd.kernels.between_code import BetweenCode
from fastgd.kernels.cubin import closest, cubin
from fastgd.kernels.cuda_source import (
    CARRIED,
    THREADS,
    VECTOR,
    between_source,
    entry,
    service_source,
    sweep_source,
)
from fastgd.kernels.cuda_sweep import Call
from fastgd.kernels.cupy_arrays import address, set_from_host, to_device, to_host, zeros
from fastgd.kernels.language import Sweep
from fastgd.kernels.printers import DType

__all__ = [
    "add_kernel",
    "address",
    "between_kernel",
    "launch",
    "record",
    "run_all",
    "sender",
    "set_from_host",
    "sweep_kernels",
    "to_device",
    "to_host",
    "zeros",
]

BLOCKS_PER_PROCESSOR = 16  # more than run at once, so that none waits long for the last

# ---- memory ------------------------------------------------------------------------------------------------------


def sender(size: int) -> tuple[Any, Callable[[bytes], None]]:
    """Give memory of `size` bytes, and what fills it on the current stream; the bytes may go when it returns.

    They travel as an argument of a launch, which the driver has copied when the launch returns.
    """
    words = -(-size // 8)
    memory = zeros(max(1, words), np.int64)
    taken = np.zeros(-(-size // CARRIED) * CARRIED, np.uint8)
    view = memoryview(taken.data)
    puts: list[Call] = []
    put: Any = _loaded(service_source(), "service", "fgd_put") if words else None
    for start in range(0, words, CARRIED // 8):
        # an array of one element is handed over by value
        value = taken[8 * start : 8 * start + CARRIED].view(f"V{CARRIED}")
        puts.append(partial(put, (1,), (THREADS,), (value, memory[start:], min(words - start, CARRIED // 8))))

    def send(content: bytes) -> None:
        view[:size] = content
        run_all(puts)

    return memory, send


# ---- kernels -----------------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """A kernel, loaded, and how many tiles or parts one of its blocks does at once."""

    function: Any
    at_once: int = 1


def sweep_kernels(sweep: Sweep, dtype: DType, label: str) -> tuple[Kernel, Kernel]:
    """Give a sweep's kernels, loaded: of vectors, and of single elements."""
    text = sweep_source(sweep, dtype, label)
    vector, scalar = (_loaded(text, label, entry(label, sweep, kind)) for kind in ("vector", "scalar"))
    # of sums, as many tiles are done by the teams of one block
    return Kernel(vector, VECTOR // np.dtype(dtype).itemsize if sweep.sums else 1), Kernel(scalar)


def add_kernel() -> Kernel:
    """Give the kernel that adds sums, loaded."""
    return Kernel(_loaded(service_source(), "service", "fgd_add"))


def between_kernel(code: BetweenCode, label: str) -> Kernel:
    """Give the kernel of code between sweeps, loaded."""
    return Kernel(_loaded(between_source(code, label), label, entry(label, code.function, "scalars")))


def _loaded(text: str, label: str, name: str) -> Any:
    arch, _ = _properties(cupy.cuda.Device().id)
    function = _module(text, label, arch).get_function(name)
    function.num_regs  # noqa: B018  # loads it, which would otherwise be done at the first launch
    return function


@cache
def _properties(device: int) -> tuple[str, int]:
    """Architecture of a device, as a cubin is made for it, and number of its processors."""
    found = cupy.cuda.Device(device)
    return closest(found.compute_capability), found.attributes["MultiProcessorCount"]


@cache
def _module(text: str, label: str, arch: str) -> Any:
    return cupy.RawModule(path=str(cubin(text, arch, label)))


# ---- launches ----------------------------------------------------------------------------------------------------


def launch(kernel: Kernel, work: int, arguments: Sequence[Any]) -> Call:
    """Give what launches a kernel for so many tiles, parts or blocks; arguments are arrays and whole numbers."""
    _, processors = _properties(cupy.cuda.Device().id)
    blocks = min(-(-work // kernel.at_once), processors * BLOCKS_PER_PROCESSOR)
    return partial(kernel.function, (blocks,), (THREADS,), tuple(arguments))


def run_all(launches: Sequence[Call]) -> None:
    """Call launches one behind the other, in one call of C: Ctrl-C is raised behind the last and not in between."""
    deque(map(operator.call, launches), maxlen=0)


def record(before: Callable[[], object] | None, launches: Sequence[Call]) -> tuple[Any, list[Any]]:
    """Record launches in a graph, behind what `before` launches; nothing of it is run.

    Returns
    -------
    graph
        Whose ``launch`` launches it.
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
