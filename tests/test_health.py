"""What `report` says of gradients and steps, against NumPy and against the step itself."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from conftest import RULE_CASES
from test_oracles import problem

import fastgd
from fastgd.kernels import cpu
from fastgd.kernels.errors import ArrayError, HyperparameterError, NonFiniteError

backends = pytest.mark.parametrize("backend", ["numpy", "numba"])
NAMES = ("a", "b", "c", "d", "e")


def everything(opt):
    return repr(opt.state_dict()) + repr([p.tobytes() for p in opt.params.values()]) + repr(opt.grad_norm)


@backends
@pytest.mark.parametrize(("rule_class", "values"), RULE_CASES)
def test_report_is_what_the_step_then_does(rule_class, values, backend):
    start, grads = problem("float64", 3)
    params = {name: p.copy() for name, p in zip(NAMES, start, strict=True)}
    other = {"lr": 0.5 * values["lr"]} if rule_class(**values).serves((1,)) else {}  # a fallback has values of its own
    groups = [{"params": params}, {"match": ["b", "d"], **other}]
    tail = dict(max_norm=30.0, max_value=3.0, ema_decay=0.9, maximize=True)
    opt = fastgd.Optimizer(groups, rule_class(**values), **tail, backend=backend)
    for step in grads:
        given = [dict(zip(NAMES, step, strict=True))]
        before = everything_of_groups(opt, params)
        report = opt.report(given, scale=0.5)
        assert everything_of_groups(opt, params) == before
        old = {name: p.copy() for name, p in params.items()}
        opt.step(given, scale=0.5)
        for row, g in zip(report, step, strict=True):
            p = params[row.name]
            assert row.shape == p.shape and row.group == (row.name in "bd")
            assert row.param_norm == pytest.approx(np.linalg.norm(old[row.name]), rel=1e-12)
            assert row.grad_norm == pytest.approx(0.5 * np.linalg.norm(g), rel=1e-12)
            assert row.update_norm == pytest.approx(np.linalg.norm(p - old[row.name]), rel=1e-10)
            assert row.ratio == pytest.approx(row.update_norm / row.param_norm, rel=1e-15)
            assert row.zeros == pytest.approx(np.mean(g == 0), abs=1e-15)
            assert row.nonfinite == 0.0


def everything_of_groups(opt, params):
    return repr(opt.state_dict()) + repr([p.tobytes() for p in params.values()]) + repr(opt.grad_norm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reports_have_the_same_bits_on_any_backend_and_threads(dtype):
    start, grads = problem(dtype, 1, [(1,), (65,), (40_001,), (3, 5)])
    rows = []
    for how in (dict(backend="numpy"), dict(threads=1), dict(threads=2)):
        for rule in ("AdamW", "LAMB"):
            opt = getattr(fastgd, rule)([p.copy() for p in start], lr=0.1, max_norm=1.0, **how)
            rows.append(opt.report(grads[0]).to_dicts())
    assert rows[0] == rows[2] == rows[4] and rows[1] == rows[3] == rows[5]


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e25), ("float64", 1e200)])
def test_norms_beyond_the_range_of_squares(dtype, size):
    n = 100
    params = {"large": np.full(n, size, dtype), "small": np.full(n, 1 / size, dtype), "zero": np.zeros(n, dtype)}
    opt = fastgd.GD(params, lr=0.5)
    large, small, zero = opt.report({name: p.copy() for name, p in params.items()})
    for row, value in ((large, size), (small, 1 / size)):
        assert (row.param_norm, row.grad_norm, row.update_norm) == pytest.approx(
            (10 * value, 10 * value, 5 * value), rel=1e-6
        )
        assert row.ratio == pytest.approx(0.5, rel=1e-6)
    assert (zero.param_norm, zero.grad_norm, zero.ratio, zero.zeros) == (0.0, 0.0, 0.0, 1.0)
    assert [r.verdict for r in (large, small, zero)] == ["exploding", "vanishing", "dead"]


def test_verdicts_go_by_thresholds():
    params = fastgd.FlatParams({name: np.ones(100) for name in ("fine", "tiny", "huge", "dead", "nan", "half")})
    params.grad["fine"], params.grad["tiny"], params.grad["huge"], params.grad["nan"] = 0.1, 1e-9, 1e4, 1.0
    params.grad["nan"][3] = math.nan
    params.grad["nan"][7] = -math.inf
    params.grad["dead"][0] = params.grad["half"][:50] = 1.0
    opt = fastgd.SGD(params, on_nonfinite="raise", max_norm=1.0)
    report = opt.report()
    assert {row.name: row.verdict for row in report} == {
        "fine": "ok",
        "tiny": "vanishing",
        "huge": "exploding",
        "dead": "dead",
        "nan": "exploding",
        "half": "ok",
    }
    assert not report.healthy and report["nan"].nonfinite == 0.02 and report["half"].zeros == 0.5
    assert math.isfinite(report["fine"].grad_norm)  # another array's NaN is not its own
    verdicts = {row.name: row.verdict for row in opt.report(vanishing=1e-10, exploding=1e5, dead=0.4)}
    assert verdicts == {"fine": "ok", "tiny": "ok", "huge": "ok", "dead": "dead", "nan": "exploding", "half": "dead"}
    with pytest.raises(NonFiniteError):
        opt.step()
    assert opt.report(vanishing=0, exploding=0)["fine"].verdict == "exploding"
    params.grad.flat[:] = 0.5
    assert opt.report().healthy


def test_vanishing_gradients_of_a_deep_sigmoid_network_are_seen():
    """The first layers of twelve get next to nothing; with a tanh and fitting weights all get their share."""
    verdicts = {}
    for kind in ("sigmoid", "tanh"):
        rng = np.random.default_rng(0)
        layers = 12
        scale = 0.5 if kind == "sigmoid" else 1.0
        params = fastgd.FlatParams({f"w{i:02}": rng.standard_normal((32, 32)) * scale / 32**0.5 for i in range(layers)})
        x = rng.standard_normal((64, 32))
        kept = [x]
        for w in params.values():
            z = kept[-1] @ w
            kept.append(1 / (1 + np.exp(-z)) if kind == "sigmoid" else np.tanh(z))
        back = 2 * (kept[-1] - rng.standard_normal((64, 32))) / 64
        for i in reversed(range(layers)):
            out = kept[i + 1]
            back = back * (out * (1 - out) if kind == "sigmoid" else 1 - out * out)
            params.grad[f"w{i:02}"] = kept[i].T @ back
            back = back @ params[f"w{i:02}"].T
        verdicts[kind] = [row.verdict for row in fastgd.SGD(params).report()]
    assert verdicts["sigmoid"][0] == verdicts["sigmoid"][2] == "vanishing" and verdicts["sigmoid"][-1] == "ok"
    assert set(verdicts["tanh"]) == {"ok"}


@pytest.mark.parametrize(("dtype", "huge", "more"), [("float32", 1e25, 0), ("float64", 1e200, 1)])
def test_a_report_is_one_pass_unless_squares_leave_the_range(dtype, huge, more):
    p = np.ones(5, dtype)
    opt = fastgd.AdamW(p)
    for k, g in enumerate((1.0, huge, 1.0), start=1):
        opt.report(np.full(5, g, dtype))
        assert opt._layout.dry_run._program.launches[0].sweeps[0].runs == k + more * (k > 1)


def test_what_was_accumulated_counts():
    p = np.ones(4)
    opt = fastgd.SGD(p, lr=0.5)
    opt.accumulate(np.ones(4))
    opt.accumulate(np.ones(4))
    assert opt.report()[0].grad_norm == 4.0
    opt.step()
    assert p.tolist() == [0.0] * 4
    assert opt.report(np.ones(4))["params"].update_norm == 1.0


def test_a_report_between_steps_does_not_change_which_gradient_is_taken():
    p, g = np.ones(4), np.ones(4)
    opt = fastgd.SGD(p, lr=0.5, max_norm=1.0)
    opt.step(g)
    opt.report(np.full(4, 100.0))
    opt.step(g)
    assert opt.grad_norm == 2.0


def test_a_table_and_data():
    params = fastgd.FlatParams({"layer1.weight": np.ones((2, 3)), "scalar": np.ones(())})
    opt = fastgd.SGD(params)
    params.grad["scalar"] = 2.0
    report = opt.report()
    lines = str(report).splitlines()
    assert len(lines) == 3 and lines[0].split()[0] == "array" and lines[1].endswith("dead")
    assert json.loads(json.dumps(report.to_dicts()))[1]["grad_norm"] == 2.0
    assert len(report) == 2 and report[-1] is report["scalar"] and [r.name for r in report] == list(params)
    with pytest.raises(KeyError, match=r"'layer1\.weight', 'scalar'"):
        report["bias"]
    rich = pytest.importorskip("rich.console")
    out = io.StringIO()
    rich.Console(file=out, width=80, force_terminal=True).print(report)
    assert "layer1.weight" in out.getvalue() and "verdict" in out.getvalue() and "…" not in out.getvalue()
    assert "\x1b[35m" in out.getvalue()  # the dead one stands out


def test_a_step_after_a_report_compiles_nothing_new():
    opt = fastgd.Lion(np.ones(5))
    opt.report(np.ones(5))
    opt.step(np.ones(5))
    kernels = dict(cpu._KERNELS)
    opt.report(np.ones(5))
    opt.step(np.ones(5))
    assert cpu._KERNELS == kernels


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (dict(vanishing=-1), HyperparameterError, "vanishing must be a number, at least 0, given -1"),
        (dict(exploding="x"), HyperparameterError, "exploding"),
        (dict(dead=0), HyperparameterError, "dead must be a number, above 0 and at most 1, given 0"),
        (dict(dead=1.5), HyperparameterError, "dead"),
        (dict(scale=math.nan), HyperparameterError, "scale"),
        (dict(grads=np.ones(3)), ArrayError, r"given \(3,\)"),
    ],
)
def test_bad_input_is_named(how, error, message):
    opt = fastgd.SGD(np.ones(4))
    with pytest.raises(error, match=message):
        opt.report(**{"grads": np.ones(4), **how})


def test_no_elements_are_healthy():
    report = fastgd.AdamW([np.ones((0, 3)), np.ones(2)]).report([np.ones((0, 3)), np.ones(2)])
    assert [row.verdict for row in report] == ["ok", "ok"]
    assert report[0].zeros == report[0].param_norm == 0.0
