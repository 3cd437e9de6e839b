"""LAMB: Adam with a step whose length follows each layer's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import per_segment, sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class LAMB(Rule):
    r"""LAMB: Adam's direction, per layer scaled to the norm of the layer's parameters.

    Use it for very large batches. A layer is a segment: one array of a `FlatParams`, list or dict. Two sweeps, since
    the norms of the whole layer must be known before any of it moves.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda p_{t-1} \\
        p_t &= p_{t-1} - \eta\, \frac{\lVert p_{t-1} \rVert}{\lVert u_t \rVert}\, u_t

    The ratio is 1 where either norm is 0.

    ==========  =======================  ==========================================================================
    Symbol      Argument                 Meaning
    ==========  =======================  ==========================================================================
    η           ``lr``                   learning rate, >= 0
    β₁, β₂      ``betas``                decay of the two means, each in [0, 1)
    ε           ``eps``                  keeps the denominator from 0, >= 0
    λ           ``weight_decay``         decay, part of the direction, >= 0
    ----------  ``bias_correction``      divide m and v by 1 - β₁ᵗ and 1 - β₂ᵗ
    ----------  ``grad_averaging``       m takes in 1 - β₁ of the gradient (otherwise all of it)
    ----------  ``adam_w_mode``          decay as part of the direction (otherwise λp is added to the gradient)
    ----------  ``always_adapt``         use the ratio also where the decay is 0 (otherwise such groups take Adam's
                                         step)
    m, v        exp_avg, exp_avg_sq      states
    ==========  =======================  ==========================================================================

    Notes
    -----
    The optimizer's ``max_norm`` clips the global norm: the paper's and Apex' form is ``max_norm=1.0``, up to the 1e-6
    that it adds to the norm. Norms are sums of plain squares: of float32 they are right for parameters and directions
    between some 1e-17 and 1e17.

    References
    ----------
    Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", arXiv:1904.00962,
    algorithm 2 (with φ the identity); reference implementation Apex ``FusedLAMB``, whose ``use_nvlamb`` is
    ``always_adapt``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([3.0, 4.0])
    >>> opt = fastgd.LAMB(p, lr=0.1, weight_decay=0.01)
    >>> opt.step(np.array([1.0, 1.0]))
    >>> p.round(3)
    array([2.648, 3.645])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
    bias_correction: bool = True
    grad_averaging: bool = True
    adam_w_mode: bool = True
    always_adapt: bool = False
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}

    def options(self) -> dict[str, object]:
        """Which decay is meant."""
        return dict(adam_w_mode=self.adam_w_mode)

    def stages(self) -> tuple[str, ...]:
        """Measure the norms, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        return dict(
            lr=self.lr,
            b1=b1,
            c1=1 - b1 if self.grad_averaging else 1.0,
            b2=b2,
            c2=1 - b2,
            ic1=1 / (1 - b1**t) if self.bias_correction else 1.0,
            rs=1 / math.sqrt(1 - b2**t) if self.bias_correction else 1.0,
            eps=self.eps,
            wd=self.weight_decay,
            # a number, not an option: groups with and without decay share one kernel
            adapt=float(self.always_adapt or self.weight_decay != 0),
        )

    @staticmethod
    def measure(p, g, m, v, *, b1, c1, b2, c2, ic1, rs, eps, wd, adam_w_mode):
        """Move the moments and sum the squares of parameters and direction."""
        if not adam_w_mode:
            g = g + wd * p
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        u = ic1 * m / (rs * sqrt(v) + eps)
        if adam_w_mode:
            u = u + wd * p
        return m, v, per_segment(pp=p * p, uu=u * u)

    @staticmethod
    def combine(pp, uu, *, lr, adapt):
        """Make the length of a segment's step from its two norms."""
        step = lr * sqrt(pp / uu) if pp > 0 and uu > 0 and adapt > 0 else lr
        return step

    @staticmethod
    def update(p, m, v, *, ic1, rs, eps, wd, step, adam_w_mode):
        """Step one element."""
        u = ic1 * m / (rs * sqrt(v) + eps)
        if adam_w_mode:
            u = u + wd * p
        p = p - step * u
        return p
