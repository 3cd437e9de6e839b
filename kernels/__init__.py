"""Update rules, the language they are written in, and the sweeps that run them.

Write a rule with `Rule` and the functions of the rule language; see `fastgd.kernels.rules` for those that ship.
"""

# The guard stands before the imports: they would fail less clearly.
if __name__ != "fastgd.kernels":
    raise ImportError(
        f"this package is `fastgd.kernels`, imported here as `{__name__}`: "
        "install fastgd, or put the project's root on sys.path, and `import fastgd.kernels`"
    )

from importlib import import_module
from typing import Any

from fastgd.kernels.language import (
    clip,
    copysign,
    maximum,
    minimum,
    per_segment,
    sign,
    sqrt,
    squared,
    total,
)
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.rule import Rule

__all__ = [
    "MatrixRule",
    "Rule",
    "clip",
    "copysign",
    "device",
    "maximum",
    "minimum",
    "per_segment",
    "sign",
    "sqrt",
    "squared",
    "total",
]


def __getattr__(name: str) -> Any:
    if name == "device":  # loads Numba
        from fastgd.kernels.cpu_device import device

        return device
    if name == "rules":
        return import_module("fastgd.kernels.rules")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
