"""A report as one page: what came in short, plots, and every figure in tables that sort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from statistics import median
from typing import Any

from fastgd.bench import plots, web
from fastgd.bench.cold import COLD
from fastgd.bench.comparison import BY_SIZE, LEVEL, OWN, ROOF, Case, cases, elements
from fastgd.bench.regimes import threads_of
from fastgd.bench.report import COLUMNS, machine_line, tables, time_text
from fastgd.bench.web import Cell

Row = dict[str, Any]
Report = dict[str, Any]

_ROWS = 12  # cases in a plot of many
_NAMES = 122  # width of their names
_METHOD = (
    "Time is the median of the rounds, ± the range of their middle half. GB/s are the bytes that the step must move, "
    "by the time; the roof is the same passes over the same arrays without arithmetic, and more than 100 % of it is "
    "noise. Shares and multiples are of the rounds that both were in: what does not fit in memory together comes in "
    "batches. The error is against float64, in units in the last place. A press on a heading sorts."
)
_OVER_SIZES = "size"  # a regime of a plot of its own, over many sizes, at each of which a roofline would say little
_HEADINGS = {
    "throughput": "Throughput",
    "roofline": "Roofline",
    "threads": "All threads against fewer",
    "start": "First step of a process",
}
_LABELS = {  # of what describes the machine; what is not here stands under its own name
    "cpu": "processor",
    "threading_layer": "threading layer",
    "simd": "SIMD",
    "python": "Python",
    "git": "commit",
    "cache": "last cache",
    "load": "load before",
    "load_after": "load after",
    "others": "CPUs of others",
}


def html(report: Report) -> str:
    """Make the page of a report.

    Parameters
    ----------
    report : dict
        As `fastgd.bench.run.run` gives it, or as read from its JSON.

    Returns
    -------
    str
        A page that needs no other file and no network, light or dark as its reader has it.
    """
    found = cases(report)
    measured = [row for row in report["rows"] if row["gbps"] and row["regime"] != COLD]
    peers = list(dict.fromkeys(row["peer"] for row in report["rows"] if row["seconds"]))
    sections = {
        "throughput": _throughput(measured),
        "roofline": _rooflines(measured),
        "threads": _by_threads(measured),
        "start": _starts([row for row in report["rows"] if row["seconds"] and row["regime"] == COLD]),
    }
    plotted = {name: drawn for name, section in sections.items() if (drawn := "\n".join(filter(None, section)))}
    legend = f'<p class="legend small">\n{web.legend((plots.sample(peer), peer) for peer in peers)}\n</p>'
    body = "\n".join(
        [
            "<h1>How fast an optimizer step is</h1>",
            *(f'<p class="warning">{escape(text[:1].upper() + text[1:])}.</p>' for text in report.get("warnings", ())),
            *_verdict(found),
            _contents(plotted),
            "<h2>Measured on</h2>",
            _machine(report["machine"]),
            '<h2 id="cases">Every case</h2>',
            *_overview(found),
            *_regimes(report),
            *(f'<h2 id="{name}">{_HEADINGS[name]}</h2>\n{legend}\n{drawn}' for name, drawn in plotted.items()),
            '<h2 id="figures">Every figure</h2>',
            f'<p class="small">{_METHOD}</p>',
            '<div class="figures">',
            *_figures(report, found),
            "</div>",
        ]
    )
    return web.document("fastgd bench", body, escape(machine_line(report)), ["plots", "report"])


# ---- in short ----------------------------------------------------------------------------------------------------


def _verdict(found: Sequence[Case]) -> Iterator[str]:
    leads = {k: case.lead for k, case in enumerate(found) if case.lead is not None}
    behind = [k for k, lead in leads.items() if lead < 1 - LEVEL]
    level = sum(abs(lead - 1) <= LEVEL for lead in leads.values())
    if leads:
        links = ", ".join(f'<a href="#case-{k}">{escape(found[k].name)}</a>' for k in behind)
        yield (
            f"<p>{len(found)} cases, {len(leads)} of them with another library's step to compare. Against the fastest "
            f"of these, fastgd is ahead in {len(leads) - level - len(behind)}, level within {LEVEL:.0%} in {level} and "
            f"behind in {len(behind)}{': ' * bool(behind)}{links}.</p>"
        )
    shares: dict[str, list[float]] = {}
    for case in found:
        if case.own and case.own["roof_share"]:
            shares.setdefault(case.regime, []).append(case.own["roof_share"])
    if shares:
        told = "; ".join(
            f"{regime} {median(s):.0%}" + f" ({min(s):.0%} to {max(s):.0%})" * (len(s) > 1)
            for regime, s in shares.items()
        )
        yield f"<p>Of the roof, fastgd reaches by regime, median and range of the cases: {escape(told)}.</p>"
    skipped: dict[tuple[str, str], int] = {}
    wrong: dict[str, int] = {}
    for case in found:
        for peer, row in case.rows.items():
            if row["skipped"] is not None:
                skipped[peer, row["skipped"]] = skipped.get((peer, row["skipped"]), 0) + 1
            elif case.wrong(peer):
                wrong[peer] = wrong.get(peer, 0) + 1
    if skipped:
        told = "; ".join(f"{peer} ({why}) in {count} of {len(found)}" for (peer, why), count in skipped.items())
        yield f'<p class="small warning">Not measured: {escape(told)}.</p>'
    if wrong:
        told = ", ".join(f"{peer} in {count}" for peer, count in wrong.items())
        yield f'<p class="small warning">Not compared, for it computes something else: {escape(told)}.</p>'


def _contents(plotted: Iterable[str]) -> str:
    names = ["cases", *plotted, "figures"]
    links = "\n".join(f'<a href="#{name}">{name}</a>' for name in names)
    return f'<nav class="small" aria-label="Contents">\n{links}\n</nav>'


def _machine(machine: dict[str, Any]) -> str:
    """List all that is said of the machine, also what this page knows nothing of."""
    lines = []
    for name, value in machine.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, float):
            value = f"{value:.2f}"
        shown = "none" if value is None else str(value)
        label = _LABELS.get(name, name.replace("_", " "))
        lines.append(f"<div><dt>{escape(label)}</dt><dd>{escape(shown)}</dd></div>")
    return "\n".join(["<dl>", *lines, "</dl>"])


def _overview(found: Sequence[Case]) -> Iterator[str]:
    """Set a row for each case, the other peers' times as multiples of fastgd's."""
    yield (
        '<p class="small">Under a peer stands its time as a multiple of fastgd\'s: above 1 it is slower, below 1 it is '
        "faster and marked. A name leads to the figures.</p>"
    )
    peers = list(dict.fromkeys(peer for case in found for peer in case.rivals))
    columns = ["case", "elements", "dtype", "regime", "fastgd", "of roof", *peers]
    rows = [
        [
            Cell(case.rule, link=f"case-{k}"),
            Cell(elements(case.n), case.n),
            Cell(case.dtype),
            Cell(case.regime),
            *_own(case),
            *(_ratio(case, peer) for peer in peers),
        ]
        for k, case in enumerate(found)
    ]
    yield web.table("Every case", columns, rows, ["elements", "fastgd", "of roof", *peers])


def _regimes(report: Report) -> Iterator[str]:
    """Say what the regimes mean, where the report does."""
    told = {name: text for name, text in report.get("regimes", {}).items() if text}
    if told:
        lines = (f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in told.items())
        yield "\n".join(['<dl class="regimes">', *lines, "</dl>"])


def _own(case: Case) -> tuple[Cell, Cell]:
    row = case.own
    if row is None:
        return Cell("skipped" if OWN in case.rows else ""), Cell("")
    share = Cell("" if row["roof_share"] is None else f"{row['roof_share']:.0%}", row["roof_share"])
    return Cell("wrong", kind="failed") if case.wrong(OWN) else Cell(time_text(row["seconds"]), row["seconds"]), share


def _ratio(case: Case, peer: str) -> Cell:
    if peer not in case.rows:
        return Cell("")
    if case.rows[peer]["skipped"] is not None:
        return Cell("skipped")
    ratio = case.ratio(peer)
    if ratio is None:
        return Cell("wrong", kind="failed") if case.wrong(peer) else Cell("")
    return Cell(f"{ratio:.2f}", ratio, "failed" * (ratio < 1 - LEVEL))


# ---- plots -------------------------------------------------------------------------------------------------------


def _throughput(measured: Sequence[Row]) -> Iterator[str]:
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in measured:
        regime = "" if row["regime"] in BY_SIZE else row["regime"]
        series.setdefault((row["rule"], row["dtype"], regime), []).append(row)
    over_sizes = {key: rows for key, rows in series.items() if len({row["n"] for row in rows}) > 1}
    if over_sizes:
        limits = plots.around(row["gbps"] for rows in over_sizes.values() for row in rows)
        yield _panels(
            plots.throughput(f"over-{k}", _joined(f"{rule} {dtype}", regime), rows, limits)
            for k, ((rule, dtype, regime), rows) in enumerate(over_sizes.items())
        )
    yield _panels(_single({key: rows for key, rows in series.items() if key not in over_sizes}))


def _rooflines(measured: Sequence[Row]) -> Iterator[str]:
    places: dict[tuple[int, str, str], list[Row]] = {}
    for row in (row for row in measured if row["regime"] != _OVER_SIZES):
        places.setdefault((row["n"], row["dtype"], row["regime"]), []).append(row)
    drawn = [
        plots.roofline(f"roofline-{k}", f"{elements(n)} elements, {dtype} ({regime})", rows)
        for k, ((n, dtype, regime), rows) in enumerate(places.items())
        if any(row["peer"] != ROOF for row in rows)
    ]
    if drawn:
        yield (
            '<p class="small">Whoever moves fewer bytes for a parameter can update more of them in a second. The '
            "dashed line is the limit of the memory that holds so many, the median of the roofs; the band is their "
            "range over the rules.</p>"
        )
        yield _panels(drawn)


def _by_threads(measured: Sequence[Row]) -> Iterator[str]:
    """Draw how much faster all threads are than fewer."""
    on_all = {_key(row): row for row in measured if row["regime"] in BY_SIZE}
    lines: dict[int, dict[str, list[Row]]] = {}
    for row in measured:
        count = threads_of(row["regime"])
        if count and (best := on_all.get(_key(row))):
            name = f"{row['rule']} {elements(row['n'])}" + f" {row['dtype']}" * (row["dtype"] != "float32")
            gained = best | {"times": row["seconds"] / best["seconds"]}
            lines.setdefault(count, {}).setdefault(name, []).append(gained)
    if lines:
        yield (
            '<p class="small">Time of a step on fewer threads by its time on all. Where the memory is the limit one '
            "thread may well take most of it; below 1 the other threads are a burden.</p>"
        )
        yield _panels(
            _dots(f"threads-{count}", f"Times as fast as on {count} thread{'s' * (count != 1)}", rows, "times")
            for count, rows in lines.items()
        )


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("rule", "n", "dtype", "peer"))


def _starts(rows: Sequence[Row]) -> Iterator[str]:
    """Draw the times to the end of a process's first step."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row["rule"], []).append(row)
    if lines:
        yield '<p class="small">From the start of a process, imports included, with warm caches.</p>'
        yield _panels([_dots("start-0", "Seconds to the end of the first step", lines, "seconds")])


def _dots(name: str, title: str, lines: dict[str, list[Row]], value: str) -> str:
    top = max(row[value] for rows in lines.values() for row in rows)
    axis = plots.Axis(0, top * 1.05, _NAMES, plots.WIDTH - 10, log=False)
    return plots.dots(name, title, [*lines.items()], lambda row: float(row[value]), axis)


def _single(series: dict[tuple[str, str, str], list[Row]]) -> Iterator[str]:
    """Draw what was measured at one size only, cases of a size and dtype together."""
    groups: dict[tuple[int, str], list[tuple[str, str, list[Row]]]] = {}
    for (rule, dtype, regime), rows in series.items():
        groups.setdefault((rows[0]["n"], dtype), []).append((rule, regime, rows))
    for k, ((n, dtype), group) in enumerate(groups.items()):
        rules = [rule for rule, _, _ in group]  # a regime is named where a rule alone does not tell
        lines = [(_joined(rule, regime * (rules.count(rule) > 1)), rows) for rule, regime, rows in group]
        top = max(row["gbps"] for _, rows in lines for row in rows)
        axis = plots.Axis(0, top * 1.05, _NAMES, plots.WIDTH - 10, log=False)
        for start in range(0, len(lines), _ROWS):
            title = f"GB/s, {elements(n)} elements, {dtype}"
            part = lines[start : start + _ROWS]
            yield plots.dots(f"at-{k}-{start}", title, part, lambda row: float(row["gbps"]), axis)


def _panels(made: Iterable[str]) -> str:
    panels = "\n".join(f"<div>{panel}</div>" for panel in made)
    return f'<div class="panels">\n{panels}\n</div>' if panels else ""


# ---- figures -----------------------------------------------------------------------------------------------------


def _figures(report: Report, found: Sequence[Case]) -> Iterator[str]:
    """Set a table for each case, with the words and figures of the Markdown."""
    for k, (case, (title, rows)) in enumerate(zip(found, tables(report), strict=True)):
        heading, _, settings = title.partition("; ")
        body = [_line(cells, case.rows[cells[0]], case.wrong(cells[0])) for cells in rows]
        yield (
            f'<section id="case-{k}">\n<h3>{escape(heading)}</h3>\n<p class="small">{escape(settings)}</p>\n'
            f"{web.table(heading, COLUMNS, body, COLUMNS[1:])}\n</section>"
        )


def _line(cells: Sequence[str], row: Row, wrong: bool) -> list[Cell]:
    if row["skipped"] is not None:
        return [Cell(cells[0]), Cell(cells[1], kind="reason")]
    exact = {"time": row["seconds"], "± IQR": row["iqr"]}  # their texts have units
    first, *rest = zip(COLUMNS, cells, strict=True)
    return [Cell(first[1], kind="failed" * wrong), *(Cell(text, exact.get(column)) for column, text in rest)]


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))
