"""The README's table and picture of speed follow from the reports: the newest one, losing rows and gaps included."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from test_page import OWN, RESULTS, ROOF, ROOT, report, row

from fastgd.bench import headline
from fastgd.bench.cases import CASES, GPT2
from fastgd.bench.headline import lines, markdown, picture

M = 1 << 20
SVG = "{http://www.w3.org/2000/svg}"


def adamw(own=1e-3, *others, time="2026-01-01", n=M, **rest):
    """A report of AdamW."""
    rows = [row(ROOF, 0.8e-3, n=n, max_ulp=None, **rest), row(OWN, own, n=n, **rest)]
    return report(*rows, *(row(peer, t, n=n, **rest) for peer, t in others), time=time)


def cells(text):
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return table[0], table[1:]


def test_what_is_wanted_is_in_the_table_of_the_bench():
    rules = {rule for _, rule, _ in headline._WANTED}
    assert rules - {"adamw-resnet50"} <= set(CASES)  # measured where it is there


def test_ratios_are_those_of_the_report():
    made = adamw(1e-3, ("torch-fused", 1.5e-3), ("numpy-inplace", 12e-3), ("numexpr", 0.2), ("optax", 0.5e-3))
    head, (line,) = cells(markdown({"new": made}))
    assert head == ["case", "time", "of roof", "fastest other", "NumPy in place", "torch fused", "optax", "max ULP"]
    assert line == ["AdamW, 1 M", "1 ms", "50%", "**0.50** optax", "12.0", "1.50", "**0.50**", "1.0"]
    (line,) = cells(markdown({"new": adamw(1e-3, ("thinc", 1.5e-3), ("optax", 2e-3))}))[1]
    assert line[3:5] == ["1.50 thinc", "2.00"]
    assert "In bold: faster than fastgd." in markdown({"new": made})
    assert "In bold" not in markdown({"new": adamw(1e-3, ("optax", 2e-3))})


def test_the_newest_report_counts_and_is_named():
    reports = {"b-old": adamw(1e-3, ("optax", 2e-3)), "a-new": adamw(4e-3, ("optax", 2e-3), time="2026-02-01")}
    text = markdown(reports)
    assert cells(text)[1][0][:2] == ["AdamW, 1 M", "4 ms"]
    assert "- [a-new.md](bench/results/a-new.md): a processor, 2 cores" in text and "b-old" not in text
    del reports["a-new"]["rows"][1:]  # without fastgd's time it is no report of the case
    assert cells(markdown(reports))[1][0][:2] == ["AdamW, 1 M", "1 ms"]


@pytest.mark.parametrize("rest", [dict(threads=1, regime="threads-1"), dict(regime="cold"), dict(dtype="float64")])
def test_a_case_on_one_thread_or_cold_or_in_another_dtype_does_not_count(rest):
    made = adamw(9e-3, **rest)
    assert lines({"x": made})[0] == []
    made["rows"] += adamw(1e-3, threads=2)["rows"]
    assert [line.case.own["seconds"] for line in lines({"x": made})[0]] == [1e-3]


def test_a_report_of_fewer_threads_or_another_dtype_does_not_count():
    one = adamw(9e-3, time="2026-03-01")
    one["machine"]["threads"] = 1
    double = adamw(8e-3, time="2026-03-01", dtype="float64")
    (line,) = cells(markdown({"one": one, "double": double, "all": adamw()}))[1]
    assert line[1] == "1 ms"


@pytest.mark.parametrize(
    ("n", "name"), [(sum(GPT2), "124 million"), (64 * M, "64 M"), (10**6, "1 million"), (M, "1 M")]
)
def test_tensors_are_found_at_about_their_size(n, name):
    found, missing = lines({"x": adamw(n=n, rule="adamw-gpt2")})
    assert [line.name for line in found] == [f"AdamW, GPT-2's 148 tensors, {name}"]
    assert len(found) + len(missing) == len(headline._WANTED)
    assert f"AdamW, GPT-2's 148 tensors, {'1 M' if n > 2 * M else '124 million'}" in missing


def test_the_nearest_size_and_the_usual_regime_are_taken():
    made = adamw(n=sum(GPT2), rule="adamw-gpt2")
    made["rows"] = adamw(n=64 * M, rule="adamw-gpt2")["rows"] + made["rows"]
    assert lines({"x": made})[0][0].case.n == sum(GPT2)
    made = adamw(5e-3, regime="size")
    made["rows"] += adamw(1e-3)["rows"]
    assert lines({"x": made})[0][0].case.own["seconds"] == 1e-3


def test_gaps_are_named():
    made = adamw(1e-3, ("torch-fused", 2e-3), ("optax", 1e-4))
    made["rows"][-1]["max_ulp"] = 1e6
    made["rows"].append(row("deepspeed", skipped="not installed: a | b"))
    text = markdown({"x": made})
    assert dict(zip(*cells(text.replace("\\|", "")), strict=False))  # still a table
    head, (line,) = cells(text)
    assert dict(zip(head, line, strict=True))["optax"] == "wrong"
    assert dict(zip(head, line, strict=True))["fastest other"] == "2.00 torch fused"
    assert dict(zip(head, line, strict=True))["DeepSpeed"] == ""
    assert "Could not take part: DeepSpeed (not installed: a | b)." in text
    assert "Not measured yet: AdamW, 64 M; AdamW, 4 k; " in text


def test_no_reports_are_no_error():
    assert "Not measured yet: AdamW, 64 M" in markdown({})
    assert ElementTree.fromstring(picture({})).tag == f"{SVG}svg"


def test_picture_has_a_line_for_each_case_and_marks_at_the_ratios():
    made = adamw(1e-3, ("torch-fused", 2e-3), ("optax", 4e-3))
    made["rows"] += adamw(1e-5, ("torch-fused", 0.9e-5), n=4096)["rows"]
    root = ElementTree.fromstring(picture({"x": made}))
    marks = {}
    for mark in root.iter(f"{SVG}path"):
        title = mark.find(f"{SVG}title")
        if title is not None:
            marks[title.text.split(":")[0]] = float(re.findall(r"[\d.]+", mark.get("transform"))[0])
    one, two, four = (marks[f"{peer}, adamw of 1 M"] for peer in (OWN, "torch-fused", "optax"))
    assert four - two == pytest.approx(two - one, abs=0.2) and two > one
    assert marks[f"{ROOF}, adamw of 1 M"] == pytest.approx(one - (two - one), abs=0.2)  # half of the roof
    assert marks["torch-fused, adamw of 4 k"] < one == marks[f"{OWN}, adamw of 4 k"]
    words = {t.text for t in root.iter(f"{SVG}text")}
    assert {"AdamW, 1 M", "AdamW, 4 k", "1 ms", "10 µs", "fastgd", "torch fused", "optax", "roof"} <= words
    assert "AdamW, 1 M: roof 0.5, fastgd-numba 1, torch-fused 2, optax 4" in root.get("aria-label")


def test_names_from_data_are_escaped():
    text = picture({"x": adamw(1e-3, ("<b>&\"'", 2e-3))})
    assert "<b>" not in text and ElementTree.fromstring(text) is not None


def test_picture_stands_for_itself_and_has_both_schemes():
    text = (ROOT / headline.PICTURE).read_text()
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and "AdamW, 1 M: roof" in root.get("aria-label")
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text and "@import" not in text and "href" not in text and len(text) < 40_000
    assert root.find(f"{SVG}rect").get("class") == "ground"  # readable on any ground


def test_readme_shows_the_picture_and_names_reports_that_are_there():
    readme = (ROOT / "README.md").read_text()
    block = readme.split("<!-- speed: begin, made by docs/generate.py -->")[1].split("<!-- speed: end -->")[0]
    assert f"]({headline.PICTURE})" in block
    named = re.findall(r"\]\((bench/results/[^)]*)\)", block)
    assert named and all((ROOT / name).exists() for name in named)
    reports = {Path(name).stem: json.loads((RESULTS / f"{Path(name).stem}.json").read_text()) for name in named}
    assert len(cells(block)[1]) == len(lines(reports)[0])
