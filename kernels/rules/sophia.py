"""Sophia: the momentum over an estimate of the curvature, clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import minimum, sign
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class SophiaG(Rule):
    r"""Sophia-G: the momentum divided by the diagonal of the Hessian as Gauss-Newton-Bartlett estimates it.

    Use it for language models. Every tenth step or so compute the gradient of the loss with labels sampled from the
    model's own prediction, and hand it to ``opt.update_hessian(gradient)``.

    .. math::

        h &\leftarrow \beta_2 h + (1 - \beta_2) \hat g^2 \quad \text{(update\_hessian)} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        p_t &= (1 - \eta\lambda) p_{t-1} - \eta\, \mathrm{sign}(m_t)
               \min\Big( \frac{\lvert m_t \rvert}{\rho B h + 10^{-15}},\ 1 \Big)

    ======  ================  ==========================================================
    Symbol  Argument          Meaning
    ======  ================  ==========================================================
    η       ``lr``            learning rate, >= 0
    β₁, β₂  ``betas``         decay of momentum and Hessian, each in [0, 1)
    ρ       ``rho``           how much of the steps is clipped: less with more, >= 0
    λ       ``weight_decay``  decoupled decay, >= 0
    B       ``bs``            tokens, or samples, in a batch, >= 0
    m, h    exp_avg, hessian  states
    ======  ================  ==========================================================

    Notes
    -----
    Without a call of ``update_hessian`` h is 0, and each step is that of `Signum`. Neither mean is corrected for its
    start at 0.

    References
    ----------
    H. Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model pre-training",
    arXiv:2305.14342, algorithms 2 and 3 (not checked); reference implementation Liuhong99/Sophia.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.SophiaG(p, lr=0.1, betas=(0.5, 0.5), rho=1.0, weight_decay=0.0, bs=1.0)
    >>> opt.update_hessian(np.array([4.0, 1.0]))
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p
    array([ 0.9875, -0.9   ])
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.965, 0.99)
    rho: float = 0.04
    weight_decay: float = 0.1
    bs: float = 5120.0
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "hess": "hessian"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"rho": (0.0, math.inf), "bs": (0.0, math.inf)}
    asides: ClassVar[Mapping[str, str]] = {"hessian": "hessian"}

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, decay = self.betas[0], 1 - self.lr * self.weight_decay
        return dict(lr=self.lr, decay=decay, b1=b1, c1=1 - b1, curvature=self.rho * self.bs)

    def aside(self, name: str) -> dict[str, float]:
        """Give the scalars of an update of the Hessian."""
        b2 = self.betas[1]
        return dict(b2=b2, c2=1 - b2)

    @staticmethod
    def update(p, g, m, hess, *, lr, decay, b1, c1, curvature):
        """Step one element."""
        m = b1 * m + c1 * g
        p = decay * p - lr * (sign(m) * minimum(abs(m) / (curvature * hess + 1e-15), 1))
        return p, m

    @staticmethod
    def hessian(g, hess, *, b2, c2):
        """Take one element of a gradient of sampled labels in."""
        hess = b2 * hess + c2 * (g * g)
        return hess
