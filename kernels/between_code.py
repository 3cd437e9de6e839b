"""Code between sweeps, as kernels compute it: what is taken and given, and where each number of it lies."""

from __future__ import annotations

from dataclasses import dataclass

from fastgd.kernels.language import Sweep
from fastgd.kernels.plan import Plan
from fastgd.kernels.printers import DType


@dataclass(frozen=True)
class BetweenCode:
    """Code between sweeps: what it computes, and where what it takes and gives lies.

    It is of float64, and makes a row of scalars for each owner of sums. Its arguments are the sums, (owners, sums); the
    number of elements of each owner; the scalar states, (states, owners); what is given for each group, (groups,
    given); the group of each row; the rows and their number. Places are text that C++ and Python read alike: ``r`` is
    the row, ``h`` where what is given for its group begins.

    Attributes
    ----------
    function
        What is computed: its arrays are sums, states or ``size``; its scalars are given.
    dtype
        Of the rows.
    sums, states, given
        Names of the columns, of the states their order.
    row
        Scalars of a row: results, or what is given. Results that are states are stored there, those that are given in
        their column.
    per_segment
        Whether each row has sums and states of its own. Otherwise there is one owner for all rows, and one block.
    spread
        A state that is then copied into cells anywhere: those of `dtype` and those of float64 are two more arguments
        each, addresses and their number.
    """

    function: Sweep
    dtype: DType
    sums: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    per_segment: bool = False
    spread: str = ""

    def taken(self, name: str) -> str:
        """Place of a sum, a state or the number of elements."""
        owner, owners = ("r", "n") if self.per_segment else ("0", "1")
        if name in self.sums:
            return f"sums[{owner} * {len(self.sums)} + {self.sums.index(name)}]"
        return f"states[{self.states.index(name)} * {owners} + {owner}]" if name in self.states else f"sizes[{owner}]"

    def cell(self, name: str) -> str:
        """Place of what is given."""
        return f"given[h + {self.given.index(name)}]"

    @property
    def arguments(self) -> list[str]:
        """What the function takes."""
        return [self.taken(a) for a in self.function.arrays] + [self.cell(s) for s in self.function.scalars]

    @property
    def results(self) -> list[tuple[str, str]]:
        """Places that each row stores, and the result that is stored there, ``_r_`` and its name."""
        results = [x for x in self.function.writes if x in self.given]
        kept = [x for x in self.function.writes if x in self.states and self.per_segment]
        return [(self.cell(x), f"_r_{x}") for x in results] + [(self.taken(x), f"_r_{x}") for x in kept]

    @property
    def row_values(self) -> list[str]:
        """What goes into each cell of a row, float64."""
        return [f"_r_{x}" if x in self.function.writes else self.cell(x) for x in self.row]

    @property
    def kept_once(self) -> list[str]:
        """States that all rows read, which the first row's results replace when they have."""
        return [x for x in self.function.writes if x in self.states and not self.per_segment]


def codes_between(plan: Plan, dtype: DType) -> dict[str, BetweenCode]:
    """Give the code of `derive` and `combine`, by name."""
    made: dict[str, BetweenCode] = {}
    if plan.combine is None:
        return made
    first, last = plan.sweeps
    per_segment = plan.level == "per_segment"
    for function, sweep, by_segment in ((plan.derive, first, False), (plan.combine, last, per_segment)):
        if function is not None:
            made[function.name] = BetweenCode(
                function,
                dtype,
                sums=tuple(first.sums),
                states=plan.summed_states,
                given=(*plan.given, *(plan.derive.writes if plan.derive else ())),
                row=sweep.scalars,
                per_segment=by_segment,
            )
    return made


def loop_text(code: BetweenCode, first: str, step: str) -> list[str]:
    """Text in Python that makes the rows from `first` on, each `step` behind the last one, indented by four.

    It needs the function ``_rule`` and the type ``_T`` of the rows; ``_kept_`` and a state's name is what is left for
    whoever has made the first row.
    """
    results = ", ".join(f"_r_{x}" for x in code.function.writes)
    return [
        *(f"    _kept_{x} = 0.0" for x in code.kept_once),
        f"    r = {first}",
        "    while r < n:",
        f"        h = group_of[r] * {len(code.given)}",
        f"        {results}, = _rule({', '.join(code.arguments)})",
        *(f"        {place} = {result}" for place, result in code.results),
        *(f"        rows[r * {len(code.row)} + {k}] = _T({value})" for k, value in enumerate(code.row_values)),
        *(f"        _kept_{x} = _r_{x} if r == 0 else _kept_{x}" for x in code.kept_once),
        f"        r += {step}",
    ]
