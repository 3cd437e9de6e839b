"""The named optimizers: `Optimizer` with the hyperparameters of a rule as arguments. Made from the registry."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

from fastgd.groups import is_schedule
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES
from fastgd.optimizer import Optimizer

_BASE = inspect.signature(Optimizer.__init__).parameters


def _named(rule_class: type[Rule]) -> type[Optimizer]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    hyper = [
        inspect.Parameter(f.name, kind, default=inspect.Parameter.empty if f.default is MISSING else f.default)
        for f in fields(rule_class)  # type: ignore[arg-type]  # rules are dataclasses
        if f.init
    ]
    names = [p.name for p in hyper]
    tail = [p for p in _BASE.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    signature = inspect.Signature([_BASE["params"].replace(annotation=inspect.Parameter.empty), *hyper, *tail])

    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{rule_class.__name__}: {error}; it takes {', '.join(signature.parameters)}") from None
        rule, self._schedules = _split({n: given.pop(n) for n in names if n in given}, rule_class)
        Optimizer.__init__(self, given.pop("params"), rule, **given)

    members = {
        "__init__": __init__,
        "__signature__": signature,
        "__doc__": f"{rule_class.__doc__}\n\nThe other parameters and the attributes are those of `fastgd.Optimizer`.",
        "__module__": __name__,
    }
    return type(rule_class.__name__, (Optimizer,), members)


def _split(given: dict[str, Any], rule_class: type[Rule]) -> tuple[Rule, dict[str, Any]]:
    """Rule of the plain values, with schedules at their start, and the schedules."""
    schedules = {n: v for n, v in given.items() if is_schedule(v)}
    return rule_class(**{n: v(0) if n in schedules else v for n, v in given.items()}), schedules


_CLASSES = {cls.__name__: _named(cls) for cls in RULES.values()}
globals().update(_CLASSES)
__all__ = sorted(_CLASSES)
