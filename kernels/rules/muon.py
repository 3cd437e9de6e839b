"""Muon: momentum made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules.adam import AdamW

_TINY = 2.0**-126  # the smallest float32 that is not denormal
_FALLBACK = AdamW(lr=3e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class Muon(MatrixRule):
    r"""Muon: a matrix moves along its momentum with all singular values brought near 1.

    Use it for the weight matrices inside a network, at the learning rate of AdamW with
    ``adjust_lr_fn="match_rms_adamw"``; embeddings, the last layer, biases and gains are better served by AdamW: by the
    fallback, or by an optimizer of their own. One state array, and 15 products of matrices a step.

    .. math::

        B_t &= \mu B_{t-1} + (1 - \mu) G_t, \qquad
        U_t = \mu B_t + (1 - \mu) G_t \text{ (Nesterov)},\ B_t \text{ (otherwise)} \\
        X_0 &= U_t / \max(\lVert U_t \rVert_F, \epsilon), \qquad
        A_k = X_k X_k^\top, \qquad X_{k+1} = a X_k + (b A_k + c A_k^2) X_k \\
        P_t &= (1 - \eta\lambda) P_{t-1} - \eta f X_K

    Matrices with more rows than columns are transposed before the iteration and back behind it.

    ==========  ===================  ==============================================================================
    Symbol      Argument             Meaning
    ==========  ===================  ==============================================================================
    η           ``lr``               learning rate, >= 0
    λ           ``weight_decay``     decoupled decay, >= 0
    μ           ``momentum``         share of the momentum that is kept, [0, 1)
    ----------  ``nesterov``         take the gradient into the direction once more
    a, b, c     ``ns_coefficients``  of the Newton-Schulz iteration
    ε           ``eps``              least norm that is divided by, >= 0
    K           ``ns_steps``         number of iterations, 0 to 99
    f           ``adjust_lr_fn``     "original" (None): √max(1, rows/columns); "match_rms_adamw":
                                     0.2 √max(rows, columns); "spectral_unclamped": √(rows/columns)
    ----------  ``fallback``         rule for arrays of less than two dimensions, with a learning rate of its
                                     own; None: they are refused
    B           momentum_buffer      state
    ==========  ===================  ==============================================================================

    Notes
    -----
    Arrays of more than two dimensions, as those of convolutions, count as matrices of their first axis and the rest.
    The products are in the parameters' precision, where torch and the author's code take bfloat16; they run on the
    threads of the arrays' library, whatever ``threads`` is. A step takes memory for its products.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, and KellerJordan/Muon; J. Liu et
    al., "Muon is scalable for LLM training", arXiv:2502.16982, for the second f. Reference implementation
    ``torch.optim.Muon``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> params = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    >>> opt = fastgd.Muon(params, lr=0.1)
    >>> opt.step({"w": np.array([[3.0, 0.0], [0.0, 0.1]]), "b": np.ones(2)})
    >>> params["w"].round(1)
    array([[-0.1,  0. ],
           [ 0. , -0.1]])
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
    fallback: Rule | None = _FALLBACK
    states: ClassVar[Mapping[str, str]] = {"m": "momentum_buffer"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"ns_steps": (0, 100)}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "adjust_lr_fn": ("original", "match_rms_adamw", "spectral_unclamped")
    }

    def options(self) -> dict[str, object]:
        """Which of the forms is meant."""
        return dict(nesterov=self.nesterov, ns_steps=self.ns_steps, adjust_lr_fn=self.adjust_lr_fn or "original")

    def serves(self, shape: tuple[int, ...]) -> bool:
        """Matrices, and what can be taken as one."""
        return len(shape) >= 2

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        a, b, c = self.ns_coefficients
        decay = 1 - self.lr * self.weight_decay
        return dict(lr=self.lr, decay=decay, mu=self.momentum, rest=1 - self.momentum, a=a, b=b, c=c, eps=self.eps)

    @staticmethod
    def update(p, g, m, *, lr, decay, mu, rest, a, b, c, eps, nesterov, ns_steps, adjust_lr_fn):
        """Step one matrix."""
        m = mu * m + rest * g
        u = mu * m + rest * g if nesterov else m
        rows, columns = p.shape[0], math.prod(p.shape[1:])
        u = u.reshape(rows, columns)
        x = u.T if rows > columns else u
        peak = abs(x).max().clip(_TINY, None)  # over it, as squares of the elements may leave the range
        x = x / peak
        x = x / ((x * x).sum() ** 0.5).clip(eps / peak, None)
        for _ in range(ns_steps):  # a x + (b s + c s s) x, with a and b on diagonals: few passes beside the products
            s = x @ x.T
            polynomial = c * s
            polynomial.reshape(-1)[:: len(s) + 1] += b
            polynomial = polynomial @ s
            polynomial.reshape(-1)[:: len(s) + 1] += a
            x = polynomial @ x
        x = x.T if rows > columns else x
        factor = {
            "original": math.sqrt(max(1, rows / columns)),
            "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
            "spectral_unclamped": math.sqrt(rows / columns),
        }[adjust_lr_fn]
        return dict(p=decay * p - (lr * factor) * x.reshape(p.shape), m=m)
