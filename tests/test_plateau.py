"""ReduceOnPlateau lowers the learning rate when torch's ReduceLROnPlateau does."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastgd
from fastgd.callbacks import Callback, ReduceOnPlateau
from fastgd.kernels.errors import HyperparameterError
from fastgd.schedules import cosine

EPOCHS = 200


def losses(nan=False):
    """Fall over 200 epochs in stairs, with noise."""
    rng = np.random.default_rng(3)
    k = np.arange(EPOCHS)
    stairs = 2.0 + 5.0 * 0.5 ** np.minimum(k // 45 + np.minimum(k % 45, 12) / 12, 4)
    made = stairs * (1 + 0.01 * rng.standard_normal(EPOCHS))
    if nan:
        made[::7] = math.nan
    return made.tolist()


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_epoch(self, training):
        self.seen.append([group["lr"] for group in training.optimizer.param_groups])


def run(callback, made, validation=False, rates=(0.1,)):
    """Rates after each epoch of a run with made-up losses."""
    params = fastgd.FlatParams({"w": np.zeros(2), "b": np.zeros(3)})
    groups = [{"params": params, "lr": rates[0]}, *({"match": "b", "lr": r} for r in rates[1:])]
    optimizer = fastgd.SGD(groups)
    told = iter(made)

    def two_faced(params, x):
        return next(told) if len(x) == (2 if validation else 4) else 1.0

    watch = Rates()
    held_out = np.ones(2) if validation else None
    fastgd.fit(two_faced, optimizer, np.ones(4), epochs=len(made), validation=held_out, callbacks=[callback, watch])
    return watch.seen


SETTINGS = {
    "defaults": dict(),
    "impatient": dict(factor=0.5, patience=0),
    "cooldown": dict(factor=0.7, patience=2, cooldown=9),
    "min_lr": dict(factor=0.3, patience=3, min_lr=0.004),
    "eps": dict(factor=0.5, patience=2, eps=0.003),
    "coarse": dict(factor=0.8, patience=3, threshold=0.05),
    "abs": dict(factor=0.8, patience=3, threshold=0.1, threshold_mode="abs", cooldown=2),
    "max": dict(factor=0.9, patience=5, mode="max", threshold=0.02),
    "max abs": dict(factor=0.9, patience=1, mode="max", threshold=0.2, threshold_mode="abs", cooldown=1),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["training", "validation", "nan"])
@pytest.mark.parametrize("name", SETTINGS)
def test_same_rates_as_torch(name, kind, sign):
    torch = pytest.importorskip("torch")
    made = [sign * x for x in losses(nan=kind == "nan")]
    rates = (0.1, 0.02)
    theirs = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": r} for r in rates])
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **SETTINGS[name])
    expected = []
    for x in made:
        theirs.step()
        scheduler.step(x)
        expected.append([group["lr"] for group in theirs.param_groups])
    seen = run(ReduceOnPlateau(**SETTINGS[name]), made, validation=kind != "training", rates=rates)
    assert seen == expected
    if sign == 1:
        assert len({tuple(r) for r in seen}) > 2


def test_nan_is_never_better():
    seen = run(ReduceOnPlateau(factor=0.5, patience=1), [math.nan] * 5, validation=True)
    assert seen == [[0.1], [0.05], [0.05], [0.025], [0.025]]


def test_a_new_run_starts_anew():
    callback = ReduceOnPlateau(factor=0.5, patience=1, cooldown=3)
    assert run(callback, [1.0, 1.0, 1.0]) == [[0.1], [0.1], [0.05]]
    assert run(callback, [9.0, 9.0, 9.0]) == [[0.1], [0.1], [0.05]]


@pytest.mark.parametrize("group", [0, 1])
def test_a_schedule_is_refused(group):
    rates = [0.1, 0.2]
    rates[group] = cosine(0.1, 50)
    callback = ReduceOnPlateau(patience=0)
    with pytest.raises(HyperparameterError, match=rf"group {group}: lr must be a number .*, given cosine\(0.1, 50\)"):
        run(callback, [1.0, 1.0], rates=rates)
    assert callback.best == math.inf


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(factor=1.0), "factor must be a number, at least 0 and below 1, given 1.0"),
        (dict(factor=-0.1), "factor must be a number, at least 0 and below 1, given -0.1"),
        (dict(patience=-1), "patience must be a whole number, at least 0, given -1"),
        (dict(patience=1.5), "patience must be a whole number, at least 0, given 1.5"),
        (dict(threshold=-1e-4), "threshold must be a number, at least 0 and below 1, given -0.0001"),
        (dict(threshold=1.0), "threshold must be a number, at least 0 and below 1, given 1.0"),
        (dict(threshold=-1, threshold_mode="abs"), "threshold must be a number, at least 0, given -1"),
        (dict(threshold_mode="relative"), "threshold_mode must be one of 'rel', 'abs', given 'relative'"),
        (dict(cooldown=True), "cooldown must be a whole number, at least 0, given True"),
        (dict(min_lr=[0.1]), r"min_lr must be a number, at least 0, given \[0.1\]"),
        (dict(eps=math.nan), "eps must be a number, at least 0, given nan"),
        (dict(mode="least"), "mode must be one of 'min', 'max', given 'least'"),
    ],
)
def test_bad_arguments_are_named(values, message):
    with pytest.raises(HyperparameterError, match=message):
        ReduceOnPlateau(**values)
