"""RAdam: Adam that trusts its denominator only when enough gradients are in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class RAdam(Rule):
    r"""RAdam: Adam with its first steps taken by the momentum alone, and later ones rectified.

    Use it where Adam needs a warm-up of the learning rate: the rectification does its work.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \\
        p_t &= p_{t-1} - \frac{\eta}{1 - \beta_1^t} \cdot \begin{cases}
               r_t\, m_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) & \rho_t > 5 \\
               m_t & \text{else} \end{cases}

    ==========  ==========================  =====================================================================
    Symbol      Argument                    Meaning
    ==========  ==========================  =====================================================================
    η           ``lr``                      learning rate, >= 0
    β₁, β₂      ``betas``                   decay of the two means, each in [0, 1)
    ε           ``eps``                     keeps the denominator from 0, >= 0
    λ           ``weight_decay``            L2 penalty, added to the gradient, >= 0
    ----------  ``decoupled_weight_decay``  p ← (1 - ηλ) p before the step, instead of the penalty
    ----------  ``eps_mode``                "hat": √v + ε, as above; "outside": √v̂ + ε, as optax
    m, v        exp_avg, exp_avg_sq         states
    ==========  ==========================  =====================================================================

    Notes
    -----
    Which case holds is the same for all elements, so it is two numbers and no branch. optax rectifies from ρ = 5 on.

    References
    ----------
    L. Liu et al., "On the variance of the adaptive learning rate and beyond", arXiv:1908.03265, algorithm 2 (not
    checked); reference implementation ``torch.optim.RAdam``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.RAdam(p, lr=0.1)
    >>> opt.step(np.array([2.0, -3.0]))  # the momentum alone: the mean of one gradient
    >>> p.round(6)
    array([ 0.8, -0.7])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    eps_mode: str = "hat"
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"eps_mode": ("hat", "outside")}

    def options(self) -> dict[str, object]:
        """Which decay is meant."""
        return dict(decoupled=self.decoupled_weight_decay)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t: the denominator is ``root * sqrt(v) + e``."""
        b1, b2 = self.betas
        bc1, bc2 = 1 - b1**t, 1 - b2**t
        r = rectification(b2, t)
        if r is None:
            root, e, step = 0.0, 1.0, self.lr / bc1
        elif self.eps_mode == "hat":
            root, e, step = 1.0, self.eps, self.lr / bc1 * r * math.sqrt(bc2)
        else:
            root, e, step = 1 / math.sqrt(bc2), self.eps, self.lr / bc1 * r
        decay = 1 - self.lr * self.weight_decay
        return dict(b1=b1, c1=1 - b1, b2=b2, c2=1 - b2, wd=self.weight_decay, decay=decay, root=root, e=e, step=step)

    @staticmethod
    def update(p, g, m, v, *, b1, c1, b2, c2, wd, decay, root, e, step, decoupled):
        """Step one element."""
        if decoupled:
            p = decay * p
        else:
            g = g + wd * p
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        p = p - step * m / (root * sqrt(v) + e)
        return p, m, v


def rectification(b2: float, t: int, *, from_five: bool = False) -> float | None:
    """Give the factor r of step t, or None where the variance cannot be told yet: ρ <= 5, or < 5 for `from_five`."""
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    if length < 5 or (length == 5 and not from_five):
        return None
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
