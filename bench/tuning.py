"""Where the constants of the CPU backend come from, and what the kernels of a tail cost to compile.

``python -m fastgd.bench.tuning`` measures on this machine and prints the tables of docs/performance.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from fastgd.bench.cases import CASES, data
from fastgd.kernels import blocks, cpu
from fastgd.kernels.cpu_threads import available_threads, layer
from fastgd.optimizer import Optimizer

ROUNDS = 9
_TURN = 0.01  # seconds that one setting is measured before the next takes its turn

Setting = dict[str, int]  # crossover, tile, chunks


@contextmanager
def constants(setting: Setting) -> Iterator[None]:
    """Have sweeps built with other constants."""
    before = cpu.CROSSOVER, blocks.TILE, cpu.CHUNKS_PER_THREAD
    cpu.CROSSOVER = setting.get("crossover", before[0])
    blocks.TILE = setting.get("tile", before[1])
    cpu.CHUNKS_PER_THREAD = setting.get("chunks", before[2])
    try:
        yield
    finally:
        cpu.CROSSOVER, blocks.TILE, cpu.CHUNKS_PER_THREAD = before


def sweep(rule: str, n: int, dtype: str, setting: Setting) -> Callable[[], None]:
    """Make the sweep of a rule over one array, ready to run."""
    p, g = data(n, dtype)
    with constants(setting):
        optimizer = Optimizer(p, CASES[rule].build(), backend="numba")
        optimizer.step(g)
    chosen = optimizer._layout.program.launches[0].sweeps[0]

    def run(keep: Any = (p, g, optimizer)) -> None:
        chosen.run()

    return run


def compare(runs: Sequence[Callable[[], None]], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each, medians of rounds in which they take turns."""
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, found in zip(runs, samples, strict=True):
            start = time.perf_counter()
            run()
            once = time.perf_counter() - start
            calls = max(1, int(_TURN / max(once, 1e-7)))
            start = time.perf_counter()
            for _ in range(calls):
                run()
            found.append((time.perf_counter() - start) / calls)
    return [median(s) for s in samples]


def crossover(rule: str, dtype: str, sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """Measure sizes: elements, seconds on one thread, seconds on all."""
    never, always = {"crossover": 1 << 62}, {"crossover": 0}
    rows = []
    for n in sizes:
        one, all_ = compare([sweep(rule, n, dtype, s) for s in (never, always)])
        rows.append((n, one, all_))
    return rows


def cuts(rule: str, n: int, tiles: Sequence[int], chunks: Sequence[int], rounds: int = ROUNDS) -> list[list[float]]:
    """Measure tile sizes, one row each, by chunks for each thread: seconds."""
    settings = [{"tile": t, "chunks": c} for t, c in product(tiles, chunks)]
    seconds = compare([sweep(rule, n, "float32", s) for s in settings], rounds)
    return [seconds[k : k + len(chunks)] for k in range(0, len(seconds), len(chunks))]


TAILS: dict[str, dict[str, Any]] = {
    "none": {},
    "max_norm": dict(max_norm=1.0),
    "max_value": dict(max_value=1.0),
    "ema_decay": dict(ema_decay=0.99),
    "zero_grad": dict(zero_grad=True),
    "max_norm, ema_decay, zero_grad": dict(max_norm=1.0, ema_decay=0.99, zero_grad=True),
    "lookahead": dict(lookahead=(1, 0.5)),
}


def compilation(rule: str, tail: dict[str, Any]) -> tuple[int, float, float]:
    """Count the kernels that a first step compiles: their number, seconds without the cache, and from the cache."""
    seconds = []
    with TemporaryDirectory() as folder:
        for cache in ("0", folder, folder):  # without; filling it; from it
            p, g = data(64, "float32")
            optimizer = Optimizer(p, CASES[rule].build(), backend="numba", **tail)
            cpu._KERNELS.clear()
            with patch.dict(os.environ, {"FASTGD_CACHE": cache}):
                start = time.perf_counter()
                optimizer.step(g)
                seconds.append(time.perf_counter() - start)
    return len(cpu._KERNELS), seconds[0], seconds[2]


def main() -> None:
    """Measure and print."""
    print(f"{available_threads()} threads, {layer()}\n")
    compilation("gd", {})  # the compiler's own start
    print(
        "### Compiling a tail: adamw, float32\n\n| tail | kernels | compiled | from the cache |\n|---|---:|---:|---:|"
    )
    for name, tail in TAILS.items():
        kernels, cold, warm = compilation("adamw", tail)
        print(f"| {name} | {kernels} | {cold * 1e3:.0f} ms | {warm * 1e3:.1f} ms |")
    print(flush=True)
    sizes = [1 << k for k in range(12, 21)]
    for rule, dtype in product(("sgd", "adamw"), ("float32", "float64")):
        print(f"### One thread or all: {rule}, {dtype}\n\n| elements | one | all | ratio |\n|---:|---:|---:|---:|")
        for n, one, all_ in crossover(rule, dtype, sizes):
            print(f"| {n} | {one * 1e6:.1f} µs | {all_ * 1e6:.1f} µs | {one / all_:.2f} |")
        print()
    tiles, chunks = (4096, 8192, 16384, 32768, 65536), (1, 2, 4, 8, 16)
    for rule, n in product(("sgd", "adamw"), (1 << 20, 1 << 26)):
        print(f"### Tiles and chunks: {rule}, float32, {n} elements, µs\n")
        print("| tile | " + " | ".join(f"{c} a thread" for c in chunks) + " |\n|---:|" + "---:|" * len(chunks))
        if n < 1 << 24:
            rows = cuts(rule, n, tiles, chunks)
        else:  # these fill the memory: one at a time
            rows = [cuts(rule, n, (t,), (c,), 3)[0] for t in tiles for c in chunks]
            rows = [[x for (x,) in rows[k : k + len(chunks)]] for k in range(0, len(rows), len(chunks))]
        for t, row in zip(tiles, rows, strict=True):
            print(f"| {t} | " + " | ".join(f"{s * 1e6:.0f}" for s in row) + " |")
        print(flush=True)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
