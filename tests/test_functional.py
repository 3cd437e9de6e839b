"""A step in one call, without an object."""

from __future__ import annotations

import doctest
import gc
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import RULE_CASES, numbers, same_bits

import fastgd
from fastgd import functional
from fastgd.kernels import Rule, cpu
from fastgd.kernels.errors import ArrayError, HyperparameterError, RuleError
from fastgd.kernels.plan import plan
from fastgd.kernels.rule import state_name
from fastgd.kernels.rules import RULES

SHAPE = (17, 59)  # odd, and not flat


def started(rule, p):
    """States as they start, by name."""
    made = plan(rule)
    shapes = {s: made.state_shape(s, p.shape) for s in functional.states_of(made, p.shape)}
    return {
        s: p.copy() if made.start.get(s) == "p" else np.full(shape, made.start.get(s, 0.0), p.dtype)
        for s, shape in shapes.items()
    }


WITHOUT_NUMBERS = [case for case in RULE_CASES if not plan(case.values[0]()).scalar_states]
"""Rules that keep no numbers from step to step; those of the others are the optimizer's."""


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("rule_class", "values"), WITHOUT_NUMBERS)
def test_bits_are_those_of_the_optimizer(rule_class, values, dtype):
    rng = np.random.default_rng(5)
    p = numbers(rng, SHAPE, dtype, 0.02)
    q, start = p.copy(), p.copy()
    rule = rule_class(**values)
    opt = fastgd.Optimizer(q, rule)
    states = started(rule, p)
    step = getattr(functional, f"{rule_class.__name__.lower()}_")
    for t in range(1, 5):
        g = numbers(rng, SHAPE, dtype, 0.02 if t % 2 else 0.0)  # a new array each time
        opt.step(g, scale=-0.3)
        assert step(p, g, *states.values(), t, scale=-0.3, **values) is None
    assert same_bits(p, q) and not same_bits(p, start)
    for short, state in states.items():
        assert same_bits(state.ravel(), opt.state[state_name(rule, short)][: state.size])


def test_there_is_one_for_each_rule():
    assert functional.__all__ == [f"{name}_" for name in sorted(RULES)]
    assert set(functional.__all__) <= set(dir(functional))
    for name in functional.__all__:
        step = getattr(functional, name)
        assert step is getattr(functional, name)
        assert (step.__name__, step.__module__) == (name, "fastgd.functional")
        parameters = inspect.signature(step).parameters
        rule = RULES[name[:-1]]()
        assert list(parameters) == ["p", "g", *functional.states_of(plan(rule)), "t", *rule.hyperparameters(), "scale"]
        assert all(parameters[n].default == getattr(rule, n) for n in rule.hyperparameters())
        assert all(f"{word}\n" in step.__doc__ for word in ("Parameters", "Raises", "t : int"))
    with pytest.raises(AttributeError, match="frobenius_"):
        functional.frobenius_  # noqa: B018
    assert doctest.testmod(functional) == (0, 4)


def test_changing_numbers_compile_nothing(monkeypatch):
    p, g, m = np.ones((3, 64))
    functional.lion_(p, g, m, 1)
    monkeypatch.setattr(cpu, "_compiled", lambda *a, **k: pytest.fail("a kernel was compiled"))
    for t in range(2, 5):
        functional.lion_(p, g, m, t=t, lr=0.1 / t, betas=[0.5, 0.9], weight_decay=0.1 * t, scale=t)
    assert p[0] < 1


def test_arrays_may_change_from_call_to_call():
    """One launch serves arrays of one size; each call must write its own, and keep none alive."""
    rng = np.random.default_rng(6)
    sets = [list(rng.random((4, 101), dtype=np.float32)) for _ in range(3)]
    expected = [[a.copy() for a in arrays] for arrays in sets]
    for t in (1, 2):
        for arrays, wanted in zip(sets, expected, strict=True):
            functional.adam_(*arrays, t, lr=0.1)
            p, g, m, v = wanted
            h = fastgd.kernels.device("adam").hyper(t, lr=0.1)
            for i in range(101):
                p[i], m[i], v[i] = fastgd.kernels.device("adam")(p[i], g[i], m[i], v[i], h)
    for arrays, wanted in zip(sets, expected, strict=True):
        assert all(same_bits(a, b) for a, b in zip(arrays, wanted, strict=True))
    functional.adam_(sets[0][0], *sets[1][1:], 3)  # another p, the rest as before
    dead = [weakref.ref(a) for arrays in sets for a in arrays]
    del arrays, sets
    gc.collect()
    assert not any(ref() is not None for ref in dead)


def test_calls_on_several_threads():
    rng = np.random.default_rng(7)
    start, g = rng.standard_normal((2, 8, 50_000))

    def train(k):
        p, m, v = start[k].copy(), np.zeros(50_000), np.zeros(50_000)
        for t in range(1, 30):
            functional.adamw_(p, g[k], m, v, t, lr=0.01 * (k + 1))
        return p

    alone = [train(k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(train, range(8)))
    assert all(same_bits(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("when", [0, 1, 2])
def test_an_interrupted_step_is_finished(when, monkeypatch):
    """Ctrl-C before the first sweep, between the two, behind the last: the step is done, and Ctrl-C raised."""
    p, q, g = np.ones(5), np.ones(5), np.arange(5.0)
    states, other = np.zeros((2, 5)), np.zeros((2, 5))
    functional.lamb_(p, g, *states, 1)
    functional.lamb_(q, g, *other, 1)

    def run(self):
        between = self._between
        ways = [between.begin, self.sweeps[0].run, between.combine, self.sweeps[1].run]
        for way in ways[: (0, 2, 4)[when]]:
            way()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(functional.Launch, "run", run)
        fresh = [a.copy() for a in (p, g, *states)]
        step = functional._function(RULES["lamb"])  # without launches that are bound to the true run
        with pytest.raises(KeyboardInterrupt):
            step(p, g, *states, 2)
    functional.lamb_(q, g, *other, 2)
    assert same_bits(p, q) and same_bits(states, other) and not same_bits(p, fresh[0])


def test_empty_and_scalar_arrays():
    empty = np.zeros((0, 3), np.float32)
    functional.adam_(empty, empty.copy(), empty.copy(), empty.copy(), 1)
    p = np.array(2.0)
    functional.sgd_(p, np.array(3.0), 1, lr=0.5)
    assert p == 0.5


@dataclass(frozen=True, kw_only=True)
class Counting(Rule):
    lr: float = 0.1

    def init(self):
        return dict(product=1.0)

    def prepare(self, t, product):
        return dict(lr=self.lr * product, product=product / 2)

    @staticmethod
    def update(p, g, *, lr):
        p = p - lr * g
        return p


@dataclass(frozen=True, kw_only=True)
class Scaling(Rule):
    scale: float = 0.1

    def prepare(self, t):
        return dict(lr=self.scale)

    @staticmethod
    def update(p, g, *, lr):
        p = p - lr * g
        return p


READ_ONLY = np.zeros(8)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p, g, m, v: functional.adam_(p, g, m, v),
            HyperparameterError,
            r"t must be .* of shape \(8,\)",
        ),
        (lambda p, g, m, v: functional.adam_(p, g, m, 1), ArrayError, "takes p, g, m, v and t: 4 arrays, given 3"),
        (
            lambda p, g, m, v: functional.adam_(p, g, m, v, 1, amsgrad=True),
            ArrayError,
            "takes p, g, m, v, vmax and t: 5 arrays, given 4",
        ),
        (lambda p, g, m, v: functional.sgd_(p, g, m, 1), ArrayError, "takes p, g and t: 2 arrays, given 3"),
        (lambda p, g, m, v: functional.sgd_(p, g), HyperparameterError, "t must be .* given None"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 0), HyperparameterError, "from 1, given 0"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1.0), HyperparameterError, "from 1, given 1.0"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, True), HyperparameterError, "from 1, given True"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1, lr=-1), HyperparameterError, "at least 0, given -1"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1, amsgrad=1), HyperparameterError, "True or False, given 1"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1, betas=[1]), HyperparameterError, "must be 2 numbers"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1, decay=1), HyperparameterError, "has no 'decay'; it has lr"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1, scale=np.nan), HyperparameterError, "finite, given nan"),
        (lambda p, g, m, v: functional.adam_(p, g, m, v, 1, scale="2"), HyperparameterError, "given '2'"),
        (
            lambda p, g, m, v: functional.gd_(*np.ones((2, 8), np.float32), 1, scale=1e39),
            HyperparameterError,
            r"gscale is 1e\+39, which float32 cannot hold",
        ),
        (lambda p, g, m, v: functional.adam_(p, g, m, v[:7], 1), ArrayError, r"v must have the shape of p, \(8,\)"),
        (
            lambda p, g, m, v: functional.adam_(p, g, m.astype("f4"), v, 1),
            ArrayError,
            "m must have the dtype of p, float64, given float32",
        ),
        (lambda p, g, m, v: functional.adam_(p, [1.0] * 8, m, v, 1), ArrayError, "g must be an array, given list"),
        (lambda p, g, m, v: functional.adam_(p, g, READ_ONLY, v, 1), ArrayError, "m must be writeable"),
        (lambda p, g, m, v: functional.adam_(p, g, m, m, 1), ArrayError, "m and v must not share memory"),
        (lambda p, g, m, v: functional.adam_(p, p, m, v, 1), ArrayError, "g and p must not share memory"),
        (lambda p, g, m, v: functional._function(Counting)(p, g, 1), RuleError, r"Counting keeps .* \(product\)"),
        (lambda p, g, m, v: functional._function(Scaling), RuleError, "`scale` is an argument of the step"),
    ],
)
def test_what_is_refused_has_changed_nothing(call, error, message):
    arrays = [np.full(8, k) for k in (1.0, 2.0, 3.0, 4.0)]
    with pytest.raises(error, match=message) as caught:
        call(*arrays)
    assert "\n" not in str(caught.value)
    assert [a.tolist() for a in arrays] == [[k] * 8 for k in (1.0, 2.0, 3.0, 4.0)]


def test_parts_of_one_block_may_touch_but_not_overlap():
    block = np.zeros(40)
    p, g, m, v = block[:10], block[10:20], block[20:30], block[30:]
    g[:] = 1
    functional.adam_(p, g, m, v, 1)
    assert (p < 0).all() and (g == 1).all() and (v > 0).all()
    with pytest.raises(ArrayError, match="g and m must not share"):
        functional.adam_(p, g, block[19:29], v, 2)


def test_the_gradient_may_be_read_only():
    p, g = np.ones(4), np.ones(4)
    g.flags.writeable = False
    functional.gd_(p, g, 1, lr=0.5)
    assert p.tolist() == [0.5] * 4
