"""Measure points: rounds interleaved, the roof in the same rounds, losing rows kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fastgd.bench.cases import Case
from fastgd.bench.cold import COLD, first_step
from fastgd.bench.load import Meter
from fastgd.bench.worker import Worker
from fastgd.kernels.errors import HyperparameterError

Row = dict[str, Any]
Progress = Callable[[str, int, int], object]
Answer = dict[str, Any]

ITEMSIZE = {"float32": 4, "float64": 8}
_ARRAYS = 10  # of the parameters' size that a peer may hold at once, scratch included
_CHECKED = 8  # and in float64 while it is checked, where that takes the whole result
_TURN = 0.03  # seconds that one peer is measured before the next takes its turn


@dataclass(frozen=True)
class Point:
    """A case at one size, dtype and number of threads, and who takes part.

    Attributes
    ----------
    case, n, dtype
        What is stepped.
    regime
        Why it is measured: a name in `fastgd.bench.regimes`. In the regime `COLD` processes are started.
    threads
        Most threads of every peer, each in its own process.
    peers
        Names in `fastgd.bench.peers.PEERS`; in the regime `COLD` in `fastgd.bench.cold_step.FIRST_STEPS`.
    """

    case: Case
    n: int
    dtype: str
    regime: str
    threads: int
    peers: tuple[str, ...]


@dataclass
class _Found:
    """What was seen of one peer: how it opened, and the time of a step by the number of the round."""

    opened: Answer = field(default_factory=dict)
    samples: dict[int, float] = field(default_factory=dict)

    def relative_to(self, other: _Found) -> float | None:
        """Give its time as a multiple of another's, in the rounds that both took part in; None without any."""
        both = self.samples.keys() & other.samples.keys()
        return median(self.samples[k] for k in both) / median(other.samples[k] for k in both) if both else None


def measure(
    points: Sequence[Point], rounds: int, progress: Progress | None, meter: Meter, machine: dict[str, Any]
) -> list[Row]:
    """Measure points, best sorted by threads: others' processes are kept from one point to the next.

    Parameters
    ----------
    points, rounds, progress
        As of `fastgd.bench.run.report_of`.
    meter
        Counts what other processes took in all of it.
    machine
        Its ``threading_layer`` is set to what ran.

    Returns
    -------
    list of dict
        Rows in the order of the points and of their peers.
    """
    tick = _Ticker(progress, sum(len(point.peers) for point in points) * rounds)
    rows: list[Row] = []
    for threads, group in groupby(points, key=lambda point: point.threads):
        together = list(group)
        with _workers([p for point in together if point.regime != COLD for p in point.peers], threads) as workers:
            for point in together:
                own = Meter()
                taking = [workers[name] for name in point.peers] if point.regime != COLD else []
                found = _steps(point, taking, rounds, tick, own) if taking else _first_steps(point, rounds, tick, own)
                for seen in found.values():
                    machine["threading_layer"] = seen.opened.get("threading_layer") or machine["threading_layer"]
                meter.include(own)
                rows += _rows(point, found, own.cpus())
    return rows


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is none of the known ones.

    Raises
    ------
    HyperparameterError
        With what was given and what there is.
    """
    for name in given:
        if name not in known:
            raise HyperparameterError(f"{what} must be one of {', '.join(known)}, given {name!r}")


@contextmanager
def _workers(peers: Iterable[str], threads: int) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in dict.fromkeys(peers):
            workers[name] = Worker(name, threads)
            stack.callback(workers[name].stop)
        yield workers


class _Ticker:
    """Counts turns and tells the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, text: str, turns: int = 0) -> None:
        self._done += turns
        if self._progress is not None:
            self._progress(text, self._done, self._total)


def _title(point: Point) -> str:
    return f"{point.case.name} {point.n} {point.dtype} {point.regime}"


def _steps(point: Point, workers: list[Worker], rounds: int, tick: _Ticker, meter: Meter) -> dict[str, _Found]:
    """Time steps; peers that do not fit in memory together come in batches, the roof and fastgd in each."""
    title = _title(point)
    found = {worker.peer: _Found() for worker in workers}
    check = 0 if point.case.periodic else point.n * _CHECKED * ITEMSIZE["float64"]
    for number, batch in enumerate(_batches(workers, point.n * _ARRAYS * ITEMSIZE[point.dtype], check)):
        tick(f"{title}: checking")
        for opening in [[worker] for worker in batch] if check else [batch]:  # one at a time, where that takes memory
            for worker in opening:
                worker.ask(do="open", rule=point.case.name, n=point.n, dtype=point.dtype)
            for worker in opening:
                found[worker.peer].opened = worker.answer()
        with meter.running([worker.pid for worker in batch]):
            for k in range(number * rounds, (number + 1) * rounds):
                for worker in batch:
                    seen = found[worker.peer]
                    tick(f"{title}: {worker.peer}", len(seen.samples) < rounds)
                    if "skipped" in seen.opened:
                        continue
                    worker.ask(do="time", seconds=_TURN)
                    answer = worker.answer()
                    if "skipped" in answer:
                        seen.opened = answer
                    else:
                        seen.samples[k] = answer["seconds"]
        for worker in batch:
            worker.ask(do="close")
        for worker in batch:
            worker.answer()
    return found


def _first_steps(point: Point, rounds: int, tick: _Ticker, meter: Meter) -> dict[str, _Found]:
    """Time first steps of new processes; one of each peer comes before, to fill its caches."""
    found = {name: _Found() for name in point.peers}

    def first(name: str) -> Answer:
        return first_step(name, point.case, point.n, point.dtype, point.threads)

    for name, seen in found.items():
        tick(f"{_title(point)}: filling the caches of {name}")
        seen.opened = first(name)
    with meter.running(()):
        for k in range(rounds):
            for name, seen in found.items():
                tick(f"{_title(point)}: {name}", 1)
                if "skipped" not in seen.opened:
                    seen.opened = first(name)
                    if "skipped" not in seen.opened:
                        seen.samples[k] = seen.opened["seconds"]
    return found


def _rows(point: Point, found: dict[str, _Found], others: float | None) -> list[Row]:
    itemsize = ITEMSIZE[point.dtype]
    needed = point.n * point.case.bytes_per_param(itemsize)
    swept = point.n * itemsize * sum(one.streams for one in point.case.passes())
    right = {name: seen for name, seen in found.items() if "skipped" not in seen.opened}
    own, roof = (right.get(name, _Found()) for name in ("fastgd-numba", "roof"))
    rows: list[Row] = []
    for name, seen in found.items():
        row = {"rule": point.case.name, "n": point.n, "dtype": point.dtype, "regime": point.regime}
        row |= {"threads": point.threads, "peer": name}
        moved = swept if name == "roof" else needed
        if "skipped" in seen.opened:
            row |= dict.fromkeys(("seconds", "iqr", "gbps", "roof_share", "ratio", "max_ulp"))
        else:
            # the machine is not the same in every batch
            limit, ratio = seen.relative_to(roof), seen.relative_to(own)
            row |= _figures(seen, moved)
            row |= {"roof_share": moved / swept / limit if limit else None, "ratio": ratio}
        rows.append(row | {"skipped": seen.opened.get("skipped"), "others": others})
    return rows


def _figures(seen: _Found, moved: int) -> Row:
    samples = [*seen.samples.values()]
    seconds = median(samples)
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (seconds,) * 3
    return {
        "seconds": seconds,
        "iqr": high - low,
        "gbps": moved / seconds / 1e9,
        "max_ulp": seen.opened["max_ulp"],
    }


def _batches(workers: list[Worker], held: int, check: int) -> Iterator[list[Worker]]:
    """Split the workers so that each batch fits in memory, what each holds and one check; roof and fastgd in all."""
    together = max(3, int((0.7 * _free_bytes() - check) / held))
    always = [w for w in workers if w.peer in ("roof", "fastgd-numba")]
    others = [w for w in workers if w not in always]
    if len(workers) <= together:
        yield workers
        return
    size = together - len(always)
    for start in range(0, len(others), size):
        yield always + others[start : start + size]


def _free_bytes() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 8 << 30
