"""Adagrad: a step over the root of all squared gradients so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sqrt
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Adagrad(Rule):
    r"""Adagrad: each parameter's learning rate falls with the sum of its squared gradients.

    Use it for convex problems and sparse features: rare ones keep a large step. On long runs the step dies out.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        a_t &= a_{t-1} + g_t^2 \\
        p_t &= p_{t-1} - \frac{\eta}{1 + (t - 1) \gamma} \cdot \frac{g_t}{\sqrt{a_t} + \epsilon}

    ==========  =============================  ======================================================
    Symbol      Argument                       Meaning
    ==========  =============================  ======================================================
    η           ``lr``                         learning rate, >= 0
    γ           ``lr_decay``                   decay of the learning rate by the steps, >= 0
    λ           ``weight_decay``               L2 penalty, added to the gradient, >= 0
    a₀          ``initial_accumulator_value``  start of the sum, >= 0
    ε           ``eps``                        keeps the denominator from 0, >= 0
    ----------  ``eps_mode``                   "outside": √a + ε, as above; "inside": √(a + ε)
    a           sum                            state
    ==========  =============================  ======================================================

    Notes
    -----
    Keras and optax start at 0.1 with ε 1e-7 inside the root.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
    JMLR 12, 2011, figure 1, diagonal form (not checked); reference implementation ``torch.optim.Adagrad``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Adagrad(p, lr=0.1)
    >>> opt.step(np.array([3.0, -4.0])); opt.step(np.array([4.0, -3.0]))
    >>> p.round(6)
    array([ 0.82, -0.84])
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    eps_mode: str = "outside"
    states: ClassVar[Mapping[str, str]] = {"a": "sum"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "lr_decay": (0.0, math.inf),
        "initial_accumulator_value": (0.0, math.inf),
    }
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"eps_mode": ("outside", "inside")}

    def options(self) -> dict[str, object]:
        """Where ε stands."""
        return dict(eps_mode=self.eps_mode)

    def init(self) -> dict[str, object]:
        """Start of the sum."""
        return dict(a=self.initial_accumulator_value)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(step=self.lr / (1 + (t - 1) * self.lr_decay), eps=self.eps, wd=self.weight_decay)

    @staticmethod
    def update(p, g, a, *, step, eps, wd, eps_mode):
        """Step one element."""
        g = g + wd * p
        a = a + g * g
        if eps_mode == "outside":
            p = p - step * g / (sqrt(a) + eps)
        else:
            p = p - step * g / sqrt(a + eps)
        return p, a
