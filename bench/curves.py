"""Whether each rule trains: a network on scikit-learn's digits, the learning rate searched, the losses recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.bench.measure import Progress
from fastgd.bench.run import describe_machine
from fastgd.callbacks import Callback, Training
from fastgd.fit import fit
from fastgd.flat import FlatParams
from fastgd.kernels.cpu_threads import available_threads
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES
from fastgd.nn import MLP
from fastgd.optimizer import Optimizer

Data = tuple[NDArray[Any], NDArray[Any]]
Report = dict[str, Any]

SCHEMA = 1
WIDTHS = (64, 32, 10)
"""Of the network: pixels, hidden units, digits."""

BATCH = 64
"""Samples in a mini-batch."""

LOSS_SHARE, ACCURACY = 0.1, 0.85
"""A rule trains if, with every seed, the loss ends below this share of its start, and the accuracy above this."""

_EVERY = 10  # steps from one recorded loss to the next, and from one estimate of the Hessian to the next
_RATIO = math.sqrt(10)  # of neighbouring learning rates in the search
_REACH = 8  # of these ratios, at most, from where the search starts: SGD's best is 200 times its default
_PATIENCE = 2  # learning rates in a row that are no better before the search turns: mini-batches make small bumps


@dataclass(frozen=True)
class Entry:
    """What gets a curve: a rule, and what is set away from its defaults.

    Attributes
    ----------
    rule
        Lower-case name in the registry.
    hyper
        Hyperparameters; what is missing stands at the rule's default. An `lr` is where the search starts.
    batch_size
        Samples in a batch; None is all of them.
    """

    rule: str
    hyper: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = BATCH

    def build(self, **hyper: Any) -> Rule:
        """Make the rule, with some hyperparameters at other values."""
        return RULES[self.rule](**{**self.hyper, **hyper})

    @property
    def title(self) -> str:
        """Name of the rule as its class has it."""
        return RULES[self.rule].__name__


_TABLE: dict[str, Entry] = {
    "adam-cautious": Entry("adam", {"cautious": True}),
    "adamw-cautious": Entry("adamw", {"cautious": True}),
    "lion-cautious": Entry("lion", {"cautious": True}),
    "lars": Entry("lars", {"momentum": 0.9, "weight_decay": 1e-4}),  # without decay it is SGD
    "rprop": Entry("rprop", batch_size=None),  # by signs of whole gradients: those of batches change too often for it
    "sgd": Entry("sgd", {"momentum": 0.9}),  # without momentum it is GD
    "sgd-nesterov": Entry("sgd", {"momentum": 0.9, "nesterov": True}),
    "sophiag": Entry("sophiag", {"bs": BATCH}),  # its default counts tokens
}

ENTRIES: dict[str, Entry] = {
    name: ({name: Entry(name) for name in RULES} | _TABLE)[name] for name in sorted({*RULES, *_TABLE})
}
"""Every registered rule, at its defaults if the table does not say otherwise, and variants beside their rule."""


def run(
    names: Sequence[str] | None = None,
    *,
    epochs: int = 20,
    search_epochs: int = 15,
    seeds: int = 3,
    progress: Progress | None = None,
) -> Report:
    """Train by each rule and say what came of it.

    The learning rate is searched first, upwards and downwards from the rule's default by factors of about 3.2, by the
    training loss in the last quarter of a shorter run: the largest of two seeds, as near the end of what is stable the
    last one is a matter of luck.

    Parameters
    ----------
    names : sequence of str, optional
        Of `ENTRIES`: rules in lower case, and variants such as ``sgd-nesterov``; by default all.
    epochs, search_epochs : int
        Passes over the data in the recorded runs and in those of the search, >= 1. Who takes all samples at each step
        takes as many steps as the others.
    seeds : int
        Recorded runs of each rule, >= 1: other weights, other order of the data, the same split.
    progress : callable, optional
        Called with what is done next, the number of rules done and of those to do.

    Returns
    -------
    dict
        ``schema``, ``machine`` (of what, with the versions), ``setting`` (network, samples, epochs, criterion),
        ``steps`` (at which losses were taken) and ``curves``. A curve has ``name``, ``rule``, ``title``, ``hyper``,
        ``batch_size``, ``default_lr``, ``lr``, ``search`` (pairs of learning rate and loss), ``losses`` (a list for
        each seed: of the whole training set, at ``steps``), ``median`` of these at each of the steps, ``loss`` and
        ``accuracy`` (medians at the end), ``accuracies`` on the validation set, and ``problem``: None, or why this is
        no training. None stands for a loss that is not finite, and for all losses after it.

    Raises
    ------
    HyperparameterError
        For an unknown name and numbers below 1, before anything is trained.
    ImportError
        Without scikit-learn.
    """
    chosen = tuple(ENTRIES) if names is None else tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in ENTRIES:
            raise HyperparameterError(f"rule must be one of {', '.join(ENTRIES)}, given {name!r}")
    for what, number in {"epochs": epochs, "search_epochs": search_epochs, "seeds": seeds}.items():
        if number < 1:
            raise HyperparameterError(f"{what} must be at least 1, given {number}")
    import sklearn
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    training, validation = digits()
    machine = describe_machine(available_threads(None))
    machine["versions"]["scikit-learn"] = sklearn.__version__
    steps = epochs * math.ceil(len(training[0]) / BATCH)
    curves = []
    with threadpool_limits(1, user_api="blas"):  # a second thread gains nothing on matmuls this small
        for done, name in enumerate(chosen):
            if progress is not None:
                progress(name, done, len(chosen))
            curves.append(_curve(name, training, validation, epochs, search_epochs, seeds))
    if progress is not None:
        progress("done", len(chosen), len(chosen))
    return {
        "schema": SCHEMA,
        "machine": machine,
        "setting": {
            "widths": WIDTHS,
            "training": len(training[0]),
            "validation": len(validation[0]),
            "batch_size": BATCH,
            "epochs": epochs,
            "search_epochs": search_epochs,
            "seeds": seeds,
            "loss_share": LOSS_SHARE,
            "accuracy": ACCURACY,
        },
        "steps": [*range(0, steps + 1, _EVERY)] + [steps] * (steps % _EVERY > 0),
        "curves": curves,
    }


def untrained(report: Report) -> list[str]:
    """Say which rules do not train, and why: one line each."""
    return [f"{curve['name']}: {curve['problem']}" for curve in report["curves"] if curve["problem"]]


def digits() -> tuple[Data, Data]:
    """Give the 1797 pictures of 8 x 8 pixels and their classes, four fifths to train and the rest to validate."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split((x / 16).astype(np.float32), y, test_size=0.2, stratify=y, random_state=0)
    x_train, x_validation, y_train, y_validation = parts
    return (x_train, y_train), (x_validation, y_validation)


def _curve(name: str, training: Data, validation: Data, epochs: int, search_epochs: int, seeds: int) -> dict[str, Any]:
    entry = ENTRIES[name]
    default = float(getattr(entry.build(), "lr"))  # noqa: B009  # Rule itself has none

    def loss(lr: float) -> float:
        runs = [_train(entry, lr, seed, training, validation, search_epochs)[0] for seed in (0, 1)]
        return max(max(losses[-(len(losses) // 4) - 1 :]) for losses in runs)

    tried = _search(loss, default)
    lr = min(tried, key=lambda lr: (tried[lr], lr))
    runs = [_train(entry, lr, seed, training, validation, epochs) for seed in range(seeds)]
    losses, accuracies = [losses for losses, _ in runs], [accuracy for _, accuracy in runs]
    middle = [median(at) for at in zip(*losses, strict=True)]
    return {
        "name": name,
        "rule": entry.rule,
        "title": entry.title,
        "hyper": {key: value for key, value in entry.hyper.items() if key != "lr"},
        "batch_size": entry.batch_size,
        "default_lr": default,
        "lr": lr,
        "search": [[tried_lr, _finite(loss)] for tried_lr, loss in sorted(tried.items())],
        "losses": [[_finite(loss) for loss in run] for run in losses],
        "accuracies": accuracies,
        "median": [_finite(loss) for loss in middle],
        "loss": _finite(middle[-1]),
        "accuracy": median(accuracies),
        "problem": _problem(losses, accuracies),
    }


def _search(loss: Callable[[float], float], start: float) -> dict[float, float]:
    """Losses by learning rate, upwards and downwards from the start until they get no better."""
    tried = {start: loss(start)}
    for way in (1, -1):
        best, misses = tried[start], 0
        for k in range(1, _REACH + 1):
            lr = float(f"{start * _RATIO ** (way * k):.2g}")  # what is shown is what was taken
            tried[lr] = loss(lr)
            misses = 0 if tried[lr] < best else misses + math.isfinite(best)
            best = min(best, tried[lr])
            if misses == _PATIENCE:
                break
    return tried


def _problem(losses: list[list[float]], accuracies: list[float]) -> str | None:
    for seed, (curve, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        if not curve[-1] < LOSS_SHARE * curve[0]:
            return f"the loss went from {curve[0]:.3g} to {curve[-1]:.3g} with seed {seed}, not below {LOSS_SHARE:.0%}"
        if not accuracy > ACCURACY:
            return f"{accuracy:.1%} of the validation set are right with seed {seed}, not more than {ACCURACY:.0%}"
    return None


def _finite(loss: float) -> float | None:
    """JSON has no infinity."""
    return loss if math.isfinite(loss) else None


# ---- one run -----------------------------------------------------------------------------------------------------


def _train(
    entry: Entry, lr: float, seed: int, training: Data, validation: Data, epochs: int
) -> tuple[list[float], float]:
    """Losses of the training set before the first step, at every tenth and after the last, and the accuracy."""
    net = MLP(WIDTHS)
    params = net.init(seed)
    watched = _Watched(net, params, Optimizer(params, entry.build(lr=lr)), training, np.random.default_rng(seed))
    steps = epochs * math.ceil(len(training[0]) / BATCH)
    points = 1 + math.ceil(steps / _EVERY)
    with np.errstate(all="ignore"):  # a learning rate that is too large overflows
        watched.record()
        try:
            fit(
                watched.loss_and_grad,
                watched.optimizer,
                training,
                batch_size=entry.batch_size,
                epochs=epochs if entry.batch_size else steps,
                seed=seed,
                callbacks=[watched],
            )
            if len(watched.losses) < points:
                watched.record()
        except _DivergedError:
            return watched.losses + [math.inf] * (points - len(watched.losses)), 0.0
        with watched.judged():
            return watched.losses, net.accuracy(params, *validation)


class _DivergedError(Exception):
    """A loss is not finite; `fit` would warn of it, and in a search it is no news."""


@dataclass
class _Watched(Callback):
    """A network in training, for `fit`: its gradient, what else its rule is to be given, and the losses on the way."""

    net: MLP
    params: FlatParams
    optimizer: Optimizer
    data: Data
    rng: np.random.Generator
    taken: int = 0
    losses: list[float] = field(default_factory=list)

    def loss_and_grad(self, params: FlatParams, x: NDArray[Any], y: NDArray[Any]) -> float:
        if self._has("hessian") and self.taken % _EVERY == 0:
            logits = self.net.logits(params, x)
            sampled = (logits + self.rng.gumbel(size=logits.shape)).argmax(axis=1)  # by the model's probabilities
            self.net.loss_and_grad(params, x, sampled)
            self.optimizer.update_hessian()
        return self._checked(self.net.loss_and_grad(params, x, y))

    def on_step(self, training: Training) -> None:
        self.taken += 1
        if self.taken % _EVERY == 0:
            self.record()

    def record(self) -> None:
        with self.judged():  # the gradient it leaves is overwritten before the next step
            self.losses.append(self._checked(self.net.loss_and_grad(self.params, *self.data)))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """With the parameters that the rule gives for use."""
        if not self._has("eval"):
            yield
            return
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()

    def _has(self, aside: str) -> bool:
        return aside in self.optimizer.rule.asides

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise _DivergedError
        return loss
