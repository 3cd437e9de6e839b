# Made by docs/generate.py from the registry of rules; do not edit.
"""A step in one call and without an object, one function for each rule."""

from typing import Any, Literal, SupportsIndex, overload

__all__ = [
    "adam_",
    "adamw_",
    "gd_",
    "lamb_",
    "lion_",
    "sgd_",
]

@overload
def adam_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    betas: tuple[float, float] | list[float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    decoupled_weight_decay: bool = False,
    scale: float = 1.0,
) -> None: ...
@overload
def adam_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    vmax: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    betas: tuple[float, float] | list[float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    decoupled_weight_decay: bool = False,
    scale: float = 1.0,
) -> None: ...
@overload
def adamw_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    betas: tuple[float, float] | list[float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    scale: float = 1.0,
) -> None: ...
@overload
def adamw_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    vmax: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    betas: tuple[float, float] | list[float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    scale: float = 1.0,
) -> None: ...
def gd_(
    p: Any,
    g: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    scale: float = 1.0,
) -> None: ...
def lamb_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    betas: tuple[float, float] | list[float] = (0.9, 0.999),
    eps: float = 1e-06,
    weight_decay: float = 0.01,
    always_adapt: bool = False,
    scale: float = 1.0,
) -> None: ...
def lion_(
    p: Any,
    g: Any,
    m: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.0001,
    betas: tuple[float, float] | list[float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    scale: float = 1.0,
) -> None: ...
@overload
def sgd_(
    p: Any,
    g: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    scale: float = 1.0,
) -> None: ...
@overload
def sgd_(
    p: Any,
    g: Any,
    b: Any,
    /,
    t: SupportsIndex,
    *,
    lr: float = 0.001,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    scale: float = 1.0,
) -> None: ...
