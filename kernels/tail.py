"""The fused tail: the same language, put around any rule's sweeps, so that no rule and no loop knows of it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from fastgd.kernels.language import Sweep, parse, total


def with_tail(sweeps: Iterable[Sweep], *, ema: bool, zero_grad: bool) -> tuple[Sweep, ...]:
    """Put the gradient's factor in front of every sweep that takes g, and the EMA and g = 0 behind the last."""
    scaled = [_scale_gradient(s) for s in sweeps]
    last = scaled[-1]
    statements, writes = list(last.statements), dict(last.writes)
    arrays, scalars = last.arrays, last.scalars
    if ema:
        statements.append(("ema", ast.parse("ema + ema_c * (p - ema)", mode="eval").body))
        arrays, scalars, writes["ema"] = (*arrays, "ema"), (*scalars, "ema_c"), "ema"
    if zero_grad:
        statements.append(("_zero", ast.Constant(0.0)))
        arrays, writes["g"] = (arrays if "g" in arrays else (*arrays, "g")), "_zero"
    scaled[-1] = Sweep(last.name, arrays, scalars, tuple(statements), writes, last.sums, last.level)
    return tuple(scaled)


def _scale_gradient(sweep: Sweep) -> Sweep:
    if "g" not in sweep.arrays:
        return sweep
    factor = ("g", ast.parse("gscale * g", mode="eval").body)
    return Sweep(
        sweep.name,
        sweep.arrays,
        (*sweep.scalars, "gscale"),
        (factor, *sweep.statements),
        sweep.writes,
        sweep.sums,
        sweep.level,
    )


def gradient_norm() -> Sweep:
    """Sweep that sums the squares of the scaled gradient."""

    def measure(g: Any) -> Any:
        return total(squares=g * g)

    return _scale_gradient(parse(measure, {}, ()))


def nonfinite_count() -> Sweep:
    """Sweep that counts the elements of the scaled gradient that are NaN or infinite."""

    def measure(g: Any) -> Any:
        return total(count=g - g != 0)

    return _scale_gradient(parse(measure, {}, ()))
