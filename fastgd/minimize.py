"""Minimise a function by an update rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastgd.checks import checked_number, checked_whole
from fastgd.kernels.errors import ArrayError, HyperparameterError
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES
from fastgd.kernels.rules.sgd import SGD
from fastgd.memory import as_array, namespace, on_gpu
from fastgd.optimizer import Optimizer

CONVERGED, EXHAUSTED, DIVERGED, STOPPED = 0, 1, 2, 99


class OptimizeResult(dict[str, Any]):
    """Result of `minimize`: a dict whose keys are also attributes, with scipy's names.

    Attributes
    ----------
    x
        The last iterate, in the shape of x0.
    fun
        The function there.
    jac
        The last gradient that was computed; after ``max_iter`` iterations with a callable jac it is that of the
        iterate before.
    nit, nfev, njev : int
        Iterations, and evaluations of the function and of its gradient.
    success : bool
        Whether status is 0.
    status : int
        0 converged, 1 ``max_iter`` reached, 2 not finite, 99 stopped by the callback.
    message : str
        The same in words.
    history
        With ``history=True``, nit + 1 iterates, x0 first, stacked.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the result has no {name!r}; it has {', '.join(self)}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{key:>{width}}: {value!r}" for key, value in self.items())


def minimize(
    fun: Callable[[Any], Any],
    x0: ArrayLike,
    jac: Callable[[Any], Any] | bool | None = None,
    method: str | Rule = "adam",
    *,
    lr: float | None = None,
    max_iter: int = 1000,
    tol: float = 1e-6,
    callback: Callable[[OptimizeResult], object] | None = None,
    history: bool = False,
    backend: str = "auto",
    **hyper: Any,
) -> OptimizeResult:
    """Minimise a function of a number or an array.

    Parameters
    ----------
    fun : callable
        ``fun(x)`` gives a number; or an array, whose sum is then minimised.
    x0 : number or array
        Where to start; never written. Computed in float64, unless it is float32. On a GPU it is an array of float32 or
        float64, and `fun` and `jac` get and give arrays of CuPy.
    jac : callable, True or None
        ``jac(x)`` gives the gradient in the shape of x0 and is called exactly once per iteration, at the current x.
        True: ``fun`` returns the pair (f, g). None: forward differences by scipy, which must be installed.
    method : str or Rule
        ``"gd"``, ``"momentum"`` (SGD with momentum 0.9), any rule's lower-case name, or a rule.
    lr : float, optional
        Learning rate; by default the rule's.
    max_iter : int
        Most iterations, >= 0.
    tol : float
        Stop when no element of the gradient is larger than this in size, >= 0; 0 runs all of `max_iter`.
    callback : callable, optional
        ``callback(intermediate_result)`` after each iteration, with x, fun, jac and nit; StopIteration stops.
    history : bool
        Keep every iterate.
    backend : str
        See `fastgd.Optimizer`.
    **hyper
        Further hyperparameters of the rule: ``betas=``, ``eps=`` ...

    Returns
    -------
    OptimizeResult

    Raises
    ------
    HyperparameterError
        For an unknown method or hyperparameter, a value out of range, and a rule that does not serve x0's shape.
    ArrayError
        For an x0 that is not real, or a gradient of another shape.
    ImportError
        Without `jac` where scipy is missing.

    Notes
    -----
    Without a callback a callable `jac` leaves `fun` to be evaluated once, at the end.

    Examples
    --------
    >>> import fastgd
    >>> result = fastgd.minimize(lambda x: (x - 3) ** 2, 0.0, jac=lambda x: 2 * (x - 3), method="gd", lr=0.25)
    >>> result.success, round(result.x, 4)
    (True, 3.0)
    """
    rule = _rule(method, lr, hyper)
    max_iter = checked_whole("max_iter", max_iter, 0)
    tol = checked_number("tol", tol, 0.0)
    x = _start(x0)
    if not rule.serves(x.shape):
        raise HyperparameterError(
            f"method {type(rule).__name__} does not serve an x0 of shape {x.shape}: give another, or x0 as a matrix"
        )
    problem = _Problem(fun, jac, x)
    optimizer = Optimizer(x, rule, backend=backend)
    xp = namespace(x)
    iterates = [x.copy()]
    status, nit = EXHAUSTED, 0
    with np.errstate(all="ignore"):  # what overflows is found here and reported
        while nit < max_iter:
            gradient = problem.gradient()
            if not (xp.isfinite(gradient).all() and problem.known_is_finite()):
                status = DIVERGED
                break
            if tol > 0 and (not gradient.size or abs(gradient).max() <= tol):
                status = CONVERGED
                break
            optimizer.step(gradient)
            problem.moved()
            nit += 1
            if history:
                iterates.append(x.copy())
            if not xp.isfinite(x).all():
                status = DIVERGED
                break
            if callback is not None and not _carry_on(callback, problem, nit):
                status = STOPPED
                break
        # many functions raise at infinity, where there is nothing to learn from them
        value = problem.value() if xp.isfinite(x).all() else math.nan
    if status in (CONVERGED, EXHAUSTED) and not _is_finite(value):
        status = DIVERGED
    result = OptimizeResult(
        x=_result_form(x),
        fun=value,
        jac=_result_form(problem.g),
        nit=nit,
        nfev=problem.nfev,
        njev=problem.njev,
        success=status == CONVERGED,
        status=status,
        message=_message(status, nit, rule, tol),
    )
    if history:
        result["history"] = xp.stack(iterates)
    return result


def _message(status: int, nit: int, rule: Rule, tol: float) -> str:
    if status == CONVERGED:
        return f"converged: no element of the gradient is larger than {tol:g}, after {nit} iterations"
    if status == DIVERGED:
        if nit == 0:
            return "not finite: the function or its gradient at x0"
        lr = getattr(rule, "lr", None)
        advice = f"; try a learning rate below {lr:g}" if lr else ""
        return f"diverged: x, the gradient or the function is not finite after {nit} iterations{advice}"
    if status == STOPPED:
        return f"stopped by the callback after {nit} iterations"
    return f"max_iter reached: {nit} iterations" + (f", tol {tol:g} not met" if tol else "")


def _carry_on(callback: Callable[[OptimizeResult], object], problem: _Problem, nit: int) -> bool:
    value = problem.value()  # first: with jac=True it brings the gradient too
    state = OptimizeResult(x=_result_form(problem.x), fun=value, jac=_result_form(problem.g), nit=nit)
    try:
        callback(state)
    except StopIteration:
        return False
    return True


class _Problem:
    """The user's function and gradient at the current x, counted; neither is computed twice for one x.

    They are given copies of x, which the caller may keep or write, and of the gradient one is kept.
    """

    def __init__(self, fun: Callable[[Any], Any], jac: Any, x: Any) -> None:
        if not callable(fun):
            raise HyperparameterError(f"fun must be callable, given {fun!r}")
        if not (callable(jac) or jac is True or jac is None):
            raise HyperparameterError(f"jac must be callable, True or None, given {jac!r}")
        self.fun, self.jac, self.x = fun, jac, x
        self.g = x.copy()  # one array throughout, which the optimizer checks but once
        self.g.fill(math.nan)
        self.nfev = self.njev = 0
        if jac is None and on_gpu(x):
            raise HyperparameterError("jac must be given for an x0 on a GPU: differences are taken on the host")
        self._approximate = _forward_differences() if jac is None else None
        self._value: Any = None

    def moved(self) -> None:
        """Forget the value: x has changed."""
        self._value = None

    def gradient(self) -> Any:
        if self.jac is True:
            self.value()
            return self.g
        self.njev += 1
        if self._approximate is None:
            self._take_gradient(self.jac(_user_form(self.x)))
        else:
            flat = self.x.reshape(-1).astype(np.float64)
            step = np.sqrt(np.finfo(self.x.dtype).eps) * np.maximum(1.0, np.abs(flat))
            slopes = self._approximate(flat, lambda y: np.sum(self._call(y.reshape(self.x.shape))), step)
            self._take_gradient(slopes.reshape(self.x.shape))
        return self.g

    def value(self) -> Any:
        if self._value is None:
            given = self._call(self.x)
            if self.jac is True:
                if not isinstance(given, tuple) or len(given) != 2:
                    raise ArrayError(f"with jac=True fun must return the pair (f, g), given {type(given).__name__}")
                given, slope = given
                self.njev += 1
                self._take_gradient(slope)
            value: Any = given if on_gpu(given) else np.asarray(given)
            if value.dtype.kind not in "fiu":
                raise ArrayError(f"fun must give a real number or an array of them, given {type(given).__name__}")
            self._value = float(value) if value.ndim == 0 else value
        return self._value

    def known_is_finite(self) -> bool:
        """Whether the value, unless it is yet to be computed, is finite."""
        return self._value is None or _is_finite(self._value)

    def _call(self, x: Any) -> Any:
        self.nfev += 1
        return self.fun(_user_form(x))

    def _take_gradient(self, given: Any) -> None:
        gradient: Any = given if on_gpu(given) else np.asarray(given)
        if on_gpu(gradient) != on_gpu(self.x):
            raise ArrayError(f"jac must give an array in the memory of x0, given {type(given).__name__}: move it there")
        if gradient.dtype.kind not in "fiu":
            raise ArrayError(f"jac must give real numbers, given {type(given).__name__} of {gradient.dtype}")
        if gradient.shape != self.x.shape:
            raise ArrayError(f"jac must give an array of x0's shape {self.x.shape}, given {gradient.shape}")
        self.g[...] = gradient


def _forward_differences() -> Callable[..., Any]:
    try:
        from scipy.optimize import approx_fprime
    except ImportError:
        raise ImportError("minimize without jac needs scipy: pip install scipy, or give jac") from None
    approximate: Callable[..., Any] = approx_fprime
    return approximate


def _is_finite(value: Any) -> bool:
    """Whether a number, or every element of an array, is finite."""
    return math.isfinite(value) if isinstance(value, float) else bool(namespace(value).isfinite(value).all())


def _user_form(x: Any) -> Any:
    """Copy; of a 0-d array NumPy's scalar, which overflows to infinity where Python's float raises."""
    return x[()] if x.ndim == 0 and isinstance(x, np.ndarray) else x.copy()


def _result_form(x: Any) -> Any:
    return float(x) if x.ndim == 0 and x.dtype == np.float64 else _user_form(x)


def _start(x0: Any) -> Any:
    if on_gpu(x0):
        given = as_array(x0, "x0", writeable=False)
        namespace(given)  # which not every library has
        return given.copy()
    try:
        given = np.asarray(x0)
    except ValueError as error:
        raise ArrayError(f"x0 must be a real number or array: {error}") from None
    if given.dtype.kind not in "fiu" or isinstance(x0, np.ma.MaskedArray):
        raise ArrayError(f"x0 must be a real number or array, given {type(x0).__name__} of {given.dtype}")
    return np.array(given, np.float32 if given.dtype == np.float32 else np.float64, order="C")


def _rule(method: str | Rule, lr: float | None, hyper: dict[str, Any]) -> Rule:
    given = {**hyper} if lr is None else {**hyper, "lr": lr}
    if isinstance(method, Rule):
        cls: type[Rule] = type(method)
    elif method == "momentum":
        cls, given = SGD, {"momentum": 0.9, **given}
    elif isinstance(method, str) and method in RULES:
        cls = RULES[method]
    else:
        known = ", ".join(sorted([*RULES, "momentum"]))
        raise HyperparameterError(f"method must be one of {known}, or a Rule, given {method!r}")
    unknown = set(given) - set(cls.hyperparameters())
    if unknown:
        raise HyperparameterError(
            f"{cls.__name__} has no {sorted(unknown)[0]!r}; it has {', '.join(cls.hyperparameters())}"
        )
    if isinstance(method, Rule):
        return dataclasses.replace(method, **given)  # type: ignore[type-var]  # rules are dataclasses
    return cls(**given)
