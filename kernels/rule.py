"""What a rule is, and the plan of sweeps that follows from it."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

from fastgd.kernels.errors import HyperparameterError, RuleError
from fastgd.kernels.language import Level, Sweep, parse
from fastgd.kernels.tail import NAMES, Tail, gradient_norm, with_tail

NON_NEGATIVE = (0.0, math.inf)
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
    returns arrays and ``per_segment(name=term, ...)`` or ``total(...)``, ``combine`` makes scalars of the sums.

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
            count = declared.count(",") + 1
            if not isinstance(value, tuple | list) or len(value) != count:
                raise HyperparameterError(f"{title} must be {count} numbers, given {value!r}")
            return tuple(self._number(title, name, v) for v in value)
        return self._number(title, name, value)

    def _number(self, title: str, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise HyperparameterError(f"{title} must be a number, given {value!r}")
        try:
            number = float(value)
        except OverflowError:  # an int that no float holds
            number = math.inf
        low, bound = self.ranges.get(name, _RANGES.get(name, (-math.inf, math.inf)))
        if not math.isfinite(number) or not low <= number < bound:
            text = (
                "finite" if low == -math.inf else f"at least {low:g}" + (f" and below {bound:g}" * (bound < math.inf))
            )
            raise HyperparameterError(f"{title} must be {text}, given {value!r}")
        return number


NO_TAIL = Tail()


@dataclass(frozen=True)
class Plan:
    """What is run for one set of static options: the sweeps with the tail, and the code between them.

    Attributes
    ----------
    sweeps
        In their order; all but the last return sums.
    combine
        The code between two sweeps, or None.
    states
        Short names of the state arrays.
    scalar_states
        Start values of the scalar states.
    start
        Start of the state arrays that do not start at zero: ``"p"`` or a number.
    """

    sweeps: tuple[Sweep, ...]
    combine: Sweep | None
    states: tuple[str, ...]
    start: Mapping[str, object]
    scalar_states: Mapping[str, float]

    @property
    def level(self) -> Level:
        """Level of the sums that `combine` takes: ``per_segment``, ``total``, or empty without it."""
        return self.sweeps[0].level if self.combine else ""

    def bytes_per_param(self, itemsize: int) -> int:
        """Bytes read and written for each parameter in one step, all sweeps together."""
        return sum(s.bytes_per_element(itemsize) for s in self.sweeps)


def plan(rule: Rule, tail: Tail = NO_TAIL) -> Plan:
    """Check and fold a rule's functions and put the tail around them.

    Raises
    ------
    RuleError
        Where the rule leaves the language or its parts do not fit together.
    """
    title = type(rule).__name__
    stages = rule.stages()
    if stages not in (("update",), ("measure", "update")):
        raise RuleError(f'{title}: stages() must be ("update",) or ("measure", "update"), given {stages!r}')
    options, init = rule.options(), rule.init()
    functions = {name: _function(rule, name) for name in stages}
    arrays = _array_names(functions.values())
    scalar_states = {k: _start(title, k, v) for k, v in init.items() if k not in arrays}
    prepared = set(_prepare(rule, 1, scalar_states))

    combine = None
    given = prepared
    sweeps = []
    if len(stages) == 2:
        sweeps.append(parse(functions["measure"], options, prepared))
        combine = parse(_function(rule, "combine"), options, prepared, combine=True)
        if not sweeps[0].sums:
            raise RuleError(f"{title}: measure must return per_segment(name=term, ...) or total(name=term, ...)")
        unknown = set(combine.arrays) - set(sweeps[0].sums) - set(scalar_states)
        if unknown:
            raise RuleError(
                f"{title}: combine takes `{unknown.pop()}`, which is neither a sum of measure "
                f"({', '.join(sweeps[0].sums)}) nor a scalar state of init(); scalars come behind *"
            )
        given = prepared | set(combine.writes)
    reserved = NAMES & {*arrays, *given, *scalar_states}
    if reserved:
        raise RuleError(f"{title}: `{min(reserved)}` is a name of the fused tail; choose another")
    sweeps.append(parse(functions["update"], options, given))
    if sweeps[-1].sums:
        raise RuleError(f"{title}: update is the last sweep and cannot return sums")
    if "p" not in sweeps[-1].writes:
        raise RuleError(f"{title}: update must return p")

    used = {a for s in sweeps for a in s.arrays}
    return Plan(
        sweeps=with_tail(sweeps, tail),
        combine=combine,
        states=tuple(a for a in arrays if a in used and a not in ("p", "g")),
        start={k: _start(title, k, v, array=True) for k, v in init.items() if k in arrays},
        scalar_states=scalar_states,
    )


def plan_aside(rule: Rule, name: str) -> Plan:
    """Check and fold a sweep beside the step, and put the gradient's factor in front of it.

    Raises
    ------
    RuleError
        Where it leaves the language.
    """
    sweep = parse(_function(rule, rule.asides[name]), rule.options(), set(rule.aside(name)))
    if sweep.sums:
        raise RuleError(f"{type(rule).__name__}: {rule.asides[name]} cannot return sums")
    states = tuple(a for a in sweep.arrays if a not in ("p", "g"))
    return Plan(with_tail([sweep], NO_TAIL), combine=None, states=states, start={}, scalar_states={})


def state_name(rule: Rule, short: str) -> str:
    """Name of a state outside."""
    return rule.states.get(short, short)


def describe(rule: Rule) -> dict[str, Any]:
    """Say what a table of rules shows: states by their outer names, bytes per float32 parameter, options, tails."""
    p = plan(rule)
    return {
        "rule": type(rule).__name__,
        "states": tuple(state_name(rule, s) for s in p.states),
        "bytes": p.bytes_per_param(4),
        "options": tuple(rule.options()),
        "tails": tail_bytes(rule),
        "summary": inspect.cleandoc(type(rule).__doc__ or "").split("\n", 1)[0],
    }


def tail_bytes(rule: Rule) -> dict[str, int]:
    """Bytes per float32 parameter of a step with each part of the tail that costs any, and with all of them.

    Scale, ``maximize`` and ``max_value`` cost none; ``on_nonfinite`` shares its read with ``max_norm``; a lookahead
    costs at each of its own steps what ``ema_decay`` costs at every step.
    """
    norm = gradient_norm().bytes_per_element(4)
    return {
        "max_norm": plan(rule).bytes_per_param(4) + norm,
        "ema_decay": plan(rule, Tail("ema")).bytes_per_param(4),
        "zero_grad": plan(rule, Tail(zero_grad=True)).bytes_per_param(4),
        "all": plan(rule, Tail("ema", zero_grad=True)).bytes_per_param(4) + norm,
    }


def _function(rule: Rule, name: str) -> Any:
    function = getattr(rule, name, None)
    if function is None:
        raise RuleError(f"{type(rule).__name__}: has no static method {name}")
    return function


def _array_names(functions: Any) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for function in functions:
        code = function.__code__
        names |= dict.fromkeys(code.co_varnames[: code.co_argcount])
    return tuple(names)


def _start(title: str, name: str, value: object, *, array: bool = False) -> Any:
    if array and isinstance(value, str) and value == "p":
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        wanted = 'a number or "p"' if array else "a number"
        raise RuleError(f"{title}: init() must give {wanted} for `{name}`, given {value!r}")
    return float(value)


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


def prepare_arguments(cls: type[Rule]) -> tuple[str, ...]:
    """Names of the scalar states that a rule's prepare takes behind t."""
    return tuple(inspect.signature(cls.prepare).parameters)[2:]


def _prepare(rule: Rule, t: int, scalar_states: Mapping[str, float]) -> dict[str, float]:
    taken = prepare_arguments(type(rule))
    missing = set(taken) - set(scalar_states)
    if missing:
        raise RuleError(f"{type(rule).__name__}: prepare takes `{missing.pop()}`, which init() does not start")
    given = rule.prepare(t, **{k: scalar_states[k] for k in taken})
    if not isinstance(given, dict):
        raise RuleError(f"{type(rule).__name__}: prepare must return a dict of numbers, given {given!r}")
    return given
