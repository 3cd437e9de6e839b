"""The one table of what is compared: rule, hyperparameters, the peers that have the rule.

It drives the check that precedes a timing and the timing itself, so what we claim to beat is what we claim to equal. A
rule that is registered and not named here is measured too, at its defaults and without foreign peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.rule import Rule, plan
from fastgd.kernels.rules import RULES

GRADIENT_FACTORS = (1.0, -0.5, 2.0)
"""Factors of the gradient at the checked steps: under a constant one Adam does not depend on its betas."""

ULP_LIMIT = 64
"""A peer further from the float64 result than this does not compute the rule."""

PERIOD = 1 << 16
"""Elements after which the data repeat, so that the float64 result is computed for these only."""

_NUMPY = ("numpy-textbook", "numpy-inplace", "numexpr")
_TORCH = ("torch-loop", "torch-foreach", "torch-fused")


@dataclass(frozen=True)
class Case:
    """A rule at the hyperparameters at which it is compared, and who else has it.

    Attributes
    ----------
    rule
        Lower-case name in the registry.
    hyper
        Hyperparameters; what is missing stands at the rule's default.
    peers
        Names of the foreign peers in `fastgd.bench.peers.PEERS`.
    """

    rule: str
    hyper: Mapping[str, Any]
    peers: tuple[str, ...] = ()

    def build(self) -> Rule:
        """Make the rule."""
        return RULES[self.rule](**self.hyper)

    def full(self) -> dict[str, Any]:
        """Give every hyperparameter, defaults included."""
        rule = self.build()
        return {name: getattr(rule, name) for name in rule.hyperparameters()}

    def bytes_per_param(self, itemsize: int) -> int:
        """Bytes that one step must read and write for each parameter."""
        return plan(self.build()).bytes_per_param(itemsize)

    def streams(self) -> tuple[int, int]:
        """Count the arrays that a step reads and writes, and those that it only reads."""
        sweeps = plan(self.build()).sweeps
        written = {a for s in sweeps for a in s.writes}
        return len(written), len({a for s in sweeps for a in s.reads} - written)


_TABLE: dict[str, Case] = {
    case.rule: case
    for case in (
        Case("gd", dict(lr=1e-3), (*_NUMPY, *_TORCH, "optax")),
        Case("sgd", dict(lr=1e-3, momentum=0.9), (*_NUMPY, *_TORCH, "optax")),
        Case("adam", dict(lr=1e-3), (*_NUMPY, *_TORCH, "optax", "deepspeed", "thinc")),
        Case("adamw", dict(lr=1e-3, weight_decay=0.1), (*_NUMPY, *_TORCH, "optax", "deepspeed")),
        Case("lion", dict(lr=1e-3, weight_decay=0.1), (*_NUMPY, "optax", "deepspeed")),
        Case("lamb", dict(lr=1e-3, weight_decay=0.1), ("optax",)),
    )
}

CASES: dict[str, Case] = {name: _TABLE.get(name, Case(name, {})) for name in RULES}
"""Every registered rule."""


def data(n: int, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Parameters and gradient of n elements, the same at every call.

    No element is near zero, so that an error in units in the last place says something, and none becomes denormal.
    """
    rng = np.random.default_rng(20)
    p, g = (rng.uniform(low, low + 1, min(n, PERIOD)) * rng.choice((-1.0, 1.0), min(n, PERIOD)) for low in (0.5, 0.1))
    return np.resize(p.astype(dtype), n), np.resize(g.astype(dtype), n)


def reference(case: Case, dtype: str, n: int) -> NDArray[np.float64]:
    """Parameters after the checked steps in float64, from data rounded to `dtype`: one period of them."""
    from fastgd.optimizer import Optimizer

    p, g = (a.astype(np.float64) for a in data(min(n, PERIOD), dtype))
    optimizer = Optimizer(p, case.build(), backend="numpy")
    for factor in GRADIENT_FACTORS:
        optimizer.step(factor * g)
    return p


def max_ulp(result: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Largest distance to the expected values, which repeat, in units in the last place of the result's dtype."""
    period = expected.size
    unit = np.spacing(np.abs(expected).astype(result.dtype)).astype(np.float64)
    worst = 0.0
    for start in range(0, result.size, period):  # by parts: a float64 copy of the whole could be gigabytes
        part = result[start : start + period]
        worst = max(worst, float(np.max(np.abs(part - expected[: part.size]) / unit[: part.size], initial=0.0)))
        if not np.isfinite(part).all():
            return float("inf")
    return worst
