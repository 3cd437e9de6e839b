"""The fused tail: the same language, put around any rule's sweeps, so that no rule and no loop knows of it.

In front of each sweep that takes the gradient stands its factor, and the clip of its elements; behind the last one
the average of the parameters and the gradient's zero. The passes of their own that an optimizer needs besides are
here too: the norm, the count of what is not finite, the sum of several gradients, the dry run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastgd.kernels.language import Sweep, joined, parse, sqrt, squared, total
from fastgd.kernels.squares import parts_of, two_parts

NAMES = frozenset({"ema", "gscale", "gmax", "ema_c"})
"""Arrays and scalars of the tail, which no rule may call its own."""


@dataclass(frozen=True)
class Tail:
    """Which parts of the tail a step has; each is a statement of the loop or none.

    Attributes
    ----------
    average
        ``"ema"``: ``ema += ema_c * (p - ema)``; ``"lookahead"``: so, and then the parameters take its value.
    max_value
        Whether each element of the scaled gradient is brought between ``-gmax`` and ``gmax``.
    zero_grad
        Whether the gradient is set to zero.
    """

    average: Literal["", "ema", "lookahead"] = ""
    max_value: bool = False
    zero_grad: bool = False


def with_tail(sweeps: Iterable[Sweep], tail: Tail) -> tuple[Sweep, ...]:
    """Put the tail around the sweeps of a rule."""
    *first, last = (_scale_gradient(s, max_value=tail.max_value) for s in sweeps)
    statements, writes = list(last.statements), dict(last.writes)
    arrays, scalars = last.arrays, last.scalars
    if tail.average:
        statements.append(("ema", _expression("ema + ema_c * (p - ema)")))
        arrays, scalars, writes["ema"] = (*arrays, "ema"), (*scalars, "ema_c"), "ema"
    if tail.average == "lookahead":
        writes["p"] = "ema"
    if tail.zero_grad:
        statements.append(("_zero", ast.Constant(0.0)))
        arrays, writes["g"] = (arrays if "g" in arrays else (*arrays, "g")), "_zero"
    last = replace(last, arrays=arrays, scalars=scalars, statements=tuple(statements), writes=writes)
    return (*first, last)


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _scale_gradient(sweep: Sweep, *, max_value: bool = False) -> Sweep:
    if "g" not in sweep.arrays:
        return sweep
    statements, scalars = [("g", _expression("gscale * g"))], (*sweep.scalars, "gscale")
    if max_value:
        # in the language's own words for clip: a NaN stays
        statements.append(("g", _expression("-gmax if g < -gmax else (gmax if g > gmax else g)")))
        scalars = (*scalars, "gmax")
    return replace(sweep, scalars=scalars, statements=(*statements, *sweep.statements))


# ---- passes of their own -----------------------------------------------------------------------------------------


HUGE = 2.0**-600
"""What a float64 is multiplied by for a square that survives its whole range, but for the smallest."""


def gradient_norm(*, wide: bool = False) -> Sweep:
    """Sweep that sums the squares of the scaled gradient; for float64 those of its elements times `HUGE` too."""

    def measure(g: Any) -> Any:
        return total(squares=squared(g))

    def measure_wide(g: Any) -> Any:
        return total(squares=squared(g), huge=squared(g * 2.409919865102884e-181))

    return _scale_gradient(parse(measure_wide if wide else measure, {}, ()))


def clip_factor(*, wide: bool = False) -> Sweep:
    """Code behind `gradient_norm`: the norm of the gradient times a factor, and that factor, clipped."""

    def clip(squares: Any, huge: Any, *, factor: Any, max_norm: Any, wide: Any) -> Any:
        norm = sqrt(squares)
        if wide:
            norm = norm if norm - norm == 0 else sqrt(huge) * 4.149515568880993e180
        norm = norm * abs(factor)
        limit = max_norm / (norm + 1e-6)
        gscale = factor * (1 if limit > 1 else limit)  # a NaN stays
        return norm, gscale

    made = parse(clip, {"wide": wide}, ("factor", "max_norm"), combine=True)
    if not wide:
        made = replace(made, arrays=tuple(a for a in made.arrays if a != "huge"))
    return joined(made, gradient_norm(wide=wide))


def nonfinite_count() -> Sweep:
    """Sweep that counts the elements of the scaled gradient that are NaN or infinite."""

    def measure(g: Any) -> Any:
        return total(count=g - g != 0)

    return _scale_gradient(parse(measure, {}, ()))


def accumulation(*, begin: bool, zero_grad: bool) -> Sweep:
    """Sweep that adds the scaled gradient to a sum, or begins the sum with it."""

    def begins(acc: Any, g: Any) -> Any:
        acc = g
        return acc

    def adds(acc: Any, g: Any) -> Any:
        acc = acc + g
        return acc

    return with_tail([parse(begins if begin else adds, {}, ())], Tail(zero_grad=zero_grad))[0]


def dry_run(sweeps: Sequence[Sweep]) -> tuple[Sweep, ...]:
    """Sweeps that compute what a rule's sweeps would store, store nothing, and sum what a report of a step needs.

    Parameters
    ----------
    sweeps
        A rule's, with a tail of no average and no zeroing.

    Returns
    -------
    tuple of Sweep
        The last sums, of each segment, the squares of parameters, gradient and change of the parameters, each times
        ``_shift``, and counts the gradient's elements that are zero and that are not finite. The one before it, of a
        rule that has two, sums what the rule's own sums.
    """
    *first, _ = sweeps
    return (*(replace(s, writes={}) for s in first), _report(sweeps))


_ROOTS = {"parameters": "_shift * p", "gradient": "_shift * g", "change": "_shift * (_new - p)"}
_COUNTS = {"zeros": "1.0 if g == 0.0 else 0.0", "nonfinite": "1.0 if g - g != 0.0 else 0.0"}
REPORTED = (*_ROOTS, *_COUNTS)
"""Terms of a report: squares of the first three. ``_new`` is what the parameter would become."""


def _report(sweeps: Sequence[Sweep]) -> Sweep:
    """All sweeps in one, as none has stored what the next one reads; each assignment is to a name of its own."""
    statements: list[tuple[str, ast.expr]] = []
    arrays, scalars = dict.fromkeys(("p", "g")), dict.fromkeys(("_shift",))
    stored: dict[str, str] = {}
    for sweep in sweeps:
        arrays |= dict.fromkeys(sweep.arrays)
        scalars |= dict.fromkeys(sweep.scalars)
        now = dict(stored)
        for name, expression in sweep.statements:
            renamed = _renamed(expression, now)
            now[name] = f"_{len(statements)}"
            statements.append((now[name], renamed))
        stored |= {array: now[value] for array, value in sweep.writes.items()}
    for name, text in _ROOTS.items():
        statements.append((f"_r_{name}", _renamed(_expression(text), {"_new": stored["p"]})))
        statements += two_parts(name, f"_r_{name}")
    statements += [(f"_s_{name}", _expression(text)) for name, text in _COUNTS.items()]
    parts = [part for name in _ROOTS for part in parts_of(name)]
    return Sweep(
        "dry_run",
        tuple(arrays),
        tuple(scalars),
        tuple(statements),
        writes={},
        sums={part: part for part in parts} | {name: f"_s_{name}" for name in _COUNTS},
        level="per_segment",
        squares=tuple(_ROOTS),
    )


def _renamed(expression: ast.expr, names: Mapping[str, str]) -> ast.expr:
    copy = deepcopy(expression)
    for node in ast.walk(copy):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
    return copy
