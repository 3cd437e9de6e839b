"""Compare the peers: what is asked for becomes points, what is measured of them a report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from fastgd.bench.cases import CASES, ULP_LIMIT, Case
from fastgd.bench.load import Meter, warning
from fastgd.bench.measure import ITEMSIZE, Point, Progress, Row, measure, refuse_unknown
from fastgd.bench.peers import PEERS
from fastgd.bench.regimes import by_size, meaning
from fastgd.kernels.errors import BackendUnavailable, HyperparameterError
from fastgd.state import plain

Report = dict[str, Any]

SCHEMA = 1
SIZES = (1 << 12, 1 << 20, 1 << 26)
BACKENDS = ("numba", "numpy")
_LIBRARIES = (
    *("fastgd", "numpy", "numba", "llvmlite", "tbb"),
    *("torch", "numexpr", "jax", "optax", "deepspeed", "thinc", "scikit-learn"),
)


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
        As of `report_of`.

    Raises
    ------
    HyperparameterError, BackendUnavailable
        For a name or number that cannot be served, before anything is measured.
    """
    names = tuple(CASES) if rules is None else tuple(rules)
    refuse_unknown("rule", names, CASES)
    refuse_unknown("dtype", dtypes, ITEMSIZE)
    refuse_unknown("peer", peers or (), PEERS)
    for backend in backends:
        if backend not in BACKENDS:
            raise BackendUnavailable(f"backend must be one of {', '.join(BACKENDS)}, given {backend!r}")
    least = {f"size of {name}": len(CASES[name].tensors) for name in names}
    for what, number in product(least, sizes):
        if number < least[what]:
            raise HyperparameterError(f"{what} must be at least {least[what]}, given {number}")
    from fastgd.kernels.cpu_threads import available_threads

    count = available_threads(threads)
    points = [
        Point(CASES[rule], n, dtype, by_size(n), count, _taking_part(CASES[rule], backends, peers))
        for rule, dtype, n in product(names, dtypes, sizes)
    ]
    return report_of(points, rounds, progress)


def report_of(points: Sequence[Point], rounds: int, progress: Progress | None = None) -> Report:
    """Measure points and say on what.

    Parameters
    ----------
    points : sequence of Point
        What to measure.
    rounds : int
        Rounds, at least 1, in which the peers take turns.
    progress : callable, optional
        Called with what is done next, the number of turns done and of those to do.

    Returns
    -------
    dict
        ``schema``; ``machine``: what it ran on, and the CPUs that others kept busy meanwhile; ``rounds``; ``warnings``:
        sentences; ``regimes``: what each means; ``cases``: hyperparameters, tail, number of tensors and bytes by name;
        ``ulp_limit``: largest error of a peer that computes the rule; and ``rows``. A row has ``rule n dtype regime
        threads peer``, `rule` being the case's name; ``seconds`` (median of the rounds), ``iqr``, ``gbps`` (bytes that
        the step must move, by the time), ``roof_share``, ``ratio`` (its time by fastgd's) and ``max_ulp``, the largest
        error against float64 in units in the last place; or ``skipped``, why there are no figures. Share and ratio are
        of the rounds that both were in: where not all peers fit in memory together, they come in batches, each with
        the roof and fastgd. ``others`` is the number of CPUs that other processes kept busy.
    """
    if rounds < 1:
        raise HyperparameterError(f"rounds must be at least 1, given {rounds}")
    machine = describe_machine(max((point.threads for point in points), default=1))
    meter = Meter()
    rows = measure(points, rounds, progress, meter, machine)
    machine |= {"load_after": os.getloadavg()[0], "others": meter.cpus()}
    busy = warning(machine["others"], machine["cores"])
    return {
        "schema": SCHEMA,
        "machine": machine,
        "rounds": rounds,
        "warnings": [busy] if busy else [],
        "regimes": {name: meaning(name) for name in dict.fromkeys(row["regime"] for row in rows)},
        "cases": {case.name: _shown(case) for case in {p.case.name: p.case for p in points}.values()},
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
        "cores": os.cpu_count() or 1,
        "cache": _last_cache(),
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


def _taking_part(case: Case, backends: Sequence[str], peers: Sequence[str] | None) -> tuple[str, ...]:
    own = [f"fastgd-{backend}" for backend in backends]
    return tuple(name for name in ("roof", *own, *case.peers) if peers is None or name in peers or name in own)


def _shown(case: Case) -> dict[str, Any]:
    return {
        "hyper": plain(case.build()),
        "tail": dict(case.tail),
        "tensors": len(case.tensors),
        "float32_bytes": case.bytes_per_param(4),
    }


def _last_cache() -> str | None:
    """Size of the largest cache, as the system writes it: what fits there does not wait for the memory."""
    found = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    try:
        return (found[-1] / "size").read_text().strip() if found else None
    except OSError:
        return None


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
