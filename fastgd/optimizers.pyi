# Made by docs/generate.py from the registry of rules; do not edit.
"""The named optimizers."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

from fastgd.optimizer import Optimizer

_T = TypeVar("_T")
_OrSchedule: TypeAlias = _T | Callable[[int], _T]  # called with the number of steps taken

__all__ = [
    "ADOPT",
    "ASGD",
    "GD",
    "LAMB",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Grams",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "SophiaG",
    "Yogi",
]

class ADOPT(Optimizer):
    """ADOPT: the gradient is normed by older ones and clipped, and only then averaged."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.9999),
        eps: _OrSchedule[float] = 1e-06,
        weight_decay: _OrSchedule[float] = 0.0,
        decouple: bool = False,
        clip_exponent: _OrSchedule[float | None] = 0.25,
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

class ASGD(Optimizer):
    """ASGD: gradient descent whose step falls as a power of the steps, and whose parameters are averaged."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.01,
        lambd: _OrSchedule[float] = 0.0001,
        alpha: _OrSchedule[float] = 0.75,
        t0: _OrSchedule[float] = 1000000.0,
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

class AdEMAMix(Optimizer):
    """AdEMAMix: a fast and a slow mean of the gradients, mixed, over the root of the mean square."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float, float] | list[float]] = (0.9, 0.999, 0.9999),
        alpha: _OrSchedule[float] = 5.0,
        t_alpha: _OrSchedule[float | None] = None,
        t_beta3: _OrSchedule[float | None] = None,
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.01,
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

class AdaBelief(Optimizer):
    """AdaBelief: large steps where the gradient is what its mean foretold, small ones where it is not."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-16,
        weight_decay: _OrSchedule[float] = 0.0,
        amsgrad: bool = False,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
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

class Adadelta(Optimizer):
    """Adadelta: the root of the mean squared step over the root of the mean squared gradient, times the gradient."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 1.0,
        rho: _OrSchedule[float] = 0.9,
        eps: _OrSchedule[float] = 1e-06,
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

class Adagrad(Optimizer):
    """Adagrad: each parameter's learning rate falls with the sum of its squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.01,
        lr_decay: _OrSchedule[float] = 0.0,
        weight_decay: _OrSchedule[float] = 0.0,
        initial_accumulator_value: _OrSchedule[float] = 0.0,
        eps: _OrSchedule[float] = 1e-10,
        eps_mode: Literal["outside", "inside"] = "outside",
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

class Adamax(Optimizer):
    """Adamax: a step by the mean of the gradients over a decaying maximum of their sizes."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.002,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        eps_mode: Literal["inside", "outside"] = "inside",
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

class Adan(Optimizer):
    """Adan: means of the gradient, of its change and of the square of both together."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float, float] | list[float]] = (0.98, 0.92, 0.99),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        no_prox: bool = False,
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

class Grams(Optimizer):
    """Grams: Adam's step length for each parameter, always against the sign of the present gradient."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-06,
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

class NAdam(Optimizer):
    """NAdam: Adam whose mean of gradients already counts the momentum of the step to come."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.002,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        momentum_decay: _OrSchedule[float] = 0.004,
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

class RAdam(Optimizer):
    """RAdam: Adam with its first steps taken by the momentum alone, and later ones rectified."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        decoupled_weight_decay: bool = False,
        eps_mode: Literal["hat", "outside"] = "hat",
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

class RMSprop(Optimizer):
    """RMSprop: the gradient over the root of a mean of its squares, with momentum and centering as options."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.01,
        alpha: _OrSchedule[float] = 0.99,
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        momentum: _OrSchedule[float] = 0.0,
        centered: bool = False,
        eps_mode: Literal["outside", "inside"] = "outside",
        lr_in_momentum: bool = False,
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

class Rprop(Optimizer):
    """Rprop: each parameter moves by a length of its own against the sign of its gradient, whatever its size."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.01,
        etas: _OrSchedule[tuple[float, float] | list[float]] = (0.5, 1.2),
        step_sizes: _OrSchedule[tuple[float, float] | list[float]] = (1e-06, 50.0),
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
        lr_in_momentum: bool = False,
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

class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW: Adam's denominator, and an average of the iterates in the place of momentum and schedule."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.0025,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        warmup_steps: _OrSchedule[float] = 0.0,
        r: _OrSchedule[float] = 0.0,
        weight_lr_power: _OrSchedule[float] = 2.0,
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

class ScheduleFreeSGD(Optimizer):
    """Schedule-free SGD: gradient descent whose average needs neither a schedule nor the number of steps in advance."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 1.0,
        momentum: _OrSchedule[float] = 0.9,
        weight_decay: _OrSchedule[float] = 0.0,
        warmup_steps: _OrSchedule[float] = 0.0,
        r: _OrSchedule[float] = 0.0,
        weight_lr_power: _OrSchedule[float] = 2.0,
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

class Signum(Optimizer):
    """Signum: every parameter moves by the same length against the sign of a mean of its gradients."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        momentum: _OrSchedule[float] = 0.9,
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

class SophiaG(Optimizer):
    """Sophia-G: the momentum divided by the diagonal of the Hessian as Gauss-Newton-Bartlett estimates it."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.0001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.965, 0.99),
        rho: _OrSchedule[float] = 0.04,
        weight_decay: _OrSchedule[float] = 0.1,
        bs: _OrSchedule[float] = 5120.0,
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

class Yogi(Optimizer):
    """Yogi: Adam with an additive change of the mean square, so that rare large gradients are not forgotten at once."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.01,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 0.001,
        initial_accumulator_value: _OrSchedule[float] = 1e-06,
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
