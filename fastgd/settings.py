"""What a user asks of the fused tail, checked, and what follows from it at each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastgd.checks import checked_choice, checked_flag, checked_number, checked_whole
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.tail import Tail

_ON_NONFINITE = ("propagate", "skip", "raise")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Tail of an optimizer; the arguments are those of `fastgd.Optimizer`, and so are the attributes.

    Raises
    ------
    HyperparameterError
        For a value of the wrong type or out of range, and for an average asked for twice.
    """

    maximize: bool
    max_norm: float | None
    max_value: float | None
    ema_decay: float | Callable[[int], float] | None
    lookahead: tuple[int, float] | None
    on_nonfinite: str
    zero_grad: bool

    def __post_init__(self) -> None:
        """Check every value and bring it to a plain Python one."""
        checked: dict[str, Any] = {
            "maximize": checked_flag("maximize", self.maximize),
            "zero_grad": checked_flag("zero_grad", self.zero_grad),
        }
        for name in ("max_norm", "max_value"):
            value = getattr(self, name)
            checked[name] = None if value is None else checked_number(name, value, 0.0, math.inf, open_low=True)
        if self.ema_decay is not None and not callable(self.ema_decay):
            checked["ema_decay"] = checked_number("ema_decay", self.ema_decay, 0.0, 1.0)
        checked_choice("on_nonfinite", self.on_nonfinite, _ON_NONFINITE)
        if self.lookahead is not None:
            checked["lookahead"] = _lookahead(self.lookahead)
            if self.ema_decay is not None:
                raise HyperparameterError(
                    f"lookahead must be None with ema_decay={self.ema_decay!r}: there is one average, "
                    f"given {self.lookahead!r}"
                )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def averages(self) -> bool:
        """Whether there is an average of the parameters."""
        return self.ema_decay is not None or self.lookahead is not None

    @property
    def varies(self) -> bool:
        """Whether the average moves at some steps and not at others."""
        return self.lookahead is not None or callable(self.ema_decay)

    @property
    def tails(self) -> tuple[Tail, ...]:
        """Tail of a step that moves the average, and of one that does not, where there are both."""
        resting = Tail(max_value=self.max_value is not None, zero_grad=self.zero_grad)
        if not self.averages:
            return (resting,)
        kind: Any = "ema" if self.lookahead is None else "lookahead"
        moving = Tail(kind, resting.max_value, resting.zero_grad)
        return (moving, resting) if self.varies else (moving,)

    def share(self, k: int) -> float:
        """Share of the new parameters that the average takes over in the step behind `k` steps; 0: it rests."""
        if self.lookahead is not None:
            every, alpha = self.lookahead
            return 0.0 if (k + 1) % every else alpha
        if self.ema_decay is None:
            return 0.0
        if callable(self.ema_decay):
            return 1.0 - checked_number(
                f"ema_decay, of a schedule, after {k} steps", self.ema_decay(k), 0.0, 1.0, closed=True
            )
        return 1.0 - self.ema_decay


def _lookahead(value: Any) -> tuple[int, float]:
    try:
        every, alpha = value
        return checked_whole("every", every, 1), checked_number("alpha", alpha, 0.0, 1.0, open_low=True, closed=True)
    except (TypeError, ValueError):  # a HyperparameterError is one
        raise HyperparameterError(
            f"lookahead must be (every so many steps, share in (0, 1]), as in (5, 0.5), given {value!r}"
        ) from None
