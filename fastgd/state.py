"""The state of an optimizer that is loaded: checked in every part before any is taken over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.errors import CheckpointError
from fastgd.kernels.rule import Rule, fallback_of, fixed


@dataclass(frozen=True)
class Expected:
    """What a state must fit.

    Attributes
    ----------
    rules
        Of each group: of one class, with what is fixed of them.
    dtype
        Of the parameters, and so of every array.
    segments
        Name and shape of each.
    extent
        Length of an array laid out as the parameters are.
    states
        Lengths of the state arrays by name.
    scalars
        Lengths of the scalar states by name, of each launch.
    ema
        Whether there is an average.
    modes
        What the mode may be.
    """

    rules: Sequence[Rule]
    dtype: np.dtype[Any]
    segments: list[tuple[str, tuple[int, ...]]]
    extent: int
    states: Mapping[str, int]
    scalars: Sequence[Mapping[str, int]]
    ema: bool
    modes: Sequence[str]


@dataclass(frozen=True)
class Loaded:
    """What a state holds: the number of steps, and of each group its rule and the step that it counts from."""

    t: int
    started_at: list[int]
    rules: list[Rule]
    scalars: list[dict[str, NDArray[np.float64]]]


def checked(state: Mapping[str, Any], expected: Expected) -> Loaded:
    """Check a state; its arrays are then right as they are.

    Raises
    ------
    CheckpointError
        If it is from another rule, dtype, layout or number of groups, or is incomplete.
    HyperparameterError
        If a hyperparameter is out of range.
    """
    own = {
        "rule": type(expected.rules[0]).__name__.lower(),
        "dtype": str(expected.dtype),
        "segments": expected.segments,
    }
    missing = {*own, "t", "param_groups", "state", "scalar_state", "ema", "accumulated", "mode"} - set(state)
    if missing:
        raise CheckpointError(f"the state has no {', '.join(map(repr, sorted(missing)))}")
    for key, value in own.items():
        given = [(n, tuple(s)) for n, s in state[key]] if key == "segments" else state[key]
        if given != value:
            raise CheckpointError(f"the state's {key} must be {value!r}, given {given!r}")
    if state["mode"] not in expected.modes:
        raise CheckpointError(
            f"the state's mode must be {' or '.join(map(repr, expected.modes))}, given {state['mode']!r}"
        )
    rules = _rules(state["param_groups"], expected)
    _check_arrays(state, expected)
    scalars = _scalars(state["scalar_state"], expected)
    t = _count("t", state["t"])
    started_at = [t - _count(f"t of group {i}", saved["t"], 0, t) for i, saved in enumerate(state["param_groups"])]
    return Loaded(t, started_at, rules, scalars)


def _rules(groups: Any, expected: Expected) -> list[Rule]:
    if not isinstance(groups, list | tuple) or not all(isinstance(saved, Mapping) for saved in groups):
        raise CheckpointError(f"the state's param_groups must be a list of dicts, given {groups!r}")
    if len(groups) != len(expected.rules):
        raise CheckpointError(f"the state must have {len(expected.rules)} groups, given {len(groups)}")
    return [
        _rule(saved, own, f"group {i} of the state")
        for i, (saved, own) in enumerate(zip(groups, expected.rules, strict=True))
    ]


def _rule(saved: Mapping[str, Any], own: Rule, title: str) -> Rule:
    names = own.hyperparameters()
    missing = {*names, "t"} - set(saved)
    if missing:
        raise CheckpointError(f"{title} has no {', '.join(map(repr, sorted(missing)))}")
    values = {n: saved[n] for n in names}
    fallback = fallback_of(own)
    if isinstance(given := values.get("fallback"), Mapping):
        if fallback is None or given.get("rule") != type(fallback).__name__.lower():
            raise CheckpointError(f"{title} has a fallback {given.get('rule')!r}, here {fallback!r}")
        values["fallback"] = _rule({**given, "t": 0}, fallback, f"the fallback of {title}")
    rule = type(own)(**values)
    if fixed(rule) != fixed(own):
        raise CheckpointError(f"{title} has options {fixed(rule)}, here {fixed(own)}")
    return rule


def plain(rule: Rule) -> dict[str, Any]:
    """Give the values of a rule as plain data; those of a fallback as a dict with its name."""
    values = {n: getattr(rule, n) for n in rule.hyperparameters()}
    fallback = fallback_of(rule)
    if fallback is not None:
        values["fallback"] = {"rule": type(fallback).__name__.lower(), **plain(fallback)}
    return values


def _check_arrays(state: Mapping[str, Any], expected: Expected) -> None:
    if not isinstance(state["state"], Mapping):
        raise CheckpointError(f"the state's state must be a dict of arrays, given {state['state']!r}")
    if set(state["state"]) != set(expected.states):
        raise CheckpointError(f"the state must have {sorted(expected.states)}, given {sorted(state['state'])}")
    if (state["ema"] is not None) != expected.ema:
        raise CheckpointError(
            "the state lacks the average that this optimizer keeps, given ema None"
            if expected.ema
            else "the state has an average, given ema, and this optimizer keeps none"
        )
    arrays = dict(state["state"])
    extents = dict(expected.states)
    if state["ema"] is not None:
        arrays["ema"] = state["ema"]
    if (waiting := state["accumulated"]) is not None:
        if not isinstance(waiting, Mapping) or {"count", "sum"} - set(waiting):
            raise CheckpointError(f"the state's accumulated must be None or a dict of count and sum, given {waiting!r}")
        _count("accumulated count", waiting["count"], 1)
        arrays["accumulated sum"] = waiting["sum"]
    for name, given in arrays.items():
        wanted = (extents.get(name, expected.extent),)
        if np.shape(given) != wanted or np.asarray(given).dtype != expected.dtype:
            raise CheckpointError(
                f"the state's {name} must be {expected.dtype} of shape {wanted}, "
                f"given {np.asarray(given).dtype} of shape {np.shape(given)}"
            )


def _scalars(launches: Any, expected: Expected) -> list[dict[str, NDArray[np.float64]]]:
    if not isinstance(launches, list | tuple) or len(launches) != len(expected.scalars):
        raise CheckpointError(
            f"the state's scalar_state must be a list of {len(expected.scalars)} dicts, given {launches!r}"
        )
    taken = []
    for given, lengths in zip(launches, expected.scalars, strict=True):
        try:
            values = {name: np.array(numbers, np.float64) for name, numbers in given.items()}
            fits = {name: numbers.shape for name, numbers in values.items()} == {n: (k,) for n, k in lengths.items()}
        except (AttributeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise CheckpointError(f"the state's scalars must have lengths {lengths}, given {given}")
        taken.append(values)
    return taken


def _count(name: str, value: Any, low: int = 0, high: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        most = f" and at most {high}" if high < math.inf else ""
        raise CheckpointError(f"the state's {name} must be a whole number, at least {low}{most}, given {value!r}")
    return int(value)
