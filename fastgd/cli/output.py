"""What commands print: coloured by rich for a person at a terminal, plain text for a pipe or a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def to_terminal() -> bool:
    """Whether stdout is a terminal; FORCE_COLOR does not count, as what is piped is fed to tools."""
    return sys.stdout.isatty()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print rows under the names of their columns; those named in `numbers` stand to the right."""
    if not to_terminal():
        cells = [columns, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for row in cells:
            aligned = [
                cell.rjust(width) if name in numbers else cell.ljust(width)
                for cell, width, name in zip(row, widths, columns, strict=True)
            ]
            print("  ".join(aligned).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def show_code(text: str, language: str) -> None:
    """Print a program, whole lines, in the colours of its language (a name that Pygments knows)."""
    if not to_terminal():
        print(text, end="")
        return
    from rich.console import Console
    from rich.syntax import Syntax

    # not the Syntax itself: it cuts long lines off, and fills them with blanks that would be copied
    coloured = Syntax("", language, theme="ansi_dark", background_color="default").highlight(text)
    Console().print(coloured, soft_wrap=True, end="")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], object]]:
    """Give what draws a bar when it is called first: wrong arguments, refused by what is run, are one line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("starting")

    def show(text: str, done: int, total: int) -> None:
        bar.start()
        bar.update(task, description=text, completed=done, total=total)

    try:
        with refusals():
            yield show
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def refusals() -> Iterator[None]:
    """Turn fastgd's errors into those of wrong arguments, which end the command with one line and exit code 2."""
    import typer

    from fastgd.kernels.errors import FastGDError

    try:
        yield
    except FastGDError as error:
        raise typer.BadParameter(str(error)) from None


def refuse_no_folder(option: str, folder: Path) -> None:
    """Refuse a directory that cannot be made, before any work is done for it."""
    import typer

    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{option} must be a directory, given the file {folder}")
    if not folder.absolute().parent.is_dir():
        raise typer.BadParameter(f"{option}: no directory {folder.absolute().parent} to make {folder.name} in")
