"""AdaBelief: Adam that divides by how far the gradient lies from its own mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import maximum, sqrt
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules.radam import rectification


@dataclass(frozen=True, kw_only=True)
class AdaBelief(Rule):
    r"""AdaBelief: large steps where the gradient is what its mean foretold, small ones where it is not.

    Use it as Adam; it generalises more like SGD on image models.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        s_t &= \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon \\
        p_t &= p_{t-1} - \frac{\eta}{1 - \beta_1^t} \cdot
               \frac{m_t}{\sqrt{s_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    With ``rectify`` the step is that of `RAdam` with :math:`\sqrt{s_t} + \epsilon` in the denominator.

    ==========  =====================  ==========================================================================
    Symbol      Argument               Meaning
    ==========  =====================  ==========================================================================
    η           ``lr``                 learning rate, >= 0
    β₁, β₂      ``betas``              decay of the two means, each in [0, 1)
    ε           ``eps``                added to s at each step, and to its root, >= 0
    λ           ``weight_decay``       decay, >= 0
    ----------  ``amsgrad``            divide by the largest s so far
    ----------  ``weight_decouple``    p ← (1 - ηλ) p before the step; else the penalty λp is added to the gradient
    ----------  ``fixed_decay``        decoupled by (1 - λ), whatever the learning rate
    ----------  ``rectify``            take the first steps by the momentum alone
    m, s        exp_avg, exp_avg_var   states; with amsgrad also max_exp_avg_var
    ==========  =====================  ==========================================================================

    Notes
    -----
    The stored s contains its ε, as in the reference. There ``amsgrad`` has no effect on rectified steps; here it has.
    Version 0.0.5 of the reference had ε 1e-8, no rectification and the penalty. optax measures from the old mean, and
    takes ε under the root only.

    References
    ----------
    J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients",
    arXiv:2010.07468, algorithm 2 (not checked); reference implementation adabelief-pytorch 0.2.1.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.AdaBelief(p, lr=0.1)
    >>> opt.step(np.array([2.0, -3.0]))  # the momentum alone
    >>> p.round(6)
    array([ 0.8, -0.7])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16
    weight_decay: float = 0.0
    amsgrad: bool = False
    weight_decouple: bool = True
    fixed_decay: bool = False
    rectify: bool = True
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "s": "exp_avg_var", "smax": "max_exp_avg_var"}

    def options(self) -> dict[str, object]:
        """Which states there are, and which decay is meant."""
        return dict(amsgrad=self.amsgrad, decoupled=self.weight_decouple)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t: the denominator is ``root * sqrt(s) + e``."""
        b1, b2 = self.betas
        bc1, bc2 = 1 - b1**t, 1 - b2**t
        r = rectification(b2, t, from_five=True) if self.rectify else None
        if r is not None:
            root, e, step = 1.0, self.eps, self.lr / bc1 * r * math.sqrt(bc2)
        elif self.rectify:
            root, e, step = 0.0, 1.0, self.lr / bc1
        else:
            root, e, step = 1 / math.sqrt(bc2), self.eps, self.lr / bc1
        decay = 1 - (1.0 if self.fixed_decay else self.lr) * self.weight_decay
        return dict(
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            eps=self.eps,
            wd=self.weight_decay,
            decay=decay,
            root=root,
            e=e,
            step=step,
        )

    @staticmethod
    def update(p, g, m, s, smax, *, b1, c1, b2, c2, eps, wd, decay, root, e, step, amsgrad, decoupled):
        """Step one element."""
        if decoupled:
            p = decay * p
        else:
            g = g + wd * p
        m = b1 * m + c1 * g
        off = g - m
        s = b2 * s + c2 * (off * off) + eps
        if amsgrad:
            smax = maximum(smax, s)
        w = smax if amsgrad else s
        p = p - step * m / (root * sqrt(w) + e)
        return p, m, s, smax
