"""The plan of sweeps that follows from a rule, for one set of static options and one tail."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from fastgd.kernels.errors import RuleError
from fastgd.kernels.language import Level, Sweep, joined, names_in, parse
from fastgd.kernels.matrix import MatrixRule, MatrixUpdate, parse_matrix
from fastgd.kernels.rule import Rule, fallback_of, prepare_arguments, state_name
from fastgd.kernels.tail import NAMES, REPORTED, Tail, dry_run, gradient_norm, with_tail

NO_TAIL = Tail()
SIZE = "size"
"""What `combine` may take beside sums and scalar states: how many elements were summed over."""


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
    matrix
        What is run instead of sweeps, of a matrix rule; otherwise None.
    derive
        The code in front of the first of two sweeps, which makes scalars of scalar states, or None.
    """

    sweeps: tuple[Sweep, ...]
    combine: Sweep | None
    states: tuple[str, ...]
    start: Mapping[str, object]
    scalar_states: Mapping[str, float]
    matrix: MatrixUpdate | None = None
    derive: Sweep | None = None

    @property
    def level(self) -> Level:
        """Level of the sums that `combine` takes: ``per_segment``, ``total``, or empty without it."""
        return self.sweeps[0].level if self.combine else ""

    @property
    def shared(self) -> tuple[str, ...]:
        """Scalars that make a scalar state of all groups together, in which groups therefore must agree."""
        if self.combine is None or self.level != "total":
            return ()
        functions = [f for f in (self.derive, self.combine) if f is not None]
        derived = self.derive.writes if self.derive else {}
        scalars = dict.fromkeys(s for f in functions for s in f.scalars if s not in derived)
        made_of: dict[str, set[str]] = {s: {s} for s in scalars}
        for name, expression in (statement for f in functions for statement in f.statements):
            made_of[name] = set().union(*(made_of.get(n, set()) for n in names_in(expression)))
        feeding = set().union(*(made_of.get(state, set()) for state in self.scalar_states))
        return tuple(s for s in scalars if s in feeding)

    @property
    def functions(self) -> tuple[Sweep, ...]:
        """Sweeps, and the code between them, in the order of a step."""
        if self.combine is None:
            return self.sweeps
        first, last = self.sweeps
        return (*((self.derive,) if self.derive else ()), first, self.combine, last)

    @property
    def given(self) -> tuple[str, ...]:
        """Scalars that code between the sweeps, or a sweep behind such code, has of `prepare`."""
        if self.combine is None:
            return ()
        derived = self.derive.writes if self.derive else {}
        wanted = dict.fromkeys((*self.combine.scalars, *self.sweeps[-1].scalars))
        if self.derive is not None:
            wanted |= dict.fromkeys((*self.derive.scalars, *self.sweeps[0].scalars))
        return tuple(n for n in wanted if n not in derived and n not in self.combine.writes)

    @property
    def summed_states(self) -> tuple[str, ...]:
        """Scalar states that `combine` takes or gives; the others are of groups."""
        of_sums = {*self.combine.arrays, *self.combine.writes} if self.combine else set()
        return tuple(n for n in self.scalar_states if n in of_sums)

    @property
    def steps(self) -> tuple[Sweep | MatrixUpdate, ...]:
        """What a step runs, in its order."""
        return self.sweeps if self.matrix is None else (self.matrix,)

    def bytes_per_param(self, itemsize: int) -> int:
        """Bytes read and written for each parameter in one step, all sweeps together."""
        return sum(self.bytes_by_sweep(itemsize))

    def bytes_by_sweep(self, itemsize: int) -> tuple[int, ...]:
        """Bytes read and written for each parameter, sweep by sweep; of a matrix rule, the least that it could move."""
        return tuple(s.bytes_per_element(itemsize) for s in self.steps)

    def state_shape(self, short: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of a state of an array of this shape; None where it has no such state."""
        if short not in self.states:
            return None
        return shape if self.matrix is None else self.matrix.rule.state_shape(short, shape)

    def dry(self) -> Plan:
        """Give the plan of a step that stores nothing and sums what a report needs."""
        if self.matrix is not None:
            return replace(self, matrix=replace(self.matrix, sums=REPORTED))
        return replace(self, sweeps=dry_run(self.sweeps))


def plan(rule: Rule, tail: Tail = NO_TAIL) -> Plan:
    """Check and fold a rule's functions and put the tail around them.

    Raises
    ------
    RuleError
        Where the rule leaves the language or its parts do not fit together.
    """
    if rule.asides and fallback_of(rule) is not None:
        raise RuleError(f"{type(rule).__name__}: has sweeps beside the step and a fallback, which has none")
    if isinstance(rule, MatrixRule):
        return _plan_matrix(rule, tail)
    title = type(rule).__name__
    stages = rule.stages()
    if stages not in (("update",), ("measure", "update")):
        raise RuleError(f'{title}: stages() must be ("update",) or ("measure", "update"), given {stages!r}')
    options, init = rule.options(), rule.init()
    functions = {name: _function(rule, name) for name in stages}
    arrays = _array_names(functions.values())
    scalar_states = {k: _start(title, k, v) for k, v in init.items() if k not in arrays}
    prepared = set(_prepare(rule, 1, scalar_states))

    _refuse_both(title, arrays, prepared)
    combine = derive = None
    given = prepared
    sweeps = []
    if len(stages) == 2:
        derive = _derive(rule, options, prepared)
        given = prepared | set(derive.writes if derive else ())
        sweeps.append(parse(functions["measure"], options, given))
        combine = parse(_function(rule, "combine"), options, given, combine=True)
        if not sweeps[0].sums:
            raise RuleError(f"{title}: measure must return per_segment(name=term, ...) or total(name=term, ...)")
        available = {*sweeps[0].terms, *scalar_states, SIZE}
        combine = _without_folded(combine, available)
        unknown = set(combine.arrays) - available
        if unknown:
            raise RuleError(
                f"{title}: combine takes `{unknown.pop()}`, which is neither a sum of measure "
                f"({', '.join(sweeps[0].terms)}), nor {SIZE}, nor a scalar state of init(); scalars come behind *"
            )
        if SIZE in {*sweeps[0].terms, *scalar_states}:
            raise RuleError(f"{title}: `{SIZE}` is the number of elements that are summed over; choose another name")
        given = given | set(combine.writes)
        if overridden := set(combine.writes) & set(sweeps[0].scalars):
            raise RuleError(
                f"{title}: combine returns `{min(overridden)}`, which measure has of prepare() or derive; rename one"
            )
        kept = {*combine.arrays, *combine.writes} & set(scalar_states)
        if both := kept & set(prepare_arguments(type(rule))):
            raise RuleError(
                f"{title}: prepare takes `{min(both)}`, which combine has where the sums are: take it in derive, which "
                "runs there too, in front of measure"
            )
        if derive is not None:
            taken = {*arrays, *prepared, *available, *combine.writes}
            _check_derive(title, derive, kept, taken, sweeps[0].level)
        combine = joined(combine, sweeps[0])
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
        derive=derive,
    )


def _without_folded(combine: Sweep, available: set[str]) -> Sweep:
    """Drop results that static options leave without an assignment and that init() does not start either."""
    kept = available | {name for name, _ in combine.statements}
    writes = {name: holder for name, holder in combine.writes.items() if name in kept}
    used = set().union(*(names_in(e) for _, e in combine.statements), writes.values())
    return replace(combine, arrays=tuple(a for a in combine.arrays if a in used), writes=writes)


def _derive(rule: Rule, options: Mapping[str, object], prepared: set[str]) -> Sweep | None:
    if not hasattr(rule, "derive"):
        return None
    return parse(_function(rule, "derive"), options, prepared, combine=True)


def _check_derive(title: str, derive: Sweep, kept: set[str], taken: set[str], level: Level) -> None:
    if level != "total":
        raise RuleError(f"{title}: derive makes the scalars of groups, and measure sums per_segment: sum in total")
    if unknown := set(derive.arrays) - kept:
        raise RuleError(
            f"{title}: derive takes `{min(unknown)}`, which is no scalar state that combine takes or returns; scalars "
            "come behind *"
        )
    if both := set(derive.writes) & taken:
        raise RuleError(f"{title}: derive returns `{min(both)}`, which is another's name already; rename one")


def _plan_matrix(rule: MatrixRule, tail: Tail) -> Plan:
    title = type(rule).__name__
    if taken := prepare_arguments(type(rule)):
        raise RuleError(f"{title}: prepare takes `{taken[0]}`, but a matrix rule keeps no numbers from step to step")
    prepared = set(_prepare(rule, 1, {}))
    update = replace(parse_matrix(rule, prepared), tail=tail)
    _refuse_both(title, (*update.arrays, *update.absent), prepared)
    reserved = NAMES & {*update.arrays, *update.absent, *update.scalars}
    if reserved:
        raise RuleError(f"{title}: `{min(reserved)}` is a name of the fused tail; choose another")
    init = rule.init()
    unknown = init.keys() - {*update.states, *update.absent}
    if unknown:
        raise RuleError(f"{title}: init() starts `{min(unknown)}`, which is no array that update takes")
    start = {k: _start(title, k, v, array=True) for k, v in init.items() if k in update.states}
    return Plan((), combine=None, states=update.states, start=start, scalar_states={}, matrix=update)


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


def describe(rule: Rule) -> dict[str, Any]:
    """Say what a table of rules shows: states by their outer names, bytes per float32 parameter, options, tails.

    ``moved`` is the bytes as text: of a norm rule those of its two sweeps too, of a matrix rule the least there can be.
    """
    p = plan(rule)
    return {
        "rule": type(rule).__name__,
        "states": tuple(state_name(rule, s) for s in p.states),
        "bytes": p.bytes_per_param(4),
        "moved": _moved(p),
        "options": tuple(rule.options()),
        "tails": tail_bytes(rule),
        "summary": inspect.cleandoc(type(rule).__doc__ or "").split("\n", 1)[0],
    }


def _moved(planned: Plan) -> str:
    sweeps = planned.bytes_by_sweep(4)
    least = "" if planned.matrix is None else ">= "
    return f"{least}{sum(sweeps)}" + (f" ({' + '.join(map(str, sweeps))})" if len(sweeps) > 1 else "")


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


def _refuse_both(title: str, arrays: Iterable[str], prepared: Iterable[str]) -> None:
    both = set(arrays) & set(prepared)
    if both:
        raise RuleError(
            f"{title}: `{min(both)}` stands in front of *, as an array does, and prepare() gives it as a number"
        )


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


def _prepare(rule: Rule, t: int, scalar_states: Mapping[str, float]) -> dict[str, float]:
    taken = prepare_arguments(type(rule))
    missing = set(taken) - set(scalar_states)
    if missing:
        raise RuleError(f"{type(rule).__name__}: prepare takes `{missing.pop()}`, which init() does not start")
    given = rule.prepare(t, **{k: scalar_states[k] for k in taken})
    if not isinstance(given, dict):
        raise RuleError(f"{type(rule).__name__}: prepare must return a dict of numbers, given {given!r}")
    return given
