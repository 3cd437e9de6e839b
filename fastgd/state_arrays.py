"""The arrays that a rule keeps from step to step: one flat array for each name, with a part for each segment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.flat import extent, lay_out
from fastgd.kernels.blocks import Where
from fastgd.kernels.matrix import size_of
from fastgd.launch import Launch
from fastgd.memory import view, zeros
from fastgd.program import Program
from fastgd.targets import Arrays, Targets


@dataclass(frozen=True)
class StateArray:
    """One state.

    Attributes
    ----------
    array
        1-D; each part starts at a multiple of 64 elements.
    offsets
        Where each segment's part starts.
    sizes
        Its elements; 0 where a segment has none.
    """

    array: NDArray[Any]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def arrays(self) -> Arrays:
        """The state as a launch takes it."""
        return Arrays([self.array], Where(np.zeros(len(self.offsets), np.int64), np.array(self.offsets, np.int64)))

    def part(self, segment: int) -> NDArray[Any]:
        """View of a segment's part, 1-D."""
        part: NDArray[Any] = view(self.array, self.offsets[segment], (self.sizes[segment],))
        return part


def lay_out_states(program: Program, targets: Targets) -> dict[str, StateArray]:
    """Make the arrays of all states, zero, by their outer names.

    A state of the groups' own rules has a part for each segment that these rules serve, and one of their fallbacks for
    each segment that is left to them; so its parts lie where the parameters do wherever there is no fallback.
    """
    made: dict[str, StateArray] = {}
    for name in dict.fromkeys(name for launch in program.launches for name in launch.states.values()):
        users = [launch for launch in program.launches if name in launch.states.values()]
        sizes = [0] * len(targets.segments)
        for launch in program.launches:
            if any(launch.is_fallback == user.is_fallback for user in users):
                for s in launch.segments:
                    sizes[s] = _size(launch, name, targets.segments[s].shape)
        placed = lay_out({str(s): (size,) for s, size in enumerate(sizes)})
        array = zeros(extent(placed), targets.dtype, targets.memory)
        made[name] = StateArray(array, tuple(p.offset for p in placed), tuple(sizes))
    return made


def _size(launch: Launch, name: str, shape: tuple[int, ...]) -> int:
    """Elements of a segment's part; of a state that only other options ask for, as many as the segment has."""
    for short, outer in launch.states.items():
        if outer == name:
            return size_of(launch.plan.state_shape(short, shape))
    return math.prod(shape) if launch.plan.matrix is None else 0
