"""Honest benchmarks: every peer in its own process, checked before it is timed, next to the roof of this machine."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "throughput":
        raise AttributeError(f"module 'fastgd.bench' has no attribute {name!r}")
    from fastgd.bench.run import throughput

    return throughput
