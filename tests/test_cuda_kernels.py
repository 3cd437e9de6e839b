"""The CUDA C++ under g++, where it could go wrong unseen: out of bounds, misaligned, in another order of threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fake_cupy
import gxx
import numpy as np
import pytest
from conftest import numbers, same_bits
from oracles import SETTINGS

import fastgd
from fastgd.kernels.cuda_source import entry, service_source, sweep_source
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES
from fastgd.memory import to_host

pytestmark = pytest.mark.skipif(gxx.GXX is None, reason="needs g++")

SIZES = (1, 3, 255, 4096, 4097, 0, 12289, 1000)
CASES = {
    "adamw": dict(),
    "adamw-tail": dict(max_norm=0.5, max_value=0.2, ema_decay=0.9, zero_grad=True),
    "lamb": dict(),
    "lars": dict(max_norm=0.5),
    "prodigy": dict(max_norm=0.5),
    "sgd-skip": dict(on_nonfinite="skip"),
}
EVERY_RULE = [name for name, rule in RULES.items() if not issubclass(rule, MatrixRule)]


def run(case, dtype, backend, shift=0, cupy=None):
    """A few steps over separate arrays, which start `shift` elements behind an aligned address."""
    rng = np.random.default_rng(3)

    def made(size):
        values = numbers(rng, size + shift, dtype)
        return (cupy.asarray(values) if backend == "cupy" else values)[shift:]

    params = [made(size) for size in SIZES]
    name = case.partition("-")[0]
    opt = fastgd.Optimizer(params, RULES[name](**SETTINGS[name][-1]), backend=backend, **CASES.get(case, {}))
    for _ in range(3):
        opt.step([made(size) for size in SIZES])
    report = opt.report([made(size) for size in SIZES])
    left = [to_host(p) for p in params] + [to_host(s) for s in opt.state.values()]
    return [*left, np.array([row.update_norm for row in report], float)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_arrays_may_start_anywhere(case, shift, dtype, monkeypatch):
    reference = run(case, dtype, "numpy", shift)
    with fake_cupy.installed(monkeypatch) as cupy:
        assert_same(reference, run(case, dtype, "cupy", shift, cupy))
        kinds = {name.rpartition("_")[2] for name in fake_cupy.launched if "_update_" in name}
        aligned = shift * np.dtype(dtype).itemsize % 16 == 0
        assert kinds >= ({"vector", "scalar"} if aligned else {"scalar"})
        assert aligned or "vector" not in kinds


@pytest.mark.parametrize("case", [*CASES, *EVERY_RULE])
def test_the_order_of_threads_and_blocks_does_not_matter(case, monkeypatch):
    """Nor where the arrays of any rule start."""
    shift = int(case in EVERY_RULE)
    reference = run(case, np.float32, "numpy", shift)
    monkeypatch.setattr(fake_cupy, "BACKWARDS", True)
    with fake_cupy.installed(monkeypatch) as cupy:
        assert_same(reference, run(case, np.float32, "cupy", shift, cupy))


def summing():
    return sweep_source(plan(RULES["lamb"]()).sweeps[0], "float32", "lamb")


def without_barrier(text, number):
    """A translation unit without one of its barriers, counted from the first."""
    at = [m.start() for m in re.finditer(r"__syncthreads\(\);", text)][number]
    return text[:at] + text[at + len("__syncthreads();") :]


IN_SWEEP = summing().count("__syncthreads();")
IN_ADD = service_source().count("__syncthreads();") - IN_SWEEP  # behind the same loops
BARRIERS = [*(("sweep", k) for k in range(IN_SWEEP)), *(("add", k) for k in range(IN_ADD))]


@pytest.mark.parametrize(("where", "number"), BARRIERS)
def test_a_missing_barrier_would_be_seen(where, number):
    """Each barrier is there for something: without it one order of threads, forwards or backwards, gives other sums."""
    build = gxx.build

    def broken(text, *flags):
        own = "fgd_lamb_measure" in text if where == "sweep" else "fgd_add" in text
        shared = 0 if where == "sweep" else IN_SWEEP
        return build(without_barrier(text, number + shared) if own else text, *flags)

    seen = []
    for backwards in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(gxx, "build", broken)
            patched.setattr(fake_cupy, "BACKWARDS", backwards)
            patched.setattr(fake_cupy, "PROCESSORS", 1)
            with fake_cupy.installed(patched) as cupy:
                from fastgd.kernels import cuda_cupy

                patched.setattr(cuda_cupy, "BLOCKS_PER_PROCESSOR", 1)  # one block, which does all the tiles
                seen.append(many_sums("cupy", cupy.asarray))
    reference = many_sums("numpy", np.asarray)
    assert not all(same_bits(a, b) for found in seen for a, b in zip(reference, found, strict=True))


def many_sums(backend, as_array):
    """Parameters behind a step whose size is made of two sums, of more numbers than one block adds at once."""
    rng = np.random.default_rng(4)
    sizes, shift = (4096 * 13, 4096 * 7 + 1, 4096 * 9), (0, 0, 1)  # the last one is not aligned
    params = [as_array(rng.standard_normal(n + by).astype(np.float32))[by:] for n, by in zip(sizes, shift, strict=True)]
    opt = fastgd.LAMB(params, lr=0.1, backend=backend, max_norm=0.1)
    for _ in range(2):
        opt.step([as_array(rng.standard_normal(p.size).astype(np.float32)) for p in params])
    return [to_host(p) for p in params]


def runtime(name):
    found = subprocess.run([gxx.GXX, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else None


@pytest.mark.skipif(gxx.GXX is None or runtime("libasan.so") is None, reason="needs g++ with its sanitizers")
@pytest.mark.parametrize("planted", [None, "bounds", "alignment", pytest.param("every rule", marks=pytest.mark.slow)])
def test_no_kernel_leaves_its_arrays(planted):
    """The sanitizers of addresses and undefined behaviour watch, in a process of their own; planted faults are seen."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "cuda" / "sanitized.py", *([planted] if planted else [])],
        env={
            **os.environ,
            "LD_PRELOAD": runtime("libasan.so"),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "PYTHONMALLOC": "malloc",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    if planted in (None, "every rule"):
        assert done.returncode == 0, done.stderr[-3000:]
        assert "all kernels kept to their arrays" in done.stdout
    else:
        expected = {"bounds": "heap-buffer-overflow", "alignment": "misaligned address"}[planted]
        assert done.returncode != 0 and expected in done.stderr


@pytest.mark.parametrize("kind", ["vector", "scalar"])
def test_elements_behind_2_to_the_31st(kind):
    """Memory that is never touched is none: one tile lies far behind in arrays of 8 GiB."""
    (sweep,) = plan(RULES["gd"]()).sweeps
    built = gxx.Library(gxx.build(sweep_source(sweep, "float32", "gd")))
    n = 2**31 + 2 * 4096
    arrays = {name: np.zeros(n, np.float32) for name in sweep.arrays}
    end = slice(n - 4096, n - 16)
    arrays["g"][end] = np.arange(1, 4081)
    addresses = np.array([arrays[name].ctypes.data for name in sweep.arrays], np.int64)
    rows = np.full(len(sweep.scalars), 0.5, np.float32)
    table = np.array([end.start, end.stop, 0, 0, 0], np.int64)
    pointers = (addresses.ctypes.data, rows.ctypes.data, table.ctypes.data)
    built.launch(entry("gd", sweep, kind), 1, 256, [*pointers, 1, 0])
    assert sorted(sweep.scalars) == ["gscale", "lr"]
    assert np.array_equal(arrays["p"][end], -0.25 * arrays["g"][end])
    assert not arrays["p"][n - 16 :].any() and not arrays["p"][n - 8192 : n - 4096].any()
