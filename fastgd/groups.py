"""Groups of parameters: the values of their hyperparameters, which may change between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.rule import Rule


def _telling(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def change(self: Group, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        self.changed = True  # behind the change: a step on another thread may read in between
        self.changes.pending = True
        return result

    change.__name__, change.__doc__ = name, method.__doc__
    return change


def is_schedule(value: object) -> bool:
    """Tell a schedule from a value; a class is none, though it can be called."""
    return callable(value) and not isinstance(value, type)


class Changes:
    """Whether any group of an optimizer has changed: all that a step looks at."""

    pending = True


class Group(dict[str, Any]):
    """Values of one group, a dict as in torch, which tells when one is set.

    Attributes
    ----------
    changed : bool
        Whether the group must be read before the next step.
    changes : Changes
        Of the optimizer, told as well.
    where : tuple
        The parameters that were given, and the name patterns; they cannot be changed.
    """

    changed = True
    changes = Changes()
    where: tuple[Any, Any] = (None, None)

    for _name in ("__setitem__", "__delitem__", "__ior__", "update", "setdefault", "pop", "popitem", "clear"):
        locals()[_name] = _telling(_name)
    del _name

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any],
        rule: Rule,
        index: int,
        changes: Changes,
        schedules: Mapping[str, Callable[[int], Any]],
    ) -> Group:
        """Complete what the user gave with the schedules for all groups, and those with the rule's values.

        Raises
        ------
        HyperparameterError
            For a name that the rule does not have, and for a group without parameters.
        """
        refuse_unknown(given, rule, index)
        if ("params" in given) == ("match" in given):
            raise HyperparameterError(f"group {index}: give either 'params' or 'match', given {', '.join(given)}")
        group = cls({**{n: getattr(rule, n) for n in rule.hyperparameters()}, **schedules, **given})
        group.changes = changes
        group.where = given.get("params"), given.get("match")
        return group

    def read(self, rule: Rule, index: int, t: int) -> tuple[Rule, bool]:
        """Make the rule of the present values; of schedules, of their values after `t` steps.

        Returns
        -------
        rule : Rule
        scheduled : bool
            Whether a value is a schedule, so that the next step must read again.

        Raises
        ------
        HyperparameterError
            If a value is missing, unknown or out of range.
        """
        refuse_unknown(self, rule, index)
        if self.get("params") is not self.where[0] or self.get("match") is not self.where[1]:
            raise HyperparameterError(f"group {index}: its params stay what they are; build a new optimizer for others")
        names = rule.hyperparameters()
        missing = [n for n in names if n not in self]
        if missing:
            raise HyperparameterError(f"group {index}: {missing[0]!r} was taken out; it must have a value")
        given = {n: self[n] for n in names}
        schedules = [n for n, value in given.items() if is_schedule(value)]
        for name in schedules:
            given[name] = given[name](t)
        made = type(rule)(**given)
        for name in names:  # a list becomes the rule's tuple: what is changed inside it would not be seen
            if self.get(name) is given[name]:  # not where another thread or a schedule has set it meanwhile
                dict.__setitem__(self, name, getattr(made, name))
        return made, bool(schedules)

    def read_first(self, rule: Rule, index: int, t: int) -> Rule:
        """Make the rule of a group that joins, `t` steps of its own behind it."""
        made, scheduled = self.read(rule, index, t)
        self.changed = scheduled
        self.changes.pending = self.changes.pending or scheduled
        return made


def refuse_unknown(given: Mapping[str, Any], rule: Rule, index: int) -> None:
    """Refuse a name that is no hyperparameter of a rule."""
    names = rule.hyperparameters()
    for name in given:
        if name not in names and name not in ("params", "match"):
            raise HyperparameterError(
                f"group {index}: {type(rule).__name__} has no {name!r}; it has {', '.join(names)}"
            )
