"""A user's own rule with all that a rule can have: starts, scalar states, sums in total, combine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import fastgd
from fastgd.kernels import Rule, sqrt, total
from fastgd.kernels.errors import RuleError


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
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(RuleError, match=message):
        fastgd.Optimizer(np.ones(3), broken(**parts)())
