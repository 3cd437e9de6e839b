"""What is run beside the step: the Hessian's estimate, and the swap into eval mode and back."""

from __future__ import annotations

import copy
from itertools import count

import numpy as np
import pytest
from conftest import same_bits
from test_atomic import Stop
from test_oracles import problem

import fastgd
from fastgd.kernels.errors import ArrayError, CheckpointError, FastGDError, HyperparameterError
from fastgd.schedules import linear

backends = pytest.mark.parametrize("backend", ["numpy", "numba"])
FREE = ["ScheduleFreeSGD", "ScheduleFreeAdamW"]


def beta_of(name):
    return dict(momentum=0.7) if name == "ScheduleFreeSGD" else dict(betas=(0.7, 0.95))


@backends
@pytest.mark.parametrize("name", FREE)
def test_eval_mode_is_the_average_and_train_the_way_back(name, backend):
    start, grads = problem("float64", 6)
    params = [p.copy() for p in start]
    opt = getattr(fastgd, name)(params, lr=0.05, **beta_of(name), backend=backend)
    for g in grads[:5]:
        opt.step(g)
    y = [p.copy() for p in params]
    z = [opt.state["z"][s.offset : s.offset + s.size].reshape(s.shape) for s in opt._layout.targets.segments]
    opt.eval()
    x = [p.copy() for p in params]
    for a, b, c in zip(x, y, z, strict=True):
        np.testing.assert_allclose(a, b + (1 - 1 / 0.7) * (c - b), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(b, 0.7 * a + 0.3 * c, rtol=1e-12, atol=1e-12)
    opt.eval()  # is there already
    assert all(np.array_equal(p, a) for p, a in zip(params, x, strict=True))
    for refused in (lambda: opt.step(grads[5]), lambda: opt.step(grads[5])):
        with pytest.raises(FastGDError, match=r"eval mode, in which there are no steps: call train\(\)"):
            refused()
    opt.train()
    opt.train()
    for p, b in zip(params, y, strict=True):
        np.testing.assert_allclose(p, b, rtol=1e-12, atol=1e-12)
    opt.step(grads[5])
    assert opt.t == 6


@pytest.mark.parametrize("name", FREE)
def test_average_is_the_weighted_mean_of_the_base_sequence(name):
    """The definition: x_t = (1 - c_t) x_{t-1} + c_t z_t, with weights that follow the largest learning rate."""
    start, grads = problem("float64", 8)
    params = [p.copy() for p in start]
    opt = getattr(fastgd, name)(params, lr=linear(0.02, 8, end=0.1), warmup_steps=3, r=0.5, **beta_of(name))
    x = np.concatenate([p.ravel() for p in start])
    weights, largest = 0.0, 0.0
    for k, g in enumerate(grads):
        opt.step(g)
        largest = max(largest, linear(0.02, 8, end=0.1)(k) * min(1, (k + 1) / 3))
        weight = (k + 1) ** 0.5 * largest**2
        weights += weight
        z = np.concatenate([opt.state["z"][s.offset : s.offset + s.size] for s in opt._layout.targets.segments])
        x = x + weight / weights * (z - x)
        opt.eval()
        np.testing.assert_allclose(np.concatenate([p.ravel() for p in params]), x, rtol=1e-9, atol=1e-11)
        opt.train()


@pytest.mark.parametrize("name", FREE)
def test_the_mode_is_saved_and_copied(name):
    p, g = np.linspace(1, 2, 9), np.cos(np.arange(9.0))
    opt = getattr(fastgd, name)(p, lr=0.1)
    opt.step(g)
    opt.eval()
    state = opt.state_dict()
    assert state["mode"] == "eval"
    other, twin = getattr(fastgd, name)(p.copy(), lr=0.5), copy.deepcopy(opt)
    other.load_state_dict(state)
    for o in (other, twin):
        with pytest.raises(FastGDError, match="eval mode"):
            o.step(g)
    for o in (opt, other, twin):
        o.train()
        o.step(g)
    assert np.array_equal(opt.params, other.params) and np.array_equal(opt.params, twin.params)
    with pytest.raises(CheckpointError, match="mode must be 'train' or 'eval', given 'test'"):
        other.load_state_dict(state | {"mode": "test"})
    with pytest.raises(CheckpointError, match="mode must be 'train', given 'eval'"):
        fastgd.SGD(np.zeros(3)).load_state_dict(fastgd.SGD(np.zeros(3)).state_dict() | {"mode": "eval"})


@backends
def test_hessian_is_taken_in_between_steps(backend):
    start, grads = problem("float64", 4)
    params = [p.copy() for p in start]
    groups = [{"params": params[:2]}, {"params": params[2:], "betas": (0.9, 0.5)}]
    opt = fastgd.SophiaG(groups, lr=0.01, betas=(0.9, 0.75), rho=1.0, bs=2.0, backend=backend)
    opt.update_hessian([grads[0][:2], grads[0][2:]], scale=0.5)
    opt.update_hessian([grads[1][:2], grads[1][2:]])
    assert opt.t == 0 and all(np.array_equal(p, s) for p, s in zip(params, start, strict=True))
    for k, segment in enumerate(opt._layout.targets.segments):
        b = 0.75 if k < 2 else 0.5
        h = (1 - b) * (0.5 * grads[0][k]) ** 2
        h = b * h + (1 - b) * grads[1][k] ** 2
        given = opt.state["hessian"][segment.offset : segment.offset + segment.size].reshape(segment.shape)
        np.testing.assert_allclose(given, h, rtol=1e-12)
    opt.step([grads[2][:2], grads[2][2:]])
    assert opt.t == 1


def test_asides_have_the_same_bits_on_any_threads():
    sizes, results = (1, 65, 0, 70_001), []
    for how in (dict(backend="numpy"), dict(threads=1), dict(threads=2)):
        rng = np.random.default_rng(6)
        params = [rng.standard_normal(n).astype(np.float32) for n in sizes]
        opt = fastgd.ScheduleFreeAdamW(params, lr=0.1, **how)
        opt.step([rng.standard_normal(n).astype(np.float32) for n in sizes])
        opt.eval()
        results.append([p.copy() for p in params])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@backends
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_ctrl_c_before_any_line_leaves_one_mode_or_the_other(backend, again):
    g = [np.ones(2000), np.ones(3000)]
    for k in count(1):
        opt = fastgd.ScheduleFreeSGD([np.linspace(1, 2, 2000), np.linspace(2, 3, 3000)], lr=0.1, backend=backend)
        opt.step(g)
        opt.step(g)
        y = np.concatenate(opt.params)
        same = fastgd.ScheduleFreeSGD([np.linspace(1, 2, 2000), np.linspace(2, 3, 3000)], lr=0.1, backend=backend)
        same.step(g)
        same.step(g)
        same.eval()
        x = np.concatenate(same.params)
        stop = Stop(k, KeyboardInterrupt(), again)
        try:
            with stop:
                opt.eval()
        except KeyboardInterrupt:
            pass
        mode = opt.state_dict()["mode"]
        assert np.array_equal(np.concatenate(opt.params), x if mode == "eval" else y), f"line {k}"
        if stop.left > 0:
            break
    assert k > 20 and mode == "eval" and not np.array_equal(x, y)


@backends
def test_an_error_before_any_line_leaves_a_whole_mode_or_a_mark(backend):
    g, marked = [np.ones(2000), np.ones(3000)], 0
    for k in count(1):
        opt = fastgd.ScheduleFreeSGD([np.ones(2000), np.ones(3000)], lr=0.1, backend=backend)
        opt.step(g)
        opt.step(g)  # the average of one is itself
        y = np.concatenate(opt.params)
        stop = Stop(k, MemoryError("drill"))
        try:
            with stop:
                opt.eval()
        except MemoryError:
            pass
        try:
            mode = opt.state_dict()["mode"]
        except FastGDError as error:
            assert "half-way" in str(error)
            marked += 1
        else:
            assert np.array_equal(np.concatenate(opt.params), y) == (mode == "train"), f"line {k}"
        if stop.left > 0:
            break
    assert k > 20 and marked


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastgd.AdamW(np.ones(3)).eval(), HyperparameterError, "one with an eval mode, given AdamW"),
        (lambda: fastgd.AdamW(np.ones(3)).train(), HyperparameterError, "given AdamW"),
        (lambda: fastgd.Adam(np.ones(3)).update_hessian(np.ones(3)), HyperparameterError, "Hessian, given Adam"),
        (lambda: fastgd.SophiaG(np.ones(3)).update_hessian(np.ones(4)), ArrayError, r"given \(4,\)"),
        (lambda: fastgd.SophiaG(np.ones(3)).update_hessian(), ArrayError, "grads must be given"),
        (lambda: fastgd.ScheduleFreeSGD(np.ones(3), momentum=0.0), HyperparameterError, "above 0.*given 0"),
        (lambda: fastgd.ScheduleFreeAdamW(np.ones(3), betas=(0.0, 0.9)), HyperparameterError, "above 0.*given 0"),
        (lambda: fastgd.Rprop(np.ones(3), etas=(1.1, 1.2)), HyperparameterError, r"etas .* given \(1.1, 1.2\)"),
        (lambda: fastgd.Rprop(np.ones(3), step_sizes=(2.0, 1.0)), HyperparameterError, r"given \(2.0, 1.0\)"),
    ],
)
def test_bad_calls_are_named(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
