"""Whole translation units of CUDA C++: the printed rule, what carries it over memory, and the kernels' entry points.

They include nothing, so that NVRTC needs no folder of headers. The hand-written part is ``transport.cuh``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from fastgd.kernels.language import Sweep
from fastgd.kernels.printers import DType, cxx_text

THREADS = 256
"""Of a block, and lanes of a sum: ``FGD_THREADS``."""

FOLDED = 2048
"""Most numbers that one block adds by the tree: ``FGD_FOLDED``."""

CARRIED = 3584
"""Bytes that a launch takes along: ``FGD_CARRIED``."""

VECTOR = 16
"""Bytes of a vector load, to which the arrays of the kernel ``vector`` must be aligned."""


@cache
def transport() -> str:
    """Text of ``transport.cuh``."""
    return (Path(__file__).parent / "transport.cuh").read_text(encoding="utf-8")


def real(dtype: DType) -> str:
    """C++'s name of a dtype."""
    return "float" if dtype == "float32" else "double"


def entry(label: str, sweep: Sweep, kind: str) -> str:
    """Name of a kernel, as a profiler shows it."""
    return f"fgd_{label}_{sweep.name}_{kind}"


def sweep_source(sweep: Sweep, dtype: DType, label: str = "rule") -> str:
    """Translation unit of a sweep: the kernels ``vector``, of 128-bit accesses, and ``scalar``, for what is left over.

    Both take the addresses of the arrays, (segments, arrays); the rows of scalars; the table of tiles and its length;
    and where block sums go, (blocks, sums).
    """
    t = real(dtype)
    position = {name: k for k, name in enumerate(sweep.arrays)}
    given = [f"a[{position[a]}]" for a in sweep.arrays] + [f"row[{k}]" for k in range(len(sweep.scalars))]
    given += [f"a[{position[a]}]" for a in sweep.writes] + [f"t[{k}]" for k in range(len(sweep.sums))]

    def bits(names: Sequence[str] | Mapping[str, str]) -> str:
        return f"{sum(1 << position[name] for name in names)}u"

    lines = [
        "struct fgd_Rule {",
        f"    typedef {t} T;",
        # no array of C++ has no elements: a rule without scalars or sums has one that nothing uses
        f"    enum {{ ARRAYS = {len(sweep.arrays)}, SCALARS = {max(1, len(sweep.scalars))}, "
        f"SUMS = {max(1, len(sweep.sums))}, SUMMED = {int(bool(sweep.sums))} }};",
        f"    enum : unsigned {{ READ = {bits(sweep.reads)}, WRITTEN = {bits(sweep.writes)} }};",
        "    static __device__ __forceinline__ void apply(T (&a)[ARRAYS], const T (&row)[SCALARS], T (&t)[SUMS]) {",
        f"        fgd_rule({', '.join(given)});",
        "    }",
        "};",
    ]
    for kind, width in (("vector", f"{VECTOR} / (int)sizeof({t})"), ("scalar", "1")):
        lines += [
            'extern "C" __global__ void __launch_bounds__(FGD_THREADS)',
            f"{entry(label, sweep, kind)}({t} *const *arrays, const {t} *rows, const fgd_Tile *table, i64 tiles, "
            "double *block_sums) {",
            f"    fgd_sweep<fgd_Rule, {width}>(arrays, rows, table, tiles, block_sums);",
            "}",
        ]
    return "\n".join([transport(), cxx_text(sweep, "fgd_rule", dtype), *lines]) + "\n"
