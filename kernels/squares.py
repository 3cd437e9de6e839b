"""How a sum of squares is gathered: in two parts, so that it survives where a float32 cannot hold the square.

The square of a float32 leaves its range where the number is beyond 2^±63. One part is of numbers up to `LIMIT` in size,
times `SMALL`, the other of larger ones, times `LARGE`. No power of two rounds, 4096 squares of either part fit into
float32, and none of a usual number is denormal, which would take ten times as long.
"""

from __future__ import annotations

import ast
from typing import Any

LIMIT, SMALL, LARGE = 2.0**9, 2.0**48, 2.0**-71


def parts_of(term: str) -> tuple[str, str]:
    """Names of the two sums that a sum of squares is gathered in."""
    return f"_small_{term}", f"_large_{term}"


def two_parts(term: str, root: str) -> list[tuple[str, ast.expr]]:
    """Statements of the two parts of a term that is the square of what has the name `root`."""
    small, large = parts_of(term)
    scaled = {
        small: f"0.0 if abs({root}) > {LIMIT!r} else {root} * {SMALL!r}",  # a NaN is in here
        large: f"{root} * {LARGE!r} if abs({root}) > {LIMIT!r} else 0.0",
    }
    statements: list[tuple[str, ast.expr]] = []
    for part, text in scaled.items():
        statements.append((f"_{part}", ast.parse(text, mode="eval").body))
        statements.append((part, ast.parse(f"_{part} * _{part}", mode="eval").body))
    return statements


def join(small: Any, large: Any) -> Any:
    """Add both parts, numbers or arrays of float64."""
    return small * SMALL**-2 + large * LARGE**-2


def joining(term: str) -> tuple[str, ast.expr]:
    """Give the statement that does in `combine` what `join` does."""
    small, large = parts_of(term)
    return term, ast.parse(f"{small} * {SMALL**-2!r} + {large} * {LARGE**-2!r}", mode="eval").body
