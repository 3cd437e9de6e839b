from __future__ import annotations

import math

import numpy as np
import pytest

import fastgd
from fastgd.callbacks import Callback
from fastgd.kernels.errors import ArrayError, HyperparameterError

X = np.random.default_rng(0).standard_normal((103, 4))
Y = X @ [1.0, -2.0, 0.5, 0.0] + 0.01 * np.random.default_rng(1).standard_normal(103)


def loss_and_grad(params, x, y):
    error = x @ params["w"] - y
    params.grad["w"] = 2 * error @ x / len(y)
    return float(np.mean(error**2))


def model():
    return fastgd.FlatParams({"w": np.zeros(4)})


def train(params=None, optimizer=None, data=(X, Y), epochs=3, loss=loss_and_grad, **how):
    params = model() if params is None else params
    optimizer = fastgd.SGD(params, lr=0.05) if optimizer is None else optimizer
    return fastgd.fit(loss, optimizer, data, epochs=epochs, **how), params


@pytest.mark.parametrize(("batch_size", "steps"), [(None, 1), (1, 103), (10, 11), (103, 1), (500, 1)])
def test_every_sample_is_seen_once_an_epoch(batch_size, steps):
    seen = []

    def recorded(params, x, y):
        seen.append(y)
        return loss_and_grad(params, x, y)

    history, _ = train(loss=recorded, batch_size=batch_size, epochs=2)
    assert history.steps == [steps, 2 * steps]
    assert len(seen) == 2 * steps
    for epoch in (seen[:steps], seen[steps:]):
        assert sorted(np.concatenate(epoch)) == sorted(Y)
    if batch_size == 10:
        assert [len(y) for y in seen[:steps]] == [10] * 10 + [3]
        assert not np.array_equal(seen[0], seen[steps])


def test_batch_gradient_descent_is_the_plain_loop():
    history, params = train(epochs=20)
    w = np.zeros(4)
    losses = []
    for _ in range(20):
        error = X @ w - Y
        losses.append(float(np.mean(error**2)))
        w -= 0.05 * (2 * error @ X / 103)
    assert np.array_equal(params["w"], w)
    assert history.loss == losses
    assert history.message == "all 20 epochs done"


def test_same_seed_same_bits():
    runs = [train(batch_size=8, epochs=4, seed=s) for s in (5, 5, 6)]
    assert runs[0][0].loss == runs[1][0].loss
    assert np.array_equal(runs[0][1].flat, runs[1][1].flat)
    assert not np.array_equal(runs[0][1].flat, runs[2][1].flat)
    unshuffled = [train(batch_size=8, epochs=4, seed=s, shuffle=False)[1].flat for s in (5, 6)]
    assert np.array_equal(*unshuffled)


def test_loss_is_the_mean_over_samples():
    frozen, _ = train(optimizer=None, params=(p := model()), epochs=1, batch_size=10)
    still, _ = train(params=p, optimizer=fastgd.SGD(p, lr=0.0), epochs=1, batch_size=10)
    assert still.loss[0] == pytest.approx(float(np.mean((X @ p["w"] - Y) ** 2)))
    assert frozen.loss[0] > still.loss[0]


def test_validation_does_not_disturb():
    watched, p = train(batch_size=8, epochs=3, validation=(X[:20], Y[:20]))
    alone, q = train(batch_size=8, epochs=3)
    assert np.array_equal(p.flat, q.flat)
    assert np.array_equal(p.grad.flat, q.grad.flat)
    assert watched.val_loss[-1] == pytest.approx(float(np.mean((X[:20] @ p["w"] - Y[:20]) ** 2)))
    assert alone.val_loss == []
    assert all(a <= b for a, b in zip(watched.seconds, watched.seconds[1:], strict=False))


def test_early_stopping_puts_the_best_back():
    losses = iter([5.0, 3.0, 2.0, 2.5, math.nan, 2.1, 1.0])
    kept = []

    class Record(Callback):
        def on_epoch(self, training):
            kept.append(training.params.flat.copy())

    def two_faced(params, x, y):
        return next(losses) if len(y) == 20 else loss_and_grad(params, x, y)

    stopper = fastgd.EarlyStopping(patience=2)
    history, params = train(loss=two_faced, epochs=50, validation=(X[:20], Y[:20]), callbacks=[Record(), stopper])
    assert len(history.loss) == 5
    assert "early stopping: no fall since epoch 3" in history.message
    assert stopper.best == 2.0
    assert np.array_equal(params.flat, kept[2])
    steady, _ = train(epochs=30, callbacks=[fastgd.EarlyStopping(patience=0, min_delta=1e9)])
    assert len(steady.loss) == 2


def test_divergence_ends_before_the_step(caplog):
    params = model()
    with np.errstate(all="ignore"):
        history, _ = train(params, fastgd.SGD(params, lr=1e200), epochs=50)
    assert "diverged: the loss is" in history.message
    assert np.isfinite(params.flat).all()
    assert history.message in caplog.text


def test_callbacks_are_told_everything():
    told = []

    class Watch(Callback):
        def on_step(self, training):
            told.append(("step", training.epoch, training.step, training.steps))
            if training.epoch == 1 and training.step == 2:
                training.stop = "enough"

        def on_epoch(self, training):
            told.append(("epoch", training.epoch, len(training.history.loss)))

        def on_end(self, training):
            told.append("end")

    history, _ = train(batch_size=40, epochs=9, callbacks=[Watch()])
    assert told == [
        *(("step", 0, k, 3) for k in (1, 2, 3)),
        ("epoch", 1, 1),
        *(("step", 1, k, 3) for k in (1, 2)),
        ("epoch", 2, 2),
        "end",
    ]
    assert history.message == "enough"
    assert history.steps == [3, 5]


def test_progress_goes_to_stderr(capsys):
    pytest.importorskip("rich")
    train(epochs=20, callbacks=[fastgd.ProgressBar("digits")])
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 10
    assert "digits: epoch 20/20  loss" in err


def test_history_plots():
    pytest.importorskip("matplotlib")
    history, _ = train(epochs=5, validation=(X, Y))
    axes = history.plot().axes[0]
    assert len(axes.lines) == 2
    assert axes.get_ylabel() == "loss"
    assert axes.lines[0].get_ydata().tolist() == history.loss


def test_groups_of_one_flat_params_are_fine():
    params = model()
    history, _ = train(params, fastgd.SGD([{"params": params, "lr": 0.05}]), epochs=30)
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (dict(epochs=0), HyperparameterError, "epochs"),
        (dict(epochs=1.5), HyperparameterError, "epochs"),
        (dict(batch_size=0), HyperparameterError, "batch_size"),
        (dict(batch_size=True), HyperparameterError, "batch_size"),
        (dict(data=(X, Y[:-1])), ArrayError, "103, 102"),
        (dict(data=(X[:0], Y[:0])), ArrayError, "non-empty"),
        (dict(data=()), ArrayError, "data"),
        (dict(data=3.0), ArrayError, "data"),
        (dict(data=[X, Y]), ArrayError, "given a list"),
        (dict(seed=-1), HyperparameterError, "seed"),
        (dict(validation=(X,)), ArrayError, "2 arrays"),
        (dict(optimizer="adam"), HyperparameterError, "optimizer"),
        (dict(optimizer=fastgd.SGD(np.zeros(4))), ArrayError, "FlatParams"),
    ],
)
def test_bad_input_is_named(how, error, message):
    with pytest.raises(error, match=message):
        train(**how)


@pytest.mark.parametrize("values", [dict(patience=-1), dict(patience=1.5), dict(patience=1, min_delta=-1)])
def test_bad_patience_is_named(values):
    with pytest.raises(HyperparameterError, match="at least 0"):
        fastgd.EarlyStopping(**values)
