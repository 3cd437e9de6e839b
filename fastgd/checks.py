"""Numbers, flags and words that a user gives: taken as they are meant, or refused in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np

from fastgd.kernels.errors import HyperparameterError


def checked_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    closed: bool = False,
) -> float:
    """Take a finite number from `low`, excluded where `open_low`, up to `high`, excluded unless `closed`.

    Raises
    ------
    HyperparameterError
        If it is none.
    """
    try:
        taken = math.nan if isinstance(value, bool | str) or np.shape(value) else float(value)
    except OverflowError:  # an int that no float holds
        taken = math.inf
    except (TypeError, ValueError):
        taken = math.nan
    below = taken <= high if closed else taken < high
    above = taken > low if open_low else taken >= low
    if not math.isfinite(taken) or not below or not above:
        wanted = "finite" if low == -math.inf else f"{'above' if open_low else 'at least'} {low:g}"
        wanted += f" and {'at most' if closed else 'below'} {high:g}" if high < math.inf else ""
        raise HyperparameterError(f"{name} must be a number, {wanted}, given {value!r}")
    return taken


def checked_whole(name: str, value: Any, low: int, most: int | None = None) -> int:
    """Take a whole number from `low` up to `most`.

    Raises
    ------
    HyperparameterError
        If it is none.
    """
    taken = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else low - 1
    if taken < low or (most is not None and taken > most):
        wanted = f"at least {low}" + ("" if most is None else f" and at most {most}")
        raise HyperparameterError(f"{name} must be a whole number, {wanted}, given {value!r}")
    return taken


def checked_flag(name: str, value: Any) -> bool:
    """Take True or False and nothing else.

    Raises
    ------
    HyperparameterError
        For anything else.
    """
    if type(value) is not bool:
        raise HyperparameterError(f"{name} must be True or False, given {value!r}")
    return value


def checked_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Take one of some words.

    Raises
    ------
    HyperparameterError
        If it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise HyperparameterError(f"{name} must be one of {', '.join(map(repr, choices))}, given {value!r}")
    return value
