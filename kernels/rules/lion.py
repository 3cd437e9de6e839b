"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import per_segment, sign
from fastgd.kernels.rule import Rule


@dataclass(frozen=True, kw_only=True)
class Lion(Rule):
    r"""Lion: every parameter moves by the same length, in the direction of an interpolated momentum.

    Use it for large models when memory matters: one state array instead of Adam's two. Its learning rate is three to
    ten times smaller than AdamW's, its decay as many times larger.

    .. math::

        p_t &= (1 - \eta\lambda) p_{t-1} - \eta\, \mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t) \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    ======  ================  ============================================================
    Symbol  Argument          Meaning
    ======  ================  ============================================================
    η       ``lr``            learning rate, >= 0
    β₁      ``betas[0]``      share of the momentum in the direction, [0, 1)
    β₂      ``betas[1]``      share of the momentum that is kept, [0, 1)
    λ       ``weight_decay``  decoupled decay, >= 0
    ------  ``cautious``      move only where the direction agrees with the gradient, and as
                              much longer there as n / (1 + the number of such elements)
    m       exp_avg           state
    ======  ================  ============================================================

    Notes
    -----
    sign(0) is 0, and a NaN stays a NaN, where torch's sign would hide it. The decay is decoupled, as in the paper;
    optax's default for it is 1e-3. The cautious form has two sweeps: the n elements of an array are counted first.

    References
    ----------
    X. Chen et al., "Symbolic discovery of optimization algorithms", arXiv:2302.06675, algorithm 2; reference
    implementation google/automl ``lion_pytorch.py``. K. Liang et al., "Cautious optimizers", arXiv:2411.16085, with the
    scale of kyleliang919/C-Optim.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0, 0.5])
    >>> opt = fastgd.Lion(p, lr=0.1)
    >>> opt.step(np.array([2.0, -0.001, 0.0]))
    >>> p
    array([ 0.9, -0.9,  0.5])
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    cautious: bool = False
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg"}

    def options(self) -> dict[str, object]:
        """Whether every element moves."""
        return dict(cautious=self.cautious)

    def stages(self) -> tuple[str, ...]:
        """Measure first, in the cautious form, where the direction and the gradient agree."""
        return ("measure", "update") if self.cautious else ("update",)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        decay = 1 - self.lr * self.weight_decay
        return dict(lr=self.lr, step=self.lr, decay=decay, b1=b1, c1=1 - b1, b2=b2, c2=1 - b2)

    @staticmethod
    def measure(g, m, *, b1, c1):
        """Count the elements in which the direction agrees with the gradient."""
        return per_segment(agreeing=sign(b1 * m + c1 * g) * g > 0)

    @staticmethod
    def combine(agreeing, size, *, lr):
        """Make up for the steps that are not taken."""
        step = lr * size / (agreeing + 1)
        return step

    @staticmethod
    def update(p, g, m, *, step, decay, b1, c1, b2, c2, cautious):
        """Step one element."""
        d = sign(b1 * m + c1 * g)
        if cautious:
            d = d * (1 if d * g > 0 else 0)
        p = decay * p - step * d
        m = b2 * m + c2 * g
        return p, m
