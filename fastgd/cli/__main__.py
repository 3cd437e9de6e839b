"""Lets ``python -m fastgd.cli`` be the command."""

from fastgd.cli import main

main()
