"""Several gradients added up for one step, each scaled and added in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgd.backend import Maker, SweepOnArrays
from fastgd.kernels.tail import accumulation
from fastgd.memory import copy_into, to_host, zeros
from fastgd.targets import Arrays, Targets


class Accumulator:
    """Sum of gradients, kept for the step that they make together.

    Parameters
    ----------
    targets
        The parameters that the gradients mirror.
    make
        Makes sweeps on the backend.
    zero_grad
        Whether each gradient is set to zero once it is added.

    Attributes
    ----------
    step : int
        Number of the step that the sum is for; it is spent when that step is taken, with nothing to be done.
    sum : Arrays
        The sum, flat as a state is.
    """

    def __init__(self, targets: Targets, make: Maker, zero_grad: bool) -> None:
        flat = zeros(targets.extent, targets.dtype, targets.memory)
        self.step = 0
        self.sum = Arrays([flat], targets.flat)
        self._factor = np.zeros((1, 1), targets.dtype)
        sizes = [s.size for s in targets.segments]

        def sweep(label: str, *, begin: bool) -> SweepOnArrays:
            made = make(accumulation(begin=begin, zero_grad=zero_grad), sizes, [0] * len(sizes), self._factor, label)
            made.bind("acc", *self.sum)
            made.prepare()  # what cannot be compiled is found out before anything is summed
            return made

        self._begin, self._add = sweep("begin_sum", begin=True), sweep("add_to_sum", begin=False)
        self._added_before = 0
        targets.take("the accumulated gradient", [flat])

    @property
    def count(self) -> int:
        """How many gradients the sum holds; the kernels count."""
        return 1 + self._add.runs - self._added_before

    def add(self, gradients: Arrays, factor: float, step: int) -> None:
        """Add a gradient times `factor` to the sum for `step`; Ctrl-C is raised behind it."""
        begins = self.step != step
        sweep = self._begin if begins else self._add
        sweep.bind("g", *gradients)
        self._factor[0, 0] = factor
        if begins:
            self._added_before = self._add.runs
        runs = sweep.runs
        try:
            sweep.run()
            self.step = step
        except (KeyboardInterrupt, SystemExit):
            while self.step != step or sweep.runs == runs:
                try:
                    if sweep.runs == runs:
                        sweep.resume()
                    self.step = step
                except (KeyboardInterrupt, SystemExit):  # another one
                    pass
            raise
        except BaseException:
            if sweep.runs == runs:  # parts of it may be in the sum
                self.step = 0
            raise

    def save(self) -> dict[str, Any]:
        """Copy the sum and the number of its gradients."""
        return {"count": self.count, "sum": to_host(self.sum.arrays[0])}

    def restore(self, saved: Mapping[str, Any] | None, step: int) -> None:
        """Take over what `save` gave, for `step`; None drops what there is."""
        self.step = 0
        if saved is not None:
            copy_into(self.sum.arrays[0], saved["sum"])
            self._added_before = self._add.runs + 1 - saved["count"]
            self.step = step
