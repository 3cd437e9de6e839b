"""A step in one call and without an object: ``adamw_(p, g, m, v, t, lr=...)``, one function for each rule.

For callers that keep parameters, gradients and states themselves. The functions are made from the registry: the rule's
lower-case name and an underscore, as what they are given is changed in place.

>>> import numpy as np, fastgd
>>> p, m, v = np.array([1.0, -1.0]), np.zeros(2), np.zeros(2)
>>> for t in (1, 2):
...     fastgd.functional.adam_(p, np.array([2.0, -3.0]), m, v, t, lr=0.1)
>>> p.round(6)
array([ 0.8, -0.8])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import maker
from fastgd.checks import checked_number
from fastgd.kernels.blocks import Where
from fastgd.kernels.errors import ArrayError, HyperparameterError, RuleError
from fastgd.kernels.plan import Plan, plan
from fastgd.kernels.rule import Rule, state_name, step_number
from fastgd.kernels.rules import RULES
from fastgd.launch import Launch
from fastgd.memory import (
    address,
    as_array,
    backend_of,
    device_of,
    entry,
    is_own,
    memory_of,
    refuse_other_stream,
    stream_of,
    view,
)
from fastgd.targets import Arrays, Targets

__all__ = sorted(f"{name}_" for name in RULES)

_WHOLE = Where(np.zeros(1, np.int64), np.zeros(1, np.int64))  # one segment, from the array's first element
_MOST_SIZES = 512  # of which launches are kept, some 10 KiB each


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = _function(RULES[name[:-1]])
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Call:
    """A launch over one array of each kind; whose memory that is, is said before each run."""

    def __init__(self, form: _Form, rule: Rule, parameters: NDArray[Any]) -> None:
        targets = Targets.of([{"params": parameters}], True)
        make = maker(backend_of(parameters), None)
        self._launch = Launch(form.plan, {0: rule}, [0], targets, make)
        self._launch_all = self._launch.compile()
        self._addresses = [0] * (2 + len(form.plan.states))
        self._runs = 0
        self.prepare = self._launch.prepare

    def bind(self, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> None:
        """Take the arrays' addresses.

        Raises
        ------
        ArrayError
            If two of them share memory.
        """
        addresses = [address(a) for a in arrays]
        if addresses == self._addresses:
            return
        spans = sorted(zip(addresses, (a.nbytes for a in arrays), names, strict=True))
        for (start, size, one), (end, _, other) in pairwise(spans):
            if end - start < size:
                raise ArrayError(f"{one} and {other} must not share memory: a step would read what it has written")
        for k, (name, array) in enumerate(zip(names, arrays, strict=True)):
            if addresses[k] != self._addresses[k]:
                held = [view(array, 0, (array.size,)) if array.ndim != 1 else array]
                self._launch.bind(name, Arrays(held, _WHOLE))
                held.clear()  # the caller's memory is not kept alive between calls; addresses are compared at each
        self._addresses = addresses

    def run(self) -> None:
        """Update the arrays; Ctrl-C is raised behind the last sweep."""
        try:
            self._launch_all()
        except (KeyboardInterrupt, SystemExit):
            while True:
                try:
                    self._launch.finish(self._runs)
                    break
                except (KeyboardInterrupt, SystemExit):  # another one
                    pass
            raise
        self._runs += 1


class _Form:
    """What a rule takes under one set of options, and the launches made for it that no call is using."""

    def __init__(self, rule: Rule) -> None:
        self.plan = plan(rule)
        self.written = frozenset(a for sweep in self.plan.steps for a in sweep.writes)
        self._idle: dict[tuple[int, str, str, int | None, int], list[_Call]] = {}
        self._shapes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}

    def take(self, given: Sequence[Any], title: str) -> dict[str, NDArray[Any]]:
        """Take the arrays as they lie in memory, by name.

        Raises
        ------
        ArrayError
            If one of them cannot be used, or they do not go together.
        """
        first = as_array(given[0], "p")
        shapes = self._shapes.get(first.shape) or self._shapes_of(first.shape)
        if len(given) != len(shapes):
            raise ArrayError(
                f"{title} with these options takes {', '.join(shapes)} and t: {len(shapes)} arrays, given {len(given)}"
            )
        memory = memory_of(first)
        arrays = {
            n: as_array(x, n, writeable=n in self.written, memory=memory) for n, x in zip(shapes, given, strict=True)
        }
        for name, array in arrays.items():
            if array.shape != shapes[name]:
                whose = "the shape of p, " if shapes[name] == first.shape else "shape "
                raise ArrayError(f"{name} must have {whose}{shapes[name]}, given {array.shape}")
            if memory_of(array) != memory:
                raise ArrayError(f"{name} must lie in the memory of p, one of both is on a GPU: move it")
            if array.dtype != first.dtype:
                raise ArrayError(f"{name} must have the dtype of p, {first.dtype}, given {array.dtype}")
        return arrays

    def _shapes_of(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays that an array of this shape is updated with, by name."""
        if len(self._shapes) > _MOST_SIZES:
            self._shapes.clear()
        states = {name: self.plan.state_shape(name, shape) for name in self.plan.states}
        self._shapes[shape] = {"p": shape, "g": shape, **{n: s for n, s in states.items() if s is not None}}
        return self._shapes[shape]

    def borrow(self, rule: Rule, first: NDArray[Any]) -> tuple[_Call, list[_Call]]:
        """Launch that no other call is using, on whatever thread, and the list to which it is given back."""
        if self.plan.matrix is not None:  # it would keep the caller's memory alive
            return _Call(self, rule, first), []
        # by the stream too: what another one is still reading must not be overwritten
        key = first.size, first.dtype.char, memory_of(first), device_of(first), stream_of(first)
        if len(self._idle) > _MOST_SIZES:
            self._idle.clear()
        idle = self._idle.setdefault(key, [])
        try:
            return idle.pop(), idle
        except IndexError:
            return _Call(self, rule, first), idle


def _function(rule_class: type[Rule]) -> Callable[..., None]:
    name = f"{rule_class.__name__.lower()}_"
    known = rule_class.hyperparameters()
    taken = {"p", "g", "t", "scale"} & set(known)
    if taken:
        raise RuleError(f"{name}: `{taken.pop()}` is an argument of the step; give the hyperparameter another name")
    forms: dict[str, _Form] = {}

    @lru_cache(maxsize=256, typed=True)  # a rule is checked when it is made, which takes longer than a small step
    def rule_of(**hyper: Any) -> tuple[Rule, _Form]:
        for n in hyper:
            if n not in known:
                raise HyperparameterError(f"{name} has no {n!r}; it has {', '.join(known)}")
        rule = rule_class(**hyper)
        options = repr(sorted(rule.options().items()))
        if options not in forms:
            forms[options] = _Form(rule)
        return rule, forms[options]

    def function(p: Any, g: Any, /, *rest: Any, scale: float = 1.0, **hyper: Any) -> None:
        states, t = (rest, hyper.pop("t")) if "t" in hyper else (rest[:-1], rest[-1] if rest else None)
        try:
            rule, form = rule_of(**hyper)
        except TypeError:  # a value that has no hash, such as a list
            rule, form = rule_of.__wrapped__(**hyper)
        if form.plan.scalar_states:
            raise RuleError(
                f"{name}: {rule_class.__name__} keeps numbers from step to step "
                f"({', '.join(form.plan.scalar_states)}); use the optimizer"
            )
        step = step_number(t, name)
        arrays = form.take((p, g, *states), name)
        if type(scale) is not float or not math.isfinite(scale):
            scale = checked_number(f"{name}: scale", scale)
        if not rule.serves(arrays["p"].shape):
            raise ArrayError(
                f"{name}: p must be an array that {rule_class.__name__} serves, given one of shape "
                f"{arrays['p'].shape}: call the function of another rule for it"
            )
        if not isinstance(arrays["p"], np.ndarray):
            entry(arrays["p"], backend_of(arrays["p"]))(name)
            for what, value in zip(arrays, (p, g, *states), strict=True):
                if not is_own(value) or memory_of(value) != memory_of(arrays["p"]):
                    refuse_other_stream(value, what, arrays["p"])
        call, idle = form.borrow(rule, arrays["p"])
        call.bind(list(arrays), list(arrays.values()))
        call.prepare(0, rule, step, {"gscale": scale})
        call.run()
        idle.append(call)

    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    default = plan(rule_class())
    function.__signature__ = _signature(rule_class, default)  # type: ignore[attr-defined]
    function.__doc__ = _doc(rule_class, default)
    return function


def states_of(planned: Plan, shape: tuple[int, ...] = (2, 3)) -> tuple[str, ...]:
    """Names of the states of an array of this shape, a matrix for one."""
    return tuple(s for s in planned.states if planned.state_shape(s, shape) is not None)


def _signature(rule_class: type[Rule], default: Plan) -> inspect.Signature:
    only, both, keyword = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    defaults = {f.name: f.default for f in fields(rule_class) if f.init}  # type: ignore[arg-type]  # a dataclass
    return inspect.Signature(
        [
            *(inspect.Parameter(a, only) for a in ("p", "g", *states_of(default))),
            inspect.Parameter("t", both),
            *(
                inspect.Parameter(n, keyword, default=inspect.Parameter.empty if d is MISSING else d)
                for n, d in defaults.items()
            ),
            inspect.Parameter("scale", keyword, default=1.0),
        ],
        return_annotation=None,
    )


def _doc(rule_class: type[Rule], default: Plan) -> str:
    title = rule_class.__name__
    lines = [
        f"Take one step of {title}, in place.",
        "",
        "The signature is that of the default options; an option that adds or drops a state adds or drops its array.",
        "",
        "Parameters",
        "----------",
        "p : array",
        "    Parameters: float32 or float64, C-contiguous, writeable.",
        "g : array",
        "    Gradient, of the shape and dtype of p, as are the states"
        + ("." if default.matrix is None else "; those of rows and of columns lack one of the last two axes."),
    ]
    rule = rule_class()
    for short in dict.fromkeys([*default.states, *rule_class.states]):
        start = default.start.get(short, 0.0)
        begins = "a copy of p" if start == "p" else f"{start:g}"
        used = ""
        if short not in default.states:
            used = " Only with the option that asks for it."
        elif short not in states_of(default):
            used = " In the place of the others, for an array of one dimension."
        lines += [f"{short} : array", f"    State {state_name(rule, short)!r}; starts at {begins}.{used}"]
    lines += ["t : int", "    Number of the step being taken, from 1."]
    lines += [f"{', '.join(rule_class.hyperparameters())}", f"    Hyperparameters, those of `fastgd.{title}`."]
    lines += ["scale : float", "    The gradient is multiplied by this first: finite; -1 climbs.", ""]
    lines += ["Raises", "------", "ArrayError, HyperparameterError", "    Before anything is written."]
    return "\n".join(lines)
