from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import fastgd
from fastgd.kernels.errors import ArrayError, BackendUnavailable, HyperparameterError
from fastgd.kernels.rules import RULES
from fastgd.kernels.rules.sgd import SGD


def f(x):
    return (x - 3) ** 2


def df(x):
    return 2 * (x - 3)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def rosenbrock_slope(x):
    return np.array([-2 * (1 - x[0]) - 400 * x[0] * (x[1] - x[0] ** 2), 200 * (x[1] - x[0] ** 2)])


@pytest.mark.parametrize("method", [*RULES, "momentum", SGD(lr=0.1)], ids=str)
def test_every_method_finds_a_minimum(method):
    # their steps shrink with the squares of all gradients, and start at 1e-3 of the root of their own
    how = {"adagrad": dict(lr=0.5), "adadelta": dict(lr=10.0), "dadaptadam": {}}.get(
        method, {} if isinstance(method, SGD) else dict(lr=0.01)
    )
    x0 = np.array([0.5, 2.0])
    if method in RULES and not RULES[method]().serves(x0.shape):  # its fallback would
        x0 = x0.reshape(1, 2)
    result = fastgd.minimize(f, x0, jac=df, method=method, max_iter=2000, **how)
    np.testing.assert_allclose(result.x, 3, atol=0.1)  # LAMB's steps do not shrink


def test_scalar_and_array_forms():
    result = fastgd.minimize(f, 0, jac=df, method="gd", lr=0.25)
    assert type(result.x) is float
    assert type(result.fun) is float
    assert result.success
    assert result["status"] == result.status == 0
    assert "converged" in result.message
    assert abs(result.jac) <= 1e-6
    x0 = np.ones((2, 3), np.float32)
    result = fastgd.minimize(lambda x: float(f(x).sum()), x0, jac=df, method="gd", lr=0.25, history=True)
    assert result.x.shape == (2, 3)
    assert result.x.dtype == np.float32
    assert (x0 == 1).all()
    assert result.history.shape == (result.nit + 1, 2, 3)
    assert (result.history[0] == x0).all()
    assert (result.history[-1] == result.x).all()
    assert fastgd.minimize(f, np.ones(3, int), jac=df, max_iter=1).x.dtype == np.float64


def test_gradient_is_called_once_per_iteration_at_the_current_x():
    seen = []

    def recorded(x):
        seen.append(x)
        return df(x)

    result = fastgd.minimize(f, 1.0, jac=recorded, method="sgd", lr=0.1, max_iter=7, tol=0, history=True)
    assert seen == result.history[:-1].tolist()
    assert (result.nit, result.njev, result.nfev) == (7, 7, 1)
    assert result.status == 1
    assert not result.success
    assert "max_iter" in result.message
    result = fastgd.minimize(f, 1.0, jac=recorded, method="gd", lr=0.5, max_iter=7)
    assert (result.nit, result.njev, result.status) == (1, 2, 0)


def test_tol_zero_runs_on_at_the_minimum():
    assert fastgd.minimize(f, 3.0, jac=df, max_iter=5, tol=0).nit == 5
    assert fastgd.minimize(f, 3.0, jac=df, max_iter=5).nit == 0
    assert fastgd.minimize(f, 1.0, jac=df, max_iter=0).nit == 0


def test_pair_of_value_and_gradient():
    calls = []

    def both(x):
        calls.append(x.copy())
        return rosenbrock(x), rosenbrock_slope(x)

    result = fastgd.minimize(both, [-1.0, 1.0], jac=True, lr=0.02, max_iter=6000)
    np.testing.assert_allclose(result.x, 1, atol=1e-3)
    assert result.nfev == result.njev == len(calls)
    assert result.fun == rosenbrock(result.x)
    np.testing.assert_array_equal(result.jac, rosenbrock_slope(result.x))


def test_finite_differences_need_scipy():
    pytest.importorskip("scipy")
    result = fastgd.minimize(rosenbrock, [0.5, 0.5], lr=0.02, max_iter=4000, tol=1e-5)
    np.testing.assert_allclose(result.x, 1, atol=1e-2)
    assert result.nfev > result.njev
    code = "import sys; sys.modules['scipy'] = None; import fastgd; fastgd.minimize(abs, 1.0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "minimize without jac needs scipy" in done.stderr.splitlines()[-1]


def test_divergence_says_so():
    result = fastgd.minimize(f, 1.0, jac=df, method="gd", lr=10.0, max_iter=5000)
    assert result.status == 2
    assert not result.success
    assert "diverged" in result.message
    assert "below 10" in result.message
    assert fastgd.minimize(f, 1.0, jac=lambda x: np.nan).message == "not finite: the function or its gradient at x0"


@pytest.mark.parametrize("x0", [1.0, np.ones(3)], ids=["number", "array"])
@pytest.mark.parametrize("form", ["jac", "pair", "differences"])
def test_overflow_is_divergence_and_no_exception(x0, form):
    def fun(x):
        return np.sum(x**2)

    if form == "differences":
        pytest.importorskip("scipy")
    given = {"jac": (fun, df), "pair": (lambda x: (fun(x), 2 * x), True), "differences": (fun, None)}[form]
    result = fastgd.minimize(given[0], x0, jac=given[1], method="gd", lr=10.0, max_iter=5000)
    assert result.status == 2
    assert "diverged" in result.message


def test_a_function_that_raises_at_infinity_is_not_called_there():
    result = fastgd.minimize(
        lambda x: math.cos(x), 1.0, jac=lambda x: -math.sin(x), method="gd", lr=1.7e308, max_iter=99
    )
    assert result.status == 2
    assert math.isnan(result.fun)


def test_no_success_with_a_value_that_is_not_finite():
    assert fastgd.minimize(lambda x: np.nan, 1.0, jac=lambda x: 0 * x).status == 2
    assert fastgd.minimize(lambda x: (np.inf, 1.0), 1.0, jac=True).nit == 0


def test_what_the_functions_do_with_x_is_their_own_affair():
    kept = []

    def spoil(x):
        kept.append(x)
        x *= 2
        return x

    result = fastgd.minimize(lambda x: float(np.sum(x**2)), np.ones(2), spoil, "gd", lr=0.1, max_iter=3, tol=0)
    expected = fastgd.minimize(lambda x: float(np.sum(x**2)), np.ones(2), lambda x: 2 * x, "gd", lr=0.1, max_iter=3)
    assert np.array_equal(result.x, expected.x)
    assert [k[0] for k in kept] == pytest.approx([2.0, 1.6, 1.28])
    identity = fastgd.minimize(lambda x: float(x @ x) / 2, np.ones(2), lambda x: x, "gd", lr=0.5, max_iter=2)
    assert identity.jac.tolist() == [0.5, 0.5]
    assert identity.x.tolist() == [0.25, 0.25]


def test_no_value_is_computed_twice():
    calls = []

    def counted(x):
        calls.append(x)
        return f(x)

    result = fastgd.minimize(counted, 1.0, jac=df, max_iter=5, callback=lambda r: None)
    assert result.nfev == len(calls) == len(set(calls)) == 5


def test_callback_sees_and_stops():
    seen = []

    def watch(intermediate_result):
        seen.append((intermediate_result.nit, intermediate_result.x, intermediate_result.fun))
        if intermediate_result.nit == 3:
            raise StopIteration

    result = fastgd.minimize(f, 1.0, jac=df, method="gd", lr=0.1, callback=watch)
    assert result.status == 99
    assert result.nit == 3
    assert [s[0] for s in seen] == [1, 2, 3]
    assert seen[-1][1] == result.x
    assert seen[-1][2] == f(result.x)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (dict(method="newton"), HyperparameterError, "'newton'"),
        (dict(method=3), HyperparameterError, "method"),
        (dict(lr=-1), HyperparameterError, "lr"),
        (dict(gamma=1), HyperparameterError, "no 'gamma'"),
        (dict(betas=(0.9, 2)), HyperparameterError, "betas"),
        (dict(max_iter=-1), HyperparameterError, "max_iter"),
        (dict(max_iter=1.5), HyperparameterError, "max_iter"),
        (dict(tol=-1), HyperparameterError, "tol"),
        (dict(tol=float("nan")), HyperparameterError, "tol"),
        (dict(jac="2-point"), HyperparameterError, "jac"),
        (dict(x0="one"), ArrayError, "x0"),
        (dict(x0=1j), ArrayError, "x0"),
        (dict(x0=np.ones(2), jac=lambda x: np.ones(3)), ArrayError, r"\(2,\), given \(3,\)"),
        (dict(jac=True), ArrayError, "pair"),
        (dict(jac=lambda x: None), ArrayError, "jac must give real numbers"),
        (dict(jac=lambda x: 1j), ArrayError, "jac must give real numbers"),
        (dict(fun=lambda x: None), ArrayError, "fun must give a real number"),
        (dict(method=["adam"]), HyperparameterError, "method"),
        (dict(x0=[[1.0], [1.0, 2.0]]), ArrayError, "x0"),
        (dict(fun=3), HyperparameterError, "fun"),
        (dict(backend="cupy"), BackendUnavailable, "cupy"),
    ],
)
def test_bad_input_is_named(how, error, message):
    given = dict(fun=f, x0=1.0, jac=df) | how
    with pytest.raises(error, match=message) as caught:
        fastgd.minimize(**given)
    assert "\n" not in str(caught.value)
