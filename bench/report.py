"""A report as JSON, the source of truth, and as Markdown made from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

COLUMNS = ("peer", "time", "± IQR", "GB/s", "of roof", "vs fastgd", "max ULP")
"""Columns of a table of one rule, size and dtype; `vs fastgd` is the time as a multiple of fastgd-numba's."""


OVERVIEW = ("case", "elements", "regime", "fastgd", "of roof", "fastest peer", "takes", "torch fused takes")
"""Columns of a line for each case; peers' times are multiples of fastgd-numba's."""


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report as it is."""
    path.write_text(json.dumps(report, indent=1) + "\n")


def write_markdown(report: dict[str, Any], path: Path) -> None:
    """Write the tables."""
    path.write_text(markdown(report))


def markdown(report: dict[str, Any]) -> str:
    """Set a line for each case, then every row in a table, the machine under each."""
    parts = ["# fastgd bench\n", *(f"**{text[0].upper()}{text[1:]}.**\n" for text in report.get("warnings", []))]
    lines = overview(report)
    if len(lines) > 1:
        parts.append(table(OVERVIEW, lines))
        parts += [f"- {name}: {text}" for name, text in report.get("regimes", {}).items() if text]
        parts.append("")
    for title, cells in tables(report):
        parts += [f"## {title}\n", table(COLUMNS, cells), f"{machine_line(report)}\n"]
    return "\n".join(parts)


def tables(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Give a title and rows of text, by the columns of `COLUMNS`, for each rule, size and dtype."""
    made = []
    for (rule, n, dtype, regime), group in groupby(report["rows"], key=_case):
        rows = list(group)
        own = next((r for r in rows if r["peer"] == "fastgd-numba" and r["skipped"] is None), None)
        case = {"tail": {}, "tensors": 1} | report["cases"][rule]  # older reports have neither
        parts = (", ".join(f"{k}={v}" for k, v in case[of].items() if v is not False) for of in ("hyper", "tail"))
        tensors = f" in {case['tensors']} tensors" if case["tensors"] > 1 else ""
        title = f"{rule} {dtype}, {size_text(n)} elements{tensors} ({regime}); {'; '.join(filter(None, parts))}"
        made.append((title, [_cells(row, own, report["ulp_limit"]) for row in rows]))
    return made


def overview(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Give a line of text for each case that fastgd-numba has, by the columns of `OVERVIEW`."""
    lines = []
    for (rule, n, dtype, regime), group in groupby(report["rows"], key=_case):
        rows = {row["peer"]: row for row in group if row["skipped"] is None}
        own = rows.pop("fastgd-numba", None)
        if own is None:
            continue
        right = {
            name: ratio(row, own)
            for name, row in rows.items()
            if row["max_ulp"] is not None and row["max_ulp"] <= report["ulp_limit"] and not name.startswith("fastgd-")
        }
        fastest = min(right, key=right.__getitem__, default=None)
        peers = ("", "") if fastest is None else (fastest, f"{right[fastest]:.2f}")
        share = "" if own["roof_share"] is None else f"{own['roof_share']:.0%}"
        fused = f"{right['torch-fused']:.2f}" if "torch-fused" in right else ""
        lines.append((f"{rule} {dtype}", size_text(n), regime, time_text(own["seconds"]), share, *peers, fused))
    return lines


def machine_line(report: dict[str, Any]) -> str:
    """Say in one line what the figures were measured on."""
    m = report["machine"]
    versions = " ".join(f"{name} {version}" for name, version in m["versions"].items())
    layer = m["threading_layer"] or "no parallel launch"
    others = "" if m.get("others") is None else f", others on {m['others']:.2f} CPUs meanwhile"
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['simd']}; {m['threads']} threads ({layer}); Python {m['python']}, "
        f"{versions}; commit {m['git'] or 'none'}; "
        f"load {m['load']:.1f} before, {m['load_after']:.1f} after{others}; {m['time']}"
    )


def size_text(n: int) -> str:
    """Write a number of elements as a person does: 4 k, 1 M, 1000."""
    for unit, name in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")):
        if n % unit == 0:
            return f"{n // unit} {name}"
    return str(n)


def time_text(seconds: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


def _case(row: dict[str, Any]) -> tuple[str, int, str, str]:
    return row["rule"], row["n"], row["dtype"], row["regime"]


def ratio(row: dict[str, Any], own: dict[str, Any]) -> float:
    """Give a peer's time as a multiple of fastgd's: in the same rounds, where the report knows that."""
    return float(row.get("ratio") or row["seconds"] / own["seconds"])


def _cells(row: dict[str, Any], own: dict[str, Any] | None, limit: float) -> tuple[str, ...]:
    if row["skipped"] is not None:
        return (row["peer"], f"skipped: {row['skipped']}", *[""] * (len(COLUMNS) - 2))
    return (
        row["peer"],
        time_text(row["seconds"]),
        time_text(row["iqr"]),
        f"{row['gbps']:.1f}",
        "" if row["roof_share"] is None else f"{row['roof_share']:.0%}",
        "" if own is None else f"{ratio(row, own):.2f}",
        error_text(row["max_ulp"], limit),
    )


def error_text(error: float | None, limit: float) -> str:
    """Write an error in ULP; one beyond the limit catches the eye."""
    return "" if error is None else f"{error:.1f}" if error <= limit else f"WRONG: {error:.3g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set rows of text in a table of Markdown, numbers to the right of the first column."""
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
