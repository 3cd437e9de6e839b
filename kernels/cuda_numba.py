"""The numba-cuda backend: its memory, its kernels, and launches of them on the stream of the arrays.

A launch goes to the driver itself, with arguments that are laid out once: numba-cuda's own launch looks at the type of
each at every call.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from ctypes import c_void_p
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from cuda.bindings import driver
from numpy.typing import NDArray

from fastgd.kernels import cuda_numba_source
from fastgd.kernels.between_code import BetweenCode
from fastgd.kernels.cuda_device import numba_cuda
from fastgd.kernels.cuda_numba_source import PUT
from fastgd.kernels.cuda_source import THREADS
from fastgd.kernels.cuda_sweep import Call
from fastgd.kernels.driver import c_function
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.language import Sweep
from fastgd.kernels.numba_arrays import (
    address,
    checked,
    current_stream,
    set_from_host,
    to_device,
    to_host,
    wait,
    work_on,
    zeros,
)
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

THREADS_PER_PROCESSOR = 16 * THREADS  # more than run at once, so that no block waits long for the last


def sender(size: int) -> tuple[Any, Callable[[bytes], None]]:
    """Give memory of `size` bytes, and what fills it on the current stream; the bytes may go when it returns.

    They travel as arguments of launches, which the driver has copied when a launch returns.
    """
    words = -(-size // 8)
    memory = zeros(max(1, words), np.int64)
    put = _loaded(cuda_numba_source.put_kernel())
    taken = np.zeros((-(-words // PUT), PUT), np.int64)
    view = memoryview(taken.data).cast("B") if size else memoryview(bytearray())
    puts = []
    for k, row in enumerate(taken):
        goal = address(memory) + row.nbytes * k
        puts.append(_launch(put, 1, [goal, min(words - PUT * k, PUT)], row))

    def send(content: bytes) -> None:
        view[:size] = content
        run_all(puts)

    return memory, send


# ---- kernels -----------------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """A kernel, loaded, by its handle, and the threads of its blocks."""

    function: int
    threads: int


def sweep_kernels(sweep: Sweep, dtype: DType, label: str) -> tuple[Kernel, Kernel]:
    """Give a sweep's kernels, loaded: of vectors, and of single elements."""
    vector, scalar = (cuda_numba_source.sweep_kernel(sweep, dtype, label, kind) for kind in ("vector", "scalar"))
    return _loaded(vector), _loaded(scalar)


def add_kernel() -> Kernel:
    """Give the kernel that adds sums, loaded."""
    return _loaded(cuda_numba_source.add_kernel())


def between_kernel(code: BetweenCode, label: str) -> Kernel:
    """Give the kernel of code between sweeps, loaded."""
    return _loaded(cuda_numba_source.between_kernel(code, label))


_LOADED: dict[tuple[Any, ...], Kernel] = {}


def _loaded(kernel: cuda_numba_source.Kernel) -> Kernel:
    number, arch, _ = _device()
    key = kernel.name, kernel.text, kernel.kinds, number
    if key not in _LOADED:
        code = cuda_numba_source.machine_code(kernel, arch).read_bytes()
        module = checked(driver.cuModuleLoadData(code))
        function = checked(driver.cuModuleGetFunction(module, kernel.name.encode()))
        _LOADED[key] = Kernel(int(function), kernel.threads)
    return _LOADED[key]


def _device() -> tuple[int, str, int]:
    """Give the current device: its number, its architecture as machine code is made for it, and how many processors."""
    return _properties(numba_cuda().get_current_device().id)


@cache
def _properties(number: int) -> tuple[int, str, int]:
    device = numba_cuda().get_current_device()
    major, minor = device.compute_capability
    return number, f"{major}{minor}", device.MULTIPROCESSOR_COUNT


# ---- launches ----------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """A call of the driver with all that it takes but the stream, and (`held`, `kept`) what must live as long."""

    function: Any
    before: tuple[Any, ...]
    after: tuple[Any, ...] = ()
    held: Any = None
    kept: Any = None

    def on(self, stream: c_void_p) -> Call:
        """Give the call; nothing of it is Python's, so that no Ctrl-C is raised in its midst."""
        return partial(self.function, *self.before, stream, *self.after)


def launch(kernel: Kernel, work: int, arguments: Sequence[Any]) -> Launch:
    """Give what launches a kernel for so many tiles, parts or blocks; arguments are arrays and whole numbers."""
    _, _, processors = _device()
    blocks = min(work, processors * THREADS_PER_PROCESSOR // kernel.threads)
    numbers = [a if isinstance(a, int) else address(a) for a in arguments]
    return _launch(kernel, blocks, numbers, np.zeros(0, np.int64))._replace(kept=arguments)


def _launch(kernel: Kernel, blocks: int, numbers: Sequence[int], more: NDArray[np.int64]) -> Launch:
    """Give what launches blocks of a kernel, given its first arguments; the others are read at each launch."""
    values = np.array(numbers, np.int64)
    places = np.array([a.ctypes.data + 8 * k for a in (values, more) for k in range(len(a))], np.uint64)
    return Launch(
        _LAUNCH_KERNEL,
        (c_void_p(kernel.function), blocks, 1, 1, kernel.threads, 1, 1, 0),
        (c_void_p(places.ctypes.data), c_void_p()),
        (values, more, places),
    )


_LAUNCH_KERNEL, _LAUNCH_GRAPH = c_function("cuLaunchKernel"), c_function("cuGraphLaunch")


def run_all(launches: Sequence[Any]) -> None:
    """Call launches one behind the other on the current stream; Ctrl-C is raised behind the last and not in between.

    Behind one that fails none is called.

    Raises
    ------
    RuntimeError
        With what the driver says.
    """
    stream = c_void_p(current_stream())
    calls = [a.on(stream) if isinstance(a, Launch) else a for a in launches]
    failure = next(filter(None, map(operator.call, calls)), None)  # what does not fail gives 0 or None
    if failure is not None:
        checked((driver.CUresult(failure),))


def record(before: Callable[[], object] | None, launches: Sequence[Any]) -> tuple[Graph, None]:
    """Record launches in a graph; nothing of it is run.

    Returns
    -------
    graph
        Whose ``launch`` launches it.
    memory
        None: launches keep theirs.

    Raises
    ------
    HyperparameterError
        For a `before`, which would launch on a stream that is not recorded.
    """
    if before is not None:
        raise HyperparameterError("before must be None with backend 'numba-cuda': 'cupy' records what it launches")
    wait()  # what was allocated or sent on this stream must be there
    ours = current_stream()
    stream = checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    try:
        # else an array that is collected meanwhile, whose memory numba-cuda then frees, would spoil the capture
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        checked(driver.cuStreamBeginCapture(stream, mode))
        work_on(int(stream))
        try:
            run_all(launches)
        except BaseException:
            with suppress(RuntimeError):  # it has failed with the capture, and says less
                checked(driver.cuStreamEndCapture(stream))
            raise
        graph = checked(driver.cuStreamEndCapture(stream))
    finally:
        work_on(ours)
        checked(driver.cuStreamDestroy(stream))
    executable = checked(driver.cuGraphInstantiate(graph, 0))
    checked(driver.cuGraphDestroy(graph))
    return Graph(executable), None


class Graph:
    """A recorded graph; it goes with this object."""

    def __init__(self, handle: Any) -> None:
        self.launch = Launch(_LAUNCH_GRAPH, (c_void_p(int(handle)),))
        weakref.finalize(self, driver.cuGraphExecDestroy, handle)
