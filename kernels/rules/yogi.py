"""Yogi: Adam whose mean square moves by a bounded amount."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sign, sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Yogi(Rule):
    r"""Yogi: Adam with an additive change of the mean square, so that rare large gradients are not forgotten at once.

    Use it where Adam's learning rate jumps after quiet times, as with sparse gradients.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= v_{t-1} - (1 - \beta_2)\, \mathrm{sign}(v_{t-1} - g_t^2)\, g_t^2 \\
        p_t &= p_{t-1} - \frac{\eta}{1 - \beta_1^t} \cdot
               \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    ======  =============================  ================================================
    Symbol  Argument                       Meaning
    ======  =============================  ================================================
    η       ``lr``                         learning rate, >= 0
    β₁, β₂  ``betas``                      decay of the two means, each in [0, 1)
    ε       ``eps``                        keeps the denominator from 0, >= 0
    m₀, v₀  ``initial_accumulator_value``  start of both means, >= 0
    m, v    exp_avg, exp_avg_sq            states
    ======  =============================  ================================================

    Notes
    -----
    optax starts both means at 1e-6 and corrects both as Adam does; the paper corrects neither.

    References
    ----------
    M. Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018, algorithm 2 (not checked);
    reference implementation ``optax.yogi``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Yogi(p, lr=0.1, eps=0.0, initial_accumulator_value=0.0)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    initial_accumulator_value: float = 1e-6
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"initial_accumulator_value": (0.0, math.inf)}

    def init(self) -> dict[str, object]:
        """Start of both means."""
        return dict(m=self.initial_accumulator_value, v=self.initial_accumulator_value)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        step, rs = self.lr / (1 - b1**t), 1 / math.sqrt(1 - b2**t)
        return dict(b1=b1, c1=1 - b1, c2=1 - b2, eps=self.eps, step=step, rs=rs)

    @staticmethod
    def update(p, g, m, v, *, b1, c1, c2, eps, step, rs):
        """Step one element."""
        m = b1 * m + c1 * g
        square = g * g
        v = v - c2 * sign(v - square) * square
        p = p - step * m / (rs * sqrt(v) + eps)
        return p, m, v
