"""The oracles of the rules on matrices: on paper, and against torch.optim, without any rule of fastgd."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import matrix_oracles  # noqa: F401  registers the oracles
import numpy as np
import pytest
from oracles import ORACLES, SETTINGS, Array, Segments

STEPS = 24
SHAPES = [(1,), (7,), (8, 8), (65,), (25, 40), (40, 25), (5, 1), (3, 4, 5), (4, 3, 2, 2)]
NAMES = ["muon", "adafactor", "came"]


def problem(shapes: list[tuple[int, ...]], seed: int = 6) -> tuple[Segments, list[Segments]]:
    """Parameters of size one, and gradients with a drift, of magnitudes from 1e-3 to 10, some of them zero."""
    rng = np.random.default_rng(seed)
    start = [rng.choice((-1.0, 1.0), s) * rng.uniform(0.5, 2.0, s) for s in shapes]
    drift = [10.0 ** rng.uniform(-3, 1, s) * rng.choice((-1.0, 1.0), s) for s in shapes]
    grads = [
        [d * (rng.standard_normal(d.shape) + 0.5) * (rng.random(d.shape) > 0.02) for d in drift] for _ in range(STEPS)
    ]
    return start, grads


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return [s for s in SHAPES if len(s) > 1 or name != "muon"]


def error(given: Array, expected: Array) -> float:
    """Largest difference, relative to the largest expected value."""
    worst, scale = float(np.max(np.abs(given - expected))), float(np.max(np.abs(expected)))
    return worst / scale if scale else worst


def run(name: str, start: Any, *grads: Any, **hyper: Any) -> tuple[Array, dict[str, Array | None]]:
    """Parameters and states of one segment."""
    (x,), states = ORACLES[name]([np.array(start)], [[np.array(g)] for g in grads], **hyper)
    return x, {state: parts[0] for state, parts in states.items()}


def equal(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(given, expected, rtol=1e-14, atol=1e-15)


# ---- on paper


@pytest.mark.parametrize(("nesterov", "first", "second"), [(True, 72.0, 16.0), (False, 12.0, 8.0)])
def test_muon_oracle_by_hand(nesterov: bool, first: float, second: float) -> None:
    """Two steps without an iteration: a matrix over its norm."""
    hyper = dict(lr=0.5, weight_decay=0.2, momentum=0.5, ns_steps=0, nesterov=nesterov)
    # The average: a quarter of the first and half of the second gradient; ahead of it: an eighth and three quarters.
    x, states = run("muon", np.full((2, 2), 2.0), [[first, 0.0], [0.0, 0.0]], [[0.0, second], [0.0, 0.0]], **hyper)
    step = 5 * np.array([3.0, 4.0]) / 25
    equal(x, [[0.9 * (0.9 * 2 - 0.5) - 0.5 * step[0], 0.9**2 * 2 - 0.5 * step[1]], [0.9**2 * 2] * 2])
    equal(states["momentum_buffer"], [[first / 4, second / 2], [0.0, 0.0]])


def test_newton_schulz_of_the_muon_oracle_by_hand() -> None:
    """Multiples of an orthogonal matrix stay that; others mix no singular vectors."""
    turned = np.array([[3.0, 4.0], [-4.0, 3.0]])
    hyper = dict(lr=1.0, weight_decay=0.0, momentum=0.0, ns_coefficients=(2.0, -2.0, 4.0))
    # Both singular values are 5, the norm is their root of 2; s = 1 / sqrt(2) becomes 2 s - 2 s^3 + 4 s^5 = 2 s.
    x, _ = run("muon", np.zeros((2, 2)), turned, **hyper, ns_steps=1)
    equal(x, -turned * math.sqrt(2) / 5)
    # Below eps the norm is eps: s = 1 / 2 becomes 1 - 1 / 4 + 1 / 8.
    x, _ = run("muon", np.zeros((2, 2)), turned, **hyper, ns_steps=1, eps=10.0)
    equal(x, -0.875 * turned / 5)
    # 0.6 and 0.8, once and twice.
    unit = np.array([0.6, 0.8])
    for steps in (1, 2):
        unit = 2 * unit - 2 * unit**3 + 4 * unit**5
        x, _ = run("muon", np.zeros((2, 2)), [[0.0, 3.0], [4.0, 0.0]], **hyper, ns_steps=steps)
        equal(x, [[0.0, -unit[0]], [-unit[1], 0.0]])


@pytest.mark.parametrize(
    ("adjust", "tall", "wide"),
    [(None, 2.0, 1.0), ("original", 2.0, 1.0), ("match_rms_adamw", 0.4, 0.4), ("spectral_unclamped", 2.0, 0.5)],
)
def test_stretch_of_the_muon_oracle_by_hand(adjust: str | None, tall: float, wide: float) -> None:
    """Vectors of four halves, of norm 1; the decay is not stretched; later axes are columns."""
    one = 3.4445 - 4.7750 + 2.0315
    hyper = dict(lr=0.5, weight_decay=0.2, ns_steps=1, adjust_lr_fn=adjust)
    for shape, stretch in [((4, 1), tall), ((4, 1, 1), tall), ((1, 4), wide), ((1, 2, 2), wide), ((1, 1, 2, 2), wide)]:
        x, _ = run("muon", np.full(shape, 3.0), np.full(shape, 7.0), **hyper)
        equal(x, np.full(shape, 0.9 * 3 - 0.5 * stretch * one / 2))


def test_adafactor_oracle_by_hand() -> None:
    """Two steps of squares that are a row times a column, in torch's form."""
    g = np.array([[1.0, 2.0], [2.0, 4.0]])
    hyper = dict(lr=0.5, beta2_decay=-1.0, d=1.25, weight_decay=0.2)
    # Directions 1 and 7 / 5, the second clipped to 1.25; the step size is half of x each time, which is 3, then 1.2.
    x, states = run("adafactor", np.full((2, 2), 3.0), g, 7 * g, **hyper)
    equal(x, np.full((2, 2), 0.9 * (0.9 * 3 - 1.5) - 0.6 * 1.25))
    equal(states["row_var"], [62.5, 250.0])
    equal(states["col_var"], [62.5, 250.0])
    assert set(states) == {"row_var", "col_var", "variance"} and states["variance"] is None
    # Their average is 1 / 2, then 1 / 4 + 5 / 8; the step sizes stay out of it.
    x, states = run("adafactor", np.full((2, 2), 3.0), g, 7 * g, **hyper, beta1=0.5)
    equal(x, np.full((2, 2), (0.9 - 0.5 * 0.875) * (0.9 * 3 - 0.75)))
    equal(states["exp_avg"], np.full((2, 2), 0.875))
    # Each matrix of a batch has a mean of its own; step size and clip are of the whole.
    x, states = run("adafactor", np.full((2, 2, 2), 3.0), [g, 3 * g], **hyper)
    equal(x, np.full((2, 2, 2), 0.9 * 3 - 1.5))
    equal(states["row_var"], [[2.5, 10.0], [22.5, 90.0]])


def test_small_gradients_of_the_adafactor_oracle_by_hand() -> None:
    """The first eps of torch's form bounds two things, that of the paper's is added; the second bounds the scale."""
    # (0.3, 0) over 1 / 2, at the scale 1 / 4
    x, states = run("adafactor", [0.0, 0.0], [0.3, 0.0], lr=2.0, eps=(0.5, 0.25))
    equal(x, [-0.25 * 0.6, 0.0])
    equal(states["variance"], [0.09, 0.0])
    assert states["row_var"] is None and states["col_var"] is None
    # 1 / 16 times 1 / 16 over 1 / 9, whose root 3 / 16 is above 1 / 9
    x, _ = run("adafactor", np.ones((2, 2)), np.full((2, 2), 0.25), lr=0.5, eps=(1 / 9, 0.0), d=2.0)
    equal(x, np.full((2, 2), 1 - 0.5 * 4 / 3))
    # 9 + 7 is 4 squared; then half of 16 and of 49 + 7 is 6 squared, and 7 / 6 is clipped; decayed by the step size
    for shape in [(2,), (2, 2)]:
        hyper = dict(lr=0.25, beta2_decay=-1.0, eps=(7.0, 1e-3), weight_decay=0.5, form="paper")
        x, _ = run("adafactor", np.full(shape, 4.0), np.full(shape, 3.0), np.full(shape, 7.0), **hyper)
        equal(x, np.full(shape, (1 - 0.5 * 0.3125) * 1.25 - 0.3125))


def test_step_size_of_the_adafactor_oracle_by_hand() -> None:
    """Four steps of direction 1, of a scalar."""
    hyper = dict(lr=0.9, scale_parameter=False)
    for form in ("torch", "paper"):
        x, _ = run("adafactor", 5.0, 1.0, 1.0, 1.0, 1.0, form=form, **hyper)
        equal(x, 5 - 0.9 - 2**-0.5 - 3**-0.5 - 0.5)
        x, _ = run("adafactor", 5.0, 1.0, 1.0, 1.0, 1.0, form=form, **hyper, relative_step=False)
        equal(x, 5 - 4 * 0.9)


def test_came_oracle_by_hand() -> None:
    """A vector moves by its average of directions, a matrix by that over what it is off."""
    # 3 over the root of (9 + 7) / 4 is 1.5, clipped to 1
    hyper = dict(lr=0.5, eps=(7.0, 1.0), betas=(0.5, 0.75, 0.5), weight_decay=0.25)
    x, states = run("came", [4.0, -4.0], [3.0, -3.0], **hyper)
    equal(x, [3.25, -3.25])
    equal(states["exp_avg_sq"], [4.0, 4.0])
    equal(states["exp_avg"], [0.5, -0.5])
    assert states["exp_avg_sq_row"] is None and states["exp_avg_res_col"] is None
    x, _ = run("came", [4.0, -4.0], [3.0, -3.0], **hyper, clip_threshold=2.0)
    equal(x, [3.125, -3.125])
    # Directions 2, clipped to 1; half a unit off, and (1 / 4 + 2) / 4 is 3 / 4 squared. Then no gradient.
    hyper = dict(lr=0.75, eps=(0.0, 2.0), betas=(0.5, 0.75, 0.75), weight_decay=0.4)
    g = np.array([[1.0, 2.0], [2.0, 4.0]])
    x, states = run("came", np.full((2, 2), 3.0), g, **hyper)
    equal(x, np.full((2, 2), 3 - 0.5 - 0.9))
    equal(states["exp_avg_sq_row"], [0.625, 2.5])
    assert states["exp_avg_sq"] is None
    x, states = run("came", np.full((2, 2), 3.0), g, 0 * g, **hyper)
    equal(x, np.full((2, 2), 0.7 * 1.6 - 0.75 * 0.25 / math.sqrt(0.9375)))
    equal(states["exp_avg_res_row"], [0.9375, 0.9375])
    equal(states["exp_avg_res_col"], [0.9375, 0.9375])


# ---- what must hold


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_of_every_setting_matters(name: str) -> None:
    """A setting that leaves a branch untaken would not test it."""
    start, grads = problem(shapes_of(name))
    for setting in SETTINGS[name]:
        xs, _ = ORACLES[name](start, grads, **setting)
        for key in setting:
            others, _ = ORACLES[name](start, grads, **{k: v for k, v in setting.items() if k != key})
            changed = max(map(error, others, xs))
            assert changed > 1e-3 or (key, setting[key]) == ("adjust_lr_fn", "original"), (setting, key)


@pytest.mark.parametrize("name", NAMES)
def test_transposed_gradients_run_transposed(name: str) -> None:
    """Rows and columns are treated alike, except by Muon's stretch."""
    start, grads = problem([(4, 9), (9, 4), (6, 6), (3, 2, 5)][: 3 if name == "muon" else 4])
    for setting in SETTINGS[name]:
        hyper = {**setting, "adjust_lr_fn": "match_rms_adamw"} if name == "muon" else setting
        xs, _ = ORACLES[name](start, grads, **hyper)
        ys, _ = ORACLES[name](
            [x.swapaxes(-1, -2) for x in start], [[g.swapaxes(-1, -2) for g in s] for s in grads], **hyper
        )
        assert max(error(y.swapaxes(-1, -2), x) for x, y in zip(xs, ys, strict=True)) < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_parameters_only_decay(name: str) -> None:
    """Also parameters that are zero, from the first step."""
    start, decay = [np.zeros((3, 4)), np.ones((3, 4))], {"muon": 0.1}.get(name, 0.0)
    for setting in SETTINGS[name]:
        xs, _ = ORACLES[name](start, [[np.zeros((3, 4))] * 2] * STEPS, **setting)
        assert not xs[0].any()
        assert np.ptp(xs[1]) == 0 and 0 < xs[1][0, 0] <= 1
        assert (xs[1][0, 0] < 1) == (setting.get("weight_decay", decay) > 0)


# ---- torch.optim


@pytest.fixture
def torch() -> ModuleType:
    return pytest.importorskip("torch")


def run_torch(
    torch: ModuleType, name: str, start: Segments, grads: list[Segments], **hyper: Any
) -> tuple[Segments, list[dict[str, Array]]]:
    """Parameters and states after these steps of a torch optimizer."""
    params = [torch.nn.Parameter(torch.from_numpy(np.array(p))) for p in start]
    opt = getattr(torch.optim, name)(params, **hyper)
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        opt.step()
    return [p.detach().numpy() for p in params], [{k: v.numpy() for k, v in opt.state[p].items()} for p in params]


@pytest.mark.parametrize(
    "hyper",
    [
        dict(),
        dict(lr=0.3, beta2_decay=-0.5, weight_decay=0.1),
        dict(lr=0.05, eps=(0.2, 1.5), d=1.2, weight_decay=0.3),
        dict(lr=0.02, eps=(None, 0.5), beta2_decay=-1.0, d=3.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("foreach", [False, True])
def test_adafactor_oracle_equals_torch(torch: ModuleType, hyper: dict[str, Any], foreach: bool) -> None:
    """Scalars to batches of batches of matrices, with a segment of zeros."""
    start, grads = problem([(), *SHAPES, (4, 6)])
    start[-1] = 0 * start[-1]
    xs, states = ORACLES["adafactor"](start, grads, **hyper)
    ys, kept = run_torch(torch, "Adafactor", start, grads, **hyper, foreach=foreach)
    assert max(map(error, ys, xs)) < 1e-12
    for i, theirs in enumerate(kept):
        ours = {k: parts[i] for k, parts in states.items() if parts[i] is not None}
        assert set(ours) == set(theirs) - {"step"}
        assert max(error(theirs[k].reshape(np.shape(a)), a) for k, a in ours.items()) < 1e-12


MUONS = [
    dict(),
    dict(lr=0.02, momentum=0.8, nesterov=False, weight_decay=0.3),
    dict(lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", ns_coefficients=(1.875, -1.25, 0.375)),
    dict(lr=0.05, momentum=0.5, eps=30.0, ns_steps=3, adjust_lr_fn="original"),
    dict(lr=0.02, adjust_lr_fn="spectral_unclamped"),
]


def muons(torch: ModuleType, hyper: dict[str, Any]) -> tuple[Segments, Segments, Segments]:
    """Parameters before a run, and after it by the oracle and by torch."""
    start, grads = problem([(8, 8), (25, 40), (40, 25), (5, 1), (1, 5)])
    if hyper.get("adjust_lr_fn") == "spectral_unclamped":
        try:
            torch.optim.Muon([torch.nn.Parameter(torch.zeros(1, 1))], **hyper)
        except ValueError:
            pytest.skip("torch before 2.14 has no spectral_unclamped")
    ys, kept = run_torch(torch, "Muon", start, grads, **hyper)
    xs, states = ORACLES["muon"](start, grads, **hyper)
    for theirs, ours in zip(kept, states["momentum_buffer"], strict=True):
        assert error(theirs["momentum_buffer"], ours) < 1e-13
    return start, xs, ys


@pytest.mark.parametrize("hyper", MUONS, ids=str)
def test_muon_oracle_equals_torch_without_bfloat16(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch, hyper: dict[str, Any]
) -> None:
    """torch's own code, but for the one call that rounds the matrix."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    _, xs, ys = muons(torch, hyper)
    assert max(map(error, ys, xs)) < 1e-12


@pytest.mark.parametrize("hyper", MUONS, ids=str)
def test_muon_oracle_is_near_torch(torch: ModuleType, hyper: dict[str, Any]) -> None:
    """Within five units of bfloat16, 2^-8, of the change that the steps make.

    Against the change, for a small lr makes any difference small against the parameters; and by the norm of the matrix,
    for the iteration mixes its elements. Small matrices are the furthest: their roundings do not cancel.
    """
    start, xs, ys = muons(torch, hyper)
    shrink = (1 - hyper.get("lr", 1e-3) * hyper.get("weight_decay", 0.1)) ** STEPS
    far = [np.linalg.norm(y - x) / np.linalg.norm(x - shrink * s) for s, x, y in zip(start, xs, ys, strict=True)]
    assert 0 < max(far) < 5 * 2.0**-8
