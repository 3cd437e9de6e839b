"""Rules with sums between two sweeps: long segments, zeros, wide ranges, numbers that are kept, and interrupts."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import subprocess
import sys
from functools import lru_cache
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import same_bits
from oracles import ORACLES, SETTINGS, clip_global_norm, ema, global_norm
from test_atomic import Stop
from test_oracles import TOLERANCE, error, vary

import fastgd
from fastgd.kernels.cpu_threads import available_threads
from fastgd.kernels.errors import CheckpointError, FastGDError, HyperparameterError, NonFiniteError, RuleError
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES

CHOSEN = [
    ("lars", 0),
    ("lars", 1),
    ("lamb", 0),
    ("lamb", 3),
    ("novograd", 0),
    ("novograd", 1),
    ("stableadamw", 0),
    ("prodigy", 0),
    ("prodigy", 2),
    ("dadaptadam", 0),
    ("mars", 1),
    ("mars", 2),
    ("adam", 6),
    ("adamw", 5),
    ("lion", 3),
]
TESTS = Path(__file__).parent
BACKENDS = ("numpy", "numba")
backends = pytest.mark.parametrize("backend", BACKENDS)
cases = pytest.mark.parametrize(("name", "i"), [pytest.param(n, i, id=f"{n}-{i}") for n, i in CHOSEN])
totals = pytest.mark.parametrize("name", ["prodigy", "dadaptadam"])


def setting(name, i):
    """Hyperparameters of a form; MARS serves vectors here, too."""
    return SETTINGS[name][i] | ({"fallback": None} if name == "mars" else {})


def test_every_norm_rule_is_chosen():
    forms = {(name, i) for name in RULES for i, s in enumerate(SETTINGS[name]) if plan(RULES[name](**s)).combine}
    assert {name for name, _ in forms} == {name for name, _ in CHOSEN}
    assert set(CHOSEN) <= forms


def expect(name, groups, members, start, grads):
    """Parameters and states by the oracle; `members`: the group of each segment."""
    groups = [{k: v for k, v in g.items() if k != "fallback"} for g in groups]
    with np.errstate(all="ignore"):
        if plan(RULES[name](**groups[0])).level == "total":
            each = [{k: v for k, v in groups[g].items() if k in ("lr", "weight_decay")} for g in members]
            return ORACLES[name](start, grads, **groups[0], each=each)
        xs, states = [None] * len(start), {}
        for g, hyper in enumerate(groups):
            own = [i for i, m in enumerate(members) if m == g]
            got, kept = ORACLES[name]([start[i] for i in own], [[s[i] for i in own] for s in grads], **hyper)
            for at, i in enumerate(own):
                xs[i] = got[at]
                for state, parts in kept.items():
                    states.setdefault(state, [None] * len(start))[i] = parts[at]
    return xs, states


def in_groups(params, groups, members):
    """The groups of an optimizer over a FlatParams."""
    names = list(params)
    rest = [{"match": [n for n, m in zip(names, members, strict=True) if m == g]} for g in range(1, len(groups))]
    return [{"params": params, **groups[0]}, *({**r, **h} for r, h in zip(rest, groups[1:], strict=True))]


def part(opt, state, i):
    return opt._layout.states[state].part(i)


# ---- long segments, several groups, the whole tail


SIZES = (1, 63, 64, 65, 1_000_003)
MEMBERS = (0, 1, 2, 0, 1)
SCALE, DECAY = 0.37, 0.8
LONG = [(n, i) for k, (n, i) in enumerate(CHOSEN) if n != CHOSEN[k - 1][0]]  # each rule once


@lru_cache(1)
def long_problem():
    """Gradients that are small whole numbers times a power of two for each element.

    A sum of few of them, times the powers of betas, is zero or far from it: no sign depends on rounding.
    """
    rng = np.random.default_rng(3)
    start = [(rng.choice((-1, 1), n) * rng.uniform(0.5, 2, n)).astype(np.float32) for n in SIZES]
    power = [2.0 ** rng.integers(-8, 3, n) for n in SIZES]
    grads = [
        [
            (rng.choice((-4, -2, -1, 0, 1, 2, 4), n) * e * less).astype(np.float32)
            for n, e in zip(SIZES, power, strict=True)
        ]
        for less in (1.0, 0.5)
    ]
    for step in grads:
        step[0][:] = 1.5
    return start, grads, SCALE * np.mean([global_norm(g) for g in grads])


def long_run(name, i, dtype, backend, threads=None):
    """Optimizer after two steps, norms of the gradients, and all that was left."""
    start, grads, bound = long_problem()
    params = fastgd.FlatParams({f"s{k}": p.astype(dtype) for k, p in enumerate(start)})
    groups = vary(setting(name, i))
    tail = dict(maximize=True, max_norm=bound, ema_decay=DECAY, zero_grad=True)
    given = in_groups(params, groups, MEMBERS)
    opt = fastgd.Optimizer(given, RULES[name](**groups[0]), backend=backend, threads=threads, **tail)
    norms = []
    for step in grads:
        for k, g in enumerate(step):
            params.grad[f"s{k}"] = g
        opt.step(scale=SCALE)
        assert not params.grad.flat.any()
        norms.append(opt.grad_norm)
    scalars = [*norms, *(x for s in opt.state_dict()["scalar_state"] for v in s.values() for x in v)]
    return opt, norms, [params.flat, opt.ema[0].flat, *opt.state.values(), np.array(scalars)]


@pytest.mark.parametrize(("name", "i"), LONG)
def test_long_segments_have_the_bits_of_numpy_and_equal_the_oracle(name, i):
    start, grads, bound = long_problem()
    used = [clip_global_norm([-SCALE * g.astype(np.float64) for g in step], bound) for step in grads]
    groups = vary(setting(name, i))
    (first, _), (xs, states) = (expect(name, groups, MEMBERS, start, used[:k]) for k in (1, 2))
    wanted = {f"p{k}": x for k, x in enumerate(xs)}
    wanted |= {f"ema{k}": e for k, e in enumerate(ema([start, first, xs], DECAY))}
    wanted |= {f"{state}{k}": x for state, parts in states.items() for k, x in enumerate(parts)}
    for dtype in TOLERANCE:
        opt, norms, left = long_run(name, i, dtype, "numpy")
        assert norms == pytest.approx(
            [SCALE * global_norm(g) for g in grads], rel=1e-6 if dtype == "float32" else 1e-13
        )
        assert min(norms) < bound < max(norms)
        assert set(opt.state) == set(states)
        got = {f"p{k}": p for k, p in enumerate(opt.params[0]["params"].values())}
        got |= {f"ema{k}": e for k, e in enumerate(opt.ema[0].values())}
        got |= {f"{state}{k}": part(opt, state, k) for state in states for k in range(len(SIZES))}
        worst = {k: error(got[k], x) for k, x in wanted.items()}
        assert {k: v for k, v in worst.items() if not v < TOLERANCE[dtype]} == {}, dtype
        for threads in (1, 2)[: available_threads()]:
            opt, _, other = long_run(name, i, dtype, "numba", threads)
            assert all(s._parallel == (threads > 1) for s in opt._layout.program.launches[0].sweeps)
            assert all(map(same_bits, left, other)), (dtype, threads)


def digests(threads):
    """Of what three rules leave: norms, sums over everything, counts."""
    runs = (long_run(*form, "float32", "numba", threads) for form in (("lamb", 0), ("prodigy", 0), ("adam", 6)))
    return [hashlib.sha256(b"".join(a.tobytes() for a in left)).hexdigest() for _, _, left in runs]


def test_three_threads_give_the_same_bits():
    """More than there may be here, so in a process of its own."""
    code = "from test_norm_rules import digests; print(*digests(3))"
    where = {"NUMBA_NUM_THREADS": "3", "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "cuda")))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | where, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == digests(1)


# ---- zero norms


ZEROS = {  # steps of six at which the first segment's gradient is zero
    "never": (),
    "first": (0, 1),
    "later": (3, 4, 5),
    "always": range(6),
}
SMALL = ((70,), (65,), (1,))


def small_problem(zero_parameters, zeros):
    rng = np.random.default_rng(8)
    start = [rng.choice((-1, 1), s) * rng.uniform(0.5, 2, s) for s in SMALL]
    start[0] *= not zero_parameters
    grads = [[rng.choice((-1, 1), s) * rng.uniform(0.1, 4, s) * (rng.random(s) > 0.1) for s in SMALL] for _ in range(6)]
    for k in ZEROS[zeros]:
        grads[k][0][:] = 0
    return start, grads


@backends
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("zero_parameters", [False, True], ids=["p", "p=0"])
@cases
def test_segments_whose_norms_are_zero(name, i, zero_parameters, zeros, backend):
    start, grads = small_problem(zero_parameters, zeros)
    hyper = setting(name, i)
    for dtype in TOLERANCE:
        params = [p.astype(dtype) for p in start]
        given = [[g.astype(dtype) for g in step] for step in grads]
        xs, states = expect(name, [hyper], (0, 0, 0), [p.copy() for p in params], given)
        opt = fastgd.Optimizer(params, RULES[name](**hyper), backend=backend)
        for step in given:
            opt.step(step)
        for k, x in enumerate(xs):
            assert np.isfinite(x).all()
            assert error(params[k], x) < 4 * TOLERANCE[dtype], k
            for state, parts in states.items():
                assert error(part(opt, state, k), parts[k]) < 4 * TOLERANCE[dtype], (state, k)


@backends
@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("lars", dict(lr=0.1, weight_decay=0.1, eps=0.0, momentum=0.9)),
        ("lars", dict(lr=0.1, always_adapt=True, trust_clip=True, eps=0.0)),
        ("lars", dict(lr=0.0, always_adapt=True, trust_clip=True)),
        ("novograd", dict(lr=0.1, eps=0.0)),
        ("novograd", dict(lr=0.1, eps=0.0, reg_inside_moment=True, weight_decay=0.1)),
        ("lamb", dict(lr=0.1, weight_decay=0.0, always_adapt=True)),
    ],
    ids=str,
)
def test_nothing_keeps_a_denominator_from_zero(name, hyper, backend):
    for zero_parameters in (False, True):
        for zeros in ZEROS:
            start, grads = small_problem(zero_parameters, zeros)
            params = [p.copy() for p in start]
            opt = fastgd.Optimizer(params, RULES[name](**hyper), backend=backend)
            for step in grads:
                opt.step(step)
            xs = start if hyper["lr"] == 0 else expect(name, [hyper], (0, 0, 0), start, grads)[0]
            for p, x in zip(params, xs, strict=True):
                assert np.isfinite(p).all() and error(p, x) < 1e-12


@totals
@backends
def test_no_estimate_is_made_before_the_first_gradient(name, backend):
    p = np.linspace(0.5, 2, 70)
    start = p.copy()
    opt = fastgd.Optimizer(p, RULES[name](weight_decay=0.1, decouple=True, use_bias_correction=True), backend=backend)
    first = opt.state_dict()["scalar_state"]
    for _ in range(3):
        opt.step(np.zeros(70))
        assert (opt.state_dict()["scalar_state"], opt.t) == (first, _ + 1)
        assert np.array_equal(p, start) and not opt.state["exp_avg"].any()
    opt.step(np.ones(70))
    (scalars,) = opt.state_dict()["scalar_state"]
    assert scalars["power1"] == [0.9] and not np.array_equal(p, start)


# ---- numbers whose squares float32 does not hold


RANGES = [
    ("lars", dict(lr=0.1, momentum=0.9, weight_decay=0.1, trust_coeff=0.1), 1.0, 1e-25),
    ("lars", dict(lr=0.1, always_adapt=True, trust_coeff=0.1, eps=0.0), 1.0, 1e-25),
    ("lars", dict(lr=0.1, always_adapt=True, trust_coeff=0.1, eps=0.0), 1e-25, 1e-25),
    ("lars", dict(lr=0.1, momentum=0.9, weight_decay=0.1, trust_coeff=0.1), 1.0, 1e20),
    ("lars", dict(lr=0.1, always_adapt=True, trust_coeff=0.1), 1e25, 1e20),
    ("lars", dict(lr=0.1, weight_decay=0.1, trust_coeff=0.1), 1e25, 1.0),
    ("lars", dict(lr=0.1, weight_decay=0.1, trust_coeff=0.1, nesterov=True, momentum=0.5), 1e25, 1e-25),
    ("lars", dict(lr=0.1, always_adapt=True, trust_coeff=0.1), 1e-25, 1.0),
    ("novograd", dict(lr=0.1, weight_decay=0.1), 1.0, 1e20),
    ("novograd", dict(lr=0.1, eps=0.0), 1.0, 1e-25),
    ("novograd", dict(lr=0.1, reg_inside_moment=True, weight_decay=0.1), 1.0, 1e20),
    ("novograd", dict(lr=0.1, reg_inside_moment=True, eps=0.0), 1.0, 1e-25),
    ("novograd", dict(lr=0.1, weight_decay=0.1), 1e25, 1e20),
    ("novograd", dict(lr=1e-26, eps=0.0), 1e-25, 1e-25),
    ("lamb", dict(lr=0.1), 1e16, 1.0),
    ("lamb", dict(lr=0.1), 1e-16, 1.0),
    ("lamb", dict(lr=0.1, adam_w_mode=False, always_adapt=True, weight_decay=0.0), 1e16, 1.0),
    ("lamb", dict(lr=0.1, adam_w_mode=False, always_adapt=True, weight_decay=0.0), 1e-16, 1.0),
    ("mars", dict(lr=0.1, fallback=None), 1.0, 1e20),
    ("mars", dict(lr=0.1, fallback=None), 1e-18, 1e-25),
    ("mars", dict(lr=0.1, fallback=None, mars_type="mars-lion"), 1.0, 1e20),
]


@backends
@pytest.mark.parametrize(("name", "hyper", "p", "g"), RANGES, ids=str)
def test_float32_squares_neither_vanish_nor_overflow(name, hyper, p, g, backend):
    rng = np.random.default_rng(2)
    shapes = (70, 4097)
    start = [(p * rng.choice((-1, 1), n) * rng.uniform(0.5, 2, n)).astype(np.float32) for n in shapes]
    grads = [
        [(g * rng.choice((-1, 1), n) * rng.uniform(0.5, 2, n)).astype(np.float32) for n in shapes] for _ in range(4)
    ]
    params = [x.copy() for x in start]
    opt = fastgd.Optimizer(params, RULES[name](**hyper), max_norm=1e30, backend=backend)
    for step in grads:
        opt.step(step)
    assert opt.grad_norm == pytest.approx(global_norm(grads[-1]), rel=1e-6)
    xs, _ = expect(name, [hyper], (0, 0), start, grads)
    for q, x, before in zip(params, xs, start, strict=True):
        assert error(q, x) < 2e-6 and np.any(q != before)


@backends
def test_large_and_small_elements_of_one_segment(backend):
    """Blocks that only one of the two parts holds, and the largest numbers there are."""
    n = 3 * 4096 + 5
    grads = [np.full(n, 1e-25, np.float32) for _ in range(2)]
    grads[0][4096:8192], grads[1][-1] = 1e20, np.float32(3.4e38)
    for g in grads:
        p = np.ones(n, np.float32)
        opt = fastgd.NovoGrad(p, lr=0.1, max_norm=1e38, backend=backend)
        opt.step(g)
        clipped = min(1.0, 1e38 / (global_norm([g]) + 1e-6)) * g.astype(np.float64)
        (x,), _ = ORACLES["novograd"]([np.ones(n)], [[clipped]], lr=0.1)
        assert error(p, x) < 2e-6
        ((norm,),) = (s["n"] for s in opt.state_dict()["scalar_state"])
        assert norm == pytest.approx(global_norm([clipped]), rel=1e-6)


# ---- Prodigy and DAdaptAdam: one estimate for all groups


def adapting(name, backend="numba", lrs=(0.5, 0.25), **hyper):
    """Two groups of two segments, one of which both rules estimate from."""
    params = fastgd.FlatParams({"a": np.linspace(-1, 1, 70), "b": np.ones(65), "c": np.full((2, 3), 2.0)})
    hyper = dict(d0=0.01, weight_decay=0.1) | hyper
    groups = in_groups(params, [dict(lr=lrs[0]), dict(lr=lrs[1])], (0, 1, 0))
    return params, fastgd.Optimizer(groups, RULES[name](**hyper), backend=backend)


def waves(params, k):
    return {n: np.cos(np.arange(v.size) + k).reshape(v.shape) * 0.3 + np.sign(v) for n, v in params.items()}


def walk(params, opt, steps):
    for k in steps:
        for n, g in waves(params, k).items():
            params.grad[n] = g
        opt.step()


def everything(params, opt):
    return params.flat.tobytes(), repr(opt.state_dict())


@totals
@backends
@pytest.mark.parametrize("lrs", [(0.5, 0.25), (0.5, 0.0), (0.0, 0.7), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("decouple", [True, False])
def test_groups_may_differ_in_lr(name, lrs, decouple, backend):
    """A group of lr 0 neither moves nor counts."""
    hyper = dict(d0=0.01, weight_decay=0.1, decouple=decouple, growth_rate=1.3, use_bias_correction=True)
    params, opt = adapting(name, backend, lrs, **hyper)
    start, grads = [p.copy() for p in params.values()], []
    ds = []
    for k in range(8):
        grads.append([g.copy() for g in waves(params, k).values()])
        walk(params, opt, [k])
        ds.append(opt.state_dict()["scalar_state"][0]["d"][0])
    groups = [hyper | dict(lr=lr) for lr in lrs]
    xs, _ = expect(name, groups, (0, 1, 0), start, grads)
    assert max(map(error, params.values(), xs)) < 1e-12
    if lrs == (0.0, 0.0):
        assert ds == [0.01] * 8
    else:
        assert ds[-1] > 0.01 and all(b <= 1.3 * a * (1 + 1e-12) for a, b in pairwise(ds) if a > 0.01)
    for lr, names in zip(lrs, ("ac", "b"), strict=True):
        moved = [n for n, s in zip("abc", start, strict=True) if n in names and np.any(params[n] != s)]
        assert bool(moved) == (lr > 0)


CHANGES = [
    (dict(growth_rate=1.5), "growth_rate: given inf and 1.5"),
    (dict(betas=(0.9, 0.9)), "(beta3|rest): given"),
    (dict(d0=0.5), "d0: given 1e-06 and 0.5"),
    (dict(d_coef=2.0), "d_coef: given 1.0 and 2.0"),
]
DIFFERENT = [
    pytest.param(name, change, message, early, id=f"{name}-{change}-{early}")
    for name in ("prodigy", "dadaptadam")
    for change, message in CHANGES
    for early in ("built", "changed")
    if (name == "prodigy" or change.keys().isdisjoint(("d_coef", "d0"))) and ("d0" not in change or early == "changed")
]


@pytest.mark.parametrize(("name", "change", "message", "early"), DIFFERENT)
def test_groups_that_differ_in_what_makes_d_are_refused(name, change, message, early):
    early = early == "built"
    params = fastgd.FlatParams({"a": np.ones(3), "b": np.ones(2)})
    params.grad.flat[:] = 1
    joining = {"match": "b"} | (change if early else {})
    opt = fastgd.Optimizer([{"params": params}, joining], RULES[name]())
    if not early:
        opt.step()
        opt.param_groups[1].update(change)
    before = [params.flat.tobytes(), *(s.tobytes() for s in opt.state.values()), opt.t]
    scalars = [launch.scalars() for launch in opt._layout.program.launches]
    for _ in range(2):
        with pytest.raises(HyperparameterError, match=f"has one d and one .* for all its groups, .*{message}"):
            opt.step()
    assert before == [params.flat.tobytes(), *(s.tobytes() for s in opt.state.values()), opt.t]
    assert scalars == [launch.scalars() for launch in opt._layout.program.launches]
    opt.param_groups[0].update(change)
    opt.step()
    assert opt.t == 2 - early


@totals
@backends
def test_the_estimate_stays_where_gradients_turn_round(name, backend):
    start, hyper = [np.full(5, 2.0)], dict(d0=0.01, betas=(0.5, 0.9))
    grads = [[np.full(5, g)] for g in (1.0, 1.0, 1.0, 1.0, -9.0, -9.0, 1.0, -9.0)]
    p = [start[0].copy()]
    opt = fastgd.Optimizer(p, RULES[name](**hyper), backend=backend)
    estimates, numerators = [], []
    for step in grads:
        opt.step(step)
        (scalars,) = opt.state_dict()["scalar_state"]
        estimates += scalars["d"]
        numerators += scalars["numerator"]
    assert estimates == sorted(estimates) and estimates[0] < estimates[4]
    assert any(b < a for a, b in pairwise(numerators))
    assert error(p[0], ORACLES[name](start, grads, **hyper)[0][0]) < 1e-12


@totals
@backends
def test_a_rate_of_0_is_no_step_at_all(name, backend):
    """As in a warm-up from 0, and in the middle of a run."""
    hyper = dict(d0=0.01, use_bias_correction=True, weight_decay=0.1)
    runs = []
    for rates in ((0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0), (1.0, 0.5, 1.0)):
        p = np.linspace(1.0, 2.0, 70)
        opt = fastgd.Optimizer(p, RULES[name](**hyper), backend=backend)
        for lr in rates:
            opt.param_groups[0]["lr"] = lr
            opt.step(np.cos(np.arange(70)) + 2.0 if lr else np.full(70, 9.0))
        runs.append([p, *opt.state.values(), repr(opt.state_dict()["scalar_state"])])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True)) and runs[0][0][0] < 1.0


@totals
def test_groups_that_start_from_another_d_are_refused(name):
    groups = [{"params": np.ones(3)}, {"params": np.ones(2), "d0": 0.5}]
    with pytest.raises(HyperparameterError, match=r"has one d for all its groups, .* starts: given 1e-06 and 0\.5"):
        fastgd.Optimizer(groups, RULES[name]())


@totals
@backends
def test_a_state_taken_and_loaded_goes_on_bit_by_bit(name, backend):
    params, opt = adapting(name, backend, use_bias_correction=True)
    walk(params, opt, range(4))
    other, resumed = adapting(name, backend, (9.0, 9.0), weight_decay=0.7, use_bias_correction=True)
    other.flat[:] = params.flat
    saved = opt.state_dict()
    saved["scalar_state"] = json.loads(json.dumps(saved["scalar_state"]))
    resumed.load_state_dict(saved)
    twin = copy.deepcopy(opt)
    for p, o in ((params, opt), (other, resumed), (twin.params[0]["params"], twin)):
        walk(p, o, range(4, 9))
    assert everything(params, opt) == everything(other, resumed) == everything(twin.params[0]["params"], twin)
    assert opt.state_dict()["scalar_state"][0]["power1"] == pytest.approx([opt.rule.betas[0] ** 9])
    with pytest.raises(CheckpointError, match="scalars must have lengths"):
        opt.load_state_dict(saved | {"scalar_state": [{}]})


@totals
@backends
def test_parameters_that_join_count_as_if_their_gradients_had_been_zero(name, backend):
    """The estimate d, its sums and powers go on; the new parameters are where they start from."""
    q = np.linspace(1, 2, 66)
    params, opt = adapting(name, backend, weight_decay=0.0, use_bias_correction=True)
    there, same = adapting(name, backend, weight_decay=0.0, use_bias_correction=True)
    r = q.copy()
    same.add_param_group({"params": r, "lr": 0.4})
    walk(params, opt, range(4))
    for k in range(4):
        same.step([waves(there, k), np.zeros(66)])
    before = opt.state_dict()["scalar_state"]
    opt.add_param_group({"params": q, "lr": 0.4})
    assert opt.state_dict()["scalar_state"] == before == same.state_dict()["scalar_state"]
    for k in range(4, 8):
        opt.step([waves(params, k), np.sin(q)])
        same.step([waves(there, k), np.sin(r)])
    assert same_bits(params.flat, there.flat) and same_bits(q, r)
    assert opt.state_dict()["scalar_state"] == same.state_dict()["scalar_state"] != before
    assert opt.state_dict()["scalar_state"][0]["power1"] == pytest.approx([opt.rule.betas[0] ** 8])
    if name == "prodigy":
        assert np.array_equal(part(opt, "p0", 3), np.linspace(1, 2, 66))


@totals
def test_arrays_taken_by_name_leave_the_estimate_alone(name):
    params, opt = adapting(name)
    other, same = adapting(name)
    walk(params, opt, range(3))
    walk(other, same, range(3))
    opt.add_param_group({"match": "c", "lr": 0.5})
    for p, o in ((params, opt), (other, same)):
        walk(p, o, range(3, 6))
    assert same_bits(params.flat, other.flat)
    assert opt.state_dict()["scalar_state"] == same.state_dict()["scalar_state"]
    with pytest.raises(HyperparameterError, match="must agree in decouple"):
        opt.add_param_group({"match": "c", "decouple": name == "dadaptadam"})
    assert len(opt.param_groups) == 3


@totals
@backends
def test_a_schedule_of_lr_is_its_values(name, backend):
    params, opt = adapting(name, backend)
    other, same = adapting(name, backend)
    values = [0.5, 0.0, 1.0, 0.25, 0.0]
    opt.param_groups[0]["lr"] = lambda k: values[k]
    for k, value in enumerate(values):
        same.param_groups[0]["lr"] = value
        walk(params, opt, [k])
        walk(other, same, [k])
        assert everything(params, opt) == everything(other, same)


@cases
def test_a_report_between_steps_changes_nothing_and_is_the_step(name, i):
    hyper = setting(name, i)
    params, same = ([np.linspace(-1, 1, 70), np.ones(65)] for _ in range(2))
    opt, other = (fastgd.Optimizer(p, RULES[name](**hyper), max_norm=5.0) for p in (params, same))
    for k in range(4):
        g = [np.cos(np.arange(70.0) + k), np.sin(np.arange(65.0) - k)]
        saved = repr(opt.state_dict()), [p.copy() for p in params]
        rows = opt.report(g, scale=0.5)
        opt.report([10 * x for x in g])
        assert repr(opt.state_dict()) == saved[0] and all(map(np.array_equal, params, saved[1]))
        opt.step(g, scale=0.5)
        other.step(g, scale=0.5)
        for row, p, before in zip(rows, params, saved[1], strict=True):
            assert row.update_norm == pytest.approx(np.linalg.norm(p - before), rel=1e-9, abs=1e-15)
    assert all(map(same_bits, params, same))
    assert opt.state_dict()["scalar_state"] == other.state_dict()["scalar_state"]


# ---- NovoGrad: one norm for each segment


@backends
def test_the_norms_of_segments_are_state(backend):
    params = fastgd.FlatParams({"a": np.ones(70), "b": np.ones(65), "c": np.ones(1)})
    opt = fastgd.NovoGrad([{"params": params}, {"match": "b", "lr": 0.2}], lr=0.1, betas=(0.9, 0.5), backend=backend)
    norms = []
    for k in range(3):
        walk(params, opt, [k])
        norms.append([np.sum(g**2) for g in waves(params, k).values()])
    squares = norms[0]
    for new in norms[1:]:
        squares = [0.5 * s + 0.5 * n for s, n in zip(squares, new, strict=True)]
    saved = opt.state_dict()
    assert saved["scalar_state"] == [{"n": pytest.approx([math.sqrt(s) for s in squares], rel=1e-12)}]
    other = fastgd.FlatParams({n: np.array(v) for n, v in params.items()})
    resumed = fastgd.NovoGrad([{"params": other}, {"match": "b"}], backend=backend)
    saved["scalar_state"] = json.loads(json.dumps(saved["scalar_state"]))
    resumed.load_state_dict(saved)
    twin = copy.deepcopy(opt)
    opt.add_param_group({"match": ["c", "b"], "lr": 0.3})
    assert opt.state_dict()["scalar_state"] == saved["scalar_state"]
    opt.param_groups[2]["lr"] = 0.1  # that of c, as before
    opt.add_param_group({"match": "b", "lr": 0.2})
    for p, o in ((params, opt), (other, resumed), (twin.params[0]["params"], twin)):
        walk(p, o, range(3, 6))
    assert same_bits(params.flat, other.flat) and same_bits(params.flat, twin.params[0]["params"].flat)
    assert opt.state_dict()["scalar_state"] == resumed.state_dict()["scalar_state"]
    opt.add_param_group({"params": {"d": np.ones(3)}})
    assert opt.state_dict()["scalar_state"][0]["n"] == [*resumed.state_dict()["scalar_state"][0]["n"], 0.0]


@backends
def test_norms_stay_with_their_segments_where_groups_have_other_options(backend):
    """A launch for each set of options; a segment in the middle changes from one to the other."""
    params = fastgd.FlatParams({"a": np.ones(70), "b": np.ones(65), "c": np.ones(1)})
    opt = fastgd.NovoGrad([{"params": params}, {"match": "a", "reg_inside_moment": True}], lr=0.1, backend=backend)
    walk(params, opt, range(2))
    before = {k: v for x in opt._layout.program.launches for k, v in x.scalars().items()}
    assert len(opt.state_dict()["scalar_state"]) == 2 and len(before) == 3 == len(set(before.values()))
    opt.add_param_group({"match": "b", "reg_inside_moment": True})
    assert {k: v for x in opt._layout.program.launches for k, v in x.scalars().items()} == before


# ---- gradients that are not finite


@backends
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("how", ["skip", "raise"])
@cases
def test_a_step_that_is_not_taken_leaves_every_number(name, i, how, bad, backend):
    params = [np.linspace(-1, 1, 70), np.ones(65)]
    opt = fastgd.Optimizer(params, RULES[name](**setting(name, i)), on_nonfinite=how, backend=backend)
    same = copy.deepcopy(opt)
    for k in range(4):
        g = [np.cos(np.arange(70.0) + k), np.sin(np.arange(65.0) - k)]
        wrong = [x.copy() for x in g]
        wrong[1][3] = bad
        before = repr(opt.state_dict())
        if how == "raise":
            with pytest.raises(NonFiniteError, match=r"the gradient of '1' is (nan|inf) at \(3,\)"):
                opt.step(wrong)
        else:
            opt.step(wrong)
        assert repr(opt.state_dict()) == before and opt.t == k
        opt.step(g)
        same.step(g)
    assert repr(opt.state_dict()) == repr(same.state_dict())
    assert all(map(same_bits, opt.params, same.params))


@backends
@cases
def test_what_is_not_finite_propagates(name, i, backend):
    """Into its own segment, and, of a rule that sums over all, into the others."""
    params = [np.linspace(-1, 1, 70), np.ones(65)]
    opt = fastgd.Optimizer(params, RULES[name](**setting(name, i)), backend=backend)
    g = [np.cos(np.arange(70.0)), np.sin(np.arange(65.0) + 1)]
    opt.step([x.copy() for x in g])
    g[1][3] = math.nan
    opt.step(g)
    assert np.isnan(params[1][3])
    assert np.isfinite(params[0]).all() or plan(opt.rule).level == "total"


# ---- a step that is stopped


def novograd(backend):
    params = fastgd.FlatParams({"w": np.linspace(-1, 1, 70), "b": np.ones(3)})
    tail = dict(max_norm=5.0, ema_decay=0.9, zero_grad=True)
    return fastgd.NovoGrad([{"params": params}, {"match": "b", "lr": 0.5}], lr=0.1, backend=backend, **tail)


def two_novograds(backend):
    params = fastgd.FlatParams({"w": np.linspace(-1, 1, 70), "b": np.ones(3)})
    groups = [{"params": params}, {"match": "b", "reg_inside_moment": True}]
    return fastgd.NovoGrad(groups, lr=0.1, backend=backend)


def prodigy(backend):
    params = fastgd.FlatParams({"w": np.linspace(-1, 1, 70), "b": np.ones(3)})
    groups = [{"params": params}, {"match": "b", "lr": 0.5}]
    return fastgd.Prodigy(
        groups, d0=0.01, use_bias_correction=True, lookahead=(2, 0.5), zero_grad=True, backend=backend
    )


class Drill:
    """An optimizer that takes its second step again and again, stopped before another line each time."""

    def __init__(self, make, backend):
        self.opt = opt = make(backend)
        self.params = params = opt.params[0]["params"]
        walk(params, opt, [0])
        for n, g in waves(params, 1).items():
            params.grad[n] = g
        averages = [] if opt.ema is None else [opt.ema[0].flat]
        self.arrays = [params.flat, params.grad.flat, *averages]
        self.before = [a.copy() for a in self.arrays]
        self.saved = opt.state_dict()
        self.whole = self.memory()
        opt.step()
        self.last = self.memory()

    def memory(self):
        found = [*self.arrays, *self.opt.state.values()]
        return b"".join(a.tobytes() for a in found), repr(self.opt.state_dict()["scalar_state"]), self.opt.t

    def restore(self):
        for array, before in zip(self.arrays, self.before, strict=True):
            array[:] = before
        self.opt.load_state_dict(self.saved)

    def stopped(self, error, again=False):
        """Number of the line, from the first to the last, each after the step was stopped there."""
        for k in count(1):
            self.restore()
            stop = Stop(k, error, again)
            try:
                with stop:
                    self.opt.step()
            except type(error):
                pass
            if stop.left > 0:
                break
            yield k

    def check_all_or_nothing(self, again):
        """Hold every Ctrl-C to the whole step or none of it; the number of lines."""
        seen, k = set(), 0
        assert self.whole != self.last
        for k in self.stopped(KeyboardInterrupt(), again):
            now = self.memory()
            assert now in (self.whole, self.last), f"line {k}"
            seen.add(now)
            if now == self.whole:
                self.opt.step()
            assert self.memory() == self.last, f"line {k}"
        assert seen == {self.whole, self.last}
        return k

    def check_nothing_or_a_mark(self):
        """Hold every error to a step not begun, or marked; the number of marks."""
        marked = 0
        for k in self.stopped(MemoryError("drill")):
            if self.opt._begun != self.opt.t:
                marked += 1
                with pytest.raises(FastGDError, match="step 2 failed half-way"):
                    self.opt.step()
                self.restore()
            if self.opt.t == 1:
                assert self.memory() == self.whole, f"line {k}"
                self.opt.step()
            assert self.memory() == self.last, f"line {k}"
        return marked


MAKERS = [pytest.param(m, b, id=f"{m.__name__}-{b}") for m in (novograd, two_novograds, prodigy) for b in BACKENDS]


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize(("make", "backend"), MAKERS)
def test_ctrl_c_before_any_line_leaves_the_kept_numbers_whole(make, backend, again):
    drill = Drill(make, backend)
    assert drill.whole[1] != drill.last[1]  # scalar states
    assert drill.check_all_or_nothing(again) > 60


@pytest.mark.parametrize(("make", "backend"), MAKERS)
def test_an_error_before_any_line_leaves_the_kept_numbers_or_a_mark(make, backend):
    assert Drill(make, backend).check_nothing_or_a_mark() > 1


# ---- what is said of them


@pytest.mark.parametrize(("name", "sums"), [("lamb", "pp, uu"), ("lars", "pp, gg"), ("mars", "cc")])
def test_sums_are_named_as_the_rule_names_them(name, sums):
    with pytest.raises(RuleError, match=rf"sums over whole arrays \({sums}\)"):
        fastgd.kernels.device(name)


@backends
@pytest.mark.parametrize(("g", "rel"), [(1e-33, 1e-6), (1e-35, 1e-3)])
def test_norm_of_the_smallest_gradients(g, rel, backend):
    opt = fastgd.GD(np.ones(70, np.float32), max_norm=1.0, backend=backend)
    opt.step(np.full(70, g, np.float32))
    assert opt.grad_norm == pytest.approx(global_norm([np.full(70, g, np.float32)]), rel=rel, abs=0)
