"""The benchmark measures what it says: baselines equal the rules, absent peers are named, every row is shown."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from fastgd.bench import cases, measure, worker
from fastgd.bench.baselines import IN_PLACE, TEXTBOOK, with_tail
from fastgd.bench.cases import (
    CASES,
    GPT2,
    GRADIENT_FACTORS,
    PERIOD,
    RESNET50,
    ULP_LIMIT,
    Pass,
    data,
    max_ulp,
    reference,
)
from fastgd.bench.peers import PEERS
from fastgd.bench.regimes import by_size
from fastgd.bench.report import COLUMNS, markdown, size_text, tables, time_text, write_json
from fastgd.bench.roofline import sweeps
from fastgd.bench.run import run, throughput
from fastgd.kernels.errors import BackendUnavailable, HyperparameterError
from fastgd.kernels.rules import RULES
from fastgd.optimizer import Optimizer

ROW = {"rule", "n", "dtype", "regime", "threads", "peer", "seconds", "iqr", "gbps", "roof_share", "max_ulp", "skipped"}
ROW |= {"ratio", "others"}
N = 1000
FOREIGN = [(name, peer) for name, case in CASES.items() for peer in case.peers if peer != "matmul"]
FLOAT32_ONLY = ("deepspeed", "thinc")
VARIANTS = [name for name, case in CASES.items() if case.variant]


@pytest.fixture(autouse=True)
def _torchs_own_dtype():
    """Undo what a peer of torch's does to the process that it is alone in: here it is not."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_default_dtype(sys.modules["torch"].float32)


def test_every_rule_has_a_row_and_every_row_a_rule():
    assert {name for name, case in CASES.items() if not case.variant} == set(RULES)
    assert {case.rule for case in CASES.values()} == set(RULES)
    assert all(name == case.name for name, case in CASES.items())
    assert {name for case in CASES.values() for name in case.peers} <= set(PEERS)
    for rule in RULES:
        assert ("numpy-textbook" in CASES[rule].peers) == (rule in TEXTBOOK)
        assert ("numpy-inplace" in CASES[rule].peers) == (rule in IN_PLACE)


def test_variants_differ_in_what_their_names_say():
    assert set(VARIANTS) >= {"adamw-tail", "adamw-gpt2", "adamw-tail-gpt2", "lamb-gpt2", "prodigy-gpt2"}
    for name in VARIANTS:
        case = CASES[name]
        assert case.full() == CASES[case.rule].full() | ({"cautious": True} if "cautious" in name else {})
        assert dict(case.tail) == (dict(max_norm=1.0, ema_decay=0.99, zero_grad=True) if "tail" in name else {})
        assert case.tensors == ({"gpt2": GPT2, "resnet50": RESNET50}.get(name.rpartition("-")[2], (1,)))


@pytest.mark.parametrize("n", [148, 149, N, 4096, 1 << 20, sum(GPT2), 1 << 30])
def test_gpt2_is_148_tensors_that_sum_to_n(n):
    sizes = [a.size for a in CASES["adamw-gpt2"].cut(np.broadcast_to(np.float32(0), n))]
    assert len(sizes) == 148 and sum(sizes) == n and min(sizes) >= 1
    np.testing.assert_allclose(sizes, np.array(GPT2) * n / sum(GPT2), atol=2, rtol=149 / n)


def test_models_have_as_many_elements_as_torch_makes_them():
    assert sum(GPT2) == 124_439_808
    assert (len(RESNET50), sum(RESNET50)) == (161, 25_557_032)


def test_one_tensor_is_the_array():
    p, _ = data(1, "float32")
    (whole,) = CASES["adamw"].cut(p)
    assert whole.size == 1 and np.shares_memory(whole, p)


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
        p, g = data(1 << 16, "float32")
        step, _ = with_tail(baseline(p, g, **CASES[rule].full()), p, g, **CASES["adamw-tail"].tail)
        step()
        tracemalloc.start()
        step()
        assert tracemalloc.get_traced_memory()[1] < 10_000, rule
        tracemalloc.stop()


@pytest.mark.parametrize("rule", CASES)
def test_the_roof_moves_the_bytes_of_the_step(rule):
    case = CASES[rule]
    assert 4 * sum(one.streams for one in case.passes()) == case.bytes_per_param(4)


def test_passes_of_a_step():
    assert CASES["adamw"].passes() == (Pass(("p", "m", "v"), ("g",)),)
    assert CASES["adamw"].bytes_per_param(4) == 28
    assert CASES["adamw-tail"].passes() == (Pass((), ("g",)), Pass(("p", "m", "v", "ema", "g"), ()))
    assert CASES["adamw-tail"].bytes_per_param(8) == 88
    assert CASES["lamb"].passes() == (Pass(("m", "v"), ("p", "g")), Pass(("p",), ("m", "v")))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_roof_makes_every_pass(threads):
    n = 300_001
    ones = {name: np.ones(n, np.float32) for name in "pgmv"}
    run = sweeps([Pass((), ("g",)), Pass(("m", "v"), ("p", "g")), Pass(("p",), ())], ones, threads=threads)
    run()
    assert [set(a.tolist()) for a in ones.values()] == [{2.0}, {1.0}, {3.0}, {3.0}]


def test_data_repeat_and_so_does_the_reference():
    n = 2 * cases.PERIOD + 5
    p, g = data(n, "float32")
    optimizer = Optimizer(p, CASES["adamw"].build(), backend="numpy")
    for factor in GRADIENT_FACTORS:
        optimizer.step(np.float32(factor) * g)
    (expected,) = reference(CASES["adamw"], "float32", n)
    assert 0 < max_ulp(p, expected) < 4


@pytest.mark.parametrize("n", [5, N, 2 * PERIOD, 2 * PERIOD + 5])
def test_reference_clips_by_the_norm_of_all_elements(n):
    case = CASES["adamw-tail"]
    p, g = data(n, "float64")
    m, v, average = np.zeros(n), np.zeros(n), p.copy()
    for t, factor in enumerate(GRADIENT_FACTORS, 1):
        h = factor * g
        h *= min(1.0, 1.0 / (np.linalg.norm(h) + 1e-6))
        m, v = 0.9 * m + 0.1 * h, 0.999 * v + 0.001 * h * h
        p -= 1e-3 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * p)
        average += 0.01 * (p - average)
    for found, whole in zip(reference(case, "float64", n), (p, average, np.zeros(n)), strict=True):
        assert max_ulp(whole, found) < 8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [N, PERIOD + 5])
@pytest.mark.parametrize(
    ("name", "peer"),
    [
        (name, peer)
        for name in VARIANTS
        for peer in ("fastgd-numba", "fastgd-numpy", *CASES[name].peers)
        if peer.startswith(("fastgd", "numpy", "torch"))
    ],
)
def test_peers_of_variants_equal_the_reference(name, peer, n, dtype):
    if peer.startswith("torch"):
        pytest.importorskip("torch")
    made, reply = worker._open({"peer": peer, "rule": name, "n": n, "dtype": dtype}, 1)
    assert reply.get("skipped") is None
    assert reply["max_ulp"] < 8
    assert len(made.results) == (3 if CASES[name].tail else 1)
    assert made.consumes_gradient == bool(CASES[name].tail)


@pytest.mark.parametrize(
    ("part", "without"), [("max_norm", 1e30), ("ema_decay", np.nextafter(1.0, 0.0)), ("zero_grad", False)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peer_that_forgets_a_part_of_the_tail_is_wrong(part, without, dtype, monkeypatch):
    def forgetful(case, *arguments):
        return PEERS["fastgd-numpy"](replace(case, tail={**case.tail, part: without}), *arguments)

    monkeypatch.setitem(PEERS, "torch-fused", forgetful)
    _, reply = worker._open({"peer": "torch-fused", "rule": "adamw-tail-gpt2", "n": N, "dtype": dtype}, 1)
    assert reply["max_ulp"] > ULP_LIMIT


@pytest.fixture(scope="module")
def worker_of():
    """Peers in processes of their own, as they are timed: their libraries need not go together, nor with pytest."""
    made = {}

    def get(peer):
        if peer not in made:
            made[peer] = worker.Worker(peer, 1)
        return made[peer]

    yield get
    for each in made.values():
        each.stop()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "peer"), FOREIGN, ids=[" ".join(pair) for pair in FOREIGN])
def test_peer_computes_the_rule_that_it_is_compared_in(name, peer, dtype, worker_of):
    own = worker_of(peer)
    own.ask(do="open", rule=name, n=N, dtype=dtype)
    reply = own.answer()
    reason = reply.get("skipped")
    if reason and reason.startswith("not installed"):
        pytest.skip(reason)
    if dtype == "float64" and (peer in FLOAT32_ONLY or (name, peer) == ("adagrad", "optax")):
        assert "float32" in reason
    else:
        assert reason is None
        assert reply["max_ulp"] < 8


@pytest.mark.parametrize("rule", ["gd", "sgd", "adam", "adamw", "lion", "adagrad", "rmsprop", "lamb"])
def test_the_usual_rules_meet_every_peer_that_has_them(rule):
    have = {
        "torch-fused": {"gd", "sgd", "adam", "adamw", "adagrad"},
        "torch-foreach": {"gd", "sgd", "adam", "adamw", "adagrad", "rmsprop"},
        "deepspeed": {"adam", "adamw", "lion", "adagrad"},
        "thinc": {"gd", "adam"},
        "sklearn": {"gd", "sgd", "adam"},
    }
    assert set(CASES[rule].peers) >= {"numpy-textbook", "numpy-inplace", "numexpr", "optax"}
    for peer, rules in have.items():
        assert (peer in CASES[rule].peers) == (rule in rules)


@pytest.mark.parametrize("name", CASES)
def test_fastgd_computes_the_rule(name):
    _, reply = worker._open({"peer": "fastgd-numba", "rule": name, "n": N, "dtype": "float32"}, 1)
    assert reply["max_ulp"] < 32


def test_each_timed_step_has_a_gradient():
    seen = []
    peer, _ = worker._open({"peer": "fastgd-numpy", "rule": "adamw-tail-gpt2", "n": N, "dtype": "float32"}, 1)
    _, g = data(N, "float32")

    def step():
        seen.append(peer.results[2]())
        peer.step()

    worker._time(replace(peer, step=step), 1e-3, g)
    assert len(seen) > 3 and all(np.array_equal(h, g) for h in seen)


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
        ("lamb", "numpy-inplace"),
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
    assert seen[-1][1:] == (16, 16)


def test_report_survives_json(report, tmp_path):
    write_json(report[0], tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report[0]))


def test_report_names_tail_and_tensors():
    made = run(("adamw-tail-gpt2",), (N,), backends=("numba",), threads=1, peers=("roof",), rounds=1)
    assert [(r["rule"], r["peer"], r["skipped"]) for r in made["rows"]] == [
        ("adamw-tail-gpt2", "roof", None),
        ("adamw-tail-gpt2", "fastgd-numba", None),
    ]
    assert all(set(row) == ROW for row in made["rows"])
    case = made["cases"]["adamw-tail-gpt2"]
    assert (case["hyper"]["weight_decay"], case["tensors"], case["float32_bytes"]) == (0.1, 148, 44)
    assert case["tail"] == dict(max_norm=1.0, ema_decay=0.99, zero_grad=True)
    ((title, _),) = tables(made)
    assert title.startswith("adamw-tail-gpt2 float32, 1000 elements in 148 tensors (small); lr=0.001, ")
    assert title.endswith("; max_norm=1.0, ema_decay=0.99, zero_grad=True")


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


def test_roof_runs_on_the_threads_that_the_step_has():
    found = {}
    for peer in ("roof", "fastgd-numba"):
        own = worker.Worker(peer, 2)
        try:
            for n in (N, 1 << 20):  # a serial sweep first: it must not choose
                own.ask(do="open", rule="adamw", n=n, dtype="float32")
                found[peer, n] = own.answer()["threading_layer"]
        finally:
            own.stop()
    assert found["roof", N] is None and found["fastgd-numba", N] is None
    assert found["roof", 1 << 20] == found["fastgd-numba", 1 << 20] is not None


def test_dead_process_is_named():
    dying = worker.Worker("roof", 1)
    try:
        dying.ask(do="open", rule="no such rule", n=10, dtype="float32")
        assert dying.answer() == {"skipped": "its process ended with status 1: KeyError: 'no such rule'"}
        dying.ask(do="close")
        assert "status 1" in dying.answer()["skipped"]
    finally:
        dying.stop()


def test_times_are_compared_in_the_rounds_of_both():
    own, peer = measure._Found({}, {0: 1.0, 1: 1.2, 2: 10.0, 3: 10.4}), measure._Found({}, {2: 20.0, 3: 20.8})
    assert peer.relative_to(own) == 2.0 and own.relative_to(peer) == 0.5 and own.relative_to(own) == 1.0
    assert peer.relative_to(measure._Found()) is None


def test_a_roof_that_died_is_no_measure():
    point = measure.Point(CASES["adamw"], N, "float32", "small", 1, ("roof", "fastgd-numba"))
    alive = measure._Found({"max_ulp": 1.0}, {0: 1.0})
    for died, expected in (False, 1.0), (True, None):
        roof = measure._Found({"skipped": "its process ended"} if died else {"max_ulp": None}, {0: 1.0})
        _, row = measure._rows(point, {"roof": roof, "fastgd-numba": alive}, None)
        assert (row["roof_share"], row["ratio"]) == (expected, 1.0)


def test_peers_that_do_not_fit_in_memory_together_come_in_batches(monkeypatch):
    monkeypatch.setattr(measure, "_free_bytes", lambda: 0)
    peers = ("roof", "numpy-textbook", "numpy-inplace")
    rows = {row["peer"]: row for row in run(["adamw"], [N], backends=["numba"], peers=peers, rounds=3)["rows"]}
    assert set(rows) == {"fastgd-numba", *peers}
    assert rows["fastgd-numba"]["ratio"] == 1.0 and rows["roof"]["roof_share"] == 1.0
    assert all(row["skipped"] is None and row["ratio"] > 0 for row in rows.values())


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
        (dict(rules=("gd",), sizes=(0,)), HyperparameterError, "size of gd must be at least 1, given 0"),
        (
            dict(rules=("gd", "adamw-gpt2"), sizes=(147,)),
            HyperparameterError,
            "size of adamw-gpt2 must be at least 148, given 147",
        ),
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
    assert [by_size(n) for n in (4096, 1 << 20, 1 << 24, 1 << 26)] == ["small", "cache", "dram", "dram"]
    assert [size_text(n) for n in (1000, 4096, 1 << 20, 3 << 30)] == ["1000", "4 k", "1 M", "3 G"]
    assert [time_text(s) for s in (2.5e-6, 0.0351, 1.25)] == ["2.5 µs", "35.1 ms", "1.25 s"]


def test_throughput_has_both_baselines():
    rows = throughput("gd", (N,), rounds=2)
    assert [row["peer"] for row in rows] == ["roof", "fastgd-numba", "numpy-textbook", "numpy-inplace"]
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.parametrize("rule", ["mars", "muon", "prodigy-gpt2"])
def test_a_report_is_plain_data(rule):
    report = run((rule,), (256,), backends=("numpy",), peers=(), rounds=1)
    assert [row["skipped"] for row in report["rows"]] == [None]
    assert json.loads(json.dumps(report))["cases"].keys() == {rule}
    assert rule != "mars" or report["cases"]["mars"]["hyper"]["fallback"]["rule"] == "adamw"
