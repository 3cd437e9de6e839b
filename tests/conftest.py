"""What the suites share: cases of every rule, data with special values, comparison of bits."""

from __future__ import annotations

import fake_cupy
import gxx
import matrix_oracles  # noqa: F401  # registers
import numpy as np
import pytest
from oracles import SETTINGS

from fastgd.kernels import cpu
from fastgd.kernels.rules import RULES

# Bytes from which a sweep goes parallel: few, so that what runs on two threads here needs no large arrays.
cpu.CROSSOVER = 1 << 16


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in for CuPy, in its place."""
    if gxx.GXX is None:
        pytest.skip("needs g++")
    with fake_cupy.installed(monkeypatch) as module:
        yield module


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
