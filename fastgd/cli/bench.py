"""The command `fastgd bench`: whole optimizer steps against the peers and the roof of this machine, or loss curves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fastgd.cli.output import progress, refuse_no_folder, show_table

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_QUICK = ("4k,1M", "roof,numpy-textbook,numpy-inplace", 3)  # sizes, peers, rounds
_FULL = ("4k,1M,64M", "all", 9)
_RULES = "adamw,sgd"
_THRESHOLD = 10.0  # percent
_QUICK_CURVES = dict(epochs=10, search_epochs=5, seeds=1)


def bench(
    context: typer.Context,
    new: Annotated[
        Path | None,
        typer.Argument(metavar="[NEW.json]", help="With --compare: a report to compare, instead of measuring."),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            help=f"Rules by lower-case name, variants such as adamw-tail, or all; by default {_RULES}, of curves all."
        ),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help=f"Elements; k, M, G are powers of 1024; by default {_FULL[0]}.")
    ] = None,
    dtypes: Annotated[str, typer.Option(help="float32 or float64, or float32,float64.")] = "float32",
    backends: Annotated[str, typer.Option(help="fastgd's own backends that take part.")] = "numba,numpy",
    threads: Annotated[
        int | None, typer.Option(help="For every peer; by default all that this process may use.")
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Foreign peers, with roof for the machine's limit; by default all.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help=f"Rounds in which the peers take turns; by default {_FULL[2]}.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Small sizes, few rounds, NumPy and the roof only; with --report all peers."),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here, as Markdown.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Measure every regime and write report.json, .md and .html here; with --quick in under two minutes.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.json",
            help="Measure the cases of a report again, or take NEW.json or --report, and show what changed.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help=f"With --compare: exit code 1 if fastgd is slower by more and than the noise; usually {_THRESHOLD:g}.",
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Time nothing: train on digits by each rule and write the loss curves here; with --rules, --quick.",
        ),
    ] = None,
) -> None:
    """Time whole optimizer steps against NumPy, torch and others, each in its own process and checked first."""
    if curves is not None:
        _refuse_others(context, "curves", "rules", "quick")
        _curves(curves, rules or "all", quick)
        return
    if compare is None and (new is not None or threshold is not None):
        raise typer.BadParameter(f"{'NEW.json' if new is not None else '--threshold'} needs --compare OLD.json")
    if report is not None:
        _refuse_others(context, "report", "rules", "threads", "peers", "rounds", "quick", "compare", "threshold")
        refuse_no_folder("--report", report)
    elif new is not None:
        _refuse_others(context, "compare", "new", "threshold")
    elif compare is not None:
        _refuse_others(context, "compare", "threads", "rounds", "json", "markdown", "threshold")
    for path, name in ((json, "--json"), (markdown, "--markdown")):
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"{name}: no directory {path.absolute().parent} to write {path.name} into")
    share = (_THRESHOLD if threshold is None else threshold) / 100
    if not 0 <= share < float("inf"):
        raise typer.BadParameter(f"--threshold must be a percentage from 0, given {threshold}")

    from fastgd.cli import bench_report as reports

    before = None if compare is None else reports.load(compare)
    if report is not None:
        measured = reports.measure_regimes(quick, rounds, threads, _names(rules or "all"), _names(peers or "all"))
        reports.write(measured, report)
    elif new is not None:
        measured = reports.load(new)
    elif before is not None:
        measured = reports.measure_again(before, rounds or _FULL[2], threads)
    else:
        usual_sizes, usual_peers, usual_rounds = _QUICK if quick else _FULL
        from fastgd.bench.run import run

        with progress() as show:
            measured = run(
                _names(rules or _RULES),
                [_size(text) for text in _split(sizes or usual_sizes)],
                _split(dtypes),
                _split(backends),
                threads,
                _names(peers or usual_peers),
                rounds=usual_rounds if rounds is None else rounds,
                progress=show,
            )
        _show(measured)
    if json is not None or markdown is not None:
        from fastgd.bench.report import write_json, write_markdown

        for path, write in ((json, write_json), (markdown, write_markdown)):
            if path is not None:
                write(measured, path)
    if before is not None and reports.show_changes(before, measured, share):
        raise typer.Exit(1)


def _curves(folder: Path, rules: str, quick: bool) -> None:
    refuse_no_folder("--curves", folder)
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(f'fastgd bench --curves needs {error.name}: pip install "fastgd[demo]"') from None
    from fastgd.bench.curves import run, untrained
    from fastgd.bench.curves_page import COLUMNS, NUMBERS, table, write
    from fastgd.kernels.errors import FastGDError

    with progress() as show:
        report = run(_names(rules), **(_QUICK_CURVES if quick else {}), progress=show)
    show_table(COLUMNS, table(report), NUMBERS)
    folder.mkdir(exist_ok=True)
    for path in write(report, folder):
        print(f"curves: {path}")
    problems = untrained(report)
    if problems:
        raise FastGDError(f"these do not train: {'; '.join(problems)}")


def _refuse_others(context: typer.Context, *together: str) -> None:
    """Refuse options that would have no effect beside the first one."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in together and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name} does not go with --{together[0]}")


def _names(text: str) -> list[str] | None:
    return None if text == "all" else _split(text)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _size(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]*) ?([kmg]?)", text.lower())
    if match is None:
        raise typer.BadParameter(f"a size must be a number such as 1000, 4k or 64M, given {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fastgd.bench.report import COLUMNS, machine_line, tables

    console = Console(highlight=False, markup=False)
    for title, rows in tables(report):
        console.print(f"\n{title}")
        table = Table(COLUMNS[0])
        for name in COLUMNS[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        skipped = [row for row in rows if row[1].startswith("skipped")]
        for row in rows:
            if row not in skipped:
                table.add_row(*row)
        console.print(table)
        for row in skipped:
            console.print(f"{row[0]} {row[1]}")
    console.print(f"\n{machine_line(report)}")
