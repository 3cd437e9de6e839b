"""A report, case by case: fastgd's row, the roof's, and every other peer's time as a multiple of fastgd's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastgd.bench.report import ratio, size_text

Row = dict[str, Any]
Report = dict[str, Any]

OWN, ROOF = "fastgd-numba", "roof"
BY_SIZE = ("small", "cache", "dram")
"""Regimes that follow from the number of elements alone."""
LEVEL = 0.02
"""Times closer than this are level: less is within the noise of a quiet machine."""

_NO_RIVALS = (ROOF, "matmul")  # the limit, and a part of a step


@dataclass(frozen=True)
class Case:
    """What one case of a report came to.

    Attributes
    ----------
    rule, n, dtype, regime
        Which one it is.
    rows
        By peer, as they stand in the report.
    ulp_limit
        Beyond it a peer computes something else, and its time is no comparison.
    """

    rule: str
    n: int
    dtype: str
    regime: str
    rows: dict[str, Row]
    ulp_limit: float

    @property
    def name(self) -> str:
        """What to call it: its regime too, if that is not to be seen from its size."""
        regime = "" if self.regime in BY_SIZE else f", {self.regime}"
        return f"{self.rule} {self.dtype}, {elements(self.n)}{regime}"

    @property
    def own(self) -> Row | None:
        """Row of fastgd, if it has a time."""
        row = self.rows.get(OWN)
        return row if row and row["skipped"] is None else None

    @property
    def rivals(self) -> list[str]:
        """Peers that take such a step and are not fastgd, measured or not."""
        return [peer for peer in self.rows if peer not in _NO_RIVALS and not peer.startswith("fastgd-")]

    def wrong(self, peer: str) -> bool:
        """Say whether a peer computes something else than the rule."""
        error = self.rows[peer]["max_ulp"]
        return error is not None and not error <= self.ulp_limit

    def ratio(self, peer: str) -> float | None:
        """Give a peer's time as a multiple of fastgd's; None where there is none, or none that counts."""
        row = self.rows.get(peer)
        if row is None or self.own is None or row["skipped"] is not None or self.wrong(peer):
            return None
        return ratio(row, self.own)

    @property
    def lead(self) -> float | None:
        """The fastest rival's time as a multiple of fastgd's; None without both."""
        return min((ratio for peer in self.rivals if (ratio := self.ratio(peer)) is not None), default=None)


def elements(n: int) -> str:
    """Write a number of elements in a word or two: 4 k, 64 M, 124 million."""
    return size_text(n) if n % 1024 == 0 or n < 10_000 else f"{n / 1e6:.3g} million"


def cases(report: Report) -> list[Case]:
    """Put the rows of each case together, in the report's order."""
    found: dict[tuple[str, int, str, str], dict[str, Row]] = {}
    for row in report["rows"]:
        found.setdefault((row["rule"], row["n"], row["dtype"], row["regime"]), {})[row["peer"]] = row
    return [Case(*key, rows, report["ulp_limit"]) for key, rows in found.items()]
