"""ADOPT: Adam that divides by the mean square of the gradients before this one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import clip, maximum, sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class ADOPT(Rule):
    r"""ADOPT: the gradient is normed by older ones and clipped, and only then averaged.

    Use it as AdamW where Adam's convergence depends on β₂: here any value converges.

    .. math::

        v_0 &= g_0^2 \quad \text{(the first step moves nothing)} \\
        z_k &= \mathrm{clip}\Big( \frac{g_k}{\max(\sqrt{v_{k-1}}, \epsilon)},\ -k^{c},\ k^{c} \Big) \\
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1) z_k \\
        p_k &= p_{k-1} - \eta\, m_k \\
        v_k &= \beta_2 v_{k-1} + (1 - \beta_2) g_k^2

    ==========  ===================  ====================================================================
    Symbol      Argument             Meaning
    ==========  ===================  ====================================================================
    η           ``lr``               learning rate, >= 0
    β₁, β₂      ``betas``            decay of the two means, each in [0, 1)
    ε           ``eps``              least denominator, >= 0
    λ           ``weight_decay``     L2 penalty, added to the gradient, >= 0
    ----------  ``decouple``         p ← (1 - ηλ) p before each step but the first, instead of the penalty
    c           ``clip_exponent``    power of the bound, >= 0; None for no bound
    m, v        exp_avg, exp_avg_sq  states
    ==========  ===================  ====================================================================

    Notes
    -----
    The reference takes any function of k as the bound. There is no correction of m for its start at 0.

    References
    ----------
    S. Taniguchi et al., "ADOPT: modified Adam can converge with any β₂ with the optimal rate", arXiv:2411.02853v3,
    algorithm 2 (not checked); reference implementation iShohei220/adopt.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.ADOPT(p, lr=0.1, betas=(0.5, 0.9999))
    >>> opt.step(np.array([2.0, -3.0])); opt.step(np.array([1.0, 6.0]))
    >>> p.round(6)
    array([ 0.975, -1.05 ])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    decouple: bool = False
    clip_exponent: float | None = 0.25
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"clip_exponent": (0.0, math.inf)}

    def options(self) -> dict[str, object]:
        """Which decay is meant, and whether there is a bound."""
        return dict(decouple=self.decouple, bounded=self.clip_exponent is not None)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t; at the first only v takes anything in."""
        b1, b2 = self.betas
        first = t == 1
        bound = 0.0 if first or self.clip_exponent is None else float(t - 1) ** self.clip_exponent
        return dict(
            lr=0.0 if first else self.lr,
            decay=1.0 if first else 1 - self.lr * self.weight_decay,
            wd=self.weight_decay,
            b1=1.0 if first else b1,
            c1=0.0 if first else 1 - b1,
            b2=0.0 if first else b2,
            c2=1.0 if first else 1 - b2,
            eps=self.eps,
            low=-bound,
            high=bound,
        )

    @staticmethod
    def update(p, g, m, v, *, lr, decay, wd, b1, c1, b2, c2, eps, low, high, decouple, bounded):
        """Step one element."""
        if decouple:
            p = decay * p
        else:
            g = g + wd * p
        z = g / maximum(sqrt(v), eps)
        if bounded:
            z = clip(z, low, high)
        m = b1 * m + c1 * z
        p = p - lr * m
        v = b2 * v + c2 * (g * g)
        return p, m, v
