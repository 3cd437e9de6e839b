"""Adafactor and CAME: second moments of a matrix kept as one number for each row and column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.rule import ABOVE_0, FRACTION, Rule


class _Factored(MatrixRule):
    """What the two have in common: states for rows and for columns, and others of arrays that are no matrices."""

    fallback: ClassVar[Rule | None] = None
    rows: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str, ...]]
    others: ClassVar[tuple[str, ...]]

    def serves(self, shape: tuple[int, ...]) -> bool:
        """Matrices, and everything without a fallback."""
        return self.fallback is None or len(shape) >= 2

    def state_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Give the shape without the axis that was averaged over; the axes before the last two are of a batch."""
        matrix = len(shape) >= 2
        if name in self.rows:
            return shape[:-1] if matrix else None
        if name in self.columns:
            return (*shape[:-2], shape[-1]) if matrix else None
        if name in self.others:
            return None if matrix else shape
        return shape


def _normed(x: Any, row: Any, column: Any) -> Any:
    """Give x over the root of the matrix of rank 1 with these means of rows and columns.

    Root by root: the product of two small means may be 0.
    """
    return x * ((row / row.mean(-1)[..., None]) ** -0.5)[..., None] * (column**-0.5)[..., None, :]


def _rms(x: Any) -> Any:
    return (x * x).mean() ** 0.5


@dataclass(frozen=True, kw_only=True)
class Adafactor(_Factored):
    r"""Adafactor: Adam without momentum, with a second moment of n + m numbers for a matrix of n · m.

    Use it where the memory of Adam's states is too much. Its steps are relative to the size of the parameters, and it
    clips its own updates.

    .. math::

        w_t &= t^{\kappa}, \qquad \rho_t = \min(\eta, 1 / \sqrt t), \qquad
        \alpha_t = \max(\epsilon_2, \mathrm{RMS}(P_{t-1}))\, \rho_t \\
        R_t &= R_{t-1} + w_t (\mathrm{rowmean}(G_t^2) - R_{t-1}), \qquad
        C_t = C_{t-1} + w_t (\mathrm{colmean}(G_t^2) - C_{t-1}) \\
        U_t &= G_t / \sqrt{\max(R_t C_t / \max(\mathrm{mean}(R_t), \epsilon_1), \epsilon_1^2)} \\
        P_t &= (1 - \eta\lambda) P_{t-1} - \alpha_t U_t / \max(1, \mathrm{RMS}(U_t) / d)

    An array of one dimension has a second moment V of its own size in the place of the product.

    ==========  ===================  ==============================================================================
    Symbol      Argument             Meaning
    ==========  ===================  ==============================================================================
    η           ``lr``               most of a step, relative to the parameters, >= 0
    κ           ``beta2_decay``      power of t that the second moment takes in, <= 0
    ε₁, ε₂      ``eps``              least second moment (None: of the dtype, of the paper's form 1e-30), and least
                                     size of the parameters, >= 0
    d           ``d``                root mean square to which an update is clipped, > 0
    λ           ``weight_decay``     decoupled decay, >= 0
    ----------  ``beta1``            decay of a mean of the updates, [0, 1); 0: none is kept
    ----------  ``form``             "torch", or "paper": ε₁ is added to the squares and nothing is kept from below,
                                     and the decay takes αₜ in the place of η
    ----------  ``scale_parameter``  step relative to the size of the parameters
    ----------  ``relative_step``    at most 1/√t (otherwise always η)
    ----------  ``fallback``         rule for arrays of less than two dimensions; None: as above
    R, C, V     row_var, col_var,    states; with beta1 also exp_avg
                variance
    ==========  ===================  ==============================================================================

    Notes
    -----
    Gradients beyond 1e19 leave the range of their squares in float32. Axes before the last two count as a batch of
    matrices. The mean of the updates is taken before the step's size;
    fairseq and transformers take the size into it, so that a change of it is felt late there. The arithmetic is that
    of the arrays' library, array by array.

    References
    ----------
    N. Shazeer, M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", arXiv:1804.04235, algorithm 4
    (not checked); reference implementations ``torch.optim.Adafactor`` and, of the paper's form, that of transformers.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.ones((2, 2))
    >>> opt = fastgd.Adafactor(p)
    >>> opt.step(np.array([[1.0, -1.0], [1.0, -1.0]]))
    >>> p
    array([[0.99, 1.01],
           [0.99, 1.01]])
    """

    lr: float = 1e-2
    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.0
    form: str = "torch"
    scale_parameter: bool = True
    relative_step: bool = True
    fallback: Rule | None = None  # type: ignore[misc]  # a field here
    states: ClassVar[Mapping[str, str]] = {"row": "row_var", "column": "col_var", "v": "variance", "m": "exp_avg"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"d": ABOVE_0, "beta1": FRACTION}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"form": ("torch", "paper")}
    rows: ClassVar[tuple[str, ...]] = ("row",)
    columns: ClassVar[tuple[str, ...]] = ("column",)
    others: ClassVar[tuple[str, ...]] = ("v",)

    def check(self) -> None:
        """Refuse a second moment that takes in more and more."""
        if self.beta2_decay > 0:
            raise HyperparameterError(f"Adafactor: beta2_decay must be at most 0, given {self.beta2_decay!r}")

    def options(self) -> dict[str, object]:
        """Which of the forms is meant."""
        return dict(paper=self.form == "paper", scaled=self.scale_parameter, averaged=self.beta1 > 0)

    def state_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Leave out the mean of the updates where none is kept."""
        return None if name == "m" and self.beta1 == 0 else super().state_shape(name, shape)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t; a negative least stands for that of the dtype."""
        least, smallest = self.eps
        if least is None:
            least = 1e-30 if self.form == "paper" else -1.0
        return dict(
            w=float(t) ** self.beta2_decay,
            least=least,
            smallest=smallest,
            d=self.d,
            rho=min(self.lr, 1 / math.sqrt(t)) if self.relative_step else self.lr,
            shrink=self.lr * self.weight_decay,
            wd=self.weight_decay,
            b1=self.beta1,
            c1=1 - self.beta1,
        )

    @staticmethod
    def update(p, g, row, column, v, m, *, w, least, smallest, d, rho, shrink, wd, b1, c1, paper, scaled, averaged):
        """Step one array."""
        if least < 0:
            least = 2.0 ** (-23 if p.dtype.itemsize == 4 else -52)
        square = g * g + least if paper else g * g
        if row is None:
            v = v + w * (square - v)
            u = g / (v if paper else v.clip(least * least, None)) ** 0.5
        else:
            row = row + w * (square.mean(-1) - row)
            column = column + w * (square.mean(-2) - column)
            if paper:
                u = _normed(g, row, column)
            else:
                mean = row.mean(-1).clip(least, None)
                spread = (row / mean[..., None])[..., None] * column[..., None, :]
                u = g / spread.clip(least * least, None) ** 0.5
        u = u / (_rms(u) / d).clip(1, None)
        if averaged:
            m = u = b1 * m + c1 * u
        alpha = _rms(p).clip(smallest, None) * rho if scaled else rho
        decay = 1 - alpha * wd if paper else 1 - shrink
        kept = dict(v=v) if row is None else dict(row=row, column=column)
        return dict(p=decay * p - alpha * u, **kept, **(dict(m=m) if averaged else {}))


@dataclass(frozen=True, kw_only=True)
class CAME(_Factored):
    r"""CAME: Adafactor with momentum, whose step is short where the updates disagree with their mean.

    Use it for language models in the place of Adafactor; it needs one state array of the parameters' size, and a few
    numbers for each row and column.

    .. math::

        U_t &= G_t / \sqrt{\hat V(G_t^2 + \epsilon_1; \beta_2)}, \qquad
        U_t \leftarrow U_t / \max(1, \mathrm{RMS}(U_t) / d) \\
        M_t &= \beta_1 M_{t-1} + (1 - \beta_1) U_t, \qquad
        S_t = M_t / \sqrt{\hat V((U_t - M_t)^2 + \epsilon_2; \beta_3)} \\
        P_t &= (1 - \eta\lambda) P_{t-1} - \eta S_t

    where V̂(X; β) is the product of the running means, of decay β, of the rows and columns of X, over the mean of one
    of them. An array of one dimension has a mean of its own size in the first, and no second: its S is M.

    ==========  =====================================  ============================================================
    Symbol      Argument                               Meaning
    ==========  =====================================  ============================================================
    η           ``lr``                                 learning rate, >= 0
    ε₁, ε₂      ``eps``                                added to the squares of gradient and disagreement, >= 0
    d           ``clip_threshold``                     root mean square to which an update is clipped, > 0
    β₁, β₂, β₃  ``betas``                              decay of the means, each in [0, 1)
    λ           ``weight_decay``                       decoupled decay, >= 0
    ----------  ``fallback``                           rule for arrays of less than two dimensions; None: as above
    M           exp_avg                                state
    ----------  exp_avg_sq_row, exp_avg_sq_col,        states of a matrix
                exp_avg_res_row, exp_avg_res_col
    ----------  exp_avg_sq                             state of an array of one dimension
    ==========  =====================================  ============================================================

    Notes
    -----
    No bias is corrected: the first gradients are divided by means that have only begun, and clipped. Axes before the
    last two count as a batch of matrices. Gradients beyond 1e19 leave the range of their squares in float32. The
    arithmetic is that of the arrays' library, array by array.

    References
    ----------
    Y. Luo et al., "CAME: confidence-guided adaptive memory efficient optimization", arXiv:2307.02047, algorithm 2 (not
    checked); reference implementation yangluo7/CAME, whose learning rate has no default.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.ones((2, 2))
    >>> opt = fastgd.CAME(p, lr=0.1, betas=(0.0, 0.0, 0.0), eps=(1e-30, 1.0))
    >>> opt.step(np.array([[1.0, -1.0], [1.0, -1.0]]))
    >>> p
    array([[0.9, 1.1],
           [0.9, 1.1]])
    """

    lr: float = 2e-4
    eps: tuple[float, float] = (1e-30, 1e-16)
    clip_threshold: float = 1.0
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    weight_decay: float = 0.0
    fallback: Rule | None = None  # type: ignore[misc]  # a field here
    states: ClassVar[Mapping[str, str]] = {
        "m": "exp_avg",
        "row": "exp_avg_sq_row",
        "column": "exp_avg_sq_col",
        "res_row": "exp_avg_res_row",
        "res_column": "exp_avg_res_col",
        "v": "exp_avg_sq",
    }
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"clip_threshold": ABOVE_0}
    rows: ClassVar[tuple[str, ...]] = ("row", "res_row")
    columns: ClassVar[tuple[str, ...]] = ("column", "res_column")
    others: ClassVar[tuple[str, ...]] = ("v",)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2, b3 = self.betas
        least, disagreement = self.eps
        return dict(
            lr=self.lr,
            decay=1 - self.lr * self.weight_decay,
            b1=b1,
            c1=1 - b1,
            b2=b2,
            c2=1 - b2,
            b3=b3,
            c3=1 - b3,
            least=least,
            disagreement=disagreement,
            d=self.clip_threshold,
        )

    @staticmethod
    def update(
        p,
        g,
        m,
        row,
        column,
        res_row,
        res_column,
        v,
        *,
        lr,
        decay,
        b1,
        c1,
        b2,
        c2,
        b3,
        c3,
        least,
        disagreement,
        d,
    ):
        """Step one array."""
        square = g * g + least
        if row is None:
            v = b2 * v + c2 * square
            u = g / v**0.5
        else:
            row, column = b2 * row + c2 * square.mean(-1), b2 * column + c2 * square.mean(-2)
            u = _normed(g, row, column)
        u = u / (_rms(u) / d).clip(1, None)
        m = b1 * m + c1 * u
        if row is None:
            return dict(p=decay * p - lr * m, m=m, v=v)
        apart = (u - m) * (u - m) + disagreement
        res_row, res_column = b3 * res_row + c3 * apart.mean(-1), b3 * res_column + c3 * apart.mean(-2)
        p = decay * p - lr * _normed(m, res_row, res_column)
        return dict(p=p, m=m, row=row, column=column, res_row=res_row, res_column=res_column)
