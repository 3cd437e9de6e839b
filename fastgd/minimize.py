"""Minimise a function by an update rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgd.kernels.errors import ArrayError, HyperparameterError
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES
from fastgd.kernels.rules.sgd import SGD
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
        Where to start; never written. Computed in float64, unless it is float32.
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
        For an unknown method or hyperparameter, or a value out of range.
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
    max_iter = _count("max_iter", max_iter)
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 <= tol < np.inf:
        raise HyperparameterError(f"tol must be a number, at least 0, given {tol!r}")
    x = _start(x0)
    problem = _Problem(fun, jac, x)
    optimizer = Optimizer(x, rule, backend=backend)
    iterates = [x.copy()]
    status = EXHAUSTED
    nit = 0
    gradient: NDArray[Any] = np.full_like(x, np.nan)
    for nit in range(max_iter + 1):
        if nit == max_iter:
            break
        gradient = problem.gradient(x)
        if not np.isfinite(gradient).all():
            status = DIVERGED
            break
        if tol > 0 and np.abs(gradient).max(initial=0.0) <= tol:
            status = CONVERGED
            break
        optimizer.step(gradient)
        if history:
            iterates.append(x.copy())
        if callback is not None and not _carry_on(callback, problem, x, gradient, nit + 1):
            status, nit = STOPPED, nit + 1
            break
    value = problem.value(x)
    if status == EXHAUSTED and not np.isfinite(x).all():
        status = DIVERGED
    result = OptimizeResult(
        x=_given_form(x),
        fun=value,
        jac=_given_form(problem.last(gradient)),
        nit=nit,
        nfev=problem.nfev,
        njev=problem.njev,
        success=status == CONVERGED,
        status=status,
        message=_message(status, nit, rule, tol),
    )
    if history:
        result["history"] = np.stack(iterates)
    return result


def _message(status: int, nit: int, rule: Rule, tol: float) -> str:
    if status == CONVERGED:
        return f"converged: no element of the gradient is larger than {tol:g}, after {nit} iterations"
    if status == DIVERGED:
        lr = getattr(rule, "lr", None)
        advice = f"; try a learning rate below {lr:g}" if lr else ""
        return f"diverged: the gradient or x is not finite after {nit} iterations{advice}"
    if status == STOPPED:
        return f"stopped by the callback after {nit} iterations"
    return f"max_iter reached: {nit} iterations" + (f", tol {tol:g} not met" if tol else "")


def _carry_on(
    callback: Callable[[OptimizeResult], object], problem: _Problem, x: NDArray[Any], gradient: NDArray[Any], nit: int
) -> bool:
    state = OptimizeResult(x=_given_form(x.copy()), fun=problem.value(x), jac=_given_form(gradient), nit=nit)
    try:
        callback(state)
    except StopIteration:
        return False
    return True


class _Problem:
    """The user's function and gradient, counted; a value that is known for an x is not computed twice."""

    def __init__(self, fun: Callable[[Any], Any], jac: Any, x: NDArray[Any]) -> None:
        if not callable(fun):
            raise HyperparameterError(f"fun must be callable, given {fun!r}")
        if not (callable(jac) or jac is True or jac is None):
            raise HyperparameterError(f"jac must be callable, True or None, given {jac!r}")
        self.fun, self.jac = fun, jac
        self.nfev = self.njev = 0
        self._approximate = _forward_differences() if jac is None else None
        self._pair: tuple[bytes, Any, NDArray[Any]] | None = None

    def gradient(self, x: NDArray[Any]) -> NDArray[Any]:
        if self.jac is True:
            return self._both(x)[1]
        self.njev += 1
        if self._approximate is not None:
            step = float(np.sqrt(np.finfo(x.dtype).eps))
            flat = self._approximate(x.reshape(-1), lambda y: np.sum(self._call(y.reshape(x.shape))), step)
            return np.asarray(flat, x.dtype).reshape(x.shape)
        return _gradient(self.jac(_given_form(x)), x)

    def value(self, x: NDArray[Any]) -> Any:
        value = self._both(x)[0] if self.jac is True else self._call(x)
        return float(value) if np.ndim(value) == 0 else np.asarray(value)

    def last(self, gradient: NDArray[Any]) -> NDArray[Any]:
        return gradient if self._pair is None else self._pair[2]

    def _call(self, x: NDArray[Any]) -> Any:
        self.nfev += 1
        return self.fun(_given_form(x))

    def _both(self, x: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        key = x.tobytes()
        if self._pair is None or self._pair[0] != key:
            given = self._call(x)
            self.njev += 1
            if not isinstance(given, tuple) or len(given) != 2:
                raise ArrayError(f"with jac=True fun must return the pair (f, g), given {type(given).__name__}")
            self._pair = (key, given[0], _gradient(given[1], x))
        return self._pair[1], self._pair[2]


def _gradient(given: Any, x: NDArray[Any]) -> NDArray[Any]:
    gradient = np.ascontiguousarray(given, dtype=x.dtype).reshape(np.shape(given))
    if gradient.shape != x.shape:
        raise ArrayError(f"jac must give an array of x0's shape {x.shape}, given {gradient.shape}")
    return gradient


def _forward_differences() -> Callable[..., Any]:
    try:
        from scipy.optimize import approx_fprime
    except ImportError:
        raise ImportError("minimize without jac needs scipy: pip install scipy, or give jac") from None
    approximate: Callable[..., Any] = approx_fprime
    return approximate


def _given_form(x: NDArray[Any]) -> Any:
    return x[()] if x.ndim == 0 and x.dtype == np.float32 else float(x) if x.ndim == 0 else x


def _start(x0: ArrayLike) -> NDArray[Any]:
    given = np.asarray(x0)
    if given.dtype.kind not in "fiu" or isinstance(x0, np.ma.MaskedArray):
        raise ArrayError(f"x0 must be a real number or array, given {type(x0).__name__} of {given.dtype}")
    return np.array(given, np.float32 if given.dtype == np.float32 else np.float64, order="C")


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise HyperparameterError(f"{name} must be a whole number, at least 0, given {value!r}")
    return int(value)


def _rule(method: str | Rule, lr: float | None, hyper: dict[str, Any]) -> Rule:
    given = {**hyper} if lr is None else {**hyper, "lr": lr}
    if isinstance(method, Rule):
        cls: type[Rule] = type(method)
    elif method == "momentum":
        cls, given = SGD, {"momentum": 0.9, **given}
    elif method in RULES:
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
