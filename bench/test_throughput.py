"""Speed of whole steps in the regimes of a report, for developers to compare revisions.

``pytest bench --benchmark-enable --benchmark-autosave`` keeps a run, ``--benchmark-compare`` sets the next one beside
it and ``--benchmark-compare-fail=median:10%`` fails where it is slower; ``-k dram`` and the like choose. Each is
checked against the float64 result before it is timed. Peers, each in a process of its own, are what `fastgd bench`
measures.
"""

from dataclasses import replace
from typing import Any

import pytest

from fastgd.bench import worker
from fastgd.bench.cases import CASES, ULP_LIMIT, data
from fastgd.bench.cold import COLD
from fastgd.bench.measure import ITEMSIZE, Point
from fastgd.bench.peers import Peer
from fastgd.bench.regimes import QUICK, points
from fastgd.kernels.cpu_threads import available_threads
from fastgd.kernels.rules import RULES

MOST = 1 << 22  # elements: AdamW's arrays are then four times what the largest usual cache holds
_ROUNDS = 30  # where a gradient is set before each step


def _points() -> list[Point]:
    """Points of a quick report, the largest cut down so that a run takes a minute, each only once."""
    made = [replace(p, n=min(p.n, MOST), peers=()) for p in points(QUICK, available_threads()) if p.regime != COLD]
    return list({_name(point): point for point in made}.values())


def _name(point: Point) -> str:
    return f"{point.regime} {point.case.name} {point.dtype} {point.n}"


def _open(peer: str, name: str, n: int, dtype: str, threads: int) -> Peer:
    made, reply = worker._open({"peer": peer, "rule": name, "n": n, "dtype": dtype}, threads)
    assert made is not None, reply["skipped"]
    assert peer == "roof" or reply["max_ulp"] < ULP_LIMIT
    return made


def _time(benchmark: Any, peer: Peer, n: int, dtype: str) -> None:
    if not peer.consumes_gradient:
        benchmark(peer.step)
        return
    _, g = data(n, dtype)
    benchmark.pedantic(peer.step, setup=lambda: peer.set_gradient(g), rounds=_ROUNDS)


@pytest.mark.parametrize("peer", ["fastgd-numba", "roof"])
@pytest.mark.parametrize("point", _points(), ids=_name)
def test_regime(benchmark: Any, point: Point, peer: str) -> None:
    benchmark.group = _name(point)
    benchmark.extra_info["bytes"] = point.n * point.case.bytes_per_param(ITEMSIZE[point.dtype])
    made = _open(peer, point.case.name, point.n, point.dtype, point.threads)
    _time(benchmark, made, point.n, point.dtype)


@pytest.mark.parametrize("rule", RULES)
def test_step(benchmark: Any, rule: str) -> None:
    n, dtype = 1 << 12, "float32"
    benchmark.group = "every rule, 4096 elements"
    benchmark.extra_info["bytes"] = n * CASES[rule].bytes_per_param(ITEMSIZE[dtype])
    _time(benchmark, _open("fastgd-numba", rule, n, dtype, available_threads()), n, dtype)
