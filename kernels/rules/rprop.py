"""Rprop: step lengths that grow while the gradient keeps its sign and shrink when it turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.language import clip, sign
from fastgd.kernels.rule import NON_NEGATIVE, Rule


@dataclass(frozen=True, kw_only=True)
class Rprop(Rule):
    r"""Rprop: each parameter moves by a length of its own against the sign of its gradient, whatever its size.

    Use it with the whole data set in each step (batch gradient descent), where it is fast and needs no tuning. On
    mini-batches the sign is noise: take `RMSprop` there.

    .. math::

        s_t &= \mathrm{clip}(s_{t-1} \cdot \{\eta^+, \eta^-, 1\}, s_\text{min}, s_\text{max})
               \quad \text{for } g_t g_{t-1} > 0,\ < 0,\ = 0 \\
        g_t &\leftarrow 0 \quad \text{where } g_t g_{t-1} < 0 \\
        p_t &= p_{t-1} - \mathrm{sign}(g_t)\, s_t

    ============  ===============  =======================================================
    Symbol        Argument         Meaning
    ============  ===============  =======================================================
    s₀            ``lr``           first step length, >= 0; a later change has no effect
    η⁻, η⁺        ``etas``         shrinkage in (0, 1), and growth above 1
    s_min, s_max  ``step_sizes``   bounds of the step length, > 0
    g, s          prev, step_size  states
    ============  ===============  =======================================================

    Notes
    -----
    Where the sign turns, the step is left out and the next one counts as a first one; the last step is not taken back.

    References
    ----------
    M. Riedmiller, H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
    ICNN 1993 (not checked); this form is iRprop⁻ of C. Igel, M. Hüsken, 2000 (not checked). Reference
    implementation ``torch.optim.Rprop``.

    Raises
    ------
    HyperparameterError
        For a value outside its range, and bounds in the wrong order.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, 1.0])
    >>> opt = fastgd.Rprop(p, lr=0.1)
    >>> opt.step(np.array([2.0, -0.001])); opt.step(np.array([3.0, 5.0]))
    >>> p.round(6)
    array([0.78, 1.1 ])
    """

    lr: float = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)
    states: ClassVar[Mapping[str, str]] = {"prev": "prev", "s": "step_size"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"etas": NON_NEGATIVE, "step_sizes": NON_NEGATIVE}

    def check(self) -> None:
        """Refuse factors and bounds in the wrong order."""
        (shrink, grow), (low, high) = self.etas, self.step_sizes
        if not 0 < shrink < 1 < grow:
            raise HyperparameterError(f"Rprop: etas must be in (0, 1) and above 1, given {self.etas!r}")
        if not 0 < low <= high:
            raise HyperparameterError(f"Rprop: step_sizes must be above 0 and rise, given {self.step_sizes!r}")

    def init(self) -> dict[str, object]:
        """First step length."""
        return dict(s=self.lr)

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        return dict(shrink=self.etas[0], grow=self.etas[1], low=self.step_sizes[0], high=self.step_sizes[1])

    @staticmethod
    def update(p, g, prev, s, *, shrink, grow, low, high):
        """Step one element."""
        turn = g * prev
        s = clip(s * (grow if turn > 0 else (shrink if turn < 0 else 1)), low, high)
        g = 0 if turn < 0 else g
        p = p - sign(g) * s
        prev = g
        return p, prev, s
