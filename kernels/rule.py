"""What a rule is: hyperparameters with their ranges, and arithmetic."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, ClassVar

from fastgd.kernels.errors import HyperparameterError

NON_NEGATIVE = (0.0, math.inf)
ABOVE_0 = (math.ulp(0.0), math.inf)
FRACTION = (0.0, 1.0)  # 1 excluded
_RANGES = {
    "lr": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "eps": NON_NEGATIVE,
    "betas": FRACTION,
    "momentum": FRACTION,
}


class Rule:
    """An update rule: an immutable value of hyperparameters, and arithmetic in the rule language.

    Subclass it as a frozen, keyword-only dataclass whose fields are the hyperparameters, and give it a static method
    ``update``. Its signature is the declaration: after ``p, g`` the state arrays, after ``*`` the scalars; the names
    of arrays it returns are written. A rule with ``stages`` ``("measure", "update")`` has two sweeps: ``measure``
    returns arrays and ``per_segment(name=term, ...)`` or ``total(...)``, ``combine`` makes scalars of the sums; it may
    also take ``size``, the number of elements that were summed over. Of scalar states that ``combine`` takes or returns
    with sums in total, ``derive(states..., *, scalars)`` makes scalars in front of ``measure``: `prepare` cannot, for
    these states may lie on a GPU.

    Attributes
    ----------
    states : dict of str to str
        Names of the state arrays outside, by their short names inside; a name that is missing stands for itself.
    ranges : dict of str to (float, float)
        Lowest value and bound of a hyperparameter, where it differs from the range its name implies: `lr`,
        `weight_decay` and `eps` at least 0, `betas` and `momentum` in [0, 1). A finite bound is excluded.
    choices : dict of str to tuple of str
        Values that a hyperparameter of words may take.
    asides : dict of str to str
        Sweeps beside the step, by their names the static methods; `aside` gives their scalars. ``"hessian"`` is run
        by ``opt.update_hessian(gradient)``, ``"eval"`` and ``"train"`` by the calls of these names.

    Raises
    ------
    HyperparameterError
        At construction, for a value of the wrong type, not finite, or outside its range.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Descent(Rule):
    ...     lr: float = 0.1
    ...     def prepare(self, t):
    ...         return dict(lr=self.lr)
    ...     @staticmethod
    ...     def update(p, g, *, lr):
    ...         p = p - lr * g
    ...         return p
    >>> Descent(lr=0.5)
    Descent(lr=0.5)
    """

    states: ClassVar[Mapping[str, str]] = {}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    asides: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        """Check every hyperparameter and bring it to a plain Python value."""
        for f in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            declared = f.type.__name__ if isinstance(f.type, type) else str(f.type)
            value = self._checked(f.name, declared.strip(), getattr(self, f.name))
            object.__setattr__(self, f.name, value)
        self.check()

    def check(self) -> None:
        """Refuse combinations of hyperparameters that make no sense; each alone is in its range."""

    def options(self) -> dict[str, object]:
        """Give the static choices, by the names that the sweeps ask for; they are folded before compilation."""
        return {}

    def init(self) -> dict[str, object]:
        """Say what does not start at zero.

        For a state array ``"p"`` (a copy) or a number. A number under a name that is no array is a scalar state, in
        float64.
        """
        return {}

    def stages(self) -> tuple[str, ...]:
        """Names of the sweeps in their order."""
        return ("update",)

    def serves(self, shape: tuple[int, ...]) -> bool:
        """Whether the rule updates an array of this shape; one that it does not goes to its ``fallback``, a rule."""
        return True

    def prepare(self, t: int) -> dict[str, float]:
        """Compute, in float64, the scalars of step `t` (from 1), and the new scalar states it took as arguments."""
        raise NotImplementedError(f"{type(self).__name__} has no prepare(self, t)")

    def aside(self, name: str) -> dict[str, float]:
        """Compute, in float64, the scalars of a sweep beside the step."""
        raise NotImplementedError(f"{type(self).__name__} has no aside(self, name)")

    @classmethod
    def hyperparameters(cls) -> tuple[str, ...]:
        """Names of the hyperparameters, in the order of the constructor."""
        return tuple(f.name for f in fields(cls) if f.init)  # type: ignore[arg-type]

    def _checked(self, name: str, declared: str, value: Any) -> Any:
        title = f"{type(self).__name__}: {name}"
        if value is None and "None" in declared:
            return None
        if declared.startswith("bool"):
            if type(value) is not bool:
                raise HyperparameterError(f"{title} must be True or False, given {value!r}")
            return value
        if declared.startswith("str"):
            if value not in self.choices.get(name, (value,)):
                raise HyperparameterError(
                    f"{title} must be one of {', '.join(map(repr, self.choices[name]))}, given {value!r}"
                )
            return value
        if declared.startswith("tuple"):
            kinds = [kind.strip() for kind in declared.partition("[")[2].rpartition("]")[0].split(",")]
            if not isinstance(value, tuple | list) or len(value) != len(kinds):
                raise HyperparameterError(f"{title} must be {len(kinds)} numbers, given {value!r}")
            return tuple(self._checked(name, kind, v) for kind, v in zip(kinds, value, strict=True))
        if declared.startswith("Rule"):
            return self._rule(title, value)
        number = self._number(title, name, value)
        if declared.startswith("int"):
            if number != int(number):
                raise HyperparameterError(f"{title} must be a whole number, given {value!r}")
            return int(number)
        return number

    def _rule(self, title: str, value: Any) -> Rule:
        if not isinstance(value, Rule):
            raise HyperparameterError(
                f"{title} must be a rule such as fastgd.kernels.rules.AdamW(lr=1e-3), given {value!r}"
            )
        if value.asides or fallback_of(value) is not None:
            raise HyperparameterError(
                f"{title} must be a rule with nothing beside its step and no fallback of its own, given {value!r}"
            )
        return value

    def _number(self, title: str, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise HyperparameterError(f"{title} must be a number, given {value!r}")
        try:
            number = float(value)
        except OverflowError:  # an int that no float holds
            number = math.inf
        low, bound = self.ranges.get(name, _RANGES.get(name, (-math.inf, math.inf)))
        if not math.isfinite(number) or not low <= number < bound:
            least = "above 0" if (low, bound) == ABOVE_0 else f"at least {low:g}"
            text = "finite" if low == -math.inf else least + f" and below {bound:g}" * (bound < math.inf)
            text = f"finite and {text}" if number == math.inf == bound and low > -math.inf else text
            raise HyperparameterError(f"{title} must be {text}, given {value!r}")
        return number


def fallback_of(rule: Rule) -> Rule | None:
    """Rule for the arrays that a rule does not serve, if it has one."""
    found: Rule | None = getattr(rule, "fallback", None)
    return found


def fixed(rule: Rule) -> dict[str, object]:
    """Give what a change of values must leave as it is: static options, and the fallback with its own."""
    fallback = fallback_of(rule)
    chosen = {} if fallback is None else {"fallback": (type(fallback).__name__, fallback.options())}
    return rule.options() | chosen


def state_name(rule: Rule, short: str) -> str:
    """Name of a state outside."""
    return rule.states.get(short, short)


def prepare_arguments(cls: type[Rule]) -> tuple[str, ...]:
    """Names of the scalar states that a rule's prepare takes behind t."""
    return tuple(inspect.signature(cls.prepare).parameters)[2:]


def step_number(t: Any, title: str) -> int:
    """Take the number of a step, from 1, that a caller counts himself.

    Raises
    ------
    HyperparameterError
        If it is none.
    """
    try:
        number = operator.index(t)
    except TypeError:
        number = 0
    if not 1 <= number < 2**53 or isinstance(t, bool):
        shape = getattr(t, "shape", ())
        given = f"an array of shape {shape}" if shape else repr(t)
        raise HyperparameterError(f"{title}: t must be the number of the step being taken, from 1, given {given}")
    return number
