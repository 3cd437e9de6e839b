"""Write the README's table of rules anew from the registry: ``python docs/readme_tables.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fastgd.kernels.rule import describe
from fastgd.kernels.rules import RULES

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- rules: begin, made by docs/readme_tables.py -->\n", "<!-- rules: end -->\n"


def rules_table() -> str:
    """Give a row for each rule at its defaults."""
    lines = ["| rule | states | bytes per float32 parameter | static options |", "|---|---|---|---|"]
    for cls in RULES.values():
        d = describe(cls())
        states, options = (", ".join(f"`{x}`" for x in d[k]) or "none" for k in ("states", "options"))
        lines.append(f"| `{d['rule']}` | {states} | {d['bytes']} | {options} |")
    return "\n".join(lines) + "\n"


def refreshed(text: str) -> str:
    """Put the table between its marks."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + rules_table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text()))
