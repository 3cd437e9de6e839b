# Made by docs/generate.py from the registry of rules; do not edit.
"""The named optimizers."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

from fastgd.optimizer import Optimizer

_T = TypeVar("_T")
_OrSchedule: TypeAlias = _T | Callable[[int], _T]  # called with the number of steps taken

__all__ = [
    "GD",
    "LAMB",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
]

class Adam(Optimizer):
    """Adam: a step by the mean of the gradients over the root of the mean of their squares."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        amsgrad: bool = False,
        eps_mode: Literal["outside", "hat", "inside"] = "outside",
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay: the weights shrink by a share of their own, untouched by the denominator."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.01,
        amsgrad: bool = False,
        eps_mode: Literal["outside", "hat", "inside"] = "outside",
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None: ...

class GD(Optimizer):
    """Plain gradient descent: one step against the gradient, no state."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None: ...

class LAMB(Optimizer):
    """LAMB: Adam's direction, per layer scaled to the norm of the layer's parameters."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-06,
        weight_decay: _OrSchedule[float] = 0.01,
        always_adapt: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None: ...

class Lion(Optimizer):
    """Lion: every parameter moves by the same length, in the direction of an interpolated momentum."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.0001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.99),
        weight_decay: _OrSchedule[float] = 0.0,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None: ...

class SGD(Optimizer):
    """Stochastic gradient descent with momentum, dampening, Nesterov's look-ahead and L2 decay."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        momentum: _OrSchedule[float] = 0.0,
        dampening: _OrSchedule[float] = 0.0,
        weight_decay: _OrSchedule[float] = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None: ...
