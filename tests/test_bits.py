"""Promise 1: the same bits from every print, thread count and shape of memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import fake_cupy
import fake_numba_cuda
import gxx
import numpy as np
import pytest
from conftest import RULE_CASES, SIZES, numbers, same_bits

import fastgd
from fastgd.kernels.cpu import CpuSweep
from fastgd.kernels.matrix import MatrixRule
from fastgd.memory import to_host

TAILS = {
    "plain": {},
    "tail": dict(ema_decay=0.9, zero_grad=True, max_norm=1.0, max_value=0.1, on_nonfinite="skip"),
    "unseen": dict(max_norm=1.0),  # a GPU keeps the norm to itself
}


def trace(rule_class, values, dtype, tail, special, **how):
    """Everything that a few steps leave behind."""
    rng = np.random.default_rng(1)
    params = fastgd.FlatParams({f"w{i}": (n,) for i, n in enumerate(SIZES)}, dtype, how["backend"])
    for name, view in params.items():
        params[name] = numbers(rng, view.shape, dtype, special)
    rule = rule_class(**values)
    other = {"lr": values.get("lr", 0.1) * 0.37} if rule.serves((1,)) else {}  # a fallback has values of its own
    groups = [{"params": params}, {"match": ["w1", "w3", "w9"], **other}]
    opt = fastgd.Optimizer(groups, rule, **TAILS[tail], **how)
    left = []
    if how.get("threads"):
        assert all(
            s._parallel == (how["threads"] > 1)
            for launch in opt._layout.program.launches
            for s in launch.sweeps
            if isinstance(s, CpuSweep)
        )
    for step in range(5):
        for name, view in params.grad.items():
            params.grad[name] = numbers(rng, view.shape, dtype, special if step != 2 else 0.0)
        opt.step(scale=0.5)
        left.append(to_host(params.grad.flat))
        left.append(np.array([opt.t, opt.grad_norm or 0.0]))
    left += [to_host(params.flat), *map(to_host, opt.state.values())]
    if opt.ema is not None:
        left.append(to_host(opt.ema[0].flat))
    return left


def assert_same(reference, other):
    assert len(reference) == len(other)
    for a, b in zip(reference, other, strict=True):
        assert same_bits(a, b)


FIRST = list({case.values[0]: case for case in reversed(RULE_CASES)}.values())
"""One setting of each rule."""


def every_case(*, tails=("tail",), first=FIRST, **settings):
    """Every rule and option set, dtype, tail, with and without special values.

    The tail knows nothing of the rule: one setting of each rule has it, and that one also goes parallel, or this would
    compile for a quarter of an hour. Threads are drawn at random in test_properties, for every setting.

    Parameters
    ----------
    tails
        Those that are run, with one setting of each rule.
    first
        These settings.
    **settings
        Those that are run without a tail, by dtype.
    """
    cases = [
        pytest.param(*case.values, tail, dtype, id=f"{np.dtype(dtype).name}-{case.id}-{tail}")
        for dtype in (np.float32, np.float64)
        for tail, chosen in (("plain", settings[np.dtype(dtype).name]), *((tail, first) for tail in tails))
        for case in chosen
    ]

    def mark(test):
        test = pytest.mark.parametrize("special", [0.0, 0.001], ids=["finite", "special"])(test)
        return pytest.mark.parametrize(("rule_class", "values", "tail", "dtype"), cases)(test)

    return mark


@every_case(float32=RULE_CASES, float64=RULE_CASES)
def test_numba_gives_the_bits_of_numpy(rule_class, values, dtype, tail, special):
    arguments = (rule_class, values, dtype, tail, special)
    reference = trace(*arguments, backend="numpy")
    assert any(np.any(a != 0) for a in reference[-2:])
    for threads in (1, 2) if tail == "tail" else (1,):
        assert_same(reference, trace(*arguments, backend="numba", threads=threads))


ON_A_GPU = [case for case in RULE_CASES if not issubclass(case.values[0], MatrixRule)]
FIRST_ON_A_GPU = [case for case in FIRST if case in ON_A_GPU]


@pytest.fixture(scope="module")
def compiled():
    """Have g++ compile the CUDA C++ that the tests below ask for, on all cores."""
    if gxx.GXX is None:
        pytest.skip("needs g++")
    with pytest.MonkeyPatch.context() as patched, fake_cupy.installed(patched):
        texts = fake_cupy.asked_for(patched)
        for chosen, tail, dtype in (
            (ON_A_GPU, "plain", np.float32),
            (FIRST_ON_A_GPU, "plain", np.float64),
            *((FIRST_ON_A_GPU, tail, dtype) for tail in ("tail", "unseen") for dtype in (np.float32, np.float64)),
        ):
            for case in chosen:
                trace(*case.values, dtype, tail, 0.0, backend="cupy")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(gxx.build, texts))


@every_case(float32=ON_A_GPU, float64=FIRST_ON_A_GPU, tails=("tail", "unseen"), first=FIRST_ON_A_GPU)
def test_cuda_gives_the_bits_of_numpy(rule_class, values, dtype, tail, special, monkeypatch, compiled):
    """The very CUDA C++ that a GPU runs, under g++."""
    arguments = (rule_class, values, dtype, tail, special)
    reference = trace(*arguments, backend="numpy")
    with fake_cupy.installed(monkeypatch):
        assert_same(reference, trace(*arguments, backend="cupy"))


def numba_cuda_gives_the_bits_of_numpy(monkeypatch, *arguments):
    """The very kernels that numba-cuda compiles for a GPU, compiled by Numba."""
    if gxx.GXX is None:
        pytest.skip("needs g++")
    reference = trace(*arguments, backend="numpy")
    with fake_numba_cuda.installed(monkeypatch):
        assert_same(reference, trace(*arguments, backend="numba-cuda"))


@pytest.mark.parametrize("special", [0.0, 0.001], ids=["finite", "special"])
@pytest.mark.parametrize(("rule_class", "values"), FIRST_ON_A_GPU)
def test_numba_cuda_gives_the_bits_of_numpy(rule_class, values, special, monkeypatch):
    """One setting of each rule; all of them take Numba some minutes more."""
    numba_cuda_gives_the_bits_of_numpy(monkeypatch, rule_class, values, np.float32, "tail", special)


@pytest.mark.slow
@every_case(float32=ON_A_GPU, float64=FIRST_ON_A_GPU, tails=("tail", "unseen"), first=FIRST_ON_A_GPU)
def test_numba_cuda_gives_the_bits_of_numpy_in_every_setting(rule_class, values, dtype, tail, special, monkeypatch):
    numba_cuda_gives_the_bits_of_numpy(monkeypatch, rule_class, values, dtype, tail, special)


@pytest.mark.parametrize(("rule_class", "values"), RULE_CASES)
def test_shape_of_memory_does_not_matter(rule_class, values):
    """A FlatParams, a dict and a list of arrays: one launch each, the same bits."""
    rng = np.random.default_rng(2)
    start = {f"w{i}": numbers(rng, n, np.float32) for i, n in enumerate(SIZES)}
    grads = [{k: numbers(rng, v.size, np.float32) for k, v in start.items()} for _ in range(3)]
    flat, named, listed = fastgd.FlatParams(start), {k: v.copy() for k, v in start.items()}, None
    listed = [v.copy() for v in start.values()]
    optimizers = [fastgd.Optimizer(x, rule_class(**values)) for x in (flat, named, listed)]
    for g in grads:
        optimizers[0].step(g)
        optimizers[1].step(g)
        optimizers[2].step(list(g.values()))
    for k, name in enumerate(start):
        assert same_bits(flat[name], named[name])
        assert same_bits(flat[name], listed[k])


def test_parallel_launch_is_used():
    """The two-thread runs above would prove nothing if they were serial."""
    opt = fastgd.SGD(np.zeros(200_000, np.float32), threads=2)
    assert opt._layout.program.launches[0].sweeps[0]._parallel
