"""Prodigy and DAdaptAdam: Adam that finds its learning rate by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastgd.kernels.language import abs, maximum, minimum, sqrt, total
from fastgd.kernels.rule import ABOVE_0, FRACTION, Rule


@dataclass(frozen=True, kw_only=True)
class Prodigy(Rule):
    r"""Prodigy: Adam whose learning rate is an estimate of the distance to the solution, which only grows.

    Use it where there is no time to tune: leave ``lr`` at 1, and give it a schedule that ends at 0. Two sweeps and two
    sums over all parameters; one estimate d for all groups.

    .. math::

        \ell_t &= d_{t-1}\, \eta \\
        r_t &= \beta_3 r_{t-1} + \frac{d_{t-1}}{d_0}\, \ell_t \langle g_t, p_0 - p_{t-1} \rangle, \qquad
        s_t = \beta_3 s_{t-1} + \frac{d_{t-1}}{d_0}\, \ell_t\, g_t \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, d_{t-1}\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, d_{t-1}^2\, g_t^2 \\
        d_t &= \max(d_{t-1}, c\, r_t / \lVert s_t \rVert_1) \\
        p_t &= (1 - \lambda \ell_t) p_{t-1} - \ell_t\, \frac{m_t}{\sqrt{v_t} + d_t \epsilon}

    ==========  =======================  ==========================================================================
    Symbol      Argument                 Meaning
    ==========  =======================  ==========================================================================
    η           ``lr``                   factor of the estimate, >= 0; groups may differ in it
    β₁, β₂      ``betas``                decay of the two means, each in [0, 1)
    β₃          ``beta3``                decay of the two sums, [0, 1); None: √β₂
    ε           ``eps``                  keeps the denominator from 0, >= 0
    λ           ``weight_decay``         decay, >= 0
    ----------  ``decouple``             decay apart from the gradient (otherwise it is added to it)
    ----------  ``use_bias_correction``  ℓ is multiplied by √(1 - β₂ᵏ) / (1 - β₁ᵏ)
    ----------  ``safeguard_warmup``     leave η out of s: for a rate that warms up
    d₀          ``d0``                   first estimate, > 0
    c           ``d_coef``               factor of each new estimate, > 0
    ----------  ``growth_rate``          most by which d grows in a step, >= 1; None: any
    m, v, s     exp_avg, exp_avg_sq, s   states; m only with β₁ > 0, otherwise it is d g, of the new d
    p₀          p0                       state: the parameters at the start
    ==========  =======================  ==========================================================================

    Notes
    -----
    Scalar states, of all groups together: d, d_max, numerator (r); with ``use_bias_correction`` also power1 and power2,
    the β₁ᵏ⁻¹ and β₂ᵏ⁻¹ that the next step takes as k-th from the first gradient that is not zero, so that groups must
    agree in betas. Before that gradient no parameter moves. A group whose η is 0 counts for nothing and stands, states
    too; where it is 0 in all groups everything stands. The reference takes groups of one η only, or 0.

    References
    ----------
    K. Mishchenko, A. Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", arXiv:2306.06101,
    algorithm 4 (not checked); reference implementation konstmish/prodigy.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.Prodigy(p)
    >>> for _ in range(200):
    ...     opt.step(2 * (p - 3.0))
    >>> p.round(1)
    array([3., 3.])
    """

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    beta3: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.0
    decouple: bool = True
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d0: float = 1e-6
    d_coef: float = 1.0
    growth_rate: float | None = None
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "beta3": FRACTION,
        "d0": ABOVE_0,
        "d_coef": ABOVE_0,
        "growth_rate": (1.0, math.inf),
    }

    def options(self) -> dict[str, object]:
        """Which decay is meant, and whether there is a mean of the gradients."""
        return dict(decouple=self.decouple, averaged=self.betas[0] != 0, corrected=self.use_bias_correction)

    def init(self) -> dict[str, object]:
        """Start with the first estimate, and no step behind a gradient."""
        powers = dict(power1=1.0, power2=1.0) if self.use_bias_correction else {}
        return dict(p0="p", d=self.d0, d_max=self.d0, numerator=0.0, **powers)

    def stages(self) -> tuple[str, ...]:
        """Measure the way gone and the gradients' sum, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        beta3 = math.sqrt(b2) if self.beta3 is None else self.beta3
        moves = self.lr > 0  # a group that does not counts for nothing and keeps its states
        return dict(
            lr=self.lr,
            beta1=b1,
            beta2=b2,
            b1=b1 if moves else 1.0,
            rest1=1 - b1 if moves else 0.0,
            b2=b2 if moves else 1.0,
            rest2=1 - b2 if moves else 0.0,
            keep=beta3 if moves else 1.0,
            safeguard=float(self.safeguard_warmup),
            counts=float(moves),
            beta3=beta3,
            eps=self.eps,
            wd=self.weight_decay,
            d0=self.d0,
            d_coef=self.d_coef,
            growth_rate=math.inf if self.growth_rate is None else self.growth_rate,
        )

    @staticmethod
    def derive(d, power1, power2, *, lr, beta1, beta2, rest1, rest2, d0, safeguard, counts, corrected):
        """Scale what is added to the moments and the sums by the estimate."""
        length = d * lr
        if corrected:
            length = length * (sqrt(1 - beta2 * power2) / (1 - beta1 * power1))
        weight = d / d0
        c1 = d * rest1
        c2 = d * d * rest2
        way = weight * length
        taken = counts * (weight * (d if safeguard > 0 else length))
        return length, c1, c2, way, taken

    @staticmethod
    def measure(p, g, m, v, s, p0, *, b1, c1, b2, c2, keep, way, taken, counts, wd, decouple, averaged):
        """Move the moments and the gradients' sum; sum the way gone along the gradient."""
        if not decouple:
            g = g + wd * p
        if averaged:
            m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        s = keep * s + taken * g
        return m, v, s, total(gone=way * g * (p0 - p), grown=counts * abs(s))

    @staticmethod
    def combine(
        gone,
        grown,
        d,
        d_max,
        numerator,
        power1,
        power2,
        *,
        beta1,
        beta2,
        beta3,
        d0,
        d_coef,
        growth_rate,
        length,
        wd,
        eps,
        corrected,
    ):
        """Grow the estimate."""
        begun = grown > 0
        numerator = beta3 * numerator + gone if begun else numerator
        found = d_coef * numerator / grown if begun else d
        first = maximum(d, found) if d == d0 else d
        d_max = maximum(d_max, found)
        d = minimum(d_max, first * growth_rate) if begun else d
        if corrected:
            power1 = beta1 * power1 if begun else power1
            power2 = beta2 * power2 if begun else power2
        step = length if begun else 0
        unaveraged = step * d
        decay = 1 - wd * step
        floor = d * eps if begun else 1
        return numerator, d_max, d, power1, power2, step, unaveraged, decay, floor

    @staticmethod
    def update(p, g, m, v, *, step, unaveraged, decay, floor, wd, decouple, averaged):
        """Step one element."""
        if not averaged and not decouple:
            g = g + wd * p
        if decouple:
            p = decay * p
        p = p - (step * m if averaged else unaveraged * g) / (sqrt(v) + floor)
        return p


@dataclass(frozen=True, kw_only=True)
class DAdaptAdam(Rule):
    r"""Adam by D-adaptation: the learning rate is a lower bound of the distance to the solution, which only grows.

    Use `Prodigy`, its successor, which adapts faster; this is the rule that many recipes name. Leave ``lr`` at 1. Two
    sweeps and two sums over all parameters; one estimate d for all groups.

    .. math::

        \ell_t &= d_{t-1}\, \eta, \qquad \gamma = \sqrt{\beta_2} \\
        r_t &= \gamma r_{t-1} + (1 - \gamma)\, \ell_t
               \left\langle g_t, \frac{s_{t-1}}{\sqrt{v_{t-1}} + \epsilon} \right\rangle, \qquad
        s_t = \gamma s_{t-1} + (1 - \gamma)\, \ell_t\, g_t \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, \ell_t\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
        d_t &= \max\!\left(d_{t-1}, \frac{r_t}{(1 - \gamma) \lVert s_t \rVert_1}\right), \qquad
        p_t = p_{t-1} - \frac{m_t}{\sqrt{v_t} + \epsilon}

    ==========  =======================  ==========================================================================
    Symbol      Argument                 Meaning
    ==========  =======================  ==========================================================================
    η           ``lr``                   factor of the estimate, >= 0; groups may differ in it
    β₁, β₂      ``betas``                decay of the two means, each in [0, 1)
    ε           ``eps``                  keeps the denominators from 0, > 0 in effect
    λ           ``weight_decay``         decay, >= 0
    ----------  ``decouple``             p ← (1 - ℓλ) p before the step, instead of λp in the gradient
    ----------  ``use_bias_correction``  ℓ is multiplied by √(1 - β₂ᵏ) / (1 - β₁ᵏ)
    d₀          ``d0``                   first estimate, > 0
    ----------  ``growth_rate``          most by which d grows in a step, >= 1; None: any
    m, v, s     exp_avg, exp_avg_sq, s   states
    ==========  =======================  ==========================================================================

    Notes
    -----
    Scalar states, of all groups together: d, numerator (r); with ``use_bias_correction`` also power1 and power2, the
    β₁ᵏ⁻¹ and β₂ᵏ⁻¹ that the next step takes as k-th from the first gradient that is not zero, so that groups must
    agree in betas. Before that gradient no parameter moves. A group whose η is 0 counts for nothing and stands, states
    too; where it is 0 in all groups everything stands. The reference takes groups of one η only, or 0.

    References
    ----------
    A. Defazio, K. Mishchenko, "Learning-rate-free learning by D-adaptation", arXiv:2301.07733, algorithm 5 (not
    checked); reference implementation facebookresearch/dadaptation ``DAdaptAdam``.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.array([1.0, -1.0])
    >>> opt = fastgd.DAdaptAdam(p)
    >>> for _ in range(500):
    ...     opt.step(2 * (p - 3.0))
    >>> p.round(1)
    array([3., 3.])
    """

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decouple: bool = False
    use_bias_correction: bool = False
    d0: float = 1e-6
    growth_rate: float | None = None
    states: ClassVar[Mapping[str, str]] = {"m": "exp_avg", "v": "exp_avg_sq"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"d0": ABOVE_0, "growth_rate": (1.0, math.inf)}

    def options(self) -> dict[str, object]:
        """Which decay is meant."""
        return dict(decouple=self.decouple, corrected=self.use_bias_correction)

    def init(self) -> dict[str, object]:
        """Start with the first estimate, and no step behind a gradient."""
        powers = dict(power1=1.0, power2=1.0) if self.use_bias_correction else {}
        return dict(d=self.d0, numerator=0.0, **powers)

    def stages(self) -> tuple[str, ...]:
        """Measure how well the gradients agree, then update."""
        return ("measure", "update")

    def prepare(self, t: int) -> dict[str, float]:
        """Give the scalars of step t."""
        b1, b2 = self.betas
        gamma = math.sqrt(b2)
        moves = self.lr > 0  # a group that does not counts for nothing and keeps its states
        return dict(
            lr=self.lr,
            beta1=b1,
            beta2=b2,
            b1=b1 if moves else 1.0,
            rest1=1 - b1,
            b2=b2 if moves else 1.0,
            c2=1 - b2 if moves else 0.0,
            keep=gamma if moves else 1.0,
            counts=float(moves),
            gamma=gamma,
            rest=1 - gamma,
            eps=self.eps,
            wd=self.weight_decay,
            growth_rate=math.inf if self.growth_rate is None else self.growth_rate,
        )

    @staticmethod
    def derive(d, power1, power2, *, lr, beta1, beta2, rest1, rest, corrected):
        """Scale what is added to the moments and the sums by the estimate."""
        length = d * lr
        if corrected:
            length = length * (sqrt(1 - beta2 * power2) / (1 - beta1 * power1))
        c1 = length * rest1
        taken = length * rest
        return length, c1, taken

    @staticmethod
    def measure(p, g, m, v, s, *, b1, c1, b2, c2, keep, taken, counts, length, eps, wd, decouple):
        """Sum how far the gradient agrees with those before it; move the moments and the gradients' sum."""
        if not decouple:
            g = g + wd * p
        agreed = length * g * s / (sqrt(v) + eps)
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        s = keep * s + taken * g
        return m, v, s, total(agreed=agreed, grown=counts * abs(s))

    @staticmethod
    def combine(
        agreed,
        grown,
        d,
        numerator,
        power1,
        power2,
        *,
        beta1,
        beta2,
        gamma,
        rest,
        growth_rate,
        length,
        wd,
        counts,
        corrected,
    ):
        """Grow the estimate."""
        begun = grown > 0
        numerator = gamma * numerator + rest * agreed if begun else numerator
        found = numerator / (rest * grown) if begun else d
        d = maximum(d, minimum(found, d * growth_rate))
        if corrected:
            power1 = beta1 * power1 if begun else power1
            power2 = beta2 * power2 if begun else power2
        moves = counts if begun else 0
        decay = 1 - wd * length if begun else 1
        return numerator, d, power1, power2, moves, decay

    @staticmethod
    def update(p, m, v, *, eps, moves, decay, decouple):
        """Step one element."""
        if decouple:
            p = decay * p
        p = p - moves * m / (sqrt(v) + eps)
        return p
