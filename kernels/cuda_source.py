"""Whole translation units of CUDA C++: the printed rule, what carries it over memory, and the kernels' entry points.

They include nothing, so that NVRTC needs no folder of headers. Written by hand are ``transport.cuh``, which carries a
rule over memory, and ``service.cuh``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from fastgd.kernels.between_code import BetweenCode, codes_between
from fastgd.kernels.blocks import LANES
from fastgd.kernels.language import Sweep
from fastgd.kernels.plan import Plan
from fastgd.kernels.printers import DType, cxx_text

THREADS = LANES
"""Of a block of threads, as many as a sum has lanes."""

FOLDED = 2048
"""Most numbers that one block adds by the tree; a power of two."""

CARRIED = 3584
"""Bytes that a launch takes along; all parameters of a kernel must fit into 4096."""

VECTOR = 16
"""Bytes of a vector load, to which the arrays of the kernel ``vector`` must be aligned."""


@cache
def _text(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


def _transport() -> str:
    sizes = {"FGD_THREADS": THREADS, "FGD_FOLDED": FOLDED, "FGD_CARRIED": CARRIED}
    return "".join(f"#define {name} {size}\n" for name, size in sizes.items()) + _text("transport.cuh")


@cache
def service_source() -> str:
    """Give the translation unit of the kernels that are the same for every rule: ``fgd_add`` and ``fgd_put``."""
    return _transport() + _text("service.cuh")


def real(dtype: DType) -> str:
    """C++'s name of a dtype."""
    return "float" if dtype == "float32" else "double"


def entry(label: str, sweep: Sweep, kind: str) -> str:
    """Name of a kernel, as a profiler shows it."""
    return f"fgd_{label}_{sweep.name}_{kind}"


def sweep_source(sweep: Sweep, dtype: DType, label: str = "rule") -> str:
    """Give a sweep's translation unit: the kernels ``vector``, of 128-bit accesses, and ``scalar``, for what is left.

    Both take the addresses of the arrays, (segments, arrays); the rows of scalars; the table of tiles and its length;
    and where block sums go, (blocks, sums).
    """
    t = real(dtype)
    position = {name: k for k, name in enumerate(sweep.arrays)}
    given = [f"a[{position[a]}]" for a in sweep.arrays] + [f"row[{k}]" for k in range(len(sweep.scalars))]
    given += [f"a[{position[a]}]" for a in sweep.writes] + [f"t[{k}]" for k in range(len(sweep.sums))]

    def bits(names: Iterable[str]) -> str:
        return f"{sum(1 << position[name] for name in names)}u"

    lines = [
        "struct fgd_Rule {",
        f"    typedef {t} T;",
        # no array of C++ has no elements: a rule without scalars or sums has one that nothing uses
        f"    enum {{ ARRAYS = {len(sweep.arrays)}, SCALARS = {max(1, len(sweep.scalars))}, "
        f"SUMS = {max(1, len(sweep.sums))} }};",
        f"    enum : unsigned {{ READ = {bits(sweep.reads)}, WRITTEN = {bits(sweep.writes)} }};",
        "    static __device__ __forceinline__ void apply(T (&a)[ARRAYS], const T (&row)[SCALARS], T (&t)[SUMS]) {",
        f"        fgd_rule({', '.join(given)});",
        "    }",
        "};",
    ]
    for kind, width in (("vector", f"{VECTOR} / (int)sizeof({t})"), ("scalar", "1")):
        lines += [
            # two blocks at least: without a bound some kernels spill, to keep the number of registers low
            'extern "C" __global__ void __launch_bounds__(FGD_THREADS, 2)',
            f"{entry(label, sweep, kind)}({t} *const *arrays, const {t} *rows, const fgd_Tile *table, i64 tiles, "
            "double *block_sums) {",
            f"    fgd_sums<fgd_Rule, {width}>(arrays, rows, table, tiles, block_sums);"
            if sweep.sums
            else f"    fgd_sweep<fgd_Rule, {width}>(arrays, rows, table, tiles);",
            "}",
        ]
    return "\n".join([_transport(), cxx_text(sweep, "fgd_rule", dtype), *lines]) + "\n"


def sources(plan: Plan, dtype: DType, label: str) -> dict[str, str]:
    """Give all translation units of a step, in their order, by the names of the rule's functions."""
    between = {name: between_source(code, label) for name, code in codes_between(plan, dtype).items()}
    return {f.name: between.get(f.name) or sweep_source(f, dtype, label) for f in plan.functions}


def between_source(code: BetweenCode, label: str) -> str:
    """Give the translation unit of code between sweeps: one kernel, whose arguments are those of `BetweenCode`."""
    t = real(code.dtype)
    function = code.function
    results = [f"_r_{x}" for x in function.writes]
    cells = f", {t} *const *cells, i64 count, double *const *wide_cells, i64 wide_count" if code.spread else ""
    lines = [
        'extern "C" __global__ void __launch_bounds__(FGD_THREADS)',
        f"{entry(label, function, 'scalars')}(const double *sums, const double *sizes, double *states, double *given, "
        f"const i64 *group_of, {t} *rows, i64 n{cells}) {{",
        *(f"    double _kept_{x} = 0;" for x in code.kept_once),
        "    for (i64 r = blockIdx.x * FGD_THREADS + threadIdx.x; r < n; r += gridDim.x * FGD_THREADS) {",
        f"        const i64 h = group_of[r] * {len(code.given)};",
        *(f"        double {x};" for x in results),
        f"        fgd_function({', '.join(code.arguments + results)});",
        *(f"        {place} = {result};" for place, result in code.results),
        *(f"        rows[r * {len(code.row)} + {k}] = ({t}){value};" for k, value in enumerate(code.row_values)),
        *(f"        if (r == 0) _kept_{x} = _r_{x};" for x in code.kept_once),
        "    }",
    ]
    if not code.per_segment:
        lines += ["    __syncthreads();"]
        lines += [f"    if (threadIdx.x == 0) {code.taken(x)} = _kept_{x};" for x in code.kept_once]
    if code.spread:
        value = code.taken(code.spread)
        lines += [
            "    __syncthreads();",
            f"    for (i64 j = threadIdx.x; j < count; j += FGD_THREADS) *cells[j] = ({t}){value};",
            f"    for (i64 j = threadIdx.x; j < wide_count; j += FGD_THREADS) *wide_cells[j] = {value};",
        ]
    lines += ["}"]
    return "\n".join([_transport(), cxx_text(function, "fgd_function", "float64"), *lines]) + "\n"
