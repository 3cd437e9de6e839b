"""Translation units of CUDA C++ built by g++ against the shim, and their kernels as functions of Python."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import gettempdir

import numpy as np

GXX = shutil.which("g++")
FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-Wno-unknown-pragmas")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")

SHIM = Path(__file__).parent / "shim.h"
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(([^)]*)\)')


def kernels(text):
    """Names of the kernels in a translation unit, and the types of their parameters."""
    return {
        name: [parameter.rpartition(" ")[0] if "*" not in parameter else parameter.rpartition("*")[0] + "*"
               for parameter in map(str.strip, parameters.split(","))]
        for name, parameters in _KERNEL.findall(text)
    }  # fmt: skip


def has_barriers(text, name):
    """Whether a kernel may have barriers; without, its threads need no stacks of their own."""
    return name != "fgd_put" and not (name.endswith(("_vector", "_scalar")) and "fgd_sums<fgd_Rule" not in text)


def whole(text):
    """The translation unit with the shim in front, and an entry for each kernel behind."""
    lines = [f'#include "{SHIM}"', text]
    for name, parameters in kernels(text).items():
        given = [
            f"*({t} *)a[{k}]" if "fgd_Carried" in t else f"({t})a[{k}]" for k, t in enumerate(parameters)
        ]  # a struct is handed over by value
        lines += [
            f"static void call_{name}(const long long *a) {{ {name}({', '.join(given)}); }}",
            f'extern "C" void run_{name}(const long long *a, int grid, int threads, int reversed) {{',
            f"    shim::launch(call_{name}, a, grid, threads, {int(has_barriers(text, name))}, reversed);",
            "}",
        ]
    return "\n".join(lines) + "\n"


@cache
def build(text, extra=()):
    """Shared library of a translation unit, kept between runs."""
    source = whole(text)
    key = hashlib.sha256((source + SHIM.read_text() + repr((FLAGS, extra))).encode()).hexdigest()[:24]
    folder = Path(gettempdir()) / f"fastgd-tests-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"cuda-{key}.so"
    if not library.exists():
        unfinished = folder / f"cuda-{key}.{os.getpid()}.{id(source)}"
        code = unfinished.with_suffix(".cpp")
        code.write_text(source)
        command = [GXX, *FLAGS, *extra, "-shared", "-fPIC", "-Wl,-Bsymbolic", code, "-o", unfinished]
        without = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # it needs no sanitizer's runtime
        subprocess.run(command, check=True, env=without)
        unfinished.replace(library)
        code.unlink()
    return library


class Library:
    """A built translation unit."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def launch(self, name, grid, threads, arguments, *, backwards=False):
        """Run a kernel; arguments are addresses and whole numbers, or an array whose content is handed over."""
        given = np.array([a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments], np.int64)
        run = getattr(self.library, f"run_{name}")
        run(ctypes.c_void_p(given.ctypes.data), int(grid), int(threads), int(backwards))
