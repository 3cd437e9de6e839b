"""Curves as JSON, as one picture and as one page: small multiples with the same axes, drawn from the report alone.

The drawing is a few polylines as text rather than a plotting library's: a tenth of the bytes, and colours that follow
the reader's light or dark, also in a picture on its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from fastgd.bench import web
from fastgd.bench.curves import Report
from fastgd.bench.web import Cell

Losses = Sequence[float | None]

COLUMNS = ("rule", "lr", "default lr", "loss", "of each seed", "accuracy", "of each seed", "trains")
"""Columns of the table; losses and accuracies are medians, and then those of every seed."""

NUMBERS = ("lr", "default lr", "loss", "accuracy")
"""Those of them that stand to the right."""

_WIDTH, _HEIGHT = 184, 156  # of a panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 33, 32, 3, 14  # of that, around the plot
_GAP, _ACROSS = 16, 5  # of panels in the picture


def write(report: Report, folder: Path) -> list[Path]:
    """Write ``curves.json``, ``curves.svg`` and ``curves.html`` into a folder that exists, and give their paths."""
    texts = {
        "curves.json": json.dumps(report, allow_nan=False) + "\n",
        "curves.svg": picture(report),
        "curves.html": page(report),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def page(report: Report) -> str:
    """Set all panels and a table of the figures in one page that needs nothing else."""
    panels = "\n".join(f'<div class="panel">{panel}</div>' for panel in _panels(report))
    curves = report["curves"]
    trained = sum(curve["problem"] is None for curve in curves)
    heading = f"{trained} of {len(curves)} rules train" if trained < len(curves) else "Each rule trains"
    samples = [(_sample(name), text) for name, text in _kinds(report)]
    rows = [[Cell(cells[0], kind="failed" * (cells[-1] != "yes")), *map(Cell, cells[1:])] for cells in table(report)]
    body = f"""<h1>{heading}</h1>
<p>{escape(_setting(report))}</p>
<p>{escape(_criterion(report))}</p>
<p class="legend small">
{web.legend(samples)}
</p>
<div class="panels">
{panels}
</div>
<h2>All figures</h2>
<p class="small">Loss is that of the whole training set after the last step, accuracy that on the validation set, both
the median of the seeds and then of each of them. Beside a rule stands what is set away from its defaults.</p>
{web.table("All figures", COLUMNS, rows, NUMBERS)}"""
    return web.document("fastgd: a loss curve of each rule", body, escape(_made_with(report)), ["curves"])


def picture(report: Report) -> str:
    """Set all panels in one SVG, for where a page cannot be."""
    panels = _panels(report)
    across = max(3, min(_ACROSS, len(panels)))  # room for the legend
    down = math.ceil(len(panels) / across)
    width, height = (n * (size + _GAP) + _GAP for n, size in ((across, _WIDTH), (down, _HEIGHT)))
    legend = "".join(
        f'<g transform="translate({_GAP + k * (_WIDTH + _GAP)} {height})">{_sample(name)}'
        f'<text class="hyper" x="40" y="8">{text}</text></g>'
        for k, (name, text) in enumerate(_kinds(report))
    )
    height += _GAP + 10
    placed = "\n".join(
        f'<g transform="translate({_GAP + k % across * (_WIDTH + _GAP)} {_GAP + k // across * (_HEIGHT + _GAP)})">'
        f"{panel}</g>"
        for k, panel in enumerate(panels)
    )
    label = f"Loss curves of {len(panels)} rules. {_setting(report)}"
    return web.picture((width, height), label, f"{placed}\n{legend}", ["curves"])


def table(report: Report) -> list[tuple[str, ...]]:
    """Give the rows of the table as text, by `COLUMNS`."""
    return [
        (
            _called(curve),
            _number(curve["lr"]),
            _number(curve["default_lr"]),
            _number(curve["loss"]),
            ", ".join(_number(losses[-1]) for losses in curve["losses"]),
            f"{curve['accuracy']:.1%}",
            ", ".join(f"{accuracy:.1%}" for accuracy in curve["accuracies"]),
            f"no: {curve['problem']}" if curve["problem"] else "yes",
        )
        for curve in report["curves"]
    ]


# ---- panels ------------------------------------------------------------------------------------------------------


def _panels(report: Report) -> list[str]:
    steps, curves = report["steps"], report["curves"]
    others = [
        median(math.inf if x is None else x for x in at) for at in zip(*(c["median"] for c in curves), strict=True)
    ]
    ends = sorted(losses[-1] for curve in curves for losses in curve["losses"] if losses[-1])
    low = math.floor(math.log10(ends[len(ends) // 10])) if ends else -3  # of nine in ten; a line may leave the frame
    high = math.log10(1.5 * max(curve["losses"][0][0] for curve in curves))
    return [_panel(curve, steps, others, low, high, len(curves) > 1) for curve in curves]


def _panel(
    curve: dict[str, Any], steps: Sequence[int], others: Losses, low: float, high: float, with_others: bool
) -> str:
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def y(power: float) -> float:
        return tall * (high - power) / (high - low)

    def height(loss: float | None) -> float:
        if loss is None or loss == math.inf:
            return -tall
        return y(math.log10(loss)) if loss else 2 * tall

    def line(losses: Losses, name: str) -> str:
        points = " ".join(
            f"{wide * step / steps[-1]:.1f},{height(loss):.1f}" for step, loss in zip(steps, losses, strict=True)
        )
        return f'<polyline class="{name}" points="{points}"/>'

    powers = range(math.ceil(low), math.floor(high) + 1)
    grid = "".join(f"M0 {min(y(power), tall - 0.5):.1f}h{wide}" for power in powers)
    ticks = "".join(
        f'<text class="tick" x="{_LEFT - 4}" y="{_TOP + y(power) + 3:.1f}" text-anchor="end">{10.0**power:g}</text>'
        for power in powers
    )
    lines = [line(others, "others")] * with_others
    lines += [line(losses, "seed") for losses in curve["losses"]] * (len(curve["losses"]) > 1)
    lines.append(line(curve["median"], "median"))
    room = int((_WIDTH - 8 * len(curve["title"])) / 6)  # letters that find room beside the name, in a wide font
    beside = _set(curve) if len(_set(curve)) <= room else _set(curve)[: room - 1] + "…"  # the table has it all
    verdict = f'<text class="figures" x="4" y="{tall - 6}">does not train</text>' if curve["problem"] else ""
    figures = f"lr {_number(curve['lr'])} · loss {_number(curve['loss'])} · {curve['accuracy']:.1%}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(_alternative(curve, steps[-1]))}"{_failed(curve["problem"])}>'
        f'<text class="name" y="11">{escape(curve["title"])}'
        f'<tspan class="hyper" dx="5">{escape(beside)}</tspan></text>'
        f'<text class="figures" y="24">{escape(figures)}</text>'
        f'{ticks}<text class="tick" x="{_LEFT}" y="{_HEIGHT - 3}">0</text>'
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">{steps[-1]} steps</text>'
        f'<svg x="{_LEFT}" y="{_TOP}" width="{wide}" height="{tall}">'
        f'<path class="grid" d="{grid}"/>{"".join(lines)}{verdict}</svg></svg>'
    )


def _alternative(curve: dict[str, Any], steps: int) -> str:
    """Tell what a panel shows, for who does not see it."""
    seeds = len(curve["losses"])
    told = (
        f"{_called(curve)}, learning rate {_number(curve['lr'])}: the training "
        f"loss goes from {_number(curve['median'][0])} to {_number(curve['loss'])} in {steps} steps, median of {seeds} "
        f"{'seeds' if seeds > 1 else 'seed'}; validation accuracy {curve['accuracy']:.1%}."
    )
    return told + (f" It does not train: {curve['problem']}." if curve["problem"] else "")


# ---- words -------------------------------------------------------------------------------------------------------


def _setting(report: Report) -> str:
    s = report["setting"]
    return (
        f"A network of {'-'.join(map(str, s['widths']))} units learns scikit-learn's digits, 8 x 8 pixels each: "
        f"{s['training']} to train, {s['validation']} to validate, in batches of {s['batch_size']}, "
        f"{s['epochs']} epochs or {report['steps'][-1]} steps, in float32. A panel shows the loss of the whole "
        "training set over the steps, on the same logarithmic axis as all others; a line that leaves the frame goes on "
        "outside. Above stand the learning rate, the final loss and the validation accuracy. The learning rate was "
        "searched from the rule's default by factors of about 3.2, on the training loss of runs of "
        f"{s['search_epochs']} epochs; it suits this problem and is no advice for others. Muon's and MARS's is that of "
        "the matrices; their fallback has its own."
    )


def _criterion(report: Report) -> str:
    s = report["setting"]
    trained, curves = sum(curve["problem"] is None for curve in report["curves"]), len(report["curves"])
    return (
        f"A rule trains if with every seed the loss ends below {s['loss_share']:.0%} of its start and more than "
        f"{s['accuracy']:.0%} of the validation set are right: {trained} of {curves} do."
    )


def _sample(name: str) -> str:
    return f'<polyline class="{name}" points="0,5 32,5"/>'


def _kinds(report: Report) -> list[tuple[str, str]]:
    """Lines of a panel by class, and what they are."""
    seeds = report["setting"]["seeds"]
    kinds = [("median", f"median of {seeds} seeds"), ("seed", "each seed")] if seeds > 1 else [("median", "one seed")]
    return kinds + [("others", "median of all rules")] * (len(report["curves"]) > 1)


def _made_with(report: Report) -> str:
    m = report["machine"]
    versions = ", ".join(
        f"{name} {m['versions'][name]}"
        for name in ("fastgd", "numpy", "numba", "scikit-learn")
        if name in m["versions"]
    )
    return f"{versions}, Python {m['python']}; {m['cpu']}; commit {m['git'] or 'none'}; {m['time']}"


def _called(curve: dict[str, Any]) -> str:
    return f"{curve['title']} {_set(curve)}".rstrip()


def _set(curve: dict[str, Any]) -> str:
    parts = [key if value is True else f"{key}={value}" for key, value in curve["hyper"].items()]
    return ", ".join(parts + ["whole batch"] * (curve["batch_size"] is None))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _failed(failed: object) -> str:
    return ' class="failed"' if failed else ""
