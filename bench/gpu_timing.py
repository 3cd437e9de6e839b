"""How long steps take on a GPU, next to a copy of memory and to whoever else has the rule.

Times are those of CUDA events around several steps, medians of rounds in which all take turns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import cupy
import numpy as np

from fastgd.bench.cases import GRADIENT_FACTORS, PERIOD, Case, data, max_ulp, reference
from fastgd.bench.gpu_bits import GpuBackend
from fastgd.bench.worker import Worker
from fastgd.flat import FlatParams
from fastgd.kernels import cuda_cupy
from fastgd.kernels.cubin import cubin
from fastgd.kernels.plan import plan
from fastgd.optimizer import Optimizer

Row = dict[str, Any]
Work = Callable[[], object]

_THREADS = 256
_WARM_UP = 3
_MOST_CALLS = 1000
_LAUNCHES = 100  # steps that fit into the queue of a stream, so that no launch waits


# ---- clocks ------------------------------------------------------------------------------------------------------


def device_seconds(work: Work, calls: int) -> float:
    """Time of one of several calls in a row, by the GPU's clock."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    seconds: float = cupy.cuda.get_elapsed_time(start, end) / 1e3 / calls
    return seconds


def turn(work: Work, seconds: float) -> float:
    """Time of one call, of as many as take about so long, after a few that are not counted."""
    once = min(device_seconds(work, 1) for _ in range(_WARM_UP))
    return device_seconds(work, max(1, min(_MOST_CALLS, int(seconds / max(once, 1e-9)))))


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take the samples of each, in rounds."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, sample in works.items():
            samples[name].append(sample())
    return samples


def spread(samples: Sequence[float]) -> float:
    """Interquartile range."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (samples[0],) * 3
    return high - low


# ---- roofs -------------------------------------------------------------------------------------------------------


def periodic(n: int, values: Any) -> Any:
    """Array on the device that repeats the values of one period."""
    made = cupy.empty(n, np.float32)
    one = cupy.asarray(values)
    whole = n - n % values.size
    if whole:
        made[:whole].reshape(-1, values.size)[...] = one
    made[whole:] = one[: n - whole]
    return made


class Copies:
    """A copy from array to array of the device, at every size: the bandwidth that all is compared with."""

    def __init__(self, n: int) -> None:
        p, g = data(min(n, PERIOD), "float32")
        self.n = n
        self._from, self._to = periodic(n, p), periodic(n, g)

    def __call__(self) -> None:
        """Copy."""
        cupy.copyto(self._to, self._from)


def roof_source(changed: int, read: int) -> str:
    """CUDA C++ of a sweep that reads and writes the `changed` arrays in place, and reads the others."""
    names = [f"a{k}" for k in range(changed + read)]
    others = names[changed:] or names[-1:]
    lines = [
        "struct alignas(16) fgd_Four { float e[4]; };",
        f'extern "C" __global__ void __launch_bounds__({_THREADS})',
        f"fgd_roof({', '.join(f'fgd_Four *{name}' for name in names)}, long long n, long long zero) {{",
        f"    const long long i = blockIdx.x * {_THREADS}ll + threadIdx.x;",
        "    if (i >= n) return;",
        "    const float s = (float)zero;",  # values stay as they are, which the compiler does not know
        *(f"    fgd_Four x{name} = {name}[i];" for name in names),
        "    for (int k = 0; k < 4; k++) {",
        f"        const float x = s * ({' + '.join(f'x{name}.e[k]' for name in others)});",
        *(f"        x{name}.e[k] += x;" for name in names[:changed]),
        "    }",
        *(f"    {name}[i] = x{name};" for name in names[:changed]),
        "}",
    ]
    return "\n".join(lines) + "\n"


def roof(changed: Sequence[Any], read: Sequence[Any]) -> Work:
    """Make the least that a step could do: the same arrays, read and written once, with next to no arithmetic."""
    arch = cupy.cuda.Device().compute_capability
    module = cupy.RawModule(path=str(cubin(roof_source(len(changed), len(read)), arch, "roof")))
    fours = changed[0].size // 4
    arguments = (*changed, *read, fours, 0)
    return partial(module.get_function("fgd_roof"), (-(-fours // _THREADS),), (_THREADS,), arguments)


# ---- steps -------------------------------------------------------------------------------------------------------


class Subject:
    """An optimizer of a case with n elements of float32, ready to step.

    Its arrays are CuPy's with either launcher, and so is the stream on which it is timed.

    Attributes
    ----------
    optimizer
    error
        Largest error against float64 after a few steps, in units in the last place; None where it is not known: for
        rules that look at more than an element.
    """

    def __init__(self, case: Case, n: int, backend: GpuBackend = "cupy") -> None:
        self._case = case
        self._values = data(min(n, PERIOD), "float32")
        p, g = (periodic(n, values) if len(case.tensors) == 1 else None for values in self._values)
        params: Any = p
        self._gradient: Any = g
        self._flat: tuple[Any, Any] = (p, g)
        if len(case.tensors) > 1:
            params = self._packed(n)
            self._gradient, self._flat = None, (params.flat, params.grad.flat)
        self.optimizer = Optimizer(params, case.build(), backend=backend, **case.tail)
        self.error = self._error(n)

    def _packed(self, n: int) -> FlatParams:
        sizes = [a.size for a in self._case.cut(np.broadcast_to(np.float32(0), n))]
        params = FlatParams({str(k): size for k, size in enumerate(sizes)}, np.float32, backend="cupy")
        for flat, values in zip((params.flat, params.grad.flat), self._values, strict=True):
            flat[...] = periodic(flat.size, values)
        return params

    def _error(self, n: int) -> float | None:
        case = self._case
        if not case.periodic or len(case.tensors) > 1:
            return None
        for factor in GRADIENT_FACTORS:
            self._flat[1][...] = periodic(n, self._values[1])
            self.optimizer.step(self._gradient, scale=factor)
        self._flat[1][...] = periodic(n, self._values[1])
        return max_ulp(self._flat[0][:PERIOD].get(), reference(case, "float32", n)[0])

    def step(self) -> None:
        """Take a step; nothing waits for it."""
        self.optimizer.step(self._gradient)

    def streams(self) -> tuple[list[Any], list[Any]]:
        """Give the arrays that a step changes, and those that it only reads."""
        changed = [self._flat[0], *self.optimizer.state.values()]
        if self.optimizer.ema is not None:
            average = self.optimizer.ema
            changed.append(getattr(average, "flat", average))
        read = [self._flat[1]]
        return (changed + read, []) if self._case.tail.get("zero_grad") else (changed, read)


def arrays(case: Case) -> int:
    """Count the arrays of the parameters' size that measuring a case takes, those of the copy among them."""
    return 2 + 2 + len(plan(case.build()).states) + ("ema_decay" in case.tail)


def measure(
    case: Case,
    n: int,
    copies: Copies,
    peers: Sequence[Worker],
    rounds: int,
    seconds: float,
    backends: Sequence[GpuBackend] = ("cupy",),
) -> list[Row]:
    """Measure one case at one size, copy and roof beside it, and the peers in their processes."""
    subjects = {f"fastgd-{backend}": Subject(case, n, backend) for backend in backends}
    subject = subjects["fastgd-cupy"]
    works = {
        "copy": partial(turn, copies, seconds),
        "roof": partial(turn, roof(*subject.streams()), seconds),
    } | {name: partial(turn, own.step, seconds) for name, own in subjects.items()}
    opened = {worker.peer: _asked(worker, do="open", case=case.name, n=n) for worker in peers}
    for worker in peers:
        if "skipped" not in opened[worker.peer]:
            works[worker.peer] = partial(_answered_seconds, worker, seconds, opened[worker.peer])
    samples = in_turns(works, rounds)
    for worker in peers:
        _asked(worker, do="close")
    changed, read = map(len, subject.streams())
    moved = {"copy": 8 * copies.n, "roof": 4 * n * (2 * changed + read)}
    rows = []
    for name in ("copy", "roof", *subjects, *opened):
        row: Row = {"case": case.name, "n": n, "peer": name, "skipped": None}
        taken = [s for s in samples.get(name, []) if s == s]
        if not taken:
            row |= dict.fromkeys(("seconds", "iqr", "gbps", "max_ulp")) | {"skipped": opened[name]["skipped"]}
        else:
            at = median(taken)
            per_step = moved.get(name, n * subject.optimizer.bytes_per_param)
            error = subjects[name].error if name in subjects else opened.get(name, {}).get("max_ulp")
            row |= {"seconds": at, "iqr": spread(taken), "gbps": per_step / at / 1e9, "max_ulp": error}
        rows.append(row)
    return related(rows)


def related(rows: list[Row]) -> list[Row]:
    """Put each row in relation to the copy's and the roof's bandwidth and to the time of torch's fused optimizer."""
    by_peer = {row["peer"]: row for row in rows}
    for row in rows:
        for share, of in (("copy_share", "copy"), ("roof_share", "roof")):
            row[share] = row["gbps"] / by_peer[of]["gbps"] if row["gbps"] else None
        fused = by_peer.get("torch-fused", {}).get("seconds")
        is_step = row["peer"] not in ("copy", "roof")
        row["fused_ratio"] = row["seconds"] / fused if fused and row["seconds"] and is_step else None
    return rows


def _asked(worker: Worker, **request: Any) -> dict[str, Any]:
    worker.ask(**request)
    return worker.answer()


def _answered_seconds(worker: Worker, seconds: float, opened: dict[str, Any]) -> float:
    answer = _asked(worker, do="time", seconds=seconds)
    opened |= answer
    taken: float = answer.get("seconds", float("nan"))
    return taken


# ---- small steps -------------------------------------------------------------------------------------------------


def launch_cost(
    case: Case, n: int, rounds: int, busy: Work, backend: GpuBackend = "cupy"
) -> dict[str, dict[str, float]]:
    """Time of the host and of the GPU for a small step, and for the replay of a captured one.

    Parameters
    ----------
    case, n
        What steps.
    rounds
        Of which the medians are taken.
    busy
        Keeps the GPU busy while the steps are launched, so that what it then takes has no gaps of the host's.
    backend
        What launches them.
    """
    subject = Subject(case, n, backend)
    captured = subject.optimizer.capture(subject._gradient)
    works: dict[str, Work] = {"step": subject.step, "replay": captured.replay}
    for work in works.values():
        work()
    cost = {}
    for name, work in works.items():
        samples = [_small(work, busy) for _ in range(rounds)]
        host, device = (median(column) for column in zip(*samples, strict=True))
        cost[name] = {"host": host, "device": device}
    return cost


def _small(work: Work, busy: Work) -> tuple[float, float]:
    cupy.cuda.get_current_stream().synchronize()
    busy()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    before = perf_counter()
    for _ in range(_LAUNCHES):
        work()
    host = (perf_counter() - before) / _LAUNCHES
    end.record()
    end.synchronize()
    return host, cupy.cuda.get_elapsed_time(start, end) / 1e3 / _LAUNCHES


def busy(copies: Copies, seconds: float = 0.02) -> Work:
    """Make work of about so long: copies."""
    once = min(device_seconds(copies, 1) for _ in range(_WARM_UP))
    count = max(1, min(_LAUNCHES, int(seconds / max(once, 1e-9))))

    def work() -> None:
        for _ in range(count):
            copies()

    return work


# ---- constants ---------------------------------------------------------------------------------------------------


@contextmanager
def _blocks_per_processor(count: int) -> Iterator[None]:
    before = cuda_cupy.BLOCKS_PER_PROCESSOR
    cuda_cupy.BLOCKS_PER_PROCESSOR = count
    try:
        yield
    finally:
        cuda_cupy.BLOCKS_PER_PROCESSOR = before


def grids(case: Case, n: int, counts: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """Measure values of `fastgd.kernels.cuda_cupy.BLOCKS_PER_PROCESSOR`."""
    subjects = {}
    for count in counts:
        with _blocks_per_processor(count):
            subjects[str(count)] = Subject(case, n)
            subjects[str(count)].step()  # lays out the launches
    samples = in_turns({name: partial(turn, subject.step, seconds) for name, subject in subjects.items()}, rounds)
    moved = n * subjects[str(counts[0])].optimizer.bytes_per_param
    return [
        {
            "blocks": int(name),
            "seconds": median(taken),
            "iqr": spread(taken),
            "gbps": moved / median(taken) / 1e9,
            "is_default": int(name) == cuda_cupy.BLOCKS_PER_PROCESSOR,
        }
        for name, taken in samples.items()
    ]


@dataclass(frozen=True)
class Memory:
    """Bytes of the device: free, once what is pooled is given back, and in all."""

    free: int
    total: int


def memory() -> Memory:
    """Look at the device's memory."""
    gc.collect()  # an optimizer is in a circle with what runs its steps
    cupy.get_default_memory_pool().free_all_blocks()
    return Memory(*cupy.cuda.Device().mem_info)
