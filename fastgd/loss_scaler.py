"""Dynamic loss scaling: gradients of a scaled loss, stepped at their true size, and a scale that finds its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgd.checks import checked_number, checked_whole
from fastgd.kernels.errors import CheckpointError, HyperparameterError
from fastgd.optimizer import Optimizer

_LARGEST = float.fromhex("0x1.fffffep+127")  # of float32: as torch, the scale does not grow beyond


class LossScaler:
    """Keeps small gradients from underflow: the loss is multiplied by a scale, the step divides by it.

    Use it where gradients are computed in less than the parameters' precision. A step whose gradients overflow is
    skipped and the scale lowered; after `growth_interval` good steps it is raised. The division rides in the step's
    own pass. The rule is that of ``torch.amp.GradScaler``, and so are the names.

    Parameters
    ----------
    init_scale : float
        First scale, > 0.
    growth_factor : float
        The scale is multiplied by this, > 1, after `growth_interval` steps without overflow.
    backoff_factor : float
        The scale is multiplied by this, in (0, 1), after an overflow.
    growth_interval : int
        Steps, >= 1.

    Raises
    ------
    HyperparameterError
        For a value out of range.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> p = np.ones(2, np.float32)
    >>> opt = fastgd.SGD(p, lr=0.5, on_nonfinite="skip")
    >>> scaler = fastgd.LossScaler(init_scale=4.0, growth_interval=1)
    >>> scaler.step(opt, scaler.scale(np.ones(2, np.float32)))
    True
    >>> scaler.update()
    >>> p, scaler.get_scale()
    (array([0.5, 0.5], dtype=float32), 8.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self._scale = checked_number("init_scale", init_scale, 0.0, open_low=True)
        self.growth_factor = checked_number("growth_factor", growth_factor, 1.0, open_low=True)
        self.backoff_factor = checked_number("backoff_factor", backoff_factor, 0.0, 1.0, open_low=True)
        self.growth_interval = checked_whole("growth_interval", growth_interval, 1)
        self._good = 0  # steps since the scale last changed
        self._stepped = self._overflowed = False  # since the last update

    def scale(self, loss: Any) -> Any:
        """Multiply a loss, or anything, by the scale."""
        return loss * self._scale

    def get_scale(self) -> float:
        """Give the scale."""
        return self._scale

    def step(self, optimizer: Optimizer, grads: Any = None) -> bool:
        """Step by gradients of the scaled loss, or by what was accumulated of them; skip them where they overflow.

        Parameters
        ----------
        optimizer : Optimizer
            With ``on_nonfinite="skip"``.
        grads : optional
            As of `Optimizer.step`.

        Returns
        -------
        bool
            Whether the step was taken.

        Raises
        ------
        HyperparameterError
            For an optimizer that does not skip, which would take the overflow in.
        """
        if not isinstance(optimizer, Optimizer) or optimizer.on_nonfinite != "skip":
            given = getattr(optimizer, "on_nonfinite", type(optimizer).__name__)
            raise HyperparameterError(f"optimizer must be a fastgd optimizer with on_nonfinite='skip', given {given!r}")
        before = optimizer.t
        optimizer.step(grads, scale=1.0 / self._scale)
        taken = optimizer.t > before
        self._stepped = True
        self._overflowed = self._overflowed or not taken
        return taken

    def update(self, new_scale: float | None = None) -> None:
        """Change the scale by what the steps since the last update found; call it once, behind those of all optimizers.

        Parameters
        ----------
        new_scale : float, optional
            Scale from now on, > 0; the count of good steps stays.

        Raises
        ------
        HyperparameterError
            If no step came before it, or for a `new_scale` out of range.
        """
        if new_scale is not None:
            self._scale = checked_number("new_scale", new_scale, 0.0, open_low=True)
        elif not self._stepped:
            raise HyperparameterError("update must follow a step(optimizer), given none since the last update")
        elif self._overflowed:
            self._scale *= self.backoff_factor
            self._good = 0
        else:
            self._good += 1
            if self._good == self.growth_interval:
                self._grow()
        self._stepped = self._overflowed = False

    def _grow(self) -> None:
        self._good = 0
        grown = self._scale * self.growth_factor
        if grown <= _LARGEST:
            self._scale = grown

    def state_dict(self) -> dict[str, float]:
        """Give everything that a resumed run needs, under torch's names."""
        return {
            "scale": self._scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self._good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; all of it or, on an error, nothing.

        Raises
        ------
        CheckpointError, HyperparameterError
            If a value is missing or out of range.
        """
        missing = set(self.state_dict()) - set(state)
        if missing:
            raise CheckpointError(f"the state has no {', '.join(map(repr, sorted(missing)))}")
        names = ("growth_factor", "backoff_factor", "growth_interval")
        made = LossScaler(state["scale"], *(state[name] for name in names))
        made._good = checked_whole("_growth_tracker", state["_growth_tracker"], 0)
        vars(self).update(vars(made))

    def __repr__(self) -> str:
        return f"LossScaler(scale={self._scale!r}, {self._good} good steps of {self.growth_interval})"
