"""Plots of a report as SVG: throughput over the size, one figure for many cases, the roofline.

A hue and a shape stand for a library, filled or hollow for its ways of taking a step, so that a plot can be read
without telling hues apart. Each plot tells in words what it shows, and each point its figures where a pointer rests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from fastgd.bench.comparison import OWN, ROOF, elements
from fastgd.bench.report import time_text
from fastgd.bench.web import LETTER

Row = dict[str, Any]

WIDTH = 352
"""Of a plot: a phone shows it at its size."""

TOP = 38
"""What is above the plotted."""
LINE = 22
"""Height of a line of dots."""

_SHAPES = {
    "fastgd": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z",
    "roof": "M0 -7V7",
    "torch": "M-3.7 -3.7h7.4v7.4h-7.4z",
    "numpy": "M0 -4.6L4.6 3.8H-4.6z",
    "numexpr": "M0 4.6L4.6 -3.8H-4.6z",
    "optax": "M0 -5.2L5.2 0L0 5.2L-5.2 0z",
    "deepspeed": "M-1.4 -4.5h2.8v3.1h3.1v2.8h-3.1v3.1h-2.8v-3.1h-3.1v-2.8h3.1z",
    "thinc": "M-4.6 -3h9.2v6h-9.2z",
    "sklearn": "M0 -4.9L4.7 -1.5L2.9 4H-2.9L-4.7 -1.5z",
    "other": "M-3.6 -3.6L3.6 3.6M3.6 -3.6L-3.6 3.6",
}
_SECOND = ("fastgd-numpy", "torch-foreach", "numpy-textbook")
_THIRD = ("torch-loop",)
_APART = 20  # of numbers along an axis
_LEFT, _RIGHT, _BOTTOM = 40, 10, 32  # around what is plotted


@dataclass(frozen=True)
class Axis:
    """Numbers along a line of the picture.

    Attributes
    ----------
    low, high
        Numbers at its ends.
    start, end
        Where these are.
    log
        Whether equal steps are equal factors.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = True

    def at(self, value: float) -> float:
        """Find the place of a number."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Give round numbers along it, few enough to read."""
        if not self.log:
            exact = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(exact))
            step = next(k * power for k in (1, 2, 5, 10) if k * power >= exact * 0.999)
            first = math.ceil(self.low / step)
            return [k * step for k in range(first, math.floor(self.high / step * 1.0001) + 1)]
        decade = abs(self.end - self.start) / math.log10(self.high / self.low)
        dense, usual, sparse = range(1, 10), (1, 2, 5), (1,)
        found = self._at_digits(usual if 0.3 * decade > _APART else sparse)
        return found if len(found) > 1 else self._at_digits(dense)

    def _at_digits(self, digits: Iterable[int]) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [x for p in powers for k in digits if self.low <= (x := k * 10.0**p) <= self.high]


def around(values: Iterable[float], margin: float = 1.25) -> tuple[float, float]:
    """Give the least and the largest number, with a margin around them on an axis of factors."""
    known = list(values)
    return min(known) / margin, max(known) * margin


def sample(peer: str) -> str:
    """Draw a peer's mark on its line, 32 x 10, for a legend."""
    return f'<g class="{_style(peer)}"><path class="line" d="M0 5h32"/>{_mark(peer, 16, 5)}</g>'


def throughput(name: str, title: str, rows: Sequence[Row], limits: tuple[float, float]) -> str:
    """Draw the throughput of the peers over the number of elements.

    Parameters
    ----------
    name : str
        Of its own in the page.
    title : str
        What stands above it.
    rows : sequence of dict
        Measured rows of a report, of one rule and dtype.
    limits : tuple of float
        Ends of the axis of GB/s, the same for plots that stand side by side.

    Returns
    -------
    str
        SVG.
    """
    height = 240
    sizes = sorted({row["n"] for row in rows})
    x = Axis(sizes[0] / 1.5, sizes[-1] * 1.5, _LEFT, WIDTH - _RIGHT)
    y = Axis(*limits, height - _BOTTOM, TOP)
    lines, told = [], []
    for peer in _drawn_in_order(rows):
        own = sorted((row for row in rows if row["peer"] == peer), key=lambda row: row["n"])
        points = [(x.at(row["n"]), y.at(row["gbps"])) for row in own]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        marks = "".join(_mark(peer, a, b, told_of(row)) for (a, b), row in zip(points, own, strict=True))
        spread = "".join(_spread(row, x, y) for row in own)
        drawn = "" if peer == ROOF else spread + marks  # its bars would hide what lies on them
        lines.append(f'<g class="{_style(peer)}"><path class="line" d="{path}"/>{drawn}</g>')
        told.append(f"{peer} " + ", ".join(f"{row['gbps']:.3g} at {elements(row['n'])}" for row in own))
    body = (
        f"{_title(title)}{_levels(y, x)}{_unit('GB/s')}"
        f"{_along(x, [(n, elements(n)) for n in sizes], height)}{_below('elements', height)}{''.join(lines)}"
    )
    return frame(name, height, f"Throughput of {title}", f"GB/s by number of elements: {'; '.join(told)}.", body)


def dots(
    name: str, title: str, rows: Sequence[tuple[str, Sequence[Row]]], value: Callable[[Row], float], axis: Axis
) -> str:
    """Draw a line for each of many cases, with a mark for each peer.

    Parameters
    ----------
    name : str
        Of its own in the page.
    title : str
        What stands above it.
    rows : sequence of tuple
        Name of a case and its measured rows.
    value : callable
        What is drawn of a row.
    axis : Axis
        Its ends are numbers; `start` and `end` say where the lines begin and end.

    Returns
    -------
    str
        SVG.
    """
    height = TOP + LINE * len(rows) + 26
    body = f"{_title(title)}{dot_lines(rows, value, axis)}"
    return frame(name, height, title, dots_told(rows, value), body)


def dot_lines(rows: Sequence[tuple[str, Sequence[Row]]], value: Callable[[Row], float], axis: Axis) -> str:
    """Draw what `dots` does, without a frame: lines from `TOP`, `LINE` apart, numbers below."""
    lines = []
    for k, (label, own) in enumerate(rows):
        at = TOP + LINE * (k + 0.5)
        marks = "".join(
            f'<g class="{_style(row["peer"])}">{_mark(row["peer"], axis.at(value(row)), at, told_of(row))}</g>'
            for peer in _drawn_in_order(own)
            for row in own
            if row["peer"] == peer
        )
        lines.append(
            f'<path class="grid" d="M{axis.start:g} {at:g}H{axis.end:g}"/>'
            f'<text x="0" y="{at + 4:g}">{escape(_cut(label, axis.start - 8, 11))}</text>{marks}'
        )
    ticks = [(tick, f"{tick:g}") for tick in axis.ticks()]
    return _along(axis, ticks, TOP + LINE * len(rows) + 34, TOP) + "".join(lines)


def dots_told(rows: Sequence[tuple[str, Sequence[Row]]], value: Callable[[Row], float]) -> str:
    """Say what the lines of `dots` show."""
    told = (f"{label}: " + ", ".join(f"{row['peer']} {value(row):.3g}" for row in own) for label, own in rows)
    return f"{'; '.join(told)}."


def roofline(name: str, title: str, rows: Sequence[Row]) -> str:
    """Draw parameters updated in a second over the bytes that one costs, under the roof.

    A byte moved is what a parameter costs, so a bandwidth is a slope, and no step can be above the roof but for noise.
    Around the roof lies the range of those measured for the rules.

    Parameters
    ----------
    name : str
        Of its own in the page.
    title : str
        What stands above it.
    rows : sequence of dict
        Measured rows of a report, of one size and dtype, roofs among them.

    Returns
    -------
    str
        SVG.
    """
    height = 240
    steps = [row for row in rows if row["peer"] != ROOF]
    roofs = [row["gbps"] for row in rows if row["peer"] == ROOF]
    costs = sorted({round(_cost(row), 1) for row in steps})
    x = Axis(max(64, costs[-1] * 1.1), min(10, costs[0] / 1.1), _LEFT, WIDTH - _RIGHT)
    ends = [gbps / cost for gbps in roofs for cost in (x.low, x.high)]
    y = Axis(*around([*ends, *(_rate(row) for row in steps)]), height - _BOTTOM, TOP)

    def line(gbps: float, *ends: float) -> str:
        return "L".join(f"{x.at(cost):.1f} {y.at(gbps / cost):.1f}" for cost in ends)

    lines, told = [], []
    if roofs:
        low, middle, high = min(roofs), median(roofs), max(roofs)
        text = f"roof {middle:.3g} GB/s"
        lines.append(
            f'<path class="band" d="M{line(low, x.low, x.high)}L{line(high, x.high, x.low)}z"/>'
            f'<g class="{_style(ROOF)}"><path class="line" d="M{line(middle, x.low, x.high)}"/></g>'
            f'<text class="axis" x="{x.end:g}" y="{y.at(high / x.high) - 5:.1f}" text-anchor="end">{text}</text>'
        )
        told.append(text)
    for peer in _drawn_in_order(steps):
        own = [row for row in steps if row["peer"] == peer]
        marks = "".join(_mark(peer, x.at(_cost(row)), y.at(_rate(row)), told_of(row)) for row in own)
        lines.append(f'<g class="{_style(peer)}">{marks}</g>')
        told.append(f"{peer} " + ", ".join(f"{_rate(row):.3g} for {row['rule']}" for row in own))
    body = (
        f"{_title(title)}{_levels(y, x)}{_unit('billion parameters a second')}"
        f"{_along(x, [(cost, f'{cost:g}') for cost in reversed(costs)], height)}"
        f"{_below('bytes moved for each parameter', height)}{''.join(lines)}"
    )
    return frame(name, height, f"Roofline of {title}", f"Billion parameters a second: {'; '.join(told)}.", body)


def frame(name: str, height: float, title: str, told: str, body: str) -> str:
    """Frame a plot of a page; `told` says in words what it shows."""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-labelledby="{name}-title" aria-describedby="{name}-told">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-told">{escape(told)}</desc>{body}</svg>'
    )


def told_of(row: Row) -> str:
    """Say the figures of a row."""
    share = "" if row["roof_share"] is None else f", {row['roof_share']:.0%} of the roof"
    error = "" if row["max_ulp"] is None else f", error {row['max_ulp']:.3g} ULP"
    rate = "" if row["gbps"] is None else f", {row['gbps']:.3g} GB/s"
    return f"{row['peer']}, {row['rule']} of {elements(row['n'])}: {time_text(row['seconds'])}{rate}{share}{error}"


# ---- parts -------------------------------------------------------------------------------------------------------


def _cost(row: Row) -> float:
    """Bytes that a step moves for each parameter."""
    return float(row["gbps"] * 1e9 * row["seconds"] / row["n"])


def _rate(row: Row) -> float:
    """Billion parameters that are updated in a second."""
    return float(row["n"] / row["seconds"] / 1e9)


def _drawn_in_order(rows: Iterable[Row]) -> list[str]:
    """Order the peers so that the roof lies below, on it fastgd, whose mark is the largest, and the others on top."""
    return sorted({row["peer"]: None for row in rows}, key=lambda peer: (peer != ROOF, peer != OWN))


def _style(peer: str) -> str:
    return f"{_family(peer)} v{(peer in _SECOND) + 2 * (peer in _THIRD)}"


def _family(peer: str) -> str:
    return next((family for family in _SHAPES if peer.split("-")[0] == family), "other")


def _mark(peer: str, x: float, y: float, told: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{_SHAPES[_family(peer)]}">{title}</path>'


def _spread(row: Row, x: Axis, y: Axis) -> str:
    """Draw the range that the middle half of the rounds spans."""
    if not row["iqr"]:
        return ""
    moved, half = row["gbps"] * row["seconds"], row["iqr"] / 2
    slow, fast = moved / (row["seconds"] + half), moved / max(row["seconds"] - half, 1e-12)
    slow, fast = max(slow, y.low), min(fast, y.high)
    return f'<path class="spread" d="M{x.at(row["n"]):.1f} {y.at(slow):.1f}V{y.at(fast):.1f}"/>'


def _title(text: str) -> str:
    return f'<text class="name" x="0" y="12">{escape(_cut(text, WIDTH, 13.5))}</text>'  # bold letters are wider


def _cut(text: str, width: float, size: float) -> str:
    """Shorten a text to a width."""
    room = int(width / (size * LETTER))
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _unit(text: str) -> str:
    return f'<text class="axis" x="0" y="30">{text}</text>'


def _below(text: str, height: float) -> str:
    return f'<text class="axis" x="{WIDTH - _RIGHT}" y="{height - 3:g}" text-anchor="end">{text}</text>'


def _levels(y: Axis, x: Axis) -> str:
    """Draw the lines of an upright axis and their numbers."""
    return "".join(
        f'<path class="grid" d="M{x.start:g} {y.at(tick):.1f}H{x.end:g}"/>'
        f'<text class="tick" x="{x.start - 6:g}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in y.ticks()
    )


def _along(x: Axis, ticks: Iterable[tuple[float, str]], height: float, top: float | None = None) -> str:
    """Write as many numbers along the lower edge as have room, with lines from the top if they are to have some."""
    parts, free = [], -math.inf
    for value, text in ticks:
        at, half = x.at(value), 11 * LETTER * len(text) / 2 + 3
        if at - half < free:
            continue
        free = at + half
        if top is not None:
            parts.append(f'<path class="grid" d="M{at:.1f} {top - 4:g}V{height - 30:g}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{height - 17:g}" text-anchor="middle">{text}</text>')
    return "".join(parts)
