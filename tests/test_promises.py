"""Everyday promises: what a step allocates, copies of an optimizer, what it says of itself, very large arrays."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import tracemalloc
from importlib import metadata

import numpy as np
import pytest

import fastgd
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES


def peak(step):
    step()
    step()
    tracemalloc.start()
    try:
        step()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1000, 100_000])
@pytest.mark.parametrize("name", [n for n in RULES if plan(RULES[n]()).matrix is None])  # those need room for products
def test_a_step_allocates_no_array(name, size):
    for tail in ({}, dict(max_norm=1.0, ema_decay=0.9, zero_grad=True, on_nonfinite="skip")):
        opt = fastgd.Optimizer(np.ones(size), RULES[name](), **tail)
        fresh = iter([np.ones(size) for _ in range(8)])
        assert peak(lambda opt=opt, fresh=fresh: opt.step(next(fresh))) < 7900  # of numbers and names
    params = fastgd.FlatParams({str(k): (size // 10,) for k in range(10)})
    assert peak(fastgd.Optimizer(params, RULES[name]()).step) < 7900


def test_deepcopy_goes_its_own_way():
    params = fastgd.FlatParams({"w": np.ones((2, 3)), "b": np.zeros(3)})
    schedules = [lambda k: 0.1 / (k + 1)]
    groups = [{"params": params, "lr": schedules[0]}, {"match": "b", "weight_decay": 0.0}]
    opt = fastgd.AdamW(groups, ema_decay=0.9, max_norm=1.0, on_nonfinite="skip", zero_grad=True, maximize=True)
    params.grad["w"], params.grad["b"] = 1, 1
    opt.step()
    opt.param_groups[1]["lr"] = 0.5
    both = copy.deepcopy({"params": params, "opt": opt})
    twin, other = both["opt"], both["params"]
    assert twin.params[0]["params"] is other is not params
    assert repr(twin.param_groups[1]["lr"]) == "0.5" and twin.param_groups[0]["lr"] is schedules[0]
    assert (twin.t, twin.grad_norm, twin.backend) == (1, opt.grad_norm, opt.backend)
    before = params.flat.copy()
    for grad in (other.grad, params.grad):
        grad["w"], grad["b"] = 2, -1
    twin.step()
    assert np.array_equal(params.flat, before) and opt.t == 1
    opt.step()
    assert np.array_equal(params.flat, other.flat)
    assert np.array_equal(opt.ema[0].flat, twin.ema[0].flat)
    assert all(np.array_equal(opt.state[k], twin.state[k]) for k in opt.state)
    twin.zero_grad()
    assert not other.grad.flat.any() and not params.grad.flat.any()


@pytest.mark.parametrize("copies", [copy.copy, pickle.dumps], ids=["copy", "pickle"])
def test_an_optimizer_is_not_pickled(copies):
    with pytest.raises(TypeError, match=r"Adam is bound to its arrays.*opt.state_dict\(\).*load_state_dict"):
        copies(fastgd.Adam(np.ones(3)))


def test_its_state_is():
    p = np.ones(3)
    opt = fastgd.Adam(p)
    opt.step(np.ones(3))
    state = pickle.loads(pickle.dumps(opt.state_dict()))
    other = fastgd.Adam(p.copy())
    other.load_state_dict(state)
    assert other.t == 1 and np.array_equal(other.state["exp_avg"], opt.state["exp_avg"])


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_of_flat_params_are_views_of_one_block(copies):
    params = fastgd.FlatParams({"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    params.grad["b"][:] = 7
    other = copies(params)
    assert other.segments == params.segments and other.dtype == params.dtype
    assert other.grad["b"].tolist() == [7] * 3
    other["w"][:] = 5
    assert other.flat[:6].tolist() == [5] * 6
    assert params.flat[:6].tolist() == [1] * 6


def test_a_value_that_was_set_is_saved_before_the_next_step():
    opt = fastgd.SGD(np.zeros(2), lr=lambda k: 0.5**k, weight_decay=0.1)
    opt.step(np.ones(2))
    opt.step(np.ones(2))
    opt.param_groups[0]["weight_decay"] = 0.2
    assert (
        opt.state_dict()["param_groups"][0] | {"t": 2, "weight_decay": 0.2, "lr": 0.5}
        == (opt.state_dict()["param_groups"][0])
    )


def test_a_saved_value_is_a_copy():
    opt, betas = fastgd.Adam(np.ones(2)), [0.5, 0.9]
    opt.param_groups[0]["betas"] = betas
    state = opt.state_dict()
    betas[0] = 0.1
    assert state["param_groups"][0]["betas"] == (0.5, 0.9)


def test_deepcopy_keeps_what_a_subclass_holds():
    class Tagged(fastgd.SGD):
        pass

    class Schedule:
        def __call__(self, k):
            return 0.1

    opt, schedule = Tagged(np.ones(2)), Schedule()
    opt.tag, opt.param_groups[0]["lr"], schedule.opt = [1], schedule, opt
    twin = copy.deepcopy(opt)
    assert twin.tag == [1] and twin.tag is not opt.tag
    assert twin.param_groups[0]["lr"].opt is twin


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_of_gradients_are_views_of_one_block(copies):
    params = fastgd.FlatParams({"w": np.zeros((2, 3))})
    grad = copies(params.grad)
    grad["w"][:] = 1
    fastgd.SGD(params, lr=1.0).step(grad)
    assert params["w"].tolist() == [[-1] * 3] * 2


def test_repr():
    params = fastgd.FlatParams({"w": np.ones((2, 3)), "b": np.zeros(6)})
    opt = fastgd.SGD([{"params": params}, {"match": "b", "lr": 0.5}], lr=0.25)
    params.grad.flat[:] = 1
    opt.step()
    text = repr(opt)
    for part in ("SGD(SGD(lr=0.25", "2 groups", "12 elements", "float64", "backend='numba'", "t=1"):
        assert part in text
    assert "1 group," in repr(fastgd.Adam(np.ones(3)))


def test_version_is_that_of_the_metadata():
    assert fastgd.__version__ == metadata.version("fastgd")
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastgd.__version__)


def test_notes_go_to_the_logger(caplog, monkeypatch, tmp_path):
    (tmp_path / "in-the-way").write_text("")
    monkeypatch.setenv("FASTGD_CACHE", str(tmp_path / "in-the-way"))
    with caplog.at_level(logging.INFO, "fastgd"):
        opt = fastgd.SGD(np.ones(3), dampening=0.5, momentum=0.5, ema_decay=0.25, zero_grad=True)
        from fastgd.kernels import cpu

        monkeypatch.setattr(cpu, "_KERNELS", {})
        opt.step(np.ones(3))
    assert [r.name for r in caplog.records] == ["fastgd"]
    assert "compiled anew in each process" in caplog.text and "in-the-way" in caplog.text


@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    """8 GiB are written; the gradient is 8 GiB of zeros that were never made, but for two pages."""
    n = 2**31 + 5
    p, g = np.zeros(n, np.float32), np.zeros(n, np.float32)
    p[-3:], g[-3:] = 1, [1, 2, 3]
    g[2**31 - 1 : 2**31 + 1] = 4
    opt = fastgd.SGD(p, lr=0.5, max_norm=100.0)
    opt.step(g)
    assert p[-3:].tolist() == [0.5, 0.0, -0.5]
    assert p[2**31 - 1 : 2**31 + 2].tolist() == [-2.0, -2.0, 0.0]
    assert np.count_nonzero(p[: 1 << 20]) == 0
    assert opt.grad_norm == pytest.approx(np.sqrt(14 + 32), rel=1e-6)
