"""A step recorded in a CUDA graph, and replayed with the numbers of each new step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastgd.layout import Layout
from fastgd.program import Program
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
        self._graphs: dict[int, _Recorded] = {}

    def replay(self, scale: float = 1.0) -> None:
        """Take a step: launch the graph, on the stream of a step.

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
        """Give what runs the step that `layout` would run; recorded when it first does, and when launches have changed.

        A tail whose average moves at some steps only has two programs, which may alternate: each keeps its graph.
        """
        program, check = layout.program, layout.check
        program.upload()
        sweeps: Any = [sweep for launch in program.launches for sweep in launch.sweeps]
        gpu = sweeps[0].gpu
        parts = [sweep.launches for sweep in sweeps]
        if check is not None and check.clips_unseen:
            parts.insert(0, check.launches)
            check.sees_no_norm()
        known = self._graphs.get(id(program))
        if known is None or not known.is_of(parts):
            graph, memory = gpu.record(self._before, [launch for part in parts for launch in part])
            known = self._graphs[id(program)] = _Recorded(program, parts, graph, memory)
        counted = partial(gpu.run_all, [known.graph.launch, *(sweep.count for sweep in sweeps)])
        return [counted, *(launch.keep for launch in program.launches)]


@dataclass(frozen=True)
class _Recorded:
    """A graph, and what must live as long: the program, the lists of launches, memory taken while it was recorded."""

    program: Program
    parts: list[list[Callable[[], object]]]
    graph: Any
    memory: Any

    def is_of(self, parts: list[list[Callable[[], object]]]) -> bool:
        """Whether it is of these very lists."""
        return len(parts) == len(self.parts) and all(map(operator.is_, parts, self.parts))
