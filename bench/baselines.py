"""What people write in NumPy: each rule as in a textbook, and in place with one array of scratch.

A baseline takes parameters, gradient and all hyperparameters of its rule, and returns a function that takes one step
and gives the parameters. It reads the gradient anew at each step. The tail is put around a baseline in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Step = Callable[[], Array]
Baseline = Callable[..., Step]

TEXTBOOK: dict[str, Baseline] = {}
"""Baselines that allocate at every operation, by the rule's name."""

IN_PLACE: dict[str, Baseline] = {}
"""Baselines that write into preallocated arrays, as few passes as NumPy's operations allow."""


def _into(table: dict[str, Baseline], *names: str) -> Callable[[Baseline], Baseline]:
    def register(baseline: Baseline) -> Baseline:
        for name in names:
            table[name] = baseline
        return baseline

    return register


# ---- as in a textbook --------------------------------------------------------------------------------------------


@_into(TEXTBOOK, "gd")
def _gd(p: Array, g: Array, *, lr: float) -> Step:
    def step() -> Array:
        nonlocal p
        p = p - lr * g
        return p

    return step


@_into(TEXTBOOK, "sgd")
def _momentum(p: Array, g: Array, *, lr: float, momentum: float, **_: Any) -> Step:
    velocity = np.zeros_like(p)

    def step() -> Array:
        nonlocal p, velocity
        velocity = momentum * velocity + g
        p = p - lr * velocity
        return p

    return step


@_into(TEXTBOOK, "adam", "adamw")
def _adam(
    p: Array, g: Array, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, **_: Any
) -> Step:
    b1, b2 = betas
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0

    def step() -> Array:
        nonlocal p, m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        update = m_hat / (np.sqrt(v_hat) + eps)
        if weight_decay:
            update = update + weight_decay * p
        p = p - lr * update
        return p

    return step


@_into(TEXTBOOK, "lion")
def _lion(p: Array, g: Array, *, lr: float, betas: tuple[float, float], weight_decay: float, **_: Any) -> Step:
    b1, b2 = betas
    m = np.zeros_like(p)

    def step() -> Array:
        nonlocal p, m
        update = np.sign(b1 * m + (1 - b1) * g)
        p = p - lr * (update + weight_decay * p)
        m = b2 * m + (1 - b2) * g
        return p

    return step


@_into(TEXTBOOK, "adagrad")
def _adagrad(p: Array, g: Array, *, lr: float, eps: float, **_: Any) -> Step:
    total = np.zeros_like(p)

    def step() -> Array:
        nonlocal p, total
        total = total + g**2
        p = p - lr * g / (np.sqrt(total) + eps)
        return p

    return step


@_into(TEXTBOOK, "rmsprop")
def _rmsprop(p: Array, g: Array, *, lr: float, alpha: float, eps: float, **_: Any) -> Step:
    v = np.zeros_like(p)

    def step() -> Array:
        nonlocal p, v
        v = alpha * v + (1 - alpha) * g**2
        p = p - lr * g / (np.sqrt(v) + eps)
        return p

    return step


@_into(TEXTBOOK, "lamb")
def _lamb(
    p: Array, g: Array, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, **_: Any
) -> Step:
    b1, b2 = betas
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0

    def step() -> Array:
        nonlocal p, m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * p
        ratio = float(np.linalg.norm(p) / np.linalg.norm(update))  # NumPy's own scalar would make float64 of it all
        p = p - lr * ratio * update
        return p

    return step


# ---- in place ----------------------------------------------------------------------------------------------------


@_into(IN_PLACE, "gd")
def _gd_in_place(p: Array, g: Array, *, lr: float) -> Step:
    scratch = np.empty_like(p)

    def step() -> Array:
        np.multiply(g, lr, out=scratch)
        return np.subtract(p, scratch, out=p)

    return step


@_into(IN_PLACE, "sgd")
def _momentum_in_place(p: Array, g: Array, *, lr: float, momentum: float, **_: Any) -> Step:
    velocity, scratch = np.zeros_like(p), np.empty_like(p)

    def step() -> Array:
        np.multiply(velocity, momentum, out=velocity)
        np.add(velocity, g, out=velocity)
        np.multiply(velocity, lr, out=scratch)
        return np.subtract(p, scratch, out=p)

    return step


@_into(IN_PLACE, "adam", "adamw")
def _adam_in_place(
    p: Array, g: Array, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, **_: Any
) -> Step:
    m, v, scratch, t = np.zeros_like(p), np.zeros_like(p), np.empty_like(p), 0

    def step() -> Array:
        nonlocal t
        t += 1
        root = _moments(g, m, v, betas, t, scratch)
        np.sqrt(v, out=scratch)
        np.add(scratch, eps * root, out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, lr * root / (1 - betas[0] ** t), out=scratch)
        if weight_decay:
            np.multiply(p, 1 - lr * weight_decay, out=p)
        return np.subtract(p, scratch, out=p)

    return step


@_into(IN_PLACE, "lion")
def _lion_in_place(p: Array, g: Array, *, lr: float, betas: tuple[float, float], weight_decay: float, **_: Any) -> Step:
    b1, b2 = betas
    m, scratch = np.zeros_like(p), np.empty_like(p)

    def step() -> Array:
        np.multiply(g, (1 - b1) / b1, out=scratch)  # only the sign counts: saves the pass that scales m
        np.add(m, scratch, out=scratch)
        np.sign(scratch, out=scratch)
        np.multiply(scratch, lr, out=scratch)
        if weight_decay:
            np.multiply(p, 1 - lr * weight_decay, out=p)
        np.subtract(p, scratch, out=p)
        np.multiply(m, b2, out=m)
        np.multiply(g, 1 - b2, out=scratch)
        np.add(m, scratch, out=m)
        return p

    return step


@_into(IN_PLACE, "adagrad")
def _adagrad_in_place(p: Array, g: Array, *, lr: float, eps: float, **_: Any) -> Step:
    total, scratch = np.zeros_like(p), np.empty_like(p)

    def step() -> Array:
        np.multiply(g, g, out=scratch)
        np.add(total, scratch, out=total)
        return _over_root(p, g, total, lr, eps, scratch)

    return step


@_into(IN_PLACE, "rmsprop")
def _rmsprop_in_place(p: Array, g: Array, *, lr: float, alpha: float, eps: float, **_: Any) -> Step:
    v, scratch = np.zeros_like(p), np.empty_like(p)

    def step() -> Array:
        np.multiply(v, alpha, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 1 - alpha, out=scratch)
        np.add(v, scratch, out=v)
        return _over_root(p, g, v, lr, eps, scratch)

    return step


def _over_root(p: Array, g: Array, v: Array, lr: float, eps: float, scratch: Array) -> Array:
    np.sqrt(v, out=scratch)
    np.add(scratch, eps, out=scratch)
    np.divide(g, scratch, out=scratch)
    np.multiply(scratch, lr, out=scratch)
    return np.subtract(p, scratch, out=p)


@_into(IN_PLACE, "lamb")
def _lamb_in_place(
    p: Array, g: Array, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, **_: Any
) -> Step:
    m, v, scratch, update, t = np.zeros_like(p), np.zeros_like(p), np.empty_like(p), np.empty_like(p), 0

    def step() -> Array:
        nonlocal t
        t += 1
        root = _moments(g, m, v, betas, t, scratch)
        np.sqrt(v, out=update)
        np.add(update, eps * root, out=update)
        np.divide(m, update, out=update)
        np.multiply(update, root / (1 - betas[0] ** t), out=update)
        if weight_decay:
            np.multiply(p, weight_decay, out=scratch)
            np.add(update, scratch, out=update)
        ratio = math.sqrt(np.dot(p, p) / np.dot(update, update))
        np.multiply(update, lr * ratio, out=update)
        return np.subtract(p, update, out=p)

    return step


def _moments(g: Array, m: Array, v: Array, betas: tuple[float, float], t: int, scratch: Array) -> float:
    """Move Adam's moments; give the root of the second's correction, which costs no pass when eps is scaled by it."""
    b1, b2 = betas
    np.multiply(m, b1, out=m)
    np.multiply(g, 1 - b1, out=scratch)
    np.add(m, scratch, out=m)
    np.multiply(v, b2, out=v)
    np.multiply(g, g, out=scratch)
    np.multiply(scratch, 1 - b2, out=scratch)
    np.add(v, scratch, out=v)
    return math.sqrt(1 - b2**t)


def with_tail(
    step: Step, p: Array, g: Array, *, max_norm: float, ema_decay: float, zero_grad: bool
) -> tuple[Step, Array]:
    """Clip before a step in place, average and zero behind it; give also the average."""
    average, scratch = p.copy(), np.empty_like(p)

    def whole() -> Array:
        clip = max_norm / (math.sqrt(np.dot(g, g)) + 1e-6)
        if clip < 1.0:
            np.multiply(g, clip, out=g)
        step()
        np.subtract(p, average, out=scratch)
        np.multiply(scratch, 1 - ema_decay, out=scratch)
        np.add(average, scratch, out=average)
        if zero_grad:
            g.fill(0)
        return p

    return whole, average
