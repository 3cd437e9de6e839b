"""What the suites share: cases of every rule, data with special values, comparison of bits."""

from __future__ import annotations

from contextlib import contextmanager

import fake_cupy
import fake_numba_cuda
import gxx
import matrix_oracles  # noqa: F401  # registers
import numpy as np
import pytest
from oracles import SETTINGS

from fastgd.kernels import cpu
from fastgd.kernels.rules import RULES

# Bytes from which a sweep goes parallel: few, so that what runs on two threads here needs no large arrays.
cpu.CROSSOVER = 1 << 16


class Gpu:
    """A library of a GPU's arrays, of which a stand-in is in its place, and the backend that serves it.

    Attributes
    ----------
    backend
        Its name. Shared functions of the suites write ``"gpu"`` for that of the test that runs: see `backend_named`.
    fake
        The stand-in.
    library
        The module that a user would import.
    """

    now = None

    def __init__(self, backend, fake, library):
        self.backend, self.fake, self.library = backend, fake, library

    def asarray(self, array):
        array = np.asarray(array)
        return self.library.asarray(array) if self.backend == "cupy" else self.library.to_device(array)

    def ones(self, shape, dtype=np.float64):
        return self.asarray(np.ones(shape, dtype))

    def zeros(self, shape, dtype=np.float64):
        return self.asarray(np.zeros(shape, dtype))

    def is_own(self, array):
        return isinstance(array, self.library.ndarray if self.backend == "cupy" else self.fake.DeviceNDArray)

    def put(self, array, values):
        """Have an array hold other values; nobody waits."""
        array._host[...] = values


STAND_INS = {"cupy": fake_cupy, "numba-cuda": fake_numba_cuda}


def backend_named(where):
    return Gpu.now.backend if where == "gpu" else where


@contextmanager
def gpu_of(backend, monkeypatch):
    if gxx.GXX is None:
        pytest.skip("needs g++")
    fake = STAND_INS[backend]
    with fake.installed(monkeypatch) as module:
        before, Gpu.now = Gpu.now, Gpu(backend, fake, module)
        yield Gpu.now
    Gpu.now = before


# Numba takes half a second for each kernel that it compiles for the CPU: with it, the suite is one of the slow tests.
@pytest.fixture(params=["cupy", pytest.param("numba-cuda", marks=pytest.mark.slow)])
def gpu(request, monkeypatch):
    """Both libraries of a GPU's arrays, one behind the other."""
    with gpu_of(request.param, monkeypatch) as found:
        yield found


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in for CuPy, in its place."""
    with gpu_of("cupy", monkeypatch) as found:
        yield found.library


RULE_CASES = [
    pytest.param(RULES[name], values, id=f"{name}-{k}") for name in RULES for k, values in enumerate(SETTINGS[name])
]

SIZES = (1, 63, 64, 65, 0, 4095, 4096, 4097, 16384, 33331, 7)


def same_bits(a, b):
    """Whether two arrays agree in every bit; NaNs, whose payload means nothing, by class."""
    unsigned = f"u{a.dtype.itemsize}"
    return bool(np.all((a.view(unsigned) == b.view(unsigned)) | (np.isnan(a) & np.isnan(b))))


def numbers(rng, size, dtype, special=0.0):
    """Random numbers over many decades, some of them special values."""
    info = np.finfo(dtype)
    low, high = (-20, 10) if dtype == np.float32 else (-160, 100)
    x = (rng.standard_normal(size) * 10.0 ** rng.integers(low, high, size)).astype(dtype)
    if special:
        values = [np.nan, np.inf, -np.inf, 0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, info.max, 1.0]
        chosen = rng.random(size) < special
        x[chosen] = rng.choice(np.array(values, dtype), int(chosen.sum()))
    return x


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="fail where a test would be skipped without a GPU")
