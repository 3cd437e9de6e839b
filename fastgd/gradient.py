"""What is asked of the gradient before a step: its global norm, and whether it is finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastgd.backend import SweepOnArrays
from fastgd.kernels.blocks import sums_of_terms
from fastgd.kernels.errors import NonFiniteError
from fastgd.kernels.language import Sweep
from fastgd.kernels.tail import gradient_norm, nonfinite_count
from fastgd.targets import Arrays, Targets


class _Total:
    """One term of the gradient times a factor, summed over all segments."""

    def __init__(self, sweep: Sweep, label: str, targets: Targets, make: Callable[..., SweepOnArrays]) -> None:
        sizes = [s.size for s in targets.segments]
        self._sweep = sweep
        self._factor = np.zeros((1, 1), targets.dtype)
        self._runner = make(sweep, sizes, [0] * len(sizes), self._factor, label)

    def bind(self, gradients: Arrays) -> None:
        self._runner.bind("g", *gradients)

    def __call__(self, factor: float) -> float:
        self._factor[0, 0] = factor
        self._runner.run()
        (total,) = sums_of_terms(self._sweep, self._runner.total()).values()
        return float(total)


class GradientCheck:
    """Norm, check and clip of the gradient, in one read of it.

    Parameters
    ----------
    targets
        The parameters that the gradients mirror.
    make
        Constructor of a sweep on the backend.
    max_norm
        Global norm that is clipped to, or None.
    on_nonfinite
        ``"propagate"``, ``"skip"`` or ``"raise"``.
    """

    def __init__(
        self, targets: Targets, make: Callable[..., SweepOnArrays], max_norm: float | None, on_nonfinite: str
    ) -> None:
        self._targets = targets
        self._max_norm = max_norm
        self._on_nonfinite = on_nonfinite
        self._squares = _Total(gradient_norm(), "gradient_norm", targets, make)
        self._nonfinite = _Total(nonfinite_count(), "nonfinite_count", targets, make)
        self._gradients: Arrays | None = None
        self.norm: float | None = None

    def bind(self, gradients: Arrays) -> None:
        """Take the gradients."""
        self._gradients = gradients
        self._squares.bind(gradients)
        self._nonfinite.bind(gradients)

    def measure(self, factor: float) -> float | None:
        """Find what the gradient is multiplied by: `factor`, clipped; None where the step is to be skipped.

        Raises
        ------
        NonFiniteError
            For NaN or infinity in the gradient times `factor`, where that is wanted.
        """
        norm, finite = self._look(factor)
        if not finite and self._on_nonfinite == "raise":
            raise NonFiniteError(self._first_nonfinite(factor))
        self.norm = norm
        if not finite and self._on_nonfinite == "skip":
            return None
        return self._clip(factor, norm)

    def clipped(self, factor: float) -> float:
        """`factor`, clipped, of a step that is only looked at: nothing is raised and no norm is kept."""
        return self._clip(factor, self._look(factor)[0])

    def _clip(self, factor: float, norm: float) -> float:
        if self._max_norm is None:
            return factor
        clip = self._max_norm / (norm + 1e-6)
        return factor * (1.0 if clip > 1.0 else clip)  # a NaN stays

    def _look(self, factor: float) -> tuple[float, bool]:
        """Norm of the gradient times `factor`, and whether every element is finite."""
        norm = math.sqrt(self._squares(factor))
        if math.isfinite(norm):
            return norm, True
        # What is clipped may pass float32's range in between; what is not is an overflow.
        if self._nonfinite(factor if self._max_norm is None else 1.0):
            return norm, False
        shift = 1.0 if self._targets.dtype == np.float32 else 2.0**600  # finite, and squares of float64 overflow
        return math.sqrt(self._squares(1 / shift)) * shift * abs(factor), True

    def _first_nonfinite(self, factor: float) -> str:
        assert self._gradients is not None
        with np.errstate(all="ignore"):
            for segment, part in zip(self._targets.segments, self._targets.views(self._gradients), strict=True):
                bad = np.flatnonzero(~np.isfinite(part * part.dtype.type(factor)))
                if bad.size:
                    k = int(bad[0])
                    value = part[k].item()
                    index = tuple(int(i) for i in np.unravel_index(k, segment.shape))
                    times = f", times {factor:g}," if math.isfinite(value) else ""
                    return f"the gradient of {segment.name!r} is {value:g}{times} at {index}; nothing was changed"
        raise AssertionError("a non-finite element was counted and is not there")
