"""The command `fastgd doctor`: whether this machine can run steps well, and what to do where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fastgd.cli.output import to_terminal

if TYPE_CHECKING:
    from fastgd.doctor import Finding

_STYLES = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Data: whether all is well, and each finding.")] = False,
) -> None:
    """Examine this machine: versions, threads, SIMD, denormals, cache, neighbours; exit code 1 if steps cannot run."""
    from fastgd.doctor import examine

    findings = examine()
    broken = any(finding.status == "fail" for finding in findings)
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps({"ok": not broken, "findings": [asdict(f) for f in findings]}, indent=2))
    elif to_terminal():
        _show_rich(findings)
    else:
        _show_plain(findings)
    if broken:
        raise typer.Exit(1)


def _show_plain(findings: list[Finding]) -> None:
    width = max(len(f.name) for f in findings)
    for f in findings:
        print(f"{f.status:4}  {f.name:{width}}  {f.value}")
        if f.advice:
            print(f"{'':4}  {'':{width}}  -> {f.advice}")


def _show_rich(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "what to do")
    for f in findings:
        table.add_row(Text(f.status, _STYLES[f.status]), f.name, f.value, f.advice)
    Console(highlight=False, markup=False).print(table)
