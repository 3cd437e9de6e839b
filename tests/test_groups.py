"""Groups that join while an optimizer runs, and values that change between steps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from itertools import count

import numpy as np
import pytest
from conftest import RULE_CASES
from oracles import ORACLES
from test_atomic import Stop
from test_own_rule import Decaying

import fastgd
from fastgd.kernels import Rule, cpu
from fastgd.kernels.errors import ArrayError, HyperparameterError
from fastgd.kernels.plan import plan
from fastgd.kernels.rule import prepare_arguments

backends = pytest.mark.parametrize("backend", ["numpy", "numba"])


def gradient(k, n):
    return np.cos(np.arange(n) + k)


@backends
def test_new_parameters_start_at_their_own_first_step(backend):
    a, b = np.ones(5), np.ones((2, 3))
    opt = fastgd.AdamW(a, lr=0.1, weight_decay=0.0, ema_decay=0.5, backend=backend)
    for k in range(3):
        opt.step(gradient(k, 5))
    average = opt.ema
    opt.add_param_group({"params": [b], "lr": 0.2})
    assert opt.ema[0] is average
    for k in range(3, 7):
        opt.step([gradient(k, 5), [gradient(-k, 6).reshape(2, 3)]])
    (x,), states = ORACLES["adamw"]([np.ones(5)], [[gradient(k, 5)] for k in range(7)], lr=0.1, weight_decay=0.0)
    (y,), _ = ORACLES["adamw"]([np.ones(6)], [[gradient(-k, 6)] for k in range(3, 7)], lr=0.2, weight_decay=0.0)
    np.testing.assert_allclose(a, x, rtol=1e-12)
    np.testing.assert_allclose(b.ravel(), y, rtol=1e-12)
    np.testing.assert_allclose(opt.state["exp_avg"][:5], states["exp_avg"][0], rtol=1e-12)
    assert [group["t"] for group in opt.state_dict()["param_groups"]] == [7, 4]
    assert (opt.t, len(opt.param_groups)) == (7, 2)
    assert [list(g) for g in opt.params] == [["params"], ["params", "lr"]]
    assert isinstance(opt.ema[1], list)


def test_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(5), rng.standard_normal(7)]
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    ours = [p.copy() for p in start]
    reference = torch.optim.Adam([theirs[0]], lr=0.1, betas=(0.8, 0.9))
    opt = fastgd.Adam([{"params": ours[0]}], lr=0.1, betas=(0.8, 0.9))
    for k in range(8):
        if k == 3:
            reference.add_param_group({"params": [theirs[1]], "lr": 0.3})
            opt.add_param_group({"params": ours[1], "lr": 0.3})
        grads = [rng.standard_normal(5), rng.standard_normal(7)][: len(opt.param_groups)]
        for p, g in zip(theirs, grads, strict=False):
            p.grad = torch.from_numpy(g.copy())
        reference.step()
        opt.step(grads)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-6)  # torch's bias correction is in float32


@backends
def test_arrays_taken_by_name_go_on(backend):
    """A group made while running is the group made at construction, from the same step on."""
    runs = []
    for late in (False, True):
        params = fastgd.FlatParams({"a.bias": np.ones(3), "a.weight": np.ones((3, 2)), "b.bias": np.ones(70)})
        rule = dict(lr=0.1, max_norm=1.0, ema_decay=0.9, backend=backend)
        opt = fastgd.AdamW(params if late else [{"params": params}, {"match": "*.bias"}], **rule)
        average = opt.ema
        for k in range(6):
            if k == 3:
                if late:
                    opt.add_param_group({"match": "*.bias"})
                opt.param_groups[1].update(weight_decay=0.5, lr=0.3)
            params.grad.flat[:] = gradient(k, params.grad.flat.size)
            opt.step()
        assert [g["t"] for g in opt.state_dict()["param_groups"]] == [6, 6]
        assert opt.params is params if late else True
        assert opt.ema is average
        runs.append([params.flat, *opt.state.values(), opt.ema.flat if late else opt.ema[0].flat, opt.grad_norm])
    for a, b in zip(*runs, strict=True):
        assert np.array_equal(a, b)


def test_values_that_are_missing_are_the_optimizers_with_its_schedules():
    a, b, c = np.zeros(1), np.zeros(1), np.zeros(1)
    opt = fastgd.SGD(a, lr=lambda k: 2.0**-k, weight_decay=0.0)
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    opt.add_param_group({"params": b})
    opt.add_param_group({"params": c, "lr": 7.0})
    opt.step([np.ones(1), np.ones(1), np.ones(1)])
    assert (a.tolist(), b.tolist(), c.tolist()) == ([-1.75], [-1.0], [-7.0])


@backends
def test_options_may_differ_and_states_start(backend):
    params = fastgd.FlatParams({"w": np.zeros(4), "b": np.zeros(4)})
    opt = fastgd.SGD(params, lr=1.0, backend=backend)
    params.grad.flat[:] = 1
    opt.step()
    opt.add_param_group({"match": "b", "momentum": 0.5})
    for _ in range(2):
        opt.step()
    assert params["w"].tolist() == [-3.0] * 4
    assert params["b"].tolist() == [-1.0 - 1.0 - 1.5] * 4
    assert set(opt.state) == {"momentum_buffer"}


@backends
def test_scalar_states_go_with_their_owners(backend):
    """Sums over all, numbers of a group and starts of arrays, of a rule that has them all."""
    a, b = np.ones(5), np.full(3, 2.0)
    opt = fastgd.Optimizer([{"params": a}], Decaying(lr=0.2), backend=backend)
    opt.step([np.ones(5)])
    opt.add_param_group({"params": b})
    assert opt.state_dict()["scalar_state"] == [{"factor": [0.5, 1.0], "seen": [1.0]}]
    assert opt.state["start"][64:].tolist() == [2.0] * 3
    opt.step([np.ones(5), np.ones(3)])
    assert opt.state_dict()["scalar_state"] == [{"factor": [0.25, 0.5], "seen": [2.0]}]
    opt = fastgd.Optimizer({"a": a, "b": b}, Decaying(lr=0.2), backend=backend)
    opt.step({"a": np.ones(5), "b": np.ones(3)})
    opt.add_param_group({"match": "b"})
    assert opt.state_dict()["scalar_state"] == [{"factor": [0.5, 0.5], "seen": [1.0]}]


@pytest.mark.parametrize("tail", [{}, dict(lookahead=(2, 0.5))])
def test_a_copy_has_the_added_groups(tail):
    params, q = fastgd.FlatParams({"w": np.ones(3), "b": np.ones(2)}), np.ones(4)
    opt = fastgd.AdamW([{"params": params}, {"match": "w", "lr": 0.5}], lr=0.1, **tail)
    params.grad.flat[:] = 1
    opt.step()
    opt.add_param_group({"match": ["w", "b"], "lr": 0.25})
    opt.add_param_group({"params": {"q": q}})
    opt.step([params.grad, {"q": np.ones(4)}])
    twin = copy.deepcopy(opt)
    assert twin.state_dict()["param_groups"] == opt.state_dict()["param_groups"]
    for o in (opt, twin):
        o.params[0]["params"].grad.flat[:] = 2
        o.step([None or o.params[0]["params"].grad, {"q": np.full(4, 2.0)}])
    other = twin.params[0]["params"]
    assert other is not params and np.array_equal(other.flat, params.flat)
    assert twin.params[-1]["params"]["q"] is not q and np.array_equal(twin.params[-1]["params"]["q"], q)
    if tail:
        assert np.array_equal(twin.ema[1]["q"], opt.ema[1]["q"])


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ([np.ones(2)], HyperparameterError, "group must be a dict"),
        ({"lr": 0.5}, HyperparameterError, "group 1: give either 'params' or 'match', given lr"),
        ({"params": np.ones(2), "lrr": 1}, HyperparameterError, "group 1: SGD has no 'lrr'"),
        ({"params": np.ones(2), "lr": -1}, HyperparameterError, "lr must be at least 0, given -1"),
        ({"params": np.ones(2, np.float32)}, ArrayError, "one dtype, given float32 and float64"),
        ({"params": [1.0]}, ArrayError, "params of group 1.*given float"),
        ({"match": "x*"}, ArrayError, r"group 1: match 'x\*' fits no array; there are 'w', 'b'"),
        ({"match": 3}, ArrayError, "match must be a name pattern"),
    ],
)
def test_a_refused_group_changes_nothing(group, error, message):
    params = fastgd.FlatParams({"w": np.ones(3), "b": np.ones(2)})
    opt = fastgd.SGD(params, lr=1.0, momentum=0.5, ema_decay=0.5)
    params.grad.flat[:] = 1
    opt.step()
    before = repr((opt.param_groups, opt.state, opt.params, opt.ema, opt.state_dict()))
    with pytest.raises(error, match=message):
        opt.add_param_group(group)
    assert repr((opt.param_groups, opt.state, opt.params, opt.ema, opt.state_dict())) == before
    opt.step()
    assert opt.t == 2


def test_parameters_that_are_there_already_are_refused():
    params = fastgd.FlatParams({"w": np.ones(3), "b": np.ones(2)})
    opt = fastgd.SGD(params, ema_decay=0.5)
    for again in (params, params.flat, params["b"], opt.ema):
        with pytest.raises(ArrayError, match="share memory"):
            opt.add_param_group({"params": again})
    assert len(opt.param_groups) == 1


def test_arrays_of_groups_with_other_numbers_of_steps_are_refused():
    opt = fastgd.SGD({"a": np.ones(2)}, lr=1.0)
    opt.step({"a": np.ones(2)})
    opt.add_param_group({"params": {"b": np.ones(2)}})
    with pytest.raises(HyperparameterError, match=r"group 2: its arrays must come from groups .* given 0, 1"):
        opt.add_param_group({"match": "*"})

    @dataclass(frozen=True, kw_only=True)
    class Shrinking(Rule):
        lr: float = 0.5

        def init(self):
            return dict(left=1.0)

        def prepare(self, t, left):
            return dict(lr=self.lr, left=left * self.lr)

        @staticmethod
        def update(p, g, *, lr):
            p = p - lr * g
            return p

    opt = fastgd.Optimizer([{"params": {"a": np.ones(2)}}, {"params": {"b": np.ones(2)}, "lr": 0.25}], Shrinking())
    opt.step([{"a": np.ones(2)}, {"b": np.ones(2)}])
    with pytest.raises(HyperparameterError, match=r"the same left, given 0\.5 and 0\.25"):
        opt.add_param_group({"match": "*"})


def test_ctrl_c_before_any_line_leaves_the_old_groups_or_the_new():
    for k in count(1, 7):  # a line takes as long as all that comes before it
        params, q = fastgd.FlatParams({"w": np.ones(3), "b": np.ones(2)}), np.ones(4)
        opt = fastgd.AdamW(params, lr=0.1, max_norm=1.0, ema_decay=0.5)
        params.grad.flat[:] = 1
        opt.step()
        stop = Stop(k, KeyboardInterrupt())
        try:
            with stop:
                opt.add_param_group({"params": {"q": q}})
        except KeyboardInterrupt:
            pass
        added = len(opt.param_groups) == 2
        assert isinstance(opt.params, list) == added == isinstance(opt.ema, list), f"line {k}"
        assert (opt.state["exp_avg"][:3] == opt.state["exp_avg"][0]).all() and opt.state["exp_avg"][0] > 0
        opt.step([params.grad, {"q": np.ones(4)}] if added else None)
        assert opt.t == 2
        if stop.left > 0:
            break
    assert added and k > 50


def test_a_group_joins_between_steps_of_other_threads():
    import threading

    p = np.zeros(2000)
    params = fastgd.FlatParams({"p": p})
    opt = fastgd.SGD(params, lr=1.0)
    params.grad.flat[:] = 1
    stop = threading.Event()

    def work():
        while not stop.is_set():
            opt.step()

    thread = threading.Thread(target=work)
    thread.start()
    for k in range(10):
        opt.add_param_group({"params": fastgd.FlatParams({str(k): (3,)}, "float64")})
    stop.set()
    thread.join()
    assert len(opt.param_groups) == 11
    assert (params["p"] == -opt.t).all()


# ---- values that change


@pytest.mark.parametrize(("rule_class", "values"), RULE_CASES)
def test_changing_any_number_compiles_nothing_and_counts(rule_class, values):
    """Every hyperparameter that is no option, each changed alone between two steps."""
    shapes = {"a": (4, 5), "b": (5, 6)}

    def step(opt, k):
        opt.step([{name: gradient(k, math.prod(shape)).reshape(shape) for name, shape in shapes.items()}])

    for f in fields(rule_class):
        value = values.get(f.name, f.default)
        if not f.init or not isinstance(value, float | tuple):
            continue
        changed = tuple(x and 0.5 * x + 0.07 for x in value) if isinstance(value, tuple) else 0.5 * value + 0.07
        old = rule_class(**values)
        try:
            new = rule_class(**values | {f.name: changed})
        except HyperparameterError:  # does not go with the other values
            continue
        if new.options() != old.options():
            continue
        p, q = ({k: np.linspace(1, 2, math.prod(s)).reshape(s) for k, s in shapes.items()} for _ in range(2))
        opt, same = (fastgd.Optimizer([{"params": x}, {"match": "b"}], rule_class(**values)) for x in (p, q))
        step(opt, 1)
        step(same, 1)
        kernels = dict(cpu._KERNELS)
        names, start = prepare_arguments(rule_class), old.init()
        first = old.prepare(1, **{n: start[n] for n in names})
        second = [rule.prepare(2, **{n: first.get(n, start[n]) for n in names}) for rule in (old, new)]
        opt.param_groups[1][f.name] = changed
        if any(second[0][k] != second[1][k] for k in plan(old).shared):
            with pytest.raises(HyperparameterError, match="for all its groups, which must agree in"):
                step(opt, 2)
            opt.param_groups[0][f.name] = changed
            step(opt, 2)
            assert cpu._KERNELS == kernels
            continue
        step(opt, 2)
        step(same, 2)
        assert cpu._KERNELS == kernels
        assert np.array_equal(p["a"], q["a"]) or plan(old).level == "total"  # not the other group
        assert getattr(opt._layout.rules[1], f.name) == changed != getattr(opt._layout.rules[0], f.name)
        launches = [o._layout.program.launches[0] for o in (opt, same)]
        used = set(second[0])
        if plan(old).combine or plan(old).matrix:  # by name
            rows = [launch._given if launch.plan.combine else launch._rows[0] for launch in launches]
        else:
            rows = [launch._rows[0].array.tolist() for launch in launches]
            used &= {*plan(old).sweeps[0].scalars}
        assert rows[0][0] == rows[1][0]
        arrived = any(second[0][k] != second[1][k] for k in used)
        assert arrived != (rows[0][1] == rows[1][1]), f.name
