"""The regimes: why each case of a report is measured, and at what sizes, dtypes and threads.

A report takes all of `FULL`; a quick one takes `QUICK`, the same questions at sizes that take a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastgd.bench.cases import CASES, GPT2, RESNET50
from fastgd.bench.cold import COLD
from fastgd.bench.measure import Point, refuse_unknown
from fastgd.bench.peers import PEERS

RULES = ("adamw", "sgd", "gd", "adam", "lion", "adagrad", "rmsprop", "lamb")
"""Rules that other libraries have too."""

_SCALING = ("roof", "fastgd-numba", "numpy-inplace", "torch-fused")
_STARTING = ("fastgd-numba", "numpy-inplace", "torch-fused", "optax")
_BOTH = ("float32", "float64")
_THREADS = "threads-"

_MEANINGS = {
    "small": "one array of few elements: the call is the limit",
    "cache": "one array that the caches hold: their speed is the limit",
    "dram": "one array that no cache holds: the memory is the limit",
    "gpt2": "the 148 tensors of GPT-2, 124 M elements; fastgd has them in one FlatParams",
    "gpt2-1M": "the 148 tensors of GPT-2, each shrunk so that all have 1 M elements",
    "resnet50": "the 161 tensors of ResNet-50, 26 M elements; fastgd has them in one FlatParams",
    "resnet50-1M": "the 161 tensors of ResNet-50, each shrunk so that all have 1 M elements",
    "tail": "clip by the global norm, average and zeroed gradient: all in the step, or in passes of their own",
    "size": "time by number of elements",
    COLD: "from the start of a new process to the end of its first step, imports included, with warm caches",
}


def by_size(n: int) -> str:
    """Say what limits a step of n elements in one array: the call, the cache or the memory."""
    return "small" if n < 1 << 17 else "cache" if n < 1 << 24 else "dram"


def threads_of(regime: str) -> int | None:
    """Tell the number of threads that a regime is about; None where it is about something else."""
    count = regime.removeprefix(_THREADS)
    return int(count) if count != regime and count.isdecimal() else None


def meaning(regime: str) -> str:
    """Explain a regime in one line; the empty string where an older or newer report has another."""
    if count := threads_of(regime):
        return f"every peer on {count} thread{'s' * (count != 1)}; elsewhere on all"
    return _MEANINGS.get(regime, "")


@dataclass(frozen=True)
class Part:
    """Cases by every size and dtype in one regime; `peers` are all that a case has, or those of these."""

    regime: str
    cases: tuple[str, ...]
    sizes: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    peers: tuple[str, ...] | None = None


_K, _M = 1 << 10, 1 << 20

FULL = (
    Part("dram", RULES, (64 * _M,)),
    Part("dram", ("adamw", "sgd"), (64 * _M,), ("float64",)),
    Part("cache", RULES, (_M,), _BOTH),
    Part("small", RULES, (4 * _K,), _BOTH),
    Part("gpt2", ("adamw-gpt2", "lamb-gpt2"), (sum(GPT2),)),
    Part("gpt2-1M", ("adamw-gpt2", "lamb-gpt2"), (_M,)),
    Part("resnet50", ("adamw-resnet50", "sgd-resnet50"), (sum(RESNET50),)),
    Part("tail", ("adamw-tail",), (4 * _K, _M, 64 * _M)),
    Part("tail", ("adamw-tail-gpt2",), (_M, sum(GPT2))),
    Part("size", ("adamw", "sgd"), tuple(1 << k for k in range(6, 27, 2)), peers=_SCALING),
    Part(COLD, ("adamw",), (4 * _K,), peers=_STARTING),
    Part(_THREADS, ("adamw", "sgd"), (4 * _K, _M, 64 * _M)),
)

QUICK = (
    Part("dram", ("adamw",), (16 * _M,), peers=(*_SCALING, "optax", "deepspeed")),
    Part("cache", RULES, (_M,)),
    Part("cache", ("adamw",), (_M,), ("float64",)),
    Part("small", ("adamw", "sgd"), (4 * _K,)),
    Part("gpt2-1M", ("adamw-gpt2",), (_M,), peers=_SCALING),
    Part("resnet50-1M", ("adamw-resnet50",), (_M,), peers=_SCALING),
    Part("tail", ("adamw-tail", "adamw-tail-gpt2"), (_M,)),
    Part("size", ("adamw",), (64, _K, 16 * _K, 256 * _K, 4 * _M), peers=_SCALING),
    Part(COLD, ("adamw",), (4 * _K,), peers=_STARTING[:3]),
    Part(_THREADS, ("adamw",), (_M, 4 * _M), peers=_SCALING),
)


def points(
    parts: Sequence[Part], threads: int, rules: Sequence[str] | None = None, peers: Sequence[str] | None = None
) -> list[Point]:
    """Lay out what a report measures.

    Parameters
    ----------
    parts
        `FULL` or `QUICK`.
    threads
        All that there are. Parts that scale with them are measured at 1, 2, 4 and so on below that.
    rules
        Rules or cases to which it is limited.
    peers
        Foreign peers to which it is limited, and ``"roof"``; fastgd's are always in it.

    Raises
    ------
    HyperparameterError
        For a name that a report has not.
    """
    refuse_unknown("rule of a report", rules or (), dict.fromkeys(x for n in _names(parts) for x in (CASES[n].rule, n)))
    refuse_unknown("peer", peers or (), PEERS)
    return [
        point
        for part in parts
        for regime, count in _counts(part.regime, threads)
        for point in _points(part, regime, count, peers)
        if rules is None or point.case.rule in rules or point.case.name in rules
    ]


def _names(parts: Sequence[Part]) -> list[str]:
    return [name for part in parts for name in part.cases]


def _counts(regime: str, threads: int) -> list[tuple[str, int]]:
    if regime != _THREADS:
        return [(regime, threads)]
    return [(f"{_THREADS}{1 << k}", 1 << k) for k in range((threads - 1).bit_length())]


def _points(part: Part, regime: str, threads: int, peers: Sequence[str] | None) -> Iterator[Point]:
    for name in part.cases:
        own = ("fastgd-numba", "fastgd-numpy") if regime in ("small", "cache") else ("fastgd-numba",)
        having = part.peers if regime == COLD and part.peers else ("roof", *own, *CASES[name].peers)
        taking = tuple(
            peer
            for peer in having
            if peer in own or ((part.peers is None or peer in part.peers) and (peers is None or peer in peers))
        )
        for dtype in part.dtypes:
            for n in part.sizes:
                yield Point(CASES[name], n, dtype, regime, threads, taking)
