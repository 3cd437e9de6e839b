"""ASGD: stochastic gradient descent with a falling step and an average of the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class ASGD(Rule):
    r"""ASGD: gradient descent whose step falls as a power of the steps, and whose parameters are averaged.

    Use it for convex problems with noisy gradients: the average ``opt.state["ax"]`` converges at the best rate.

    .. math::

        g_t &\leftarrow g_t + \lambda_2 p_{t-1} \\
        p_t &= (1 - \lambda \eta_t) p_{t-1} - \eta_t g_t \\
        a_t &= a_{t-1} + \mu_t (p_t - a_{t-1}) \\
        \eta_{t+1} &= \eta / (1 + \lambda \eta t)^\alpha, \quad \eta_1 = \eta, \qquad
        \mu_{t+1} = 1 / \max(1, t - t_0), \quad \mu_1 = 1

    ======  ================  ====================================================================
    Symbol  Argument          Meaning
    ======  ================  ====================================================================
    η       ``lr``            learning rate, >= 0
    λ       ``lambd``         decay of parameters and step, >= 0
    α       ``alpha``         power of the step's decay, >= 0
    t₀      ``t0``            steps before averaging starts, >= 0; until then a is p
    λ₂      ``weight_decay``  L2 penalty, added to the gradient, >= 0
    a       ax                state
    η_t     eta               step of the next update, one number for each group, in float64
    ======  ================  ====================================================================

    Notes
    -----
    As in torch a changed learning rate shows one step later, since η is made at the end of the step before.

    References
    ----------
    B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", 1992 (not checked);
    reference implementation ``torch.optim.ASGD``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, 2.0])
    >>> opt = fastgd.ASGD(p, lr=0.5, lambd=0.0, t0=1.0)
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0, 1.0]))
    >>> p, opt.state["ax"]
    (array([-0.5,  0.5]), array([-0.5,  0.5]))
    """

    lr: float = 1e-2
    lambd: float = 1e-4
    alpha: float = 0.75
    t0: float = 1e6
    weight_decay: float = 0.0
    states: ClassVar[Mapping[str, str]] = {"a": "ax"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(("lambd", "alpha", "t0"), (0.0, math.inf))

    def init(self) -> dict[str, object]:
        """Start with the learning rate as the step."""
        return dict(eta=self.lr)

    def prepare(self, t: int, eta: float) -> dict[str, float]:  # type: ignore[override]  # with its state
        """Give the scalars of step t, and the next step's length."""
        mu = 1 / max(1.0, t - 1 - self.t0)
        return dict(
            step=eta,
            decay=1 - self.lambd * eta,
            mu=mu,
            rest=1 - mu,
            wd=self.weight_decay,
            eta=self.lr / (1 + self.lambd * self.lr * t) ** self.alpha,
        )

    @staticmethod
    def update(p, g, a, *, step, decay, mu, rest, wd):
        """Step one element."""
        g = g + wd * p
        p = decay * p - step * g
        a = rest * a + mu * p
        return p, a
