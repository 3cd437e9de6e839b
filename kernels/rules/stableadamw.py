"""StableAdamW: AdamW whose steps shrink where the second moment lags behind the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import maximum, per_segment, sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class StableAdamW(Rule):
    r"""StableAdamW: AdamW with Adafactor's clip: a layer's rate shrinks where its gradient outruns its second moment.

    Use it in the place of AdamW with a clipped gradient norm where loss spikes are seen. A layer is a segment: one
    array of a `FlatParams`, list or dict. Two sweeps.

    .. math::

        \hat\beta_i &= \frac{\beta_i^t - \beta_i}{\beta_i^t - 1} \\
        m_t &= \hat\beta_1 m_{t-1} + (1 - \hat\beta_1) g_t, \qquad
        v_t = \hat\beta_2 v_{t-1} + (1 - \hat\beta_2) g_t^2 \\
        \eta_t &= \eta / \max\!\left(1, \sqrt{\mathrm{mean}(g_t^2 / \max(v_t, \epsilon^2))}\right) \\
        p_t &= (1 - \eta_t \lambda) p_{t-1} - \eta_t\, \frac{m_t}{\sqrt{v_t} + \epsilon}

    The mean is over the layer.

    ======  ===================  =================================================
    Symbol  Argument             Meaning
    ======  ===================  =================================================
    η       ``lr``               learning rate, >= 0
    β₁, β₂  ``betas``            decay of the two means, each in [0, 1)
    ε       ``eps``              keeps the denominators from 0, > 0 in effect
    λ       ``weight_decay``     decoupled decay, >= 0
    m, v    exp_avg, exp_avg_sq  states
    ======  ===================  =================================================

    Notes
    -----
    The bias of the moments is corrected in the betas. The decay takes the clipped rate, as in the reference.

    References
    ----------
    M. Wortsman et al., "Stable and low-precision training for large-scale vision-language models", arXiv:2304.13013,
    algorithm 2 (not checked); reference implementation optimi ``StableAdamW``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.StableAdamW(p, lr=0.1, weight_decay=0.0)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    weight_decay: float = 1e-2
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}

    def stages(self) -> tuple[str, ...]:
        """Measure how far the gradient outruns its mean square, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        c1, c2 = (1 - b1) / (1 - b1**t), (1 - b2) / (1 - b2**t)
        return dict(
            lr=self.lr,
            b1=1 - c1,
            c1=c1,
            b2=1 - c2,
            c2=c2,
            eps=self.eps,
            floor=self.eps * self.eps,
            wd=self.weight_decay,
        )

    @staticmethod
    def measure(g, m, v, *, b1, c1, b2, c2, floor):
        """Move the moments and sum the squares of the gradient in units of its mean square."""
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        return m, v, per_segment(rr=g * g / maximum(v, floor))

    @staticmethod
    def combine(rr, size, *, lr, wd):
        """Make a layer's rate and decay."""
        step = lr / maximum(1, sqrt(rr / size))
        decay = 1 - wd * step
        return step, decay

    @staticmethod
    def update(p, m, v, *, eps, step, decay):
        """Step one element."""
        p = decay * p - step * m / (sqrt(v) + eps)
        return p
