"""Optimizer update rules at the speed of memory, on the arrays you already have.

>>> import numpy as np, fastgd
>>> p = np.ones(3)
>>> opt = fastgd.AdamW(p, lr=0.1)
>>> opt.step(np.ones(3))
>>> opt.t
1

Nothing heavy is loaded before it is used: neither Numba, nor CuPy, nor an extra.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    "FlatParams": "flat",
    "Optimizer": "optimizer",
    "OptimizeResult": "minimize",
    "backends": "backend",
    "minimize": "minimize",
    "fit": "fit",
    "presets": "presets",
    "History": "callbacks",
    "EarlyStopping": "callbacks",
    "LossScaler": "loss_scaler",
    "ReduceOnPlateau": "callbacks",
    "ProgressBar": "callbacks",
} | dict.fromkeys(
    (
        "FastGDError",
        "ArrayError",
        "HyperparameterError",
        "RuleError",
        "BackendUnavailable",
        "NonFiniteError",
        "CheckpointError",
    ),
    "kernels.errors",
)
_MODULES = (
    "backend",
    "bench",
    "callbacks",
    "flat",
    "functional",
    "health",
    "kernels",
    "nn",
    "optimizer",
    "optimizers",
    "schedules",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"fastgd.{_HOMES[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("fastgd")
    elif name in _MODULES:
        return import_module(f"fastgd.{name}")
    elif name.startswith("_"):
        raise AttributeError(f"module 'fastgd' has no attribute {name!r}")
    else:  # the named optimizers follow from the registry of rules
        optimizers = import_module("fastgd.optimizers")
        if name not in optimizers.__all__:
            raise AttributeError(f"module 'fastgd' has no attribute {name!r}")
        value = getattr(optimizers, name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `fastgd.fit`, `minimize` and `presets` what they are, also when their modules of these names are loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("fit", "minimize", "presets") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES, "__version__", *import_module("fastgd.optimizers").__all__})
