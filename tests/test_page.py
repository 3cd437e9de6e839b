"""The page of a report: whole, escaped, every row in it, and plots that stand where the figures say."""

from __future__ import annotations

import configparser
import json
import re
import xml.etree.ElementTree as ElementTree
from base64 import b64encode
from fnmatch import fnmatch
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fastgd.bench import plots
from fastgd.bench.cold import COLD
from fastgd.bench.comparison import OWN, ROOF, cases
from fastgd.bench.page import html
from fastgd.bench.plots import Axis

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
REPORTS = {p.stem: r for p in sorted(RESULTS.glob("*.json")) if "rows" in (r := json.loads(p.read_text()))}
HOSTILE = "<img src=x onerror='window.hit=1'>\"&</title></script>"
MACHINE = dict(
    cpu="a processor",
    cores=2,
    threads=2,
    threading_layer=None,
    simd="avx2",
    python="3.11",
    versions={"numpy": "2.0"},
    git=None,
    load=0.5,
    load_after=1.25,
    time="2026-01-01T00:00:00+00:00",
)


def row(peer, seconds=1e-3, skipped=None, **rest):
    """A row of a report, at a million bytes for 28 each."""
    n = rest.get("n", 1 << 20)
    figures = dict(seconds=seconds, iqr=seconds / 10, gbps=28 * n / seconds / 1e9, roof_share=0.5, max_ulp=1.0)
    figures = dict.fromkeys(figures) if skipped else figures
    return dict(rule="adamw", n=n, dtype="float32", regime="cache", peer=peer, skipped=skipped) | figures | rest


def report(*rows, **machine):
    return dict(
        schema=1,
        machine=MACHINE | machine,
        cases={r["rule"]: dict(hyper={"lr": 0.1}, tail={}, tensors=1, float32_bytes=28) for r in rows},
        ulp_limit=64,
        rows=list(rows),
    )


def tree(text):
    return ElementTree.fromstring(text)


def texts(element):
    return "".join(element.itertext())


@pytest.fixture(params=REPORTS)
def real(request):
    return REPORTS[request.param]


def test_page_is_one_file_and_well_formed(real):
    text = html(real)
    assert tree(text).tag == "html"
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert not re.findall(r'\b(?:src|srcset|data)="', text)
    assert all(address.startswith("#") for address in re.findall(r'href="([^"]*)"', text))
    assert len(text) < 2_000_000


def test_what_a_page_is_made_of_is_shipped():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = [x.strip() for x in config["options.package_data"]["fastgd.bench"].split(",")]
    files = [path.name for path in (ROOT / "bench").iterdir() if path.suffix in (".css", ".js")]
    assert len(files) >= 6 and all(any(fnmatch(name, pattern) for pattern in patterns) for name in files)


def test_policy_allows_the_one_script_and_nothing_else(real):
    text = html(real)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.findall(r"\son[a-z]+=", text)


def test_links_and_words_for_pictures_lead_somewhere_and_names_are_unique(real):
    root = tree(html(real))
    names = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(names) == len(set(names))
    assert {a.get("href")[1:] for a in root.iter("a")} <= set(names)
    pictures = [e for e in root.iter("svg") if e.get("role") == "img"]
    assert len(pictures) >= 2
    for picture in pictures:
        title, told = picture[0], picture[1]
        assert (title.tag, told.tag) == ("title", "desc") and title.text and len(told.text) > 20
        assert (picture.get("aria-labelledby"), picture.get("aria-describedby")) == (title.get("id"), told.get("id"))
    rest = [e for e in root.iter("svg") if e.get("role") != "img"]
    assert all(e.get("aria-hidden") == "true" for e in rest)


def test_every_row_is_in_a_table_and_in_the_words_of_a_plot(real):
    root = tree(html(real))
    tables = [(s.find("h3").text, s.find(".//tbody")) for s in root.iter("section")]
    shown = [(title.split()[0], texts(line[0])) for title, body in tables for line in body]
    assert shown == [(r["rule"], r["peer"]) for r in real["rows"]]
    told = " ".join(e.text for e in root.iter("desc"))
    for r in real["rows"]:
        if r["skipped"] is None and r["regime"] != COLD:
            assert re.search(rf"\b{r['peer']} ", told) and f"{r['gbps']:.3g}" in told


def test_cells_with_units_are_sorted_by_the_figures(real):
    root = tree(html(real))
    values = [float(td.get("data-value")) for s in root.iter("section") for td in s.iter("td") if td.get("data-value")]
    assert values == [r[key] for r in real["rows"] if r["skipped"] is None for key in ("seconds", "iqr")]
    heads = [th for th in root.iter("th") if th.get("scope") == "col"]
    assert all(th.get("aria-sort") == "none" and th[0].tag == "button" for th in heads)


def test_the_overview_has_ratios_and_marks_what_is_faster():
    made = report(
        row(ROOF, 0.5e-3, max_ulp=None),
        row(OWN, 1e-3),
        row("torch-fused", 0.9e-3),
        row("optax", 0.99e-3),
        row("numpy-inplace", 8e-3),
        row("thinc", 0.1e-3, max_ulp=1e6),
        row("deepspeed", skipped="no compiler"),
        row("fastgd-numpy", 3e-3),
    )
    root = tree(html(made))
    table = root.find(".//table")
    names = [texts(th).strip() for th in table.iter("th") if th.get("scope") == "col"]
    (line,) = table.find("tbody")
    found = dict(zip(names, line, strict=True))
    assert "fastgd-numpy" not in names and ROOF not in names
    assert {name: (texts(cell), cell.get("class")) for name, cell in found.items()} == {
        "case": ("adamw", None),
        "elements": ("1 M", "number"),
        "dtype": ("float32", None),
        "regime": ("cache", None),
        "fastgd": ("1 ms", "number"),
        "of roof": ("50%", "number"),
        "torch-fused": ("0.90", "number failed"),
        "optax": ("0.99", "number"),
        "numpy-inplace": ("8.00", "number"),
        "thinc": ("wrong", "number failed"),
        "deepspeed": ("skipped", "number"),
    }
    words = " ".join(texts(root.find(".//main")).split())
    assert "ahead in 0, level within 2% in 0 and behind in 1: adamw float32, 1 M." in words
    assert "Not measured: deepspeed (no compiler) in 1 of 1." in words
    assert "Not compared, for it computes something else: thinc in 1." in words
    assert "WRONG: 1e+06" in words and "skipped: no compiler" in words


def test_one_case_may_be_ahead_and_another_level():
    made = report(
        *(row(peer, t) for peer, t in ((OWN, 1e-3), ("optax", 2e-3))),
        *(row(peer, t, n=4096) for peer, t in ((OWN, 1e-5), ("optax", 0.99e-5))),
    )
    assert "ahead in 1, level within 2% in 1 and behind in 0.</p>" in html(made)


def test_all_that_comes_from_data_is_escaped():
    made = report(
        row(ROOF, rule=HOSTILE, dtype=HOSTILE, regime=HOSTILE, max_ulp=None),
        row(OWN, rule=HOSTILE, dtype=HOSTILE, regime=HOSTILE),
        row(HOSTILE, rule=HOSTILE, dtype=HOSTILE, regime=HOSTILE),
        row("optax", rule=HOSTILE, dtype=HOSTILE, regime=HOSTILE, skipped=HOSTILE),
        row(OWN, rule=HOSTILE, n=5),  # so that there is a plot over sizes, too
        row(OWN, rule=HOSTILE, n=50),
        cpu=HOSTILE,
        versions={HOSTILE: HOSTILE},
        git=HOSTILE,
        **{HOSTILE: [HOSTILE]},
    )
    made["cases"][HOSTILE]["hyper"] = {HOSTILE: HOSTILE}
    text = html(made)
    root = tree(text)
    assert "<img" not in text and not list(root.iter("img"))
    assert texts(root).count(HOSTILE) > 20
    assert text.count("<script") == 1 and text.count("</title>") == text.count("<title")


def test_a_report_without_figures_is_a_page():
    empty = html(report())
    assert "<svg" not in empty and tree(empty).find(".//h1") is not None
    skipped = tree(html(report(row(OWN, skipped="no memory"), row("optax", skipped="not installed"))))
    assert not list(skipped.iter("svg"))
    assert "skipped: no memory" in texts(skipped) and "optax (not installed) in 1 of 1" in texts(skipped)


def test_first_steps_of_processes_are_a_plot_of_their_own():
    made = report(row(OWN, 0.3, regime=COLD, roof_share=None), row("optax", 0.9, regime=COLD, roof_share=None))
    root = tree(html(made))
    (plot,) = (e for e in root.iter("svg") if e.get("class") == "plot")
    assert plot.find("title").text == "Seconds to the end of the first step"
    (legend,) = (e for e in root.iter("p") if e.get("class") == "legend small")
    assert texts(legend).split() == [OWN, "optax"]
    assert plot.find("desc").text == f"adamw: {OWN} 0.3, optax 0.9."
    assert [e.get("href") for e in root.iter("a")][:3] == ["#cases", "#start", "#figures"]
    assert "fastgd is ahead in 1" in texts(root) and "3.00" in texts(root)


def test_fewer_threads_are_compared_with_all():
    made = report(
        row(OWN, 1.0, n=1 << 20, regime="cache"),
        row(OWN, 1.5, n=1 << 20, regime="threads-1"),
        row("optax", 1.0, n=1 << 20, regime="threads-1"),
        row(OWN, 1.25, n=1 << 20, regime="threads-2"),
    )
    told = {e.find("title").text: e.find("desc").text for e in tree(html(made)).iter("svg") if e.get("class") == "plot"}
    assert told["Times as fast as on 1 thread"] == f"adamw 1 M: {OWN} 1.5."
    assert told["Times as fast as on 2 threads"] == f"adamw 1 M: {OWN} 1.25."


def test_multiples_are_of_the_rounds_that_both_were_in():
    made = report(row(OWN, 2.0), row("optax", 3.0, ratio=1.25), row("numpy-inplace", 3.0))
    table = texts(tree(html(made)))
    assert "1.25" in table and "1.50" in table


def test_each_regime_is_a_plot_of_its_own_and_many_sizes_are_no_rooflines():
    sizes = (64, 4096, 1 << 20)
    made = report(*(row(p, n=n, regime=r) for r in ("cache", "size", "threads-1") for n in sizes for p in (ROOF, OWN)))
    titles = [e.text for e in tree(html(made)).iter("title")]
    assert [t for t in titles if t.startswith("Throughput")] == [
        f"Throughput of adamw float32{regime}" for regime in ("", ", size", ", threads-1")
    ]
    rooflines = [t for t in titles if t.startswith("Roofline")]
    assert len(rooflines) == 6 and not any("(size)" in t for t in rooflines)


def test_lines_of_dots_name_a_regime_only_where_they_must():
    made = report(*(row(OWN, rule=rule, regime=regime) for rule, regime in (("a", "x"), ("a", "y"), ("b", "z"))))
    (told,) = (e.text for e in tree(html(made)).iter("desc") if "at-0" in e.get("id"))
    assert re.findall(r"([^;:]+): ", told) == ["a, x", " a, y", " b"]


def test_warnings_and_meanings_of_regimes_are_shown():
    made = report(row(OWN)) | dict(warnings=["others were <busy>"], regimes={"cache": "the <caches> hold it", "x": ""})
    text = html(made)
    assert '<p class="warning">Others were &lt;busy&gt;.</p>' in text
    assert "<dt>cache</dt><dd>the &lt;caches&gt; hold it</dd>" in text and "<dt>x</dt>" not in text


def test_unknown_facts_of_the_machine_are_shown():
    text = html(report(row(OWN), busy_share=0.4, warning="it was busy", governors=["a", "b"]))
    for said in ("<dt>busy share</dt><dd>0.40</dd>", "<dt>warning</dt><dd>it was busy</dd>", "<dd>a, b</dd>"):
        assert said in text
    assert "<dt>commit</dt><dd>none</dd>" in text


# ---- plots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 84, 0, 1, log=False), [0, 20, 40, 60, 80]),
        (Axis(0, 0.9, 0, 1, log=False), [0, 0.2, 0.4, 0.6, 0.8]),
        (Axis(0.06, 300, 0, 200), [0.1, 1, 10, 100]),
        (Axis(0.4, 21, 200, 0), [0.5, 1, 2, 5, 10, 20]),
        (Axis(0.4, 21, 0, 90), [1, 10]),
        (Axis(2.5, 6, 0, 200), [3, 4, 5, 6]),
    ],
)
def test_ticks_are_round_and_within(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize("log", [True, False])
def test_an_axis_goes_from_end_to_end(log):
    axis = Axis(2, 50, 300, 20, log)
    assert (axis.at(2), axis.at(50)) == (300, 20)
    middle = 10 if log else 26
    assert axis.at(middle) == pytest.approx(160)


def places(svg, peer):
    """Where the marks of a peer are."""
    found = []
    for title in tree(svg).iter("title"):
        if (title.text or "").startswith(f"{peer}, "):
            (mark,) = (e for e in tree(svg).iter("path") if any(c.text == title.text for c in e))
            found.append(tuple(map(float, re.findall(r"-?[\d.]+", mark.get("transform")))))
    return found


def test_throughput_stands_at_the_logarithm():
    sizes, rates = [64, 4096, 1 << 20], [1.0, 10.0, 100.0]
    rows = [row(p, 28 * n / r / 1e9, n=n) for p in (ROOF, OWN) for n, r in zip(sizes, rates, strict=True)]
    svg = plots.throughput("x", "adamw", rows, (0.5, 200))
    found = np.array(places(svg, OWN))
    assert len(found) == 3 and np.all(np.diff(found[:, 0]) > 0)
    assert found[1, 1] - found[0, 1] == pytest.approx(found[2, 1] - found[1, 1], abs=0.2)
    assert np.diff(found[:, 0])[1] / np.diff(found[:, 0])[0] == pytest.approx(8 / 6, rel=0.02)
    lines = [e.get("d").count("L") for e in tree(svg).iter("path") if e.get("class") == "line"]
    assert lines == [2, 2]
    assert sum(e.get("class") == "spread" for e in tree(svg).iter("path")) == 3


def test_roofline_of_a_step_at_the_roof_lies_on_it():
    seconds = {cost: cost * (1 << 20) / 50e9 for cost in (12, 28, 44)}
    rows = [row(ROOF, seconds[28], max_ulp=None)]
    rows += [row(OWN, t, rule=f"r{c}", gbps=c * (1 << 20) / t / 1e9) for c, t in seconds.items()]
    svg = plots.roofline("x", "1 M", rows)
    (line,) = (e.get("d") for e in tree(svg).iter("path") if e.get("class") == "line")
    x0, y0, x1, y1 = map(float, re.findall(r"-?[\d.]+", line))
    marks = places(svg, OWN)
    assert len(marks) == 3
    for x, y in marks:
        assert y == pytest.approx(y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs=0.3)
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(marks))  # fewer bytes: to the right, and higher
    assert "roof 50 GB/s" in svg


def test_dots_stand_at_their_values_and_long_names_are_cut():
    rows = [("short", [row(OWN), row("optax", 2e-3)]), ("x" * 99, [row(OWN, 4e-3)])]
    svg = plots.dots("x", "title", rows, lambda r: r["seconds"] * 1e3, Axis(0, 5, 100, 300, log=False))
    assert [x for x, _ in places(svg, OWN)] == pytest.approx([140, 260])
    assert [x for x, _ in places(svg, "optax")] == pytest.approx([180])
    assert "…</text>" in svg and "x" * 30 + "<" not in svg
    assert f"{'x' * 99}: {OWN} 4" in tree(svg).find("desc").text


def test_peers_can_be_told_apart_without_hues():
    from fastgd.bench.peers import PEERS

    peers = [peer for peer in PEERS if peer != "matmul"]
    samples = {peer: plots.sample(peer) for peer in peers}
    looks = {re.sub(r'class="[a-z]+ ', 'class="', sample) for sample in samples.values()}
    assert len(looks) == len(peers) and not any('"other ' in sample for sample in samples.values())
    assert 'class="other v0"' in plots.sample("unheard-of")


def test_cases_keep_the_order_of_the_report(real):
    found = cases(real)
    assert [r for case in found for r in case.rows.values()] == real["rows"]
    for case in found:
        assert case.ratio(OWN) == 1 and case.ratio("nobody") is None
        assert not {ROOF, OWN, "fastgd-numpy", "matmul"} & set(case.rivals)
