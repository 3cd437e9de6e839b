"""What is asked of the gradient before a step: its global norm, and whether it is finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastgd.backend import Maker
from fastgd.kernels.errors import NonFiniteError
from fastgd.kernels.reference import compile_text
from fastgd.kernels.tail import clip_factor, gradient_norm, nonfinite_count
from fastgd.memory import to_host
from fastgd.targets import Arrays, Targets


class GradientCheck:
    """Norm, check and clip of the gradient, in one read of it.

    Where the host need not know what comes of it, and the gradient lies on a GPU, it stays there: see `clips_unseen`.

    Parameters
    ----------
    targets
        The parameters that the gradients mirror.
    make
        Makes sweeps on the backend.
    max_norm
        Global norm that is clipped to, or None.
    on_nonfinite
        ``"propagate"``, ``"skip"`` or ``"raise"``.
    """

    def __init__(self, targets: Targets, make: Maker, max_norm: float | None, on_nonfinite: str) -> None:
        self._targets = targets
        self._max_norm = max_norm
        self._on_nonfinite = on_nonfinite
        self._largest = float(np.finfo(targets.dtype).max)
        wide = targets.dtype == np.float64
        sizes = [s.size for s in targets.segments]
        self._factor = np.ones((1, 1), targets.dtype)
        self._squares = make(gradient_norm(wide=wide), sizes, [0] * len(sizes), np.ones_like(self._factor), "gradient")
        self._nonfinite: Any = None
        if on_nonfinite != "propagate":
            self._nonfinite = make(nonfinite_count(), sizes, [0] * len(sizes), self._factor, "nonfinite_count")
        function = clip_factor(wide=wide)
        self._clip = compile_text(function, np.dtype(np.float64))
        self._unseen: Any = make.clip(self._squares, function, targets.dtype) if on_nonfinite == "propagate" else None
        self._gradients: Arrays | None = None
        self._norm: float | None = None
        self._norm_is_unseen = False

    @property
    def clips_unseen(self) -> bool:
        """Whether the norm and the clip are computed where the gradient lies, and nobody waits for them."""
        return self._unseen is not None

    @property
    def norm(self) -> float | None:
        """Norm of the last step."""
        if self._norm_is_unseen:
            self._norm, self._norm_is_unseen = self._unseen.norm(), False
        return self._norm

    @norm.setter
    def norm(self, value: float | None) -> None:
        self._norm, self._norm_is_unseen = value, False

    def bind(self, gradients: Arrays) -> None:
        """Take the gradients."""
        self._gradients = gradients
        self._squares.bind("g", *gradients)
        if self._nonfinite is not None:
            self._nonfinite.bind("g", *gradients)

    def measure(self, factor: float) -> float | None:
        """Find what the gradient is multiplied by: `factor`, clipped; None where the step is to be skipped.

        Raises
        ------
        NonFiniteError
            For NaN or infinity in the gradient times `factor`, where that is wanted.
        """
        norm, clipped = self._look(factor)
        if self._on_nonfinite != "propagate" and not self._is_finite(norm, factor):
            if self._on_nonfinite == "raise":
                raise NonFiniteError(self._first_nonfinite(factor))
            self.norm = norm
            return None
        self.norm = norm
        return clipped

    def prepare_unseen(self, factor: float, cells: tuple[Sequence[int], Sequence[int]]) -> None:
        """Have all ready for `clip_unseen`: where the factor goes, in the parameters' dtype and in float64."""
        assert self._unseen is not None
        self._unseen.aim(cells)
        self._unseen.upload(factor=factor, max_norm=self._max_norm)

    def clip_unseen(self) -> None:
        """Compute the norm, and put the clipped factor in its place."""
        assert self._unseen is not None
        self._unseen.run()
        self._norm_is_unseen = True

    @property
    def launches(self) -> list[Callable[[], object]]:
        """What `clip_unseen` launches, in a list that is replaced when it changes."""
        assert self._unseen is not None
        launches: list[Callable[[], object]] = self._unseen.launches
        return launches

    def sees_no_norm(self) -> None:
        """Have `norm` be read from the GPU, as behind `clip_unseen`."""
        self._norm_is_unseen = True

    def clipped(self, factor: float) -> float:
        """`factor`, clipped, of a step that is only looked at: nothing is raised and no norm is kept."""
        return self._look(factor)[1]

    def _look(self, factor: float) -> tuple[float, float]:
        """Norm of the gradient times `factor`, and `factor`, clipped."""
        self._squares.run()
        with np.errstate(all="ignore"):
            norm, clipped = self._clip(*self._squares.total(), factor, self._max_norm or math.inf)
        return float(norm), factor if self._max_norm is None else float(clipped)

    def _is_finite(self, norm: float, factor: float) -> bool:
        if norm <= self._largest:
            return True
        # What is clipped may pass float32's range in between; what is not is an overflow.
        self._factor[0, 0] = factor if self._max_norm is None else 1.0
        self._nonfinite.run()
        return not self._nonfinite.total()[0]

    def _first_nonfinite(self, factor: float) -> str:
        assert self._gradients is not None
        with np.errstate(all="ignore"):
            for segment, part in zip(self._targets.segments, self._targets.views(self._gradients), strict=True):
                values = to_host(part)
                bad = np.flatnonzero(~np.isfinite(values * values.dtype.type(factor)))
                if bad.size:
                    k = int(bad[0])
                    value = values[k].item()
                    index = tuple(int(i) for i in np.unravel_index(k, segment.shape))
                    times = f", times {factor:g}," if math.isfinite(value) else ""
                    return f"the gradient of {segment.name!r} is {value:g}{times} at {index}; nothing was changed"
        raise AssertionError("a non-finite element was counted and is not there")
