"""Adamax: Adam with the largest gradient in the place of the mean square."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import maximum
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Adamax(Rule):
    r"""Adamax: a step by the mean of the gradients over a decaying maximum of their sizes.

    Use it where gradients are sparse or heavy-tailed, as those of embeddings: no root, and a bound on each step that
    needs no correction.

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        u_t &= \max(\beta_2 u_{t-1},\ \lvert g_t \rvert + \epsilon) \\
        p_t &= p_{t-1} - \frac{\eta}{1 - \beta_1^t} \cdot \frac{m_t}{u_t}

    ==========  ================  ==============================================================================
    Symbol      Argument          Meaning
    ==========  ================  ==============================================================================
    η           ``lr``            learning rate, >= 0
    β₁, β₂      ``betas``         decay of the mean and of the maximum, each in [0, 1)
    ε           ``eps``           keeps the denominator from 0, >= 0
    λ           ``weight_decay``  L2 penalty, added to the gradient, >= 0
    ----------  ``eps_mode``      "inside": in the maximum, as above; "outside": :math:`m_t / (u_t + \epsilon)`
    m, u        exp_avg, exp_inf  states
    ==========  ================  ==============================================================================

    Notes
    -----
    torch has ε in the maximum, Keras behind it ("outside", with ε 1e-7 and η 1e-3); the paper has none.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", arXiv:1412.6980, algorithm 2 (not checked);
    reference implementation ``torch.optim.Adamax``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Adamax(p, lr=0.1)
    >>> opt.step(np.array([2.0, -3.0]))
    >>> p.round(6)
    array([ 0.9, -0.9])
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    eps_mode: str = "inside"
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "u": "exp_inf"}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"eps_mode": ("inside", "outside")}

    def options(self) -> dict[str, object]:
        """Where ε stands."""
        return dict(eps_mode=self.eps_mode)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        return dict(b1=b1, c1=1 - b1, b2=b2, eps=self.eps, wd=self.weight_decay, step=self.lr / (1 - b1**t))

    @staticmethod
    def update(p, g, m, u, *, b1, c1, b2, eps, wd, step, eps_mode):
        """Step one element."""
        g = g + wd * p
        m = b1 * m + c1 * g
        if eps_mode == "inside":
            u = maximum(b2 * u, abs(g) + eps)
            p = p - step * m / u
        else:
            u = maximum(b2 * u, abs(g))
            p = p - step * m / (u + eps)
        return p, m, u
