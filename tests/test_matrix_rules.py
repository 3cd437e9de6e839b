"""Rules on whole matrices, and the rules that serve what is none: where each goes, and that both are right."""

from __future__ import annotations

import copy
import inspect
import json
import math
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import pytest
from conftest import same_bits
from oracles import ORACLES, clip_global_norm, ema, global_norm
from test_norm_rules import Drill
from test_oracles import TOLERANCE, error, problem
from test_tail import lookahead

import fastgd
from fastgd.kernels import Rule
from fastgd.kernels.errors import (
    ArrayError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    RuleError,
)
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.rules import (
    CAME,
    MARS,
    SGD,
    Adafactor,
    AdamW,
    Lion,
    Muon,
    NovoGrad,
    Prodigy,
    ScheduleFreeSGD,
    SophiaG,
)

backends = pytest.mark.parametrize("backend", ["numpy", "numba"])
SHAPES = {
    "w": (5, 7),
    "tall": (9, 4),
    "cube": (2, 3, 4),
    "conv": (3, 2, 2, 2),
    "one": (1, 1),
    "b": (66,),
    "s": (),
    "c": (3,),
}
FORMS = [
    Muon(lr=0.02, fallback=AdamW(lr=0.01, weight_decay=0.2)),
    Muon(lr=0.02, ns_steps=3, nesterov=False, fallback=Lion(lr=0.01, cautious=True)),
    Adafactor(lr=0.05, beta1=0.8, weight_decay=0.1, fallback=AdamW(lr=0.01, amsgrad=True)),
    Adafactor(lr=0.05, form="paper", fallback=NovoGrad(lr=0.01)),
    Adafactor(lr=0.05),
    CAME(lr=0.01, fallback=SGD(lr=0.01, momentum=0.9)),
    CAME(lr=0.01),
    MARS(lr=0.01, weight_decay=0.1),
    MARS(lr=0.01, fallback=None),
    MARS(lr=0.01, mars_type="mars-lion", fallback=Adafactor(lr=0.05)),
    MARS(lr=0.01, fallback=MARS(lr=0.02, fallback=None)),  # two launches of one rule
]
forms = pytest.mark.parametrize("rule", FORMS, ids=[f"{type(r).__name__}-{k}".lower() for k, r in enumerate(FORMS)])


def values(rule):
    return {n: getattr(rule, n) for n in rule.hyperparameters()}


def expect(rules, start, grads, dtype="float64"):
    """Parameters and states by the oracles, given the rule of each segment's group."""
    xs, states = [None] * len(start), {}
    for rule in dict.fromkeys(rules):
        own = [i for i, r in enumerate(rules) if r is rule]
        served = [i for i in own if rule.serves(np.shape(start[i]))]
        left = [i for i in own if i not in served]
        for made, members in ((rule, served), (getattr(rule, "fallback", None), left)):
            if not members:
                continue
            hyper = {k: v for k, v in values(made).items() if k != "fallback"}
            oracle = ORACLES[type(made).__name__.lower()]
            if "machine_eps" in inspect.signature(oracle).parameters:
                hyper["machine_eps"] = float(np.finfo(dtype).eps)
            got, kept = oracle([start[i] for i in members], [[s[i] for i in members] for s in grads], **hyper)
            for at, i in enumerate(members):
                xs[i] = got[at]
                for state, parts in kept.items():
                    states.setdefault(state, [None] * len(start))[i] = parts[at]
    return xs, states


def data(steps=6, dtype="float64", shapes=SHAPES):
    start, grads = problem(dtype, steps, shapes.values())
    start, *grads = ([np.array(x) for x in arrays] for arrays in (start, *grads))  # those of no dimensions are scalars
    return dict(zip(shapes, start, strict=True)), [dict(zip(shapes, g, strict=True)) for g in grads]


def copied(arrays):
    return {n: a.copy() for n, a in arrays.items()}


def listed(steps):
    return [list(step.values()) for step in steps]


def part(opt, state, i):
    return opt._layout.states[state].part(i)


def extent(sizes):
    """Length of a state whose parts start at multiples of 64 elements."""
    return sum(-(-n // 64) * 64 for n in sizes[:-1]) + sizes[-1]


def check(opt, params, xs, states, tolerance):
    """Everything is as expected, and no segment has a state that it should not have."""
    worst = {n: error(params[n], x) for n, x in zip(params, xs, strict=True)}
    assert set(opt.state) == set(states)
    for state, parts in states.items():
        sizes = [0 if x is None else np.size(x) for x in parts]
        assert [part(opt, state, i).size for i in range(len(parts))] == sizes, state
        assert opt.state[state].size == extent(sizes), state
        worst |= {f"{state}{i}": error(part(opt, state, i), np.ravel(x)) for i, x in enumerate(parts) if x is not None}
    assert {k: v for k, v in worst.items() if not v < tolerance} == {}


def everything(opt, arrays):
    return b"".join(a.tobytes() for a in arrays), repr(opt.state_dict()), opt.t


# ---- which rule serves what


@backends
@pytest.mark.parametrize("dtype", TOLERANCE)
@forms
def test_matrices_and_the_rest_equal_their_oracles(rule, dtype, backend):
    start, grads = data(10, dtype)
    params = copied(start)
    opt = fastgd.Optimizer(params, rule, backend=backend)
    kept = [copied(step) for step in grads]
    for step in grads:
        opt.step(step)
    check(opt, params, *expect([rule] * len(start), list(start.values()), listed(grads), dtype), TOLERANCE[dtype])
    assert all(np.array_equal(a[n], b[n]) for a, b in zip(grads, kept, strict=True) for n in a)


def test_states_lie_only_where_they_are():
    start, _ = data()
    matrices, vectors = extent([35, 36, 24, 24, 1, 0, 0, 0]), extent([0, 0, 0, 0, 0, 66, 1, 3])
    for rule, expected in [
        (Muon(), dict(momentum_buffer=matrices, exp_avg=vectors, exp_avg_sq=vectors)),
        (Muon(fallback=SGD()), dict(momentum_buffer=matrices)),
        (Muon(fallback=SGD(momentum=0.5)), dict(momentum_buffer=extent([35, 36, 24, 24, 1, 66, 1, 3]))),
        (
            Adafactor(),
            dict(
                row_var=extent([5, 9, 6, 12, 1, 0, 0, 0]),
                col_var=extent([7, 4, 8, 12, 1, 0, 0, 0]),
                variance=vectors,
            ),
        ),
    ]:
        assert {n: s.size for n, s in fastgd.Optimizer(start, rule).state.items()} == expected
    kept = fastgd.Optimizer(start, Adafactor(beta1=0.5, fallback=AdamW())).state
    assert kept["variance"].size == 0 and kept["exp_avg"].size == extent([35, 36, 24, 24, 1, 66, 1, 3])


@backends
def test_groups_may_have_other_fallbacks(backend):
    start, grads = data()
    rules = {
        "0": Muon(lr=0.02, fallback=AdamW(lr=0.01)),
        "1": Muon(lr=0.01, fallback=AdamW(lr=0.05, betas=(0.5, 0.9))),
        "2": Muon(lr=0.02, nesterov=False, fallback=Lion(lr=0.01)),
        "3": Muon(lr=0.02, fallback=AdamW(lr=0.02, amsgrad=True)),
    }
    members = dict(zip(start, "02103210", strict=True))
    params = copied(start)
    given = [{"params": params}]
    given += [{"match": [n for n in start if members[n] == g], **values(rules[g])} for g in "123"]
    opt = fastgd.Optimizer(given, rules["0"], backend=backend)
    for step in grads:
        opt.step([step])
    xs, states = expect([rules[g] for g in members.values()], list(start.values()), listed(grads))
    assert max(map(error, params.values(), xs)) < 1e-12
    for state, parts in states.items():
        assert all(error(part(opt, state, i), np.ravel(x)) < 1e-12 for i, x in enumerate(parts) if x is not None)
    assert part(opt, "momentum_buffer", list(start).index("b")).size == 0
    saved = opt.state_dict()["param_groups"]
    assert [g["fallback"]["rule"] for g in saved] == ["adamw", "adamw", "lion", "adamw"]


@pytest.mark.parametrize("rule", [Muon, Adafactor, CAME, MARS])
def test_without_a_fallback_vectors_are_refused_or_served(rule):
    start, grads = data(3)
    if rule is Muon:
        with pytest.raises(HyperparameterError, match=r"Muon does not serve 'b' of shape \(66,\): give fallback="):
            fastgd.Muon(start, fallback=None)
        with pytest.raises(HyperparameterError, match=r"Muon does not serve 'params' of shape \(\)"):
            fastgd.Muon(np.array(1.0), fallback=None)
        opt = fastgd.Muon({"w": start["w"]}, fallback=None)
        before = repr(opt.state_dict())
        with pytest.raises(HyperparameterError, match=r"'c' of shape \(3,\)"):
            opt.add_param_group({"params": {"c": start["c"]}})
        assert repr(opt.state_dict()) == before and len(opt.param_groups) == 1
        return
    params = copied(start)
    opt = fastgd.Optimizer(params, rule(fallback=None))
    for step in grads:
        opt.step(step)
    check(opt, params, *expect([rule(fallback=None)] * len(start), list(start.values()), listed(grads)), 1e-12)


@pytest.mark.parametrize("way", ["argument", "group", "rule", "later"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("AdamW", "Muon: fallback must be a rule such as .*, given 'AdamW'"),
        (3, "Muon: fallback must be a rule such as .*, given 3"),
        ({"rule": "adamw"}, "Muon: fallback must be a rule such as .*, given {'rule'"),
        (AdamW, "Muon: fallback must be a rule such as .*, given <class"),
        (fastgd.AdamW, "Muon: fallback must be a rule such as .*, given <class"),
        (ScheduleFreeSGD(), "nothing beside its step and no fallback of its own, given ScheduleFreeSGD"),
        (SophiaG(), "nothing beside its step and no fallback of its own, given SophiaG"),
        (Muon(), "nothing beside its step and no fallback of its own, given Muon"),
        (MARS(), "nothing beside its step and no fallback of its own, given MARS"),
        (Muon(fallback=None), r"Muon.* 'b' of shape \(3,\)"),
        (Prodigy(), "fallback.*Prodigy"),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else type(x).__name__,
)
def test_wrong_fallbacks_are_named(wrong, message, way):
    params = {"w": np.ones((2, 3)), "b": np.ones(3)}
    if way == "later" and isinstance(wrong, Muon | Prodigy) and "own" not in message:
        message = "the change alters fallback of Muon, which is fixed"
    with pytest.raises(HyperparameterError, match=message) as caught:
        if way == "argument":
            fastgd.Muon(params, fallback=wrong)
        elif way == "group":
            fastgd.Muon([{"params": params}, {"match": "b", "fallback": wrong}])
        elif way == "rule":
            fastgd.Optimizer(params, Muon(fallback=wrong))
        else:
            opt = fastgd.Muon(params)
            opt.param_groups[0]["fallback"] = wrong
            opt.step({"w": np.ones((2, 3)), "b": np.ones(3)})
    assert "\n" not in str(caught.value)
    assert all((p == 1).all() for p in params.values())


# ---- states that are saved and loaded


def trained(rule, steps=3, **tail):
    params, grads = data(6)
    opt = fastgd.Optimizer(params, rule, **tail)
    for step in grads[:steps]:
        opt.step(step)
    return opt, params, grads


@backends
@forms
def test_a_state_taken_and_loaded_goes_on_bit_by_bit(rule, backend):
    opt, params, grads = trained(rule, backend=backend)
    saved = opt.state_dict()
    fallback = saved["param_groups"][0]["fallback"] if "fallback" in values(rule) else None
    if rule.fallback is not None:
        assert fallback == {
            "rule": type(rule.fallback).__name__.lower(),
            **{k: fallback[k] for k in values(rule.fallback)},
        }
    for key in ("param_groups", "scalar_state"):
        saved[key] = json.loads(json.dumps(saved[key]))
    other = copied(params)
    different = {} if rule.fallback is None else {"fallback": with_lr(rule.fallback, 7.0)}
    resumed = fastgd.Optimizer(other, type(rule)(**values(rule) | {"lr": 9.0} | different), backend=backend)
    resumed.load_state_dict(saved)
    assert resumed.rule == rule and resumed.param_groups[0]["fallback"] == rule.fallback
    twin = copy.deepcopy(opt)
    for step in grads[3:]:
        for o in (opt, resumed, twin):
            o.step(step)
    for o, p in ((resumed, other), (twin, twin.params)):
        assert all(same_bits(p[n], params[n]) for n in params)
        assert repr(o.state_dict()) == repr(opt.state_dict())
    assert twin.params["w"] is not params["w"]


def with_lr(rule, lr):
    return type(rule)(**values(rule) | {"lr": lr})


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (Muon(), Muon(fallback=Lion()), "group 0 of the state has a fallback 'lion', here AdamW"),
        (Muon(), Muon(fallback=AdamW(amsgrad=True)), "fallback of group 0 of the state has options .*'amsgrad': True"),
        (Adafactor(), Adafactor(fallback=AdamW()), "has a fallback 'adamw', here None"),
        (Adafactor(fallback=AdamW()), Adafactor(), "group 0 of the state has options"),
        (MARS(), MARS(fallback=None), "group 0 of the state has options"),
        (Muon(), Muon(ns_steps=4), "group 0 of the state has options .*'ns_steps': 4"),
        (Muon(), MARS(), "the state's rule must be 'muon', given 'mars'"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Rule) else "",
)
def test_a_state_of_another_fallback_is_refused(ours, theirs, message):
    opt, params, grads = trained(ours)
    before = everything(opt, params.values())
    with pytest.raises(CheckpointError, match=message) as caught:
        opt.load_state_dict(trained(theirs)[0].state_dict())
    assert "\n" not in str(caught.value)
    assert everything(opt, params.values()) == before
    opt.step(grads[3])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda f: f.pop("lr"), CheckpointError, "the fallback of group 0 of the state has no 'lr'"),
        (lambda f: f.pop("rule"), CheckpointError, "fallback None"),
        (lambda f: f.update(lr=-1), HyperparameterError, "AdamW: lr must be at least 0, given -1"),
        (lambda f: f.update(betas="x"), HyperparameterError, "AdamW: betas must be 2 numbers"),
    ],
)
def test_a_broken_fallback_in_a_state_is_refused(change, kind, message):
    opt, params, grads = trained(Muon())
    saved = opt.state_dict()
    change(saved["param_groups"][0]["fallback"])
    before = everything(opt, params.values())
    with pytest.raises(kind, match=message):
        opt.load_state_dict(saved)
    assert everything(opt, params.values()) == before
    opt.step(grads[3])


# ---- values that change


def apart(start, grads, own, others, backend="numba"):
    """Muon over the matrices and AdamW over the rest, each an optimizer with its own values at each step."""
    params = copied(start)
    matrices = {n: p for n, p in params.items() if p.ndim > 1}
    rest = {n: p for n, p in params.items() if p.ndim < 2}
    muon, adamw = (
        fastgd.Optimizer(matrices, own[0], backend=backend),
        fastgd.Optimizer(rest, others[0], backend=backend),
    )
    for step, a, b in zip(grads, own, others, strict=True):
        muon.param_groups[0].update(values(a))
        adamw.param_groups[0].update(values(b))
        muon.step({n: step[n] for n in matrices})
        adamw.step({n: step[n] for n in rest})
    return params


@backends
@pytest.mark.parametrize("how", ["set", "schedule", "group"])
def test_numbers_of_the_fallback_may_change(how, backend):
    start, grads = data()
    fallbacks = [AdamW(lr=0.01 * (k + 1), betas=(0.9 - 0.1 * k, 0.9), weight_decay=0.1 * k) for k in range(6)]
    asked = []

    def schedule(k):
        asked.append(k)
        return fallbacks[k]

    params = copied(start)
    given = {"set": fallbacks[0], "schedule": schedule, "group": AdamW()}[how]
    form = [{"params": params, "fallback": schedule}] if how == "group" else params
    opt = fastgd.Muon(form, lr=0.02, fallback=given, backend=backend)
    for k, step in enumerate(grads):
        if how == "set":
            opt.param_groups[0]["fallback"] = fallbacks[k]
        opt.step([step] if how == "group" else step)
        assert opt.state_dict()["param_groups"][0]["fallback"]["lr"] == fallbacks[k].lr
    expected = apart(start, grads, [Muon(lr=0.02)] * 6, fallbacks, backend)
    assert all(same_bits(params[n], expected[n]) for n in params)
    if how != "set":
        assert opt.param_groups[0]["fallback"] is schedule and set(asked) == set(range(6))


@pytest.mark.parametrize("way", ["set", "schedule"])
@pytest.mark.parametrize(
    "other", [Lion(), AdamW(amsgrad=True), AdamW(cautious=True), None, Adafactor()], ids=lambda r: type(r).__name__
)
def test_another_fallback_is_refused_and_nothing_changes(other, way):
    opt, params, grads = trained(Muon(fallback=AdamW(lr=0.5)))
    before = everything(opt, params.values())
    opt.param_groups[0]["fallback"] = other if way == "set" else lambda k: other
    for _ in range(2):
        with pytest.raises(HyperparameterError, match="group 0: the change alters fallback of Muon, which is fixed"):
            opt.step(grads[3])
        with pytest.raises(HyperparameterError, match="alters fallback"):
            opt.report(grads[3])
    opt.param_groups[0]["fallback"] = AdamW(lr=0.5)
    assert everything(opt, params.values()) == before
    opt.step(grads[3])
    assert opt.t == 4


def test_a_schedule_that_gives_no_rule_is_refused():
    opt, _, grads = trained(Muon())
    opt.param_groups[0]["fallback"] = lambda k: 0.1
    with pytest.raises(HyperparameterError, match=r"fallback must be a rule such as .* given 0\.1"):
        opt.step(grads[3])
    with pytest.raises(HyperparameterError, match=r"fallback must be a rule such as .* given 'x'"):
        fastgd.Muon(np.ones((2, 2)), fallback=lambda k: "x")
    assert opt.t == 3


def test_numbers_of_every_matrix_rule_may_change():
    """Each number alone, against the oracle run that has it from the start, by one step."""
    start, grads = data(1)
    for rule in (Muon(lr=0.01), Adafactor(lr=0.01, weight_decay=0.1, beta1=0.5), CAME(lr=0.01)):
        for f in fields(rule):
            value = getattr(rule, f.name)
            if not isinstance(value, float | tuple):
                continue
            changed = tuple(x and 0.5 * x + 0.07 for x in value) if isinstance(value, tuple) else 0.5 * value + 0.07
            if f.name == "beta2_decay":
                changed = -0.3
            new = type(rule)(**values(rule) | {f.name: changed})
            params = copied(start)
            opt = fastgd.Optimizer(params, rule)
            opt.param_groups[0][f.name] = changed
            opt.step(grads[0])
            xs, _ = expect([new] * len(start), list(start.values()), listed(grads))
            assert max(map(error, params.values(), xs)) < 1e-12, f.name


# ---- groups that join


@backends
def test_new_matrices_and_vectors_join(backend):
    start, grads = data()
    late = {"tall", "b", "s"}
    params = copied(start)
    first, second = ({n: p for n, p in params.items() if (n in late) == x} for x in (False, True))
    opt = fastgd.Muon(first, lr=0.02, fallback=AdamW(lr=0.01), backend=backend)
    for step in grads[:3]:
        opt.step({n: step[n] for n in first})
    opt.add_param_group({"params": second, "lr": 0.03, "fallback": Lion(lr=0.02)})
    for step in grads[3:]:
        opt.step([{n: step[n] for n in group} for group in (first, second)])
    old, new = Muon(lr=0.02, fallback=AdamW(lr=0.01)), Muon(lr=0.03, fallback=Lion(lr=0.02))
    for names, rule, used in ((first, old, grads), (second, new, grads[3:])):
        xs, states = expect([rule] * len(names), [start[n] for n in names], [[s[n] for n in names] for s in used])
        assert max(error(params[n], x) for n, x in zip(names, xs, strict=True)) < 1e-12
        order = [*first, *second]
        for state, parts in states.items():
            for n, x in zip(names, parts, strict=True):
                assert x is None or error(part(opt, state, order.index(n)), np.ravel(x)) < 1e-12
    twin = copy.deepcopy(opt)
    assert repr(twin.state_dict()) == repr(opt.state_dict())


@backends
def test_arrays_taken_by_name_go_on(backend):
    """A matrix and a vector, with their states and their number of steps."""
    start, grads = data()
    runs = []
    for late in (False, True):
        params = copied(start)
        opt = fastgd.Muon(
            params if late else [{"params": params}, {"match": ["tall", "b"]}], lr=0.02, ema_decay=0.9, backend=backend
        )
        for k, step in enumerate(grads):
            if k == 3:
                if late:
                    opt.add_param_group({"match": ["tall", "b"]})
                opt.param_groups[1].update(lr=0.05, fallback=with_lr(opt.param_groups[1]["fallback"], 0.1))
            opt.step(step if late else [step])
        runs.append([*params.values(), *opt.state.values()])
    assert all(map(same_bits, *runs))


def test_a_vector_stays_with_the_rule_whose_states_it_has():
    opt, params, grads = trained(Muon(fallback=AdamW()))
    before = everything(opt, params.values())
    with pytest.raises(HyperparameterError, match=r"group 1: 'b' is updated by AdamW, .* in which Lion would"):
        opt.add_param_group({"match": "b", "fallback": Lion(lr=0.1)})
    assert everything(opt, params.values()) == before and len(opt.param_groups) == 1
    opt.add_param_group({"match": "b", "fallback": AdamW(lr=0.1)})
    opt.step(grads[3])


@pytest.mark.parametrize("rule", [Muon(), MARS()], ids=lambda x: type(x).__name__)
def test_values_that_would_change_nothing_are_refused(rule):
    params = {"w": np.ones((2, 3)), "b": np.ones(3)}
    with pytest.raises(HyperparameterError, match=r"group 1: .* go to the fallback, AdamW\(.* in the place of lr"):
        fastgd.Optimizer([{"params": params}, {"match": "b", "lr": 0.0}], rule)
    opt = fastgd.Optimizer([{"params": params}], rule)
    with pytest.raises(HyperparameterError, match=r"group 1: .* go to the fallback.* in the place of weight_decay"):
        opt.add_param_group({"params": {"late": np.ones(4)}, "weight_decay": 0.0})
    assert len(opt.param_groups) == 1


def test_a_rule_that_serves_nothing_says_so(caplog):
    fastgd.Muon([np.ones(3), np.ones(4)])
    assert "Muon serves none of these arrays" in caplog.text
    with pytest.raises(HyperparameterError, match=r"Muon does not serve an x0 of shape \(2,\)"):
        fastgd.minimize(lambda x: (x**2).sum(), np.ones(2), jac=lambda x: 2 * x, method="muon")


def test_a_refused_group_changes_nothing():
    opt, params, grads = trained(Muon())
    before = everything(opt, params.values())
    for wrong in ({"fallback": None}, {"fallback": "adamw"}, {"fallback": Muon()}, {"fallback": ScheduleFreeSGD()}):
        with pytest.raises(HyperparameterError):
            opt.add_param_group({"params": {"late": np.ones(3)}, **wrong})
    assert everything(opt, params.values()) == before and len(opt.param_groups) == 1
    opt.step(grads[3])


# ---- the tail


TAILS = {
    "scale": dict(scale=0.37),
    "maximize": dict(maximize=True),
    "max_norm": dict(max_norm=30.0),
    "max_value": dict(max_value=0.5),
    "ema": dict(ema_decay=0.8),
    "zero_grad": dict(zero_grad=True),
    "all": dict(scale=0.37, maximize=True, max_norm=11.0, max_value=0.5, ema_decay=0.8, zero_grad=True),
}
TAILED = [FORMS[k] for k in (0, 2, 5, 7)]
tailed = pytest.mark.parametrize("rule", TAILED, ids=[type(r).__name__.lower() for r in TAILED])


@backends
@pytest.mark.parametrize("tail", TAILS)
@tailed
def test_tail_equals_the_oracle(rule, tail, backend):
    given = dict(TAILS[tail])
    scale = given.pop("scale", 1.0)
    start, grads = data()
    params = copied(start)
    opt = fastgd.Optimizer(params, rule, backend=backend, **given)
    used, history = [], [list(start.values())]
    for step in grads:
        mine = copied(step)
        opt.step(mine, scale=scale)
        assert all(np.array_equal(mine[n], 0 * step[n] if "zero_grad" in given else step[n]) for n in step)
        scaled = [(-scale if "maximize" in given else scale) * g for g in step.values()]
        if "max_norm" in given:
            assert opt.grad_norm == pytest.approx(global_norm(scaled), rel=1e-13)
            scaled = clip_global_norm(scaled, given["max_norm"])
        bound = given.get("max_value", math.inf)
        used.append([np.clip(g, -bound, bound) for g in scaled])
        history.append(expect([rule] * len(start), history[0], used)[0])
    check(opt, params, *expect([rule] * len(start), history[0], used), 1e-12)
    if "ema_decay" in given:
        assert max(map(error, opt.ema.values(), ema(history, 0.8))) < 1e-12


@backends
@pytest.mark.parametrize("rule", ["muon", "adafactor", "came"])
def test_lookahead_equals_its_algorithm(rule, backend):
    start, grads = data(7, shapes={n: s for n, s in SHAPES.items() if s})
    params = list(copied(start).values())
    opt = getattr(fastgd, {"muon": "Muon", "adafactor": "Adafactor", "came": "CAME"}[rule])(
        params, lr=0.05, lookahead=(3, 0.4), zero_grad=True, backend=backend
    )
    for step in listed(grads):
        opt.step([g.copy() for g in step])
    fast, slow = lookahead(rule, list(start.values()), listed(grads), 3, 0.4, lr=0.05)
    assert max(map(error, params, fast)) < 1e-12 and max(map(error, opt.ema, slow)) < 1e-12


@backends
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["w", "b"])
@tailed
def test_gradients_that_are_not_finite(rule, where, bad, backend):
    """They propagate into their own array, or the step is skipped or refused."""
    start, grads = data(2)
    wrong = copied(grads[0])
    wrong[where].flat[1] = bad
    for how in ("propagate", "skip", "raise"):
        params = copied(start)
        opt = fastgd.Optimizer(params, rule, on_nonfinite=how, zero_grad=how == "skip", backend=backend)
        before = repr(opt.state_dict())
        if how == "raise":
            with pytest.raises(NonFiniteError, match=f"the gradient of '{where}' is {bad} at"):
                opt.step(wrong)
        else:
            given = copied(wrong)
            opt.step(given)
            assert all(not g.any() for g in given.values()) == (how == "skip")
        if how == "propagate":
            spoilt = {n for n, p in params.items() if not np.isfinite(p).all()}
            assert spoilt <= {where} and (spoilt or math.isinf(bad))
            continue
        assert repr(opt.state_dict()) == before and all(np.array_equal(params[n], start[n]) for n in start)
        opt.step(copied(grads[1]))
        xs, _ = expect([rule] * len(start), list(start.values()), listed(grads[1:]))
        assert opt.t == 1 and max(map(error, params.values(), xs)) < 1e-12


@pytest.mark.parametrize("rule", [Muon(), Adafactor(), Adafactor(form="paper"), CAME()], ids=lambda r: type(r).__name__)
def test_nan_in_a_matrix_reaches_all_of_it(rule):
    p = np.ones((4, 5))
    opt = fastgd.Optimizer(p, rule)
    g = np.ones((4, 5))
    g[2, 3] = math.nan
    opt.step(g)
    assert np.isnan(p).all()


def test_accumulated_gradients_are_one():
    start, grads = data(2)
    params, same = copied(start), copied(start)
    opt, other = fastgd.Muon(params), fastgd.Muon(same)
    for step in grads:
        opt.accumulate(step, scale=0.25)
        opt.accumulate(step, scale=0.75)
        opt.step()
        other.step(step)
    assert max(map(error, params.values(), same.values())) < 1e-14


# ---- the report


@backends
@pytest.mark.parametrize("dtype", TOLERANCE)
@tailed
def test_a_report_is_what_the_step_then_does(rule, dtype, backend):
    start, grads = data(4, dtype)
    tail = dict(maximize=True, max_norm=20.0, max_value=1.0, ema_decay=0.5, zero_grad=True)
    params = copied(start)
    opt = fastgd.Optimizer([{"params": params}, {"match": ["tall", "b"], "lr": 0.5}], rule, backend=backend, **tail)
    close = dict(rel=1e-5 if dtype == "float32" else 1e-12)
    for k, step in enumerate(grads):
        before, was = everything(opt, params.values()), copied(params)
        if k == 3:
            step["w"][0] = 0
            step["w"][1, 2] = math.inf
        given = copied(step)
        report = opt.report([given], scale=0.5)
        assert everything(opt, params.values()) == before
        assert all(np.array_equal(given[n], step[n]) for n in step)
        opt.step([given], scale=0.5)
        for n in start:
            row = report[n]
            assert (row.shape, row.group) == (SHAPES[n], int(n in ("tall", "b")))
            assert row.zeros == np.mean(step[n] == 0) and row.nonfinite == np.mean(~np.isfinite(step[n]))
            if k < 3:
                assert row.param_norm == pytest.approx(np.linalg.norm(was[n].astype(float)), **close)
                assert row.grad_norm == pytest.approx(0.5 * np.linalg.norm(step[n].astype(float)), **close)
                change = np.linalg.norm(params[n].astype(float) - was[n].astype(float))
                assert row.update_norm == pytest.approx(change, **close)
                assert row.ratio == pytest.approx(change / np.linalg.norm(was[n].astype(float)), **close)
        assert report["w"].verdict == ("exploding" if k == 3 else "ok")


# ---- forms of parameters, and shapes


@forms
def test_any_form_of_parameters_gives_the_same_bits(rule):
    start, grads = data(3, "float32")
    flat, named, rows = fastgd.FlatParams(start), copied(start), list(copied(start).values())
    optimizers = [fastgd.Optimizer(p, rule) for p in (flat, named, rows)]
    for step in grads:
        for n, g in step.items():
            flat.grad[n] = g
        optimizers[0].step()
        optimizers[1].step(step)
        optimizers[2].step(list(step.values()))
    lone = start["w"].copy()
    alone = fastgd.Optimizer(lone, rule)
    for step in grads:
        alone.step(step["w"])
    assert same_bits(lone, named["w"])
    for k, n in enumerate(start):
        assert same_bits(np.ascontiguousarray(flat[n]), named[n]) and same_bits(rows[k], named[n])
    for state in optimizers[0].state:
        assert same_bits(optimizers[0].state[state], optimizers[1].state[state])


@backends
@forms
def test_empty_arrays_and_arrays_of_one_element(rule, backend):
    shapes = {"a": (0, 5), "b": (5, 0), "c": (0,), "d": (1, 1), "e": (), "f": (2, 0, 3), "g": (1,), "h": (1, 1, 1, 1)}
    rng = np.random.default_rng(0)
    start = {n: rng.standard_normal(s) for n, s in shapes.items()}
    grads = [{n: rng.standard_normal(s) for n, s in shapes.items()} for _ in range(4)]
    start = {n: np.asarray(p) for n, p in start.items()}
    grads = [{n: np.asarray(g) for n, g in step.items()} for step in grads]
    params = copied(start)
    opt = fastgd.Optimizer(params, rule, ema_decay=0.5, max_norm=1.0, backend=backend)
    for step in grads:
        opt.report(step)
        opt.step(step)
    names = [n for n in shapes if math.prod(shapes[n])]
    clipped = [clip_global_norm(list(step.values()), 1.0) for step in grads]
    used = [[g for n, g in zip(shapes, step, strict=True) if n in names] for step in clipped]
    xs, _ = expect([rule] * len(names), [start[n] for n in names], used)
    assert max(error(params[n], x) for n, x in zip(names, xs, strict=True)) < 1e-12
    other = copied(start)
    resumed = fastgd.Optimizer(other, rule, ema_decay=0.5, max_norm=1.0, backend=backend)
    resumed.load_state_dict(opt.state_dict())


@pytest.mark.parametrize("rule", [Muon(), Adafactor(), CAME(), MARS()], ids=lambda r: type(r).__name__)
def test_only_empty_arrays(rule):
    opt = fastgd.Optimizer([np.ones((0, 5)), np.ones((5, 0)), np.ones(0)], rule)
    opt.step([np.ones((0, 5)), np.ones((5, 0)), np.ones(0)])
    assert opt.t == 1


@pytest.mark.parametrize("rule", [Muon(), Adafactor(), CAME(), MARS()], ids=lambda r: type(r).__name__)
def test_arrays_that_do_not_lie_in_one_piece_are_refused(rule):
    with pytest.raises(ArrayError, match="contiguous"):
        fastgd.Optimizer(np.ones((4, 6)).T, rule)
    with pytest.raises(ArrayError, match="contiguous"):
        fastgd.Optimizer(np.ones((4, 6))[:, ::2], rule)
    p = np.ones((6, 4))
    opt = fastgd.Optimizer(p, rule)
    with pytest.raises(ArrayError, match="contiguous"):
        opt.step(np.ones((4, 6)).T)
    with pytest.raises(ArrayError, match=r"shape \(6, 4\), given \(4, 6\)"):
        opt.step(np.ones((4, 6)))
    assert opt.t == 0 and (p == 1).all()


# ---- rows and columns without gradient


DEAD = [
    CAME(lr=0.01),
    CAME(lr=0.01, betas=(0.0, 0.9, 0.99)),
    Adafactor(lr=0.05),
    Adafactor(lr=0.05, beta1=0.9),
    Adafactor(lr=0.05, form="paper"),
    Adafactor(lr=0.05, form="paper", beta1=0.5, scale_parameter=False),
    Muon(lr=0.02),
]


@pytest.mark.parametrize("pattern", ["rows", "columns", "both", "awakes", "falls asleep", "all", "one of a batch"])
@pytest.mark.parametrize("rule", DEAD, ids=[f"{type(r).__name__}-{k}" for k, r in enumerate(DEAD)])
def test_dead_rows_and_columns_in_float32(rule, pattern):
    rng = np.random.default_rng(4)
    shapes = ((12, 9), (3, 5, 8))
    start = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    grads = [[(rng.standard_normal(s) * 0.1).astype(np.float32) for s in shapes] for _ in range(8)]
    for k, step in enumerate(grads):
        for g in step:
            if pattern in ("rows", "both"):
                g[..., 1, :] = 0
            if pattern in ("columns", "both"):
                g[..., 2] = 0
            if (pattern == "awakes" and k < 3) or (pattern == "falls asleep" and k > 3):
                g[..., :3, :] = 0
            if pattern == "all" or (pattern == "one of a batch" and g.ndim > 2):
                g[0 if pattern != "all" else slice(None)] = 0
    params = [p.copy() for p in start]
    opt = fastgd.Optimizer(params, rule)
    for step in grads:
        opt.step(step)
    xs, states = expect([rule] * 2, start, grads, "float32")
    for i, (p, x) in enumerate(zip(params, xs, strict=True)):
        assert np.isfinite(p).all() and np.isfinite(x).all()
        assert error(p, x) < 1e-5
        for state, parts in states.items():
            if parts[i] is not None:
                assert error(part(opt, state, i), np.ravel(parts[i])) < 1e-5, state


# ---- one's own rule


@dataclass(frozen=True, kw_only=True)
class Centred(MatrixRule):
    """Gradient minus the means of its columns, in units of the running size of its rows; vectors take its sign."""

    lr: float = 0.1
    keep: float = 0.5
    squared: bool = True
    states: ClassVar[dict[str, str]] = {"size": "row_size", "start": "anchor"}

    def options(self):
        return dict(squared=self.squared)

    def init(self):
        return dict(size=2.0, start="p")

    def state_shape(self, name, shape):
        if name == "size":
            return shape[:1] if len(shape) > 1 else None
        return shape

    def prepare(self, t):
        return dict(lr=self.lr / t, keep=self.keep, rest=1 - self.keep)

    @staticmethod
    def update(p, g, size, start, *, lr, keep, rest, squared):
        if size is None:
            return dict(p=p - lr * (g / abs(g) + p - start))
        axes = tuple(range(1, g.ndim))
        now = (g * g).mean(axes) if squared else abs(g).mean(axes)
        size = keep * size + rest * now
        u = (g - g.mean(0)) / size.reshape(-1, *[1] * (g.ndim - 1))
        return dict(p=p - lr * (u + p - start), size=size)


@backends
def test_ones_own_rule(backend):
    start, grads = data(4)
    params = copied(start)
    opt = fastgd.Optimizer(
        [{"params": params}, {"match": ["w", "b"], "lr": 0.3, "squared": False}],
        Centred(),
        ema_decay=0.5,
        backend=backend,
    )
    for step in grads:
        opt.step([{n: np.where(g == 0, 1e-3, g) for n, g in step.items()}])
    for i, n in enumerate(start):
        lr, squared = (0.3, False) if n in ("w", "b") else (0.1, True)
        p, size = start[n], 2.0 * np.ones(SHAPES[n][:1])
        mean = p
        for t, step in enumerate(grads, start=1):
            g = np.where(step[n] == 0, 1e-3, step[n])
            if g.ndim > 1:
                axes = tuple(range(1, g.ndim))
                size = 0.5 * size + 0.5 * (np.mean(g**2, axes) if squared else np.mean(np.abs(g), axes))
                u = (g - np.mean(g, 0)) / np.expand_dims(size, axes)
            else:
                u = np.sign(g)
            p = p - lr / t * (u + p - start[n])
            mean = mean + 0.5 * (p - mean)
        assert error(params[n], p) < 1e-13 and error(opt.ema[0][n], mean) < 1e-13
        assert np.array_equal(part(opt, "anchor", i), np.ravel(start[n]))
        assert part(opt, "row_size", i).size == (SHAPES[n][0] if len(SHAPES[n]) > 1 else 0)
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    assert copy.deepcopy(opt).state_dict()["param_groups"] == saved["param_groups"]


def own(compute, **parts):
    members = {
        "__annotations__": {"lr": float},
        "lr": 0.1,
        "prepare": lambda self, t: dict(lr=self.lr),
        "update": staticmethod(compute),
        **parts,
    }
    return dataclass(frozen=True, kw_only=True)(type("Own", (MatrixRule,), members))()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        pytest.param(lambda p, g, m: dict(m=m + g), "Own: update must return a dict of p and .*given m", id="no p"),
        pytest.param(lambda p, g, m: dict(p=p, q=m), "Own: .* given p, q", id="unknown"),
        pytest.param(lambda p, g, m: dict(p=p, g=g), "Own: .* given p, g", id="g"),
        pytest.param(lambda p, g, m: {}, "Own: update must return a dict of p", id="empty"),
        pytest.param(lambda p, g, m: dict(p=p.T), r"Own: the new p must have shape \(2, 3\), given \(3, 2\)", id="p.T"),
        pytest.param(lambda p, g, m: dict(p=p.sum()), r"the new p must have shape \(2, 3\), given \(\)", id="scalar"),
        pytest.param(lambda p, g, m: dict(p=p, m=m[:1]), r"the new m must .*\(2, 3\), given \(1, 3\)", id="broadcast"),
        pytest.param(lambda p, g, m: dict(p=p, m=None), r"the new m must have shape", id="None"),
        pytest.param(lambda p, g, m: (p - g, m), "Own: update must return a dict", id="tuple"),
        pytest.param(lambda p, g, m: p - g, "Own: update must return a dict", id="array"),
        pytest.param(lambda p, g, m: None, "Own: update must return a dict", id="nothing"),
    ],
)
def test_what_an_own_rule_returns_is_checked_before_it_is_written(returned, message):
    p = np.ones((2, 3))
    opt = fastgd.Optimizer(p, own(lambda p, g, m, *, lr: returned(p, g, m)))
    with pytest.raises(RuleError, match=message) as caught:
        opt.step(np.full((2, 3), 2.0))
    assert "\n" not in str(caught.value)
    assert opt.t == 0 and (p == 1).all() and not opt.state["m"].any()
    with pytest.raises(RuleError, match=message):  # a report looks at the same step
        fastgd.Optimizer(p, own(lambda p, g, m, *, lr: returned(p, g, m))).report(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("update", "parts", "message"),
    [
        pytest.param(lambda p, g, lr: dict(p=p - lr * g), {}, "`lr`", id="no star"),
        pytest.param(lambda p, g, *, lr, mu: dict(p=p), {}, "`mu`, which prepare.*lr", id="unknown scalar"),
        pytest.param(lambda p, g, *a, lr: dict(p=p), {}, "Own: update takes plain arguments only", id="args"),
        pytest.param(lambda p, g, *, lr, **k: dict(p=p), {}, "Own: update takes plain arguments only", id="kwargs"),
        pytest.param(lambda g, p, *, lr: dict(p=p), {}, "takes p, g and then the states, given g, p", id="order"),
        pytest.param(lambda p, *, lr: dict(p=p), {}, "takes p, g and then the states, given p", id="no g"),
        pytest.param(lambda p, g, ema, *, lr: dict(p=p), {}, "`ema` is a name of the fused tail", id="ema"),
        pytest.param(
            lambda p, g, m, *, lr: dict(p=p), dict(init=lambda self: dict(x=1.0)), "init.. starts `x`", id="init x"
        ),
        pytest.param(
            lambda p, g, m, *, lr: dict(p=p), dict(init=lambda self: dict(m="q")), "for `m`, given 'q'", id="init q"
        ),
        pytest.param(
            lambda p, g, *, lr: dict(p=p),
            dict(prepare=lambda self, t: None),
            "prepare must return a dict",
            id="prepare",
        ),
        pytest.param(
            lambda p, g, *, lr: dict(p=p),
            dict(prepare=lambda self, t, k: dict(lr=1.0, k=k + 1), init=lambda self: dict(k=0.0)),
            "prepare takes `k`, but a matrix rule keeps no numbers",
            id="scalar state",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_construction(update, parts, message):
    with pytest.raises(RuleError, match=message) as caught:
        fastgd.Optimizer(np.ones((2, 3)), own(update, **parts))
    assert str(caught.value).startswith("Own: ") and "\n" not in str(caught.value)


def test_a_method_is_no_update():
    with pytest.raises(RuleError, match="Own: has no static method update"):
        fastgd.Optimizer(np.ones((2, 3)), own(lambda: None, update=lambda self, p, g, *, lr: dict(p=p)))
    with pytest.raises(RuleError, match="Own: has no static method update"):
        fastgd.Optimizer(np.ones((2, 3)), own(lambda: None, update=None))


def test_a_state_may_be_the_gradient_itself():
    """Which is zeroed in the same pass."""
    p = np.ones((2, 3))
    opt = fastgd.Optimizer(p, own(lambda p, g, last, *, lr: dict(p=p - lr * last, last=g)), zero_grad=True)
    for k in (1.0, 2.0, 3.0):
        g = np.full((2, 3), k)
        opt.step(g)
        assert not g.any() and (opt.state["last"][:6] == k).all()
    assert np.allclose(p, 1 - 0.1 * (1 + 2))


def test_states_may_change_places():
    opt = fastgd.Optimizer(
        np.ones((2, 3)), own(lambda p, g, a, b, *, lr: dict(p=p, a=b, b=a), init=lambda self: dict(a=1.0, b=2.0))
    )
    opt.step(np.ones((2, 3)))
    assert (opt.state["a"][:6] == 2).all() and (opt.state["b"][:6] == 1).all()


def keeping(backend):
    params = fastgd.FlatParams({"w": np.ones((2, 3)), "v": np.eye(3, 2)})
    rule = own(lambda p, g, last, *, lr: dict(p=p - lr * (g + last), last=g))
    return fastgd.Optimizer([{"params": params}], rule, zero_grad=True, backend=backend)


def test_a_state_that_is_the_gradient_survives_ctrl_c():
    drill = Drill(keeping, "numpy")
    assert [k for k in drill.stopped(KeyboardInterrupt()) if drill.memory() not in (drill.whole, drill.last)] == []


def test_values_that_float32_does_not_hold_are_refused():
    for rule in (AdamW(lr=1e39), SGD(lr=1e39)):
        with pytest.raises(HyperparameterError, match="which float32 cannot hold"):
            fastgd.Optimizer(np.ones((2, 3), np.float32), rule).step(np.ones((2, 3), np.float32))


@pytest.mark.parametrize("name", ["muon", "came", "adafactor", "lamb", "lion-cautious", "mars"])
def test_values_that_float32_does_not_hold_are_refused_of_every_rule(name):
    p = np.ones((2, 3), np.float32)
    rule = {
        "muon": Muon(lr=1e39),
        "came": CAME(lr=1e39),
        "adafactor": Adafactor(lr=1e39, relative_step=False),
        "lamb": fastgd.kernels.rules.LAMB(lr=1e39),
        "lion-cautious": Lion(lr=1e39, cautious=True),
        "mars": MARS(lr=1e39),
    }[name]
    with pytest.raises(HyperparameterError, match="which float32 cannot hold"):
        fastgd.Optimizer(p, rule).step(np.ones((2, 3), np.float32))
    assert (p == 1).all()


def test_a_report_takes_up_nothing_of_one_that_was_stopped():
    params = {"a": np.ones((2, 2)), "b": np.ones((2, 2))}
    opt = fastgd.Optimizer(params, own(lambda p, g, *, lr: stopping(p, g, lr)))
    calls = []

    def stopping(p, g, lr):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return dict(p=p - lr * g)

    with pytest.raises(KeyboardInterrupt):
        opt.report({name: np.ones((2, 2)) for name in params})
    report = opt.report({name: np.full((2, 2), 100.0) for name in params})
    assert [row.grad_norm for row in report] == [200.0, 200.0]


# ---- a step that is stopped


def muon(backend):
    params = fastgd.FlatParams({"w": np.ones((2, 3)), "b": np.ones(3), "v": np.eye(3, 2), "x": np.ones((2, 2))})
    tail = dict(max_norm=2.0, ema_decay=0.9, zero_grad=True)
    given = [{"params": params}, {"match": "v", "lr": 0.5}]
    return fastgd.Muon(given, lr=0.1, ns_steps=1, fallback=NovoGrad(lr=0.1), backend=backend, **tail)


def came(backend):
    params = fastgd.FlatParams({"w": np.ones((2, 3)), "b": np.ones(3), "v": np.eye(3, 2)})
    return fastgd.CAME([{"params": params}], lr=0.1, lookahead=(2, 0.5), zero_grad=True, backend=backend)


MAKERS = [pytest.param(m, b, id=f"{m.__name__}-{b}") for m, b in ((muon, "numba"), (came, "numpy"))]


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize(("make", "backend"), MAKERS)
def test_ctrl_c_before_any_line_leaves_no_half_step(make, backend, again):
    drill = Drill(make, backend)
    assert drill.check_all_or_nothing(again) > 100


@pytest.mark.parametrize(("make", "backend"), MAKERS)
def test_an_error_before_any_line_leaves_nothing_or_a_mark(make, backend):
    assert Drill(make, backend).check_nothing_or_a_mark() > 10


# ---- in one call


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "rule",
    [
        Muon(lr=0.02),
        Adafactor(lr=0.05),
        Adafactor(lr=0.05, beta1=0.9, form="paper"),
        CAME(lr=0.01),
        MARS(lr=0.01),
        MARS(lr=0.01, fallback=None, mars_type="mars-lion"),
    ],
    ids=lambda r: type(r).__name__,
)
def test_one_call_has_the_bits_of_the_optimizer(rule, dtype):
    name = type(rule).__name__.lower()
    step_ = getattr(fastgd.functional, f"{name}_")
    hyper = {k: v for k, v in values(rule).items() if v != getattr(type(rule), k)}
    for shape in ((5, 7), (2, 3, 4), (1, 1), (0, 5), (66,), ()):
        start, grads = data(4, dtype, {"x": shape})
        if not rule.serves(shape):
            with pytest.raises(ArrayError, match=rf"{name}_: p must be an array that {type(rule).__name__} serves"):
                n = 3 if name == "muon" else 5
                step_(*(start["x"].copy() for _ in range(n)), 1, **hyper)
            continue
        if shape == () and isinstance(rule, MatrixRule):
            continue  # see below
        p, other = start["x"].copy(), start["x"].copy()
        opt = fastgd.Optimizer(p, rule)
        planned = opt._layout.program.launches[0].plan
        shapes = {s: planned.state_shape(s, shape) for s in planned.states}
        states = {s: np.zeros(own, dtype) for s, own in shapes.items() if own is not None}
        for t, step in enumerate(grads, start=1):
            opt.step(step["x"], scale=0.5)
            step_(other, step["x"], *states.values(), t, scale=0.5, **hyper)
        assert same_bits(p, other)
        for s, array in states.items():
            assert same_bits(part(opt, rule.states.get(s, s), 0), array.reshape(-1)), s


@pytest.mark.parametrize("states", [1, 2], ids=["adafactor", "came"])
def test_one_call_serves_an_array_without_axes(states):
    p, *kept = np.array(2.0), *(np.array(0.0) for _ in range(states))
    q = np.array([2.0])
    opt = (fastgd.Adafactor if states == 1 else fastgd.CAME)(q)
    opt.step(np.array([0.5]))
    getattr(fastgd.functional, "adafactor_" if states == 1 else "came_")(p, np.array(0.5), *kept, 1)
    assert p == q[0]


def test_wrong_arrays_of_one_call_are_named():
    p, g, m = (np.ones((3, 4)) for _ in range(3))
    f = fastgd.functional
    for wrong, message in [
        (lambda: f.muon_(p, g, 1), "takes p, g, m and t: 3 arrays, given 2"),
        (lambda: f.muon_(p, g, m, m.copy(), 1), "takes p, g, m and t: 3 arrays, given 4"),
        (lambda: f.muon_(p, g.T, m, 1), "g must .*contiguous"),
        (lambda: f.muon_(p, np.ones((4, 3)), m, 1), r"g must have the shape of p, \(3, 4\), given \(4, 3\)"),
        (lambda: f.muon_(p, g, m.astype(np.float32), 1), "m must have the dtype of p, float64, given float32"),
        (lambda: f.muon_(p, p, m, 1), "must not share memory"),
        (lambda: f.muon_(np.ones(3), np.ones(3), np.ones(3), 1), r"that Muon serves, given one of shape \(3,\)"),
        (lambda: f.muon_(np.array(1.0), np.array(1.0), np.array(1.0), 1), r"that Muon serves, given one of shape \(\)"),
        (lambda: f.adafactor_(p, g, np.ones(4), np.ones(3), 1), r"row must have shape \(3,\), given \(4,\)"),
        (lambda: f.adafactor_(p, g, np.ones(3), 1), "takes p, g, row, column and t: 4 arrays, given 3"),
        (lambda: f.adafactor_(np.ones(3), np.ones(3), np.ones(3), np.ones(3), 1), "takes p, g, v and t: 3 arrays"),
        (lambda: f.adafactor_(p, g, np.ones(3), np.ones(4), m, 1), "given 5"),
        (lambda: f.came_(p, g, m, 1), "takes p, g, m, row, column, res_row, res_column and t: 7 arrays, given 3"),
        (lambda: f.came_(p, g, m, *(np.ones(3) for _ in range(4)), 1), r"column must have shape \(4,\), given \(3,\)"),
        (lambda: f.came_(np.ones(3), np.ones(3), np.ones(3), 1), "takes p, g, m, v and t: 4 arrays, given 3"),
        (lambda: f.mars_(p, g, m, 1), "arrays, given 3"),
        (lambda: f.mars_(*(np.ones(3) for _ in range(5)), 1), r"that MARS serves, given one of shape \(3,\)"),
    ]:
        with pytest.raises(ArrayError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)
    for wrong, message in [
        (lambda: f.muon_(p, g, m, 0), "t must be the number of the step"),
        (lambda: f.muon_(p, g, m, 1, lr=-1), "lr must be at least 0"),
        (lambda: f.muon_(p, g, m, 1, fallback="adamw"), "fallback must be a rule"),
        (lambda: f.muon_(p, g, m, 1, ns_steps=100), "ns_steps"),
    ]:
        with pytest.raises(HyperparameterError, match=message):
            wrong()
    assert (p == 1).all() and (g == 1).all() and (m == 1).all()


@pytest.mark.parametrize("name", ["muon", "adafactor", "came", "mars"])
def test_no_function_of_one_element_is_made_of_them(name):
    with pytest.raises(RuleError) as caught:
        fastgd.kernels.device(name)
    assert "\n" not in str(caught.value) and {"muon": "Muon", "came": "CAME"}.get(name, "") in str(caught.value)


@pytest.mark.parametrize("target", ["numpy", "numba", "llvm", "cuda"])
def test_no_kernel_of_a_matrix_rule_is_shown(target, monkeypatch, capsys):
    pytest.importorskip("typer")
    from fastgd.cli import main

    monkeypatch.setattr("sys.argv", ["fastgd", "kernels", "show", "muon", "--target", target])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert f"--target must be rule, given {target}" in err


# ---- torch.optim


def run_torch(name, start, grads, **hyper):
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its own and NumPy's would wait for each other
    params = [torch.nn.Parameter(torch.from_numpy(np.array(p))) for p in start]
    opt = getattr(torch.optim, name)(params, **hyper)
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        opt.step()
    torch.set_num_threads(threads)
    return [p.detach().numpy() for p in params]


@backends
@pytest.mark.parametrize(
    "hyper",
    [dict(), dict(lr=0.3, beta2_decay=-0.5, weight_decay=0.1), dict(lr=0.05, eps=(0.2, 1.5), d=1.2, weight_decay=0.3)],
    ids=str,
)
def test_adafactor_equals_torch(hyper, backend):
    shapes = [(1,), (7,), (65,), (8, 8), (25, 40), (40, 25), (1, 9), (3, 4, 5), (1, 1, 1)]
    start, grads = problem("float64", 20, shapes)
    params = [p.copy() for p in start]
    opt = fastgd.Adafactor(params, **hyper, backend=backend)
    for step in grads:
        opt.step(step)
    assert max(map(error, params, run_torch("Adafactor", start, grads, **hyper))) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "hyper", [dict(), dict(nesterov=False, momentum=0.8), dict(adjust_lr_fn="match_rms_adamw")], ids=str
)
def test_muon_is_near_torch(hyper, dtype):
    """Which works in bfloat16: its changes are right to some thousandths of themselves."""
    start, grads = problem(dtype, 20, [(25, 40), (40, 25), (64, 64)])
    params = [p.copy() for p in start]
    opt = fastgd.Muon(params, lr=1e-3, **hyper)
    for step in grads:
        opt.step(step)
    theirs = run_torch("Muon", start, grads, lr=1e-3, **hyper)
    for p, q, s in zip(params, theirs, start, strict=True):
        assert error(p, q) < 2e-3
        assert np.linalg.norm(p - q) < 0.05 * np.linalg.norm(q - 0.9999**20 * s)
