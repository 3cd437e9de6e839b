"""A report of `bench/gpu.py` as Markdown, made from its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from fastgd.bench.report import error_text, size_text, table, time_text

Report = dict[str, Any]

COLUMNS = ("peer", "time", "± IQR", "GB/s", "of copy", "of roof", "vs torch fused", "max ULP")
"""Columns of a table of one case and size; `vs torch fused` is the time as a multiple of that one's."""


def markdown(report: Report) -> str:
    """Set what was compared and all that was measured, the machine under each table."""
    parts = ["# fastgd bench on a GPU\n", _verdict(report)]
    for title, text in [*_cases(report), *_launches(report), *_grids(report)]:
        parts += [f"## {title}\n", text, f"{machine_line(report)}\n"]
    if report["left_out"]:
        parts += ["## Left out\n", "".join(f"- {what}: {why}\n" for what, why in report["left_out"])]
    return "\n".join(parts)


def machine_line(report: Report) -> str:
    """Say in one line what the figures were measured on."""
    m, gpu = report["machine"], report["gpu"]
    versions = " ".join(f"{name} {version}" for name, version in (m["versions"] | gpu["versions"]).items())
    clocks = "".join(f", {name} {value}" for name, value in gpu["settings"].items())
    return (
        f"{gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, compute capability {gpu['capability']}{clocks}; {m['cpu']}, "
        f"{m['cores']} cores; Python {m['python']}, {versions}; commit {m['git'] or 'none'}; {m['time']}"
    )


def _verdict(report: Report) -> str:
    lines = []
    if (bits := report["bits"]) is not None:
        lines.append(f"- bits: {bits['compared']} comparisons with NumPy, {len(bits['wrong'])} wrong")
        lines += [f"  - WRONG: {name}: {what}" for name, what in bits["wrong"].items()]
    lines += [f"- {name}: {said}" for name, said in report["checked"].items()]
    lines += [f"- FAILED: {name}: {why}" for name, why in report["failed"].items()]
    return "\n".join(lines) + "\n"


def _cases(report: Report) -> Iterator[tuple[str, str]]:
    for (name, n), group in groupby(report["rows"], key=lambda row: (row["case"], row["n"])):
        case = report["cases"][name]
        parts = (", ".join(f"{k}={v}" for k, v in case[of].items() if v is not False) for of in ("hyper", "tail"))
        tensors = f" in {case['tensors']} tensors" if case["tensors"] > 1 else ""
        title = f"{name} float32, {size_text(n)} elements{tensors}; {'; '.join(filter(None, parts))}"
        yield title, table(COLUMNS, [_cells(row, report["ulp_limit"]) for row in group])


def _cells(row: dict[str, Any], limit: float) -> tuple[str, ...]:
    if row["skipped"] is not None:
        return (row["peer"], f"skipped: {row['skipped']}", *[""] * (len(COLUMNS) - 2))
    return (
        row["peer"],
        time_text(row["seconds"]),
        time_text(row["iqr"]),
        f"{row['gbps']:.0f}",
        "" if row["copy_share"] is None else f"{row['copy_share']:.1%}",
        "" if row["roof_share"] is None else f"{row['roof_share']:.1%}",
        "" if row["fused_ratio"] is None else f"{row['fused_ratio']:.2f}",
        error_text(row["max_ulp"], limit),
    )


def _launches(report: Report) -> Iterator[tuple[str, str]]:
    for n, group in groupby(report["launches"], key=lambda row: row["n"]):
        cells = [
            (row["case"], row["peer"], f"skipped: {row['skipped']}", "")
            if row["skipped"]
            else (row["case"], row["peer"], time_text(row["host"]), time_text(row["device"]))
            for row in group
        ]
        yield f"A step of {size_text(n)} elements", table(("case", "what", "host", "GPU"), cells)


def _grids(report: Report) -> Iterator[tuple[str, str]]:
    for (name, n), group in groupby(report["grids"], key=lambda row: (row["case"], row["n"])):
        cells = [
            (
                f"{row['blocks']}{' (as shipped)' * row['is_default']}",
                time_text(row["seconds"]),
                time_text(row["iqr"]),
                f"{row['gbps']:.0f}",
            )
            for row in group
        ]
        title = f"Blocks for each processor: {name}, {size_text(n)} elements"
        yield title, table(("blocks", "time", "± IQR", "GB/s"), cells)
