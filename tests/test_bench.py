"""The benchmark measures what it says: baselines equal the rules, absent peers are named, every row is shown."""

import json

import numpy as np
import pytest

from fastgd.bench import cases, worker
from fastgd.bench.baselines import IN_PLACE, TEXTBOOK
from fastgd.bench.cases import CASES, GRADIENT_FACTORS, ULP_LIMIT, data, max_ulp, reference
from fastgd.bench.peers import PEERS
from fastgd.bench.report import COLUMNS, markdown, size_text, tables, time_text, write_json
from fastgd.bench.run import regime, run, throughput
from fastgd.kernels.errors import BackendUnavailable, HyperparameterError
from fastgd.kernels.rules import RULES
from fastgd.optimizer import Optimizer

ROW = {"rule", "n", "dtype", "regime", "peer", "seconds", "iqr", "gbps", "roof_share", "max_ulp", "skipped"}
N = 1000


def test_every_rule_has_a_row_and_every_row_a_rule():
    assert set(cases._TABLE) <= set(RULES)
    assert set(CASES) == set(RULES)
    assert {name for case in CASES.values() for name in case.peers} <= set(PEERS)
    for rule, case in CASES.items():
        assert ("numpy-textbook" in case.peers) == (rule in TEXTBOOK)
        assert ("numpy-inplace" in case.peers) == (rule in IN_PLACE)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("table", [TEXTBOOK, IN_PLACE], ids=["textbook", "in-place"])
@pytest.mark.parametrize("rule", TEXTBOOK)
def test_baseline_equals_rule(rule, table, dtype):
    case = CASES[rule]
    p, g = data(N, dtype)
    q, h = p.copy(), g.copy()
    step = table[rule](q, h, **case.full())
    optimizer = Optimizer(p, case.build(), backend="numpy")
    for factor in GRADIENT_FACTORS:
        h[:] = factor * g
        result = step()
        optimizer.step(h.copy())
    assert result.dtype == p.dtype
    np.testing.assert_allclose(result, p, rtol=8 * np.finfo(dtype).eps, atol=0)


def test_in_place_baseline_allocates_no_array():
    import tracemalloc

    for rule, baseline in IN_PLACE.items():
        step = baseline(*data(1 << 16, "float32"), **CASES[rule].full())
        step()
        tracemalloc.start()
        step()
        assert tracemalloc.get_traced_memory()[1] < 10_000, rule
        tracemalloc.stop()


@pytest.mark.parametrize("rule", CASES)
def test_streams_and_bytes_agree(rule):
    changed, read = CASES[rule].streams()
    once = 4 * (2 * changed + read)
    bytes_per_param = CASES[rule].bytes_per_param(4)
    assert bytes_per_param == once if CASES[rule].build().stages() == ("update",) else bytes_per_param > once


def test_adamw_moves_28_bytes():
    assert CASES["adamw"].bytes_per_param(4) == 28
    assert CASES["adamw"].streams() == (3, 1)


def test_data_repeat_and_so_does_the_reference():
    n = 2 * cases.PERIOD + 5
    p, g = data(n, "float32")
    optimizer = Optimizer(p, CASES["adamw"].build(), backend="numpy")
    for factor in GRADIENT_FACTORS:
        optimizer.step(np.float32(factor) * g)
    assert 0 < max_ulp(p, reference(CASES["adamw"], "float32", n)) < 4


def test_max_ulp_counts_units_and_never_passes_nan():
    expected = np.array([1.0, -2.0])
    off = np.array([1.0, -2.0, 1.0 + 3 * 2**-23], np.float32)
    assert max_ulp(off, expected) == 3
    assert max_ulp(np.array([1.0, np.nan], np.float32), expected) == np.inf


@pytest.fixture(scope="module")
def report():
    seen = []
    made = run(
        ("sgd", "lamb"),
        (N,),
        backends=("numba", "numpy"),
        threads=1,
        peers=("roof", "numpy-inplace"),
        rounds=2,
        progress=lambda *turn: seen.append(turn),
    )
    return made, seen


def test_run_reports_every_peer(report):
    made, seen = report
    assert made["schema"] == 1
    assert [(r["rule"], r["peer"]) for r in made["rows"]] == [
        ("sgd", "roof"),
        ("sgd", "fastgd-numba"),
        ("sgd", "fastgd-numpy"),
        ("sgd", "numpy-inplace"),
        ("lamb", "roof"),
        ("lamb", "fastgd-numba"),
        ("lamb", "fastgd-numpy"),
    ]
    for row in made["rows"]:
        assert set(row) == ROW
        assert (row["n"], row["dtype"], row["regime"], row["skipped"]) == (N, "float32", "small", None)
        assert row["seconds"] > 0 and row["iqr"] >= 0 and row["gbps"] > 0
        if row["peer"] == "roof":
            assert row["roof_share"] == 1 and row["max_ulp"] is None
        else:
            assert 0 <= row["max_ulp"] < ULP_LIMIT
    machine = made["machine"]
    assert machine["threads"] == 1 and machine["cores"] >= 1 and machine["versions"]["numba"]
    assert set(machine) >= {"cpu", "simd", "threading_layer", "python", "git", "load", "load_after"}
    assert made["cases"]["sgd"]["float32_bytes"] == 20
    assert seen[-1][1:] == (14, 14)


def test_report_survives_json(report, tmp_path):
    write_json(report[0], tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report[0]))


def test_markdown_shows_every_row_and_the_machine(report):
    made, _ = report
    text = markdown(made)
    assert sum(line.startswith(("| roof", "| fastgd", "| numpy")) for line in text.splitlines()) == len(made["rows"])
    assert text.count(made["machine"]["cpu"]) == 2
    for _, rows in tables(made):
        assert all(len(row) == len(COLUMNS) for row in rows)


def test_absent_peer_is_named(monkeypatch):
    def absent(*_):
        raise ModuleNotFoundError("No module named 'optax'")

    monkeypatch.setitem(PEERS, "optax", absent)
    peer, reply = worker._open({"peer": "optax", "rule": "gd", "n": 10, "dtype": "float32"}, 1)
    assert peer is None
    assert reply == {"skipped": "not installed: No module named 'optax'"}


def test_failing_peer_is_named_and_the_run_goes_on(monkeypatch):
    def failing(*_):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setitem(PEERS, "thinc", failing)
    _, reply = worker._open({"peer": "thinc", "rule": "adam", "n": 10, "dtype": "float32"}, 1)
    assert reply == {"skipped": "RuntimeError: no compiler"}


def test_dead_process_is_named():
    dying = worker.Worker("roof", 1)
    try:
        dying.ask(do="open", rule="no such rule", n=10, dtype="float32")
        assert dying.answer() == {"skipped": "its process ended with status 1: KeyError: 'no such rule'"}
        dying.ask(do="close")
        assert "status 1" in dying.answer()["skipped"]
    finally:
        dying.stop()


def test_skipped_and_wrong_rows_are_shown():
    base = dict(rule="gd", n=4096, dtype="float32", regime="small", iqr=1e-6, gbps=1.0, roof_share=None, skipped=None)
    rows = [
        base | dict(peer="thinc", seconds=1e-5, max_ulp=1e6),
        base | dict(peer="optax", seconds=None, gbps=None, max_ulp=None, skipped="not installed: a | b"),
    ]
    made = {"rows": rows, "cases": {"gd": {"hyper": {"lr": 0.1}}}, "ulp_limit": ULP_LIMIT}
    ((title, cells),) = tables(made)
    assert title == "gd float32, 4 k elements (small); lr=0.1"
    assert cells[0][-1] == "WRONG: 1e+06"
    assert cells[1][:2] == ("optax", "skipped: not installed: a | b")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(rules=("adamw", "madam")), HyperparameterError, "rule must be one of .*, given 'madam'"),
        (dict(sizes=(0,)), HyperparameterError, "size must be at least 1, given 0"),
        (dict(rounds=0), HyperparameterError, "rounds must be at least 1, given 0"),
        (dict(dtypes=("int8",)), HyperparameterError, "dtype must be one of float32, float64, given 'int8'"),
        (dict(peers=("roof", "cython")), HyperparameterError, "peer must be one of .*, given 'cython'"),
        (dict(backends=("cupy",)), BackendUnavailable, "backend must be one of numba, numpy, given 'cupy'"),
        (dict(threads=0), HyperparameterError, "threads must be a whole number from 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        run(**{"sizes": (N,), **arguments})


def test_regimes_sizes_and_times_in_words():
    assert [regime(n) for n in (4096, 1 << 20, 1 << 24, 1 << 26)] == ["small", "cache", "dram", "dram"]
    assert [size_text(n) for n in (1000, 4096, 1 << 20, 3 << 30)] == ["1000", "4 k", "1 M", "3 G"]
    assert [time_text(s) for s in (2.5e-6, 0.0351, 1.25)] == ["2.5 µs", "35.1 ms", "1.25 s"]


def test_throughput_has_both_baselines():
    rows = throughput("gd", (N,), rounds=2)
    assert [row["peer"] for row in rows] == ["roof", "fastgd-numba", "numpy-textbook", "numpy-inplace"]
    assert all(row["seconds"] > 0 for row in rows)
