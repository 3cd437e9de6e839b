"""The fused tail: clips, averages that rest at some steps, lookahead; each part alone and all against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import numbers, same_bits
from oracles import ORACLES, clip_global_norm, ema, global_norm
from test_oracles import problem

import fastgd
from fastgd.kernels import cpu
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.plan import plan, tail_bytes
from fastgd.kernels.rules import RULES
from fastgd.kernels.tail import Tail
from fastgd.schedules import swa

backends = pytest.mark.parametrize("backend", ["numpy", "numba"])


def close(given, expected, tolerance=1e-12):
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@backends
def test_elements_are_clipped_behind_the_norm(backend):
    start, grads = problem("float64", 10)
    params = [p.copy() for p in start]
    opt = fastgd.SGD(params, lr=0.1, momentum=0.5, max_norm=20.0, max_value=0.5, backend=backend)
    for g in grads:
        opt.step(g, scale=0.3)
    clipped = [[np.clip(g, -0.5, 0.5) for g in clip_global_norm([0.3 * g for g in step], 20.0)] for step in grads]
    assert any((np.abs(g) == 0.5).any() for g in clipped[0]) and any((np.abs(g) < 0.5).any() for g in clipped[0])
    close(params, ORACLES["sgd"](start, clipped, lr=0.1, momentum=0.5)[0])


@backends
def test_every_sweep_of_a_rule_sees_the_clipped_gradient(backend):
    start, grads = problem("float64", 5)
    params = [p.copy() for p in start]
    opt = fastgd.LAMB(params, lr=0.1, max_value=0.5, maximize=True, backend=backend)
    for g in grads:
        opt.step(g)
    clipped = [[-np.clip(g, -0.5, 0.5) for g in step] for step in grads]
    close(params, ORACLES["lamb"](start, clipped, lr=0.1)[0])


@backends
def test_infinity_is_clipped_and_nan_is_not(backend):
    p = np.zeros(4)
    opt = fastgd.GD(p, lr=1.0, max_value=2.0, backend=backend)
    opt.step(np.array([math.inf, -math.inf, math.nan, -0.0]))
    assert p[:2].tolist() == [-2.0, 2.0] and math.isnan(p[2]) and p[3] == 0
    skipping = fastgd.GD(np.zeros(2), lr=1.0, max_value=2.0, on_nonfinite="skip", backend=backend)
    skipping.step(np.array([math.inf, 1.0]))  # what is clipped away would hide it
    assert skipping.t == 0 and not skipping.params.any()


@backends
def test_swa_is_the_mean_of_the_chosen_steps(backend):
    start, grads = problem("float64", 12)
    params = [p.copy() for p in start]
    opt = fastgd.AdamW(params, lr=0.1, ema_decay=swa(4, every=3), zero_grad=True, backend=backend)
    seen, before = [], [e.copy() for e in opt.ema]
    for k, g in enumerate(grads, start=1):
        opt.step([x.copy() for x in g])
        if k < 4:
            close(opt.ema, before, 0)
        if k in (4, 7, 10):
            seen.append([p.copy() for p in params])
    close(opt.ema, [np.mean(parts, axis=0) for parts in zip(*seen, strict=True)])
    close(params, ORACLES["adamw"](start, grads, lr=0.1)[0])


@backends
def test_a_decay_may_be_a_schedule(backend):
    """The warm-up that thinc has."""
    start, grads = problem("float64", 8)
    params = [p.copy() for p in start]
    opt = fastgd.SGD(params, lr=0.1, ema_decay=lambda k: min(0.9999, (1 + k) / (10 + k)), backend=backend)
    means = [p.copy() for p in start]
    for k, g in enumerate(grads):
        opt.step(g)
        means = [m + (1 - (1 + k) / (10 + k)) * (p - m) for m, p in zip(means, params, strict=True)]
    close(opt.ema, means)


def lookahead(rule, start, grads, every, alpha, **hyper):
    """Zhang et al., arXiv:1907.08610, algorithm 1, with the inner optimizer's states kept."""
    slow, params = [p.copy() for p in start], [p.copy() for p in start]
    inner = fastgd.Optimizer(params, RULES[rule](**hyper), backend="numpy")
    for k, g in enumerate(grads, start=1):
        inner.step(g)
        if k % every == 0:
            slow = [s + alpha * (f - s) for s, f in zip(slow, params, strict=True)]
            for f, s in zip(params, slow, strict=True):
                f[:] = s
    return params, slow


@backends
@pytest.mark.parametrize("rule", ["adamw", "lamb", "sgd"])
def test_lookahead_equals_its_algorithm(rule, backend):
    start, grads = problem("float64", 11)
    params = [p.copy() for p in start]
    opt = fastgd.Optimizer(params, RULES[rule](lr=0.05), lookahead=(3, 0.4), backend=backend)
    for g in grads:
        opt.step(g)
    fast, slow = lookahead(rule, start, grads, 3, 0.4, lr=0.05)
    close(params, fast)
    close(opt.ema, slow)


@pytest.mark.parametrize("tail", [dict(lookahead=(2, 0.3)), dict(ema_decay=swa(2, 2))], ids=["lookahead", "swa"])
@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_averages_that_rest_have_the_same_bits_on_any_backend_and_threads(rule, tail):
    """The other parts of the tail are in test_bits."""
    sizes, results = (1, 65, 0, 40_001, 7), []
    for how in (dict(backend="numpy"), dict(threads=1), dict(threads=2)):
        rng = np.random.default_rng(4)
        params = [numbers(rng, n, np.float32, 0.001) for n in sizes]
        opt = fastgd.Optimizer(params, RULES[rule](lr=0.1), maximize=True, **tail, **how)
        for _ in range(5):
            opt.step([numbers(rng, n, np.float32, 0.001) for n in sizes])
        if how.get("threads") == 2:
            assert opt._layout.program.launches[0].sweeps[-1]._parallel
        results.append([*params, *opt.ema, *opt.state.values()])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("tail", [dict(lookahead=(3, 0.5)), dict(ema_decay=swa(2, 3))], ids=["lookahead", "swa"])
@pytest.mark.parametrize("cut", range(1, 8))
def test_a_run_resumed_between_any_steps_is_the_whole_run(tail, cut):
    start, grads = problem("float64", 9)
    whole = fastgd.AdamW([p.copy() for p in start], lr=0.1, **tail)
    first = fastgd.AdamW([p.copy() for p in start], lr=0.1, **tail)
    for g in grads:
        whole.step(g)
    for g in grads[:cut]:
        first.step(g)
    second = fastgd.AdamW([p.copy() for p in first.params], lr=0.5, **tail)
    second.load_state_dict(first.state_dict())
    for g in grads[cut:]:
        second.step(g)
    for a, b in zip([*second.params, *second.ema], [*whole.params, *whole.ema], strict=True):
        assert np.array_equal(a, b)


def test_scalar_states_are_one_for_both_tails():
    """A number that is kept from step to step must not stay behind where the average rests."""
    from test_own_rule import Decaying

    runs = []
    for tail in ({}, dict(lookahead=(2, 1.0))):  # back to themselves: the same parameters
        p = np.ones(5)
        opt = fastgd.Optimizer(p, Decaying(lr=0.2), **tail)
        for k in range(5):
            opt.step(np.full(5, k + 1.0))
        runs.append((p, opt.state_dict()["scalar_state"]))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-15)
    assert runs[0][1] == runs[1][1]


def test_an_average_that_rests_moves_no_byte():
    opt = fastgd.AdamW(np.ones(8, np.float32), ema_decay=swa(3))
    moving, resting = (p.bytes_per_param(4) for p in opt._layout.programs)
    assert (moving, resting, opt.bytes_per_param) == (36, 28, 36)
    used = []
    for _ in range(4):
        opt.step(np.ones(8, np.float32))
        used.append(opt._layout.program.bytes_per_param(4))
    assert used == [28, 28, 36, 36]


@pytest.mark.parametrize(
    ("tail", "kernels"),
    [
        ({}, 1),
        (dict(ema_decay=0.9, zero_grad=True, max_value=1.0), 1),
        (dict(ema_decay=0.9, zero_grad=True, max_norm=1.0, on_nonfinite="raise"), 2),  # with the norm's
        (dict(lookahead=(2, 0.5)), 2),
    ],
)
def test_one_combination_compiles_one_kernel(tail, kernels, monkeypatch):
    monkeypatch.setattr(cpu, "_KERNELS", {})
    opt = fastgd.AdamW([{"params": np.ones(5)}, {"params": np.ones(3), "lr": 0.5}], **tail)
    for k in range(4):
        opt.param_groups[1]["lr"] = 0.1 * k
        opt.step([np.ones(5), np.ones(3)])
    assert len(cpu._KERNELS) == kernels


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gd", dict(max_norm=16, ema_decay=20, zero_grad=16, all=28)),
        ("adamw", dict(max_norm=32, ema_decay=36, zero_grad=32, all=44)),
        ("lion", dict(max_norm=24, ema_decay=28, zero_grad=24, all=36)),
        ("lamb", dict(max_norm=44, ema_decay=48, zero_grad=44, all=56)),
    ],
)
def test_bytes_of_the_tail(rule, expected):
    assert tail_bytes(RULES[rule]()) == expected
    assert plan(RULES[rule](), Tail(max_value=True)).bytes_per_param(4) == plan(RULES[rule]()).bytes_per_param(4)
    opt = fastgd.Optimizer(np.ones(3, np.float32), RULES[rule](), max_norm=1.0, ema_decay=0.5, zero_grad=True)
    assert opt.bytes_per_param == expected["all"]


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (dict(max_value=0), "max_value must be a number, above 0, given 0"),
        (dict(max_value=1e39), "max_value must be a number that float32 holds, given 1e\\+39"),
        (dict(max_value="1"), "given '1'"),
        (dict(lookahead=5), "lookahead must be .* given 5"),
        (dict(lookahead=(0, 0.5)), r"given \(0, 0.5\)"),
        (dict(lookahead=(2.0, 0.5)), r"given \(2.0, 0.5\)"),
        (dict(lookahead=(2, 0.0)), r"given \(2, 0.0\)"),
        (dict(lookahead=(2, 1.5)), r"given \(2, 1.5\)"),
        (dict(lookahead=(2, 0.5), ema_decay=0.9), "one average, given"),
        (dict(ema_decay=lambda k: -0.1), "ema_decay, of a schedule, after 0 steps must be .*given -0.1"),
        (dict(ema_decay=lambda k: math.nan), "given nan"),
    ],
)
def test_bad_tails_are_named(tail, message):
    with pytest.raises(HyperparameterError, match=message) as caught:
        fastgd.AdamW(np.ones(3, np.float32), **tail)
    assert "\n" not in str(caught.value)


def test_a_decay_that_goes_wrong_changes_nothing():
    p = np.ones(3)
    opt = fastgd.SGD(p, lr=1.0, ema_decay=lambda k: 0.5 if k < 1 else 2.0)
    opt.step(np.ones(3))
    for _ in range(2):
        with pytest.raises(HyperparameterError, match=r"after 1 steps must be .* at most 1, given 2\.0"):
            opt.step(np.ones(3))
    assert (opt.t, p.tolist(), opt.ema.tolist()) == (1, [0.0] * 3, [0.5] * 3)


@pytest.mark.parametrize("form", ["one", "many"])
def test_twenty_steps_equal_torchs_passes(form):
    """Clip, fused AdamW, EMA and zeroed gradients, in the passes that torch makes of them."""
    torch = pytest.importorskip("torch")
    shapes = [(700_001,)] if form == "one" else [(64, 33), (64,), (3, 5, 7), (1,), (4097,)] * 10
    start, grads = problem("float32", 20, shapes)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    means = [p.detach().clone() for p in theirs]
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, fused=True)
    params = fastgd.FlatParams({str(i): p for i, p in enumerate(start)})
    opt = fastgd.AdamW(params, lr=1e-2, weight_decay=0.1, max_norm=30.0, ema_decay=0.9, zero_grad=True)
    for step in grads:
        for p, g in zip(theirs, step, strict=True):
            p.grad = torch.from_numpy(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 30.0)
        reference.step()
        torch._foreach_lerp_(means, [p.detach() for p in theirs], 0.1)
        reference.zero_grad(set_to_none=False)
        for i, g in enumerate(step):
            params.grad[str(i)] = g
        opt.step()
        assert not params.grad.flat.any()
        assert opt.grad_norm == pytest.approx(global_norm(step), rel=1e-6)
        assert opt.grad_norm == pytest.approx(norm.item(), rel=1e-4) and norm > 30.0  # torch's is off by 4e-5
    for i, (p, e) in enumerate(zip(theirs, means, strict=True)):
        np.testing.assert_allclose(params[str(i)], p.detach().numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(opt.ema[str(i)], e.numpy(), rtol=1e-6, atol=1e-6)


@backends
def test_constant_decay_is_still_an_ema(backend):
    start, grads = problem("float64", 6)
    params, history = [p.copy() for p in start], [start]
    opt = fastgd.SGD(params, lr=0.1, ema_decay=0.8, max_value=1e6, backend=backend)
    for g in grads:
        opt.step(g)
        history.append([p.copy() for p in params])
    close(opt.ema, ema(history, 0.8))
