"""Schedules: values of a hyperparameter that depend on the number of steps taken, and on nothing else.

A schedule is a function ``f(k)`` of the number k of steps already taken, 0 first. It serves any hyperparameter, given
to the constructor or set between steps:

>>> import numpy as np, fastgd
>>> from fastgd.schedules import cosine
>>> opt = fastgd.SGD(np.ones(3), lr=cosine(0.1, 1000, warmup=100))
>>> opt.param_groups[0]["lr"] = cosine(0.2, 1000)

It has no state: a resumed run needs the number of steps only. The functions here make a `Schedule`; any other function
of k will do as well. What they are given is checked when they are called: `HyperparameterError`.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Generic, Literal, TypeVar

from fastgd.checks import checked_choice, checked_flag, checked_number, checked_whole
from fastgd.kernels.errors import HyperparameterError

__all__ = [
    "Schedule",
    "chain",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "each",
    "exponential",
    "inverse_sqrt",
    "linear",
    "multi_step",
    "one_cycle",
    "piecewise",
    "polynomial",
    "sequence",
    "step",
    "swa",
    "warmup_stable_decay",
]

V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])


class Schedule(Generic[V]):
    """A function of the number of steps taken, which can be shown, drawn, copied and pickled.

    Parameters
    ----------
    function : callable
        ``function(k)`` gives the value after k steps, k >= 0. To be pickled it must be found by its name.
    length : int
        Steps that `plot` draws when not told, >= 1.

    Raises
    ------
    HyperparameterError
        At a call, for k that is no whole number or below 0.

    Examples
    --------
    >>> half_life = Schedule(lambda k: 0.1 * 0.5 ** (k / 100), length=500)
    >>> half_life(0), half_life(100)
    (0.1, 0.05)
    """

    def __init__(self, function: Callable[[int], V], length: int = 1000) -> None:
        self.function = function
        self.length = checked_whole("length", length, 1)
        self._made_by: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] = (
            type(self),
            (function, length),
            {},
        )

    def __call__(self, k: int) -> V:
        """Give the value after k steps."""
        return self.function(checked_whole("k", k, 0))

    def __repr__(self) -> str:
        factory, args, kwargs = self._made_by
        return f"{factory.__name__}({', '.join([*map(repr, args), *(f'{n}={v!r}' for n, v in kwargs.items())])})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the call that made the schedule: the function inside has no name to be found by."""
        factory, args, kwargs = self._made_by
        return functools.partial(factory, **kwargs), args

    def plot(self, steps: int | None = None) -> Any:
        """Draw the values of the first steps.

        Parameters
        ----------
        steps : int, optional
            How many, >= 1; by default the length of the schedule, 1000 where it has none.

        Returns
        -------
        matplotlib.figure.Figure
            Not shown; ``.savefig(path)`` writes it.

        Raises
        ------
        ImportError
            Without matplotlib.
        HyperparameterError
            If `steps` is out of range.
        """
        count = self.length if steps is None else checked_whole("steps", steps, 1)
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError('Schedule.plot needs matplotlib: pip install "fastgd[demo]"') from None
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        values: list[Any] = [self(k) for k in range(count)]
        axes.plot(range(count), values)
        axes.set(xlabel="steps taken", ylabel="value", title=repr(self))
        return figure


def _factory(build: F) -> F:
    """Have the schedule remember the call that made it."""

    @functools.wraps(build)
    def make(*args: Any, **kwargs: Any) -> Any:
        frozen = tuple(map(_frozen, args))  # a list may be changed later: the copy would be another schedule
        named = {n: _frozen(v) for n, v in kwargs.items()}
        schedule = build(*frozen, **named)
        schedule._made_by = make, frozen, named
        return schedule

    return make  # type: ignore[return-value]  # of the same signature


def _frozen(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given


def _listed(name: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, tuple | range):  # `_factory` has made a tuple of a list
        raise HyperparameterError(f"{name} must be a list, a tuple or a range, given {given!r}")
    return tuple(given)


def _ascending(name: str, given: Any) -> list[int]:
    """Numbers of steps at which something changes."""
    steps = [checked_whole(f"{name}[{i}]", s, 1) for i, s in enumerate(_listed(name, given))]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise HyperparameterError(f"{name} must rise, given {given!r}")
    return steps


def _part(name: str, given: Any) -> Callable[[int], Any]:
    if callable(given):
        return given  # type: ignore[no-any-return]  # whatever a user gives
    if not isinstance(given, Real):
        raise HyperparameterError(f"{name} must be a number or a function of the steps taken, given {given!r}")
    value = checked_number(name, given)
    return lambda k: value


def _longest(parts: Sequence[Any]) -> int:
    return max((p.length for p in parts if isinstance(p, Schedule)), default=1000)


# ---- arithmetic


def _mix(a: float, b: float, share: float) -> float:
    """Give `share` of a and the rest of b: exactly a at 1 and b at 0."""
    return a * share + b * (1 - share)


def _power(gamma: float, n: int) -> float:
    try:
        return gamma**n
    except OverflowError:  # then the value is refused as not finite by whoever takes it
        return math.inf


# What is left of the way from one value to another when a share of the steps is done.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "sqrt": lambda done: 1 - math.sqrt(done),
}


def _rise_and_fall(
    value: float, steps: int, warmup: int, decay: int | None, end: float, start: float, shape: str
) -> Schedule[float]:
    """Go from start to value, stay, and go to end in the last `decay` steps; in all that are left for None."""
    value, end, start = checked_number("value", value), checked_number("end", end), checked_number("start", start)
    steps = checked_whole("steps", steps, 1)
    warmup = checked_whole("warmup", warmup, 0, steps - 1)
    rest = steps - warmup
    falls = rest if decay is None else checked_whole("decay", decay, 1, rest)
    left = _SHAPES[shape]

    def at(k: int) -> float:
        if k < warmup:
            return _mix(value, start, k / warmup)
        if k <= steps - falls:
            return value
        return end if k >= steps else _mix(value, end, left((k - steps + falls) / falls))

    return Schedule(at, steps)


# ---- one value after another


@_factory
def constant(value: float) -> Schedule[float]:
    """Stay at a value.

    Parameters
    ----------
    value : float
        Any finite number.

    Raises
    ------
    HyperparameterError
        For a value that is no finite number.

    Examples
    --------
    >>> constant(0.1)(7)
    0.1
    """
    value = checked_number("value", value)
    return Schedule(lambda k: value)


@_factory
def step(value: float, every: int, gamma: float = 0.1) -> Schedule[float]:
    """Multiply by gamma after every so many steps: ``value * gamma ** (k // every)``, torch's StepLR.

    Parameters
    ----------
    value : float
        At the start.
    every : int
        Steps between two changes, >= 1.
    gamma : float
        Factor, >= 0.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Examples
    --------
    >>> [step(1.0, 2, gamma=0.5)(k) for k in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    value, gamma = checked_number("value", value), checked_number("gamma", gamma, 0)
    every = checked_whole("every", every, 1)
    return Schedule(lambda k: value * _power(gamma, k // every), 5 * every)


@_factory
def multi_step(value: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule[float]:
    """Multiply by gamma at each milestone, torch's MultiStepLR.

    Parameters
    ----------
    value : float
        At the start.
    milestones : sequence of int
        Numbers of steps taken, >= 1 and rising; from each on the new value holds.
    gamma : float
        Factor, >= 0.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Examples
    --------
    >>> [multi_step(1.0, [1, 4], gamma=0.5)(k) for k in range(6)]
    [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    """
    value, gamma = checked_number("value", value), checked_number("gamma", gamma, 0)
    at = _ascending("milestones", milestones)
    return Schedule(lambda k: value * _power(gamma, bisect_right(at, k)), 2 * at[-1] if at else 1000)


@_factory
def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Schedule[float]:
    """Take one value after another: ``values[i]`` where i boundaries are at or below k.

    Parameters
    ----------
    boundaries : sequence of int
        Numbers of steps taken, >= 1 and rising; from each on the next value holds.
    values : sequence of float
        One more than boundaries.

    Raises
    ------
    HyperparameterError
        For a value out of range, or a wrong number of values.

    Notes
    -----
    torch's ``ConstantLR(factor=a, total_iters=n)`` is ``piecewise([n], [a * value, value])``.

    Examples
    --------
    >>> [piecewise([2, 3], [0.1, 0.5, 1.0])(k) for k in range(5)]
    [0.1, 0.1, 0.5, 1.0, 1.0]
    """
    at = _ascending("boundaries", boundaries)
    taken = [checked_number(f"values[{i}]", v) for i, v in enumerate(_listed("values", values))]
    if len(taken) != len(at) + 1:
        raise HyperparameterError(f"values must be {len(at) + 1}, one more than boundaries, given {len(taken)}")
    return Schedule(lambda k: taken[bisect_right(at, k)], 2 * at[-1] if at else 1000)


# ---- decay


@_factory
def exponential(value: float, gamma: float) -> Schedule[float]:
    """Multiply by gamma at every step: ``value * gamma ** k``, torch's ExponentialLR.

    Parameters
    ----------
    value : float
        At the start.
    gamma : float
        Factor, >= 0; above 1 the value grows, as in a search for the largest useful learning rate.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Examples
    --------
    >>> [exponential(1.0, 0.5)(k) for k in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """
    value, gamma = checked_number("value", value), checked_number("gamma", gamma, 0)
    return Schedule(lambda k: value * _power(gamma, k))


@_factory
def polynomial(value: float, steps: int, power: float = 1.0, end: float = 0.0) -> Schedule[float]:
    """Go from value to end as a power of the steps that are left, then stay; torch's PolynomialLR for end 0.

    ``end + (value - end) * (1 - k / steps) ** power``

    Parameters
    ----------
    value, end : float
        At the start, and from k = steps on.
    steps : int
        Steps from the one to the other, >= 1.
    power : float
        Above 0; 1 is a straight line.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Examples
    --------
    >>> [polynomial(1.0, 4, power=2.0)(k) for k in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    value, end = checked_number("value", value), checked_number("end", end)
    steps = checked_whole("steps", steps, 1)
    power = checked_number("power", power, 0, open_low=True)
    return Schedule(lambda k: _mix(value, end, (max(steps - k, 0) / steps) ** power), steps)


@_factory
def linear(value: float, steps: int, end: float = 0.0, warmup: int = 0, start: float = 0.0) -> Schedule[float]:
    """Go straight from value to end, then stay; before, with a warm-up, straight from start to value.

    Parameters
    ----------
    value : float
        At k = warmup.
    steps : int
        From k = steps on the value is `end`; the warm-up is counted in; >= 1.
    end : float
        The last value.
    warmup : int
        Steps of the warm-up, below `steps`; 0 is none.
    start : float
        Value of the warm-up at k = 0.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Notes
    -----
    torch's ``LinearLR(start_factor=a, end_factor=b, total_iters=n)`` is ``linear(value * a, n, end=value * b)``. A
    warm-up from 0 takes its first step with 0; ``start=value / warmup`` does not waste it.

    References
    ----------
    Warm-up: P. Goyal et al., "Accurate, large minibatch SGD", arXiv:1706.02677, section 2.2.

    Examples
    --------
    >>> [linear(1.0, 6, warmup=2)(k) for k in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return _rise_and_fall(value, steps, warmup, None, end, start, "linear")


@_factory
def cosine(value: float, steps: int, end: float = 0.0, warmup: int = 0, start: float = 0.0) -> Schedule[float]:
    """Go from value to end along half a cosine, then stay; before, with a warm-up, straight from start to value.

    ``end + (value - end) * (1 + cos(pi * (k - warmup) / (steps - warmup))) / 2``

    Parameters
    ----------
    value : float
        At k = warmup.
    steps : int
        From k = steps on the value is `end`; the warm-up is counted in; >= 1.
    end : float
        The last value.
    warmup : int
        Steps of the warm-up, below `steps`; 0 is none.
    start : float
        Value of the warm-up at k = 0.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Notes
    -----
    torch's CosineAnnealingLR is the same up to k = steps, and rises again behind it.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", arXiv:1608.03983, equation 5.

    Examples
    --------
    >>> [round(cosine(1.0, 6, warmup=2)(k), 3) for k in range(8)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    return _rise_and_fall(value, steps, warmup, None, end, start, "cosine")


@_factory
def warmup_stable_decay(
    value: float,
    steps: int,
    warmup: int,
    decay: int,
    end: float = 0.0,
    start: float = 0.0,
    shape: Literal["linear", "cosine", "sqrt"] = "linear",
) -> Schedule[float]:
    """Warm up, stay, and go to end in the last steps: training may be prolonged from any point before these.

    Parameters
    ----------
    value : float
        From k = warmup to ``steps - decay``.
    steps : int
        From k = steps on the value is `end`; >= 1.
    warmup : int
        Steps of the straight way from `start`, below `steps`; 0 is none.
    decay : int
        Steps of the way to `end`, at least 1 and at most ``steps - warmup``.
    end, start : float
        The last value, and that at k = 0 with a warm-up.
    shape : {"linear", "cosine", "sqrt"}
        Of the decay: a straight line, half a cosine, or ``end + (value - end) * (1 - sqrt(share))``, where share is
        the part of the decay that is done.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    References
    ----------
    S. Hu et al., "MiniCPM", arXiv:2404.06395, section 4; "sqrt": A. Hägele et al., "Scaling laws and
    compute-optimal training beyond fixed training durations", arXiv:2405.18392, section 3.

    Examples
    --------
    >>> [warmup_stable_decay(1.0, 8, warmup=2, decay=4)(k) for k in range(10)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    checked_choice("shape", shape, _SHAPES)
    return _rise_and_fall(value, steps, warmup, checked_whole("decay", decay, 1), end, start, shape)


@_factory
def inverse_sqrt(value: float, warmup: int, start: float = 0.0) -> Schedule[float]:
    """Go straight from start to value, then down by the root of the steps: ``value * sqrt(warmup / k)``.

    Parameters
    ----------
    value : float
        At k = warmup.
    warmup : int
        Steps of the warm-up, >= 1.
    start : float
        At k = 0.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", arXiv:1706.03762, equation 3, where value is
    ``1 / sqrt(d_model * warmup)``.

    Examples
    --------
    >>> [inverse_sqrt(1.0, 4)(k) for k in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    value, start = checked_number("value", value), checked_number("start", start)
    warmup = checked_whole("warmup", warmup, 1)
    return Schedule(
        lambda k: _mix(value, start, k / warmup) if k < warmup else value * math.sqrt(warmup / k), 10 * warmup
    )


# ---- cycles


@_factory
def cosine_restarts(value: float, period: int, factor: int = 1, end: float = 0.0) -> Schedule[float]:
    """Go from value towards end along half a cosine, again and again; torch's CosineAnnealingWarmRestarts.

    Parameters
    ----------
    value, end : float
        At the start of each cycle, and where the next would begin.
    period : int
        Steps of the first cycle, >= 1.
    factor : int
        Each cycle is so many times as long as the one before, >= 1.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", arXiv:1608.03983.

    Examples
    --------
    >>> [round(cosine_restarts(1.0, 2, factor=2)(k), 3) for k in range(8)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0, 0.962]
    """
    value, end = checked_number("value", value), checked_number("end", end)
    period, factor = checked_whole("period", period, 1), checked_whole("factor", factor, 1)

    def at(k: int) -> float:
        length = period
        if factor == 1:
            k %= period
        while k >= length:  # whole numbers are exact, and a logarithm is not; 40 cycles at most reach k = 10**12
            k -= length
            length *= factor
        return _mix(value, end, _SHAPES["cosine"](k / length))

    return Schedule(at, period * (1 + factor + factor**2))


@_factory
def one_cycle(
    peak: float,
    steps: int,
    pct_start: float = 0.3,
    anneal: Literal["cosine", "linear"] = "cosine",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule[float]:
    """Rise to a peak and fall far below the start in one cycle over all of training; torch's OneCycleLR.

    From ``peak / div_factor`` to the peak at ``pct_start * steps - 1``, and to the start divided by
    `final_div_factor` at ``steps - 1``, where it stays.

    Parameters
    ----------
    peak : float
        The largest value.
    steps : int
        Steps of the training, >= 2.
    pct_start : float
        Share of the steps in which the value rises. The peak must lie behind the first step, and where the last phase
        begins not behind the last.
    anneal : {"cosine", "linear"}
        Half a cosine or a straight line.
    div_factor, final_div_factor : float
        Above 0.
    three_phase : bool
        Fall to the start as long as it rose, and only then to the end.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    References
    ----------
    L. N. Smith and N. Topin, "Super-convergence", arXiv:1708.07120.

    Examples
    --------
    >>> [round(one_cycle(1.0, 10, anneal="linear", div_factor=5.0)(k), 3) for k in range(10)]
    [0.2, 0.6, 1.0, 0.857, 0.714, 0.571, 0.429, 0.286, 0.143, 0.0]

    The momentum goes the other way with factors below and at 1, here from 0.95 to 0.85 and back as torch has it:

    >>> momentum = one_cycle(0.85, 100, div_factor=0.85 / 0.95, final_div_factor=1.0)
    >>> [round(momentum(k), 3) for k in (0, 29, 99)]
    [0.95, 0.85, 0.95]
    >>> import numpy as np, fastgd
    >>> opt = fastgd.SGD(np.ones(3), lr=one_cycle(0.1, 100), momentum=momentum)
    >>> opt = fastgd.Adam(np.ones(3), lr=one_cycle(0.1, 100), betas=each(momentum, 0.999))
    """
    peak, steps = checked_number("peak", peak), checked_whole("steps", steps, 2)
    start = peak / checked_number("div_factor", div_factor, 0, open_low=True)
    end = start / checked_number("final_div_factor", final_div_factor, 0, open_low=True)
    left = _SHAPES[checked_choice("anneal", anneal, ("cosine", "linear"))]
    checked_flag("three_phase", three_phase)
    share = checked_number("pct_start", pct_start)
    up = share * steps - 1
    turns = [0.0, up, 2 * share * steps - 2, steps - 1] if three_phase else [0.0, up, steps - 1]
    if not 0 < up <= turns[-2] <= steps - 1:
        most = (steps + 1) / (2 * steps) if three_phase else 1.0
        raise HyperparameterError(
            f"pct_start must be above 1 / steps = {1 / steps:g} and at most {most:g}, given {pct_start!r}"
        )
    values = [start, peak, start, end] if three_phase else [start, peak, end]

    def at(k: int) -> float:
        k = min(k, steps - 1)
        i = max(1, bisect_left(turns, k))
        return _mix(values[i - 1], values[i], left((k - turns[i - 1]) / (turns[i] - turns[i - 1])))

    return Schedule(at, steps)


@_factory
def cyclic(
    low: float,
    high: float,
    up: int,
    down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
) -> Schedule[float]:
    """Go straight from low to high and back, again and again; torch's CyclicLR.

    Parameters
    ----------
    low, high : float
        At the start and at the turn of each cycle. `high` may be below `low`, as for a momentum.
    up, down : int
        Steps of the two ways, >= 1; `down` is by default as `up`.
    mode : {"triangular", "triangular2", "exp_range"}
        Every cycle of the same height; of half the height of the one before; or with the height multiplied by
        ``gamma ** k``.
    gamma : float
        For "exp_range", >= 0; for the others 1.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    References
    ----------
    L. N. Smith, "Cyclical learning rates for training neural networks", arXiv:1506.01186.

    Examples
    --------
    >>> [cyclic(0.0, 1.0, 2, mode="triangular2")(k) for k in range(8)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]
    """
    low, high = checked_number("low", low), checked_number("high", high)
    up = checked_whole("up", up, 1)
    back = up if down is None else checked_whole("down", down, 1)
    checked_choice("mode", mode, ("triangular", "triangular2", "exp_range"))
    gamma = checked_number("gamma", gamma, 0)
    if gamma != 1 and mode != "exp_range":
        raise HyperparameterError(f"gamma must be 1 unless mode is 'exp_range', given {gamma!r} with {mode!r}")

    def at(k: int) -> float:
        cycle, place = divmod(k, up + back)
        height = place / up if place <= up else (up + back - place) / back
        return low + (high - low) * height * (_power(0.5, cycle) if mode == "triangular2" else _power(gamma, k))

    return Schedule(at, 3 * (up + back))


# ---- of other schedules


@_factory
def chain(*schedules: float | Callable[[int], float]) -> Schedule[float]:
    """Multiply schedules; torch's ChainedScheduler, where all but one have a value of 1.

    Parameters
    ----------
    *schedules : float or callable
        At least one.

    Raises
    ------
    HyperparameterError
        For none, and for one that is neither.

    Examples
    --------
    >>> warm = chain(linear(0.0, 4, end=1.0), step(8.0, 3, gamma=0.5))
    >>> [warm(k) for k in range(7)]
    [0.0, 2.0, 4.0, 3.0, 4.0, 4.0, 2.0]
    """
    if not schedules:
        raise HyperparameterError("chain must be given at least one schedule, given none")
    parts = [_part(f"schedules[{i}]", s) for i, s in enumerate(schedules)]
    return Schedule(lambda k: math.prod(part(k) for part in parts), _longest(schedules))


@_factory
def sequence(schedules: Sequence[Any], milestones: Sequence[int]) -> Schedule[Any]:
    """Follow one schedule after another, each counted from its own start; torch's SequentialLR.

    Parameters
    ----------
    schedules : sequence of float or callable
        One more than milestones.
    milestones : sequence of int
        Numbers of steps taken, >= 1 and rising; from each on the next schedule holds.

    Raises
    ------
    HyperparameterError
        For a value out of range, or a wrong number of schedules.

    Examples
    --------
    >>> then = sequence([0.1, linear(1.0, 4)], [2])
    >>> [then(k) for k in range(7)]
    [0.1, 0.1, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    parts = [_part(f"schedules[{i}]", s) for i, s in enumerate(_listed("schedules", schedules))]
    at = _ascending("milestones", milestones)
    if len(parts) != len(at) + 1:
        raise HyperparameterError(f"schedules must be {len(at) + 1}, one more than milestones, given {len(parts)}")
    starts = [0, *at]

    def of(k: int) -> Any:
        i = bisect_right(at, k)
        return parts[i](k - starts[i])

    return Schedule(of, starts[-1] + _longest(schedules[-1:]))


@_factory
def each(*parts: float | Callable[[int], float]) -> Schedule[Any]:
    """Give the values of a hyperparameter of several numbers, as `betas`, each by its own schedule.

    Parameters
    ----------
    *parts : float or callable
        One for each number, at least one.

    Returns
    -------
    Schedule
        Of tuples of float.

    Raises
    ------
    HyperparameterError
        For none, and for one that is neither.

    Examples
    --------
    >>> betas = each(linear(0.85, 100, end=0.95), 0.999)
    >>> betas(0), betas(100)
    ((0.85, 0.999), (0.95, 0.999))
    """
    if not parts:
        raise HyperparameterError("each must be given at least one part, given none")
    functions = [_part(f"parts[{i}]", p) for i, p in enumerate(parts)]
    return Schedule(lambda k: tuple(f(k) for f in functions), _longest(parts))


@_factory
def swa(start: int, every: int = 1) -> Schedule[float]:
    """Give the `ema_decay` with which the average is the plain mean of parameters, stochastic weight averaging.

    The mean is of the parameters after steps start, start + every, start + 2 every and so on: the nth of these, 0
    first, has the decay ``n / (n + 1)``. All other steps have 1, which leaves the average as it is.

    Parameters
    ----------
    start : int
        First step whose result is averaged, >= 1: step t is the one taken at k = t - 1. Before, the average is what
        it was at the beginning.
    every : int
        Steps between two averaged ones, >= 1.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    References
    ----------
    P. Izmailov et al., "Averaging weights leads to wider optima and better generalization", arXiv:1803.05407,
    algorithm 1.

    Examples
    --------
    >>> [swa(3, every=2)(k) for k in range(6)]
    [1.0, 1.0, 0.0, 1.0, 0.5, 1.0]
    """
    start, every = checked_whole("start", start, 1), checked_whole("every", every, 1)

    def at(k: int) -> float:
        n, between = divmod(k + 1 - start, every)
        return 1.0 if n < 0 or between else n / (n + 1)

    return Schedule(at, start + 10 * every)
