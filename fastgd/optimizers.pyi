# Made by docs/generate.py from the registry of rules; do not edit.
"""The named optimizers."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

from fastgd.kernels.rule import Rule
from fastgd.optimizer import Optimizer

_T = TypeVar("_T")
_OrSchedule: TypeAlias = _T | Callable[[int], _T]  # called with the number of steps taken

__all__ = [
    "ADOPT",
    "ASGD",
    "CAME",
    "GD",
    "LAMB",
    "LARS",
    "MARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "DAdaptAdam",
    "Grams",
    "Lion",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "SophiaG",
    "StableAdamW",
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

class Adafactor(Optimizer):
    """Adafactor: Adam without momentum, with a second moment of n + m numbers for a matrix of n · m."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.01,
        beta2_decay: _OrSchedule[float] = -0.8,
        eps: _OrSchedule[tuple[float | list[float] | None, float]] = (None, 0.001),
        d: _OrSchedule[float] = 1.0,
        weight_decay: _OrSchedule[float] = 0.0,
        beta1: _OrSchedule[float] = 0.0,
        form: Literal["torch", "paper"] = "torch",
        scale_parameter: bool = True,
        relative_step: bool = True,
        fallback: Rule | None = None,
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
        cautious: bool = False,
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
        cautious: bool = False,
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

class CAME(Optimizer):
    """CAME: Adafactor with momentum, whose step is short where the updates disagree with their mean."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.0002,
        eps: _OrSchedule[tuple[float, float] | list[float]] = (1e-30, 1e-16),
        clip_threshold: _OrSchedule[float] = 1.0,
        betas: _OrSchedule[tuple[float, float, float] | list[float]] = (0.9, 0.999, 0.9999),
        weight_decay: _OrSchedule[float] = 0.0,
        fallback: Rule | None = None,
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

class DAdaptAdam(Optimizer):
    """Adam by D-adaptation: the learning rate is a lower bound of the distance to the solution, which only grows."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 1.0,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: _OrSchedule[float] = 1e-06,
        growth_rate: _OrSchedule[float | None] = None,
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
        bias_correction: bool = True,
        grad_averaging: bool = True,
        adam_w_mode: bool = True,
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

class LARS(Optimizer):
    """LARS: SGD with momentum whose rate follows, layer by layer, the ratio of the norms of weights and gradient."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 1.0,
        momentum: _OrSchedule[float] = 0.0,
        dampening: _OrSchedule[float] = 0.0,
        weight_decay: _OrSchedule[float] = 0.0,
        nesterov: bool = False,
        trust_coeff: _OrSchedule[float] = 0.001,
        eps: _OrSchedule[float] = 1e-08,
        trust_clip: bool = False,
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
        cautious: bool = False,
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

class MARS(Optimizer):
    """MARS: AdamW, or Lion, on a gradient that is corrected by its change since the last step."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.003,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.95, 0.99),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        gamma: _OrSchedule[float] = 0.025,
        amsgrad: bool = False,
        mars_type: Literal["mars-adamw", "mars-lion"] = "mars-adamw",
        fallback: Rule | None = ...,
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

class Muon(Optimizer):
    """Muon: a matrix moves along its momentum with all singular values brought near 1."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        weight_decay: _OrSchedule[float] = 0.1,
        momentum: _OrSchedule[float] = 0.95,
        nesterov: bool = True,
        ns_coefficients: _OrSchedule[tuple[float, float, float] | list[float]] = (3.4445, -4.775, 2.0315),
        eps: _OrSchedule[float] = 1e-07,
        ns_steps: _OrSchedule[int] = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None,
        fallback: Rule | None = ...,
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

class NovoGrad(Optimizer):
    """NovoGrad: momentum of gradients over a running mean of their layer's norm, one number for each layer."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        reg_inside_moment: bool = False,
        init_zero: bool = False,
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

class Prodigy(Optimizer):
    """Prodigy: Adam whose learning rate is an estimate of the distance to the solution, which only grows."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 1.0,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.999),
        beta3: _OrSchedule[float | None] = None,
        eps: _OrSchedule[float] = 1e-08,
        weight_decay: _OrSchedule[float] = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: _OrSchedule[float] = 1e-06,
        d_coef: _OrSchedule[float] = 1.0,
        growth_rate: _OrSchedule[float | None] = None,
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

class StableAdamW(Optimizer):
    """StableAdamW: AdamW with Adafactor's clip: a layer's rate shrinks where its gradient outruns its second moment."""

    def __init__(
        self,
        params: Any,
        lr: _OrSchedule[float] = 0.001,
        betas: _OrSchedule[tuple[float, float] | list[float]] = (0.9, 0.99),
        eps: _OrSchedule[float] = 1e-06,
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
