"""NovoGrad: gradients normalised layer by layer, before the momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import per_segment, sqrt, squared
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class NovoGrad(Rule):
    r"""NovoGrad: momentum of gradients over a running mean of their layer's norm, one number for each layer.

    Use it for speech and language models where memory matters: one state array. A layer is a segment: one array of a
    `FlatParams`, list or dict. Two sweeps, the first of the gradient only.

    .. math::

        n_t^2 &= \beta_2 n_{t-1}^2 + (1 - \beta_2) \lVert g_t \rVert^2, \qquad n_1 = \lVert g_1 \rVert \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        p_t &= p_{t-1} - \eta \left(
               \frac{m_t / (1 - \beta_1^t)}{n_t / \sqrt{1 - \beta_2^t} + \epsilon} + \lambda p_{t-1} \right)

    ==========  =====================  ============================================================================
    Symbol      Argument               Meaning
    ==========  =====================  ============================================================================
    η           ``lr``                 learning rate, >= 0
    β₁, β₂      ``betas``              decay of momentum and norm, each in [0, 1)
    ε           ``eps``                keeps the denominator from 0, >= 0
    λ           ``weight_decay``       decay, part of the direction, >= 0
    ----------  ``bias_correction``    divide by 1 - β₁ᵗ and √(1 - β₂ᵗ)
    ----------  ``grad_averaging``     the momentum takes in 1 - β₁ of the gradient (otherwise all of it)
    ----------  ``reg_inside_moment``  the momentum is of the normalised gradient with its decay, as in the paper
    ----------  ``init_zero``          n starts at 0 instead of at the first norm
    m           exp_avg                state
    n           n                      scalar state of each segment
    ==========  =====================  ============================================================================

    Notes
    -----
    The paper's form is ``reg_inside_moment=True, grad_averaging=False, bias_correction=False``, up to ε at the first
    step; its betas are (0.95, 0.98). A normalised gradient whose denominator is 0 is 0.

    References
    ----------
    B. Ginsburg et al., "Stochastic gradient methods with layer-wise adaptive moments for training of deep networks",
    arXiv:1905.11286, algorithm 1 (not checked); reference implementation Apex ``FusedNovoGrad`` with its L2 norm.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.NovoGrad(p, lr=0.1, bias_correction=False, grad_averaging=False)
    >>> opt.step(np.array([3.0, -4.0]))
    >>> p.round(6)
    array([ 0.94, -0.92])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    bias_correction: bool = True
    grad_averaging: bool = True
    reg_inside_moment: bool = False
    init_zero: bool = False
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg"}

    def options(self) -> dict[str, object]:
        """Which momentum is meant."""
        return dict(inside=self.reg_inside_moment)

    def init(self) -> dict[str, object]:
        """Start with no norm; the first step replaces it."""
        return dict(n=0.0)

    def stages(self) -> tuple[str, ...]:
        """Measure the gradient's norms, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        starts = t == 1 and not self.init_zero
        return dict(
            b1=b1,
            c1=1 - b1 if self.grad_averaging else 1.0,
            b2=b2,
            take=1.0 if starts else 1 - b2,
            rs=1 / math.sqrt(1 - b2**t) if self.bias_correction else 1.0,
            eps=self.eps,
            wd=self.weight_decay,
            decay=1 - self.lr * self.weight_decay,
            step=self.lr / (1 - b1**t) if self.bias_correction else self.lr,
        )

    @staticmethod
    def measure(g):
        """Sum the squares of the gradient."""
        return per_segment(gg=squared(g))

    @staticmethod
    def combine(gg, n, *, b2, take, rs, eps, step):
        """Move a layer's norm; make what its gradient, or its momentum, is multiplied by."""
        n = sqrt(b2 * (n * n) + take * gg)
        norm = rs * n + eps
        unit = 1 / norm if norm > 0 else 0
        length = step * unit
        return n, unit, length

    @staticmethod
    def update(p, g, m, *, b1, c1, wd, decay, unit, step, length, inside):
        """Step one element."""
        if inside:
            m = b1 * m + c1 * (unit * g + wd * p)
            p = p - step * m
        else:
            m = b1 * m + c1 * g
            p = decay * p - length * m
        return p, m
