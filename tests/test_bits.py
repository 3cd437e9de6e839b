"""Promise 1: the same bits from every print, thread count and shape of memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import RULE_CASES, SIZES, numbers, same_bits
from cxx import GXX, CxxSweep, build, source

import fastgd
from fastgd import optimizer
from fastgd.backend import HostMaker
from fastgd.kernels.cpu import CpuSweep
from fastgd.kernels.plan import plan
from fastgd.kernels.tail import Tail

TAILS = {
    "plain": {},
    "tail": dict(ema_decay=0.9, zero_grad=True, max_norm=1.0, max_value=0.1, on_nonfinite="skip"),
}


def trace(rule_class, values, dtype, tail, special, **how):
    """Everything that a few steps leave behind."""
    rng = np.random.default_rng(1)
    params = fastgd.FlatParams({f"w{i}": (n,) for i, n in enumerate(SIZES)}, dtype)
    for view in params.values():
        view[:] = numbers(rng, view.shape, dtype, special)
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
        for view in params.grad.values():
            view[:] = numbers(rng, view.shape, dtype, special if step != 2 else 0.0)
        opt.step(scale=0.5)
        left.append(params.grad.flat.copy())
        left.append(np.array([opt.t, opt.grad_norm or 0.0]))
    left += [params.flat, *opt.state.values()]
    if opt.ema is not None:
        left.append(opt.ema[0].flat)
    return left


def assert_same(reference, other):
    assert len(reference) == len(other)
    for a, b in zip(reference, other, strict=True):
        assert same_bits(a, b)


FIRST = list({case.values[0]: case for case in reversed(RULE_CASES)}.values())
"""One setting of each rule."""


def every_case(**settings):
    """Every rule and option set, dtype, tail, with and without special values.

    The tail knows nothing of the rule: one setting of each rule has it, and that one also goes parallel, or this would
    compile for a quarter of an hour. Threads are drawn at random in test_properties, for every setting.

    Parameters
    ----------
    **settings
        Those that are run without a tail, by dtype.
    """
    cases = [
        pytest.param(*case.values, tail, dtype, id=f"{np.dtype(dtype).name}-{case.id}-{tail}")
        for dtype in (np.float32, np.float64)
        for tail, chosen in (("plain", settings[np.dtype(dtype).name]), ("tail", FIRST))
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


@pytest.fixture(scope="module")
def compiled():
    """Have g++ compile what the tests below ask for, on all cores."""
    tail = Tail("ema", max_value=True, zero_grad=True)
    plans = [plan(case.values[0](**case.values[1])) for case in RULE_CASES]
    sweeps = [(sweep, np.float32) for p in plans for sweep in p.sweeps]
    for case in FIRST:
        rule = case.values[0](**case.values[1])
        sweeps += [(sweep, np.float64) for sweep in plan(rule).sweeps]
        sweeps += [(sweep, dtype) for sweep in plan(rule, tail).sweeps for dtype in (np.float32, np.float64)]
    texts = dict.fromkeys(source(sweep, np.dtype(dtype)) for sweep, dtype in sweeps)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, texts))


@pytest.mark.skipif(GXX is None, reason="needs g++")
@every_case(float32=RULE_CASES, float64=FIRST)
def test_cxx_gives_the_bits_of_numpy(rule_class, values, dtype, tail, special, monkeypatch, compiled):
    arguments = (rule_class, values, dtype, tail, special)
    reference = trace(*arguments, backend="numpy")
    monkeypatch.setattr(optimizer, "maker", lambda backend, threads: HostMaker(CxxSweep))
    assert_same(reference, trace(*arguments))


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
