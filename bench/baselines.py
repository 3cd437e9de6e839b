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
    b1, b2 = betas
    m, v, scratch, t = np.zeros_like(p), np.zeros_like(p), np.empty_like(p), 0

    def step() -> Array:
        nonlocal t
        t += 1
        root = math.sqrt(1 - b2**t)  # taken into eps and the step size, both corrections cost no pass
        np.multiply(m, b1, out=m)
        np.multiply(g, 1 - b1, out=scratch)
        np.add(m, scratch, out=m)
        np.multiply(v, b2, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 1 - b2, out=scratch)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.add(scratch, eps * root, out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, lr * root / (1 - b1**t), out=scratch)
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
