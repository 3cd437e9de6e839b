"""Schedules: values at the corners, what torch gives, and what an optimizer makes of them."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import sys

import numpy as np
import pytest

import fastgd
from fastgd import schedules
from fastgd.kernels import cpu
from fastgd.kernels.errors import HyperparameterError
from fastgd.schedules import (
    Schedule,
    chain,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    each,
    exponential,
    inverse_sqrt,
    linear,
    multi_step,
    one_cycle,
    piecewise,
    polynomial,
    sequence,
    step,
    swa,
    warmup_stable_decay,
)

STEPS = 200
FACTORIES = [name for name in schedules.__all__ if name != "Schedule"]

# One of each, away from the defaults.
EXAMPLES = {
    "constant(0.3)": constant(0.3),
    "step(0.1, 30, gamma=0.5)": step(0.1, 30, gamma=0.5),
    "multi_step(0.1, (30, 60), gamma=0.5)": multi_step(0.1, [30, 60], gamma=0.5),
    "exponential(0.1, gamma=0.9)": exponential(0.1, gamma=0.9),
    "polynomial(0.1, 50, power=2.0, end=0.01)": polynomial(0.1, 50, power=2.0, end=0.01),
    "linear(0.1, 50, warmup=10)": linear(0.1, 50, warmup=10),
    "cosine(0.1, 1000, warmup=100)": cosine(0.1, 1000, warmup=100),
    "cosine_restarts(0.1, 10, factor=2)": cosine_restarts(0.1, 10, factor=2),
    "one_cycle(0.1, 50, anneal='linear')": one_cycle(0.1, 50, anneal="linear"),
    "inverse_sqrt(0.1, 10)": inverse_sqrt(0.1, 10),
    "warmup_stable_decay(0.1, 50, 10, 20, shape='sqrt')": warmup_stable_decay(0.1, 50, 10, 20, shape="sqrt"),
    "piecewise((5, 9), (0.1, 0.2, 0.3))": piecewise([5, 9], [0.1, 0.2, 0.3]),
    "cyclic(0.01, 0.1, 5, down=7)": cyclic(0.01, 0.1, 5, down=7),
    "chain(linear(0.0, 5, end=1.0), 0.1)": chain(linear(0.0, 5, end=1.0), 0.1),
    "sequence((0.1, cosine(0.2, 30)), range(5, 6))": sequence([0.1, cosine(0.2, 30)], range(5, 6)),
    "each(linear(0.85, 20, end=0.95), 0.999)": each(linear(0.85, 20, end=0.95), 0.999),
    "swa(5, every=3)": swa(5, every=3),
}


def values(schedule, steps=STEPS):
    return [schedule(k) for k in range(steps)]


# ---- against torch: ours, the rate torch is given, and torch's scheduler made of its module and an optimizer

TORCH = {
    "constant": (piecewise([60], [0.03, 0.1]), 0.1, lambda lr, o: lr.ConstantLR(o, factor=0.3, total_iters=60)),
    "step": (step(0.1, 30, gamma=0.7), 0.1, lambda lr, o: lr.StepLR(o, 30, gamma=0.7)),
    "multi_step": (multi_step(0.1, [7, 50, 51]), 0.1, lambda lr, o: lr.MultiStepLR(o, [7, 50, 51])),
    "exponential": (exponential(0.1, 0.97), 0.1, lambda lr, o: lr.ExponentialLR(o, 0.97)),
    "growing": (exponential(1e-7, 1.1), 1e-7, lambda lr, o: lr.ExponentialLR(o, 1.1)),
    "polynomial": (polynomial(0.1, 150), 0.1, lambda lr, o: lr.PolynomialLR(o, 150)),
    "square": (polynomial(0.1, 150, power=2.5), 0.1, lambda lr, o: lr.PolynomialLR(o, 150, power=2.5)),
    "linear": (linear(0.1 * 0.9, 120, end=0.1 * 0.2), 0.1, lambda lr, o: lr.LinearLR(o, 0.9, 0.2, 120)),
    "rise": (linear(0.1 / 3, 5, end=0.1), 0.1, lambda lr, o: lr.LinearLR(o)),
    "cosine": (cosine(0.1, 200, end=0.003), 0.1, lambda lr, o: lr.CosineAnnealingLR(o, 200, eta_min=0.003)),
    "cosine to 0": (cosine(0.1, 200), 0.1, lambda lr, o: lr.CosineAnnealingLR(o, 200)),
    "warm cosine": (
        cosine(0.1, 200, warmup=20, start=0.01, end=0.003),
        0.1,
        lambda lr, o: lr.SequentialLR(
            o, [lr.LinearLR(o, 0.1, 1.0, 20), lr.CosineAnnealingLR(o, 180, eta_min=0.003)], [20]
        ),
    ),
    "restarts": (
        cosine_restarts(0.1, 17, end=0.01),
        0.1,
        lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 17, eta_min=0.01),
    ),
    "longer restarts": (
        cosine_restarts(0.1, 7, factor=2),
        0.1,
        lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 7, T_mult=2),
    ),
    "one_cycle": (
        one_cycle(0.1, 200, pct_start=0.23),
        0.1,
        lambda lr, o: lr.OneCycleLR(o, 0.1, total_steps=200, pct_start=0.23),
    ),
    "one_cycle linear": (
        one_cycle(0.1, 200, anneal="linear", div_factor=10.0, final_div_factor=100.0),
        0.1,
        lambda lr, o: lr.OneCycleLR(
            o, 0.1, total_steps=200, anneal_strategy="linear", div_factor=10.0, final_div_factor=100.0
        ),
    ),
    "one_cycle in three": (
        one_cycle(0.1, 200, three_phase=True),
        0.1,
        lambda lr, o: lr.OneCycleLR(o, 0.1, total_steps=200, three_phase=True),
    ),
    "cyclic": (cyclic(0.01, 0.1, 13), 0.1, lambda lr, o: lr.CyclicLR(o, 0.01, 0.1, 13)),
    "cyclic halved": (
        cyclic(0.01, 0.1, 13, down=21, mode="triangular2"),
        0.1,
        lambda lr, o: lr.CyclicLR(o, 0.01, 0.1, 13, 21, mode="triangular2"),
    ),
    "cyclic damped": (
        cyclic(0.01, 0.1, 21, down=8, mode="exp_range", gamma=0.99),
        0.1,
        lambda lr, o: lr.CyclicLR(o, 0.01, 0.1, 21, 8, mode="exp_range", gamma=0.99),
    ),
    "sequence": (
        sequence([0.01, exponential(0.1, 0.9), step(0.1, 20)], [30, 90]),
        0.1,
        lambda lr, o: lr.SequentialLR(
            o,
            [lr.ConstantLR(o, factor=0.1, total_iters=200), lr.ExponentialLR(o, 0.9), lr.StepLR(o, 20)],
            [30, 90],
        ),
    ),
    "chain": (
        chain(piecewise([20], [0.5, 1.0]), exponential(0.1, 0.98), multi_step(1.0, [77])),
        0.1,
        lambda lr, o: lr.ChainedScheduler(
            [lr.ConstantLR(o, factor=0.5, total_iters=20), lr.ExponentialLR(o, 0.98), lr.MultiStepLR(o, [77])]
        ),
    ),
    "inverse_sqrt": (
        inverse_sqrt(0.1, 40),
        0.1,
        lambda lr, o: lr.LambdaLR(o, lambda k: min(k / 40, math.sqrt(40 / k) if k else 0.0)),
    ),
}


def drive(make, rate, name="lr"):
    """Values that a torch scheduler gives, as a torch optimizer sees them."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0][name])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("case", TORCH)
def test_same_values_as_torch(case):
    ours, rate, make = TORCH[case]
    theirs = drive(make, rate)
    assert values(ours) == pytest.approx(theirs, rel=1e-12, abs=0)
    assert len(set(theirs)) > 1


@pytest.mark.parametrize("three_phase", [False, True])
def test_momentum_cycles_as_in_torch(three_phase):
    ours = one_cycle(0.85, 200, div_factor=0.85 / 0.95, final_div_factor=1.0, three_phase=three_phase)
    theirs = drive(lambda lr, o: lr.OneCycleLR(o, 0.1, total_steps=200, three_phase=three_phase), 0.1, "momentum")
    assert values(ours) == pytest.approx(theirs, rel=1e-12, abs=0)
    ours = cyclic(0.9, 0.8, 13, down=21, mode="triangular2")
    theirs = drive(lambda lr, o: lr.CyclicLR(o, 0.01, 0.1, 13, 21, mode="triangular2"), 0.1, "momentum")
    assert values(ours) == pytest.approx(theirs, rel=1e-12, abs=0)


# ---- values by hand


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(3), {0: 3.0, 10**12: 3.0}),
        (step(1.0, 5, gamma=0.5), {0: 1.0, 4: 1.0, 5: 0.5, 14: 0.25, 10**12: 0.0}),
        (step(1.0, 5, gamma=0.0), {4: 1.0, 5: 0.0}),
        (multi_step(1.0, [2, 3], gamma=0.5), {1: 1.0, 2: 0.5, 3: 0.25, 10**12: 0.25}),
        (multi_step(1.0, []), {0: 1.0, 10**12: 1.0}),
        (exponential(1.0, 0.5), {0: 1.0, 10: 2.0**-10, 10**12: 0.0}),
        (exponential(1.0, 2.0), {10: 1024.0, 10**12: math.inf}),
        (polynomial(1.0, 4, power=2.0, end=0.5), {0: 1.0, 2: 0.625, 4: 0.5, 10**12: 0.5}),
        (linear(0.3, 7, end=0.1), {0: 0.3, 7: 0.1, 10**12: 0.1}),
        (linear(0.3, 7, end=0.1, warmup=2, start=0.2), {0: 0.2, 1: 0.25, 2: 0.3, 7: 0.1, 8: 0.1}),
        (cosine(0.3, 9, end=0.1), {0: 0.3, 3: 0.25, 6: 0.15, 9: 0.1, 10: 0.1, 10**12: 0.1}),
        (cosine(0.3, 10, warmup=4, start=0.1), {0: 0.1, 2: 0.2, 4: 0.3, 7: 0.15, 10: 0.0}),
        (cosine_restarts(1.0, 4), {0: 1.0, 2: 0.5, 4: 1.0, 10**12: 1.0, 10**12 + 2: 0.5, 4 * 10**18 + 2: 0.5}),
        # With factor 3 the cycles start at 4 * (3**n - 1) / 2.
        (cosine_restarts(1.0, 4, factor=3), {4: 1.0, 10: 0.5, 16: 1.0, 2 * (3**33 - 1): 1.0, 4 * 3**33 - 2: 0.5}),
        (one_cycle(1.0, 11, pct_start=0.5, anneal="linear", div_factor=2.0), {0: 0.5, 10: 5e-5, 10**12: 5e-5}),
        (one_cycle(1.0, 10, pct_start=0.5), {4: 1.0}),
        (one_cycle(1.0, 10, pct_start=0.4, div_factor=2.0, three_phase=True), {0: 0.5, 3: 1.0, 6: 0.5, 9: 5e-5}),
        (one_cycle(1.0, 10, pct_start=1.0, div_factor=2.0), {0: 0.5, 9: 1.0, 10: 1.0}),
        (inverse_sqrt(1.0, 4, start=0.5), {0: 0.5, 2: 0.75, 4: 1.0, 16: 0.5, 10**12: 2e-6}),
        (warmup_stable_decay(1.0, 10, 2, 4, end=0.5), {1: 0.5, 2: 1.0, 6: 1.0, 8: 0.75, 10: 0.5, 10**12: 0.5}),
        (warmup_stable_decay(1.0, 10, 2, 4, end=0.5, shape="sqrt"), {6: 1.0, 7: 0.75, 10: 0.5}),
        (warmup_stable_decay(1.0, 10, 0, 6, shape="cosine"), {0: 1.0, 4: 1.0, 6: 0.75, 7: 0.5, 8: 0.25, 10: 0.0}),
        (piecewise([2, 4], [3, 1, 2]), {0: 3.0, 1: 3.0, 2: 1.0, 4: 2.0, 10**12: 2.0}),
        (piecewise([], [0.5]), {0: 0.5, 7: 0.5}),
        (cyclic(1.0, 2.0, 2, down=4), {0: 1.0, 1: 1.5, 2: 2.0, 4: 1.5, 6: 1.0, 6 * 10**12 + 4: 1.5}),
        (cyclic(1.0, 2.0, 2, mode="triangular2"), {2: 2.0, 6: 1.5, 10: 1.25, 10**12 + 2: 1.0}),
        (cyclic(1.0, 2.0, 2, mode="exp_range", gamma=0.5), {1: 1.25, 2: 1.25, 3: 1.0625, 10**12 + 2: 1.0}),
        (chain(2, lambda k: k + 1, constant(0.5)), {0: 1.0, 3: 4.0}),
        (sequence([lambda k: k, 7, linear(1.0, 4)], [3, 5]), {0: 0, 2: 2, 3: 7.0, 5: 1.0, 7: 0.5, 9: 0.0, 10**12: 0.0}),
        (each(0.9, lambda k: 1 / (1 + k)), {0: (0.9, 1.0), 3: (0.9, 0.25)}),
        (
            swa(4, every=3),
            {0: 1.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 1.0, 6: 0.5, 9: 2 / 3, 3 * 10**12: 10**12 / (10**12 + 1)},
        ),
    ],
)
def test_values_at_the_corners(schedule, expected):
    for k, value in expected.items():  # 10**12 would not end if a schedule went there step by step
        assert schedule(k) == pytest.approx(value, rel=1e-14, abs=1e-16), k


@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize(("value", "start", "end"), [(0.3, 0.1, 0.7), (0.1, 0.0, 0.03)])
def test_the_ends_are_exact_and_nothing_jumps(schedule, value, start, end):
    made = schedule(value, 1000, end=end, warmup=77, start=start)
    assert [made(k) for k in (0, 77, 1000, 1001)] == [start, value, end, end]
    jumps = np.abs(np.diff(values(made, 1100)))
    assert jumps.max() < 2 * abs(value - start) / 77
    later = warmup_stable_decay(value, 1000, 77, 300, end=end, start=start, shape=schedule.__name__)
    assert [later(k) for k in (0, 77, 700, 1000)] == [start, value, value, end]
    assert np.abs(np.diff(values(later, 1100))).max() < 2 * abs(value - start) / 77


@pytest.mark.parametrize(
    ("schedule", "peak"),
    [
        (step(0.1, 10), 0),
        (exponential(0.1, 0.97), 0),
        (polynomial(0.1, 150, power=3.0, end=0.01), 0),
        (linear(0.1, 150, warmup=20), 20),
        (cosine(0.1, 150, warmup=20), 20),
        (inverse_sqrt(0.1, 20), 20),
        (warmup_stable_decay(0.1, 150, 20, 60, shape="sqrt"), 20),
        (one_cycle(0.1, 200), 59),
        (cosine_restarts(0.1, 200), 0),
    ],
    ids=repr,
)
def test_up_to_the_peak_and_down(schedule, peak):
    differences = np.diff(values(schedule))
    assert (differences[:peak] > 0).all()
    assert (differences[peak:] <= 0).all()


@pytest.mark.parametrize(("start", "every"), [(1, 1), (5, 1), (5, 3)])
def test_swa_gives_the_plain_mean(start, every):
    x = np.random.default_rng(0).standard_normal((60, 4))
    e = before = np.full(4, 9.0)  # as the average starts; x[t - 1] are the parameters after step t
    decay = swa(start, every=every)
    for k in range(60):
        e = e + (1 - decay(k)) * (x[k] - e)
        taken = x[start - 1 : k + 1 : every]
        assert np.allclose(e, taken.mean(0) if len(taken) else before, rtol=1e-13, atol=1e-14)


# ---- what a schedule is


def test_every_factory_has_an_example():
    assert sorted(text.split("(")[0] for text in EXAMPLES) == sorted(FACTORIES)


@pytest.mark.parametrize("text", EXAMPLES)
def test_repr_is_the_call_and_copies_are_the_same(text):
    schedule = EXAMPLES[text]
    assert isinstance(schedule, Schedule)
    assert repr(schedule) == text
    for again in (
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
        copy.copy(schedule),
        eval(text, vars(schedules)),
    ):
        assert repr(again) == text
        assert values(again) == values(schedule)
        assert again.length == schedule.length


@pytest.mark.parametrize("name", FACTORIES)
def test_help_shows_what_a_factory_takes(name):
    factory = getattr(schedules, name)
    assert "Schedule[" in str(inspect.signature(factory).return_annotation)
    for section in ("Parameters", "Raises", ">>> "):
        assert section in factory.__doc__
    for parameter in inspect.signature(factory).parameters:
        assert parameter in factory.__doc__


def test_a_list_that_changes_later_changes_nothing():
    milestones = [2, 4]
    schedule = multi_step(1.0, milestones)
    milestones.append(5)
    assert repr(schedule) == "multi_step(1.0, (2, 4))"
    assert copy.deepcopy(schedule)(6) == schedule(6) == pytest.approx(0.01)


def test_ones_own_function_is_a_schedule():
    schedule = Schedule(math.sqrt, length=9)
    assert schedule(16) == 4.0
    assert pickle.loads(pickle.dumps(schedule))(9) == 3.0
    assert repr(schedule) == "Schedule(<built-in function sqrt>, 9)"


@pytest.mark.parametrize("text", EXAMPLES)
def test_plots(text):
    pytest.importorskip("matplotlib")
    schedule = EXAMPLES[text]
    axes = schedule.plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps taken", "value")
    assert axes.lines[0].get_xdata().tolist() == list(range(schedule.length))
    drawn = [line.get_ydata().tolist() for line in schedule.plot(steps=40).axes[0].lines]
    expected = values(schedule, 40)
    assert drawn == ([list(x) for x in zip(*expected, strict=True)] if text.startswith("each") else [expected])


def test_plot_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'Schedule.plot needs matplotlib: pip install "fastgd\[demo\]"'):
        constant(0.1).plot()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant("x"), "value must be a number, finite, given 'x'"),
        (lambda: constant(True), "value must be a number, finite, given True"),
        (lambda: constant(math.nan), "value must be a number, finite, given nan"),
        (lambda: constant(10**400), "value must be a number, finite, given 1000"),
        (lambda: step(math.inf, 3), "value must be a number, finite, given inf"),
        (lambda: step(0.1, 0), "every must be a whole number, at least 1, given 0"),
        (lambda: step(0.1, 2.0), "every must be a whole number, at least 1, given 2.0"),
        (lambda: step(0.1, 3, gamma=-1), "gamma must be a number, at least 0, given -1"),
        (lambda: multi_step(0.1, 30), "milestones must be a list, a tuple or a range, given 30"),
        (lambda: multi_step(0.1, [0]), r"milestones\[0\] must be a whole number, at least 1, given 0"),
        (lambda: multi_step(0.1, [3, 3]), r"milestones must rise, given \(3, 3\)"),
        (lambda: piecewise([3], [0.1]), "values must be 2, one more than boundaries, given 1"),
        (lambda: piecewise([3], [0.1, None]), r"values\[1\] must be a number, finite, given None"),
        (lambda: exponential(0.1, -0.5), "gamma must be a number, at least 0, given -0.5"),
        (lambda: polynomial(0.1, 10, power=0), "power must be a number, above 0, given 0"),
        (lambda: polynomial(0.1, True), "steps must be a whole number, at least 1, given True"),
        (lambda: linear(0.1, 0), "steps must be a whole number, at least 1, given 0"),
        (lambda: linear(0.1, 9, warmup=9), "warmup must be a whole number, at least 0 and at most 8, given 9"),
        (lambda: cosine(0.1, 9, warmup=-1), "warmup must be a whole number, at least 0 and at most 8, given -1"),
        (lambda: cosine(0.1, 9, end=None), "end must be a number, finite, given None"),
        (lambda: cosine(0.1, 9, start=math.inf), "start must be a number, finite, given inf"),
        (lambda: cosine_restarts(0.1, 5, factor=1.5), "factor must be a whole number, at least 1, given 1.5"),
        (lambda: one_cycle(0.1, 1), "steps must be a whole number, at least 2, given 1"),
        (lambda: one_cycle(0.1, 10, anneal="cos"), "anneal must be one of 'cosine', 'linear', given 'cos'"),
        (lambda: one_cycle(0.1, 10, pct_start=0.1), "above 1 / steps = 0.1 and at most 1, given 0.1"),
        (lambda: one_cycle(0.1, 10, pct_start=1.1), "above 1 / steps = 0.1 and at most 1, given 1.1"),
        (lambda: one_cycle(0.1, 10, pct_start=0.6, three_phase=True), "at most 0.55, given 0.6"),
        (lambda: one_cycle(0.1, 10, div_factor=0), "div_factor must be a number, above 0, given 0"),
        (
            lambda: one_cycle(0.1, 10, final_div_factor=-1),
            "final_div_factor must be a number, above 0, given -1",
        ),
        (lambda: one_cycle(0.1, 10, three_phase=1), "three_phase must be True or False, given 1"),
        (lambda: inverse_sqrt(0.1, 0), "warmup must be a whole number, at least 1, given 0"),
        (lambda: warmup_stable_decay(0.1, 9, 3, 7), "decay must be a whole number, at least 1 and at most 6, given 7"),
        (lambda: warmup_stable_decay(0.1, 9, 3, None), "decay must be a whole number, at least 1, given None"),
        (
            lambda: warmup_stable_decay(0.1, 9, 3, 2, shape=2),
            "shape must be one of 'linear', 'cosine', 'sqrt', given 2",
        ),
        (lambda: cyclic(0.1, 0.2, 0), "up must be a whole number, at least 1, given 0"),
        (lambda: cyclic(0.1, 0.2, 1, down=0), "down must be a whole number, at least 1, given 0"),
        (lambda: cyclic(0.1, 0.2, 1, mode="saw"), "mode must be one of 'triangular', .*, given 'saw'"),
        (lambda: cyclic(0.1, 0.2, 1, gamma=0.9), "gamma must be 1 unless mode is 'exp_range', given 0.9"),
        (lambda: chain(), "chain must be given at least one schedule, given none"),
        (lambda: chain(0.1, "x"), r"schedules\[1\] must be a number or a function of the steps taken, given 'x'"),
        (lambda: sequence([0.1], [3]), "schedules must be 2, one more than milestones, given 1"),
        (lambda: sequence(0.1, [3]), "schedules must be a list, a tuple or a range, given 0.1"),
        (lambda: sequence([0.1, math.nan], [3]), r"schedules\[1\] must be a number, finite, given nan"),
        (lambda: each(), "each must be given at least one part, given none"),
        (lambda: each(0.9, None), r"parts\[1\] must be a number or a function of the steps taken, given None"),
        (lambda: swa(0), "start must be a whole number, at least 1, given 0"),
        (lambda: swa(1, every=0), "every must be a whole number, at least 1, given 0"),
        (lambda: constant(0.1)(-1), "k must be a whole number, at least 0, given -1"),
        (lambda: constant(0.1)(1.0), "k must be a whole number, at least 0, given 1.0"),
        (lambda: constant(0.1).plot(0), "steps must be a whole number, at least 1, given 0"),
        (lambda: Schedule(math.sqrt, length=0), "length must be a whole number, at least 1, given 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(HyperparameterError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    schedule = multi_step(np.float32(0.5), [np.int64(3)], gamma=np.float64(0.5))
    assert values(schedule, 4) == [0.5, 0.5, 0.5, 0.25]
    assert schedule(np.int32(3)) == 0.25


# ---- in an optimizer


@pytest.mark.parametrize("where", ["constructor", "param_groups"])
@pytest.mark.parametrize(
    ("optimizer", "hyper"),
    [
        (fastgd.SGD, dict(lr=cosine(0.1, 12, warmup=3), momentum=linear(0.85, 10, end=0.95), nesterov=True)),
        (fastgd.Adam, dict(lr=one_cycle(0.1, 12), betas=each(linear(0.85, 10, end=0.95), 0.99), weight_decay=0.1)),
    ],
)
def test_an_optimizer_follows_a_schedule(optimizer, hyper, where):
    scheduled = {n: v for n, v in hyper.items() if isinstance(v, Schedule)}
    at_start = {n: v(0) if n in scheduled else v for n, v in hyper.items()}
    p, q = np.linspace(-1, 1, 70), np.linspace(-1, 1, 70)
    ours = optimizer(p, **(hyper if where == "constructor" else at_start))
    by_hand = optimizer(q, **at_start)
    if where == "param_groups":
        ours.param_groups[0].update(scheduled)
    rng = np.random.default_rng(0)
    for k, g in enumerate(rng.standard_normal((15, 70))):
        by_hand.param_groups[0].update({n: schedule(k) for n, schedule in scheduled.items()})
        ours.step(g)
        by_hand.step(g)
        if k == 0:
            kernels = dict(cpu._KERNELS)
    assert np.array_equal(p, q)
    assert not np.array_equal(p, np.linspace(-1, 1, 70))
    assert cpu._KERNELS == kernels


def test_a_resumed_run_goes_on_where_it_was():
    gradients = np.random.default_rng(0).standard_normal((10, 5))
    p, q = np.ones(5), np.ones(5)
    whole, first = (fastgd.SGD(x, lr=cosine(0.1, 10)) for x in (p, q))
    for g in gradients:
        whole.step(g)
    for g in gradients[:4]:
        first.step(g)
    second = fastgd.SGD(q, lr=cosine(0.1, 10))
    second.load_state_dict(first.state_dict())
    twin = copy.deepcopy(second)
    for g in gradients[4:]:
        second.step(g)
        twin.step(g)
    assert np.array_equal(p, q)
    assert np.array_equal(twin.params, q)


def test_a_value_that_overflows_is_refused_by_the_rule():
    p = np.ones(3)
    opt = fastgd.SGD(p, lr=exponential(1.0, 1e300))
    opt.step(np.zeros(3))
    opt.step(np.zeros(3))
    with pytest.raises(HyperparameterError, match="lr must be finite and at least 0, given inf"):
        opt.step(np.zeros(3))
