"""The listings of the article: f(x) = x^2 from x = 1, learning rate 0.01, 1000 iterations."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

import fastgd

N, LR = 1000, 0.01
ROOT = Path(__file__).parent.parent


def f(x):
    return x**2


def slope(x):
    return 2 * x


def minimise(method, jac=slope, **how):
    result = fastgd.minimize(f, 1.0, jac=jac, method=method, lr=LR, max_iter=N, tol=0, history=True, **how)
    assert result.nit == N
    assert result.history.shape == (N + 1,)
    return result.history


def test_gradient_descent_bit_for_bit():
    x, expected = 1.0, [1.0]
    for _ in range(N):
        x -= LR * 2 * x
        expected.append(x)
    # (lr * 2) * x there, lr * (2 * x) here: a factor 2 is exact
    assert minimise("gd").tolist() == expected


def test_mean_gradient_of_a_batch_bit_for_bit():
    batch = np.random.default_rng(3).uniform(0.5, 1.5, 32)

    def mean_slope(x):
        return np.mean(2 * batch * x)

    x, expected = 1.0, [1.0]
    for _ in range(N):
        x -= LR * mean_slope(x)
        expected.append(x)
    assert minimise("gd", mean_slope).tolist() == expected


def test_stochastic_gradient_descent_with_given_noise_bit_for_bit():
    rng = np.random.RandomState(7)
    noise = 2 * rng.randn(N)
    x, expected = 1.0, [1.0]
    for g in noise:
        x -= LR * g
        expected.append(x)
    given = iter(noise)
    assert minimise("sgd", lambda x: next(given)).tolist() == expected


def adam(eps, b1, b2, denominator):
    x, m, v, trace = 1.0, 0.0, 0.0, [1.0]
    for t in range(1, N + 1):
        g = 2 * x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        x -= LR * (m / (1 - b1**t)) / denominator(math.sqrt(v / (1 - b2**t)), eps)
        trace.append(x)
    return trace


def test_adam():
    expected = adam(1e-8, 0.9, 0.999, lambda root, eps: root + eps)
    np.testing.assert_allclose(minimise("adam"), expected, rtol=0, atol=1e-12)


def test_one_plus_root_is_eps_one():
    expected = adam(None, 0.9, 0.9, lambda root, _: 1 + root)
    got = minimise("adam", eps=1.0, betas=(0.9, 0.9))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_moments_corrected_in_place(backend):
    """The known mistake: the corrected moments are fed back into the recurrence."""
    spec = importlib.util.spec_from_file_location("mistaken_adam", ROOT / "examples" / "mistaken_adam.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    x, m, v, expected = 1.0, 0.0, 0.0, [1.0]
    for t in range(1, N + 1):
        g = 2 * x
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        m = m / (1 - 0.9**t)
        v = v / (1 - 0.999**t)
        x -= LR * m / (math.sqrt(v) + 1e-8)
        expected.append(x)
    rule = example.MistakenAdam(lr=LR)
    got = fastgd.minimize(f, 1.0, jac=slope, method=rule, max_iter=N, tol=0, history=True, backend=backend).history
    assert got.tolist() == expected
