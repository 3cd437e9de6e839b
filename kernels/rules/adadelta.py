"""Adadelta: steps in the units of the parameters, from the means of squared gradients and squared steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import FRACTION, Rule


@dataclass(frozen=True, kw_only=True)
class Adadelta(Rule):
    r"""Adadelta: the root of the mean squared step over the root of the mean squared gradient, times the gradient.

    Use it where no learning rate is known at all: it finds its own step length, slowly.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2 \\
        \Delta_t &= \sqrt{a_{t-1} + \epsilon} / \sqrt{v_t + \epsilon} \cdot g_t \\
        a_t &= \rho a_{t-1} + (1 - \rho) \Delta_t^2 \\
        p_t &= p_{t-1} - \eta \Delta_t

    ======  =====================  ================================================
    Symbol  Argument               Meaning
    ======  =====================  ================================================
    η       ``lr``                 factor of the step, >= 0; the paper has none
    ρ       ``rho``                decay of both means, [0, 1)
    ε       ``eps``                inside both roots, >= 0; it makes the first step
    λ       ``weight_decay``       L2 penalty, added to the gradient, >= 0
    v, a    square_avg, acc_delta  states
    ======  =====================  ================================================

    Notes
    -----
    Keras' defaults are η 1e-3, ρ 0.95 and ε 1e-7.

    References
    ----------
    M. D. Zeiler, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701, algorithm 1 (not checked);
    reference implementation ``torch.optim.Adadelta``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Adadelta(p, rho=0.75, eps=1.0)
    >>> opt.step(np.array([2.0, 0.0]))
    >>> p.round(4)
    array([-0.4142, -1.    ])
    """

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0
    states: ClassVar[Mapping[str, str]] = {"v": "square_avg", "a": "acc_delta"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"rho": FRACTION}

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(lr=self.lr, rho=self.rho, c=1 - self.rho, eps=self.eps, wd=self.weight_decay)

    @staticmethod
    def update(p, g, v, a, *, lr, rho, c, eps, wd):
        """Step one element."""
        g = g + wd * p
        v = rho * v + c * (g * g)
        change = sqrt(a + eps) / sqrt(v + eps) * g
        a = rho * a + c * (change * change)
        p = p - lr * change
        return p, v, a
