"""Gradients summed up for one step, and the loss scaler."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
from conftest import numbers, same_bits
from test_atomic import Stop
from test_oracles import problem

import fastgd
from fastgd.kernels.errors import ArrayError, CheckpointError, FastGDError, HyperparameterError, NonFiniteError

backends = pytest.mark.parametrize("backend", ["numpy", "numba"])


@backends
def test_a_step_takes_the_sum(backend):
    start, grads = problem("float64", 9)
    params, same = [p.copy() for p in start], [p.copy() for p in start]
    opt = fastgd.AdamW(params, lr=0.1, max_norm=5.0, backend=backend)
    other = fastgd.AdamW(same, lr=0.1, max_norm=5.0, backend=backend)
    for k in range(0, 9, 3):
        for j, g in enumerate(grads[k : k + 3]):
            opt.accumulate(g, scale=1 / 3)
            assert opt.accumulated == j + 1
        opt.step(scale=0.5)
        assert opt.accumulated == 0
        third = np.float64(1 / 3)
        sums = [(third * a + third * b) + third * c for a, b, c in zip(*grads[k : k + 3], strict=True)]
        other.step(sums, scale=0.5)
    assert opt.t == 3
    assert opt.grad_norm == other.grad_norm
    for p, q in zip(params, same, strict=True):
        assert same_bits(p, q)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_have_the_same_bits_for_any_threads(dtype, zero):
    sizes = (1, 65, 0, 40_001, 7)
    results = []
    for how in (dict(backend="numpy"), dict(threads=1), dict(threads=2)):
        rng = np.random.default_rng(3)
        params = [numbers(rng, n, dtype) for n in sizes]
        opt = fastgd.SGD(params, lr=0.1, momentum=0.9, zero_grad=zero, **how)
        left = []
        for _ in range(3):
            for scale in (0.3, -1.7, 2.0):
                grads = [numbers(rng, n, dtype, special=0.01) for n in sizes]
                opt.accumulate(grads, scale)
                left += grads
            opt.step()
        if how.get("threads") == 2:
            assert opt._layout.accumulator._add._parallel
        results.append([*params, *left])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_of_flat_params_are_the_default_and_are_zeroed_where_that_is_wanted():
    for zero in (False, True):
        params = fastgd.FlatParams({"w": np.zeros((2, 3)), "b": np.zeros(3)})
        opt = fastgd.SGD(params, lr=1.0, zero_grad=zero)
        for value in (1.0, 2.0):
            params.grad["w"], params.grad["b"] = value, -value
            opt.accumulate(scale=0.5)
            assert (params.grad["w"] == (0.0 if zero else value)).all()
        params.grad["w"] = 100.0
        opt.step()
        assert params["w"].tolist() == [[-1.5] * 3] * 2 and params["b"].tolist() == [1.5] * 3
        assert (params.grad["w"] == 100.0).all()  # not the gradient of this step
        opt.step()  # of the next one it is
        assert params["w"].tolist() == [[-101.5] * 3] * 2


def test_groups_of_plain_arrays():
    a, b = np.zeros(2), np.zeros(3)
    opt = fastgd.SGD([{"params": a}, {"params": [b], "lr": 0.5}], lr=1.0)
    opt.accumulate([np.ones(2), [np.ones(3)]])
    opt.accumulate([np.ones(2), [np.ones(3)]])
    opt.step()
    assert (a.tolist(), b.tolist()) == ([-2.0] * 2, [-1.0] * 3)
    with pytest.raises(ArrayError, match="grads must be given"):
        opt.step()


def test_what_waits_is_not_lost_by_a_mistake():
    p = np.zeros(2)
    opt = fastgd.SGD(p, lr=1.0, on_nonfinite="raise")
    opt.accumulate(np.ones(2))
    for call, error, message in [
        (lambda: opt.step(np.ones(2)), ArrayError, r"grads must be None, as 1 accumulated .* given ndarray"),
        (lambda: opt.accumulate(np.ones(3)), ArrayError, r"shape \(2,\), given \(3,\)"),
        (lambda: opt.accumulate(p), ArrayError, "share memory"),
        (lambda: opt.accumulate(np.ones(2), math.nan), HyperparameterError, "scale must be .* given nan"),
        (lambda: opt.add_param_group({"params": np.ones(1)}), ArrayError, "1 gradients accumulated"),
    ]:
        with pytest.raises(error, match=message):
            call()
        assert (opt.accumulated, p.tolist()) == (1, [0, 0])
    opt.accumulate(np.ones(2))
    opt.step()
    assert p.tolist() == [-2, -2]


def test_a_sum_that_is_not_finite():
    bad = np.array([1.0, math.inf])
    p = np.zeros(2)
    skipping = fastgd.SGD(p, lr=1.0, on_nonfinite="skip")
    skipping.accumulate(np.ones(2))
    skipping.accumulate(bad)
    skipping.step()
    assert (skipping.t, skipping.accumulated, p.tolist()) == (0, 0, [0, 0])
    skipping.accumulate(np.ones(2))
    skipping.step()
    assert (skipping.t, p.tolist()) == (1, [-1, -1])
    raising = fastgd.SGD(p, lr=1.0, on_nonfinite="raise")
    raising.accumulate(bad)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"inf at \(1,\)"):
            raising.step()
        assert raising.accumulated == 1
    raising.zero_grad()
    assert raising.accumulated == 0
    with pytest.raises(ArrayError, match="carry no grad"):
        raising.zero_grad()


@backends
def test_a_sum_is_saved_with_the_state(backend):
    g = np.array([1.0, -2.0, 3.0])
    opt = fastgd.Adam(np.zeros(3), backend=backend)
    opt.step(g)
    opt.accumulate(g)
    opt.accumulate(g, 0.5)
    state = opt.state_dict()
    assert state["accumulated"]["count"] == 2 and state["accumulated"]["sum"].tolist() == (1.5 * g).tolist()
    other = fastgd.Adam(opt.params.copy(), backend=backend)
    other.load_state_dict(state)
    assert other.accumulated == 2
    for o in (opt, other):
        o.accumulate(g)
        assert o.accumulated == 3
        o.step()
    assert np.array_equal(opt.params, other.params)
    for wrong in (3, {}, {"count": 0, "sum": 1.5 * g}, {"count": 2, "sum": np.ones(4)}, {"count": True, "sum": g}):
        with pytest.raises(CheckpointError, match="accumulated"):
            other.load_state_dict(state | {"accumulated": wrong})
    other.load_state_dict(state | {"accumulated": None})
    assert other.accumulated == 0


@backends
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_ctrl_c_before_any_line_leaves_a_whole_sum(backend, again):
    one, two = np.linspace(1, 2, 5000), np.linspace(3, 4, 5000)
    for k in count(1):
        opt = fastgd.SGD([np.zeros(2000), np.zeros(3000)], lr=1.0, backend=backend)
        opt.accumulate([one[:2000], one[2000:]])
        stop = Stop(k, KeyboardInterrupt(), again)
        try:
            with stop:
                opt.accumulate([two[:2000], two[2000:]])
        except KeyboardInterrupt:
            pass
        assert opt.accumulated in (1, 2), f"line {k}"
        expected = one + two if opt.accumulated == 2 else one
        opt.step()
        assert np.array_equal(np.concatenate(opt.params), -expected), f"line {k}"
        if stop.left > 0:
            break
    assert k > 20


@backends
def test_an_error_before_any_line_leaves_a_whole_sum_or_none(backend):
    g = [np.ones(2000), np.ones(3000)]
    for k in count(1):
        opt = fastgd.SGD([np.zeros(2000), np.zeros(3000)], lr=1.0, backend=backend)
        opt.accumulate(g)
        stop = Stop(k, MemoryError("drill"))
        try:
            with stop:
                opt.accumulate(g)
        except MemoryError:
            pass
        waiting = opt.accumulated
        if waiting:
            opt.step()
            assert all((p == -waiting).all() for p in opt.params), f"line {k}"
        else:
            with pytest.raises(FastGDError, match="grads must be given"):
                opt.step()
        if stop.left > 0:
            break
    assert k > 20


# ---- the loss scaler


@pytest.mark.parametrize("how", [{}, dict(init_scale=8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=3)])
def test_scale_is_torchs(how):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    overflow = rng.random(60) < 0.2
    given = {**dict(init_scale=65536.0, growth_interval=4), **how}
    theirs = torch.amp.GradScaler("cpu", **given)
    weight = torch.nn.Parameter(torch.ones(3))
    reference = torch.optim.SGD([weight], lr=0.1)
    p = np.ones(3, np.float32)
    opt, scaler = fastgd.SGD(p, lr=0.1, on_nonfinite="skip"), fastgd.LossScaler(**given)
    for bad in overflow:
        g = rng.standard_normal(3).astype(np.float32)
        theirs.scale(torch.zeros(1))  # it starts at its first use
        weight.grad = torch.from_numpy(g * np.float32(scaler.get_scale()))
        scaled = scaler.scale(g).astype(np.float32)
        if bad:
            weight.grad[1] = scaled[1] = math.inf
        theirs.step(reference)
        assert scaler.step(opt, scaled) is not bool(bad)
        theirs.update()
        scaler.update()
        assert scaler.get_scale() == theirs.get_scale()
        np.testing.assert_allclose(p, weight.detach().numpy(), rtol=1e-6)
    assert opt.t == int((~overflow).sum())
    mine, other = scaler.state_dict(), theirs.state_dict()
    assert mine == other


def test_scaler_with_accumulation_and_two_optimizers():
    p, q = np.zeros(2), np.zeros(2)
    first, second = (fastgd.SGD(x, lr=1.0, on_nonfinite="skip") for x in (p, q))
    scaler = fastgd.LossScaler(init_scale=1024.0)
    for _ in range(2):
        first.accumulate(scaler.scale(np.ones(2)), scale=1 / 2)
    assert scaler.step(first)
    assert not scaler.step(second, np.array([math.nan, 1.0]))
    scaler.update()
    assert (p.tolist(), q.tolist(), scaler.get_scale()) == ([-1, -1], [0, 0], 512.0)
    scaler.update(64.0)
    assert scaler.get_scale() == 64.0
    assert "64.0" in repr(scaler)


def test_scaler_does_not_grow_beyond_float32():
    scaler = fastgd.LossScaler(init_scale=3e38, growth_interval=1)
    scaler.step(fastgd.SGD(np.zeros(1), on_nonfinite="skip"), np.ones(1))
    scaler.update()
    assert scaler.get_scale() == 3e38


def test_scaler_resumes():
    scaler = fastgd.LossScaler(init_scale=2.0, growth_interval=3)
    opt = fastgd.SGD(np.zeros(1), on_nonfinite="skip")
    for _ in range(2):
        scaler.step(opt, np.ones(1))
        scaler.update()
    other = fastgd.LossScaler()
    other.load_state_dict(scaler.state_dict())
    for s in (scaler, other):
        s.step(opt, np.ones(1))
        s.update()
    assert scaler.get_scale() == other.get_scale() == 4.0
    before = other.state_dict()
    with pytest.raises(CheckpointError, match="no 'scale'"):
        other.load_state_dict({k: v for k, v in before.items() if k != "scale"})
    with pytest.raises(HyperparameterError, match="growth_factor"):
        other.load_state_dict(before | {"growth_factor": 0.5})
    assert other.state_dict() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fastgd.LossScaler(init_scale=0), "init_scale must be a number, above 0, given 0"),
        (lambda: fastgd.LossScaler(growth_factor=1), "growth_factor must be a number, above 1, given 1"),
        (lambda: fastgd.LossScaler(backoff_factor=1.0), "above 0 and below 1, given 1.0"),
        (lambda: fastgd.LossScaler(growth_interval=0), "growth_interval must be a whole number, at least 1, given 0"),
        (lambda: fastgd.LossScaler().update(), "update must follow a step"),
        (lambda: fastgd.LossScaler().update(-1.0), "new_scale .* given -1"),
        (lambda: fastgd.LossScaler().step(fastgd.SGD(np.ones(1)), np.ones(1)), "given 'propagate'"),
        (lambda: fastgd.LossScaler().step("sgd"), "given 'str'"),
    ],
)
def test_bad_scalers_are_named(call, message):
    with pytest.raises(HyperparameterError, match=message):
        call()
