"""NAdam: Adam with Nesterov's look-ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class NAdam(Rule):
    r"""NAdam: Adam whose mean of gradients already counts the momentum of the step to come.

    Use it where Adam works and a little faster start is wanted; its momentum warms up by itself.

    .. math::

        \mu_t &= \beta_1 (1 - \tfrac{1}{2}\, 0.96^{t\psi}), \qquad \Pi_t = \Pi_{t-1} \mu_t \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \eta \Big( \frac{1 - \mu_t}{1 - \Pi_t}\, g_t
               + \frac{\mu_{t+1}}{1 - \Pi_t \mu_{t+1}}\, m_t \Big)
               \Big/ \Big( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \Big)

    ==========  ==========================  ================================================================
    Symbol      Argument                    Meaning
    ==========  ==========================  ================================================================
    η           ``lr``                      learning rate, >= 0
    β₁, β₂      ``betas``                   decay of the two means, each in [0, 1)
    ε           ``eps``                     keeps the denominator from 0, >= 0
    λ           ``weight_decay``            L2 penalty, added to the gradient, >= 0
    ψ           ``momentum_decay``          how fast the momentum warms up, >= 0
    ----------  ``decoupled_weight_decay``  p ← (1 - ηλ) p before the step, instead of the penalty
    m, v        exp_avg, exp_avg_sq         states
    Π           mu_product                  product of the momenta so far, one number for each group, in float64
    ==========  ==========================  ================================================================

    Notes
    -----
    torch keeps Π in float32 unless the default dtype is float64. Keras' schedule is that of ψ = 1.

    References
    ----------
    T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016, algorithm 8 with its schedule of μ
    (not checked); reference implementation ``torch.optim.NAdam``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.NAdam(p, lr=0.1)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(4)
    array([ 0.8944, -0.8944])
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"momentum_decay": (0.0, math.inf)}

    def options(self) -> dict[str, object]:
        """Which decay is meant."""
        return dict(decoupled=self.decoupled_weight_decay)

    def init(self) -> dict[str, object]:
        """Start with the product of no momenta."""
        return dict(mu_product=1.0)

    def prepare(self, t: int, mu_product: float) -> dict[str, float]:  # type: ignore[override]  # with its state
        """Give the scalars of step t, and the new product."""
        b1, b2 = self.betas
        mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (k * self.momentum_decay)) for k in (t, t + 1))
        mu_product *= mu
        return dict(
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            eps=self.eps,
            wd=self.weight_decay,
            decay=1 - self.lr * self.weight_decay,
            rs=1 / math.sqrt(1 - b2**t),
            now=self.lr * (1 - mu) / (1 - mu_product),
            then=self.lr * ahead / (1 - mu_product * ahead),
            mu_product=mu_product,
        )

    @staticmethod
    def update(p, g, m, v, *, b1, c1, b2, c2, eps, wd, decay, rs, now, then, decoupled):
        """Step one element."""
        if decoupled:
            p = decay * p
        else:
            g = g + wd * p
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        p = p - (now * g + then * m) / (rs * sqrt(v) + eps)
        return p, m, v
