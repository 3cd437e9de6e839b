"""Gradient descent, with and without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class GD(Rule):
    r"""Plain gradient descent: one step against the gradient, no state.

    Use it to understand a problem, for full-batch descent on smooth functions, and as the yardstick for the rest.

    .. math:: p_t = p_{t-1} - \eta\, g_t

    ======  ============  =======================
    Symbol  Argument      Meaning
    ======  ============  =======================
    η       ``lr``        learning rate, >= 0
    ======  ============  =======================

    References
    ----------
    A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847 (not checked).

    Examples
    --------
    >>> import fastgd
    >>> fastgd.minimize(lambda x: x * x, 1.0, jac=lambda x: 2 * x, method="gd", lr=0.5).x
    0.0
    """

    lr: float = 1e-3

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(lr=self.lr)

    @staticmethod
    def update(p, g, *, lr):
        """Step one element."""
        p = p - lr * g
        return p


@dataclass(frozen=True, kw_only=True)
class SGD(Rule):
    r"""Stochastic gradient descent with momentum, dampening, Nesterov's look-ahead and L2 decay.

    Use it with momentum 0.9 where the gradient noise is moderate and the learning rate can be tuned; it needs one
    state array, or none without momentum.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        b_t &= \mu b_{t-1} + (1 - \tau) g_t, \qquad b_1 = g_1 \\
        d_t &= g_t + \mu b_t \text{ (Nesterov)},\ b_t \text{ (momentum)},\ g_t \text{ (neither)} \\
        p_t &= p_{t-1} - \eta\, d_t

    ======  ==================  ================================================
    Symbol  Argument            Meaning
    ======  ==================  ================================================
    η       ``lr``              learning rate, >= 0
    μ       ``momentum``        share of the old direction that is kept, [0, 1)
    τ       ``dampening``       share of the gradient left out, not at step 1
    λ       ``weight_decay``    L2 penalty, added to the gradient, >= 0
    ------  ``nesterov``        look ahead; needs momentum > 0, dampening 0
    ------  ``lr_in_momentum``  keep η g in the buffer instead of g
    b       momentum_buffer     state; only with momentum
    ======  ==================  ================================================

    Notes
    -----
    The form of torch.optim.SGD: the learning rate stands outside the velocity, and the first step is undamped. Keras
    and Chainer have it inside, which differs once the learning rate changes: ``lr_in_momentum``, with a buffer of the
    other sign. Whether there is a momentum at all is static: it may be changed between steps, but not to or from 0.

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, section 2;
    reference implementation ``torch.optim.SGD``.

    Raises
    ------
    HyperparameterError
        For a value outside its range, and for nesterov without momentum or with dampening.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, 2.0])
    >>> opt = fastgd.SGD(p, lr=0.1, momentum=0.9)
    >>> opt.step(np.array([1.0, 1.0])); opt.step(np.array([1.0, 1.0]))
    >>> p
    array([0.71, 1.71])
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_in_momentum: bool = False
    states: ClassVar[Mapping[str, str]] = {"b": "momentum_buffer"}

    def check(self) -> None:
        """Refuse Nesterov's form where it is not defined."""
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise HyperparameterError(
                "SGD: nesterov needs momentum above 0 and dampening 0, "
                f"given momentum {self.momentum!r} and dampening {self.dampening!r}"
            )

    def options(self) -> dict[str, object]:
        """Whether there is a buffer, and how it is used."""
        heavy = self.momentum != 0
        return dict(heavy=heavy, nesterov=self.nesterov, lr_in_momentum=heavy and self.lr_in_momentum)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        c = 1 if t == 1 else 1 - self.dampening
        return dict(lr=self.lr, mu=self.momentum, c=c, wd=self.weight_decay)

    @staticmethod
    def update(p, g, b, *, lr, mu, c, wd, heavy, nesterov, lr_in_momentum):
        """Step one element."""
        g = g + wd * p
        if lr_in_momentum:
            g = lr * g
        if heavy:
            b = mu * b + c * g
            g = g + mu * b if nesterov else b
        p = p - g if lr_in_momentum else p - lr * g
        return p, b
