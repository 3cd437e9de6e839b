"""Signum: the sign of the mean of the gradients; signSGD without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import sign
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Signum(Rule):
    r"""Signum: every parameter moves by the same length against the sign of a mean of its gradients.

    Use it where only signs are sent between machines, or memory allows one state: a predecessor of `Lion`.

    .. math::

        m_t &= \mu m_{t-1} + (1 - \mu) g_t \\
        p_t &= (1 - \eta\lambda) p_{t-1} - \eta\, \mathrm{sign}(m_t)

    ======  ================  =========================================================================
    Symbol  Argument          Meaning
    ======  ================  =========================================================================
    η       ``lr``            learning rate, >= 0; the references have no default
    μ       ``momentum``      share of the old mean that is kept, [0, 1); 0 is signSGD, without a state
    λ       ``weight_decay``  decoupled decay, >= 0
    m       exp_avg           state
    ======  ================  =========================================================================

    Notes
    -----
    sign(0) is 0, and a NaN stays a NaN. The mean is not corrected for its start at 0: only its sign counts. Whether
    there is a momentum at all is static.

    References
    ----------
    J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", arXiv:1802.04434, algorithm 2
    (not checked); reference implementation ``optax.signum``, and ``optax.sign_sgd`` for the form without momentum.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0, 0.5])
    >>> opt = fastgd.Signum(p, lr=0.1)
    >>> opt.step(np.array([2.0, -0.001, 0.0]))
    >>> p
    array([ 0.9, -0.9,  0.5])
    """

    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg"}

    def options(self) -> dict[str, object]:
        """Whether there is a state."""
        return dict(heavy=self.momentum != 0)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(lr=self.lr, mu=self.momentum, c=1 - self.momentum, decay=1 - self.lr * self.weight_decay)

    @staticmethod
    def update(p, g, m, *, lr, mu, c, decay, heavy):
        """Step one element."""
        if heavy:
            m = mu * m + c * g
            p = decay * p - lr * sign(m)
        else:
            p = decay * p - lr * sign(g)
        return p, m
