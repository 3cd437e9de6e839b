"""All launches of a step: one for each distinct set of static options among the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastgd.backend import Maker
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.plan import Plan
from fastgd.kernels.rule import Rule, fallback_of, fixed
from fastgd.launch import Launch
from fastgd.targets import Arrays, Targets


@dataclass
class _Part:
    """What one launch is over: rules of the same static options, by the numbers of their groups, and segments."""

    is_fallback: bool
    rules: dict[int, Rule]
    segments: list[int]


def _parts(rules: Sequence[Rule], targets: Targets) -> list[_Part]:
    """Sort what each group's rule serves, and what is left to its fallback, by static options."""
    parts: list[_Part] = []
    for i, rule in enumerate(rules):
        own = [s for s, group in enumerate(targets.group) if group == i]
        left = [s for s in own if not rule.serves(targets.segments[s].shape)]
        fallback = fallback_of(rule)
        refused = [s for s in left if fallback is None or not fallback.serves(targets.segments[s].shape)]
        if refused:
            name, shape = targets.segments[refused[0]].name, targets.segments[refused[0]].shape
            raise HyperparameterError(
                f"{type(rule).__name__} does not serve {name!r} of shape {shape}: give fallback=, a rule that does"
            )
        served = [s for s in own if s not in left]
        if served or not left:
            _join(parts, _Part(False, {i: rule}, served))
        if left and fallback is not None:
            _join(parts, _Part(True, {i: fallback}, left))
    for part in parts:
        part.segments.sort()
    return parts


def _join(parts: list[_Part], new: _Part) -> None:
    rule = new.rules[min(new.rules)]
    for known in parts:
        first = known.rules[min(known.rules)]
        if known.is_fallback == new.is_fallback and type(first) is type(rule) and first.options() == rule.options():
            known.rules |= new.rules
            known.segments += new.segments
            return
    parts.append(new)


class Program:
    """The launches of a step under one tail.

    Parameters
    ----------
    rules
        Rule of each group.
    planned
        Makes the plan of a rule.
    targets
        All segments of the optimizer.
    make
        Makes sweeps on the backend.

    Attributes
    ----------
    launches
        In the order of their first groups.
    prepares
        For each group, how its scalars of a step are prepared: the function, the index that it takes, the group.
    runs
        What runs the launches, once they are compiled.

    Raises
    ------
    HyperparameterError
        Where groups differ in static options of a rule that sums over all parameters.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        planned: Callable[[Rule], Plan],
        targets: Targets,
        make: Maker,
    ) -> None:
        self.launches = [
            Launch(planned(part.rules[min(part.rules)]), part.rules, part.segments, targets, make, part.is_fallback)
            for part in _parts(rules, targets)
        ]
        whole = [launch.title for launch in self.launches if launch.plan.level == "total"]
        if whole and len(self.launches) > 1:
            others = [launch.title for launch in self.launches if launch.title != whole[0]]
            if others:
                raise HyperparameterError(
                    f"a rule and its fallback must not sum over all parameters, as each has a part of them: given "
                    f"{whole[0]} beside {others[0]}"
                )
            raise HyperparameterError(
                f"{whole[0]} sums over all parameters: its groups must agree in {', '.join(fixed(rules[0]))}"
            )
        self.prepares: list[tuple[Callable[..., None], int, int]] = [
            (launch.prepare_fallback if launch.is_fallback else launch.prepare, index, i)
            for launch in self.launches
            for index, i in enumerate(launch.groups)
        ]
        self.runs: list[Callable[[], None]] = []
        self._cells: dict[str, tuple[list[int], list[int]]] = {}

    def compile(self) -> list[Callable[[], None]]:
        """Have every kernel ready, and give what runs them."""
        self.runs = [launch.compile() for launch in self.launches]
        return self.runs

    def bind(self, name: str, quantity: Arrays) -> None:
        """Take the arrays of a quantity: ``p``, ``g`` or ``ema``."""
        for launch in self.launches:
            launch.bind(name, quantity)

    def bind_states(self, states: Mapping[str, Arrays]) -> None:
        """Take the state arrays, by their outer names."""
        for launch in self.launches:
            for short, name in launch.states.items():
                launch.bind(short, states[name])

    def share_scalars(self, other: Program) -> None:
        """Keep the scalar states together with a program of the same groups and another tail."""
        for own, launch in zip(self.launches, other.launches, strict=True):
            own.share_scalars(launch)

    def ran(self, runs: int) -> bool:
        """Whether all sweeps have run so often."""
        return all(launch.ran(runs) for launch in self.launches)

    def untouched(self, runs: int) -> bool:
        """Whether nothing was written since all sweeps had run so often, as far as can be told."""
        return all(launch.untouched(runs) for launch in self.launches)

    def finish(self, runs: int) -> None:
        """Do what is left of a step that was interrupted; `runs` of each sweep came before it."""
        for launch in self.launches:
            launch.finish(runs)

    def run_wholly(self, runs: Sequence[Callable[[], None]], done: Callable[[], None]) -> None:
        """Run what `compile` gave, and then `done`; Ctrl-C is raised behind both."""
        before = self.launches[0].sweeps[0].runs
        try:
            for run in runs:
                run()
            done()
        except (KeyboardInterrupt, SystemExit):
            while True:
                try:
                    self.finish(before)
                    done()
                    break
                except (KeyboardInterrupt, SystemExit):  # another one
                    pass
            raise

    def count_from(self, runs: int) -> None:
        """Have all sweeps say that they ran so often."""
        for launch in self.launches:
            launch.count_from(runs)

    def cells(self, name: str) -> tuple[list[int], list[int]]:
        """Addresses on the device of a step's scalar: in the arrays' dtype, and in float64; always the same object."""
        if name not in self._cells:
            found = [launch.cells(name) for launch in self.launches]
            self._cells[name] = [c for narrow, _ in found for c in narrow], [c for _, wide in found for c in wide]
        return self._cells[name]

    def upload(self) -> None:
        """Send the scalars of a step to the device, in front of the step itself."""
        for launch in self.launches:
            launch.upload()

    def bytes_per_param(self, itemsize: int) -> int:
        """Bytes read and written for each parameter; the most, where launches differ."""
        return max(launch.plan.bytes_per_param(itemsize) for launch in self.launches)
