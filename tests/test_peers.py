"""Rules against torch.optim and optax where they have them: drawn hyperparameters, three groups, tail on and off."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_oracles import TOLERANCE, error, problem

import fastgd
from fastgd.kernels.rules import RULES

STEPS = 20
GROUPS = (0, 1, 0, 1, 2)  # of each array of the problem
RATES = (1.0, 0.5, 1.7)  # learning rate of each group, as a multiple
TAIL = dict(max_norm=40.0, ema_decay=0.9)

# How a value is drawn, by name; every draw is away from the defaults.
DRAWS: dict[str, Any] = {
    "lr": lambda r: 10 ** r.uniform(-2.5, -1.3),
    "betas": lambda r: (r.uniform(0.5, 0.95), r.uniform(0.8, 0.97)),
    "eps": lambda r: 10 ** r.uniform(-3, -1.5),
    "weight_decay": lambda r: r.uniform(0.05, 0.3),
    "momentum": lambda r: r.uniform(0.3, 0.9),
    "dampening": lambda r: r.uniform(0.1, 0.5),
    "momentum_decay": lambda r: r.uniform(0.01, 0.5),
    "lr_decay": lambda r: r.uniform(0.01, 0.3),
    "initial_accumulator_value": lambda r: r.uniform(0.1, 0.5),
    "rho": lambda r: r.uniform(0.6, 0.95),
    "alpha": lambda r: r.uniform(0.6, 0.95),
    "etas": lambda r: (r.uniform(0.3, 0.7), r.uniform(1.1, 1.5)),
    "step_sizes": lambda r: (10 ** r.uniform(-4, -2), r.uniform(0.05, 0.2)),
    "lambd": lambda r: r.uniform(0.01, 0.3),
    "t0": lambda r: float(r.integers(0, 9)),
}


def drawn(names: str, seed: int, fixed: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters of these names, drawn, and those that are fixed."""
    rng = np.random.default_rng(seed)
    return {name: DRAWS[name](rng) for name in names.split()} | fixed


TORCH = [
    ("SGD", "lr weight_decay", dict(maximize=True)),
    ("SGD", "lr momentum dampening weight_decay", {}),
    ("SGD", "lr momentum weight_decay", dict(nesterov=True)),
    ("Adam", "lr betas eps weight_decay", dict(amsgrad=True, maximize=True)),
    ("Adam", "lr betas eps weight_decay", dict(decoupled_weight_decay=True)),
    ("AdamW", "lr betas eps weight_decay", {}),
    ("AdamW", "lr betas eps weight_decay", dict(amsgrad=True)),
    ("Adamax", "lr betas eps weight_decay", dict(maximize=True)),
    ("NAdam", "lr betas eps weight_decay momentum_decay", {}),
    ("NAdam", "lr betas eps weight_decay momentum_decay", dict(decoupled_weight_decay=True, maximize=True)),
    ("RAdam", "lr betas eps weight_decay", {}),
    ("RAdam", "lr betas eps weight_decay", dict(decoupled_weight_decay=True, maximize=True)),
    ("Adagrad", "lr lr_decay weight_decay initial_accumulator_value eps", {}),
    ("Adadelta", "lr rho eps weight_decay", dict(maximize=True)),
    ("RMSprop", "lr alpha eps weight_decay", {}),
    ("RMSprop", "lr alpha eps weight_decay momentum", {}),
    # a variance is a difference: with a small eps float32 is off by a little more than the tolerance
    ("RMSprop", "lr alpha weight_decay momentum", dict(eps=0.07, centered=True, maximize=True)),
    ("Rprop", "lr etas step_sizes", {}),
    ("ASGD", "lr lambd alpha t0 weight_decay", {}),
]
CASES = [
    pytest.param(name, drawn(names, 7 * k + seed, fixed), id=f"{name}-{k}-{seed}")
    for k, (name, names, fixed) in enumerate(TORCH)
    for seed in range(2)
]


@pytest.fixture
def torch() -> Iterator[ModuleType]:
    """Give torch, computing in float64 by default: it keeps some scalars in the default dtype."""
    module = pytest.importorskip("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


def by_group(arrays: list[Any]) -> list[list[Any]]:
    return [[a for a, g in zip(arrays, GROUPS, strict=True) if g == i] for i in range(3)]


def rate(hyper: dict[str, Any], group: int, k: int) -> float:
    """Learning rate of a group in step k, which changes at every step."""
    return hyper["lr"] * RATES[group] * 0.95**k


@pytest.mark.parametrize("tail", [{}, TAIL], ids=["plain", "tail"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_rule_equals_torch(
    torch: ModuleType, name: str, hyper: dict[str, Any], dtype: str, tail: dict[str, float]
) -> None:
    """Parameters and average; torch in float64, from the same data."""
    start, grads = problem(dtype, STEPS)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.astype(np.float64))) for p in start]
    means = [p.detach().clone() for p in theirs]
    reference = getattr(torch.optim, name)(
        [{"params": g, "lr": rate(hyper, i, 0)} for i, g in enumerate(by_group(theirs))], **hyper
    )
    ours = [{"params": g, "lr": rate(hyper, i, 0)} for i, g in enumerate(by_group(start))]
    opt = getattr(fastgd, name)(ours, **hyper, **tail)
    for k, step in enumerate(grads):
        for i in range(3):
            reference.param_groups[i]["lr"] = opt.param_groups[i]["lr"] = rate(hyper, i, k)
        for p, g in zip(theirs, step, strict=True):
            p.grad = torch.from_numpy(g.astype(np.float64))
        if tail:
            torch.nn.utils.clip_grad_norm_(theirs, tail["max_norm"])
        reference.step()
        if tail:
            torch._foreach_lerp_(means, [p.detach() for p in theirs], 1 - tail["ema_decay"])
        opt.step(by_group(step))
    expected = [p.detach().numpy() for p in theirs]
    assert max(map(error, start, expected)) < TOLERANCE[dtype]
    if tail:
        averages = [iter(g) for g in opt.ema]
        given = [next(averages[g]) for g in GROUPS]
        assert max(map(error, given, [m.numpy() for m in means])) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", sorted(fastgd.presets["torch"]))
def test_defaults_are_those_of_torch(torch: ModuleType, name: str) -> None:
    """Arguments that torch has too, and the preset."""
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    shared = {f.name for f in fields(RULES[name.lower()]) if f.init} & set(theirs)
    assert "lr" in shared and len(shared) >= 3
    ours = {f.name: f.default for f in fields(RULES[name.lower()]) if f.name in shared}
    assert ours == {n: theirs[n].default for n in shared}
    assert dict(fastgd.presets["torch"][name]).items() >= ours.items()


def test_every_rule_of_torch_is_there_or_named(torch: ModuleType) -> None:
    """What is missing needs sums, matrices, sparse gradients, or a closure."""
    rules = {n for n in dir(torch.optim) if n[0].isupper() and n != "Optimizer"}
    assert rules - set(fastgd.presets["torch"]) <= {"Adafactor", "Muon", "LBFGS", "SparseAdam"}


# ---- optax


def transforms(optax: Any) -> dict[str, Any]:
    """What optax calls each rule, given a learning rate and a dict of our hyperparameters."""
    two = lambda h: dict(b1=h["betas"][0], b2=h["betas"][1])  # noqa: E731
    return {
        "SGD": lambda lr, h: optax.sgd(lr, momentum=h["momentum"] or None, nesterov=h["nesterov"]),
        "Adam": lambda lr, h: optax.adam(lr, **two(h), eps=h["eps"]),
        "AdamW": lambda lr, h: optax.adamw(lr, **two(h), eps=h["eps"], weight_decay=h["weight_decay"]),
        "Adamax": lambda lr, h: optax.adamax(lr, **two(h), eps=h["eps"]),
        "RAdam": lambda lr, h: optax.radam(lr, **two(h), eps=h["eps"]),
        "Adagrad": lambda lr, h: optax.adagrad(lr, h["initial_accumulator_value"], h["eps"]),
        "Adadelta": lambda lr, h: optax.adadelta(lr, rho=h["rho"], eps=h["eps"]),
        "RMSprop": lambda lr, h: optax.rmsprop(lr, h["alpha"], h["eps"], momentum=h["momentum"] or None),
        "Lion": lambda lr, h: optax.lion(lr, **two(h), weight_decay=h["weight_decay"]),
        "LAMB": lambda lr, h: optax.lamb(lr, **two(h), eps=h["eps"], weight_decay=h["weight_decay"]),
        "Yogi": lambda lr, h: optax.yogi(lr, **two(h), eps=h["eps"]),
    }


@pytest.fixture
def optax() -> Iterator[ModuleType]:
    """Give optax, computing in float64."""
    module = pytest.importorskip("optax")
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield module
    jax.config.update("jax_enable_x64", before)


def run_optax(optax: ModuleType, transform: Any, start: list[Any], grads: list[Any]) -> list[Any]:
    """Parameters after these gradients."""
    params = [np.asarray(p, np.float64) for p in start]
    state = transform.init(params)
    for step in grads:
        change, state = transform.update([np.asarray(g, np.float64) for g in step], state, params)
        params = optax.apply_updates(params, change)
    return [np.asarray(p) for p in params]


OPTAX = [
    ("SGD", "momentum", dict(nesterov=True)),
    ("Adam", "betas eps", {}),
    ("AdamW", "betas eps weight_decay", {}),
    ("Adamax", "betas eps", {}),
    ("RAdam", "betas eps", {}),
    ("Adagrad", "eps initial_accumulator_value", {}),
    ("Adadelta", "rho eps", {}),
    ("RMSprop", "alpha eps momentum", {}),
    ("Lion", "betas weight_decay", {}),
    ("LAMB", "betas eps weight_decay", {}),
    ("Yogi", "betas eps", {}),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("preset", [False, True], ids=["drawn", "preset"])
@pytest.mark.parametrize(("name", "names", "fixed"), OPTAX)
def test_rule_equals_optax(
    optax: ModuleType, name: str, names: str, fixed: dict[str, Any], preset: bool, dtype: str
) -> None:
    """By the preset, as it is and with drawn values; three groups are three runs there."""
    hyper = dict(fastgd.presets["optax"][name])
    if not preset:
        hyper |= drawn(names, 11, fixed)
    start, grads = problem(dtype, STEPS)
    first = [p.copy() for p in start]
    opt = getattr(fastgd, name)(
        [{"params": g, "lr": 0.02 * RATES[i]} for i, g in enumerate(by_group(start))], **hyper, lr=0.02
    )
    for step in grads:
        opt.step(by_group(step))
    for i in range(3):
        own = [by_group(step)[i] for step in grads]
        expected = run_optax(optax, transforms(optax)[name](0.02 * RATES[i], hyper), by_group(first)[i], own)
        assert max(map(error, by_group(start)[i], expected)) < TOLERANCE[dtype]


def test_presets_of_optax_are_its_defaults(optax: ModuleType) -> None:
    """Numbers by the names that optax gives them."""
    names = dict(alpha="decay", weight_decay="weight_decay", eps="eps", rho="rho")
    names["initial_accumulator_value"] = "initial_accumulator_value"
    for name, preset in fastgd.presets["optax"].items():
        theirs = inspect.signature(getattr(optax, name.lower())).parameters
        for ours, value in preset.items():
            if ours == "betas":
                assert value == (theirs["b1"].default, theirs["b2"].default), name
            elif ours in names and names[ours] in theirs:
                assert value == theirs[names[ours]].default, (name, ours)


KERAS = [
    (name, extra)
    for name in fastgd.presets["keras"]
    for extra in ({}, dict(momentum=0.8), dict(momentum=0.8, nesterov=True))
    if not extra or (name == "SGD" or (name == "RMSprop" and "nesterov" not in extra))
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from Keras, about NumPy
@pytest.mark.parametrize(("name", "extra"), KERAS)
def test_presets_of_keras_are_its_defaults(name: str, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras without an argument and the preset, with a learning rate that changes; it runs on torch."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    start, grads = problem("float64", STEPS, [(65,)])
    theirs = keras.Variable(start[0].copy(), dtype="float64")
    reference = getattr(keras.optimizers, {"NAdam": "Nadam"}.get(name, name))(**extra)
    reference.build([theirs])
    opt = getattr(fastgd, name)(start, **fastgd.presets["keras"][name] | extra)
    for k, step in enumerate(grads):
        lr = fastgd.presets["keras"][name]["lr"] * (1.0 if k < 5 else 0.5)
        reference.learning_rate = opt.param_groups[0]["lr"] = lr
        reference.apply([torch.from_numpy(step[0].copy())], [theirs])
        opt.step(step)
    # Keras keeps its scalars in float32
    assert error(start[0], keras.ops.convert_to_numpy(theirs)) < 1e-6


def test_presets_are_arguments_of_their_classes() -> None:
    for library, table in fastgd.presets.items():
        for name, preset in table.items():
            opt = getattr(fastgd, name)(np.ones(3), **preset)
            opt.step(np.ones(3))
            assert opt.t == 1, library
    with pytest.raises(TypeError):
        fastgd.presets["keras"]["Adam"]["lr"] = 1.0  # type: ignore[index]  # read only


# ---- mistakes known from other libraries


def take(name: str, p: Any, grads: list[Any], **hyper: Any) -> tuple[np.ndarray, Any]:
    params = np.array(p, np.float64)
    opt = getattr(fastgd, name)(params, **hyper)
    for g in grads:
        opt.step(np.array(g, np.float64))
    return params, opt


def test_adan_looks_ahead_by_beta_two() -> None:
    """optax takes 1 - b2 in its place (its pull request 1715): 0.25 here."""
    p, opt = take("Adan", [0.0], [[1.0], [3.0]], lr=1.0, betas=(0.5, 0.75, 0.5), eps=0.0)
    ahead = 3.0 + 0.75 * 2.0
    np.testing.assert_allclose(opt.state["exp_avg_sq"], [0.5 * 0.5 + 0.5 * ahead**2])
    first = 1.0  # m / sqrt(n), both corrected
    second = (1.75 / 0.75 + 0.75 * (0.25 * 2.0) / (1 - 0.75**2)) / math.sqrt(opt.state["exp_avg_sq"][0] / 0.75)
    np.testing.assert_allclose(p, [-first - second], rtol=1e-14)


def test_radam_counts_steps_from_one() -> None:
    """thinc is one ahead: with these betas its fifth step is rectified, ours is not."""
    hyper = dict(lr=1.0, betas=(0.0, 0.999))
    for steps in (1, 5):
        p, _ = take("RAdam", [0.0], [[2.0]] * steps, **hyper)
        np.testing.assert_allclose(p, [-2.0 * steps], rtol=1e-12)  # by the momentum alone
    p, _ = take("RAdam", [0.0], [[2.0]] * 6, **hyper)
    assert -10.5 < p[0] < -10.0


def test_centered_variance_is_never_negative() -> None:
    """A constant gradient has no variance; torch's rounding makes it negative and the parameter NaN."""
    p, opt = take("RMSprop", [0.0], [[0.7]] * 401, lr=0.1, alpha=0.5, eps=1.0, centered=True)
    assert opt.state["square_avg"][0] < opt.state["grad_avg"][0] ** 2
    assert np.isfinite(p).all()


def test_rprop_takes_its_first_step_at_once() -> None:
    """optax takes each step one late (its pull request 1725)."""
    p, _ = take("Rprop", [0.0], [[3.0]], lr=0.25)
    assert p[0] == -0.25


def test_schedule_free_warms_up_from_the_first_step() -> None:
    """optax's rate counts from 0, so that its first step stands still while the average counts it."""
    p, _ = take("ScheduleFreeSGD", [0.0], [[1.0]], lr=1.0, momentum=0.5, warmup_steps=4)
    assert p[0] == -0.25  # c = 1: the average is the new iterate


def test_a_learning_rate_inside_the_momentum_is_kerass() -> None:
    """Its velocity holds lr * gradient, so that a changed lr acts on new gradients only."""
    p = np.zeros(1)
    opt = fastgd.SGD(p, lr=1.0, momentum=0.5, lr_in_momentum=True)
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.zeros(1))
    assert p[0] == -1.5


def test_chainers_nesterov_is_not_ours() -> None:
    """It uses the new velocity for the old: -0.271 (its issue 4274)."""
    p, _ = take("SGD", [0.0], [[1.0]], lr=0.1, momentum=0.9, nesterov=True, lr_in_momentum=True)
    np.testing.assert_allclose(p, [-0.19], rtol=1e-15)


def test_changed_rate_of_asgd_acts_one_step_later() -> None:
    """As in torch: a step's length is made at the end of the one before."""
    p = np.zeros(1)
    opt = fastgd.ASGD(p, lr=0.5, lambd=0.0)
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    assert p[0] == -1.25


def test_adopt_does_not_move_at_its_first_gradient() -> None:
    """Nor decay, nor take anything into the momentum; only the mean square starts."""
    p, opt = take("ADOPT", [2.0], [[3.0]], lr=0.5, weight_decay=0.5, decouple=True)
    assert (p[0], opt.state["exp_avg"][0], opt.state["exp_avg_sq"][0]) == (2.0, 0.0, 9.0)


def test_signum_and_lion_do_not_hide_nan() -> None:
    for name in ("Signum", "Lion", "Grams"):
        p, _ = take(name, [1.0, 1.0], [[math.nan, 1.0]])
        assert math.isnan(p[0]) and p[1] < 1.0


def test_starts_are_each_groups_own() -> None:
    a, b = np.zeros(1), np.zeros(1)
    opt = fastgd.Rprop([{"params": a, "lr": 0.5}, {"params": b, "lr": 0.25}])
    opt.step([np.ones(1), np.ones(1)])
    assert (a[0], b[0]) == (-0.5, -0.25)
    asgd = fastgd.ASGD([{"params": a, "lr": 0.5}, {"params": b, "lr": 0.25}], lambd=0.0)
    asgd.step([np.ones(1), np.ones(1)])
    assert (a[0], b[0]) == (-1.0, -0.5)
    adagrad = fastgd.Adagrad([{"params": a}, {"params": b, "initial_accumulator_value": 3.0}])
    assert (adagrad.state["sum"][0], adagrad.state["sum"][64]) == (0.0, 3.0)
