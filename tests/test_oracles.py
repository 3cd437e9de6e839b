"""Every rule against its oracle, the oracles and the rules against torch.optim, and the mistakes of others."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from oracles import EXTRA_KEYWORDS, ORACLES, SETTINGS, Segments, clip_global_norm, ema, global_norm

import fastgd
from fastgd.kernels.cpu_threads import available_threads
from fastgd.kernels.plan import plan
from fastgd.kernels.rule import fallback_of
from fastgd.kernels.rules import RULES

STEPS = 24
SHAPES = {"a.w": (1,), "a.b": (7,), "b.w": (8, 8), "b.b": (65,), "c": (25, 40)}
GROUPS = (0, 1, 0, 1, 2)
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
CASES = [
    pytest.param(name, setting, id=f"{name}-{i}") for name in RULES for i, setting in enumerate(SETTINGS.get(name, ()))
]
BACKENDS = ("numpy", "numba")
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def problem(
    dtype: str, steps: int = STEPS, shapes: Iterable[tuple[int, ...]] = tuple(SHAPES.values())
) -> tuple[Segments, list[Segments]]:
    """Parameters of size one, and gradients with a drift, of magnitudes from 1e-3 to 10, some of them zero."""
    rng = np.random.default_rng(20)
    start = [rng.choice((-1.0, 1.0), s) * rng.uniform(0.5, 2.0, s) for s in shapes]
    drift = [10.0 ** rng.uniform(-3, 1, s) * rng.choice((-1.0, 1.0), s) for s in shapes]
    grads = [
        [d * (rng.standard_normal(d.shape) + 0.5) * (rng.random(d.shape) > 0.02) for d in drift] for _ in range(steps)
    ]
    return [p.astype(dtype) for p in start], [[g.astype(dtype) for g in step] for step in grads]


def optimizer_class(name: str) -> Callable[..., Any]:
    """Class that users know a rule by."""
    return getattr(fastgd, RULES[name].__name__)


def error(given: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    worst, scale = np.max(np.abs(given.astype(np.float64) - expected)), np.max(np.abs(expected))
    return float(worst if scale == 0 else worst / scale)


def split_state(opt: Any, name: str) -> Segments:
    """Parts of a state array, 1-D, one for each segment; empty where a segment has none."""
    state = opt._layout.states[name]
    return [state.part(i) for i in range(len(state.sizes))]


def vary(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Hyperparameters of three groups: other learning rates and decays, one decay zero."""
    first, second, third = dict(setting), dict(setting), dict(setting)
    second["lr"], third["lr"] = 0.5 * setting["lr"], 2.0 * setting["lr"]
    if "weight_decay" in setting:
        second["weight_decay"], third["weight_decay"] = 0.5 * setting["weight_decay"] + 0.01, 0.0
    return [first, second, third]


class Run:
    """The same problem for an optimizer on a FlatParams in three groups, and for the oracle of its rule."""

    def __init__(self, name: str, groups: list[dict[str, Any]], dtype: str, backend: str, **tail: Any) -> None:
        self.name, self.groups, self.dtype = name, groups, dtype
        self.start, self.grads = problem(dtype)
        self.params = fastgd.FlatParams(dict(zip(SHAPES, self.start, strict=True)))
        given = [{"params": self.params, **groups[0]}]
        for i in (1, 2):
            names = [n for n, g in zip(SHAPES, GROUPS, strict=True) if g == i]
            served = any(RULES[name](**groups[i]).serves(SHAPES[n]) for n in names)
            given.append({"match": names, **(groups[i] if served else {})})  # a fallback has values of its own
        self.opt = optimizer_class(name)(given, **groups[0], backend=backend, **tail)
        # Gradients that enter an estimate of the Hessian before some steps, for a rule that has one.
        drawn = dict(zip((1, 4, 9), self.grads[::-1], strict=False))
        self.drawn = drawn if "hessian" in RULES[name].asides else {}

    def step(self, gradients: Segments, scale: float = 1.0) -> None:
        """Step with these gradients."""
        if self.opt.t + 1 in self.drawn:
            self._set(self.drawn[self.opt.t + 1])
            self.opt.update_hessian()
        self._set(gradients)
        self.opt.step(scale=scale)

    def _set(self, gradients: Segments) -> None:
        for name, gradient in zip(SHAPES, gradients, strict=True):
            self.params.grad[name] = gradient

    def expect(self, grads: list[Segments]) -> tuple[Segments, dict[str, dict[int, np.ndarray]]]:
        """Run the oracle on each group; states by name and by segment."""
        xs: Segments = [np.empty(0)] * len(SHAPES)
        states: dict[str, dict[int, np.ndarray]] = {}
        for name, hyper, members, extra in self._parts():
            own = [[step[i] for i in members] for step in grads]
            got, kept = ORACLES[name]([self.start[i] for i in members], own, **hyper, **extra)
            for at, i in enumerate(members):
                xs[i] = got[at]
                for state, segments in kept.items():
                    part = segments[at]
                    states.setdefault(state, {})[i] = np.empty(0) if part is None else part.reshape(-1)
        return xs, states

    def _parts(self) -> Iterator[tuple[str, dict[str, Any], list[int], dict[str, Any]]]:
        """Oracle, hyperparameters, segments, and data of the run, of all that is updated together."""
        shapes = list(SHAPES.values())
        if plan(RULES[self.name](**self.groups[0])).level == "total":
            each = [{k: v for k, v in self.groups[g].items() if k in ("lr", "weight_decay")} for g in GROUPS]
            yield self.name, self.groups[0], list(range(len(shapes))), {"each": each}
            return
        for group, hyper in enumerate(self.groups):
            rule = RULES[self.name](**hyper)
            members = [i for i, g in enumerate(GROUPS) if g == group]
            served = [i for i in members if rule.serves(shapes[i])]
            extra: dict[str, Any] = {}
            if self.drawn:
                extra["hessians"] = {k: [g[i] for i in served] for k, g in self.drawn.items()}
            if "machine_eps" in inspect.signature(ORACLES[self.name]).parameters:
                extra["machine_eps"] = float(np.finfo(self.dtype).eps)
            if served:
                yield self.name, hyper, served, extra
            fallback = fallback_of(rule)
            left = [i for i in members if i not in served]
            if left and fallback is not None:
                values = {n: getattr(fallback, n) for n in fallback.hyperparameters()}
                yield type(fallback).__name__.lower(), values, left, {}

    def check(self, grads: list[Segments]) -> None:
        """Compare parameters and states with the oracle."""
        xs, states = self.expect(grads)
        assert set(self.opt.state) == set(states)
        worst = {f"p[{n}]": error(self.params[n], x) for n, x in zip(SHAPES, xs, strict=True)}
        for state, segments in states.items():
            parts = split_state(self.opt, state)
            worst |= {f"{state}[{list(SHAPES)[i]}]": error(parts[i], x) for i, x in segments.items() if x.size}
        assert {k: v for k, v in worst.items() if not v < TOLERANCE[self.dtype]} == {}


# ---- the rules against the oracles


def test_every_rule_has_an_oracle() -> None:
    """No rule without an oracle, no oracle without a rule."""
    assert set(RULES) == set(ORACLES)


@pytest.mark.parametrize("name", RULES)
def test_oracle_has_the_arguments_and_defaults_of_the_rule(name: str) -> None:
    """Two hands wrote the same defaults."""
    rule = {
        f.name: inspect.Parameter.empty if f.default is MISSING else f.default
        for f in fields(RULES[name])
        if f.init and f.name != "fallback"  # has an oracle of its own
    }
    known = inspect.signature(ORACLES[name]).parameters.values()
    given = {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.name not in EXTRA_KEYWORDS}
    assert rule == given


@pytest.mark.parametrize("name", RULES)
def test_every_hyperparameter_is_tested_off_its_default(name: str) -> None:
    """A default can hide what an argument does."""
    rule = RULES[name]
    untested = [
        f.name
        for f in fields(rule)
        if f.init and f.name != "fallback" and all(s.get(f.name, f.default) == f.default for s in SETTINGS[name])
    ]
    assert untested == []


@backends
@dtypes
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_rule_equals_oracle(name: str, setting: dict[str, Any], dtype: str, backend: str) -> None:
    """Parameters and states, over many steps, odd sizes and three groups."""
    run = Run(name, vary(setting), dtype, backend)
    for gradients in run.grads:
        run.step(gradients)
    assert run.opt.t == STEPS
    run.check(run.grads)


@backends
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("sgd", [dict(lr=0.02, momentum=0.9), dict(lr=0.01), dict(lr=0.02, momentum=0.5, nesterov=True)]),
        ("adam", [dict(amsgrad=True), dict(eps_mode="hat", eps=0.01), dict(lr=0.01, betas=(0.5, 0.9))]),
    ],
)
def test_groups_may_differ_in_options(name: str, groups: list[dict[str, Any]], backend: str) -> None:
    """Groups that need kernels and states of their own."""
    defaults = {f.name: f.default for f in fields(RULES[name])}
    run = Run(name, [{**defaults, **g} for g in groups], "float64", backend)
    for gradients in run.grads:
        run.step(gradients)
    run.check(run.grads)


@backends
@pytest.mark.parametrize("name", ["lamb", "adam"])
def test_segments_longer_than_a_block_of_sums(name: str, backend: str) -> None:
    """LAMB's norms and the clip's, where sums span several blocks and numba goes parallel."""
    start, grads = problem("float32", 6, [(4096,), (40001,), (3,)])
    params = [p.copy() for p in start]
    opt = optimizer_class(name)(params, lr=0.02, weight_decay=0.1, max_norm=50.0, backend=backend)
    for step in grads:
        opt.step(step)
    if backend == "numba" and available_threads() > 1:
        assert all(sweep._parallel for sweep in opt._layout.program.launches[0].sweeps)
    assert opt.grad_norm == pytest.approx(global_norm(grads[-1]), rel=1e-6)
    xs, _ = ORACLES[name](start, [clip_global_norm(g, 50.0) for g in grads], lr=0.02, weight_decay=0.1)
    assert max(map(error, params, xs)) < 2e-6


# ---- the tail


TAILS = {
    "scale": dict(scale=0.37),
    "maximize": dict(maximize=True),
    "max_norm": dict(max_norm=90.0),
    "ema": dict(ema_decay=0.8),
    "zero_grad": dict(zero_grad=True),
}
ALL = {k: v for tail in TAILS.values() for k, v in tail.items()} | {"max_norm": 90.0 * 0.37}


@backends
@dtypes
@pytest.mark.parametrize(
    ("name", "tail"),
    [pytest.param("sgd", tail, id=f"sgd-{key}") for key, tail in TAILS.items()]
    + [pytest.param(name, ALL, id=f"{name}-all") for name in RULES],
)
def test_tail_equals_oracle(name: str, tail: dict[str, Any], dtype: str, backend: str) -> None:
    """Each part of the tail alone, and all of it with every rule."""
    given = dict(tail)
    scale = given.pop("scale", 1.0)
    run = Run(name, vary(SETTINGS[name][-1]), dtype, backend, **given)
    used, history, clipped = [], [run.start], 0
    for gradients in run.grads:
        run.step(gradients, scale=scale)
        scaled = [(-scale if "maximize" in tail else scale) * g.astype(np.float64) for g in gradients]
        if "max_norm" in tail:
            norm = global_norm(scaled)
            assert run.opt.grad_norm == pytest.approx(norm, rel=1e-6 if dtype == "float32" else 1e-13)
            clipped += norm > tail["max_norm"]
            scaled = clip_global_norm(scaled, tail["max_norm"])
        used.append(scaled)
        if "ema_decay" in tail:
            history.append(run.expect(used)[0])
        for n, gradient in zip(SHAPES, gradients, strict=True):
            np.testing.assert_array_equal(run.params.grad[n], 0 if "zero_grad" in tail else gradient)
    run.check(used)
    if "max_norm" in tail:
        assert 0 < clipped < STEPS
    if "ema_decay" in tail:
        means = ema(history, tail["ema_decay"])
        averages = run.opt.ema[0]  # a list, as the groups are; the FlatParams is in the first
        assert max(error(averages[n], e) for n, e in zip(SHAPES, means, strict=True)) < TOLERANCE[dtype]
    else:
        assert run.opt.ema is None


# ---- torch.optim


@pytest.fixture
def torch() -> Iterator[ModuleType]:
    """Give torch, computing in float64 by default: it keeps some scalars in the default dtype."""
    module = pytest.importorskip("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


PEERS = [
    pytest.param(name, hyper, id="-".join([name, *(f"{k}={v}" for k, v in hyper.items())]))
    for name, hyper in [
        ("SGD", dict(lr=0.05)),
        ("SGD", dict(lr=0.05, weight_decay=0.1, maximize=True)),
        ("SGD", dict(lr=0.02, momentum=0.9, weight_decay=0.1)),
        ("SGD", dict(lr=0.02, momentum=0.7, dampening=0.4, maximize=True)),
        ("SGD", dict(lr=0.02, momentum=0.7, nesterov=True, weight_decay=0.1)),
        ("Adam", dict()),
        ("Adam", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
        ("Adam", dict(lr=0.02, betas=(0.5, 0.9), amsgrad=True, maximize=True)),
        ("Adam", dict(lr=0.02, weight_decay=0.3, decoupled_weight_decay=True)),
        ("AdamW", dict()),
        ("AdamW", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3, maximize=True)),
        ("AdamW", dict(lr=0.02, betas=(0.5, 0.9), weight_decay=0.1, amsgrad=True)),
    ]
]


def run_torch(torch: ModuleType, name: str, hyper: dict[str, Any], rates: list[float]) -> Segments:
    """Parameters after these steps of a torch optimizer, with these learning rates."""
    start, grads = problem("float64", steps=len(rates))
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    opt = getattr(torch.optim, name)(params, **hyper)
    for lr, step in zip(rates, grads, strict=True):
        opt.param_groups[0]["lr"] = lr
        for p, g in zip(params, step, strict=True):
            p.grad = torch.from_numpy(g.copy())
        opt.step()
    return [p.detach().numpy() for p in params]


@pytest.mark.parametrize(("name", "hyper"), PEERS)
def test_oracle_equals_torch(torch: ModuleType, name: str, hyper: dict[str, Any]) -> None:
    """The oracles are right where torch is there to ask."""
    start, grads = problem("float64", steps=20)
    own = {k: v for k, v in hyper.items() if k != "maximize"}
    sign = -1.0 if hyper.get("maximize") else 1.0
    xs, _ = ORACLES[name.lower()](start, [[sign * g for g in step] for step in grads], **own)
    assert max(map(error, xs, run_torch(torch, name, hyper, [hyper.get("lr", 1e-3)] * 20))) < 1e-13


# ---- oracles checked by hand


def test_lion_oracle_by_hand() -> None:
    """Two steps on paper; the last element has no gradient and only decays."""
    # The second element turns: its gradient at step 2 is negative, but the average that votes is still positive.
    start, grads = [np.array([2.0, 2.0, 2.0])], [[np.array([1.0, 1.0, 0.0])], [np.array([-2.0, -0.2, 0.0])]]
    (x,), states = ORACLES["lion"](start, grads, lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    # step 1: 0.95 * 2 - 0.1; m = 0.25; step 2: votes of 0.125 - 1 and 0.125 - 0.1
    np.testing.assert_allclose(x, [0.95 * 1.8 + 0.1, 0.95 * 1.8 - 0.1, 0.95**2 * 2.0], rtol=1e-15)
    np.testing.assert_allclose(states["exp_avg"][0], [0.1875 - 0.5, 0.1875 - 0.05, 0.0], rtol=1e-15)


def test_lamb_oracle_by_hand() -> None:
    """Two steps on paper, in numbers that come out even."""
    start, grads = [np.array([3.0, 4.0])], [[np.array([1.0, -1.0])], [np.array([-1.0, -1.0])]]
    hyper = dict(lr=0.1, betas=(0.5, 0.75), eps=1.0, weight_decay=0.5)
    # u = (1, -1) / (1 + 1) + (1.5, 2) = (2, 1.5), of norm 2.5; the norm of (3, 4) is 5, so the ratio is 2
    (x,), _ = ORACLES["lamb"](start, grads[:1], **hyper)
    np.testing.assert_allclose(x, [2.6, 3.7], rtol=1e-15)
    # m = (-1/4, -3/4) over 3/4, v = 7/16 over 7/16: u = (-1/3, -1) / 2 + (1.3, 1.85)
    (x,), states = ORACLES["lamb"](start, grads, **hyper)
    u = np.array([17 / 15, 1.35])
    ratio = math.hypot(2.6, 3.7) / math.hypot(*u)
    np.testing.assert_allclose(x, [2.6 - 0.1 * ratio * u[0], 3.7 - 0.1 * ratio * u[1]], rtol=1e-15)
    np.testing.assert_allclose(states["exp_avg"][0], [-0.25, -0.75], rtol=1e-15)
    np.testing.assert_allclose(states["exp_avg_sq"][0], [0.4375, 0.4375], rtol=1e-15)


# ---- mistakes known from other libraries


def take(name: str, p: Any, grads: list[Any], backend: str, dtype: str = "float64", **hyper: Any) -> tuple[Any, Any]:
    """Parameters after these gradients, and the optimizer."""
    params = np.array(p, dtype)
    opt = optimizer_class(name)(params, backend=backend, **hyper)
    for g in grads:
        opt.step(np.array(g, dtype))
    return params, opt


@backends
def test_lion_decay_stays_out_of_the_momentum(backend: str) -> None:
    """bitsandbytes added it to the gradient, in three copies (its issue 1992)."""
    p, opt = take("lion", [2.0, -4.0], [[0.0, 0.0]], backend, lr=0.1, weight_decay=0.5)
    np.testing.assert_allclose(p, [1.9, -3.8], rtol=1e-15)
    assert not opt.state["exp_avg"].any()


@backends
def test_adamw_decays_the_old_parameter(backend: str) -> None:
    """thinc, and bitsandbytes on CUDA (its issue 2010), shrink the new one, here to 0.375."""
    p, opt = take("adamw", [1.0], [[4.0]], backend, lr=0.5, weight_decay=0.5, eps=0.0)
    np.testing.assert_allclose(p, [0.25], rtol=1e-15)
    np.testing.assert_allclose(opt.state["exp_avg"], [0.4], rtol=1e-15)


@backends
def test_amsgrad_takes_the_largest_uncorrected_average(backend: str) -> None:
    """optax takes the largest corrected one, which after gradients 1 and 0 is still 1."""
    p, opt = take("adam", [0.0], [[1.0], [0.0]], backend, lr=1.0, betas=(0.5, 0.5), eps=0.0, amsgrad=True)
    np.testing.assert_allclose(opt.state["max_exp_avg_sq"], [0.5], rtol=1e-15)
    np.testing.assert_allclose(p, [-1.0 - (0.25 / 0.75) / math.sqrt(0.5 / 0.75)], rtol=1e-15)


@backends
def test_sgd_first_step_is_undamped(backend: str) -> None:
    """As torch starts the velocity; only later gradients are damped."""
    hyper = dict(lr=1.0, momentum=0.5, dampening=0.75)
    _, opt = take("sgd", [0.0], [[1.0]], backend, **hyper)
    assert opt.state["momentum_buffer"][0] == 1.0
    p, opt = take("sgd", [0.0], [[1.0], [1.0]], backend, **hyper)
    assert (p[0], opt.state["momentum_buffer"][0]) == (-1.75, 0.75)


@backends
def test_nesterov_of_sgd_is_torchs(backend: str) -> None:
    """Chainer's first step is -0.271 (its issue 4274)."""
    p, _ = take("sgd", [0.0], [[1.0]], backend, lr=0.1, momentum=0.9, nesterov=True)
    np.testing.assert_allclose(p, [-0.19], rtol=1e-15)


@backends
def test_lr_stays_out_of_the_velocity(backend: str) -> None:
    """Keras and Chainer keep lr * gradient: a changed lr acts on new gradients only."""
    p = np.zeros(1)
    opt = fastgd.SGD(p, lr=1.0, momentum=0.5, backend=backend)
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.zeros(1))
    assert p[0] == -1.125


@backends
def test_complements_come_from_float64(backend: str) -> None:
    """1 - float32(0.999) is 0.00100004673."""
    _, opt = take("adam", [0.0], [[1.0]], backend, "float32")
    assert opt.state["exp_avg_sq"][0] == np.float32(0.001)


@backends
def test_lamb_moves_parameters_that_are_zero(backend: str) -> None:
    """A ratio of norms would pin them there."""
    p, _ = take("lamb", [0.0, 0.0], [[1.0, -2.0]], backend, lr=0.1, eps=0.0)
    np.testing.assert_allclose(p, [-0.1, 0.1], rtol=1e-15)


@backends
def test_lamb_without_decay_is_adam(backend: str) -> None:
    """As in Apex; always_adapt is its use_nvlamb."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75), eps=1e-3, weight_decay=0.0)
    grads = [[1.0, -2.0], [0.5, 0.5]]
    plain, _ = take("lamb", [3.0, 4.0], grads, backend, **hyper)
    adam, _ = take("adam", [3.0, 4.0], grads, backend, **hyper)
    adapted, _ = take("lamb", [3.0, 4.0], grads, backend, **hyper, always_adapt=True)
    np.testing.assert_allclose(plain, adam, rtol=1e-15)
    assert np.all(np.abs(adapted - adam) > 0.1)


@backends
def test_clipping_by_a_norm_that_is_nan_shows(backend: str) -> None:
    """Python's min(1.0, nan) is 1.0: the other parameters would move as if nothing were wrong."""
    p, _ = take("gd", [1.0, 1.0], [[math.nan, 1.0]], backend, max_norm=1.0)
    assert np.isnan(p).all()


@backends
def test_norm_of_finite_gradients_is_finite(backend: str) -> None:
    """Its squares overflow float32; torch finds an infinite norm and clips everything to zero."""
    p, opt = take("gd", [0.0, 0.0], [[3e30, 4e30]], backend, "float32", lr=1.0, max_norm=1.0)
    assert opt.grad_norm == pytest.approx(5e30, rel=1e-6)
    np.testing.assert_allclose(p, [-0.6, -0.8], rtol=1e-6)


@backends
def test_skipped_step_does_not_advance_t(backend: str) -> None:
    """Nor do its states: the run is the one without that gradient."""
    hyper = dict(lr=0.1, betas=(0.5, 0.75))
    plain, _ = take("adam", [1.0], [[1.0], [0.5]], backend, **hyper)
    p, opt = take("adam", [1.0], [[1.0], [math.inf], [0.5]], backend, **hyper, on_nonfinite="skip")
    assert opt.t == 2
    np.testing.assert_array_equal(p, plain)


@backends
def test_maximize_does_not_turn_the_decay(backend: str) -> None:
    """Only the gradient changes its sign."""
    p, _ = take("sgd", [2.0], [[1.0]], backend, lr=0.5, weight_decay=0.5, maximize=True)
    assert p[0] == 2.0
