"""What every page and picture of a report is made of: the frame, a table that sorts, a legend.

Whatever comes from data is escaped here, in text and in attributes, and nothing outside the file is asked for: a policy
in the page lets a browser load nothing and run no script but the one that sorts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path

_HERE = Path(__file__).parent
LETTER = 0.57  # of the font's size: width of a letter of a wide font, where text cannot be measured


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes
    ----------
    text
        What it shows.
    value
        What it is sorted by; None for the number that the text begins with, or the text itself.
    kind
        Class in the style sheet.
    link
        Where the text leads, within the page.
    """

    text: str
    value: float | None = None
    kind: str = ""
    link: str = ""


def document(title: str, body: str, footer: str, styles: Sequence[str]) -> str:
    """Frame a page.

    Parameters
    ----------
    title : str
        As text.
    body, footer : str
        As HTML.
    styles : sequence of str
        Names of style sheets that go with the two that all pages have.

    Returns
    -------
    str
        One file that needs no other, well-formed as XML too.
    """
    script = f"\n{_read('sort.js')}"
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{policy}" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="color-scheme" content="light dark" />
<title>{escape(title)}</title>
<style>
{_style("colours", "page", *styles)}</style>
</head>
<body>
<main>
{body}
</main>
<footer class="small">{footer}</footer>
<script>{script}</script>
</body>
</html>
"""


def picture(size: tuple[float, float], label: str, body: str, styles: Sequence[str]) -> str:
    """Frame a picture that stands for itself and follows the reader's light or dark.

    Parameters
    ----------
    size : tuple of float
        Width and height.
    label : str
        What it shows, for who does not see it.
    body : str
        As SVG.
    styles : sequence of str
        Names of style sheets that go with the colours.

    Returns
    -------
    str
        An SVG.
    """
    width, height = (f"{x:g}" for x in size)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(label)}">\n<style>\n{_style("colours", *styles)}</style>\n'
        f'<rect class="ground" width="{width}" height="{height}"/>\n{body}\n</svg>\n'
    )


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Iterable[str]) -> str:
    """Set a table whose headings sort it; the last cell of a row that has too few spans the rest.

    Parameters
    ----------
    label : str
        What it holds.
    columns : sequence of str
        Headings.
    rows : iterable of sequence of Cell
        The first cell of each names it; its `kind` is that of the whole row.
    numbers : iterable of str
        Columns that are sorted as numbers and stand to the right.

    Returns
    -------
    str
        HTML that scrolls sideways by itself where it is too wide.
    """
    numeric = [name in frozenset(numbers) for name in columns]
    heads = "".join(
        f'<th scope="col" aria-sort="none"{_kind("number" * right)}><button type="button">{escape(name)}</button></th>'
        for name, right in zip(columns, numeric, strict=True)
    )
    lines = "\n".join(_row(row, numeric) for row in rows)
    return (
        f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0">\n<table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>"
    )


def legend(samples: Iterable[tuple[str, str]]) -> str:
    """Name samples: SVG of 32 x 10, and text."""
    return "\n".join(
        f'<span><svg viewBox="0 0 32 10" aria-hidden="true">{sample}</svg>{escape(text)}</span>'
        for sample, text in samples
    )


def _row(cells: Sequence[Cell], numeric: Sequence[bool]) -> str:
    made = []
    for k, cell in enumerate(cells):
        rest = len(numeric) - k if cell is cells[-1] else 1
        kind = " ".join(filter(None, ("number" * (numeric[k] and rest == 1), cell.kind * (k > 0))))
        given = f' colspan="{rest}"' * (rest > 1) + ("" if cell.value is None else f' data-value="{cell.value!r}"')
        text = f'<a href="#{escape(cell.link)}">{escape(cell.text)}</a>' if cell.link else escape(cell.text)
        tag, scope = ("td", "") if k else ("th", ' scope="row"')
        made.append(f"<{tag}{scope}{_kind(kind)}{given}>{text}</{tag}>")
    return f"<tr{_kind(cells[0].kind)}>{''.join(made)}</tr>"


def _kind(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""


def _style(*names: str) -> str:
    return "".join(_read(f"{name}.css") for name in names)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
