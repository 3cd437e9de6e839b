"""Reports hold what they promise: every regime, first steps of processes, and the machine's own load."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastgd.bench import cold, load, measure
from fastgd.bench.cases import CASES
from fastgd.bench.cold_step import FIRST_STEPS
from fastgd.bench.measure import Point
from fastgd.bench.peers import PEERS
from fastgd.bench.regimes import FULL, QUICK, RULES, meaning, points
from fastgd.bench.report import OVERVIEW, markdown, overview
from fastgd.bench.run import describe_machine, report_of
from fastgd.kernels.errors import HyperparameterError

CONTRACT = {"rule", "n", "dtype", "regime", "peer", "seconds", "iqr", "gbps", "roof_share", "max_ulp", "skipped"}
MACHINE = {"cpu", "cores", "cache", "simd", "threads", "threading_layer", "python", "versions", "git", "load", "others"}


# ---- the machine's own load ------------------------------------------------------------------------------------------


def fake_proc(folder, busy, idle, own=(), pid=7):
    """Write /proc of a machine whose CPUs were busy and idle for so many seconds, and one process of it."""
    tick = os.sysconf("SC_CLK_TCK")
    (folder / "stat").write_text(f"cpu  {busy * tick:.0f} 0 0 {idle * tick:.0f} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    if own:
        (folder / str(pid)).mkdir(exist_ok=True)
        times = " ".join(f"{s * tick:.0f}" for s in own)
        (folder / str(pid) / "stat").write_text(f"{pid} (a (b) c) S 1 1 1 0 -1 4194304 0 0 0 0 {times} 20 0\n")
    return folder


def test_others_are_what_is_busy_and_not_ours(tmp_path):
    before = load.snapshot([7, 8], fake_proc(tmp_path, 10, 10, (1, 1, 0, 0)))
    after = load.snapshot([7, 8], fake_proc(tmp_path, 16, 14, (2, 1.5, 0.5, 0.5)))
    assert (before.busy, before.own, after.busy, after.own) == (10, 2, 16, 4.5)
    meter = load.Meter()
    meter.add(replace(before, clock=0.0), replace(after, clock=5.0))
    assert meter.others == 3.5
    assert meter.cpus() == 0.7


def test_short_stretches_say_nothing_and_add_up():
    part, whole = load.Meter(), load.Meter()
    part.add(load.Snapshot(0, 0, 0), load.Snapshot(0.6, 0.7, 0.1))
    assert part.cpus() is None
    whole.include(part)
    whole.include(part)
    assert whole.cpus() == 1.0


def test_a_system_that_does_not_tell_is_not_idle(tmp_path):
    assert load.snapshot([1], tmp_path) is None
    meter = load.Meter()
    meter.add(None, None)
    assert meter.cpus() is None
    whole = load.Meter()
    whole.include(meter)
    assert whole.cpus() is None
    assert load.warning(None, 2) is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the load is read from /proc")
@pytest.mark.parametrize("ours", [False, True])
def test_a_busy_process_counts_if_it_is_not_ours(ours):
    code = "import time\nprint(flush=True)\nwhile time.process_time() < 1: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        process.stdout.readline()
        alone, both = load.Meter(), load.Meter()
        with alone.running([process.pid]), both.running([]):
            process.stdout.readline()
        process.communicate("\n")
    assert both.others - alone.others == pytest.approx(1, abs=0.25)
    assert (alone if ours else both).others >= (0 if ours else 0.75)


@pytest.mark.parametrize(
    ("others", "cpus", "busy"), [(0.05, 2, False), (0.5, 2, True), (0.5, 64, False), (8, 64, True)]
)
def test_warning_names_the_load(others, cpus, busy):
    text = load.warning(others, cpus)
    assert (text is not None) == busy
    assert not busy or f"{others:.2f} of {cpus} CPUs" in text


# ---- regimes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [FULL, QUICK], ids=["full", "quick"])
def test_a_report_asks_every_question(parts):
    found = points(parts, 4)
    regimes = {p.regime for p in found}
    model = {"gpt2", "gpt2-1M", "resnet50"} if parts is FULL else {"gpt2-1M", "resnet50-1M"}
    assert regimes == {"dram", "cache", "small", "tail", "size", "cold", "threads-1", "threads-2", *model}
    assert all(meaning(regime) for regime in regimes)
    assert {p.dtype for p in found} == {"float32", "float64"}
    assert {p.case.rule for p in found if p.regime == "cache"} == set(RULES)
    assert [p.threads for p in found] == sorted((p.threads for p in found), key=lambda t: (t != 4, t))
    for point in found:
        assert "fastgd-numba" in point.peers
        assert set(point.peers) <= set(FIRST_STEPS if point.regime == "cold" else PEERS)
        assert ("roof" in point.peers) == (point.regime != "cold")
    keys = [(p.case.name, p.n, p.dtype, p.regime) for p in found]
    assert len(keys) == len(set(keys))


def test_a_full_report_has_the_sizes_that_are_promised():
    sizes = {(p.regime, p.case.name): set() for p in points(FULL, 2)}
    for p in points(FULL, 2):
        sizes[p.regime, p.case.name].add(p.n)
    assert sizes["dram", "adamw"] == {64 << 20} and sizes["cache", "lamb"] == {1 << 20}
    assert sizes["small", "lion"] == {4096}
    assert sizes["gpt2", "adamw-gpt2"] == {124_439_808} and sizes["resnet50", "sgd-resnet50"] == {25_557_032}
    assert min(sizes["size", "sgd"]) == 64 and max(sizes["size", "adamw"]) == 64 << 20
    assert sizes["threads-1", "adamw"] == {4096, 1 << 20, 64 << 20}


def test_one_thread_has_none_below_it():
    assert not [p for p in points(FULL, 1) if p.regime.startswith("threads")]


def test_a_report_is_limited_to_rules_and_peers():
    found = points(QUICK, 2, ["lion", "adamw-gpt2"], ["roof", "optax"])
    assert {p.case.name for p in found} == {"lion", "adamw-gpt2"}
    assert {peer for p in found for peer in p.peers} == {"roof", "optax", "fastgd-numba", "fastgd-numpy"}
    assert all("fastgd-numba" in p.peers for p in points(QUICK, 2, None, []))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["nadam"], None), "rule of a report must be one of .*, given 'nadam'"),
        ((None, ["cython"]), "peer must be one of .*, given 'cython'"),
    ],
)
def test_names_that_a_report_has_not_are_refused(arguments, message):
    with pytest.raises(HyperparameterError, match=message):
        points(QUICK, 2, *arguments)


# ---- what is measured ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    """A report of four regimes, from points that take next to no time."""
    peers = ("roof", "fastgd-numba", "numpy-inplace")
    made = [
        Point(CASES["adamw"], 1000, "float32", "small", 2, peers),
        Point(CASES["adamw-tail"], 1000, "float64", "tail", 2, peers),
        Point(CASES["adamw"], 1000, "float32", "cold", 2, ("fastgd-numba", "numpy-inplace")),
        Point(CASES["adamw"], 1000, "float32", "threads-1", 1, peers),
    ]
    return report_of(made, 2)


def test_rows_keep_the_contract(report):
    assert report["schema"] == 1
    assert set(report["machine"]) >= MACHINE
    assert report["rounds"] == 2
    assert list(report["regimes"]) == ["small", "tail", "cold", "threads-1"] and all(report["regimes"].values())
    assert [(r["regime"], r["threads"]) for r in report["rows"][::3]] == [
        ("small", 2),
        ("tail", 2),
        ("cold", 2),
        ("threads-1", 1),
    ]
    for row in report["rows"]:
        assert set(row) >= CONTRACT and row["skipped"] is None
        assert row["seconds"] > 0 and row["iqr"] >= 0 and row["gbps"] > 0
        assert (row["roof_share"] is None) == (row["regime"] == "cold")
        assert row["peer"] == "roof" or row["max_ulp"] < 8
    assert json.loads(json.dumps(report))["rows"] == report["rows"]
    assert all("busy" in text for text in report["warnings"])


def test_a_busy_machine_is_said_in_the_report(report, monkeypatch):
    monkeypatch.setattr(load.Meter, "cpus", lambda self: 0.8 * (os.cpu_count() or 1))
    made = report_of([Point(CASES["gd"], 100, "float32", "small", 1, ("fastgd-numpy",))], 1)
    (text,) = made["warnings"]
    assert text.startswith("the machine was busy: other processes kept ")
    assert "**The machine was busy" in markdown(made)


def test_rounds_are_at_least_one():
    with pytest.raises(HyperparameterError, match="rounds must be at least 1, given 0"):
        report_of([], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("peer", FIRST_STEPS)
def test_first_step_of_a_process_is_the_rule(peer, dtype):
    found = cold.first_step(peer, CASES["adamw"], 1000, dtype, 1)
    if found.get("skipped", "").startswith("not installed"):
        pytest.skip(found["skipped"])
    assert set(found) == {"seconds", "max_ulp"}
    assert found["seconds"] > 0 and found["max_ulp"] < 4


def test_first_step_that_fails_is_named():
    found = cold.first_step("optax", CASES["lion"], 10, "float32", 1)
    assert "skipped" in found and ("status 1: " in found["skipped"] or "not installed" in found["skipped"])


def test_a_peer_that_dies_is_skipped_from_then_on(monkeypatch):
    answers = [{"seconds": 1.0, "max_ulp": 0.0}, {"skipped": "gone"}]
    monkeypatch.setattr(measure, "first_step", lambda *_: answers.pop(0))
    point = Point(CASES["adamw"], 10, "float32", "cold", 1, ("fastgd-numba",))
    (row,) = measure.measure([point], 3, None, load.Meter(), {"threading_layer": None})
    assert row["skipped"] == "gone" and row["seconds"] is None and not answers


def test_markdown_starts_with_a_line_for_each_case(report):
    lines = overview(report)
    assert [line[:3] for line in lines] == [
        ("adamw float32", "1000", "small"),
        ("adamw-tail float64", "1000", "tail"),
        ("adamw float32", "1000", "cold"),
        ("adamw float32", "1000", "threads-1"),
    ]
    assert all(len(line) == len(OVERVIEW) and line[5] == "numpy-inplace" and line[7] == "" for line in lines)
    text = markdown(report)
    assert text.count("numpy-inplace") == 8
    assert f"- cold: {meaning('cold')}" in text


def test_a_wrong_peer_is_never_the_fastest(report):
    made = copy.deepcopy(report)
    for row in made["rows"]:
        if row["peer"] == "numpy-inplace":
            row["max_ulp"] = 1e9
    assert {line[5] for line in overview(made)} == {""}


def test_machine_is_described():
    machine = describe_machine(2)
    assert machine["threads"] == 2 and machine["cores"] >= 1
    assert {"numpy", "numba"} <= set(machine["versions"])
