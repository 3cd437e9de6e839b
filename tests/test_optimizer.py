"""The optimizer: forms of params, groups, tail, state, and what it refuses. Numbers are in test_oracles.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import fastgd
from fastgd.kernels import Rule, cpu
from fastgd.kernels.errors import (
    ArrayError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
)
from fastgd.kernels.rules import RULES

GOOD = np.arange(6.0)


def flat(**arrays):
    return fastgd.FlatParams(arrays or {"w": GOOD, "b": GOOD})


def test_a_lone_array_is_updated_in_place():
    p = np.ones((2, 3), np.float32)
    opt = fastgd.SGD(p, lr=0.5)
    assert opt.step(np.full((2, 3), 1.0, np.float32)) is None
    assert p.tolist() == [[0.5] * 3] * 2
    assert opt.t == 1
    assert opt.params is p


def test_named_classes_follow_the_registry():
    assert {cls.__name__ for cls in RULES.values()} <= set(dir(fastgd))
    for cls in RULES.values():
        opt = getattr(fastgd, cls.__name__)(np.ones(3))
        assert opt.rule == cls()
        assert type(opt).__name__ == cls.__name__
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = fastgd.Nonsense
    with pytest.raises(TypeError, match="momentun"):
        fastgd.SGD(np.ones(3), momentun=0.9)


@pytest.mark.parametrize(
    ("rule", "expected"), [("gd", 12), ("sgd", 12), ("adam", 28), ("adamw", 28), ("lion", 20), ("lamb", 40)]
)
def test_bytes_per_parameter(rule, expected):
    p = np.ones(3, np.float32)
    assert fastgd.Optimizer(p, RULES[rule]()).bytes_per_param == expected
    if rule == "adamw":
        tail = dict(max_norm=1.0, ema_decay=0.9, zero_grad=True)
        assert fastgd.AdamW(p, **tail).bytes_per_param == 44
        assert fastgd.AdamW(p, amsgrad=True).bytes_per_param == 36
    if rule == "sgd":
        assert fastgd.SGD(p, momentum=0.9).bytes_per_param == 20


def test_unused_states_are_not_allocated():
    assert dict(fastgd.SGD(np.ones(3)).state) == {}
    assert set(fastgd.Adam(np.ones(3), amsgrad=True).state) == {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}


def test_values_may_change_between_steps_without_compiling():
    p = np.ones(3)
    opt = fastgd.SGD(p, lr=1.0)
    opt.step(np.ones(3))
    kernels = dict(cpu._KERNELS)
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(3))
    assert p.tolist() == [-0.25] * 3
    assert cpu._KERNELS == kernels
    for name, value, message in [("lr", -1.0, "at least 0"), ("momentum", 0.9, "heavy"), ("lr", "x", "a number")]:
        opt.param_groups[0].update(lr=0.25, momentum=0.0)
        opt.param_groups[0][name] = value
        with pytest.raises(HyperparameterError, match=message):
            opt.step(np.ones(3))
    assert p.tolist() == [-0.25] * 3
    assert opt.t == 2


def test_a_callable_value_is_a_schedule_of_the_steps_taken():
    asked = []

    def schedule(k):
        asked.append(k)
        return 2.0**-k

    p = np.zeros(2)
    opt = fastgd.SGD(p, lr=schedule)
    for _ in range(3):
        opt.step(np.ones(2))
    assert p.tolist() == [-1.75] * 2
    assert sorted(set(asked)) == [0, 1, 2]


def test_a_schedule_for_all_leaves_a_groups_own_value():
    a, b = np.zeros(2), np.zeros(2)
    opt = fastgd.SGD([{"params": a, "lr": 0.5}, {"params": b}], lr=lambda k: 2.0)
    opt.step([np.ones(2), np.ones(2)])
    assert a.tolist() == [-0.5] * 2
    assert b.tolist() == [-2.0] * 2


def test_groups_by_params_and_by_name():
    a, b = np.zeros(3), np.zeros(2)
    opt = fastgd.SGD([{"params": a}, {"params": [b], "lr": 0.5}], lr=0.1)
    opt.step([np.ones(3), [np.ones(2)]])
    assert a.tolist() == [-0.1] * 3
    assert b.tolist() == [-0.5] * 2
    params = fastgd.FlatParams({"fc.weight": (2, 2), "fc.bias": (2,)}, "float64")
    params.grad.flat[:] = 1
    opt = fastgd.SGD([{"params": params}, {"match": "*.bias", "lr": 0.5}], lr=0.25)
    opt.step()
    assert params["fc.weight"].tolist() == [[-0.25] * 2] * 2
    assert params["fc.bias"].tolist() == [-0.5] * 2


def test_groups_with_other_options_are_launched_apart():
    a, b = np.zeros(3), np.zeros(3)
    opt = fastgd.SGD([{"params": a}, {"params": b, "momentum": 0.5}], lr=1.0)
    for _ in range(2):
        opt.step([np.ones(3), np.ones(3)])
    assert a.tolist() == [-2.0] * 3
    assert b.tolist() == [-2.5] * 3


def test_grad_of_flat_params_in_every_form():
    for form in (
        lambda p: None,
        lambda p: p.grad,
        lambda p: p.grad.flat,
        lambda p: {k: v.copy() for k, v in p.grad.items()},
    ):
        params = flat()
        params.grad["b"][:] = 2
        fastgd.SGD(params, lr=1.0).step(form(params))
        assert params["b"].tolist() == (GOOD - 2).tolist()
        assert params["w"].tolist() == GOOD.tolist()


def test_other_gradient_arrays_are_taken_at_each_step():
    p = [np.zeros(2), np.zeros(2)]
    opt = fastgd.SGD(p, lr=1.0)
    grads = [np.ones(2), np.ones(2)]
    opt.step(grads)
    grads[1] = np.full(2, 5.0)
    opt.step(grads)
    assert p[1].tolist() == [-6.0] * 2


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_nonfinite_gradients(backend):
    for bad in (np.nan, np.inf):
        grads = {"w": np.ones((2, 3)), "b": np.ones(6)}
        grads["w"][1, 0] = bad
        params = flat(w=np.ones((2, 3)), b=GOOD)
        for name, g in grads.items():
            params.grad[name] = g
        before = params.flat.copy()
        opt = fastgd.AdamW(params, on_nonfinite="raise", backend=backend)
        with pytest.raises(NonFiniteError, match=r"'w' is (nan|inf) at \(1, 0\)"):
            opt.step()
        skipping = fastgd.AdamW(params, on_nonfinite="skip", zero_grad=True, backend=backend)
        skipping.step()
        assert opt.t == skipping.t == 0
        assert np.array_equal(params.flat, before)
        assert not params.grad.flat.any()
        assert not skipping.state["exp_avg"].any()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e20), ("float64", 1e200)])
def test_large_finite_gradients_are_clipped_not_skipped(dtype, size):
    p = np.zeros(4, dtype)
    opt = fastgd.SGD(p, lr=1.0, max_norm=1.0, on_nonfinite="raise")
    opt.step(np.full(4, size, dtype))
    np.testing.assert_allclose(p, -0.5, rtol=1e-6)
    np.testing.assert_allclose(opt.grad_norm, 2 * size, rtol=1e-6)


def test_overflow_by_scale_is_an_overflow_unless_clipped():
    g = np.array([3e38, 1.0], np.float32)
    p = np.zeros(2, np.float32)
    opt = fastgd.SGD(p, lr=1.0, on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match=r"3e\+38, times 100, at \(0,\)"):
        opt.step(g, scale=100.0)
    assert p.tolist() == [0, 0]
    fastgd.SGD(p, lr=1.0, on_nonfinite="raise", max_norm=2.0).step(g, scale=1e30)
    np.testing.assert_allclose(p, [-2.0, 0.0], atol=1e-6)
    with pytest.raises(HyperparameterError, match="float32 holds, given 1e\\+40"):
        opt.step(g, scale=1e40)


def test_annotations_may_be_real_types():
    """A rule without `from __future__ import annotations`, as in the README."""
    fields = {"lr": float, "betas": tuple[float, float], "nesterov": bool, "mode": str}
    cls = dataclass(frozen=True, kw_only=True)(type("Typed", (Rule,), {"__annotations__": fields}))
    assert cls(lr=1, betas=[0.5, 0.6], nesterov=True, mode="x").betas == (0.5, 0.6)
    with pytest.raises(HyperparameterError, match="2 numbers"):
        cls(lr=1, betas=(0.5,), nesterov=True, mode="x")


def test_clip_with_nan_norm_propagates():
    p = np.zeros(3)
    fastgd.SGD(p, lr=1.0, max_norm=1.0).step(np.array([1.0, np.nan, 1.0]))
    assert np.isnan(p).all()


def test_zero_elements_are_a_step_that_counts():
    opt = fastgd.AdamW(np.zeros((0, 3)), max_norm=1.0)
    opt.step(np.zeros((0, 3)))
    assert opt.t == 1


def test_ema_has_the_form_of_params():
    p = {"a": np.zeros(2)}
    opt = fastgd.SGD(p, lr=1.0, ema_decay=0.5)
    assert opt.ema["a"].tolist() == [0, 0]
    opt.step({"a": np.ones(2)})
    assert opt.ema["a"].tolist() == [-0.5, -0.5]
    assert isinstance(fastgd.SGD(flat(), ema_decay=0.5).ema, fastgd.FlatParams)
    assert fastgd.SGD(flat()).ema is None


def test_zero_grad():
    params = flat()
    params.grad["w"], params.grad["b"] = 1, 2
    opt = fastgd.SGD(params)
    opt.zero_grad()
    assert not params.grad.flat.any()
    with pytest.raises(ArrayError, match="carry no grad"):
        fastgd.SGD(np.ones(3)).zero_grad()


@pytest.mark.parametrize("name", RULES)
def test_resumed_run_is_the_uninterrupted_one(name):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 100))
    start = rng.standard_normal(100)
    how = dict(ema_decay=0.9, max_norm=3.0)
    whole = start.copy()
    opt = fastgd.Optimizer(whole, RULES[name](), **how)
    for g in grads:
        opt.step(g)
    first = start.copy()
    before = fastgd.Optimizer(first, RULES[name](), **how)
    for g in grads[:3]:
        before.step(g)
    saved = before.state_dict()
    before.step(grads[3])  # what was saved is a copy
    second = fastgd.Optimizer(start.copy(), RULES[name](lr=0.5), **how)
    p = second.params
    check = fastgd.Optimizer(start.copy(), RULES[name](), **how)
    for g in grads[:3]:
        check.step(g)
    p[:] = check.params
    second.load_state_dict(saved)
    for g in grads[3:]:
        second.step(g)
    assert np.array_equal(p, whole)
    assert np.array_equal(second.ema, opt.ema)
    assert second.t == opt.t == 6
    for state in opt.state:
        assert np.array_equal(second.state[state], opt.state[state])


def test_a_state_that_does_not_fit_changes_nothing():
    opt = fastgd.AdamW(np.ones(3))
    opt.step(np.ones(3))
    good = opt.state_dict()
    wrong = [
        ({**good, "rule": "lion"}, "rule"),
        ({**good, "dtype": "float32"}, "dtype"),
        ({**good, "segments": [("params", (4,))]}, "segments"),
        ({k: v for k, v in good.items() if k != "t"}, "no 't'"),
        ({**good, "state": {}}, "must have"),
        ({**good, "state": {**good["state"], "exp_avg": np.zeros(4)}}, "exp_avg"),
        ({**good, "state": {**good["state"], "exp_avg": np.zeros(3, np.float32)}}, "exp_avg"),
        ({**good, "param_groups": []}, "groups"),
        ({**good, "param_groups": [{**good["param_groups"][0], "amsgrad": True}]}, "options"),
        ({**good, "ema": np.zeros(3)}, "ema"),
    ]
    before = opt.state["exp_avg"].copy()
    for state, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            opt.load_state_dict(state)
    with pytest.raises(HyperparameterError, match="lr"):
        opt.load_state_dict({**good, "param_groups": [{**good["param_groups"][0], "lr": -1.0}]})
    assert np.array_equal(opt.state["exp_avg"], before)
    assert opt.t == 1


def test_torch_tensors_share_their_memory():
    torch = pytest.importorskip("torch")
    p = torch.ones(3)
    fastgd.SGD(p, lr=1.0).step(torch.ones(3))
    assert p.tolist() == [0, 0, 0]
    with pytest.raises(ArrayError, match="shared"):
        fastgd.SGD(torch.ones(3, requires_grad=True))


def test_repr_tells_what_it_is():
    text = repr(fastgd.SGD(flat(), lr=0.5))
    for part in ("SGD(lr=0.5", "1 group", "12 elements", "float64", "numba", "t=0"):
        assert part in text


def test_ones_own_rule_gets_every_backend():
    from test_own_rule import Decaying

    results = []
    for backend in ("numpy", "numba"):
        p = np.ones(1000)
        opt = fastgd.Optimizer(p, Decaying(lr=0.1), backend=backend)
        for k in range(4):
            opt.step(np.full(1000, float(k)))
        results.append(p)
        assert opt.state["start"].tolist() == [1.0] * 1000
    assert np.array_equal(*results)
