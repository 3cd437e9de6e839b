"""Compare the peers: rounds interleaved, the roof measured in the same run, losing rows kept."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fastgd.bench.cases import CASES, ULP_LIMIT, Case
from fastgd.bench.peers import PEERS
from fastgd.bench.worker import Worker
from fastgd.kernels.errors import BackendUnavailable, HyperparameterError
from fastgd.state import plain

Row = dict[str, Any]
Report = dict[str, Any]
Progress = Callable[[str, int, int], object]

SCHEMA = 1
SIZES = (1 << 12, 1 << 20, 1 << 26)
BACKENDS = ("numba", "numpy")
_ITEMSIZE = {"float32": 4, "float64": 8}
_ARRAYS = 10  # of the parameters' size that a peer may hold at once, scratch included
_TURN = 0.03  # seconds that one peer is measured before the next takes its turn
_LIBRARIES = ("fastgd", "numpy", "numba", "llvmlite", "torch", "numexpr", "jax", "optax", "deepspeed", "thinc", "tbb")


def run(
    rules: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] = BACKENDS,
    threads: int | None = None,
    peers: Sequence[str] | None = None,
    *,
    rounds: int = 9,
    progress: Progress | None = None,
) -> Report:
    """Measure whole steps of rules on every peer that has them.

    Parameters
    ----------
    rules : sequence of str, optional
        Names in `fastgd.bench.cases.CASES`: rules in lower case, and variants such as ``adamw-tail``; by default all.
    sizes : sequence of int
        Elements, each at least 1, and at least as many as a variant has tensors.
    dtypes : sequence of {"float32", "float64"}
        Of parameters, gradient and state.
    backends : sequence of {"numba", "numpy"}
        fastgd's own that take part.
    threads : int, optional
        For every peer, each in its own process; by default what fastgd takes by itself.
    peers : sequence of str, optional
        Foreign peers and ``"roof"``; by default all that have the rule. One that has not the rule gets no row.
    rounds : int
        Rounds, at least 1, in which the peers take turns.
    progress : callable, optional
        Called with what is done next, the number of turns done and of those to do.

    Returns
    -------
    dict
        ``schema``, ``machine`` (what it ran on), ``cases`` (hyperparameters, tail, number of tensors and bytes by
        name) and ``rows``. A row has ``rule n dtype regime peer``, `rule` being the name; ``seconds`` (median of the
        rounds), ``iqr``, ``gbps`` (bytes that the step must move, by the time), ``roof_share`` and ``max_ulp``, the
        largest error against float64 in units in the last place; or ``skipped``, why there are no figures.

    Raises
    ------
    HyperparameterError, BackendUnavailable
        For a name or number that cannot be served, before anything is measured.
    """
    names = tuple(CASES) if rules is None else tuple(rules)
    _check("rule", names, CASES)
    _check("dtype", dtypes, _ITEMSIZE)
    _check("peer", peers or (), PEERS)
    for backend in backends:
        if backend not in BACKENDS:
            raise BackendUnavailable(f"backend must be one of {', '.join(BACKENDS)}, given {backend!r}")
    least = {f"size of {name}": len(CASES[name].tensors) for name in names}
    for what, number in [*product(least, sizes), ("rounds", rounds)]:
        if number < least.get(what, 1):
            raise HyperparameterError(f"{what} must be at least {least.get(what, 1)}, given {number}")
    from fastgd.kernels.cpu_threads import available_threads

    count = available_threads(threads)
    machine = describe_machine(count)
    plans = [
        (CASES[rule], n, dtype, _taking_part(CASES[rule], backends, peers))
        for rule, dtype, n in product(names, dtypes, sizes)
    ]
    tick = _Ticker(progress, sum(len(chosen) for *_, chosen in plans) * rounds)
    rows: list[Row] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in dict.fromkeys(name for *_, chosen in plans for name in chosen):
            workers[name] = Worker(name, count)
            stack.callback(workers[name].stop)
        for case, n, dtype, chosen in plans:
            taking = [workers[name] for name in chosen]
            rows += _measure(case, n, dtype, taking, rounds, tick, machine)
    machine["load_after"] = os.getloadavg()[0]
    return {
        "schema": SCHEMA,
        "machine": machine,
        "cases": {case.name: _shown(case) for case, *_ in plans},
        "ulp_limit": ULP_LIMIT,
        "rows": rows,
    }


def throughput(rule: str, sizes: Sequence[int], rounds: int, progress: Progress | None = None) -> list[Row]:
    """Measure fastgd against both NumPy baselines, briefly: rows as of `run`, float32.

    Parameters
    ----------
    rule : str
        Lower-case name in the registry.
    sizes : sequence of int
        Elements.
    rounds, progress
        As of `run`.

    Returns
    -------
    list of dict
        Rows of the peers ``fastgd-numba``, ``numpy-textbook`` and ``numpy-inplace``, with the roof's.
    """
    peers = ("roof", "numpy-textbook", "numpy-inplace")
    rows: list[Row] = run((rule,), sizes, backends=("numba",), peers=peers, rounds=rounds, progress=progress)["rows"]
    return rows


def regime(n: int) -> str:
    """Say what limits a step of n elements: the call, the cache or the memory."""
    return "small" if n < 1 << 17 else "cache" if n < 1 << 24 else "dram"


def describe_machine(threads: int) -> dict[str, Any]:
    """Say on what, with what and when it is measured."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": threads,
        "threading_layer": None,
        "simd": next((f for f in ("avx512f", "avx2", "avx", "sse4_2", "sve", "asimd") if f in flags), "unknown"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
        "git": _revision(),
        "load": os.getloadavg()[0],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise HyperparameterError(f"{what} must be one of {', '.join(known)}, given {name!r}")


def _taking_part(case: Case, backends: Sequence[str], peers: Sequence[str] | None) -> list[str]:
    own = [f"fastgd-{backend}" for backend in backends]
    return [name for name in ("roof", *own, *case.peers) if peers is None or name in peers or name in own]


def _shown(case: Case) -> dict[str, Any]:
    return {
        "hyper": plain(case.build()),
        "tail": dict(case.tail),
        "tensors": len(case.tensors),
        "float32_bytes": case.bytes_per_param(4),
    }


class _Ticker:
    """Counts turns and tells the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, text: str, turns: int = 0) -> None:
        self._done += turns
        if self._progress is not None:
            self._progress(text, self._done, self._total)


def _measure(
    case: Case, n: int, dtype: str, workers: list[Worker], rounds: int, tick: _Ticker, machine: dict[str, Any]
) -> list[Row]:
    """Measure one case at one size; peers that do not fit in memory together come in turns, the roof in each."""
    title = f"{case.name} {n} {dtype}"
    samples: dict[str, list[float]] = {w.peer: [] for w in workers}
    opened: dict[str, dict[str, Any]] = {}
    for batch in _batches(workers, n * _ITEMSIZE[dtype]):
        tick(f"{title}: checking")
        for worker in batch:
            worker.ask(do="open", rule=case.name, n=n, dtype=dtype)
        for worker in batch:
            opened[worker.peer] = worker.answer()
            machine["threading_layer"] = opened[worker.peer].get("threading_layer") or machine["threading_layer"]
        for _ in range(rounds):
            for worker in batch:
                tick(f"{title}: {worker.peer}", len(samples[worker.peer]) < rounds)
                if "skipped" in opened[worker.peer]:
                    continue
                worker.ask(do="time", seconds=_TURN)
                answer = worker.answer()
                if "skipped" in answer:
                    opened[worker.peer] = answer
                else:
                    samples[worker.peer].append(answer["seconds"])
        for worker in batch:
            worker.ask(do="close")
        for worker in batch:
            worker.answer()
    itemsize = _ITEMSIZE[dtype]
    changed, read = case.streams()
    rows: list[Row] = []
    for name, times in samples.items():
        # the roof passes once over the arrays, a step that sums before it moves does so more often
        per_param = itemsize * (2 * changed + read) if name == "roof" else case.bytes_per_param(itemsize)
        row: Row = {"rule": case.name, "n": n, "dtype": dtype, "regime": regime(n), "peer": name}
        rows.append(row | _figures(times, n * per_param, opened[name]))
    roof = next((row["gbps"] for row in rows if row["peer"] == "roof"), None)
    for row in rows:
        row["roof_share"] = row["gbps"] / roof if row["gbps"] and roof else None
    return rows


def _figures(samples: list[float], moved: int, opened: dict[str, Any]) -> Row:
    if "skipped" in opened:
        return dict.fromkeys(("seconds", "iqr", "gbps", "roof_share", "max_ulp")) | {"skipped": opened["skipped"]}
    seconds = median(samples)
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (seconds,) * 3
    return {
        "seconds": seconds,
        "iqr": high - low,
        "gbps": moved / seconds / 1e9,
        "max_ulp": opened["max_ulp"],
        "skipped": None,
    }


def _batches(workers: list[Worker], array_bytes: int) -> Iterator[list[Worker]]:
    """Split the workers so that each batch fits in memory; roof and fastgd's first are in all of them."""
    together = max(3, int(0.7 * _free_bytes() / (_ARRAYS * array_bytes)))
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


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Commit of the checkout, with + for changes in it; None where fastgd is installed without one."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        commit, dirty = (
            subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty else "")
