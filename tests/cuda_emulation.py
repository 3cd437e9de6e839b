"""numba-cuda without a GPU: its compiler without a driver, and its kernels run by Numba on the CPU."""

from __future__ import annotations

from importlib import metadata, util
from types import FunctionType, ModuleType, SimpleNamespace

import numba
import numpy as np
import pytest
from numba import carray, njit

from fastgd.kernels.cpu import FLAGS, _pointer
from fastgd.kernels.cpu_device import made, texts
from fastgd.kernels.plan import plan

MISSING = "" if util.find_spec("numba_cuda") else "needs numba-cuda: pip install numba-cuda[cu13]"
needs_numba_cuda = pytest.mark.skipif(bool(MISSING), reason=MISSING)
PATCHED = "0.30."
"""Versions of numba-cuda whose insides `without_driver` knows."""


def without_driver(monkeypatch, capability=(9, 0)):
    """Let numba-cuda compile functions that call others, which asks the driver for the GPU, and kernels unloaded."""
    assert metadata.version("numba-cuda").startswith(PATCHED), "look at these names in the new numba-cuda"
    from numba import cuda
    from numba.cuda import codegen, dispatcher

    gpu = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: gpu)
    monkeypatch.setattr(codegen.CUDACodeLibrary, "_ensure_cc", lambda self, asked=None: asked or capability)
    monkeypatch.setattr(codegen.JITCUDACodegen, "magic_tuple", lambda self: capability)
    monkeypatch.setattr(dispatcher._Kernel, "bind", lambda self: None)
    return cuda


def _library():
    """Stand-in for numba.cuda.libdevice: what rounds by name is the plain operation, which Numba never contracts."""
    module = ModuleType("libdevice")
    for letter, suffix in (("f", "f"), ("d", "")):
        for name, sign in (("add", "+"), ("mul", "*"), ("div", "/")):
            setattr(module, f"{letter}{name}_rn", _made(f"lambda x, y: x {sign} y"))
        setattr(module, f"{letter}sqrt_rn", _made("lambda x: _np.sqrt(x)"))
        setattr(module, f"fabs{suffix}", _made("lambda x: abs(x)"))
        setattr(module, f"copysign{suffix}", _made("lambda x, y: _np.copysign(x, y)"))
    return module


def _made(text):
    return njit(**FLAGS)(eval(text, {"_np": np}))


LIBRARY = _library()


def emulated(update):
    """The function of a GPU that belongs to what `device` gave, for loops on the CPU."""
    dtype = np.asarray(update.hyper(1)[0]).dtype
    (sweep,) = plan(update.rule).sweeps
    function = njit(**FLAGS)(made(texts(sweep, dtype)[1], "emulated", {"_lib": LIBRARY, "_T": dtype.type}))
    function.arrays, function.writes = update.arrays, update.writes
    function.states, function.start = update.states, update.start
    return function


_CELL = np.zeros(1, np.int64)
_ADDRESS = _CELL.ctypes.data


@njit
def _grid(dimensions):
    return carray(_pointer(_ADDRESS, np.int64), 1)[0]


class _Array(np.ndarray):
    def copy_to_host(self):
        return np.array(self)


class Kernel:
    """A kernel of one dimension whose threads run one after the other."""

    def __init__(self, function):
        self.function = function
        replaced = {"cuda": FAKE}
        replaced |= {n: emulated(v) for n, v in function.__globals__.items() if hasattr(v, "hyper")}
        one = njit(FunctionType(function.__code__, {**function.__globals__, **replaced}, function.__name__))

        @njit
        def run(threads, arguments):
            cell = carray(_pointer(_ADDRESS, np.int64), 1)
            for i in range(threads):
                cell[0] = i
                one(*arguments)

        self.run = run

    def __getitem__(self, grid):
        blocks, threads = grid
        plain = lambda a: a.view(np.ndarray) if isinstance(a, np.ndarray) else a  # noqa: E731
        return lambda *arguments: self.run(blocks * threads, tuple(map(plain, arguments)))


FAKE = ModuleType("cuda")
FAKE.grid = _grid
FAKE.jit = Kernel
FAKE.to_device = lambda array: array.copy().view(_Array)


def run(text, names):
    """Run a text with the stand-in in the place of numba.cuda."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba, "cuda", FAKE, raising=False)
        exec(text, names)
