"""LARS: momentum with a rate of each layer's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.language import minimum, per_segment, sqrt, squared
from fastgd.kernels.rule import NON_NEGATIVE, Rule


@dataclass(frozen=True, kw_only=True)
class LARS(Rule):
    r"""LARS: SGD with momentum whose rate follows, layer by layer, the ratio of the norms of weights and gradient.

    Use it to train convolutional networks with very large batches. A layer is a segment: one array of a `FlatParams`,
    list or dict. Two sweeps: the norms of a layer must be known before any of it moves.

    .. math::

        q &= \frac{c \lVert p_{t-1} \rVert}{\lVert g_t \rVert + \lambda \lVert p_{t-1} \rVert + \epsilon} \\
        b_t &= \mu b_{t-1} + (1 - \tau)\, q\, (g_t + \lambda p_{t-1}), \qquad
               b_1 = q\, (g_1 + \lambda p_0) \\
        p_t &= p_{t-1} - \eta b_t

    The ratio q is 1 where either norm is 0.

    ==========  =================  ================================================================================
    Symbol      Argument           Meaning
    ==========  =================  ================================================================================
    η           ``lr``             learning rate, >= 0
    μ           ``momentum``       share of the velocity that is kept, [0, 1)
    τ           ``dampening``      share of the gradient that the velocity does not take in
    λ           ``weight_decay``   L2 penalty, >= 0
    ----------  ``nesterov``       step along the gradient plus μ times the new velocity
    c           ``trust_coeff``    trust in a layer's ratio, >= 0
    ε           ``eps``            keeps the denominator from 0, >= 0
    ----------  ``trust_clip``     no layer's rate is above η: min(q / η, 1) in the place of q
    ----------  ``always_adapt``   use the ratio also where the decay is 0 (otherwise such groups take SGD's step)
    b           momentum_buffer    state
    ==========  =================  ================================================================================

    Notes
    -----
    The rate stands outside the velocity, as in the reference; optax takes it in, and measures the norm of the sum of
    gradient and penalty where the paper adds the two norms.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, algorithm 1
    (not checked); reference implementation timm ``lars.py``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([3.0, 4.0])
    >>> opt = fastgd.LARS(p, lr=10.0, weight_decay=0.1, trust_coeff=0.01)
    >>> opt.step(np.array([0.3, 0.4]))
    >>> p.round(3)
    array([2.7, 3.6])
    """

    lr: float = 1.0
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    trust_coeff: float = 1e-3
    eps: float = 1e-8
    trust_clip: bool = False
    always_adapt: bool = False
    states: ClassVar[Mapping[str, str]] = {"b": "momentum_buffer"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"trust_coeff": NON_NEGATIVE}

    def check(self) -> None:
        """Refuse Nesterov's form where it is not defined."""
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise HyperparameterError(
                "LARS: nesterov needs momentum above 0 and dampening 0, "
                f"given momentum {self.momentum!r} and dampening {self.dampening!r}"
            )

    def options(self) -> dict[str, object]:
        """Whether there is a buffer, and how it is used."""
        return dict(heavy=self.momentum != 0, nesterov=self.nesterov)

    def stages(self) -> tuple[str, ...]:
        """Measure the norms, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(
            lr=self.lr,
            mu=self.momentum,
            c=1 if t == 1 else 1 - self.dampening,
            wd=self.weight_decay,
            trust=self.trust_coeff,
            eps=self.eps,
            # numbers, not options: groups with and without decay share one kernel
            adapt=float(self.always_adapt or self.weight_decay != 0),
            clipped=float(self.trust_clip),
        )

    @staticmethod
    def measure(p, g):
        """Sum the squares of parameters and gradient."""
        return per_segment(pp=squared(p), gg=squared(g))

    @staticmethod
    def combine(pp, gg, *, lr, wd, trust, eps, adapt, clipped):
        """Make a layer's ratio of its two norms."""
        w = sqrt(pp)
        q = trust * w / (sqrt(gg) + wd * w + eps) if pp > 0 and gg > 0 else 1
        # not min(q / lr, 1): the rate of a schedule may be 0
        q = minimum(q, lr) / lr if clipped > 0 and lr > 0 else q
        ratio = q if adapt > 0 else 1
        return ratio

    @staticmethod
    def update(p, g, b, *, lr, mu, c, wd, ratio, heavy, nesterov):
        """Step one element."""
        g = ratio * (g + wd * p)
        if heavy:
            b = mu * b + c * g
            g = g + mu * b if nesterov else b
        p = p - lr * g
        return p, b
