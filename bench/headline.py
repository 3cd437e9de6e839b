"""The README's table and picture of speed, from the newest reports that have the cases it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fastgd.bench import plots, web
from fastgd.bench.cases import GPT2
from fastgd.bench.cold import COLD
from fastgd.bench.comparison import BY_SIZE, OWN, ROOF, Case, cases, elements
from fastgd.bench.peers import PEERS
from fastgd.bench.report import error_text, machine_line, table, time_text

Report = dict[str, Any]

PICTURE = "docs/speed.svg"
"""Where the picture is, seen from the README."""

_M = 1 << 20
_WANTED = (  # name in words, name in the bench's table, about as many elements
    ("AdamW", "adamw", 64 * _M),
    ("AdamW", "adamw", _M),
    ("AdamW", "adamw", 4096),
    ("AdamW, GPT-2's 148 tensors", "adamw-gpt2", sum(GPT2)),
    ("AdamW, GPT-2's 148 tensors", "adamw-gpt2", _M),
    ("AdamW, ResNet-50's 161 tensors", "adamw-resnet50", 25_557_032),
    ("AdamW with tail", "adamw-tail", 64 * _M),
    ("AdamW with tail", "adamw-tail", _M),
    ("AdamW with tail, 148 tensors", "adamw-tail-gpt2", sum(GPT2)),
    ("AdamW with tail, 148 tensors", "adamw-tail-gpt2", _M),
    ("SGD", "gd", 64 * _M),
    ("SGD with momentum", "sgd", 64 * _M),
    ("Lion", "lion", 64 * _M),
    ("Adagrad", "adagrad", 64 * _M),
    ("RMSprop", "rmsprop", 64 * _M),
    ("LAMB", "lamb", 64 * _M),
)
_NAMES = {
    OWN: "fastgd",
    "numpy-inplace": "NumPy in place",
    "numpy-textbook": "NumPy textbook",
    "deepspeed": "DeepSpeed",
    "sklearn": "scikit-learn",
}
_SHOWN = ("numpy-inplace", "torch-fused", "optax", "deepspeed")  # with a column; all others are in the reports
_WIDTH, _LABELS, _TIMES = 780, 288, 62  # of the picture, of the names, of the times on its right


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes
    ----------
    name
        In words, with its size.
    source
        Name of the report.
    case
        What it came to.
    """

    name: str
    source: str
    case: Case


def lines(reports: Mapping[str, Report]) -> tuple[list[Line], list[str]]:
    """Find each case in the newest report that has fastgd's time of it in float32 on all threads.

    Parameters
    ----------
    reports : mapping
        Reports of `fastgd.bench.run.run` by name.

    Returns
    -------
    list of Line
        What was found.
    list of str
        Names of what was not.
    """
    threads = max((report["machine"]["threads"] for report in reports.values()), default=0)
    whole = {name: report for name, report in reports.items() if report["machine"]["threads"] == threads}
    newest = sorted(whole, key=lambda name: str(whole[name]["machine"]["time"]), reverse=True)
    found, missing = [], []
    for text, rule, n in _WANTED:
        for name in newest:
            near = [
                case
                for case in cases(whole[name])
                if case.rule == rule and n / 2 < case.n < n * 2 and _counts(case, threads)
            ]
            if near:
                case = min(near, key=lambda case: (case.regime not in BY_SIZE, abs(case.n - n)))
                found.append(Line(f"{text}, {elements(case.n)}", name, case))
                break
        else:
            missing.append(f"{text}, {elements(n)}")
    return found, missing


def _counts(case: Case, threads: int) -> bool:
    own = case.own
    whole = own is not None and own.get("threads", threads) == threads  # older reports have it for the machine only
    return whole and case.dtype == "float32" and case.regime != COLD


def markdown(reports: Mapping[str, Report]) -> str:
    """Set picture and table, with what they were measured on.

    Parameters
    ----------
    reports : mapping
        Reports of `fastgd.bench.run.run` by name; beside each lies its Markdown.

    Returns
    -------
    str
        Markdown.
    """
    found, missing = lines(reports)
    peers = [peer for peer in _SHOWN if any(peer in line.case.rivals for line in found)]
    columns = ["case", "time", "of roof", "fastest other", *(_called(peer) for peer in peers), "max ULP"]
    parts = [f"![{_told(found)}]({PICTURE})\n", table(columns, [_cells(line, peers) for line in found])]
    if any(_behind(line) for line in found):
        parts.append("In bold: faster than fastgd.\n")
    absent = dict.fromkeys(
        f"{_called(peer)} ({row['skipped']})"
        for line in found
        for peer, row in line.case.rows.items()
        if row["skipped"] is not None
    )
    if absent:
        parts.append(f"Could not take part: {', '.join(absent)}.\n")
    if missing:
        parts.append(f"Not measured yet: {'; '.join(missing)}.\n")
    sources = dict.fromkeys(line.source for line in found)
    parts.append(
        "".join(f"- [{name}.md](bench/results/{name}.md): {machine_line(reports[name])}\n" for name in sources)
    )
    return "\n".join(parts)


def picture(reports: Mapping[str, Report]) -> str:
    """Draw the times of the table as multiples of fastgd's.

    Parameters
    ----------
    reports : mapping
        Reports of `fastgd.bench.run.run` by name.

    Returns
    -------
    str
        An SVG that stands for itself.
    """
    found, _ = lines(reports)
    rows = [(line.name, _marks(line.case)) for line in found]
    ratios = [row["ratio"] for _, own in rows for row in own] or [1.0]
    low, high = plots.around(ratios, 1.15)
    axis = plots.Axis(min(low, 0.5), max(high, 2.0), _LABELS, _WIDTH - _TIMES)
    bottom = plots.TOP + plots.LINE * len(rows)
    one = axis.at(1.0)
    times = "".join(
        f'<text class="axis" x="{_WIDTH}" y="{plots.TOP + plots.LINE * (k + 0.5) + 4:g}" text-anchor="end">'
        f"{time_text(line.case.rows[OWN]['seconds'])}</text>"
        for k, line in enumerate(found)
    )
    peers = list(dict.fromkeys(row["peer"] for _, own in rows for row in own))
    legend, height = _legend(sorted(peers, key=_place), bottom + 52)
    body = (
        f'<g class="plot"><text class="name" x="0" y="12">Time of a step, as a multiple of fastgd\'s</text>'
        f'<text class="axis" x="{one - 8:.1f}" y="28" text-anchor="end">faster</text>'
        f'<text class="axis" x="{one + 8:.1f}" y="28">slower</text>'
        f'<text class="axis" x="{_WIDTH}" y="28" text-anchor="end">fastgd</text>'
        f'<path class="zero" d="M{one:.1f} {plots.TOP - 18}V{bottom + 4}"/>'
        f"{plots.dot_lines(rows, lambda row: float(row['ratio']), axis)}{times}{legend}</g>"
    )
    margin = 12
    placed = f'<g transform="translate({margin} {margin})">{body}</g>'
    label = f"Time of a step, as a multiple of fastgd's. {plots.dots_told(rows, lambda row: float(row['ratio']))}"
    return web.picture((_WIDTH + 2 * margin, height + 2 * margin), label, placed, ["plots"])


def _legend(peers: Iterable[str], top: float) -> tuple[str, float]:
    """Set marks and names in lines from a height on, and give the height where they end."""
    x, y, parts = 0.0, top, []
    for peer in peers:
        width = 44 + 6.6 * len(_called(peer)) + 12
        if x + width > _WIDTH:
            x, y = 0.0, y + 20
        parts.append(
            f'<g transform="translate({x:g} {y:g})">{plots.sample(peer)}'
            f'<text x="38" y="9">{escape(_called(peer))}</text></g>'
        )
        x += width
    return "".join(parts), y + 14


def _marks(case: Case) -> list[dict[str, Any]]:
    """Rows that have a time that counts, with their `ratio`: the roof's, fastgd's and its rivals'."""
    own = case.rows[OWN]
    ratios = {ROOF: own["roof_share"]} | {peer: case.ratio(peer) for peer in (OWN, *case.rivals)}
    return [case.rows[peer] | {"ratio": ratio} for peer, ratio in ratios.items() if ratio is not None]


def _place(peer: str) -> tuple[int, str]:
    known = list(PEERS)
    return (known.index(peer) if peer in known else len(known), peer)


def _cells(line: Line, peers: Sequence[str]) -> list[str]:
    own = line.case.rows[OWN]
    share = "" if own["roof_share"] is None else f"{own['roof_share']:.0%}"
    ratios = [_fastest(line.case), *(_ratio_text(line.case, peer) for peer in peers)]
    return [line.name, time_text(own["seconds"]), share, *ratios, error_text(own["max_ulp"], line.case.ulp_limit)]


def _fastest(case: Case) -> str:
    if case.lead is None:
        return ""
    peer = next(peer for peer in case.rivals if case.ratio(peer) == case.lead)
    return f"{_ratio_text(case, peer)} {_called(peer)}"


def _ratio_text(case: Case, peer: str) -> str:
    ratio = case.ratio(peer)
    if ratio is None:
        return "wrong" if peer in case.rows and case.wrong(peer) else ""
    text = f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"
    return f"**{text}**" if ratio < 1 else text


def _behind(line: Line) -> bool:
    return line.case.lead is not None and line.case.lead < 1


def _told(found: Sequence[Line]) -> str:
    leads = [(line.name, line.case.lead) for line in found if line.case.lead is not None]
    told = "; ".join(f"{name} {lead:.2f}" for name, lead in leads)
    return f"Time of the fastest other library's step as a multiple of fastgd's: {told}"


def _called(peer: str) -> str:
    return _NAMES.get(peer, peer.replace("-", " "))
