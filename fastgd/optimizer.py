"""The optimizer: groups of parameters, their states, and the step."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import resolve, sweep_maker
from fastgd.flat import aligned_zeros
from fastgd.kernels.blocks import tree_sum
from fastgd.kernels.errors import CheckpointError, HyperparameterError, NonFiniteError
from fastgd.kernels.rule import Rule, plan, state_name
from fastgd.kernels.tail import gradient_norm, nonfinite_count
from fastgd.launch import Launch, single_sweep
from fastgd.targets import Arrays, Targets

_ON_NONFINITE = ("propagate", "skip", "raise")
_NOTHING: Any = object()  # no gradients bound yet; None stands for the parameters' own


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
    param_groups : list of dict
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
        self._on_nonfinite = on_nonfinite
        self._rule_class = type(rule)
        self._names = rule.hyperparameters()
        self._make = sweep_maker(self.backend, threads)
        self._lock = threading.Lock()
        self.t = 0
        self.grad_norm: float | None = None

        single = not is_group_list(params)
        groups = [{"params": params}] if single else [dict(g) for g in params]
        self.param_groups = [self._group(g, rule, i) for i, g in enumerate(groups)]
        self._pick = itemgetter(*self._names) if self._names else lambda _: ()
        self._seen: list[Any] = [None] * len(groups)
        self._scheduled = [False] * len(groups)
        self._rules: list[Rule] = [rule] * len(groups)
        self._t = [0] * len(groups)
        self._options: list[dict[str, object]] = []
        for i in range(len(groups)):
            self._reread(i)
        self._targets = Targets(groups, single)
        self._largest = float(np.finfo(self._targets.dtype).max)
        self._build()
        self._start_states()

    # ---- construction

    def _group(self, given: Mapping[str, Any], rule: Rule, index: int) -> dict[str, Any]:
        known = {"params", "match", *self._names}
        for name in given:
            if name not in known:
                raise HyperparameterError(
                    f"group {index}: {self._rule_class.__name__} has no {name!r}; it has {', '.join(self._names)}"
                )
        if ("params" in given) == ("match" in given):
            raise HyperparameterError(f"group {index}: give either 'params' or 'match', given {', '.join(given)}")
        return {**{n: getattr(rule, n) for n in self._names}, **given}

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
        self._norm = self._count = None
        if self._max_norm is not None or self._on_nonfinite != "propagate":
            self._norm = single_sweep(gradient_norm(), "gradient_norm", self._targets, self._make)
            self._count = single_sweep(nonfinite_count(), "nonfinite_count", self._targets, self._make)
        self._compiled = False
        self._bound: Any = _NOTHING
        self._gradients: Arrays | None = None

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
                flat = self._states[name]
                self._start(flat, launch, launch.plan.start.get(short))
                launch.bind(short, Arrays([flat], targets.flat))
        self.ema: Any = None
        self._ema: Arrays | None = None
        if self._ema_decay is not None:
            self.ema, self._ema = targets.copy()
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
        norm = itemsize if self._norm is not None else 0
        return norm + max(x.plan.bytes_per_param(itemsize) for x in self._launches)

    def __repr__(self) -> str:
        groups = len(self.param_groups)
        return (
            f"{type(self).__name__}({self._rules[0]!r}, {groups} group{'s' * (groups != 1)}, "
            f"{self._targets.size} elements, {self._targets.dtype}, backend={self.backend!r}, t={self.t})"
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
        """
        with self._lock:
            if grads is not self._bound:
                self._bind_gradients(grads)
            if scale != 1.0:
                scale = _number("scale", scale)
                if abs(scale) > self._largest:
                    raise HyperparameterError(
                        f"scale must be a number that {self._targets.dtype} holds, given {scale!r}"
                    )
            factor = -scale if self._maximize else scale
            if self._norm is not None:
                clipped = self._measure_gradient(factor)
                if clipped is None:
                    return
                factor = clipped
            tail = {"gscale": factor}
            if self._ema_decay is not None:
                tail["ema_c"] = 1.0 - self._ema_decay
            for launch in self._launches:
                for index, group in enumerate(launch.groups):
                    if self._scheduled[group] or self._pick(self.param_groups[group]) != self._seen[group]:
                        self._reread(group)
                    launch.prepare(index, self._rules[group], self._t[group] + 1, tail)
            if not self._compiled:
                for launch in self._launches:
                    launch.compile()
                self._compiled = True
            for launch in self._launches:
                launch.run()
            for group in range(len(self._t)):
                self._t[group] += 1
            self.t += 1

    def _reread(self, group: int) -> None:
        """Take over a group's changed values; the rule is rebuilt, the kernel stays."""
        values = self.param_groups[group]
        picked = self._pick(values)
        given = {n: values[n] for n in self._names}
        scheduled = [n for n, v in given.items() if callable(v)]
        for name in scheduled:
            given[name] = given[name](self._t[group])
        if not scheduled and picked == self._seen[group]:
            return
        rule = self._rule_class(**given)
        if self._options and rule.options() != self._options[group]:
            changed = [k for k, v in rule.options().items() if v != self._options[group][k]]
            raise HyperparameterError(
                f"group {group}: the change alters {', '.join(changed)} of {self._rule_class.__name__}, "
                "which is fixed when the optimizer is built; build a new one"
            )
        self._rules[group] = rule
        self._seen[group] = picked
        self._scheduled[group] = bool(scheduled)

    def _bind_gradients(self, grads: Any) -> None:
        gradients = self._targets.gradients(grads, writeable=self._zero_grad)
        for launch in self._launches:
            launch.bind("g", gradients)
        if self._norm is not None and self._count is not None:
            self._norm.bind("g", gradients.arrays, gradients.where)
            self._count.bind("g", gradients.arrays, gradients.where)
        self._gradients = gradients
        # A list or dict may hold other arrays next time; an array that is the same object was validated.
        self._bound = grads if grads is None or isinstance(grads, np.ndarray) else _NOTHING

    def _measure_gradient(self, factor: float) -> float | None:
        """Norm, check and clip: the gradient's factor, or None where the step is skipped."""
        norm = self._gradient_norm(factor)
        if not math.isfinite(norm):
            # What is clipped may pass float32's range in between; what is not is an overflow.
            if self._nonfinite_elements(factor if self._max_norm is None else 1.0):
                if self._on_nonfinite == "raise":
                    raise NonFiniteError(self._first_nonfinite(factor))
                if self._on_nonfinite == "skip":
                    self.grad_norm = norm
                    if self._zero_grad:
                        self._clear(self._gradients)
                    return None
            else:  # finite gradients whose squares overflow
                shift = 2.0**80 if self._targets.dtype == np.float32 else 2.0**600
                norm = self._gradient_norm(1 / shift) * shift * abs(factor)
        self.grad_norm = norm
        if self._max_norm is None:
            return factor
        clip = self._max_norm / (norm + 1e-6)
        return factor * (1.0 if clip > 1.0 else clip)  # a NaN stays

    def _gradient_norm(self, factor: float) -> float:
        assert self._norm is not None
        row = np.array([[factor]], self._targets.dtype)
        return math.sqrt(tree_sum(self._norm.sums(row))[0])

    def _nonfinite_elements(self, factor: float) -> int:
        assert self._count is not None
        return int(tree_sum(self._count.sums(np.array([[factor]], self._targets.dtype)))[0])

    def _first_nonfinite(self, factor: float) -> str:
        assert self._gradients is not None
        for segment, part in zip(self._targets.segments, self._targets.views(self._gradients), strict=True):
            with np.errstate(all="ignore"):
                bad = np.flatnonzero(~np.isfinite(part * part.dtype.type(factor)))
            if bad.size:
                index = tuple(map(int, np.unravel_index(bad[0], segment.shape)))
                scaled = f", times {factor:g}," if np.isfinite(part[bad[0]]) else ""
                return f"the gradient of {segment.name!r} is {part[bad[0]]!s}{scaled} at {index}; nothing was changed"
        raise AssertionError("a non-finite element was counted and is not there")

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
            groups = [
                {**{n: getattr(r, n) for n in self._names}, "t": t} for r, t in zip(self._rules, self._t, strict=True)
            ]
            return {
                "rule": self._rule_class.__name__.lower(),
                "t": self.t,
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
            for rule, group in zip(rules, self.param_groups, strict=True):
                group.update({n: getattr(rule, n) for n in self._names if not callable(group[n])})
            self._rules = rules
            self._seen = [None] * len(rules)
            self._scheduled = [True] * len(rules)  # read again at the next step
            self._t = [int(saved["t"]) for saved in state["param_groups"]]
            self.t = int(state["t"])
            for name, flat in self._states.items():
                flat[:] = state["state"][name]
            for launch, scalars in zip(self._launches, state["scalar_state"], strict=True):
                for name, values in scalars.items():
                    launch.scalar_states[name][:] = values
            if self._ema is not None:
                self._targets.scatter(state["ema"], self._ema)

    def _rules_of(self, groups: list[Mapping[str, Any]]) -> list[Rule]:
        if len(groups) != len(self.param_groups):
            raise CheckpointError(f"the state must have {len(self.param_groups)} groups, given {len(groups)}")
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
            if {k: len(v) for k, v in scalars.items()} != lengths:
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


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise HyperparameterError(f"{name} must be True or False, given {value!r}")
    return value


def _number(name: str, value: Any, low: float = -math.inf, bound: float = math.inf, *, open_low: bool = False) -> float:
    try:
        number = float(value)
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
