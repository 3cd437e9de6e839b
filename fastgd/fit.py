"""Train by batch, mini-batch or stochastic gradient descent."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.callbacks import Callback, History, Training
from fastgd.checks import checked_whole
from fastgd.flat import FlatParams
from fastgd.kernels.errors import ArrayError, HyperparameterError
from fastgd.memory import copy_into, copy_of, namespace, on_gpu
from fastgd.optimizer import Optimizer

log = logging.getLogger("fastgd")
Data = tuple[NDArray[Any], ...]


def fit(
    loss_and_grad: Callable[..., float],
    optimizer: Optimizer,
    data: NDArray[Any] | Data,
    *,
    batch_size: int | None = None,
    epochs: int,
    validation: NDArray[Any] | Data | None = None,
    shuffle: bool = True,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train a model.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, *batch) -> float`` gives the mean loss of a batch and fills ``params.grad``.
    optimizer : Optimizer
        Made for a FlatParams, alone or in groups.
    data : array or tuple of arrays
        With equal first axis, the samples, NumPy's or CuPy's; batches are in the same memory. Not written.
    batch_size : int, optional
        None is batch gradient descent, 1 stochastic, k mini-batch; a last short batch is kept.
    epochs : int
        Passes over the data, >= 1.
    validation : array or tuple of arrays, optional
        Of the form of `data`; its loss is computed after each epoch, in one call. The gradients are put back after it.
    shuffle : bool
        Draw a new order for each epoch, by batches; a whole batch is never shuffled.
    seed : int
        Of that order: the same seed gives the same bits.
    callbacks : sequence of Callback
        `ProgressBar`, `EarlyStopping` or one's own.

    Returns
    -------
    History

    Raises
    ------
    HyperparameterError
        For a value out of range.
    ArrayError
        For data without samples or of unequal lengths, and an optimizer of plain arrays.

    Notes
    -----
    When a loss is not finite, training ends before the step, with the parameters as they are; ``history.message`` and
    a warning of the logger "fastgd" say so.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> x = np.linspace(-1, 1, 50)
    >>> def loss_and_grad(params, x, y):
    ...     error = params["a"] * x - y
    ...     params.grad["a"] = np.mean(2 * error * x)
    ...     return float(np.mean(error**2))
    >>> params = fastgd.FlatParams({"a": np.zeros(())})
    >>> history = fastgd.fit(loss_and_grad, fastgd.SGD(params, lr=0.5), (x, 3 * x), batch_size=10, epochs=30)
    >>> round(float(params["a"]), 6)
    3.0
    """
    samples = _samples("data", data)
    held_out = None if validation is None else _samples("validation", validation, len(samples))
    count = len(samples[0])
    epochs = checked_whole("epochs", epochs, 1)
    batch = count if batch_size is None else min(count, checked_whole("batch_size", batch_size, 1))
    params = _parameters(optimizer)
    try:
        order = np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise HyperparameterError(f"seed must be a whole number, at least 0, given {seed!r}") from None
    training = Training(optimizer, params, History(), epochs, steps=-(-count // batch))
    try:
        _train(
            training, loss_and_grad, samples, batch, held_out, order if shuffle and batch < count else None, callbacks
        )
    finally:
        for callback in callbacks:
            callback.on_end(training)
    training.history.message = training.stop or f"all {epochs} epochs done"
    return training.history


def _train(
    training: Training,
    loss_and_grad: Callable[..., float],
    samples: Data,
    batch: int,
    held_out: Data | None,
    order: np.random.Generator | None,
    callbacks: Sequence[Callback],
) -> None:
    history, optimizer, params = training.history, training.optimizer, training.params
    count = len(samples[0])
    spent, taken = 0.0, 0
    while training.epoch < training.epochs and not training.stop:
        start = time.perf_counter()
        shuffled = samples
        if order is not None:
            permutation = order.permutation(count)
            shuffled = tuple(a[namespace(a).asarray(permutation)] for a in samples)  # once: the batches are views
        total = 0.0
        training.step = 0
        for lo in range(0, count, batch):
            part = tuple(a[lo : lo + batch] for a in shuffled)
            training.loss = float(loss_and_grad(params, *part))
            if not math.isfinite(training.loss):
                training.stop = (
                    f"diverged: the loss is {training.loss} at step {training.step + 1} of epoch {training.epoch + 1}; "
                    "try a lower learning rate or max_norm="
                )
                log.warning(training.stop)
                return
            optimizer.step()
            total += training.loss * len(part[0])
            training.step += 1
            taken += 1
            for callback in callbacks:
                callback.on_step(training)
            if training.stop:
                break
        spent += time.perf_counter() - start
        training.epoch += 1
        history.loss.append(total / min(count, training.step * batch))
        history.seconds.append(spent)
        history.steps.append(taken)
        if held_out is not None:
            kept = copy_of(params.grad.flat)
            history.val_loss.append(float(loss_and_grad(params, *held_out)))
            copy_into(params.grad.flat, kept)
        for callback in callbacks:
            callback.on_epoch(training)


def _samples(name: str, data: Any, arrays: int | None = None) -> Data:
    given = data if isinstance(data, tuple) else (data,)
    if isinstance(data, list):  # NumPy would stack the arrays, and take the first axis of that for samples
        raise ArrayError(f"{name} must be an array of samples or a tuple of such arrays, given a list: pass tuple(...)")
    taken = tuple(a if on_gpu(a) else np.asarray(a) for a in given)
    if not taken or any(a.ndim == 0 for a in taken):
        raise ArrayError(f"{name} must be an array of samples or a tuple of such arrays, given {type(data).__name__}")
    lengths = [len(a) for a in taken]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ArrayError(f"{name} must have equal, non-empty first axes, given lengths {', '.join(map(str, lengths))}")
    if arrays is not None and len(taken) != arrays:
        raise ArrayError(f"{name} must have {arrays} arrays as data has, given {len(taken)}")
    return taken


def _parameters(optimizer: Optimizer) -> FlatParams:
    if not isinstance(optimizer, Optimizer):
        raise HyperparameterError(f"optimizer must be a fastgd optimizer, given {type(optimizer).__name__}")
    if isinstance(optimizer.params, FlatParams):
        return optimizer.params
    found = [g["params"] for g in optimizer.param_groups if isinstance(g.get("params"), FlatParams)]
    if len(found) != 1 or any("params" in g and g["params"] is not found[0] for g in optimizer.param_groups):
        raise ArrayError("fit needs an optimizer of one FlatParams, whose grad the loss function fills")
    only: FlatParams = found[0]
    return only
