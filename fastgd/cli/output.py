"""What commands print: coloured by rich for a person at a terminal, plain text for a pipe or a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence


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
