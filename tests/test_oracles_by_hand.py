"""The oracles themselves: on paper, against torch.optim and against optax, without any rule of fastgd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from oracles import EXTRA_KEYWORDS, ORACLES, SETTINGS, Segments, schedule_free_x, schedule_free_y

STEPS = 20


def problem() -> tuple[Segments, list[Segments]]:
    """Parameters of size one, and gradients with a drift, of magnitudes from 1e-3 to 10, some of them zero."""
    rng = np.random.default_rng(5)
    shapes = [(1,), (7,), (5, 13)]
    start = [rng.choice((-1.0, 1.0), s) * rng.uniform(0.5, 2.0, s) for s in shapes]
    drift = [10.0 ** rng.uniform(-3, 1, s) for s in shapes]
    grads = [
        [d * (rng.standard_normal(d.shape) + 0.5) * (rng.random(d.shape) > 0.05) for d in drift] for _ in range(STEPS)
    ]
    return start, grads


def error(given: Segments, expected: Segments) -> float:
    """Largest difference, relative to the largest expected value of its segment."""
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(given, expected, strict=True))


def label(name: str, hyper: dict[str, Any]) -> str:
    return "-".join([name, *(f"{k}={v}" for k, v in hyper.items() if k != "lr")])


def run(name: str, start: list[float], *grads: list[float], **hyper: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Parameters and states of one segment."""
    (x,), states = ORACLES[name]([np.array(start)], [[np.array(g)] for g in grads], **hyper)
    return x, {state: parts[0] for state, parts in states.items()}


def equal(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(given, expected, rtol=1e-14, atol=1e-15)


# ---- on paper


def test_signum_oracle_by_hand() -> None:
    """Two steps; the average votes, not the gradient, and without a gradient x only decays."""
    hyper = dict(lr=0.1, momentum=0.5, weight_decay=0.5)
    # m = (1/2, -1/2, 0), then (1/8, 7/4, 0): the first gradient has turned, its average has not.
    x, states = run("signum", [2.0, 2.0, 2.0], [1.0, -1.0, 0.0], [-0.25, 4.0, 0.0], **hyper)
    equal(x, [0.95 * (0.95 * 2 - 0.1) - 0.1, 0.95 * (0.95 * 2 + 0.1) - 0.1, 0.95**2 * 2])
    equal(states["exp_avg"], [0.125, 1.75, 0.0])
    # Without momentum the gradient votes itself, and nothing is kept.
    x, states = run("signum", [2.0, 2.0, 2.0], [1.0, -1.0, 0.0], [-0.25, 4.0, 0.0], lr=0.1, momentum=0.0)
    equal(x, [2.0, 2.0, 2.0])
    assert states == {}


def test_sgd_oracle_with_lr_in_momentum_by_hand() -> None:
    """Sutskever's w = momentum w - lr y; the buffer is -w."""
    hyper = dict(lr=0.5, momentum=0.5, lr_in_momentum=True)
    # w = -1/2 undamped; then -1/4 - 1/2 * 1/4 * 4
    x, states = run("sgd", [0.0], [1.0], [4.0], **hyper, dampening=0.75)
    equal(x, [-0.5 - 0.75])
    equal(states["momentum_buffer"], [0.75])
    # Nesterov: w = -1/2, -9/4, and half of it with the step of the plain gradient
    x, states = run("sgd", [0.0], [1.0], [4.0], **hyper, nesterov=True)
    equal(x, [(-0.25 - 0.5) + (-1.125 - 2.0)])
    equal(states["momentum_buffer"], [2.25])
    # Without momentum there is nothing to hold it.
    x, states = run("sgd", [0.0], [1.0], [4.0], lr=0.5, lr_in_momentum=True)
    equal(x, [-2.5])
    assert states == {}


def test_adamax_oracle_by_hand() -> None:
    """The two places of eps, here 1: |y| = 3, then 0 with a maximum that halves."""
    hyper = dict(lr=1.0, betas=(0.5, 0.5), eps=1.0)
    # Inside, u = 3 + 1, then max(2, 0 + 1); outside, 3, then 3/2, with 1 added for the division only.
    x, states = run("adamax", [0.0], [3.0], [0.0], **hyper)
    equal(x, [-3 / 4 - (0.75 / 0.75) / 2])
    equal(states["exp_inf"], [2.0])
    x, states = run("adamax", [0.0], [3.0], [0.0], **hyper, eps_mode="outside")
    equal(x, [-3 / 4 - (0.75 / 0.75) / 2.5])
    equal(states["exp_inf"], [1.5])


def test_adabelief_oracle_by_hand() -> None:
    """Two steps without rectification; eps = 3/4 enters the average and is kept there, and its root again."""
    hyper = dict(lr=11 / 8, betas=(0.5, 0.75), eps=0.75, rectify=False)
    # y = 2: m = 1, surprise 2 - 1, s = 1/4 + 3/4 = 1; corrected 2 / (sqrt(1 / (1/4)) + 3/4) = 8/11.
    # y = 3: m = 2, surprise 3 - 2, s = 3/4 + 1/4 + 3/4 = 7/4; corrected (8/3) / (sqrt((7/4) / (7/16)) + 3/4) = 32/33.
    x, states = run("adabelief", [1.0], [2.0], [3.0], **hyper)
    equal(x, [1 - 1 - 4 / 3])
    equal(states["exp_avg"], [2.0])
    equal(states["exp_avg_var"], [1.75])


def test_adabelief_oracle_keeps_the_largest_surprise_by_hand() -> None:
    """With amsgrad, rectified or not: s falls from 1/2 to 1/4 when y = 1 meets an average that becomes 1."""
    hyper = dict(lr=1.0, betas=(0.5, 0.5), eps=0.0, amsgrad=True)
    x, states = run("adabelief", [0.0], [2.0], [1.0], **hyper, rectify=False)
    equal(x, [-2 / math.sqrt(0.5 / 0.5) - (1 / 0.75) / math.sqrt(0.5 / 0.75)])
    equal(states["exp_avg_var"], [0.25])
    equal(states["max_exp_avg_var"], [0.5])
    # Rectified, step 7 is the first of a length of 5 for beta_2 = 7/8: 15 - 14 * 7^7 / (8^7 - 7^7) is 5.95, 4.79 at 6.
    hyper |= dict(lr=1e-3, betas=(0.5, 0.875))
    grads = [[8.0], *[[1.0]] * 6]
    before, _ = run("adabelief", [0.0], *grads[:-1], **hyper)
    x, states = run("adabelief", [0.0], *grads, **hyper)
    assert states["exp_avg_var"] < 0.6 * states["max_exp_avg_var"]
    length = 15 - 14 * 7**7 / (8**7 - 7**7)
    factor = math.sqrt((length - 4) * (length - 2) * 15 / (11 * 13 * length) * (1 - 0.875**7))
    m = 4 / 2**6 + 1 - 1 / 2**6  # of the first gradient, and of the ones
    equal(states["exp_avg"], [m])
    equal(x, before - 1e-3 * factor * m / (1 - 2**-7) / np.sqrt(states["max_exp_avg_var"]))


def test_adabelief_oracle_decays_by_hand() -> None:
    """Three decays of a step that is not yet rectified: -lr y."""
    hyper = dict(lr=0.5, weight_decay=0.25)
    equal(run("adabelief", [2.0], [1.0], **hyper)[0], [2 * (1 - 0.125) - 0.5])
    equal(run("adabelief", [2.0], [1.0], **hyper, fixed_decay=True)[0], [2 * (1 - 0.25) - 0.5])
    for fixed in (False, True):  # no decay to fix where it is part of the gradient
        hyper["fixed_decay"] = fixed
        equal(run("adabelief", [2.0], [1.0], **hyper, weight_decouple=False)[0], [2 - 0.5 * 1.5])


def test_yogi_oracle_by_hand() -> None:
    """Both averages start at 1, and the second follows the squares by an eighth of them, up or down."""
    hyper = dict(lr=1.0, betas=(0.5, 0.875), eps=1.0, initial_accumulator_value=1.0)
    # y = 2: v = 1 + 4/8; y = 0: as it is; y = 1: v = 3/2 - 1/8
    x, states = run("yogi", [0.0], [2.0], **hyper)
    equal(states["exp_avg"], [1.5])
    equal(states["exp_avg_sq"], [1.5])
    equal(x, [-(1.5 / 0.5) / (math.sqrt(1.5 / 0.125) + 1)])
    _, states = run("yogi", [0.0], [2.0], [0.0], **hyper)
    equal(states["exp_avg_sq"], [1.5])
    _, states = run("yogi", [0.0], [2.0], [0.0], [1.0], **hyper)
    equal(states["exp_avg_sq"], [1.375])


def test_ademamix_oracle_by_hand() -> None:
    """Two steps of a warm-up in which half-lives come out even."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75, 0.5 ** (1 / 3)), alpha=2.0, t_alpha=4, t_beta3=2, eps=0.0, weight_decay=0.5)
    # The half-lives are 1 for beta_1 and 3 for the last beta_3: at step 1 of 2 it is 2, at step 2 it has arrived.
    # y = 4: m = 2 over 1/2, slow = 4 (1 - sqrt(1/2)) with weight 2/4, v = 4 over 1/4; decay 2/2.
    x, states = run("ademamix", [2.0], [4.0], **hyper)
    slow = 4 * (1 - math.sqrt(0.5))
    equal(states["exp_avg_slow"], [slow])
    first = 2 - 0.1 * ((4 + 0.5 * slow) / 4 + 1)
    equal(x, [first])
    # y = 0: m = 1 over 3/4, weight 2 * 2/4, v = 3 over 7/16
    x, states = run("ademamix", [2.0], [4.0], [0.0], **hyper)
    slow *= 0.5 ** (1 / 3)
    equal(states["exp_avg_slow"], [slow])
    equal(x, [first - 0.1 * ((4 / 3 + slow) / math.sqrt(48 / 7) + 0.5 * first)])
    # The weight stops at 2; of a constant gradient the other averages, corrected, are 4 and 16.
    before, _ = run("ademamix", [2.0], *[[4.0]] * 8, **hyper)
    x, states = run("ademamix", [2.0], *[[4.0]] * 9, **hyper)
    equal(x, before - 0.1 * ((4 + 2 * states["exp_avg_slow"]) / 4 + 0.5 * before))


def test_adopt_oracle_by_hand() -> None:
    """The first gradient moves nothing; the second is over the root of the first, bounded from both sides."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75), eps=0.5, weight_decay=0.5, decouple=True, clip_exponent=1.0)
    x, states = run("adopt", [2.0, 2.0], [2.0, 0.1], **hyper)
    equal(x, [2.0, 2.0])
    equal(states["exp_avg_sq"], [4.0, 0.01])
    assert not states["exp_avg"].any()
    # k = 1, bound 1: 1/2 and 3 over eps = 1/2, which is 6; decay 1
    x, states = run("adopt", [2.0, 2.0], [2.0, 0.1], [1.0, 3.0], **hyper)
    first = [2 - 0.1 * (0.25 + 1), 2 - 0.1 * (0.5 + 1)]
    equal(x, first)
    equal(states["exp_avg"], [0.25, 0.5])
    equal(states["exp_avg_sq"], [3.25, 0.0075 + 2.25])
    # k = 2, bound 2: 0, and 20 over 1.5, of the squares before it
    x, states = run("adopt", [2.0, 2.0], [2.0, 0.1], [1.0, 3.0], [0.0, -20.0], **hyper)
    equal(states["exp_avg"], [0.125, 0.25 - 1.0])
    equal(x, [0.95 * first[0] - 0.0125, 0.95 * first[1] + 0.075])
    # Without a bound it is 6.
    _, states = run("adopt", [2.0, 2.0], [2.0, 0.1], [1.0, 3.0], **{**hyper, "clip_exponent": None})
    equal(states["exp_avg"], [0.25, 3.0])
    # Not decoupled, the decay is part of the first gradient too: 1 + 2/2.
    x, states = run("adopt", [2.0], [1.0], **{**hyper, "decouple": False})
    equal(x, [2.0])
    equal(states["exp_avg_sq"], [4.0])


def test_adan_oracle_by_hand() -> None:
    """Two steps with beta_2 = 3/4, where 1 - beta_2 would be another number."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75, 0.5), eps=0.0, weight_decay=0.5)
    # y = 2, with no difference: m = 1 over 1/2, n = 2 over 1/2. The proximal decay divides, the other is of the old x.
    first, _ = run("adan", [2.0], [2.0], **hyper)
    equal(first, [(2 - 0.1) / 1.05])
    equal(run("adan", [2.0], [2.0], **hyper, no_prox=True)[0], [2 * 0.95 - 0.1])
    # y = 4, difference 2: m = 5/2 over 3/4, d = 1/2 over 7/16, n = 1 + (4 + 3/2)^2 / 2 over 3/4
    x, states = run("adan", [2.0], [2.0], [4.0], **hyper)
    equal(states["exp_avg_diff"], [0.5])
    equal(states["exp_avg_sq"], [16.125])
    equal(states["pre_grad"], [4.0])
    equal(x, (first - 0.1 * (10 / 3 + 0.75 * 8 / 7) / math.sqrt(21.5)) / 1.05)


def test_sophiag_oracle_by_hand() -> None:
    """Two steps, without curvature and with a curvature that leaves steps of 3/4, 1 (clipped) and 1/4."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75), rho=0.5, bs=4.0, weight_decay=0.5)
    grads = [[2.0, -2.0, 0.0], [2.0, -9.0, 1.0]]
    x, states = run("sophiag", [2.0, 2.0, 2.0], grads[0], **hyper)
    first = np.array([0.95 * 2 - 0.1, 0.95 * 2 + 0.1, 0.95 * 2])
    equal(x, first)
    assert not states["hessian"].any()
    # h = 4/4, rho bs h = 2, known before step 2 moves; m = (3/2, -5, 1/2)
    drawn = {2: [np.array([2.0, -2.0, 2.0])]}
    x, states = run("sophiag", [2.0, 2.0, 2.0], *grads, **hyper, hessians=drawn)
    equal(states["exp_avg"], [1.5, -5.0, 0.5])
    equal(states["hessian"], [1.0, 1.0, 1.0])
    equal(x, 0.95 * first - 0.1 * np.array([0.75, -1.0, 0.25]))


@pytest.mark.parametrize("setting", SETTINGS["sophiag"])
def test_settings_of_sophiag_clip_some_steps_and_leave_others(setting: dict[str, Any]) -> None:
    """With gradients of the tests' magnitudes as the drawn ones."""
    start, grads = problem()
    hyper = {**setting, "weight_decay": 0.0}
    drawn = {k: grads[-k] for k in range(2, STEPS, 3)}
    before, _ = ORACLES["sophiag"](start, grads[:-1], **hyper, hessians=drawn)
    after, _ = ORACLES["sophiag"](start, grads, **hyper, hessians=drawn)
    steps = np.concatenate([np.abs(a - b).ravel() for a, b in zip(after, before, strict=True)]) / setting["lr"]
    clipped = np.mean(steps > 1 - 1e-9)
    assert 0.1 < clipped < 0.9


def test_grams_oracle_by_hand() -> None:
    """Two steps; at the second the gradient points down while the average still points up."""
    hyper = dict(lr=0.1, betas=(0.75, 0.75), eps=1.0, weight_decay=0.5)
    # y = 2: m = 1/2 over 1/4, v = 1, sqrt(1/4) 2 / (1 + 1) = 1/2
    x, _ = run("grams", [1.0], [2.0], **hyper)
    equal(x, [0.95 - 0.05])
    # y = -1: m = 3/8 - 1/4 = 1/8 over 7/16, v = 3/4 + 1/4, sqrt(7/16) (2/7) / 2
    x, states = run("grams", [1.0], [2.0], [-1.0], **hyper)
    equal(states["exp_avg"], [0.125])
    equal(x, [0.95 * 0.9 + 0.1 * math.sqrt(7) / 28])


def test_schedulefreesgd_oracle_by_hand() -> None:
    """Three steps with a warm-up of two and weights k rate^2; at the third gradient and decay at y cancel."""
    hyper = dict(lr=1.0, momentum=0.5, warmup_steps=2.0, r=1.0)
    # rate 1/2, weight 1/4 of 1/4: z = x = y = 4 - 1. Rate 1, weight 2 of 9/4: z = 3 - 4, x = 3/9 - 8/9, y between.
    equal(run("schedulefreesgd", [4.0], [2.0], **hyper)[0], [3.0])
    y, states = run("schedulefreesgd", [4.0], [2.0], [4.0], **hyper)
    equal(y, [-7 / 9])
    equal(states["z"], [-1.0])
    (x,) = schedule_free_x([y], [states["z"]], 0.5)
    equal(x, [-5 / 9])
    (back,) = schedule_free_y([x], [states["z"]], 0.5)
    equal(back, y)
    # With decay 1/2: z = x = 4 - (2 + 2) / 2, then z = 2 - (3 + 1), x = 2/9 - 16/9, y = -16/9; then z stays, and its
    # weight is 3 of 21/4.
    y, states = run("schedulefreesgd", [4.0], [2.0], [3.0], [8 / 9], **hyper, weight_decay=0.5)
    equal(states["z"], [-2.0])
    equal(y, [(3 / 7 * (-14 / 9) + 4 / 7 * -2 - 2) / 2])
    # The largest rate so far weighs; with the power 0 all weigh the same.
    y, _ = run("schedulefreesgd", [4.0], [2.0], [4.0], **{**hyper, "r": 0.0}, weight_lr_power=0.0)
    equal(y, [(3 / 2 - 1 / 2 - 1) / 2])


def test_schedulefreeadamw_oracle_by_hand() -> None:
    """Three steps of gradients 2, 2, -2, whose corrected root is 2: with eps = 2 they count 1/2, 1/2, -1/2."""
    hyper = dict(lr=1.0, betas=(0.5, 0.75), eps=2.0, weight_decay=0.5)
    # 4 - (1/2 + 2); then z = 3/2 - (1/2 + 3/4), x = (3/2 + 1/4) / 2, y = 9/16; then z += 1/2 - 9/32, with weight 1/3
    assert run("schedulefreeadamw", [4.0], [2.0], **hyper)[0] == 1.5
    assert run("schedulefreeadamw", [4.0], [2.0], [2.0], **hyper)[0] == 0.5625
    y, states = run("schedulefreeadamw", [4.0], [2.0], [2.0], [-2.0], **hyper)
    z = 0.25 + 0.5 - 0.28125
    equal(states["z"], [z])
    equal(states["exp_avg_sq"], [4 * (1 - 0.75**3)])
    equal(y, [((2 / 3) * 0.875 + z / 3 + z) / 2])


@pytest.mark.parametrize("setting", SETTINGS["schedulefreesgd"])
def test_schedule_free_needs_no_x(setting: dict[str, Any]) -> None:
    """The authors' code updates y by itself: c towards z, then by rate (beta (1 - c) - 1) times the direction."""
    start, grads = problem()
    ys, zs = [s.copy() for s in start], [s.copy() for s in start]
    hyper = dict(momentum=0.9, weight_decay=0.0, warmup_steps=0.0, r=0.0, weight_lr_power=2.0) | setting
    peak, total = -1.0, 0.0
    for k, step in enumerate(grads):
        rate = hyper["lr"] * ((k + 1) / hyper["warmup_steps"] if k < hyper["warmup_steps"] else 1.0)
        peak = max(peak, rate)
        weight = (k + 1) ** hyper["r"] * peak ** hyper["weight_lr_power"]
        total += weight
        c = weight / total
        for i, gradient in enumerate(step):
            d = gradient + hyper["weight_decay"] * ys[i]
            ys[i] = ys[i] + c * (zs[i] - ys[i]) + rate * (hyper["momentum"] * (1 - c) - 1) * d
            zs[i] = zs[i] - rate * d
    xs, states = ORACLES["schedulefreesgd"](start, grads, **setting)
    assert error(xs, ys) < 1e-13
    assert error(states["z"], zs) < 1e-13


def test_lars_oracle_by_hand() -> None:
    """Norms of 5 and 3; the ratio, its bound, and the 1 in its place where a norm is 0."""
    hyper = dict(lr=0.4, momentum=0.5, trust_coeff=2.0, eps=0.0, always_adapt=True)
    # 2 * 5/5 (0, 5), then 2 * 3/6 (0, 6)
    x, states = run("lars", [3.0, 4.0], [0.0, 5.0], [0.0, 6.0], **hyper, dampening=0.5)
    equal(states["momentum_buffer"], [0.0, 8.0])
    equal(x, [3.0, 4 - 0.4 * 10 - 0.4 * 8])
    equal(run("lars", [3.0, 4.0], [0.0, 5.0], **hyper, nesterov=True)[0], [3.0, 4 - 0.4 * 15])
    # 5 / (5 + 5/2 + 5/2) of (4, 3) + (3, 4) / 2; over lr it is 5/4, or 1/4 with lr = 2
    hyper = dict(weight_decay=0.5, trust_coeff=1.0, eps=2.5)
    x, states = run("lars", [3.0, 4.0], [4.0, 3.0], **hyper, lr=0.4)
    equal(x, [3 - 0.4 * 2.75, 4 - 0.4 * 2.5])
    assert states == {}
    equal(run("lars", [3.0, 4.0], [4.0, 3.0], **hyper, lr=0.4, trust_clip=True)[0], [3 - 0.4 * 5.5, 4 - 0.4 * 5])
    equal(run("lars", [3.0, 4.0], [4.0, 3.0], **hyper, lr=2.0, trust_clip=True)[0], [3 - 2 * 1.375, 4 - 2 * 1.25])
    equal(run("lars", [3.0, 4.0], [0.0, 0.0], **hyper, lr=0.4)[0], [0.8 * 3, 0.8 * 4])
    equal(run("lars", [3.0, 4.0], [0.0, 0.0], **hyper, lr=2.0, trust_clip=True)[0], [3 - 2 * 0.75, 4 - 2 * 1])
    equal(run("lars", [0.0, 0.0], [4.0, 3.0], **hyper, lr=0.4)[0], [-1.6, -1.2])
    equal(run("lars", [3.0, 4.0], [4.0, 3.0], lr=0.4)[0], [3 - 1.6, 4 - 1.2])


def test_lamb_oracle_with_the_options_of_apex_by_hand() -> None:
    """Each way to the direction (1/2, -1/2) + (3/2, 2) of norm 5/2, where the parameters' is 5."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    x, states = run("lamb", [3.0, 4.0], [1.0, -1.0], **hyper, eps=0.5, bias_correction=False)
    equal(x, [2.6, 3.7])
    equal(states["exp_avg"], [0.5, -0.5])
    x, states = run("lamb", [3.0, 4.0], [1.0, -1.0], **hyper, eps=3.0, grad_averaging=False)
    equal(x, [2.6, 3.7])
    equal(states["exp_avg"], [1.0, -1.0])
    # The decay turns the gradient from -1 to 1, and is not in the direction 1/2 again.
    x, states = run("lamb", [4.0], [-1.0], **hyper, eps=1.0, adam_w_mode=False)
    equal(x, [4 - 0.1 * 8 * 0.5])
    equal(states["exp_avg"], [0.5])


def test_novograd_oracle_by_hand() -> None:
    """Norms of 5, then sqrt(3/4 25 + 1/4 121) = 7."""
    hyper = dict(lr=0.5, betas=(0.5, 0.75), eps=0.0)
    plain = dict(weight_decay=0.5, bias_correction=False)
    grads = [3.0, 4.0], [0.0, 11.0]
    # (3, 4) / 2 over 5, and 1/2; then (3/4, 1 + 11/2) over 7
    equal(run("novograd", [1.0, 1.0], grads[0], **hyper, **plain)[0], [0.6, 0.55])
    x, states = run("novograd", [1.0, 1.0], *grads, **hyper, **plain)
    equal(states["exp_avg"], [0.75, 6.5])
    equal(x, [0.6 - 0.5 * (0.75 / 7 + 0.3), 0.55 - 0.5 * (6.5 / 7 + 0.275)])
    # Inside: half of (3/5, 4/5) + 1/2; then half of that and half of (0, 11/7) and the decay
    equal(run("novograd", [1.0, 1.0], grads[0], **hyper, **plain, reg_inside_moment=True)[0], [0.725, 0.675])
    x, states = run("novograd", [1.0, 1.0], *grads, **hyper, **plain, reg_inside_moment=True)
    m = np.array([0.275 + 0.18125, 0.325 + 5.5 / 7 + 0.16875])
    equal(states["exp_avg"], m)
    equal(x, [0.725 - 0.5 * m[0], 0.675 - 0.5 * m[1]])
    # Corrected, (3, 4) over 5 / sqrt(1/4), or over 5/2 / sqrt(1/4) from 0
    equal(run("novograd", [0.0, 0.0], grads[0], **hyper)[0], [-0.15, -0.2])
    equal(run("novograd", [0.0, 0.0], grads[0], **hyper, init_zero=True)[0], [-0.3, -0.4])
    equal(run("novograd", [0.0, 0.0], grads[0], **hyper, bias_correction=False, grad_averaging=False)[0], [-0.3, -0.4])
    for inside in (False, True):  # nothing over nothing
        hyper |= dict(weight_decay=0.5, reg_inside_moment=inside)
        equal(run("novograd", [1.0, 1.0], [0.0, 0.0], **hyper)[0], [0.75, 0.75])


def test_stableadamw_oracle_by_hand() -> None:
    """At step 2 the betas are 1/3 and 3/7, the root is 4, and a gradient of 5 makes the rate 4/5 of lr."""
    hyper = dict(lr=0.5, betas=(0.5, 0.75), eps=4.0, weight_decay=0.5)
    # 2 / (2 + 4), and 2/6 of decay; 2 over max(2, 4) is below 1
    equal(run("stableadamw", [2 / 3], [2.0], **hyper)[0], [1 / 3])
    # 2/3 + 10/3 over sqrt(12/7 + 100/7) + 4, and 1/6
    x, states = run("stableadamw", [2 / 3], [2.0], [5.0], **hyper)
    equal(x, [1 / 3 - 0.4 * (4 / 8 + 1 / 6)])
    equal(states["exp_avg"], [4.0])
    equal(states["exp_avg_sq"], [16.0])


def test_mars_oracle_by_hand() -> None:
    """The change counts as much as the gradient: 2 (1/5, 0), then 2 (8/5, 2) - (1/5, 0) = (3, 4), of norm 5."""
    hyper = dict(lr=0.5, betas=(0.5, 0.75), eps=0.4, weight_decay=0.5, gamma=1.0)
    # m = (1/5, 0) over 1/2, v = (1/25, 0) over 1/4: 2/5 / (2/5 + 2/5)
    equal(run("mars", [1.0, 0.0], [0.2, 0.0], **hyper)[0], [0.5, 0.0])
    x, states = run("mars", [1.0, 0.0], [0.2, 0.0], [1.6, 2.0], **hyper)
    equal(states["exp_avg"], [0.4, 0.4])
    equal(states["exp_avg_sq"], [0.12, 0.16])
    equal(states["last_grad"], [1.6, 2.0])
    turn = [0.4 / 0.75 / (math.sqrt(0.12 * 16 / 7) + 0.4), 0.4 / 0.75 / (math.sqrt(0.16 * 16 / 7) + 0.4)]
    equal(x, [0.5 - 0.5 * (turn[0] + 0.25), -0.5 * turn[1]])
    # 2 (1/10) - 1/5 = 0: v falls to 3/100, its peak stays.
    x, states = run("mars", [1.0], [0.2], [0.1], **hyper, amsgrad=True)
    equal(states["exp_avg_sq"], [0.03])
    equal(states["max_exp_avg_sq"], [0.04])
    equal(x, [0.5 - 0.5 * (0.1 / 0.75 / (math.sqrt(0.04 * 16 / 7) + 0.4) + 0.25)])
    # Signs of m = 1/5 and of 1/10 - 2/5 / 2
    x, states = run("mars", [1.0], [0.2], [-0.1], **hyper, mars_type="mars-lion")
    equal(x, [0.25 - 0.5 * (-1 + 0.125)])
    equal(states["exp_avg"], [-0.1])
    assert set(states) == {"exp_avg", "last_grad"}


def test_prodigy_oracle_by_hand() -> None:
    """Distances 1, 4 and, with x at -7/10, 16 (1/4 + 16 * 7/10) / 17 or twice 4; a step without gradient is none."""
    hyper = dict(betas=(0.5, 0.75), beta3=0.5, eps=1.0, d0=1.0, d_coef=16.0)
    # y = 2: m = 1, v = 1, s = 2: -1 / (1 + 1). y = 1: m = 1, v = 1, s = 2, r = 1/2: d = 4, of which the rate has 1.
    equal(run("prodigy", [0.0], [2.0], **hyper)[0], [-0.5])
    for growth_rate in (None, 2.0):  # the first growth has no bound
        x, states = run("prodigy", [0.0], [0.0], [2.0], [1.0], **hyper, growth_rate=growth_rate)
        equal(x, [-0.5 - 1 / (1 + 4)])
        equal(states["s"], [2.0])
    # y = 1: m = 1/2 + 4/2, v = 3/4 + 16/4, s = 1 + 16
    for growth_rate, d in ((None, 16 * 11.45 / 17), (2.0, 8.0)):
        x, states = run("prodigy", [0.0], [2.0], [1.0], [1.0], **hyper, growth_rate=growth_rate)
        equal(x, [-0.7 - 4 * 2.5 / (math.sqrt(4.75) + d)])
        equal([states[n][0] for n in ("exp_avg", "exp_avg_sq", "s", "p0")], [2.5, 4.75, 17.0, 0.0])
    # With lr = 1/2 both s are 1, or 2 with safeguard_warmup; x = -1/4 makes r = 1/8 and d = 64/8 over s.
    for safeguard, s in ((False, 1.0), (True, 2.0)):
        options = hyper | dict(lr=0.5, d_coef=64.0, safeguard_warmup=safeguard)
        x, states = run("prodigy", [0.0], [2.0], [1.0], **options)
        equal(states["s"], [s])
        equal(x, [-0.25 - 0.5 / (1 + 8 / s)])
    # Decay 1/2: beside the step, or in the gradient, 0 + 4/2
    equal(run("prodigy", [4.0], [2.0], **hyper, weight_decay=0.5)[0], [4 - 0.5 - 2])
    equal(run("prodigy", [4.0], [0.0], **hyper, weight_decay=0.5, decouple=False)[0], [4 - 0.5])
    # sqrt(1/4) / (1/4) = 2 at the first step that counts
    x, states = run("prodigy", [0.0], [0.0], [2.0], **hyper | dict(betas=(0.75, 0.75)), use_bias_correction=True)
    equal(x, [-2 * 0.5 / 2])
    equal(states["s"], [4.0])
    # Without an average the step has the new distance, 8 * 1/2.
    x, states = run("prodigy", [0.0], [2.0], [1.0], **hyper | dict(betas=(0.0, 0.75), d_coef=8.0))
    equal(x, [-1 - 4 / (1 + 4)])
    assert set(states) == {"exp_avg_sq", "s", "p0"}
    # beta_3 is the root of beta_2.
    equal(run("prodigy", [0.0], [2.0], [0.0], **hyper | dict(betas=(0.5, 0.25), beta3=None))[1]["s"], [1.0])


def both(
    name: str, *grads: float, each: list[dict[str, float]], **hyper: Any
) -> tuple[list[float], dict[str, list[float]]]:
    """Parameters and states of two segments of one element that start at 0, with the same gradients."""
    xs, states = ORACLES[name]([np.zeros(1)] * 2, [[np.array([y])] * 2 for y in grads], each=each, **hyper)
    return [float(x[0]) for x in xs], {state: [float(part[0]) for part in parts] for state, parts in states.items()}


def test_prodigy_oracle_of_two_rates_by_hand() -> None:
    """Each has its own part in the sums, and one with lr = 0 has none."""
    hyper = dict(betas=(0.5, 0.75), beta3=0.5, eps=1.0, d0=1.0)
    # At -1/2 and -1/4, r = 1/2 + 1/2 * 1/4 and s = 2 + 1: d = 4 with d_coef = 19.2
    xs, states = both("prodigy", 2.0, 1.0, each=[{}, dict(lr=0.5)], **hyper, d_coef=19.2)
    equal(xs, [-0.7, -0.35])
    equal(states["s"], [2.0, 1.0])
    xs, states = both(
        "prodigy", 2.0, 1.0, each=[dict(lr=1.0), dict(lr=0.0)], **hyper, d_coef=16.0, safeguard_warmup=True
    )
    equal(xs, [-0.7, 0.0])
    equal(states["s"], [2.0, 0.0])
    equal(states["exp_avg"], [1.0, 0.0])


def test_dadaptadam_oracle_by_hand() -> None:
    """sqrt(beta_2) = 3/5: both gradients leave a root of 4; the distance grows to 16/7, or to 2 where it is bounded."""
    hyper = dict(lr=4.0, betas=(0.5, 0.36), eps=1.0, d0=1.0)
    # y = 5: m = 10, v = 16, s = 8. y = 4: 4 * 4 * 8/5 of progress, m = 13, v = 16, s = 24/5 + 32/5.
    equal(run("dadaptadam", [0.0], [5.0], **hyper)[0], [-2.0])
    x, states = run("dadaptadam", [0.0], [0.0], [5.0], [4.0], **hyper)
    equal(x, [-2 - 13 / 5])
    equal([states[n][0] for n in ("exp_avg", "exp_avg_sq", "s")], [13.0, 16.0, 11.2])
    # The rate of the next step shows d = 0.4 * 25.6 / (0.4 * 11.2).
    equal(run("dadaptadam", [0.0], [5.0], [4.0], [4.0], **hyper)[0], [-4.6 - (6.5 + 4 * 16 / 7 * 2) / 5])
    equal(run("dadaptadam", [0.0], [5.0], [4.0], [4.0], **hyper, growth_rate=2.0)[0], [-4.6 - (6.5 + 4 * 2 * 2) / 5])
    # Decay: 4/8 of x, or 1 more for the gradient
    equal(run("dadaptadam", [4.0], [5.0], **hyper, weight_decay=0.125, decouple=True)[0], [4 - 2 - 2])
    equal(run("dadaptadam", [4.0], [4.0], **hyper, weight_decay=0.25)[0], [4 - 2])
    # sqrt(0.64) / (1/2) = 8/5 at the first step that counts
    equal(run("dadaptadam", [0.0], [0.0], [5.0], **hyper, use_bias_correction=True)[0], [-1.6 * 2])
    # Two rates: progress 4 * 4 * 8/5 and a quarter of it, of s = 11.2 and half of it
    xs, states = both("dadaptadam", 5.0, 4.0, 4.0, each=[{}, dict(lr=2.0)], **hyper)
    d = 25.6 * 1.25 / (11.2 * 1.5)
    equal(states["s"], [0.6 * 11.2 + 0.4 * 4 * d * 4, 0.6 * 5.6 + 0.4 * 2 * d * 4])
    equal(xs, [-4.6 - (6.5 + 4 * d * 2) / 5, -2.3 - (3.25 + 2 * d * 2) / 5])
    xs, states = both("dadaptadam", 5.0, 4.0, 4.0, each=[{}, dict(lr=0.0)], **hyper, growth_rate=2.0)
    equal(xs, [-9.1, 0.0])
    equal([states[n][1] for n in ("exp_avg", "exp_avg_sq", "s")], [0.0, 0.0, 0.0])


def test_cautious_adam_oracle_by_hand() -> None:
    """Of two elements one has no gradient: the other's step counts twice; then it turns and rests."""
    hyper = dict(lr=1.0, betas=(0.5, 0.75), cautious=True)
    equal(run("adam", [0.0, 0.0], [2.0, 0.0], **hyper, eps=2.0)[0], [-2 * 2 / (2 + 2), 0.0])
    equal(run("adam", [0.0, 0.0], [2.0, 0.0], **hyper, eps=2.0, eps_mode="hat")[0], [-2 * 1 / (1 + 2), 0.0])
    equal(run("adam", [0.0, 0.0], [2.0, 0.0], **hyper, eps=12.0, eps_mode="inside")[0], [-2 * 2 / 4, 0.0])
    # m = (1/4, 1/2) over 3/4, v = 1/4 over 7/16 where it moves
    x, states = run("adam", [0.0, 0.0], [2.0, 0.0], [-0.5, 1.0], **hyper, eps=2.0)
    turn = 2 * (2 / 3) / (math.sqrt(4 / 7) + 2)
    equal(x, [-1.0, -turn])
    equal(states["exp_avg"], [0.25, 0.5])
    # A decay that is decoupled goes on; one that is not has its say in the sign: -1/2 + 2/2.
    decay = 1 - 0.5
    for name, option in (("adam", dict(decoupled_weight_decay=True)), ("adamw", {})):
        x, _ = run(name, [4.0, 0.0], [2.0, 0.0], [-0.5, 1.0], **hyper, **option, eps=2.0, weight_decay=0.5)
        equal(x, [decay * (decay * 4 - 1), -turn])
    equal(run("adam", [2.0], [-0.5], **hyper, eps=2.0, weight_decay=0.5)[0], [2 - 0.5 / 2.5])
    # One in 2000 counts 1000 times.
    equal(run("adam", [0.0] * 2000, [2.0] + [0.0] * 1999, **hyper, eps=2.0)[0], [-500.0] + [0.0] * 1999)
    # One that contradicts its average rests; then m = 3/8 over 7/8, and the first square is still the largest.
    x, states = run("adam", [0.0], [2.0], [-0.5], [0.5], **hyper, eps=2.0, amsgrad=True)
    equal(states["max_exp_avg_sq"], [1.0])
    equal(x, [-0.5 - 3 / 7 / (math.sqrt(64 / 37) + 2)])


def test_cautious_lion_oracle_by_hand() -> None:
    """Two of three agree, 3 / (2 + 1); then one, 3 / (1 + 1), as the first gradient turns and its average votes on."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75), weight_decay=0.5, cautious=True)
    x, states = run("lion", [2.0, 2.0, 2.0], [1.0, -1.0, 0.0], [-0.2, -1.0, 0.0], **hyper)
    equal(x, [0.95 * 1.8, 0.95 * 2 + 0.15, 0.95**2 * 2])
    equal(states["exp_avg"], [0.1875 - 0.05, -0.1875 - 0.25, 0.0])


def test_rmsprop_oracle_has_no_negative_variance() -> None:
    """A constant gradient of 0.7 has variance 0, which rounding makes negative: torch gives NaN."""
    hyper = dict(lr=0.1, alpha=0.5, eps=1.0, centered=True)
    before, states = run("rmsprop", [0.0], *[[0.7]] * 400, **hyper)
    assert states["square_avg"][0] < states["grad_avg"][0] ** 2
    x, _ = run("rmsprop", [0.0], *[[0.7]] * 401, **hyper)
    np.testing.assert_allclose(x - before, [-0.07], rtol=1e-6)


def test_extra_keywords_are_no_hyperparameters() -> None:
    assert not any(EXTRA_KEYWORDS & set(setting) for settings in SETTINGS.values() for setting in settings)


# ---- torch.optim


@pytest.fixture
def torch() -> Iterator[ModuleType]:
    """Give torch, computing in float64 by default: it keeps some scalars in the default dtype."""
    module = pytest.importorskip("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


def run_torch(torch: ModuleType, name: str, hyper: dict[str, Any], rates: Sequence[float] = ()) -> tuple[Segments, Any]:
    """Parameters and states, by name, after the steps of the problem; rates are learning rates to set."""
    start, grads = problem()
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    opt = getattr(torch.optim, name)(params, **hyper)
    for k, step in enumerate(grads):
        for p, g in zip(params, step, strict=True):
            p.grad = torch.from_numpy(g.copy())
        if rates:
            opt.param_groups[0]["lr"] = rates[k]
        opt.step()
    kept = opt.state[params[0]]
    return [p.detach().numpy() for p in params], {n: [opt.state[p][n].numpy() for p in params] for n in kept}


PEERS = [
    ("Adamax", dict(lr=0.013, betas=(0.83, 0.94), eps=1e-3, weight_decay=0.11)),
    ("Adamax", dict()),
    ("NAdam", dict(lr=0.017, betas=(0.81, 0.93), eps=1e-3, weight_decay=0.13, momentum_decay=0.3)),
    ("NAdam", dict(lr=0.011, betas=(0.6, 0.97), weight_decay=0.2, momentum_decay=0.02, decoupled_weight_decay=True)),
    ("NAdam", dict()),
    ("RAdam", dict(lr=7e-3, betas=(0.83, 0.91), eps=1e-2, weight_decay=0.12)),
    ("RAdam", dict(lr=3e-3, betas=(0.7, 0.97), eps=1e-4, weight_decay=0.3, decoupled_weight_decay=True)),
    ("RAdam", dict(lr=3e-3, betas=(0.7, 0.6))),  # never longer than 5: no rectification at all
    ("RAdam", dict()),
    ("Adagrad", dict(lr=0.07, lr_decay=0.13, weight_decay=0.11, initial_accumulator_value=0.3, eps=1e-3)),
    ("Adagrad", dict(lr_decay=0.02)),
    ("Adadelta", dict(lr=0.7, rho=0.83, eps=1e-4, weight_decay=0.11)),
    ("Adadelta", dict()),
    *(
        ("RMSprop", dict(lr=0.013, alpha=0.93, eps=1e-3, weight_decay=0.11, momentum=momentum, centered=centered))
        for momentum in (0.0, 0.7)
        for centered in (False, True)
    ),
    ("Rprop", dict(lr=0.03, etas=(0.43, 1.31), step_sizes=(5e-3, 0.2))),
    ("Rprop", dict()),
    ("ASGD", dict(lr=0.03, lambd=0.07, alpha=0.6, t0=4.0, weight_decay=0.11)),
    ("ASGD", dict(lr=0.03, lambd=0.3, alpha=0.9, t0=0.0)),
    ("ASGD", dict(lr=0.03, lambd=0.07, t0=2.5)),
    ("ASGD", dict(lr=0.03, t0=100.0)),
    ("SGD", dict(lr=0.03, momentum=0.8, dampening=0.3, weight_decay=0.11)),
    ("SGD", dict(lr=0.03, momentum=0.8, nesterov=True, weight_decay=0.11)),
]


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(*peer, id=label(*peer)) for peer in PEERS])
def test_oracle_equals_torch(torch: ModuleType, name: str, hyper: dict[str, Any]) -> None:
    """Parameters and every state that torch keeps by the same name."""
    expected, theirs = run_torch(torch, name, hyper)
    xs, states = ORACLES[name.lower()](*problem(), **hyper)
    assert error(xs, expected) < 1e-12
    # What torch keeps besides: step counts, scalars that follow from them, and grad_avg only where it is centered.
    scalars = {"step", "mu_product", "eta", "mu"}
    assert set(states) == {n for n in theirs if n not in scalars}
    assert {n: e for n in states if not (e := error(states[n], theirs[n])) < 1e-12} == {}


@pytest.mark.parametrize("option", [dict(dampening=0.3), dict(nesterov=True)])
def test_lr_in_momentum_only_scales_the_buffer(torch: ModuleType, option: dict[str, Any]) -> None:
    """While lr does not change, SGD and RMSprop in either form are at the same place."""
    hyper = dict(lr=0.03, momentum=0.8, weight_decay=0.1)
    expected, theirs = run_torch(torch, "SGD", hyper | option)
    xs, states = ORACLES["sgd"](*problem(), **hyper, **option, lr_in_momentum=True)
    assert error(xs, expected) < 1e-12
    assert error(states["momentum_buffer"], [0.03 * b for b in theirs["momentum_buffer"]]) < 1e-12
    expected, theirs = run_torch(torch, "RMSprop", hyper | dict(eps=1e-3))
    xs, states = ORACLES["rmsprop"](*problem(), **hyper, eps=1e-3, lr_in_momentum=True)
    assert error(xs, expected) < 1e-12
    assert error(states["momentum_buffer"], [0.03 * b for b in theirs["momentum_buffer"]]) < 1e-12


def test_rate_of_torchs_asgd_follows_one_step_late(torch: ModuleType) -> None:
    """It is computed at the end of a step, for the next: a new lr first acts on the step after the coming one."""
    rates = [0.03] * 9 + [0.06] * 11
    expected, _ = run_torch(torch, "ASGD", dict(lr=0.03, lambd=0.07, t0=4.0), rates)
    start, grads = problem()
    xs = start
    for k, step in enumerate(grads, start=1):
        lr = rates[max(k - 2, 0)]
        rate = lr / (1 + 0.07 * lr * (k - 1)) ** 0.75
        xs = [(1 - 0.07 * rate) * x - rate * g for x, g in zip(xs, step, strict=True)]
    assert error(xs, expected) < 1e-12


# ---- optax


@pytest.fixture
def optax() -> Iterator[ModuleType]:
    """Give optax, with float64 allowed in jax."""
    module = pytest.importorskip("optax")
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield module
    jax.config.update("jax_enable_x64", before)


def run_optax(optax: ModuleType, transformation: Any) -> tuple[Segments, Any]:
    """Parameters and the transformation's state after the steps of the problem."""
    import jax

    start, grads = problem()
    params = [jax.numpy.asarray(p) for p in start]
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for step in grads:
        moves, state = update([jax.numpy.asarray(g) for g in step], state, params)
        params = optax.apply_updates(params, moves)
    assert params[0].dtype == np.float64
    return [np.asarray(p) for p in params], state


def warm_beta(first: float, last: float, steps: float) -> Callable[[Any], Any]:
    """beta_3 of AdEMAMix as its paper writes it, of the number of steps before this one."""
    a, b = math.log(first), math.log(last)

    def beta(before: Any) -> Any:
        import jax.numpy as jnp

        done = (before + 1) / float(steps)  # int by int is float32
        return jnp.minimum(jnp.exp(a * b / ((1 - done) * b + done * a)), last)

    return beta


def warm_alpha(alpha: float, steps: float) -> Callable[[Any], Any]:
    def weight(before: Any) -> Any:
        import jax.numpy as jnp

        return jnp.minimum((before + 1) * alpha / steps, alpha)

    return weight


def decayed(optax: ModuleType, scaled: Any, lr: float, weight_decay: float) -> Any:
    """Decoupled decay, from the old parameters, as optax.adamw chains it."""
    return optax.chain(scaled, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(lr))


Make = Callable[..., Any]
OPTAX: list[tuple[str, dict[str, Any], Make]] = [
    ("lion", dict(lr=0.013, betas=(0.7, 0.93), weight_decay=0.3), lambda o: o.lion(0.013, 0.7, 0.93, weight_decay=0.3)),
    ("signum", dict(lr=0.013, momentum=0.8), lambda o: o.signum(0.013, 0.8)),
    ("signum", dict(lr=0.013, momentum=0.0), lambda o: o.sign_sgd(0.013)),
    (
        "signum",
        dict(lr=0.013, momentum=0.8, weight_decay=0.3),
        lambda o: decayed(o, o.chain(o.ema(0.8, debias=False), o.scale_by_sign()), 0.013, 0.3),
    ),
    (
        "sgd",
        dict(lr=0.03, momentum=0.8, weight_decay=0.1, lr_in_momentum=True),
        lambda o: o.chain(o.add_decayed_weights(0.1), o.scale_by_learning_rate(0.03), o.trace(0.8)),
    ),
    (
        "sgd",
        dict(lr=0.03, momentum=0.8, nesterov=True, lr_in_momentum=True),
        lambda o: o.chain(o.scale_by_learning_rate(0.03), o.trace(0.8, nesterov=True)),
    ),
    ("adamax", dict(lr=0.013, betas=(0.8, 0.94), eps=1e-2), lambda o: o.adamax(0.013, 0.8, 0.94, 1e-2)),
    (
        "radam",
        dict(lr=3e-3, betas=(0.8, 0.94), eps=1e-2, eps_mode="outside"),
        lambda o: o.radam(3e-3, 0.8, 0.94, 1e-2),
    ),
    (
        "adagrad",
        dict(lr=0.03, initial_accumulator_value=0.2, eps=1e-3, eps_mode="inside"),
        lambda o: o.adagrad(0.03, 0.2, 1e-3),
    ),
    ("adadelta", dict(lr=0.7, rho=0.8, eps=1e-3), lambda o: o.adadelta(0.7, 0.8, 1e-3)),
    *(
        (
            "rmsprop",
            dict(lr=0.013, alpha=0.93, eps=1e-2, eps_mode=mode, centered=centered, momentum=0.7, lr_in_momentum=True),
            lambda o, mode=mode, centered=centered: o.rmsprop(
                0.013, 0.93, 1e-2, eps_in_sqrt=mode == "inside", centered=centered, momentum=0.7
            ),
        )
        for mode in ("inside", "outside")
        for centered in (False, True)
    ),
    (
        "rmsprop",
        dict(lr=0.013, alpha=0.93, eps=1e-2, eps_mode="inside", centered=True),
        lambda o: o.rmsprop(0.013, 0.93, 1e-2, centered=True),
    ),
    # optax keeps eps_root in the average of surprises, as adabelief-pytorch keeps eps, and never rectifies.
    (
        "adabelief",
        dict(lr=0.013, betas=(0.8, 0.94), eps=1e-3, weight_decay=0.3, rectify=False),
        lambda o: decayed(o, o.scale_by_belief(0.8, 0.94, 1e-3, 1e-3), 0.013, 0.3),
    ),
    (
        "adabelief",
        dict(lr=0.013, betas=(0.8, 0.94), eps=1e-3, weight_decay=0.3, rectify=False, weight_decouple=False),
        lambda o: o.chain(o.add_decayed_weights(0.3), o.adabelief(0.013, 0.8, 0.94, 1e-3, 1e-3)),
    ),
    ("yogi", dict(lr=0.013, betas=(0.8, 0.94), eps=1e-2), lambda o: o.yogi(0.013, 0.8, 0.94, 1e-2)),
    (
        "yogi",
        dict(lr=0.013, betas=(0.8, 0.94), initial_accumulator_value=0.2),
        lambda o: decayed(o, o.scale_by_yogi(0.8, 0.94, initial_accumulator_value=0.2), 0.013, 0.0),
    ),
    (
        "ademamix",
        dict(lr=0.013, betas=(0.8, 0.94, 0.99), alpha=3.0, eps=1e-3, weight_decay=0.3),
        lambda o: o.contrib.ademamix(0.013, 0.8, 0.94, 0.99, 3.0, 1e-3, weight_decay=0.3),
    ),
    (
        "ademamix",
        dict(lr=0.013, betas=(0.8, 0.94, 0.999), t_alpha=16.0, t_beta3=12.5, eps=1e-3, weight_decay=0.0),
        lambda o: o.contrib.ademamix(0.013, 0.8, 0.94, warm_beta(0.8, 0.999, 12.5), warm_alpha(5.0, 16.0), 1e-3),
    ),
    (
        "ademamix",
        dict(lr=0.013, betas=(0.9, 0.94, 0.9999), alpha=8.0, t_alpha=100, t_beta3=40, eps=1e-3, weight_decay=0.1),
        lambda o: o.contrib.ademamix(
            0.013, 0.9, 0.94, warm_beta(0.9, 0.9999, 40), warm_alpha(8.0, 100), 1e-3, weight_decay=0.1
        ),
    ),
    ("adopt", dict(lr=0.013, betas=(0.8, 0.94), eps=1e-3), lambda o: o.contrib.adopt(0.013, 0.8, 0.94, 1e-3)),
    (
        "adopt",
        dict(lr=0.013, betas=(0.8, 0.94), eps=1e-2, weight_decay=0.3, clip_exponent=0.5),
        lambda o: o.chain(
            o.add_decayed_weights(0.3), o.contrib.adopt(0.013, 0.8, 0.94, 1e-2, clip_value_fn=lambda k: k**0.5)
        ),
    ),
    (
        "adopt",
        dict(lr=0.013, betas=(0.8, 0.94), eps=1e-2, clip_exponent=None),
        lambda o: o.contrib.adopt(0.013, 0.8, 0.94, 1e-2, use_clipping=False),
    ),
    # optax writes 1 - b2 where the paper, whose betas are 1 minus these, has b2 (its pull request 1715): here the same.
    (
        "adan",
        dict(lr=0.013, betas=(0.8, 0.5, 0.94), eps=1e-3, weight_decay=0.3, no_prox=True),
        lambda o: o.adan(0.013, 0.8, 0.5, 0.94, 1e-3, eps_root=0.0, weight_decay=0.3),
    ),
]


@pytest.mark.parametrize(("name", "hyper", "make"), [pytest.param(*p, id=label(*p[:2])) for p in OPTAX])
def test_oracle_equals_optax(optax: ModuleType, name: str, hyper: dict[str, Any], make: Make) -> None:
    """Where optax computes the same; its Rprop gives each step one step late (its pull request 1725)."""
    expected, _ = run_optax(optax, make(optax))
    xs, _ = ORACLES[name](*problem(), **hyper)
    assert error(xs, expected) < 1e-12


@pytest.mark.parametrize("warmup_steps", [0.0, 6.0])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_schedule_free_oracle_equals_optax(optax: ModuleType, name: str, warmup_steps: float) -> None:
    """The points that are trained, those that move, and the averages to evaluate.

    optax's own schedule_free_sgd and schedule_free_adamw count the steps of a warm-up from 0 for the rate, so that the
    first step stands still, and from 1 for the weight. Here the rate's schedule is one ahead to agree with the weight.
    """
    import jax.numpy as jnp

    def rate(k: Any) -> Any:
        return 0.03 * jnp.minimum(1.0, k / warmup_steps) if warmup_steps else 0.03

    scaled = (
        optax.identity() if name == "sgd" else optax.scale_by_rms(0.94, 1e-3, eps_in_sqrt=False, bias_correction=True)
    )
    base = optax.chain(scaled, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(lambda k: rate(k + 1)))
    transformation = optax.contrib.schedule_free(base, rate, b1=0.8, weight_lr_power=1.5)
    hyper = dict(lr=0.03, weight_decay=0.1, weight_lr_power=1.5, warmup_steps=warmup_steps)
    hyper |= dict(momentum=0.8) if name == "sgd" else dict(betas=(0.8, 0.94), eps=1e-3)
    expected, state = run_optax(optax, transformation)
    ys, states = ORACLES[f"schedulefree{name}"](*problem(), **hyper)
    assert error(ys, expected) < 1e-12
    assert error(states["z"], [np.asarray(z) for z in state.z]) < 1e-12
    averages = [np.asarray(x) for x in optax.contrib.schedule_free_eval_params(state, expected)]
    assert error(schedule_free_x(ys, states["z"], 0.8), averages) < 1e-12
