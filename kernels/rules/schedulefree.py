"""Schedule-free SGD and AdamW: an average of the iterates in the place of a learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import Rule


class _ScheduleFree(Rule):
    """What both have in common: the weights of the average, and the two points between which the parameters move."""

    lr: float
    warmup_steps: float
    r: float
    weight_lr_power: float
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "warmup_steps": (0.0, math.inf),
        "weight_lr_power": (0.0, math.inf),
    }
    asides: ClassVar[Mapping[str, str]] = {"eval": "swap", "train": "swap"}

    @property
    def interpolation(self) -> float:
        """Share of the average in the point at which gradients are taken."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse what leaves no way back from the parameters to their average."""
        if self.interpolation == 0:
            raise HyperparameterError(
                f"{type(self).__name__}: the share of the average must be above 0, or it cannot be found again, given 0"
            )

    def init(self) -> dict[str, object]:
        """Where the base sequence starts, and the weights so far."""
        return dict(z="p", weight_sum=0.0, lr_max=-1.0)

    def averaged(self, t: int, weight_sum: float, lr_max: float) -> dict[str, float]:
        """Give the learning rate of step t, the average's share of the new iterate, and the weights behind it."""
        lr = self.lr * (min(1.0, t / self.warmup_steps) if self.warmup_steps > 0 else 1.0)
        lr_max = max(lr_max, lr)
        weight = float(t) ** self.r * lr_max**self.weight_lr_power
        weight_sum += weight
        c = weight / weight_sum if weight_sum else 0.0
        pull = lr * (self.interpolation * (1 - c) - 1)
        return dict(lr=lr, c=c, pull=pull, weight_sum=weight_sum, lr_max=lr_max)

    def aside(self, name: str) -> dict[str, float]:
        """Give the scalars of a swap into the mode of this name."""
        beta = self.interpolation
        return dict(w=1 - 1 / beta if name == "eval" else 1 - beta)

    @staticmethod
    def swap(p, z, *, w):
        """Move one element to the average, or back."""
        p = p + w * (z - p)
        return p


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeSGD(_ScheduleFree):
    r"""Schedule-free SGD: gradient descent whose average needs neither a schedule nor the number of steps in advance.

    Use it where the length of training is open. Call ``opt.eval()`` before the parameters are judged or saved for use,
    and ``opt.train()`` before the next step.

    .. math::

        d_t &= g_t + \lambda y_{t-1}, \qquad \eta_t = \eta \min(1, t / w) \\
        c_t &= \frac{t^r \max_{s \le t} \eta_s^\theta}{\sum_{k \le t} k^r \max_{s \le k} \eta_s^\theta} \\
        y_t &= y_{t-1} + c_t (z_{t-1} - y_{t-1}) + \eta_t (\beta (1 - c_t) - 1)\, d_t \\
        z_t &= z_{t-1} - \eta_t d_t

    The parameters are y; the average :math:`x = y + (1 - 1/\beta)(z - y)` takes their place after ``opt.eval()``.

    ==================  ===================  ====================================================================
    Symbol              Argument             Meaning
    ==================  ===================  ====================================================================
    η                   ``lr``               learning rate, >= 0; larger than for SGD
    β                   ``momentum``         share of the average in y, in (0, 1)
    λ                   ``weight_decay``     L2 penalty at y, >= 0
    w                   ``warmup_steps``     steps of the linear warm-up, >= 0
    r                   ``r``                power of the step in the weights
    θ                   ``weight_lr_power``  power of the learning rate in the weights, >= 0
    z                   z                    state
    weight_sum, lr_max                       numbers of each group, in float64
    ==================  ===================  ====================================================================

    References
    ----------
    A. Defazio et al., "The road less scheduled", arXiv:2405.15682, section 1 (not checked); reference
    implementation facebookresearch/schedule_free, ``SGDScheduleFree``.

    Raises
    ------
    HyperparameterError
        For a value outside its range.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([4.0])
    >>> opt = fastgd.ScheduleFreeSGD(p, lr=0.5)
    >>> for _ in range(100):
    ...     opt.step(p - 1)  # of (p - 1)**2 / 2
    >>> opt.eval()
    >>> bool(abs(p[0] - 1) < 0.1)
    True
    """

    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    r: float = 0.0
    weight_lr_power: float = 2.0

    @property
    def interpolation(self) -> float:
        """Share of the average in y."""
        return self.momentum

    def prepare(self, t: int, weight_sum: float, lr_max: float) -> dict[str, float]:  # type: ignore[override]  # with its state
        """Give the scalars of step t, and the weights behind it."""
        return self.averaged(t, weight_sum, lr_max) | dict(wd=self.weight_decay)

    @staticmethod
    def update(p, g, z, *, lr, c, pull, wd):
        """Step one element."""
        d = g + wd * p
        p = p + c * (z - p) + pull * d
        z = z - lr * d
        return p, z


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(_ScheduleFree):
    r"""Schedule-free AdamW: Adam's denominator, and an average of the iterates in the place of momentum and schedule.

    Use it as AdamW where the length of training is open. Call ``opt.eval()`` before the parameters are judged or saved
    for use, and ``opt.train()`` before the next step.

    .. math::

        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        d_t &= \frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_{t-1}

    and then as `ScheduleFreeSGD`, with β₁ for β.

    ==================  ===================  ====================================================================
    Symbol              Argument             Meaning
    ==================  ===================  ====================================================================
    η                   ``lr``               learning rate, >= 0
    β₁                  ``betas[0]``         share of the average in y, in (0, 1)
    β₂                  ``betas[1]``         decay of the mean square, [0, 1)
    ε                   ``eps``              keeps the denominator from 0, >= 0
    λ                   ``weight_decay``     decay at y, >= 0
    w                   ``warmup_steps``     steps of the linear warm-up, >= 0
    r                   ``r``                power of the step in the weights
    θ                   ``weight_lr_power``  power of the learning rate in the weights, >= 0
    z, v                z, exp_avg_sq        states
    weight_sum, lr_max                       numbers of each group, in float64
    ==================  ===================  ====================================================================

    References
    ----------
    A. Defazio et al., "The road less scheduled", arXiv:2405.15682, algorithm 1 (not checked); reference
    implementation facebookresearch/schedule_free, ``AdamWScheduleFree`` without its later inner momentum.

    Raises
    ------
    HyperparameterError
        For a value outside its range.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([4.0])
    >>> opt = fastgd.ScheduleFreeAdamW(p, lr=0.5)
    >>> for _ in range(100):
    ...     opt.step(p - 1)  # of (p - 1)**2 / 2
    >>> opt.eval()
    >>> bool(abs(p[0] - 1) < 0.2)
    True
    """

    lr: float = 2.5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    r: float = 0.0
    weight_lr_power: float = 2.0
    states: ClassVar[Mapping[str, str]] = {"v": "exp_avg_sq"}

    @property
    def interpolation(self) -> float:
        """Share of the average in y."""
        return self.betas[0]

    def prepare(self, t: int, weight_sum: float, lr_max: float) -> dict[str, float]:  # type: ignore[override]  # with its state
        """Give the scalars of step t, and the weights behind it."""
        b2 = self.betas[1]
        given = dict(b2=b2, c2=1 - b2, rs=1 / math.sqrt(1 - b2**t), eps=self.eps, wd=self.weight_decay)
        return self.averaged(t, weight_sum, lr_max) | given

    @staticmethod
    def update(p, g, z, v, *, b2, c2, rs, eps, wd, lr, c, pull):
        """Step one element."""
        v = b2 * v + c2 * (g * g)
        d = g / (rs * sqrt(v) + eps) + wd * p
        p = p + c * (z - p) + pull * d
        z = z - lr * d
        return p, z, v
