"""The optimizer: groups of parameters, their states, and the step."""

from __future__ import annotations

import copy
import math
import operator
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import resolve, sweep_maker
from fastgd.flat import aligned_zeros
from fastgd.gradient import GradientCheck
from fastgd.groups import Changes, Group
from fastgd.kernels.errors import CheckpointError, FastGDError, HyperparameterError
from fastgd.kernels.rule import Rule, plan, state_name
from fastgd.launch import Launch
from fastgd.targets import Arrays, Targets

_ON_NONFINITE = ("propagate", "skip", "raise")
_NOTHING: Any = object()  # no gradients bound yet; None stands for the parameters' own

_ALIVE: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def _after_fork() -> None:
    for optimizer in _ALIVE:  # another thread of the parent may have been in a step: its mark stands, its lock must not
        optimizer._lock = threading.RLock()
        optimizer._runs = []  # parallel kernels give way to serial ones, before the next step writes


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Optimizer:
    """Updates arrays in place by a rule.

    Parameters
    ----------
    params : array, FlatParams, dict or list of arrays, or list of group dicts
        What is updated: float32 or float64, C-contiguous, writeable, in place. A group dict has ``params`` (any of
        the former) or ``match`` (a name pattern, or several, that takes arrays from the other groups, as in
        ``{"match": "*.bias", "weight_decay": 0.0}``), and hyperparameters that differ from those of `rule`.
    rule : Rule
        The update rule with its hyperparameters.
    maximize : bool
        Step up the gradient instead of down.
    max_norm : float, optional
        Scale the gradient down to this global norm, > 0, when its own is larger: by ``max_norm / (norm + 1e-6)``.
    ema_decay : float, optional
        Keep an exponential moving average of the parameters, ``e += (1 - ema_decay) * (p - e)``, in [0, 1).
    on_nonfinite : {"propagate", "skip", "raise"}
        What to do when the scaled gradient holds NaN or infinity. A skipped step changes nothing, and `t` stands;
        ``"raise"`` leaves everything as it was.
    zero_grad : bool
        Set the gradient to zero in the same pass; also where a step is skipped.
    state_dtype : None
        Kept for states in lower precision; only None, the parameters' dtype, is served.
    backend : {"auto", "numpy", "numba"}
        What runs the rule; ``"auto"`` goes by where the arrays live.
    threads : int, optional
        Most threads used; by default as many as the process may run at once. It does not change a bit.

    Attributes
    ----------
    params
        The parameters as given.
    param_groups : tuple of dict
        Hyperparameters of each group. Values may be changed between steps; a callable value is a schedule, called with
        the number of steps the group has taken.
    t : int
        Number of steps taken.
    state : mapping of str to ndarray
        Flat state arrays by torch's names; segments start at multiples of 64 elements.
    ema
        Averaged parameters in the form of params, or None.
    grad_norm : float or None
        Norm of the scaled gradient at the last step, when it was computed.
    bytes_per_param : int
        Bytes read and written for each parameter in one step.

    Raises
    ------
    ArrayError, HyperparameterError, RuleError, BackendUnavailable
        At construction, naming what was given and what was expected.
    """

    def __init__(
        self,
        params: Any,
        rule: Rule,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        ema_decay: float | None = None,
        on_nonfinite: str = "propagate",
        zero_grad: bool = False,
        state_dtype: None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        if not isinstance(rule, Rule):
            raise HyperparameterError(f"rule must be a Rule such as Lion(lr=1e-4), given {rule!r}")
        if state_dtype is not None:
            raise HyperparameterError(f"state_dtype must be None, the parameters' own, given {state_dtype!r}")
        if on_nonfinite not in _ON_NONFINITE:
            raise HyperparameterError(
                f"on_nonfinite must be one of {', '.join(map(repr, _ON_NONFINITE))}, given {on_nonfinite!r}"
            )
        self.params = params
        self.backend = resolve(backend)
        self._maximize = _flag("maximize", maximize)
        self._zero_grad = _flag("zero_grad", zero_grad)
        self._max_norm = None if max_norm is None else _number("max_norm", max_norm, 0.0, math.inf, open_low=True)
        self._ema_decay = None if ema_decay is None else _number("ema_decay", ema_decay, 0.0, 1.0)
        self._ema_c = 0.0 if self._ema_decay is None else 1.0 - self._ema_decay
        self._on_nonfinite = on_nonfinite
        self._threads = threads
        self._rule = rule
        self._rule_class = type(rule)
        self._names = rule.hyperparameters()
        self._make = sweep_maker(self.backend, threads)
        self._lock = threading.RLock()  # a schedule may ask for the state

        single = not is_group_list(params)
        given = [{"params": params}] if single else params
        self._changes = Changes()
        self._groups = tuple(Group.of(g, rule, i, self._changes) for i, g in enumerate(given))
        self._rules: list[Rule] = [rule] * len(self._groups)
        self._t = 0
        self._started_at = [0] * len(self._groups)  # value of t at which a group had taken no step
        self._counted_from = 0  # value of t at which the sweeps had not run
        self._begun = 0  # the step whose writing was begun: other than t where it did not end
        self._options: list[dict[str, object]] = []
        self._reread()
        self._targets = Targets(given, single)
        self._largest = float(np.finfo(self._targets.dtype).max)
        self._build()
        self._start_states()
        _ALIVE.add(self)

    # ---- construction

    def _build(self) -> None:
        """Make a launch of each distinct set of options."""
        self._options = [rule.options() for rule in self._rules]
        sets: list[tuple[dict[str, object], list[int]]] = []
        for i, options in enumerate(self._options):
            for known, members in sets:
                if known == options:
                    members.append(i)
                    break
            else:
                sets.append((options, [i]))
        self._launches = []
        for _, members in sets:
            rule = self._rules[members[0]]
            p = plan(rule, ema=self._ema_decay is not None, zero_grad=self._zero_grad)
            self._launches.append(Launch(p, rule, members, self._targets, self._make))
        if len(sets) > 1 and any(x.plan.level == "total" for x in self._launches):
            raise HyperparameterError(
                f"{self._rule_class.__name__} sums over all parameters: "
                f"its groups must agree in {', '.join(sets[0][0])}"
            )
        self._check: GradientCheck | None = None
        if self._max_norm is not None or self._on_nonfinite != "propagate":
            self._check = GradientCheck(self._targets, self._make, self._max_norm, self._on_nonfinite)
        self._prepares = [(x.prepare, index, i) for x in self._launches for index, i in enumerate(x.groups)]
        self._runs: list[Callable[[], None]] = []  # once all are compiled
        self._gradients: Arrays | None = None
        self._given: Any = _NOTHING  # gradients of the last step, and the objects they consist of
        self._leaves: list[Any] = []

    def _start_states(self) -> None:
        targets = self._targets
        self._states: dict[str, NDArray[Any]] = {}
        for launch in self._launches:
            launch.bind("p", targets.parameters)
            rule = self._rules[launch.groups[0]]
            for short in launch.plan.states:
                name = state_name(rule, short)
                if name not in self._states:
                    self._states[name] = aligned_zeros(targets.extent, targets.dtype)
                    targets.take(f"the state {name!r}", [self._states[name]])
                flat = self._states[name]
                self._start(flat, launch, launch.plan.start.get(short))
                launch.bind(short, Arrays([flat], targets.flat))
        self.ema: Any = None
        self._ema: Arrays | None = None
        if self._ema_decay is not None:
            self.ema, self._ema = targets.copy()
            targets.take("ema", self._ema.arrays)
            for launch in self._launches:
                launch.bind("ema", self._ema)

    def _start(self, flat: NDArray[Any], launch: Launch, start: object) -> None:
        if start is None:
            return
        parameters = self._targets.views(self._targets.parameters)
        for s in launch.segments:
            segment = self._targets.segments[s]
            flat[segment.offset : segment.offset + segment.size] = parameters[s] if start == "p" else start

    # ---- what can be asked

    @property
    def t(self) -> int:
        """Number of steps taken."""
        return self._t

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """Hyperparameters of each group, dicts; values may be changed between steps."""
        return self._groups

    @property
    def grad_norm(self) -> float | None:
        """Norm of the scaled gradient at the last step, when it was computed."""
        return None if self._check is None else self._check.norm

    @property
    def rule(self) -> Rule:
        """Rule of the first group with its hyperparameters as of the last step."""
        return self._rules[0]

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """Flat state arrays by torch's names."""
        return MappingProxyType(self._states)

    @property
    def bytes_per_param(self) -> int:
        """Bytes read and written for each parameter in one step; the most, where groups differ in options."""
        itemsize = self._targets.dtype.itemsize
        norm = 0 if self._check is None else itemsize
        return norm + max(x.plan.bytes_per_param(itemsize) for x in self._launches)

    def __repr__(self) -> str:
        groups = len(self._groups)
        return (
            f"{type(self).__name__}({self._rules[0]!r}, {groups} group{'s' * (groups != 1)}, "
            f"{self._targets.size} elements, {self._targets.dtype}, backend={self.backend!r}, t={self.t})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        """Copy of the optimizer with the parameters and all else that it holds."""
        with self._lock:
            state = self.state_dict()
            new = object.__new__(type(self))
            memo[id(self)] = new
            Optimizer.__init__(
                new,
                copy.deepcopy(self.params, memo),
                self._rule,
                maximize=self._maximize,
                max_norm=self._max_norm,
                ema_decay=self._ema_decay,
                on_nonfinite=self._on_nonfinite,
                zero_grad=self._zero_grad,
                backend=self.backend,
                threads=self._threads,
            )
            new.load_state_dict(state)
            for group, own in zip(new._groups, self._groups, strict=True):
                group.update({n: copy.deepcopy(own[n], memo) for n in self._names})
            if new._check is not None:
                new._check.norm = self.grad_norm
            for name in vars(self).keys() - vars(new).keys():  # of a subclass, or set by the user
                setattr(new, name, copy.deepcopy(getattr(self, name), memo))
            return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled."""
        raise TypeError(
            f"{type(self).__name__} is bound to its arrays and cannot be pickled: save the parameters and "
            "opt.state_dict(), and call load_state_dict on an optimizer over the restored ones"
        )

    # ---- the step

    def step(self, grads: Any = None, scale: float = 1.0) -> None:
        """Update the parameters in place.

        Parameters
        ----------
        grads : optional
            Gradients in the form of params, of its dtype; read only, unless ``zero_grad=True``. For a FlatParams also
            its 1-D block, and by default its ``grad``. For a list of groups, a list with one for each group that has
            ``params``.
        scale : float
            The gradients are multiplied by this first: finite.

        Raises
        ------
        ArrayError
            If the gradients do not mirror the parameters.
        HyperparameterError
            If a group's value is out of range, or was changed in a way that needs another kernel.
        NonFiniteError
            With ``on_nonfinite="raise"``, for NaN or infinity in the gradients.
        FastGDError
            After a step that failed half-way, until `load_state_dict`.

        Notes
        -----
        A refused step has changed nothing. Ctrl-C during a step is raised when the step is done. Steps of one
        optimizer on several threads come one after the other; those of different ones run freely.
        """
        with self._lock:
            if self._begun != self._t:
                self._settle()
            if self._targets.foreign:
                self._targets.refuse_moved()
            if grads is not self._given:
                self._bind_gradients(grads)
            if type(scale) is not float or scale != 1.0:
                scale = self._checked_scale(scale)
            factor = -scale if self._maximize else scale
            if self._check is not None:
                clipped = self._check.measure(factor)
                if clipped is None:  # skipped
                    if self._zero_grad:
                        self._clear(self._gradients)
                    return
                factor = clipped
            if self._changes.pending:
                self._reread()
            t = self._t + 1
            for prepare, index, i in self._prepares:
                prepare(index, self._rules[i], t - self._started_at[i], factor, self._ema_c)
            if not self._runs:
                self._runs = [launch.compile() for launch in self._launches]
            try:
                self._begun = t  # memory is written from here on
                for run in self._runs:
                    run()
                self._t = t
            except BaseException as error:
                # Ctrl-C and exit come from a signal, and so may an error that comes when all is written.
                if not isinstance(error, Exception) or self._all_ran():
                    self._finish(t)
                raise

    def _finish(self, t: int) -> None:
        """Bring a step to its end that Ctrl-C stopped between two sweeps; Ctrl-C is raised behind it."""
        while self._begun != self._t:
            try:
                for launch in self._launches:
                    launch.finish(t - 1 - self._counted_from)
                self._t = t
            except (KeyboardInterrupt, SystemExit):  # another one
                pass

    def _all_ran(self) -> bool:
        """Whether every sweep of the step that was begun has run."""
        return all(launch.ran(self._begun - self._counted_from) for launch in self._launches)

    def _settle(self) -> None:
        """Count a step that was begun if nothing of it is missing, as for a signal's handler; else refuse to go on."""
        if self._begun > self._t and self._all_ran():
            self._finish(self._begun)
            return
        raise FastGDError(
            f"step {self._t + 1} failed half-way: parameters and states may hold parts of it; "
            "restore the parameters and call load_state_dict with a state saved before"
        )

    def _checked_scale(self, scale: Any) -> float:
        number = _number("scale", scale)
        if abs(number) > self._largest:
            raise HyperparameterError(f"scale must be a number that {self._targets.dtype} holds, given {scale!r}")
        return number

    def _reread(self) -> None:
        """Take over changed values of groups; the rules are rebuilt, the kernels stay."""
        try:
            self._changes.pending = False  # first: another thread may set a value while they are read
            for i, group in enumerate(self._groups):
                if group.changed:
                    self._read(i, group)
        finally:
            if any(group.changed for group in self._groups):
                self._changes.pending = True

    def _read(self, i: int, group: Group) -> None:
        try:
            group.changed = False
            rule, scheduled = group.read(self._rules[i], i, self._t - self._started_at[i])
            if self._options and rule.options() != self._options[i]:
                changed = [k for k, v in rule.options().items() if v != self._options[i][k]]
                raise HyperparameterError(
                    f"group {i}: the change alters {', '.join(changed)} of {self._rule_class.__name__}, "
                    "which is fixed when the optimizer is built; build a new one"
                )
            self._rules[i] = rule
            group.changed = group.changed or scheduled
        except BaseException:
            group.changed = True
            raise

    def _bind_gradients(self, grads: Any) -> None:
        """Validate the gradients and hand their addresses on; not those of the last step, object for object."""
        leaves = self._targets.leaves(grads)
        if (
            self._gradients is None
            or leaves is None
            or len(leaves) != len(self._leaves)
            or not all(map(operator.is_, leaves, self._leaves))
        ):
            self._leaves, self._given = [], _NOTHING
            gradients = self._targets.gradients(grads, writeable=self._zero_grad)
            for launch in self._launches:
                launch.bind("g", gradients)
            if self._check is not None:
                self._check.bind(gradients)
            self._gradients = gradients
            self._leaves = leaves or []
        # A list or dict may hold other arrays next time.
        self._given = grads if grads is None or isinstance(grads, np.ndarray) else _NOTHING

    # ---- gradients, groups, state

    def zero_grad(self) -> None:
        """Set the gradients that the parameters carry to zero.

        Raises
        ------
        ArrayError
            If they carry none (plain arrays): the gradients are the caller's.
        """
        self._clear(self._targets.gradients(None, writeable=True))

    def _clear(self, gradients: Arrays | None) -> None:
        assert gradients is not None
        for part in self._targets.views(gradients):
            part[:] = 0

    def state_dict(self) -> dict[str, Any]:
        """Copy of everything that a resumed run needs besides the parameters.

        Returns
        -------
        dict
            Keys ``rule``, ``t``, ``dtype``, ``segments``, ``param_groups``, ``state``, ``scalar_state`` and ``ema``:
            plain Python values, and arrays that are copies. A schedule is saved as the value it last gave.
        """
        with self._lock:
            if self._begun != self._t:
                self._settle()
            groups = []
            for group, rule, start in zip(self._groups, self._rules, self._started_at, strict=True):
                now = {n: getattr(rule, n) if callable(group.get(n)) else group.get(n) for n in self._names}
                made = self._rule_class(**now)  # a value that was set and not yet read is checked here
                groups.append({n: getattr(made, n) for n in self._names} | {"t": self._t - start})
            return {
                "rule": self._rule_class.__name__.lower(),
                "t": self._t,
                "dtype": str(self._targets.dtype),
                "segments": [(s.name, s.shape) for s in self._targets.segments],
                "param_groups": groups,
                "state": {name: flat.copy() for name, flat in self._states.items()},
                "scalar_state": [{k: v.tolist() for k, v in launch.scalar_states.items()} for launch in self._launches],
                "ema": None if self._ema is None else self._targets.gather(self._ema),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; all of it or, on an error, nothing.

        Raises
        ------
        CheckpointError
            If it is from another rule, dtype, layout or number of groups, or is incomplete.
        HyperparameterError
            If a hyperparameter is out of range.
        """
        with self._lock:
            own = {
                "rule": self._rule_class.__name__.lower(),
                "dtype": str(self._targets.dtype),
                "segments": [(s.name, s.shape) for s in self._targets.segments],
            }
            missing = {*own, "t", "param_groups", "state", "scalar_state", "ema"} - set(state)
            if missing:
                raise CheckpointError(f"the state has no {', '.join(map(repr, sorted(missing)))}")
            for key, expected in own.items():
                given = [(n, tuple(s)) for n, s in state[key]] if key == "segments" else state[key]
                if given != expected:
                    raise CheckpointError(f"the state's {key} must be {expected!r}, given {given!r}")
            rules = self._rules_of(state["param_groups"])
            self._check_states(state)
            t = _count(state["t"])
            started_at = [t - _count(saved["t"], t) for saved in state["param_groups"]]
            scalars_of = [
                {name: np.array(values, np.float64) for name, values in scalars.items()}
                for scalars in state["scalar_state"]
            ]
            self._begun = -1  # until all is taken over
            for rule, group in zip(rules, self._groups, strict=True):
                group.update({n: getattr(rule, n) for n in self._names if not callable(group.get(n))})
            self._rules = rules
            for name, flat in self._states.items():
                flat[:] = state["state"][name]
            for launch, scalars in zip(self._launches, scalars_of, strict=True):
                for name, values in scalars.items():
                    launch.scalar_states[name][:] = values
                launch.count_from(0)
            if self._ema is not None:
                self._targets.scatter(state["ema"], self._ema)
            self._t = self._counted_from = t
            self._started_at = started_at
            self._begun = t

    def _rules_of(self, groups: Any) -> list[Rule]:
        if not isinstance(groups, list | tuple) or not all(isinstance(saved, Mapping) for saved in groups):
            raise CheckpointError(f"the state's param_groups must be a list of dicts, given {groups!r}")
        if len(groups) != len(self._groups):
            raise CheckpointError(f"the state must have {len(self._groups)} groups, given {len(groups)}")
        rules = []
        for i, saved in enumerate(groups):
            missing = {*self._names, "t"} - set(saved)
            if missing:
                raise CheckpointError(f"group {i} of the state has no {', '.join(map(repr, sorted(missing)))}")
            rule = self._rule_class(**{n: saved[n] for n in self._names})
            if rule.options() != self._options[i]:
                raise CheckpointError(f"group {i} of the state has options {rule.options()}, here {self._options[i]}")
            rules.append(rule)
        return rules

    def _check_states(self, state: Mapping[str, Any]) -> None:
        for name, kind in (("state", Mapping), ("scalar_state", list | tuple)):
            if not isinstance(state[name], kind):
                raise CheckpointError(f"the state's {name} must not be {state[name]!r}")
        if set(state["state"]) != set(self._states):
            raise CheckpointError(f"the state must have {sorted(self._states)}, given {sorted(state['state'])}")
        arrays = dict(state["state"])
        if (state["ema"] is None) != (self._ema is None):
            raise CheckpointError(
                f"the state {'has an' if self._ema is None else 'lacks the'} ema of this optimizer's ema_decay"
            )
        if self._ema is not None:
            arrays["ema"] = state["ema"]
        shape = (self._targets.extent,)
        for name, given in arrays.items():
            if np.shape(given) != shape or np.asarray(given).dtype != self._targets.dtype:
                raise CheckpointError(
                    f"the state's {name} must be {self._targets.dtype} of shape {shape}, "
                    f"given {np.asarray(given).dtype} of shape {np.shape(given)}"
                )
        for launch, scalars in zip(self._launches, state["scalar_state"], strict=False):
            lengths = {k: len(v) for k, v in launch.scalar_states.items()}
            try:
                given = {k: len(np.array(v, np.float64)) for k, v in scalars.items()}
            except (AttributeError, TypeError, ValueError):
                given = {}
            if given != lengths:
                raise CheckpointError(f"the state's scalars must have lengths {lengths}, given {scalars}")
        if len(state["scalar_state"]) != len(self._launches):
            raise CheckpointError(f"the state must have scalars of {len(self._launches)} launches")


def is_group_list(params: Any) -> bool:
    """Tell a list of group dicts from a list of arrays."""
    return (
        isinstance(params, list | tuple)
        and bool(params)
        and all(isinstance(g, dict) and ("params" in g or "match" in g) for g in params)
    )


def _count(value: Any, most: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= most:
        raise CheckpointError(
            f"the state's t must be a number of steps, of a group at most that of all, given {value!r}"
        )
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise HyperparameterError(f"{name} must be True or False, given {value!r}")
    return value


def _number(name: str, value: Any, low: float = -math.inf, bound: float = math.inf, *, open_low: bool = False) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise HyperparameterError(f"{name} must be a number, given {value!r}") from None
    if (
        isinstance(value, bool | str)
        or not math.isfinite(number)
        or not low <= number < bound
        or (open_low and number == low)
    ):
        wanted = "finite" if low == -math.inf else f"{'above' if open_low else 'at least'} {low:g}"
        wanted += f" and below {bound:g}" if bound < math.inf else ""
        raise HyperparameterError(f"{name} must be a number, {wanted}, given {value!r}")
    return number
