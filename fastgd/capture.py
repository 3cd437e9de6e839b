"""A step recorded in a CUDA graph, and replayed with the numbers of each new step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastgd.layout import Layout
from fastgd.targets import Arrays


class CapturedStep:
    """What `fastgd.Optimizer.capture` gives.

    The numbers of a step lie in small arrays on the GPU, which the graph reads: they are brought up to date in front of
    each replay.

    Attributes
    ----------
    gradients : Arrays
        Those that each replay reads.
    """

    def __init__(
        self, replay: Callable[[CapturedStep, float], None], gradients: Arrays, before: Callable[[], object] | None
    ) -> None:
        self._replay = replay
        self.gradients = gradients
        self._before = before
        self._recorded: tuple[Any, ...] = ()
        self._graph: Any = None
        self._memory: Any = None

    def replay(self, scale: float = 1.0) -> None:
        """Take a step: launch the graph, on CuPy's current stream.

        Parameters
        ----------
        scale : float
            As of `fastgd.Optimizer.step`.

        Raises
        ------
        HyperparameterError, ArrayError, FastGDError
            As of `fastgd.Optimizer.step`.
        """
        self._replay(self, scale)

    def runs(self, layout: Layout) -> list[Callable[[], None]]:
        """Give what runs the step that `layout` would run; it is recorded when that has changed."""
        from fastgd.kernels.cuda_cupy import record, run_all

        program, check = layout.program, layout.check
        program.upload()
        sweeps: Any = [sweep for launch in program.launches for sweep in launch.sweeps]
        parts = [sweep.launches for sweep in sweeps]
        if check is not None and check.clips_unseen:
            parts.insert(0, check.launches)
        if len(parts) != len(self._recorded) or any(a is not b for a, b in zip(parts, self._recorded, strict=True)):
            self._graph, self._memory = record(self._before, [launch for part in parts for launch in part])
            self._recorded = tuple(parts)
        counted = partial(run_all, [self._graph.launch, *(sweep.count for sweep in sweeps)])
        if check is not None and check.clips_unseen:
            check.sees_no_norm()
        return [counted, *(launch.keep for launch in program.launches)]
