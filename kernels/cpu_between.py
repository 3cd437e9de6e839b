"""What is computed between the sweeps of a step on the CPU, by kernels: of a few numbers NumPy takes 20 µs and more."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]  # carray is public, unmarked
from numpy.typing import NDArray

from fastgd.kernels.between import NamedStates, Terms
from fastgd.kernels.between_code import BetweenCode, codes_between, loop_text
from fastgd.kernels.cpu import FLAGS, CpuSweep, Kernel, _pointer, scalar_kernel, specialise
from fastgd.kernels.printers import scalar_text

_ARRAYS = ("sums", "sizes", "states", "given", "group_of", "rows")
"""Whose addresses a control block has, in this order; the number of rows is behind them."""


def between_text(code: BetweenCode) -> str:
    """Text of ``_rule`` and of the kernel ``_between``, which takes the address of its control block."""
    kinds = {"group_of": "_I", "rows": "_T"}
    lines = [
        "def _between(control):",
        f"    _c = _carray(_pointer(control, _I), {len(_ARRAYS) + 1})",
        *(f"    {name} = _pointer(_c[{k}], {kinds.get(name, '_D')})" for k, name in enumerate(_ARRAYS)),
        f"    n = _c[{len(_ARRAYS)}]",
        *loop_text(code, "0", "1"),
        *(f"    {code.taken(x)} = _kept_{x}" for x in code.kept_once),
    ]
    return scalar_text(code.function, "_rule", "float64") + "\n".join(lines) + "\n"


def _kernel(code: BetweenCode, label: str) -> Kernel:
    """Compiled code between sweeps, from the cache on disk if it is there: takes the address of a control block."""
    text = between_text(code)

    def make(name: str) -> FunctionType:
        # the module: what is loaded from a file asks for it
        names: dict[str, Any] = {"__name__": __name__, "_math": math, "_carray": carray, "_pointer": _pointer}
        names["_T"] = np.float64
        exec(compile(text, f"<{name}>", "exec"), names)
        names["_rule"].__qualname__ = f"{name}_rule"  # a part of the symbol: see fastgd.kernels.cpu
        rule, number = njit(**FLAGS)(names["_rule"]), np.dtype(code.dtype).type
        return specialise(names["_between"], name, _rule=rule, _T=number, _D=np.float64, _I=np.int64)

    return scalar_kernel(f"{label}_{code.function.name}_{code.dtype}_between", text, make)


class _States(NamedStates):
    """Scalar states in an array that kernels read."""

    def __init__(self, starts: Mapping[str, NDArray[np.float64]]) -> None:
        super().__init__(starts)
        self.array = np.array([*starts.values()], np.float64) if starts else np.zeros((0, 1))

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.array[self.row(name)]
        return values

    def __setitem__(self, name: str, values: NDArray[np.float64]) -> None:
        self.array[self.row(name)] = values


class _Step:
    """One of `derive` and `combine`, with its control block."""

    def __init__(self, code: BetweenCode, label: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._code, self._label = code, label
        self._held = [arrays[name] for name in _ARRAYS]
        self._control = np.array([*(a.ctypes.data for a in self._held), len(arrays["group_of"])], np.int64)
        self.run: Callable[[], None] = self._first_run

    def prepare(self) -> None:
        """Compile it or load it from the cache; otherwise the first run does it."""
        self.run = partial(_kernel(self._code, self._label), self._control.ctypes.data)

    def _first_run(self) -> None:
        self.prepare()
        self.run()


class CpuBetween:
    """Runs a rule's `derive` in front of its first sweep and its `combine` behind it.

    See `fastgd.kernels.between.HostBetween`, whose parameters and interface this has: the same numbers by NumPy.
    """

    def __init__(self, terms: Terms, sweep: CpuSweep, rows: Sequence[NDArray[Any]]) -> None:
        plan = terms.plan
        first, last = rows
        self.prepared = plan.given
        self.states: MutableMapping[str, NDArray[np.float64]] = _States(terms.starts)
        columns = [*self.prepared, *(plan.derive.writes if plan.derive else ())]
        self._given = np.zeros((terms.groups, len(columns)))
        self._pack = struct.Struct(f"={len(self.prepared)}d").pack_into
        self._memory = memoryview(self._given.data).cast("B") if self._given.size else memoryview(bytearray())
        self._stride = self._given.itemsize * len(columns)
        self._new = self._array(self.states).copy()
        """What `combine` makes of the states, which are kept until the step is done."""
        arrays = {
            "sums": sweep.sums() if plan.level == "per_segment" else sweep.totals,
            "sizes": terms.summed,
            "states": self._new,
            "given": self._given,
        }
        codes = codes_between(plan, first.dtype.name)  # type: ignore[arg-type]
        every_group = np.arange(terms.groups)
        owners = np.ascontiguousarray(terms.group_of, np.int64)
        self._derive = (
            _Step(codes[plan.derive.name], terms.label, arrays | {"group_of": every_group, "rows": first})
            if plan.derive
            else None
        )
        assert plan.combine is not None
        self._combine = _Step(codes[plan.combine.name], terms.label, arrays | {"group_of": owners, "rows": last})

    @staticmethod
    def _array(states: Any) -> NDArray[np.float64]:
        array: NDArray[np.float64] = states.array
        return array

    def prepare(self) -> None:
        """Compile both or load them from the cache."""
        for step in (self._derive, self._combine):
            if step is not None:
                step.prepare()

    def put(self, index: int, values: Mapping[str, float]) -> None:
        """Take what is prepared for a group."""
        self._pack(self._memory, index * self._stride, *[values[name] for name in self.prepared])

    def begin(self) -> None:
        """Make the scalars of the first sweep that are made of scalar states."""
        if self._derive is not None:
            np.copyto(self._new, self._array(self.states))
            self._derive.run()

    def combine(self) -> None:
        """Make the scalars of the last sweep out of the sums; the same again if it is done twice."""
        np.copyto(self._new, self._array(self.states))
        self._combine.run()

    def keep(self) -> None:
        """Take the new scalar states: the step is done."""
        np.copyto(self._array(self.states), self._new)

    def share(self, other: Any) -> None:
        """Keep the scalar states together with another one."""
        self.states = other.states
