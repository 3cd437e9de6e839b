"""Compare two reports: what changed beyond the noise.

Machines are shared, so a time alone is no verdict: a step counts as changed where both its time and its share of the
roof of the same run have changed in the same direction, each by more than the spread of what it is made of. What moved
is then the lesser of the two. A machine that is slower today moves the time alone, a roof that was disturbed the share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgd.bench.cases import CASES
from fastgd.bench.measure import ITEMSIZE, Point, Row
from fastgd.bench.peers import PEERS
from fastgd.bench.report import size_text, time_text
from fastgd.bench.run import SCHEMA, Report
from fastgd.kernels.errors import FastGDError

COLUMNS = ("case", "peer", "before", "now", "of roof", "change", "noise", "verdict")
"""Columns of `Comparison.table`."""

_LEAST_NOISE = 0.02  # share: few rounds may agree by chance

Key = tuple[str, int, str, str, int, str]

_CONTRACT = ("rule", "n", "dtype", "regime", "peer", "seconds", "iqr", "roof_share", "max_ulp", "skipped")
_MACHINE = ("cpu", "cores", "cache", "simd", "threads", "threading_layer", "python")


class ReportError(FastGDError, ValueError):
    """A file is no report, or two reports have nothing in common."""


@dataclass(frozen=True)
class Change:
    """One row in both reports.

    Attributes
    ----------
    key
        Rule, elements, dtype, regime, threads, peer.
    before, now
        The rows.
    ratios
        Time now by time before, and likewise in units of each run's roof where both have one; each with its noise, as
        a share: the interquartile ranges of all times in it, added as squares. Empty where one of the rows is skipped.
    ulp_limit
        Largest error of what computes the rule.
    """

    key: Key
    before: Row
    now: Row
    ratios: tuple[tuple[float, float], ...]
    ulp_limit: float

    @property
    def least(self) -> tuple[float, float]:
        """The ratio that changed least, and its noise."""
        return min(self.ratios, key=lambda r: abs(math.log(r[0])))

    @property
    def verdict(self) -> str:
        """One of ``alike faster slower broken mended gone``."""
        wrong = [self.broken(row) for row in (self.before, self.now)]
        if wrong[0] != wrong[1]:
            absent = (self.now["skipped"] or "").startswith("not installed")
            return "mended" if wrong[0] else "gone" if absent else "broken"
        moved = {math.copysign(abs(math.log(ratio)) > math.log1p(noise), ratio - 1) for ratio, noise in self.ratios}
        return "slower" if moved == {1.0} else "faster" if moved == {-1.0} else "alike"

    def broken(self, row: Row) -> bool:
        """Whether a row has no figures, or those of something else than the rule."""
        return row["skipped"] is not None or (row["max_ulp"] is not None and row["max_ulp"] > self.ulp_limit)

    def fails(self, threshold: float) -> bool:
        """Whether fastgd itself became slower by more than a share, beyond the noise, or gives no right result."""
        if not self.key[-1].startswith("fastgd-"):
            return False
        return self.verdict in ("broken", "gone") or (self.verdict == "slower" and self.least[0] > 1 + threshold)


@dataclass(frozen=True)
class Comparison:
    """What two reports say of the same cases.

    Attributes
    ----------
    changes
        Of every row that both have.
    notes
        Sentences on what makes them less comparable: another machine, other versions, load, rows that one lacks.
    """

    changes: list[Change]
    notes: list[str]

    def changed(self) -> list[Change]:
        """Those beyond the noise, what fails first."""
        found = [change for change in self.changes if change.verdict != "alike" and change.key[-1] != "roof"]
        order = ("broken", "gone", "slower", "faster", "mended")
        return sorted(found, key=lambda c: (not c.key[-1].startswith("fastgd-"), order.index(c.verdict)))

    def failures(self, threshold: float) -> list[Change]:
        """Those of fastgd's rows that became worse by more than a share."""
        return [change for change in self.changes if change.fails(threshold)]

    def table(self) -> list[tuple[str, ...]]:
        """Give what changed as text, by the columns of `COLUMNS`."""
        return [_cells(change) for change in self.changed()]

    def summary(self) -> str:
        """Count the verdicts in a line."""
        rows = [change for change in self.changes if change.key[-1] != "roof"]
        verdicts = [change.verdict for change in rows]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts)))
        return f"{len(rows)} rows compared: {counts}"


def load(path: Path) -> Report:
    """Read a report.

    Raises
    ------
    ReportError
        If there is no such file, or it is no report of this schema; says what was found and what was expected.
    """
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ReportError(f"no report {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ReportError(f"{path} must be a report as JSON, given a file that is none: {error}") from None
    if not isinstance(report, dict) or "schema" not in report:
        raise ReportError(f"{path} must be a report: a JSON object with schema, machine and rows, given other JSON")
    if report["schema"] != SCHEMA:
        raise ReportError(f"{path} must be a report of schema {SCHEMA}, given schema {report['schema']!r}")
    rows, machine = report.get("rows"), report.get("machine")
    if not isinstance(rows, list) or not rows or not isinstance(machine, dict):
        raise ReportError(f"{path} must be a report with a machine and at least one row, given none")
    for k, row in enumerate(rows):
        missing = [name for name in _CONTRACT if not isinstance(row, dict) or name not in row]
        if missing:
            raise ReportError(f"{path}: row {k} must have {', '.join(_CONTRACT)}, given one without {missing[0]}")
        if row["skipped"] is None and not (_number(row["seconds"]) > 0 and _number(row["iqr"]) >= 0):
            given = f"{row['seconds']!r} and {row['iqr']!r}"
            raise ReportError(f"{path}: row {k} must have positive seconds and an iqr, or be skipped, given {given}")
    return report


def points(report: Report, most: int) -> tuple[list[Point], list[str]]:
    """Lay out the cases of a report for another run.

    Parameters
    ----------
    report
        As of `load`.
    most
        Threads that there are: cases on more cannot be repeated.

    Returns
    -------
    tuple
        The points, sorted by threads, and sentences on what cannot be repeated.

    Raises
    ------
    ReportError
        If nothing can.
    """
    peers: dict[tuple[Any, ...], list[str]] = {}
    for row in report["rows"]:
        peers.setdefault(_key(row, report)[:-1], []).append(row["peer"])
    made, left_out = [], []
    for (rule, n, dtype, regime, threads), named in peers.items():
        taking = tuple(peer for peer in named if peer in PEERS)
        if rule in CASES and dtype in ITEMSIZE and threads <= most and taking:
            made.append(Point(CASES[rule], n, dtype, regime, threads, taking))
        else:
            left_out.append(_case_text((rule, n, dtype, regime, threads)))
    if not made:
        raise ReportError(f"nothing in the report can be measured here on {most} threads: {'; '.join(left_out)}")
    notes = (
        [f"not measured again, as this fastgd or this machine has it not: {'; '.join(left_out)}"] if left_out else []
    )
    return sorted(made, key=lambda point: -point.threads), notes


def compare(before: Report, now: Report) -> Comparison:
    """Compare row by row.

    Raises
    ------
    ReportError
        If the reports have no row in common.
    """
    old, new = ({_key(row, report): row for row in report["rows"]} for report in (before, now))
    common = [key for key in new if key in old]
    if not common:
        raise ReportError(
            f"the reports have no row in common: {_sample(old)} in the old one, {_sample(new)} in the new one"
        )
    limit = now.get("ulp_limit", math.inf)
    changes = []
    for key in common:
        roofs = [rows.get((*key[:-1], "roof")) for rows in (old, new)]
        changes.append(_change(key, old[key], new[key], roofs, limit))
    notes = [*_machines(before, now), *_loads(before, now)]
    for kind, these, those in (("only in the old report", old, new), ("only in the new report", new, old)):
        lone = [key for key in these if key not in those]
        if lone:
            notes.append(f"{len(lone)} rows are {kind}, such as {_sample(lone)}")
    return Comparison(changes, notes)


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else -1


def _key(row: Row, report: Report) -> Key:
    """Name a row; older reports say once on how many threads all of it ran."""
    threads = row.get("threads", report["machine"].get("threads", 1))
    return row["rule"], row["n"], row["dtype"], row["regime"], threads, row["peer"]


def _change(key: Key, before: Row, now: Row, roofs: Sequence[Row | None], limit: float) -> Change:
    if before["skipped"] is not None or now["skipped"] is not None:
        return Change(key, before, now, (), limit)
    old, new = roofs
    ratios = [_ratio([now], [before])]
    if key[-1] != "roof" and old is not None and new is not None and old["skipped"] is None is new["skipped"]:
        ratios.append(_ratio([now, old], [before, new]))
    return Change(key, before, now, tuple(ratios), limit)


def _ratio(over: Sequence[Row], under: Sequence[Row]) -> tuple[float, float]:
    ratio = math.prod(row["seconds"] for row in over) / math.prod(row["seconds"] for row in under)
    return ratio, math.hypot(_LEAST_NOISE, *(row["iqr"] / row["seconds"] for row in (*over, *under)))


def _machines(before: Report, now: Report) -> list[str]:
    old, new = before["machine"], now["machine"]
    notes = [
        f"another machine or setting: {name} was {old[name]}, is {new[name]}"
        for name in _MACHINE
        if name in old and name in new and old[name] != new[name]
    ]
    versions = [report.get("versions", {}) for report in (old, new)]
    other = [
        f"{name} {versions[0][name]} then, {versions[1][name]} now"
        for name in versions[0]
        if name in versions[1] and versions[0][name] != versions[1][name]
    ]
    return [*notes, f"other versions: {', '.join(other)}"] if other else notes


def _loads(before: Report, now: Report) -> list[str]:
    named = (("old", before), ("new", now))
    return [f"of the {name} report: {text}" for name, report in named for text in report.get("warnings", [])]


def _case_text(key: Sequence[Any]) -> str:
    rule, n, dtype, regime, threads = key[:5]
    return f"{rule} {dtype} {size_text(n)} ({regime}, {threads} thread{'s' if threads != 1 else ''})"


def _sample(keys: Iterable[Key]) -> str:
    first = next(iter(keys))
    return f"{_case_text(first)} {first[-1]}"


def _cells(change: Change) -> tuple[str, ...]:
    def time(row: Row) -> str:
        if row["skipped"] is not None:
            return f"skipped: {row['skipped']}"
        return f"WRONG by {row['max_ulp']:.3g} ULP" if change.broken(row) else time_text(row["seconds"])

    shares = [row["roof_share"] for row in (change.before, change.now)]
    roofs = "" if None in shares else f"{shares[0]:.0%} to {shares[1]:.0%}"
    moved, noise = ("", "") if not change.ratios else (f"{change.least[0] - 1:+.1%}", f"± {change.least[1]:.1%}")
    times = time(change.before), time(change.now)
    return (_case_text(change.key), change.key[-1], *times, roofs, moved, noise, change.verdict)
