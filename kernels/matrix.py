"""Rules on whole arrays: matrix products and means over rows and columns, by the operators of the arrays themselves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastgd.kernels.errors import RuleError
from fastgd.kernels.rule import Rule
from fastgd.kernels.tail import Tail


class MatrixRule(Rule):
    """A rule that updates an array as a whole, as the product of matrices needs it.

    Its static method ``update`` is plain Python and no language: after ``p, g`` it takes the state arrays, in their own
    shapes, None where an array has no such state, and behind ``*`` the scalars of `prepare` and the `options`. It
    writes nothing, and returns a dict of new arrays by name, ``p`` and the states. It uses only the operators and
    methods of the arrays it is given, so that it serves the arrays of every library. What no option asks for it need
    not compute; the options are Python's own values there.

    The bits of a matrix product are the library's.
    """

    def state_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of a state of an array of this shape; None where it has no such state."""
        return shape


@dataclass(frozen=True)
class MatrixUpdate:
    """The step of a matrix rule: what a `Sweep` is to a rule in the language.

    Attributes
    ----------
    rule
        The rule, of which it is: for the shapes of its states.
    arrays
        Arrays it takes, in the order of the signature.
    absent
        States of its signature that the options do not ask for.
    scalars
        Numbers it takes of `prepare`.
    options
        What it takes of the static options.
    tail
        What is done around it.
    sums
        Terms of a dry run, which stores nothing; otherwise none.
    """

    rule: MatrixRule
    arrays: tuple[str, ...]
    absent: tuple[str, ...]
    scalars: tuple[str, ...]
    options: Mapping[str, object]
    tail: Tail = field(default_factory=Tail)
    sums: tuple[str, ...] = ()

    @property
    def function(self) -> Callable[..., Mapping[str, Any]]:
        """What computes the new arrays."""
        made: Callable[..., Mapping[str, Any]] = self.rule.update  # type: ignore[attr-defined]  # each rule's own
        return made

    @property
    def states(self) -> tuple[str, ...]:
        """Arrays that are kept."""
        return tuple(a for a in self.arrays if a not in ("p", "g"))

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays that are read."""
        return (*self.arrays, *(("ema",) if self.tail.average else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        """Arrays that are written."""
        average = ("ema",) if self.tail.average else ()
        return (*(a for a in self.arrays if a != "g"), *average, *(("g",) if self.tail.zero_grad else ()))

    @property
    def small(self) -> frozenset[str]:
        """States that are smaller than a matrix is."""
        matrix = (2, 3)
        return frozenset(s for s in self.states if self.rule.state_shape(s, matrix) != matrix)

    def bytes_per_element(self, itemsize: int) -> int:
        """Bytes of the arrays as large as a matrix, each read and written once: the least that it moves."""
        return itemsize * (len(set(self.reads) - self.small) + len(set(self.writes) - self.small))


def parse_matrix(rule: MatrixRule, given: set[str]) -> MatrixUpdate:
    """Read the signature of a matrix rule's update.

    Parameters
    ----------
    rule
        The rule.
    given
        Names of the scalars that `prepare` gives.

    Raises
    ------
    RuleError
        Where its parts do not fit together.
    """
    title = type(rule).__name__
    function = inspect.getattr_static(rule, "update", None)
    if not isinstance(function, staticmethod):
        raise RuleError(f"{title}: has no static method update")
    options = rule.options()
    arrays, scalars, chosen = [], [], {}
    for name, parameter in inspect.signature(function.__func__).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            arrays.append(name)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            raise RuleError(f"{title}: update takes plain arguments only: arrays, then * and scalars")
        elif name in options:
            chosen[name] = options[name]
        elif name in given:
            scalars.append(name)
        else:
            known = ", ".join(sorted({*given, *options})) or "nothing"
            raise RuleError(f"{title}: update takes `{name}`, which prepare() and options() do not give ({known})")
    if arrays[:2] != ["p", "g"]:
        raise RuleError(f"{title}: update takes p, g and then the states, given {', '.join(arrays)}")
    absent = [a for a in arrays[2:] if not any(rule.state_shape(a, shape) for shape in ((2, 3), (2,)))]
    used = [a for a in arrays if a not in absent]
    return MatrixUpdate(rule, tuple(used), tuple(absent), tuple(scalars), chosen)


def size_of(shape: tuple[int, ...] | None) -> int:
    """Elements of an array of this shape; 0 of none."""
    return 0 if shape is None else math.prod(shape)
