"""Arguments that make a rule what another library has under the same name.

>>> import numpy as np, fastgd
>>> opt = fastgd.Adam(np.ones(3), **fastgd.presets["keras"]["Adam"])
>>> opt.param_groups[0]["eps"], opt.param_groups[0]["eps_mode"]
(1e-07, 'hat')

Each is the library's defaults and its conventions: where ε stands, where the learning rate enters the momentum, how
the momentum warms up. ``lr`` is missing where the library asks for it. A rule is missing where the library computes
something that no argument here gives; the rule's docstring says what.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastgd.kernels.rules import RULES

_BETAS = (0.9, 0.999)

# The names and defaults of these rules are torch's own.
_TORCH = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")

_OPTAX: dict[str, dict[str, Any]] = {
    "SGD": dict(momentum=0.0, nesterov=False, lr_in_momentum=False),
    "Adam": dict(betas=_BETAS, eps=1e-8, eps_mode="outside"),
    "AdamW": dict(betas=_BETAS, eps=1e-8, weight_decay=1e-4, eps_mode="outside"),
    "Adamax": dict(betas=_BETAS, eps=1e-8, eps_mode="inside"),
    "RAdam": dict(betas=_BETAS, eps=1e-8, eps_mode="outside"),
    "Adagrad": dict(initial_accumulator_value=0.1, eps=1e-7, eps_mode="inside"),
    "Adadelta": dict(rho=0.9, eps=1e-6),
    "RMSprop": dict(alpha=0.9, eps=1e-8, eps_mode="inside", momentum=0.0, lr_in_momentum=True),
    "Lion": dict(betas=(0.9, 0.99), weight_decay=1e-3),
    "LAMB": dict(betas=_BETAS, eps=1e-6, weight_decay=0.0, always_adapt=True),
    "Yogi": dict(betas=_BETAS, eps=1e-3, initial_accumulator_value=1e-6),
}

_KERAS: dict[str, dict[str, Any]] = {
    "SGD": dict(lr=1e-2, momentum=0.0, nesterov=False, lr_in_momentum=True),
    "Adam": dict(lr=1e-3, betas=_BETAS, eps=1e-7, eps_mode="hat"),
    "AdamW": dict(lr=1e-3, betas=_BETAS, eps=1e-7, weight_decay=4e-3, eps_mode="hat"),
    "Adamax": dict(lr=1e-3, betas=_BETAS, eps=1e-7, eps_mode="outside"),
    "NAdam": dict(lr=1e-3, betas=_BETAS, eps=1e-7, momentum_decay=1.0),
    "Adagrad": dict(lr=1e-3, initial_accumulator_value=0.1, eps=1e-7, eps_mode="inside"),
    "Adadelta": dict(lr=1e-3, rho=0.95, eps=1e-7),
    "RMSprop": dict(lr=1e-3, alpha=0.9, eps=1e-7, eps_mode="inside", momentum=0.0, lr_in_momentum=True),
    "Lion": dict(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0),
}


def _defaults(name: str) -> dict[str, Any]:
    rule = RULES[name.lower()]()
    return {n: getattr(rule, n) for n in rule.hyperparameters()}


def _frozen(table: Mapping[str, dict[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType({name: MappingProxyType(arguments) for name, arguments in table.items()})


presets: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "torch": _frozen({name: _defaults(name) for name in _TORCH}),
        "optax": _frozen(_OPTAX),
        "keras": _frozen(_KERAS),
    }
)
"""By library, then by the name of the class; read only."""
