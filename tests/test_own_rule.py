"""A user's own rule with all that a rule can have: starts, scalar states, sums in total, combine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import fastgd
from fastgd.kernels import Rule, per_segment, sqrt, total
from fastgd.kernels.errors import HyperparameterError, RuleError


@dataclass(frozen=True, kw_only=True)
class Decaying(Rule):
    """Pulls back to the start, with a step normed by the gradient and a factor that shrinks by half each step."""

    lr: float = 0.1

    def init(self):
        return dict(start="p", level=2.0, factor=1.0, seen=0.0)

    def stages(self):
        return ("measure", "update")

    def prepare(self, t, factor):
        return dict(lr=self.lr * factor, factor=factor * 0.5)

    @staticmethod
    def measure(g, level):
        level = level + g
        return level, total(gg=g * g)

    @staticmethod
    def combine(gg, seen, *, lr):
        seen = seen + 1
        step = lr / sqrt(gg) if gg > 0 else 0
        return seen, step

    @staticmethod
    def update(p, g, start, level, *, step):
        p = p - step * (g + 0.5 * (p - start)) * level
        return p


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_starts_scalar_states_and_totals(backend):
    a, b = np.ones(5), np.full(3, 2.0)
    opt = fastgd.Optimizer([a, b], Decaying(lr=0.2), backend=backend)
    x, y, up, down, factor = 1.0, 2.0, 2.0, 2.0, 1.0
    for k in (1.0, 3.0):
        opt.step([np.full(5, k), np.full(3, -k)])
        step = 0.2 * factor / np.sqrt(8 * k * k)
        up, down, factor = up + k, down - k, factor / 2
        x = x - step * (k + 0.5 * (x - 1.0)) * up
        y = y - step * (-k + 0.5 * (y - 2.0)) * down
    np.testing.assert_allclose(a, x, rtol=1e-14)
    np.testing.assert_allclose(b, y, rtol=1e-14)
    scalars = opt.state_dict()["scalar_state"][0]
    assert scalars == {"factor": [0.25], "seen": [2.0]}


@staticmethod
def measures(g, level, *, step):
    level = level + step * g
    return level, total(gg=g * g)


@staticmethod
def steps(gg, seen):
    step = sqrt(gg) + seen
    return step


@staticmethod
def each(g, level):
    level = level + g
    return level, per_segment(gg=g * g)


@staticmethod
def derived(seen, *, lr):
    more = lr * seen
    return more


@staticmethod
def derived_as_it_was(seen):
    return seen


@staticmethod
def derived_sum(seen, *, lr):
    gg = lr * seen
    return gg


@staticmethod
def derived_size(seen, *, lr):
    size = lr * seen
    return size


@staticmethod
def derived_step(seen, *, lr):
    step = lr * seen
    return step


@staticmethod
def derived_array(seen, *, lr):
    level = lr * seen
    return level


@staticmethod
def derived_scalar(seen):
    lr = 2 * seen
    return lr


@staticmethod
def derived_tail(seen, *, lr):
    gscale = lr * seen
    return gscale


@staticmethod
def derived_of_a_group(factor, *, lr):
    more = lr * factor
    return more


@staticmethod
def derived_of_nothing(other, *, lr):
    more = lr * other
    return more


@staticmethod
def derived_twice(seen, *, lr):
    factor = lr * seen
    return factor


def broken(**parts):
    """Decaying, with parts replaced."""
    return dataclass(frozen=True, kw_only=True)(type("Broken", (Decaying,), {"__annotations__": {}, **parts}))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(stages=lambda self: ("update", "measure")), "stages"),
        (dict(prepare=lambda self, t: {}), "do not give"),
        (dict(prepare=lambda self, t, other: {}), "does not start"),
        (dict(prepare=lambda self, t: None), "dict of numbers"),
        (dict(init=lambda self: dict(start="q", factor=1.0, seen=0.0)), 'a number or "p"'),
        (dict(init=lambda self: dict(factor=1.0)), "combine takes `seen`"),
        (dict(prepare=lambda self, t: dict(step=1.0), measure=measures, combine=steps), "measure has of prepare"),
        (dict(prepare=lambda self, t, seen: dict(lr=1.0, seen=seen), measure=each), "take it in derive"),
        (dict(derive=derived, measure=each), "sum in total"),
        (dict(derive=derived_of_nothing), "derive takes `other`"),
        (dict(derive=derived_of_a_group), "derive takes `factor`, which is no scalar state that combine"),
        (dict(derive=derived_twice), "derive returns `factor`"),
        (dict(derive=derived_as_it_was), "derive returns `seen`"),
        (dict(derive=derived_sum), "derive returns `gg`"),
        (dict(derive=derived_size), "derive returns `size`"),
        (dict(derive=derived_step), "derive returns `step`"),
        (dict(derive=derived_array), "derive returns `level`"),
        (dict(derive=derived_scalar), "derive returns `lr`"),
        (dict(derive=derived_tail), "`gscale` is a name of the fused tail"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(RuleError, match=message):
        fastgd.Optimizer(np.ones(3), broken(**parts)())


@dataclass(frozen=True, kw_only=True)
class Reaching(Rule):
    """Its step grows with the gradients it has seen, by a reach that all groups share."""

    lr: float = 0.1
    gain: float = 0.5

    def init(self):
        return dict(reach=1.0)

    def stages(self):
        return ("measure", "update")

    def prepare(self, t):
        return dict(lr=self.lr, gain=self.gain)

    @staticmethod
    def derive(reach, *, lr, gain):
        step = lr * reach
        gained = gain * reach
        return step, gained

    @staticmethod
    def measure(g, m, *, step):
        m = m + step * g
        return m, total(size2=g * g)

    @staticmethod
    def combine(size2, reach, *, gained):
        reach = reach + gained * size2
        return reach

    @staticmethod
    def update(p, m, *, step):
        p = p - step * m
        return p


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_scalars_are_derived_of_what_combine_keeps(backend):
    a, b = np.ones(5), np.full(3, 2.0)
    opt = fastgd.Optimizer([{"params": [a]}, {"params": [b], "lr": 0.2}], Reaching(), backend=backend)
    (x, y), m, n, reach = (1.0, 2.0), 0.0, 0.0, 1.0
    for k in (0.5, 0.25, 1.0):
        opt.report([[np.full(5, k)], [np.full(3, -k)]])  # a report takes nothing
        opt.step([[np.full(5, k)], [np.full(3, -k)]])
        m, n = m + 0.1 * reach * k, n - 0.2 * reach * k
        x, y = x - 0.1 * reach * m, y - 0.2 * reach * n
        reach = reach + 0.5 * reach * 8 * k * k
    np.testing.assert_allclose(a, x, rtol=1e-14)
    np.testing.assert_allclose(b, y, rtol=1e-14)
    assert opt.state_dict()["scalar_state"][0] == {"reach": [pytest.approx(reach, rel=1e-14)]}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_is_derived_may_exceed_float32(backend):
    p = np.ones(3, np.float32)
    opt = fastgd.Optimizer(p, Reaching(lr=1e30, gain=1e30), backend=backend)
    for _ in range(3):
        opt.step(np.ones(3, np.float32))
    assert not np.isfinite(p).any()
    assert np.isfinite(opt.state_dict()["scalar_state"][0]["reach"]).all()


def test_groups_agree_in_what_a_state_is_derived_of():
    groups = [{"params": [np.ones(3)]}, {"params": [np.ones(3)], "gain": 0.25}]
    opt = fastgd.Optimizer(groups, Reaching())
    with pytest.raises(HyperparameterError, match=r"must agree in gain: given 0\.5 and 0\.25"):
        opt.step([[np.ones(3)], [np.ones(3)]])


@dataclass(frozen=True, kw_only=True)
class Normed(Rule):
    """Its combine gives a sum as it is, or, by an option, its root."""

    lr: float = 0.1
    rooted: bool = False

    def options(self):
        return dict(rooted=self.rooted)

    def stages(self):
        return ("measure", "update")

    def prepare(self, t):
        return dict(lr=self.lr)

    @staticmethod
    def measure(g):
        return total(gg=g * g)

    @staticmethod
    def combine(gg, *, rooted):
        if rooted:
            gg = sqrt(gg)
        return gg

    @staticmethod
    def update(p, g, *, lr, gg):
        p = p - lr * (g / gg)
        return p


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(("rooted", "norm"), [(False, 16.0), (True, 4.0)])
def test_combine_may_give_a_sum_as_it_is(rooted, norm, backend):
    p = np.ones(4)
    fastgd.Optimizer(p, Normed(rooted=rooted), backend=backend).step(np.full(4, 2.0))
    np.testing.assert_allclose(p, 1 - 0.1 * 2 / norm, rtol=1e-14)


@dataclass(frozen=True, kw_only=True)
class Counting(Rule):
    """Its step shrinks with a number that it keeps; an array of one dimension goes to another of its class."""

    lr: float = 0.1
    keep: float = 0.5
    fallback: Rule | None = None

    def serves(self, shape):
        return self.fallback is None or len(shape) > 1

    def init(self):
        return dict(mu=1.0)

    def prepare(self, t, mu):
        return dict(lr=self.lr * mu, mu=mu * self.keep)

    @staticmethod
    def update(p, g, *, lr):
        p = p - lr * g
        return p


def test_numbers_of_a_rule_and_of_its_fallback_are_kept_apart():
    opt = fastgd.Optimizer([{"params": [np.ones((2, 2)), np.ones(2)]}], Counting(fallback=Counting(keep=0.9)))
    for _ in range(3):
        opt.step([[np.ones((2, 2)), np.ones(2)]])
    before = opt.state_dict()["scalar_state"]
    opt.add_param_group({"params": [np.ones((3, 3))]})
    assert before == [{"mu": [0.5**3]}, {"mu": [pytest.approx(0.9**3)]}]
    assert opt.state_dict()["scalar_state"] == [{"mu": [0.5**3, 1.0]}, before[1]]
