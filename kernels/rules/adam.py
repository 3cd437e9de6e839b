"""Adam and AdamW: adaptive moments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fastgd.kernels.language import maximum, per_segment, sign, sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Adam(Rule):
    r"""Adam: a step by the mean of the gradients over the root of the mean of their squares.

    Use it where gradients differ in scale between parameters or over time; it needs little tuning. For a penalty on
    the weights prefer `AdamW`.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \frac{\eta}{1 - \beta_1^t} \cdot
               \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    ==========  ==========================  =====================================================================
    Symbol      Argument                    Meaning
    ==========  ==========================  =====================================================================
    η           ``lr``                      learning rate, >= 0
    β₁, β₂      ``betas``                   decay of the two means, each in [0, 1)
    ε           ``eps``                     keeps the denominator from 0, >= 0
    λ           ``weight_decay``            L2 penalty, added to the gradient, >= 0
    ----------  ``amsgrad``                 divide by the largest v so far (uncorrected, as torch does)
    ----------  ``eps_mode``                "outside": √v̂ + ε; "hat": the paper's ε̂, √v + ε with the corrections
                                            in the learning rate; "inside": √(v̂ + ε)
    ----------  ``decoupled_weight_decay``  p ← (1 - ηλ) p before the step, instead of the penalty
    ----------  ``cautious``                step only where m agrees with the gradient in sign, and as much longer there
                                            as the array's share of such elements, at least 0.001, is short of 1
    m, v        exp_avg, exp_avg_sq         states; with amsgrad also max_exp_avg_sq
    ==========  ==========================  =====================================================================

    Notes
    -----
    The cautious form has two sweeps, as its share must be known first; the paper has it with ``eps_mode="hat"`` and ε
    1e-6.

    A well-known article writes the step as ``m_hat / (1 + sqrt(v_hat))``: that is ``Adam(eps=1.0)``.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", arXiv:1412.6980, algorithm 1; ε̂ at the end of
    section 2. S. J. Reddi et al., "On the convergence of Adam and beyond", 2018, algorithm 2, whose maximum torch
    takes without correction as here. K. Liang et al., "Cautious optimizers", arXiv:2411.16085, algorithm 1 (not
    checked), and kyleliang919/C-Optim. Reference implementation ``torch.optim.Adam``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Adam(p, lr=0.1)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    eps_mode: str = "outside"
    decoupled_weight_decay: bool = False
    cautious: bool = False
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"eps_mode": ("outside", "hat", "inside")}

    def options(self) -> dict[str, object]:
        """Which of the forms is meant."""
        return dict(
            amsgrad=self.amsgrad,
            eps_mode=self.eps_mode,
            decoupled=self.decoupled_weight_decay,
            cautious=self.cautious,
        )

    def stages(self) -> tuple[str, ...]:
        """Measure first, in the cautious form, where the momentum and the gradient agree."""
        return ("measure", "update") if self.cautious else ("update",)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        bc1, bc2 = 1 - b1**t, 1 - b2**t
        return dict(
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            eps=self.eps,
            wd=self.weight_decay,
            decay=1 - self.lr * self.weight_decay,
            step=self.lr / bc1,
            hat_step=self.lr * math.sqrt(bc2) / bc1,
            rs=1 / math.sqrt(bc2),
            ic2=1 / bc2,
            longer=1.0,  # in the cautious form what combine gives
        )

    @staticmethod
    def measure(p, g, m, *, b1, c1, wd, decoupled):
        """Count the elements in which the new momentum agrees with the gradient."""
        if not decoupled:
            g = g + wd * p
        m = b1 * m + c1 * g
        return per_segment(agreeing=sign(m) * g > 0)

    @staticmethod
    def combine(agreeing, size):
        """Make up for the steps that are not taken."""
        longer = 1 / maximum(agreeing / size, 1e-3)
        return longer

    @staticmethod
    def update(
        p,
        g,
        m,
        v,
        vmax,
        *,
        b1,
        c1,
        b2,
        c2,
        eps,
        wd,
        decay,
        step,
        hat_step,
        rs,
        ic2,
        longer,
        amsgrad,
        eps_mode,
        decoupled,
        cautious,
    ):
        """Step one element."""
        if decoupled:
            p = decay * p
        else:
            g = g + wd * p
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        if amsgrad:
            vmax = maximum(vmax, v)
        w = vmax if amsgrad else v
        d = m * (longer if sign(m) * g > 0 else 0) if cautious else m
        if eps_mode == "hat":
            p = p - hat_step * d / (sqrt(w) + eps)
        elif eps_mode == "inside":
            p = p - step * d / sqrt(ic2 * w + eps)
        else:
            p = p - step * d / (rs * sqrt(w) + eps)
        return p, m, v, vmax


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    r"""Adam with decoupled weight decay: the weights shrink by a share of their own, untouched by the denominator.

    Use it as the first choice for large models. The recurrence is that of `Adam` with
    :math:`p_{t-1} \leftarrow (1 - \eta\lambda) p_{t-1}` before the step instead of the penalty.

    Notes
    -----
    As in torch, the learning rate multiplies the decay: a schedule of it schedules both. optax's default for the
    decay is 1e-4, Keras' 4e-3 with ε 1e-7.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", arXiv:1711.05101, algorithm 2; reference
    implementation ``torch.optim.AdamW``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.AdamW(p, lr=0.1, weight_decay=0.5)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.85, -0.85])
    """

    weight_decay: float = 1e-2
    decoupled_weight_decay: bool = field(default=True, init=False)
