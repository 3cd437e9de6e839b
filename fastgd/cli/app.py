"""The commands and their help; what they need is loaded when one runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastgd.cli.bench import bench
from fastgd.cli.demo import demo
from fastgd.cli.doctor import doctor
from fastgd.cli.kernels import commands as kernels


def _version(asked: bool) -> None:
    if asked:
        import fastgd

        print(f"fastgd {fastgd.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Optimizer update rules at the speed of memory."""


def command() -> Any:
    """Build the command with its subcommands."""
    # rich's help takes a quarter longer, and the bound is 0.3 s
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
    app.callback()(_root)
    app.command()(demo)
    app.command()(bench)
    app.command()(doctor)
    app.add_typer(kernels, name="kernels")
    return typer.main.get_command(app)
