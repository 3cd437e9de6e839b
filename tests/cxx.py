"""The C++ print of a sweep under g++, with the interface of a backend: it keeps the language honest without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from fastgd.kernels.blocks import FIRST, HI, LANES, LO, ROW, SEGMENT, SUM_BLOCK, block_counts, tiles, tree_sum
from fastgd.kernels.printers import cxx_text

GXX = shutil.which("g++")
FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")

HEAD = f"""
#include <cmath>
#define __device__ static
#define __forceinline__ inline __attribute__((always_inline))
static inline float fgd_sqrt(float x) {{ return __builtin_sqrtf(x); }}
static inline double fgd_sqrt(double x) {{ return __builtin_sqrt(x); }}
static inline float fgd_abs(float x) {{ return __builtin_fabsf(x); }}
static inline double fgd_abs(double x) {{ return __builtin_fabs(x); }}
static inline float fgd_copysign(float x, float y) {{ return __builtin_copysignf(x, y); }}
static inline double fgd_copysign(double x, double y) {{ return __builtin_copysign(x, y); }}
template <class T> static T lanes(const T *t, long n) {{
    T a[{LANES}] = {{}};
    for (long i = 0; i < n; i++) a[i % {LANES}] += t[i];
    for (int w = {LANES // 2}; w; w /= 2) for (int j = 0; j < w; j++) a[j] += a[j + w];
    return a[0];
}}
"""


def source(sweep, dtype):
    """One tile: the loop that a CUDA kernel would spread over threads."""
    real = {"float32": "float", "float64": "double"}[dtype.name]
    arrays, written, summed = sweep.arrays, list(sweep.writes), list(sweep.sums)
    arguments = [f"a_{a}[i]" for a in arrays] + [f"row[{k}]" for k in range(len(sweep.scalars))]
    arguments += [f"x_{a}" for a in written] + [f"t_{s}[i - b]" for s in summed]
    lines = [f'extern "C" void tile({real} **arrays, const {real} *row, long lo, long hi, double *sums) {{']
    lines += [f"    {real} *a_{a} = arrays[{k}];" for k, a in enumerate(arrays)]
    lines += [f"    static thread_local {real} t_{s}[{SUM_BLOCK}];" for s in summed]
    lines += [
        f"    for (long b = lo; b < hi; b += {SUM_BLOCK}) {{",
        f"        long e = b + {SUM_BLOCK} < hi ? b + {SUM_BLOCK} : hi;",
        "        for (long i = b; i < e; i++) {",
        *(f"            {real} x_{a};" for a in written),
        f"            rule({', '.join(arguments)});",
        *(f"            a_{a}[i] = x_{a};" for a in written),
        "        }",
        *(f"        *sums++ = lanes(t_{s}, e - b);" for s in summed),
        "    }",
        "}",
    ]
    return HEAD + cxx_text(sweep, "rule", dtype.name) + "\n".join(lines) + "\n"


@cache
def build(text):
    name = hashlib.sha256((text + repr(FLAGS)).encode()).hexdigest()[:16]
    folder = Path(gettempdir()) / "fastgd-tests"
    folder.mkdir(exist_ok=True)
    library = folder / f"{name}.so"
    if not library.exists():
        code = folder / f"{name}.cpp"
        code.write_text(text)
        unfinished = folder / f"{name}.{os.getpid()}.{id(text)}.tmp"
        subprocess.run([GXX, *FLAGS, str(code), "-o", str(unfinished)], check=True)
        unfinished.replace(library)
    return ctypes.CDLL(str(library)).tile


class CxxSweep:
    """See `fastgd.kernels.cpu.CpuSweep`."""

    def __init__(self, sweep, sizes, rows, scalars, label):
        self.sweep, self.sizes, self.scalars = sweep, sizes, scalars
        self.table, self.first = tiles(sizes, rows), block_counts(sizes)
        self.views = {}
        self.tile = build(source(sweep, scalars.dtype))
        self.runs = 0

    def bind(self, name, arrays, where):
        if name in self.sweep.arrays:
            self.views[name] = [
                arrays[a][o : o + n] for a, o, n in zip(where.array, where.offset, self.sizes, strict=True)
            ]

    def prepare(self):
        pass

    def run(self):
        self.blocks = np.zeros((int(self.first[-1]), len(self.sweep.sums)))
        for t in self.table:
            pointers = [self.views[a][t[SEGMENT]].ctypes.data for a in self.sweep.arrays]
            self.tile(
                (ctypes.c_void_p * len(pointers))(*pointers),
                ctypes.c_void_p(self.scalars[t[ROW]].ctypes.data),
                ctypes.c_long(t[LO]),
                ctypes.c_long(t[HI]),
                ctypes.c_void_p(self.blocks[t[FIRST] :].ctypes.data),
            )
        self.runs += 1

    def resume(self):
        self.run()

    def sums(self):
        parts = [self.blocks[a:b] for a, b in zip(self.first[:-1], self.first[1:], strict=True)]
        return np.array([tree_sum(p) for p in parts])

    def total(self):
        return tree_sum(self.sums())
