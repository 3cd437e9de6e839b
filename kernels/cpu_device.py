"""A rule's update as a function of one element, for jitted loops of a user's own, on the CPU and on a GPU.

The function that a user calls only calls another one, of which there are two: Numba takes the one of the target that it
compiles for. That of the GPU is made when a kernel is first compiled with it, and numba-cuda is not loaded before.

What a user's function was compiled with must show in the types of its arguments, or Numba's cache on disk gives it the
old arithmetic after an upgrade. Hence the scalars of a step travel in a named tuple whose class is named after the
printed text.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import operator
import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
from numba import njit, typeof, types
from numba.core import cgutils
from numba.extending import (
    NativeValue,
    make_attribute_wrapper,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)
from numpy.typing import NDArray

from fastgd.kernels.cpu import FLAGS
from fastgd.kernels.errors import ArrayError, HyperparameterError, RuleError
from fastgd.kernels.language import Sweep
from fastgd.kernels.plan import plan
from fastgd.kernels.printers import rounded_text, scalar_text
from fastgd.kernels.rule import Rule, state_name, step_number
from fastgd.kernels.rules import RULES


def device(rule: str | type[Rule] | Rule, dtype: Any = "float32", **options: Any) -> Any:
    """Compile a rule's update of one element, to be called inside ``@njit`` functions and ``@cuda.jit`` kernels.

    Parameters
    ----------
    rule : str, subclass of Rule, or Rule
        A registered rule by its lower-case name, or one's own.
    dtype : {"float32", "float64"}
        What it computes in; other arguments are rounded to it.
    **options
        Hyperparameters. They become the defaults of ``hyper``; those that are static options of the rule, such as
        ``amsgrad``, are folded into the arithmetic and fixed.

    Returns
    -------
    Numba function
        Takes ``p, g``, the states and ``h``, and returns the new ``p`` and states; one number for a rule without
        states. The bits are those of `fastgd.Optimizer`, in kernels of numba-cuda too, unless ``fastmath`` is on. To be
        a global of the function that calls it; ``h`` an argument, so that a cached function is compiled anew when the
        arithmetic changes. Attributes, for the host:

        hyper(t, *, scale=1.0, **hyperparameters)
            Scalars ``h`` of step `t`, from 1: a named tuple of numbers in `dtype`, computed in float64 and rounded
            once. For a range or sequence of steps, an array-like of them: inside ``@njit`` too ``hs[k]`` is the
            ``h`` of the kth, and ``len(hs)`` their number. A callable is a schedule, called with ``t - 1``. The
            gradient is multiplied by `scale` first (-1 climbs). A kernel of a GPU takes the ``h`` of one step.
        arrays : tuple of str
            What it takes before ``h``.
        writes : tuple of str
            What it returns.
        states : dict of str to str
            Names of the states inside the rule and outside, in the order of the arguments.
        start : dict of str to "p" or float
            Where a state does not start at zero; ``"p"`` is a copy of the parameters.
        rule : Rule
            The rule with its defaults.

    Raises
    ------
    HyperparameterError
        For an unknown rule or hyperparameter, a value out of range; in ``hyper`` also for a static option's change,
        a step below 1, and a scalar that `dtype` cannot hold.
    RuleError
        For a rule that needs sums over whole arrays, or that keeps scalar states between steps.
    ArrayError
        For another dtype. When a function is compiled that calls it: for an argument that is not one real number; for
        an ``h`` that is not of this rule it is a HyperparameterError, and with Numba's own target for CUDA, which is
        not numba-cuda, a BackendUnavailable.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> from numba import njit
    >>> adam = fastgd.kernels.device("adam", dtype="float64")
    >>> @njit
    ... def minimise(x, hs):  # (x - 3)**2
    ...     m = v = 0.0
    ...     for k in range(len(hs)):
    ...         x, m, v = adam(x, 2 * (x - 3), m, v, hs[k])
    ...     return x
    >>> round(minimise(0.0, adam.hyper(range(1, 501), lr=0.1)), 3)
    3.0
    """
    made = _rule_of(rule, options)
    try:
        kind = np.dtype("V" if dtype is None else dtype)  # to NumPy, None is float64
    except TypeError:
        kind = np.dtype("V")
    if kind.char not in "fd" or not kind.isnative:
        raise ArrayError(f"dtype must be float32 or float64, given {dtype!r}")
    return _device(made, kind)


def _rule_of(rule: object, options: dict[str, Any]) -> Rule:
    if isinstance(rule, str) and rule in RULES:
        rule = RULES[rule]
    if isinstance(rule, type) and issubclass(rule, Rule):
        _refuse_unknown(rule, options)
        return rule(**options)
    if isinstance(rule, Rule):
        return _with(rule, options) if options else rule
    raise HyperparameterError(f"rule must be one of {', '.join(map(repr, RULES))}, or a Rule, given {rule!r}")


def _with(rule: Rule, changes: Mapping[str, Any]) -> Rule:
    _refuse_unknown(type(rule), changes)
    return type(rule)(**{n: changes.get(n, getattr(rule, n)) for n in rule.hyperparameters()})


def _refuse_unknown(cls: type[Rule], given: Iterable[str]) -> None:
    names = cls.hyperparameters()
    for name in given:
        if name not in names:
            raise HyperparameterError(f"{cls.__name__} has no {name!r}; it has {', '.join(names)}")


@lru_cache(maxsize=256)
def _device(rule: Rule, dtype: np.dtype[Any]) -> Any:
    title = type(rule).__name__
    p = plan(rule)
    if p.matrix is not None:
        raise RuleError(
            f"{title} has no update of one element: its step is of whole arrays; use the optimizer or fastgd.functional"
        )
    if p.scalar_states:
        raise RuleError(
            f"{title} keeps numbers from step to step ({', '.join(p.scalar_states)}), "
            "which an update of one element cannot; use the optimizer"
        )
    if p.combine is not None:
        raise RuleError(
            f"{title} has no update of one element: its step needs sums over whole arrays "
            f"({', '.join(p.sweeps[0].terms)}) first; use the optimizer or fastgd.functional"
        )
    if "scale" in rule.hyperparameters():
        raise RuleError(f"{title}: `scale` is the gradient's factor here; give the hyperparameter another name")
    (sweep,) = p.sweeps
    update, name = _compiled(sweep, title.lower(), dtype)
    update.hyper = _hyper(rule, sweep.scalars, dtype, _step_class(name, sweep.scalars))
    update.rule = rule
    update.arrays = sweep.arrays
    update.writes = tuple(sweep.writes)
    update.states = {s: state_name(rule, s) for s in p.states}
    update.start = {s: value for s, value in p.start.items() if s in p.states}
    return update


def _compiled(sweep: Sweep, label: str, dtype: np.dtype[Any]) -> tuple[Any, str]:
    """Dispatcher of one element's update, compiled when it is called, and a name that goes with its texts."""
    text, rounded = texts(sweep, dtype)
    digest = hashlib.sha256(repr((text, rounded, sorted(FLAGS.items()))).encode()).hexdigest()[:16]
    name = f"{label}_{dtype.name}_{digest}"
    element = made(text, name, {"_math": math, "_T": dtype.type})

    @overload(element, jit_options=FLAGS, strict=False, target="cpu")
    def on_cpu(*kinds):  # type: ignore[no-untyped-def]
        _refuse_foreign(sweep, label, kinds)
        return element

    @overload(element, jit_options=FLAGS, strict=False)  # what has no other, as numba-cuda: it asks here too
    def on_gpu(*kinds):  # type: ignore[no-untyped-def]
        from fastgd.kernels.cuda_device import library

        _refuse_foreign(sweep, label, kinds)
        return made(rounded, name, {"_lib": library(), "_T": dtype.type})

    arguments = ", ".join((*sweep.arrays, "_h"))
    names = {"_element": element, "__name__": __name__}
    exec(compile(f"def _update({arguments}):\n    return _element({arguments})\n", f"<{name}>", "exec"), names)
    update: Any = names["_update"]
    update.__qualname__ = f"{name}_update"
    update.__name__ = label
    update.__doc__ = f"{', '.join(sweep.writes)} = {label}({', '.join(sweep.arrays)}, h): one element."
    return njit(**FLAGS)(update), name


def texts(sweep: Sweep, dtype: np.dtype[Any]) -> tuple[str, str]:
    """Give the texts of ``_rule`` and of ``_element``, which calls it: for the CPU and for a GPU."""
    # Rounding what is already of the type costs nothing; a float64 that crept in would widen all that follows.
    taken = [f"_T({a})" for a in sweep.arrays] + [f"_T(_h.{s})" for s in sweep.scalars]
    element = (
        f"def _element({', '.join(sweep.arrays)}, _h):\n"
        f"    return _rule({', '.join(taken)}){'[0]' * (len(sweep.writes) == 1)}\n"
    )
    kind: Any = dtype.name
    return scalar_text(sweep, "_rule", kind) + element, rounded_text(sweep, "_rule", kind) + element


def made(text: str, name: str, names: dict[str, Any]) -> Any:
    """Make the function ``_element`` of a text that sees `names`; what it calls is for Numba, for any target."""
    names["__name__"] = __name__
    exec(compile(text, f"<{name}>", "exec"), names)
    for inner in ("_rule", "_element"):
        # The name is part of the machine code's symbol: see "Printed functions carry the kernel's name" in
        # docs/decisions.md; what a user's cached functions bring is told apart by it.
        names[inner].__qualname__ = name + inner
    names["_rule"] = njit(**FLAGS)(names["_rule"])
    return names["_element"]


def _refuse_foreign(sweep: Sweep, label: str, kinds: tuple[Any, ...]) -> None:
    """Refuse types of arguments that cannot be meant; Numba shows an error that is not its own as it is."""
    *numbers, h = kinds
    for name, kind in zip(sweep.arrays, numbers, strict=True):
        if not isinstance(kind, types.Number | types.Boolean | types.Optional) or isinstance(kind, types.Complex):
            raise ArrayError(f"{label}: {name} must be one real number, given {kind}")
    step = getattr(h, "instance_class", None)
    if getattr(step, "_fields", None) != sweep.scalars or _NAME.sub("", step.__name__) != label:  # type: ignore[union-attr]
        given = h if step is None else step.__name__
        raise HyperparameterError(f"{label}: h must be what its own hyper(t) gives for one step, given {given}")


# ---- the scalars of a step ---------------------------------------------------------------------------------------
# Numba keeps the types of arguments in its files, classes by module and name. A class must therefore be found here
# again by another process: else nothing is ever taken from the cache. One that is no longer made, because the rule
# has changed, must be found too: else reading the file raises.

_NAME = re.compile(r"_float(32|64)_[0-9a-f]{16}$")
_STEPS: dict[str, Any] = {}
_GONE: dict[str, Any] = {}


def _step_class(name: str, fields: tuple[str, ...]) -> Any:
    if name not in _STEPS:
        _STEPS[name] = namedtuple(name, fields, module=__name__)
    return _STEPS[name]


def __getattr__(name: str) -> Any:
    if name in _STEPS:
        return _STEPS[name]
    if _NAME.search(name):
        return _GONE.setdefault(name, namedtuple(name, (), module=__name__))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Steps:
    """Scalars of several steps; ``steps[k]`` are those of the kth, in Python and inside ``@njit``."""

    def __init__(self, step: Any, rows: NDArray[Any]) -> None:
        self.step = step
        self.rows = rows
        self.rows.flags.writeable = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> Any:
        return self.step(*self.rows[operator.index(k)])

    def __repr__(self) -> str:
        return f"<{len(self)} steps of {self.step.__name__}>"


def _hyper(rule: Rule, names: tuple[str, ...], dtype: np.dtype[Any], step: Any) -> Callable[..., Any]:
    title = type(rule).__name__
    options = rule.options()

    def changed(changes: Mapping[str, Any]) -> Rule:
        made = _with(rule, changes)
        altered = [o for o, v in made.options().items() if v != options[o]]
        if altered:
            raise HyperparameterError(
                f"{title}: the change alters {', '.join(altered)}, which is fixed in this function; "
                "give it to fastgd.kernels.device"
            )
        return made

    def hyper(t: Any, *, scale: float = 1.0, **changes: Any) -> Any:
        if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
            raise HyperparameterError(f"{title}: scale must be a finite number, given {scale!r}")
        scheduled = any(map(callable, changes.values()))
        here = rule if scheduled or not changes else changed(changes)
        several = isinstance(t, Iterable)
        table = []
        for given in t if several else (t,):
            number = step_number(given, title)
            if scheduled:
                here = changed({n: v(number - 1) if callable(v) else v for n, v in changes.items()})
            values = here.prepare(number)
            values["gscale"] = scale
            table.append([values[n] for n in names])
        exact = np.array(table, np.float64).reshape(-1, len(names))
        with np.errstate(over="ignore"):
            rows = exact.astype(dtype)
        for k, i in np.argwhere(np.isinf(rows) & np.isfinite(exact)):
            raise HyperparameterError(
                f"{title}: a step's {names[i]} is {float(exact[k, i])!r}, which {dtype} cannot hold"
            )
        return Steps(step, rows) if several else step(*rows[0])

    kind = inspect.Parameter.KEYWORD_ONLY
    hyper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("t", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(inspect.Parameter(n, kind, default=getattr(rule, n)) for n in rule.hyperparameters()),
            inspect.Parameter("scale", kind, default=1.0),
        ]
    )
    hyper.__doc__ = f"Scalars of step t of {title}, or of several; see `fastgd.kernels.device`."
    return hyper


class StepsType(types.Type):
    """What Numba knows of a `Steps`."""

    def __init__(self, name: str, rows: Any) -> None:
        self.step = name
        self.rows = rows
        super().__init__(name=f"Steps({name})")


@typeof_impl.register(Steps)
def _typeof_steps(value: Steps, context: Any) -> StepsType:
    return StepsType(value.step.__name__, typeof(value.rows))  # type: ignore[no-untyped-call]


@register_model(StepsType)
class _StepsModel(models.StructModel):
    def __init__(self, manager: Any, kind: StepsType) -> None:
        super().__init__(manager, kind, [("rows", kind.rows)])  # type: ignore[no-untyped-call]


make_attribute_wrapper(StepsType, "rows", "rows")


@unbox(StepsType)  # type: ignore[untyped-decorator, no-untyped-call]
def _unbox_steps(kind: StepsType, value: Any, c: Any) -> Any:
    rows = c.pyapi.object_getattr_string(value, "rows")
    array = c.unbox(kind.rows, rows)
    steps = cgutils.create_struct_proxy(kind)(c.context, c.builder)  # type: ignore[no-untyped-call]
    steps.rows = array.value
    c.pyapi.decref(rows)
    return NativeValue(steps._getvalue(), is_error=array.is_error, cleanup=array.cleanup)  # type: ignore[no-untyped-call]


@overload(len)
def _len_of_steps(steps):  # type: ignore[no-untyped-def]
    if isinstance(steps, StepsType):
        return lambda steps: len(steps.rows)
    return None


@overload(operator.getitem)
def _step_of_steps(steps, k):  # type: ignore[no-untyped-def]
    if not isinstance(steps, StepsType) or not isinstance(k, types.Integer):
        return None
    step = _STEPS[steps.step]
    text = (
        "def _take(steps, k):\n"
        "    n = len(steps.rows)\n"
        "    if k < -n or k >= n:\n"
        "        raise IndexError('there is no such step')\n"
        f"    return _step({', '.join(f'steps.rows[k, {i}]' for i in range(len(step._fields)))})\n"
    )
    names = {"_step": step}
    exec(compile(text, f"<{steps.step}>", "exec"), names)
    names["_take"].__qualname__ = f"{steps.step}_take"
    return names["_take"]
