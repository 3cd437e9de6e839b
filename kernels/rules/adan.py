"""Adan: Nesterov momentum from differences of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Adan(Rule):
    r"""Adan: means of the gradient, of its change and of the square of both together.

    Use it for vision and language models with large batches; it stands larger learning rates than AdamW, for four
    state arrays.

    .. math::

        \delta_t &= g_t - g_{t-1}, \qquad \delta_1 = 0 \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad d_t = \beta_2 d_{t-1} + (1 - \beta_2) \delta_t \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) (g_t + \beta_2 \delta_t)^2 \\
        u_t &= \eta\, \frac{m_t / (1 - \beta_1^t) + \beta_2 d_t / (1 - \beta_2^t)}
               {\sqrt{n_t} / \sqrt{1 - \beta_3^t} + \epsilon} \\
        p_t &= (p_{t-1} - u_t) / (1 + \eta\lambda), \quad
               \text{with no\_prox } (1 - \eta\lambda) p_{t-1} - u_t

    ==========  =========================  ==========================================================
    Symbol      Argument                   Meaning
    ==========  =========================  ==========================================================
    η           ``lr``                     learning rate, >= 0
    β₁, β₂, β₃  ``betas``                  decay of the three means, each in [0, 1)
    ε           ``eps``                    keeps the denominator from 0, >= 0
    λ           ``weight_decay``           decay, >= 0
    ----------  ``no_prox``                decay before the step instead of dividing behind it
    m, d, n, q  exp_avg, exp_avg_diff,     states; q is the last gradient
                exp_avg_sq, pre_grad
    ==========  =========================  ==========================================================

    Notes
    -----
    The paper writes betas as what is taken in, 1 - β here. optax had 1 - β₂ in the place of β₂ (its pull request 1715).
    The reference's clip is the optimizer's ``max_norm``; the last gradient is kept as clipped, as there.

    References
    ----------
    X. Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models", arXiv:2208.06677,
    algorithm 1 (not checked); reference implementation sail-sg/Adan.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Adan(p, lr=0.1)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 1e-3
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_prox: bool = False
    states: ClassVar[Mapping[str, str]] = {
        "m": "exp_avg",
        "d": "exp_avg_diff",
        "n": "exp_avg_sq",
        "q": "pre_grad",
    }

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t; both decays are factors, one of them 1."""
        b1, b2, b3 = self.betas
        return dict(
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            b3=b3,
            c3=1 - b3,
            eps=self.eps,
            seen=0.0 if t == 1 else 1.0,
            before=1 - self.lr * self.weight_decay if self.no_prox else 1.0,
            behind=1.0 if self.no_prox else 1 / (1 + self.lr * self.weight_decay),
            mean=self.lr / (1 - b1**t),
            change=self.lr * b2 / (1 - b2**t),
            rs=1 / math.sqrt(1 - b3**t),
        )

    @staticmethod
    def update(p, g, m, d, n, q, *, b1, c1, b2, c2, b3, c3, eps, seen, before, behind, mean, change, rs):
        """Step one element."""
        delta = seen * (g - q)
        m = b1 * m + c1 * g
        d = b2 * d + c2 * delta
        ahead = g + b2 * delta
        n = b3 * n + c3 * (ahead * ahead)
        p = behind * (before * p - (mean * m + change * d) / (rs * sqrt(n) + eps))
        q = g
        return p, m, d, n, q
