"""All launches of a step: one for each distinct set of static options among the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from fastgd.backend import SweepOnArrays
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.rule import Plan, Rule
from fastgd.launch import Launch
from fastgd.targets import Arrays, Targets


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
        Constructor of a sweep on the backend.

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
        make: Callable[..., SweepOnArrays],
    ) -> None:
        sets: list[tuple[dict[str, object], list[int]]] = []
        for i, rule in enumerate(rules):
            options = rule.options()
            for known, members in sets:
                if known == options:
                    members.append(i)
                    break
            else:
                sets.append((options, [i]))
        self.launches = [Launch(planned(rules[members[0]]), rules, members, targets, make) for _, members in sets]
        if len(sets) > 1 and any(launch.plan.level == "total" for launch in self.launches):
            raise HyperparameterError(
                f"{type(rules[0]).__name__} sums over all parameters: its groups must agree in {', '.join(sets[0][0])}"
            )
        self.prepares = [(x.prepare, index, i) for x in self.launches for index, i in enumerate(x.groups)]
        self.runs: list[Callable[[], None]] = []

    def compile(self) -> list[Callable[[], None]]:
        """Have every kernel ready, and give what runs them."""
        self.runs = [launch.compile() for launch in self.launches]
        return self.runs

    def bind(self, name: str, quantity: Arrays) -> None:
        """Take the arrays of a quantity: ``p``, ``g`` or ``ema``."""
        for launch in self.launches:
            launch.bind(name, quantity)

    def bind_states(self, states: Mapping[str, NDArray[Any]], targets: Targets) -> None:
        """Take the flat state arrays, by their outer names."""
        for launch in self.launches:
            for short, name in launch.states.items():
                launch.bind(short, Arrays([states[name]], targets.flat))

    def share_scalars(self, other: Program) -> None:
        """Keep the scalar states together with a program of the same groups and another tail."""
        for own, launch in zip(self.launches, other.launches, strict=True):
            own.scalar_states = launch.scalar_states

    def ran(self, runs: int) -> bool:
        """Whether all sweeps have run so often."""
        return all(launch.ran(runs) for launch in self.launches)

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

    def bytes_per_param(self, itemsize: int) -> int:
        """Bytes read and written for each parameter; the most, where launches differ."""
        return max(launch.plan.bytes_per_param(itemsize) for launch in self.launches)
