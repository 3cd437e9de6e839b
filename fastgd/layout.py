"""All that hangs on an optimizer's parameters and their groups: launches, states, the average, the gradient's check."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastgd.accumulation import Accumulator
from fastgd.backend import Maker
from fastgd.gradient import GradientCheck
from fastgd.groups import Changes, Group
from fastgd.health import DryRun
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.plan import plan, plan_aside
from fastgd.kernels.rule import Rule, fallback_of, fixed
from fastgd.memory import copy_into, work_where
from fastgd.program import Program
from fastgd.settings import Settings
from fastgd.state_arrays import StateArray, lay_out_states
from fastgd.targets import Arrays, Targets

log = logging.getLogger("fastgd")


@dataclass(frozen=True)
class Terms:
    """What holds for every group, whenever it joins.

    Attributes
    ----------
    rule
        With the values of groups that have none of their own.
    schedules
        Of those values, by name.
    settings
        The tail.
    make
        Makes sweeps on the backend.
    changes
        Told when a group's value is set.
    """

    rule: Rule
    schedules: Mapping[str, Callable[[int], Any]]
    settings: Settings
    make: Maker
    changes: Changes


class Layout:
    """Parameters in their groups, and what a step needs for them; made anew, in one piece, when a group is added.

    Attributes
    ----------
    params
        The parameters as given.
    groups : tuple of Group
    rules : list of Rule
        Of each group, with its hyperparameters as of the last step.
    options : list of dict
        What of each group's rule is fixed: see `fastgd.kernels.rule.fixed`.
    started_at : list of int
        Value of the optimizer's t at which a group had taken no step.
    counted_from : int
        Value of t at which the sweeps had not run.
    targets : Targets
    programs : tuple of Program
        Under the tail that moves the average, and under the one that does not, where there are both.
    program : Program
        That of the next step.
    states : dict of str to StateArray
        By their outer names.
    ema
        The average in the form of params, or None.
    average : Arrays or None
        Its arrays.
    check : GradientCheck or None
    accumulator : Accumulator or None
        Made when it is needed, as is `dry_run`.
    dry_run : DryRun or None
    """

    def __init__(
        self,
        terms: Terms,
        params: Any,
        groups: Sequence[Group],
        rules: list[Rule],
        targets: Targets,
        started_at: list[int],
        before: Layout | None = None,
        t: int = 0,
    ) -> None:
        self._terms = terms
        self.params = params
        self.groups = tuple(groups)
        self.rules = rules
        self.options = [fixed(rule) for rule in rules]
        self.started_at = started_at
        self.counted_from = t
        self.targets = targets
        settings = terms.settings
        self.programs = tuple(Program(rules, partial(plan, tail=tail), targets, terms.make) for tail in settings.tails)
        self.program = self.programs[0]
        self.states = self._started_states(before)
        self._bound_states = {name: state.arrays for name, state in self.states.items()}
        self._copies: list[Any] = []  # the average, a form for each group with parameters
        self.ema: Any = None
        self.average: Arrays | None = None
        if settings.averages:
            self._copies = targets.copies(before._copies if before else ())
            self.ema, self.average = targets.of_copies(self._copies)
            targets.take("ema", self.average.arrays)
            self.program.bind("ema", self.average)
        for program in self.programs:
            program.bind("p", targets.parameters)
            program.bind_states(self._bound_states)
            program.share_scalars(self.program)
        self.check: GradientCheck | None = None
        if settings.max_norm is not None or settings.on_nonfinite != "propagate":
            self.check = GradientCheck(targets, terms.make, settings.max_norm, settings.on_nonfinite)
        self.accumulator: Accumulator | None = None
        self.dry_run: DryRun | None = None
        self._asides: dict[str, Program] = {}

    @classmethod
    def of(cls, params: Any, terms: Terms) -> Layout:
        """Lay out what the user gave."""
        single = not is_group_list(params)
        given = [{"params": params}] if single else params
        groups = [Group.of(g, terms.rule, i, terms.changes, terms.schedules) for i, g in enumerate(given)]
        rules = [group.read_first(terms.rule, i, 0) for i, group in enumerate(groups)]
        targets = Targets.of(given, single)
        for array in targets.parameters.arrays[:1]:
            work_where(array)  # where states are filled, before the first step reads them
        layout = cls(terms, params, groups, rules, targets, [0] * len(groups))
        for i, values in enumerate(given):
            layout._refuse_unused(values, i)
        if layout.targets.segments and not layout._served():
            title = type(terms.rule).__name__
            log.warning("%s serves none of these arrays: its fallback updates all, with values of its own", title)
        return layout

    def _served(self) -> set[int]:
        """Segments that the groups' own rules update."""
        return {s for launch in self.program.launches if not launch.is_fallback for s in launch.segments}

    def _refuse_unused(self, given: Mapping[str, Any], index: int) -> None:
        """Refuse values that a group gives for a rule that serves none of its arrays."""
        own = {s for s, group in enumerate(self.targets.group) if group == index}
        unused = [name for name in given if name not in ("params", "match", "fallback")]
        if unused and own and own.isdisjoint(self._served()):
            raise HyperparameterError(
                f"group {index}: its arrays go to the fallback, {fallback_of(self.rules[index])!r}, which has its own "
                f"values: give that in the place of {', '.join(unused)}, as in fallback=AdamW(lr=...)"
            )

    def with_group(self, given: Mapping[str, Any], t: int) -> Layout:
        """Lay out the same and a group more, which joins behind step `t`; nothing here is changed."""
        index = len(self.groups)
        group = Group.of(given, self._terms.rule, index, self._terms.changes, self._terms.schedules)
        targets = self.targets.with_group(given, index)
        came_from = [g for g, now in zip(self.targets.group, targets.group, strict=False) if now == index]
        starts = {self.started_at[g] for g in came_from} or {t}
        if len(starts) > 1:
            taken = ", ".join(str(t - start) for start in sorted(starts, reverse=True))
            raise HyperparameterError(
                f"group {index}: its arrays must come from groups of the same number of steps, given {taken}"
            )
        (start,) = starts
        params = self.params
        if "params" in given:
            params = [*(params if is_group_list(params) else [{"params": params}]), dict(given)]
        rules = [*self.rules, group.read_first(self._terms.rule, index, t - start)]
        new = Layout(
            self._terms, params, [*self.groups, group], rules, targets, [*self.started_at, start], before=self, t=t
        )
        _refuse_other_rule(self, new, index)
        new._refuse_unused(given, index)
        scalars = {key: value for launch in self.program.launches for key, value in launch.scalars().items()}
        scalars |= _inherited(scalars, came_from, index)
        for launch in new.program.launches:
            launch.take_scalars(scalars)
        if self.check is not None and new.check is not None:
            new.check.norm = self.check.norm
        return new

    def _started_states(self, before: Layout | None) -> dict[str, StateArray]:
        """Make the state arrays; the parts of an earlier layout go on, the others start."""
        launches = before.program.launches if before else []
        kept = {
            (name, s): before.states[name].part(s)
            for launch in launches
            for name in launch.states.values()
            for s in launch.segments
            if before
        }
        states = lay_out_states(self.program, self.targets)
        parameters = self.targets.views(self.targets.parameters)
        for name, state in states.items():
            self.targets.take(f"the state {name!r}", [state.array])
        for launch in self.program.launches:
            for short, name in launch.states.items():
                for s in launch.segments:
                    part = states[name].part(s)
                    if (name, s) in kept and kept[name, s].size == part.size:
                        copy_into(part, kept[name, s])
                    else:
                        start = launch.rules[self.targets.group[s]].init().get(short, 0.0)
                        copy_into(part, parameters[s] if isinstance(start, str) else start)  # "p": a copy
        return states

    def all_programs(self) -> list[Program]:
        """Give every program, those beside the step too."""
        return [*self.programs, *self._asides.values()]

    def bind_gradients(self, gradients: Arrays) -> None:
        """Take the gradients of the next steps."""
        for program in self.programs:
            program.bind("g", gradients)
        if self.check is not None:
            self.check.bind(gradients)

    def choose(self, *, moves_average: bool, t: int) -> None:
        """Have the step behind step `t` move the average or leave it alone."""
        program = self.programs[0 if moves_average else -1]
        if program is not self.program:
            program.count_from(t - self.counted_from)
            self.program = program

    def summed(self) -> Accumulator:
        """Give the sum of gradients, made at the first call."""
        if self.accumulator is None:
            self.accumulator = Accumulator(self.targets, self._terms.make, self._terms.settings.zero_grad)
        return self.accumulator

    def aside(self, name: str) -> Program:
        """Give the launches of a sweep beside the step, made at the first call."""
        if name not in self._asides:
            made = Program(self.rules, partial(plan_aside, name=name), self.targets, self._terms.make)
            made.bind("p", self.targets.parameters)
            made.bind_states(self._bound_states)
            self._asides[name] = made
        return self._asides[name]

    def looked_at(self) -> DryRun:
        """Give the step that stores nothing, made at the first call."""
        if self.dry_run is None:
            clips = self._terms.settings.max_value is not None
            self.dry_run = DryRun(self.rules, clips, self.targets, self._terms.make, self._bound_states)
        return self.dry_run


def is_group_list(params: Any) -> bool:
    """Tell a list of group dicts from a list of arrays."""
    return (
        isinstance(params, list | tuple)
        and bool(params)
        and all(isinstance(g, dict) and ("params" in g or "match" in g) for g in params)
    )


def _refuse_other_rule(old: Layout, new: Layout, index: int) -> None:
    """Refuse arrays whose states another rule would go on with."""
    before, after = (
        {s: launch.title for launch in layout.program.launches for s in launch.segments} for layout in (old, new)
    )
    for s, title in before.items():
        if after[s] != title:
            raise HyperparameterError(
                f"group {index}: {new.targets.segments[s].name!r} is updated by {title}, whose states it has, and must "
                f"stay so, given a group in which {after[s]} would update it"
            )


def _inherited(
    scalars: Mapping[tuple[str, str, int], float], came_from: Sequence[int], index: int
) -> dict[tuple[str, str, int], float]:
    """Numbers that a group takes over with its arrays from the groups in which they were."""
    found: dict[tuple[str, str, int], float] = {}
    for (name, kind, owner), value in scalars.items():
        if kind == "group" and owner in came_from:
            if found.setdefault((name, kind, index), value) != value:
                raise HyperparameterError(
                    f"group {index}: its arrays must come from groups with the same {name.rpartition('.')[2]}, "
                    f"given {found[name, kind, index]!r} and {value!r}"
                )
    return found
