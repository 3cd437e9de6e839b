"""Grams: the gradient gives the direction, Adam's momentum the length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sign, sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Grams(Rule):
    r"""Grams: Adam's step length for each parameter, always against the sign of the present gradient.

    Use it as AdamW; no step goes up the present gradient.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= (1 - \eta\lambda) p_{t-1} - \eta\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \cdot
               \frac{\mathrm{sign}(g_t)\, \lvert m_t \rvert}{\sqrt{v_t} + \epsilon}

    ======  ===================  ==========================================
    Symbol  Argument             Meaning
    ======  ===================  ==========================================
    η       ``lr``               learning rate, >= 0
    β₁, β₂  ``betas``            decay of the two means, each in [0, 1)
    ε       ``eps``              keeps the denominator from 0, >= 0
    λ       ``weight_decay``     decoupled decay, >= 0
    m, v    exp_avg, exp_avg_sq  states
    ======  ===================  ==========================================

    References
    ----------
    Y. Cao et al., "Grams: gradient descent with adaptive momentum scaling", arXiv:2412.17107, algorithm 1 (not
    checked); reference implementation Gunale0926/Grams.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Grams(p, lr=0.1, eps=0.0)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        step = self.lr * math.sqrt(1 - b2**t) / (1 - b1**t)
        decay = 1 - self.lr * self.weight_decay
        return dict(b1=b1, c1=1 - b1, b2=b2, c2=1 - b2, eps=self.eps, decay=decay, step=step)

    @staticmethod
    def update(p, g, m, v, *, b1, c1, b2, c2, eps, decay, step):
        """Step one element."""
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        p = decay * p - step * (sign(g) * abs(m)) / (sqrt(v) + eps)
        return p, m, v
