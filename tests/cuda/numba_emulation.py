"""Kernels of numba-cuda compiled by Numba for the CPU: the same functions, which see threads of the shim for a GPU.

A barrier switches between the threads of a block, as it does for the CUDA C++ that g++ builds; see shim.h.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType

import gxx
import numpy as np
from llvmlite import binding
from numba import carray, njit, types
from numba.extending import intrinsic

from fastgd.kernels import cuda_numba_source
from fastgd.kernels.cpu import FLAGS, _pointer
from fastgd.kernels.cpu_cache import KernelFile, machine

SHARED = 64 << 10  # bytes that a block's threads share

CODE = f"""
typedef int (*Function)(void **, void **, const long long *);
static Function function;
static void call(const long long *a) {{
    void *nothing, *error = nullptr;
    if (function(&nothing, &error, a)) abort();
}}
alignas(16) static char shared[{SHARED}];
extern "C" {{
long long fgd_thread() {{ return threadIdx.x; }}
long long fgd_block() {{ return blockIdx.x; }}
long long fgd_blocks() {{ return gridDim.x; }}
long long fgd_shared() {{ return (long long)shared; }}
void fgd_barrier() {{ __syncthreads(); }}
void run(Function f, const long long *a, int grid, int threads, int barriers, int reversed) {{
    function = f;
    shim::launch(call, a, grid, threads, barriers, reversed);
}}
}}
"""


@cache
def shim():
    """The shim as a library, whose functions Numba's kernels find by name."""
    library = ctypes.CDLL(str(gxx.build(CODE)))
    for name in ("fgd_thread", "fgd_block", "fgd_blocks", "fgd_shared", "fgd_barrier"):
        binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    return library


def _operation(arity, build):
    """A function of numbers of one type, by what builds its instruction; no dispatcher, which Numba would inline."""

    @intrinsic
    def one(context, x):
        return x(x), lambda context, builder, signature, given: build(builder, *given)

    @intrinsic
    def two(context, x, y):
        return x(x, y), lambda context, builder, signature, given: build(builder, *given)

    return one if arity == 1 else two


def _of_llvm(name):
    def build(builder, *given):
        function = builder.module.declare_intrinsic(f"llvm.{name}", [given[0].type])
        return builder.call(function, given)

    return build


def library():
    """Stand-in for numba.cuda.libdevice: what rounds by name is the plain operation, which Numba never contracts."""
    module = ModuleType("libdevice")
    for letter, suffix in (("f", "f"), ("d", "")):
        for name, instruction in (("add", "fadd"), ("mul", "fmul"), ("div", "fdiv")):
            build = methodcaller_of(instruction)
            setattr(module, f"{letter}{name}_rn", _operation(2, build))
        setattr(module, f"{letter}sqrt_rn", _operation(1, _of_llvm("sqrt")))
        setattr(module, f"fabs{suffix}", _operation(1, _of_llvm("fabs")))
        setattr(module, f"copysign{suffix}", _operation(2, _of_llvm("copysign")))
    return module


def methodcaller_of(instruction):
    return lambda builder, x, y: getattr(builder, instruction)(x, y)


LIBRARY = library()


def _external(name, result=types.int64):
    return types.ExternalFunction(name, result())


_shared_address, _wait = _external("fgd_shared"), _external("fgd_barrier", types.void)


@njit
def _array(size, kind):
    return carray(_pointer(_shared_address(), kind), size)


@njit
def _syncthreads():
    _wait()


CUDA = ModuleType("cuda")
CUDA.syncthreads = _syncthreads
CUDA.shared = ModuleType("shared")
CUDA.shared.array = _array

NAMES = {
    "_lib": LIBRARY,
    "_cuda": CUDA,
    "_thread": _external("fgd_thread"),
    "_block": _external("fgd_block"),
    "_blocks": _external("fgd_blocks"),
}

_SOURCES = Path(cuda_numba_source.__file__).read_bytes() + Path(__file__).read_bytes()
_DIGEST = hashlib.sha256(_SOURCES).hexdigest()


class Emulated:
    """A kernel that the CPU runs."""

    def __init__(self, kernel, names=NAMES):
        shim()
        self.kernel = kernel
        key = repr((kernel.name, kernel.text, kernel.kinds, _DIGEST, machine()))
        name = f"emulated_{kernel.name}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"

        def compiled(function):
            # what is loaded from a file is found by its name, and must be this kernel's; LLVM inlines it
            function.__qualname__ = name + function.__name__
            return njit(**FLAGS)(function)

        function = kernel.make({**names, "_jit": compiled})
        self.has_barriers = "syncthreads" in function.__code__.co_names
        globals_ = {"__name__": __name__, "_pointer": _pointer, "_kernel": compiled(function)}
        given = []
        for k, kind in enumerate(kernel.kinds):
            if isinstance(kind, types.CPointer):
                globals_[f"_t{k}"] = getattr(np, str(kind.dtype))
                given.append(f"_pointer(a[{k}], _t{k})")
            else:
                given.append(f"a[{k}]")
        exec(f"def _entry(a):\n    _kernel({', '.join(given)})\n", globals_)
        globals_["_entry"].__qualname__ = name
        made = njit(**FLAGS)(globals_["_entry"])
        if names is NAMES:
            made._cache = KernelFile(name)
        signature = (types.CPointer(types.int64),)
        made.compile(signature)
        self._dispatcher = made  # its code goes with it
        self._made = made.overloads[signature]
        self._address = self._made.library.get_pointer_to_function(self._made.fndesc.mangled_name)

    def __call__(self, grid, threads, arguments, *, backwards=False):
        assert threads == self.kernel.threads
        given = np.array(arguments, np.int64)
        numbers = [int(grid), int(threads), int(self.has_barriers), int(backwards)]
        shim().run(ctypes.c_void_p(self._address), ctypes.c_void_p(given.ctypes.data), *numbers)
