"""MARS: variance reduction before Adam's or Lion's step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.language import maximum, per_segment, sign, sqrt, squared
from fastgd.kernels.rule import NON_NEGATIVE, Rule
from fastgd.kernels.rules.adam import AdamW

_FALLBACK = AdamW(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)


@dataclass(frozen=True, kw_only=True)
class MARS(Rule):
    r"""MARS: AdamW, or Lion, on a gradient that is corrected by its change since the last step.

    Use it for language models, with matrices served by it and everything else by its fallback. A layer is a segment:
    one array of a `FlatParams`, list or dict. Two sweeps, since the corrected gradient of a layer is clipped to norm 1.

    .. math::

        c_t &= g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad
        \tilde c_t = c_t / \max(1, \lVert c_t \rVert) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \tilde c_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) \tilde c_t^2 \\
        p_t &= (1 - \eta\lambda) p_{t-1} - \frac{\eta}{1 - \beta_1^t} \cdot
               \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    or, with ``mars_type="mars-lion"``, :math:`p_t = (1 - \eta\lambda) p_{t-1} - \eta\, \mathrm{sign}(m_t)`.

    ==========  ====================  =============================================================================
    Symbol      Argument              Meaning
    ==========  ====================  =============================================================================
    η           ``lr``                learning rate, >= 0
    β₁, β₂      ``betas``             decay of the two means, each in [0, 1)
    ε           ``eps``               keeps the denominator from 0, >= 0
    λ           ``weight_decay``      decoupled decay, >= 0
    γ           ``gamma``             share of the correction, >= 0
    ----------  ``amsgrad``           divide by the largest v so far
    ----------  ``mars_type``         "mars-adamw" or "mars-lion"
    ----------  ``fallback``          rule for arrays of less than two dimensions, with a learning rate of its own;
                                      None: MARS serves them too
    m, v, q     exp_avg, exp_avg_sq,  states; q is the last gradient; v not with "mars-lion"; with amsgrad also
                last_grad             max_exp_avg_sq
    ==========  ====================  =============================================================================

    Notes
    -----
    The approximate form: the last gradient is of the last batch at the last parameters. g₀ is 0, as in the reference,
    which serves arrays of two dimensions only, and scales its fallback's rate with a schedule of the learning rate.

    References
    ----------
    H. Yuan et al., "MARS: unleashing the power of variance reduction for training large models", arXiv:2411.10438,
    algorithm 2 (not checked); reference implementation AGI-Arena/MARS, whose ``optimize_1d=True`` is ``fallback=None``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([[1.0, -1.0]])
    >>> opt = fastgd.MARS(p, lr=0.1)
    >>> opt.step(np.array([[2.0, -3.0]]))
    >>> p.round(6)
    array([[ 0.9, -0.9]])
    """

    lr: float = 3e-3
    betas: tuple[float, float] = (0.95, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    gamma: float = 0.025
    amsgrad: bool = False
    mars_type: str = "mars-adamw"
    fallback: Rule | None = _FALLBACK
    states: ClassVar[Mapping[str, str]] = {
        "m": "exp_avg",
        "v": "exp_avg_sq",
        "q": "last_grad",
        "vmax": "max_exp_avg_sq",
    }
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"gamma": NON_NEGATIVE}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"mars_type": ("mars-adamw", "mars-lion")}

    def check(self) -> None:
        """Refuse a largest v where there is none."""
        if self.amsgrad and self.mars_type == "mars-lion":
            raise HyperparameterError("MARS: amsgrad needs mars_type 'mars-adamw', given 'mars-lion'")

    def options(self) -> dict[str, object]:
        """Which of the forms is meant."""
        lion = self.mars_type == "mars-lion"
        return dict(lion=lion, amsgrad=self.amsgrad)

    def serves(self, shape: tuple[int, ...]) -> bool:
        """Matrices, and everything without a fallback."""
        return self.fallback is None or len(shape) >= 2

    def stages(self) -> tuple[str, ...]:
        """Measure the norm of the corrected gradient, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        return dict(
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            ahead=self.gamma * b1 / (1 - b1),
            eps=self.eps,
            decay=1 - self.lr * self.weight_decay,
            lr=self.lr,
            step=self.lr / (1 - b1**t),
            rs=1 / math.sqrt(1 - b2**t),
        )

    @staticmethod
    def measure(g, q, *, ahead):
        """Sum the squares of the corrected gradient."""
        c = g + ahead * (g - q)
        return per_segment(cc=squared(c))

    @staticmethod
    def combine(cc):
        """Make the factor that brings its norm down to 1."""
        shrink = 1 / maximum(1, sqrt(cc))
        return shrink

    @staticmethod
    def update(p, g, m, v, vmax, q, *, b1, c1, b2, c2, ahead, shrink, eps, decay, lr, step, rs, lion, amsgrad):
        """Step one element."""
        c = shrink * (g + ahead * (g - q))
        q = g
        m = b1 * m + c1 * c
        if lion:
            p = decay * p - lr * sign(m)
        else:
            v = b2 * v + c2 * (c * c)
            if amsgrad:
                vmax = maximum(vmax, v)
            w = vmax if amsgrad else v
            p = decay * p - step * m / (rs * sqrt(w) + eps)
        return p, m, v, vmax, q
