"""RMSprop: a step over the root of the mean squared gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import maximum, sqrt
from fastgd.kernels.rule import FRACTION, Rule


@dataclass(frozen=True, kw_only=True)
class RMSprop(Rule):
    r"""RMSprop: the gradient over the root of a mean of its squares, with momentum and centering as options.

    Use it for recurrent networks and reinforcement learning, where the scale of gradients moves.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
        s_t &= v_t, \quad \text{centered: } a_t = \alpha a_{t-1} + (1 - \alpha) g_t,\ s_t = \max(v_t - a_t^2, 0) \\
        b_t &= \mu b_{t-1} + g_t / (\sqrt{s_t} + \epsilon) \\
        p_t &= p_{t-1} - \eta\, b_t

    ==========  ============================  =====================================================================
    Symbol      Argument                      Meaning
    ==========  ============================  =====================================================================
    η           ``lr``                        learning rate, >= 0
    α           ``alpha``                     decay of the means, [0, 1)
    ε           ``eps``                       keeps the denominator from 0, >= 0
    λ           ``weight_decay``              L2 penalty, added to the gradient, >= 0
    μ           ``momentum``                  share of the old direction that is kept, [0, 1)
    ----------  ``centered``                  divide by the variance instead of the mean square
    ----------  ``eps_mode``                  "outside": √s + ε, as above; "inside": √(s + ε)
    ----------  ``lr_in_momentum``            keep η g / √s in the buffer instead of g / √s
    v           square_avg                    state
    b, a        momentum_buffer, grad_avg     states; only with momentum, only when centered
    ==========  ============================  =====================================================================

    Notes
    -----
    Rounding can make the variance a little less than 0; torch then gives NaN, here it counts as 0. Keras, TensorFlow
    and optax have ε inside the root, Keras the learning rate inside the momentum, which differs once it changes.
    Whether there is a momentum at all is static: it may be changed between steps, but not to or from 0.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", Coursera 2012; centered by A. Graves, "Generating sequences with
    recurrent neural networks", arXiv:1308.0850, equations 38 to 45 (not checked). Reference implementation
    ``torch.optim.RMSprop``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.RMSprop(p, lr=0.1, alpha=0.75)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.8, -0.8])
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    eps_mode: str = "outside"
    lr_in_momentum: bool = False
    states: ClassVar[Mapping[str, str]] = {"v": "square_avg", "b": "momentum_buffer", "a": "grad_avg"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"alpha": FRACTION}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"eps_mode": ("outside", "inside")}

    def options(self) -> dict[str, object]:
        """Which states there are, and which forms are meant."""
        heavy = self.momentum != 0
        return dict(
            heavy=heavy,
            centered=self.centered,
            eps_mode=self.eps_mode,
            lr_in_momentum=heavy and self.lr_in_momentum,
        )

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(
            lr=self.lr, alpha=self.alpha, c=1 - self.alpha, eps=self.eps, wd=self.weight_decay, mu=self.momentum
        )

    @staticmethod
    def update(p, g, v, b, a, *, lr, alpha, c, eps, wd, mu, heavy, centered, eps_mode, lr_in_momentum):
        """Step one element."""
        g = g + wd * p
        v = alpha * v + c * (g * g)
        s = v
        if centered:
            a = alpha * a + c * g
            s = maximum(v - a * a, 0)
        direction = g / (sqrt(s) + eps) if eps_mode == "outside" else g / sqrt(s + eps)
        if lr_in_momentum:
            b = mu * b + lr * direction
            p = p - b
        elif heavy:
            b = mu * b + direction
            p = p - lr * b
        else:
            p = p - lr * direction
        return p, v, b, a
