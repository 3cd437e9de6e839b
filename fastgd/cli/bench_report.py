"""What `fastgd bench` does with whole reports: measures every regime, writes, reads and compares them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastgd.bench import compare
from fastgd.bench.regimes import FULL, QUICK, points
from fastgd.bench.report import OVERVIEW, overview, write_json, write_markdown
from fastgd.bench.run import report_of
from fastgd.cli.output import progress, refusals, show_table
from fastgd.kernels.cpu_threads import available_threads

Report = dict[str, Any]

_ROUNDS = {True: 3, False: 11}  # quick, full


def measure_regimes(
    quick: bool,
    rounds: int | None,
    threads: int | None,
    rules: Sequence[str] | None,
    peers: Sequence[str] | None,
) -> Report:
    """Measure all that a report is made of, and show a line for each case."""
    with progress() as show:
        chosen = points(QUICK if quick else FULL, available_threads(threads), rules, peers)
        report = report_of(chosen, _ROUNDS[quick] if rounds is None else rounds, show)
    show_table(OVERVIEW, overview(report), OVERVIEW[3:5] + OVERVIEW[6:])
    _note(report["warnings"])
    return report


def measure_again(before: Report, rounds: int, threads: int | None) -> Report:
    """Measure the cases of a report."""
    with progress() as show:
        chosen, notes = compare.points(before, available_threads(threads))
        _note(notes)
        return report_of(chosen, rounds, show)


def load(path: Path) -> Report:
    """Read a report, or end with a line that says why it is none."""
    with refusals():
        return compare.load(path)


def write(report: Report, folder: Path) -> None:
    """Write a report in all its forms, the source of the others first."""
    folder.mkdir(exist_ok=True)
    write_json(report, folder / "report.json")
    write_markdown(report, folder / "report.md")
    from fastgd.bench.page import html

    (folder / "report.html").write_text(html(report), encoding="utf-8")
    for name in ("report.json", "report.md", "report.html"):
        print(f"report: {folder / name}")


def show_changes(before: Report, now: Report, threshold: float) -> bool:
    """Show what changed beyond the noise; tell whether fastgd became worse by more than a share."""
    with refusals():
        found = compare.compare(before, now)
    _note(found.notes)
    if rows := found.table():
        show_table(compare.COLUMNS, rows, compare.COLUMNS[2:-1])
    print(found.summary())
    failed = found.failures(threshold)
    if failed:
        print(f"fastgd is worse in {len(failed)}, by more than {threshold:.0%} or without a right result")
    return bool(failed)


def _note(texts: Sequence[str]) -> None:
    for text in texts:
        print(f"note: {text}", file=sys.stderr)
