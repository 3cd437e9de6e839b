"""AdEMAMix: AdamW with a second, much slower mean of the gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class AdEMAMix(Rule):
    r"""AdEMAMix: a fast and a slow mean of the gradients, mixed, over the root of the mean square.

    Use it for long training of large models, where gradients of thousands of steps ago still help.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        n_t = \beta_{3,t}\, n_{t-1} + (1 - \beta_{3,t}) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \eta \Big( \frac{m_t / (1 - \beta_1^t) + \alpha_t n_t}
               {\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon} + \lambda p_{t-1} \Big)

    The warm-ups, both to their full value at the given step and constant without one:
    :math:`\alpha_t = \min(t \alpha / t_\alpha, \alpha)`, and
    :math:`\beta_{3,t} = \min\big(\exp\frac{\ln\beta_1 \ln\beta_3}
    {(1 - t/t_{\beta_3}) \ln\beta_3 + (t/t_{\beta_3}) \ln\beta_1},\ \beta_3\big)`.

    ==========  =============================  =======================================================
    Symbol      Argument                       Meaning
    ==========  =============================  =======================================================
    η           ``lr``                         learning rate, >= 0
    β₁, β₂, β₃  ``betas``                      decay of the fast mean, the mean square and the slow
                                               mean, each in [0, 1)
    α           ``alpha``                      weight of the slow mean, >= 0
    t_α         ``t_alpha``                    steps of the weight's warm-up, >= 1, or None
    t_β₃        ``t_beta3``                    steps of the slow decay's warm-up, >= 1, or None
    ε           ``eps``                        keeps the denominator from 0, >= 0
    λ           ``weight_decay``               decoupled decay, >= 0
    m, n, v     exp_avg, exp_avg_slow,         states
                exp_avg_sq
    ==========  =============================  =======================================================

    Notes
    -----
    The slow mean is not corrected for its start at 0. With β₁ or β₃ of 0 there is no warm-up of β₃.

    References
    ----------
    M. Pagliardini et al., "The AdEMAMix optimizer: better, faster, older", arXiv:2409.03137, algorithm 1 (not
    checked); reference implementation ``bitsandbytes.optim.AdEMAMix``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.AdEMAMix(p, lr=0.1, alpha=0.0, weight_decay=0.0)  # Adam
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 1e-3
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    alpha: float = 5.0
    t_alpha: float | None = None
    t_beta3: float | None = None
    eps: float = 1e-8
    weight_decay: float = 1e-2
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "n": "exp_avg_slow", "v": "exp_avg_sq"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": (0.0, math.inf),
        "t_alpha": (1.0, math.inf),
        "t_beta3": (1.0, math.inf),
    }

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2, b3 = self.betas
        if self.t_beta3 is not None and b1 > 0 and b3 > 0:
            done, fast, slow = min(t / self.t_beta3, 1.0), math.log(b1), math.log(b3)
            b3 = min(math.exp(fast * slow / ((1 - done) * slow + done * fast)), b3)
        alpha = self.alpha if self.t_alpha is None else min(t * self.alpha / self.t_alpha, self.alpha)
        return dict(
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            b3=b3,
            c3=1 - b3,
            eps=self.eps,
            decay=1 - self.lr * self.weight_decay,
            rs=1 / math.sqrt(1 - b2**t),
            fast=self.lr / (1 - b1**t),
            slow=self.lr * alpha,
        )

    @staticmethod
    def update(p, g, m, n, v, *, b1, c1, b2, c2, b3, c3, eps, decay, rs, fast, slow):
        """Step one element."""
        m = b1 * m + c1 * g
        n = b3 * n + c3 * g
        v = b2 * v + c2 * (g * g)
        p = decay * p - (fast * m + slow * n) / (rs * sqrt(v) + eps)
        return p, m, n, v
