"""The optimizer: groups of parameters, their states, and the step."""

from __future__ import annotations

import copy
import operator
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import maker, resolve
from fastgd.capture import CapturedStep
from fastgd.checks import checked_number
from fastgd.groups import Changes, Group, is_schedule
from fastgd.health import Report, thresholds
from fastgd.kernels.errors import ArrayError, FastGDError, HyperparameterError
from fastgd.kernels.rule import Rule, fixed
from fastgd.kernels.tail import gradient_norm
from fastgd.layout import Layout, Terms
from fastgd.memory import backend_of, copy_into, entry, is_own, reach, refuse_other_memory, to_host
from fastgd.settings import Settings
from fastgd.state import Expected, checked, plain
from fastgd.targets import Arrays

_NOTHING: Any = object()  # no gradients bound yet; None stands for the parameters' own

_ALIVE: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def _begin_nowhere(what: str) -> None:
    """Begin nothing: there are no arrays that lie anywhere."""


def _after_fork() -> None:
    for optimizer in _ALIVE:  # another thread of the parent may have been in a step: its mark stands, its lock must not
        optimizer._lock = threading.RLock()
        for program in optimizer._layout.all_programs():
            program.runs = []  # parallel kernels give way to serial ones, before the next step writes


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class _Beside:
    """A rule as a launch asks it for scalars, of a sweep beside the step."""

    rule: Rule
    name: str

    def prepare(self, t: int) -> dict[str, float]:
        return self.rule.aside(self.name)


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
    max_value : float, optional
        Then bring each of its elements between ``-max_value`` and ``max_value``, > 0; a NaN stays.
    ema_decay : float or callable, optional
        Keep an exponential moving average of the parameters, ``e += (1 - ema_decay) * (p - e)``, in [0, 1). A callable
        is a schedule, called with the number of steps taken, of values in [0, 1]; at 1 the average rests, and the step
        moves no byte of it. `fastgd.schedules.swa` makes it the plain mean (stochastic weight averaging).
    lookahead : tuple of int and float, optional
        ``(every, alpha)``: keep slow parameters; behind every so many steps they go the share `alpha`, in (0, 1], of
        the way to the parameters, which then go back to them. Not together with `ema_decay`.
    on_nonfinite : {"propagate", "skip", "raise"}
        What to do when the scaled gradient holds NaN or infinity. A skipped step changes nothing, and `t` stands;
        ``"raise"`` leaves everything as it was.
    zero_grad : bool
        Set the gradient to zero in the same pass; also where a step is skipped, and where it is accumulated.
    state_dtype : None
        Kept for states in lower precision; only None, the parameters' dtype, is served.
    backend : {"auto", "numpy", "numba", "cupy"}
        What runs the rule; ``"auto"`` goes by where the arrays live: ``"numba"`` on the host, ``"cupy"`` on a GPU.
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
        Averaged parameters, with `lookahead` the slow ones, in the form of params; or None.
    accumulated : int
        Number of gradients that wait for the next step.
    grad_norm : float or None
        Norm of the scaled gradient at the last step, when it was computed.
    bytes_per_param : int
        Bytes read and written for each parameter in one step.

    Raises
    ------
    ArrayError, HyperparameterError, RuleError, BackendUnavailable
        At construction, naming what was given and what was expected.
    """

    _schedules: Mapping[str, Callable[[int], Any]] = MappingProxyType({})
    """Schedules for all groups that have no value of their own; set before construction."""

    def __init__(
        self,
        params: Any,
        rule: Rule,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None,
        lookahead: tuple[int, float] | None = None,
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
        self._settings = Settings(
            maximize=maximize,
            max_norm=max_norm,
            max_value=max_value,
            ema_decay=ema_decay,
            lookahead=lookahead,
            on_nonfinite=on_nonfinite,
            zero_grad=zero_grad,
        )
        self.backend = resolve(backend, backend_of(params))
        refuse_other_memory(self.backend, params)
        self._threads = threads
        self._rule = rule
        self._rule_class = type(rule)
        self._names = rule.hyperparameters()
        self._lock = threading.RLock()  # a schedule may ask for the state
        self._changes = Changes()
        terms = Terms(rule, self._schedules, self._settings, maker(self.backend, threads), self._changes)
        self._layout = Layout.of(params, terms)
        arrays = self._layout.targets.parameters.arrays
        self._gpu = self._layout.targets.memory != "numpy"
        self._begin_on_gpu = entry(arrays[0], self.backend) if self._gpu and arrays else _begin_nowhere
        self._reach_gpu = reach(arrays[0], self.backend) if self._gpu and arrays else _begin_nowhere
        self._built_from = params, len(self._layout.groups)  # for a copy; more groups may follow
        dtype = self._layout.targets.dtype
        self._largest = float(np.finfo(dtype).max)
        if (self._settings.max_value or 0.0) > self._largest:
            raise HyperparameterError(f"max_value must be a number that {dtype} holds, given {max_value!r}")
        self._t = 0
        self._mode = "train"  # or "eval", in which there are no steps
        self._begun = 0  # the step whose writing was begun: other than t where it did not end
        self._failed = 0  # the last one that ended in an error
        self._tail = {"gscale": 1.0, "gmax": self._settings.max_value or 0.0, "ema_c": self._settings.share(0)}
        self._gradients: Arrays | None = None
        self._given: Any = _NOTHING  # gradients of the last step, and the objects they consist of
        self._leaves: list[Any] = []
        self._places: list[tuple[Any, ...]] = []  # where those lie that another library lends
        _ALIVE.add(self)

    # ---- what can be asked

    @property
    def t(self) -> int:
        """Number of steps taken."""
        return self._t

    @property
    def params(self) -> Any:
        """The parameters as given."""
        return self._layout.params

    @property
    def ema(self) -> Any:
        """Averaged parameters in the form of params, or None."""
        return self._layout.ema

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """Hyperparameters of each group, dicts; values may be changed between steps."""
        return self._layout.groups

    @property
    def on_nonfinite(self) -> str:
        """What is done about gradients that are not finite."""
        return self._settings.on_nonfinite

    @property
    def accumulated(self) -> int:
        """Number of gradients that wait for the next step."""
        sum_ = self._layout.accumulator
        return sum_.count if sum_ is not None and sum_.step == self._t + 1 else 0

    @property
    def grad_norm(self) -> float | None:
        """Norm of the scaled gradient at the last step, when it was computed."""
        check = self._layout.check
        if check is None:
            return None
        self._reach_gpu("grad_norm")
        return check.norm

    @property
    def rule(self) -> Rule:
        """Rule of the first group with its hyperparameters as of the last step."""
        return self._layout.rules[0]

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """Flat state arrays by torch's names."""
        return MappingProxyType({name: state.array for name, state in self._layout.states.items()})

    @property
    def bytes_per_param(self) -> int:
        """Bytes read and written for each parameter in one step; the most, where groups differ in options."""
        layout = self._layout
        itemsize = layout.targets.dtype.itemsize
        norm = 0 if layout.check is None else gradient_norm().bytes_per_element(itemsize)
        return norm + max(program.bytes_per_param(itemsize) for program in layout.programs)

    def __repr__(self) -> str:
        groups, targets = len(self._layout.groups), self._layout.targets
        return (
            f"{type(self).__name__}({self._layout.rules[0]!r}, {groups} group{'s' * (groups != 1)}, "
            f"{targets.size} elements, {targets.dtype}, backend={self.backend!r}, t={self.t})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        """Copy of the optimizer with the parameters and all else that it holds."""
        with self._lock:
            state = self.state_dict()
            new = object.__new__(type(self))
            memo[id(self)] = new
            self._layout.targets.copy_leaves(memo)
            params, built = self._built_from
            tail = {name: copy.deepcopy(value, memo) for name, value in vars(self._settings).items()}
            Optimizer.__init__(
                new, copy.deepcopy(params, memo), self._rule, **tail, backend=self.backend, threads=self._threads
            )
            own = self._layout.groups
            for group in own[built:]:
                new.add_param_group(copy.deepcopy(dict(group), memo))
            new.load_state_dict(state)
            for group, values in zip(new._layout.groups, own, strict=True):
                group.update({n: copy.deepcopy(values[n], memo) for n in self._names})
            if new._layout.check is not None:
                new._layout.check.norm = self.grad_norm
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
            if self._gpu:
                self._begin_on_gpu("step()")
            layout = self._layout
            if layout.targets.foreign:
                layout.targets.refuse_moved()
            if grads is not self._given:
                self._bind_gradients(grads)
            if type(scale) is not float or scale != 1.0:
                scale = self._checked_scale(scale)
            factor = -scale if self._settings.maximize else scale
            if layout.check is not None and not layout.check.clips_unseen:
                clipped = layout.check.measure(factor)
                if clipped is None:
                    self._skip()
                    return
                factor = clipped
            t = self._t + 1
            runs = self._prepare(t, factor)
            if layout.check is not None and layout.check.clips_unseen:
                layout.check.clip_unseen()
            self._run(t, runs)

    def _run(self, t: int, runs: Sequence[Callable[[], None]], whole: Callable[[], None] | None = None) -> None:
        """Write: run what makes step `t`; `whole` is the one of these that runs all sweeps, where there is one."""
        try:
            self._begun = t
            for run in runs:
                run()
            self._t = t
        except BaseException as error:
            # Ctrl-C and exit come from a signal, and so may an error that comes when all is written.
            if not isinstance(error, Exception) or self._all_ran():
                self._finish(t, whole)
            else:
                self._failed = t
            raise

    def _prepare(self, t: int, factor: float) -> list[Callable[[], None]]:
        """Compute the scalars of step `t`, and give what runs it; nothing of the user's is written."""
        if self._changes.pending:
            self._reread()
        layout, tail = self._layout, self._tail
        program = layout.program
        tail["gscale"] = factor
        for prepare, index, i in program.prepares:
            prepare(index, layout.rules[i], t - layout.started_at[i], tail)
        runs = program.runs or program.compile()
        if layout.check is not None and layout.check.clips_unseen:
            program.upload()  # the check writes its factor behind
            layout.check.prepare_unseen(factor, program.cells("gscale"))
        return runs

    def _skip(self) -> None:
        """Pass a gradient over: what was summed for the step is dropped with it."""
        if self._settings.zero_grad:
            self._clear(self._gradients)
        if self._layout.accumulator is not None:
            self._layout.accumulator.step = 0

    def _finish(self, t: int, whole: Callable[[], None] | None = None) -> None:
        """Bring a step to its end that Ctrl-C stopped between two sweeps; Ctrl-C is raised behind it."""
        while self._begun != self._t:
            try:
                if whole is not None and not self._all_ran():
                    whole()  # a graph has more in it than sweeps
                self._layout.program.finish(t - 1 - self._layout.counted_from)
                self._t = t
            except (KeyboardInterrupt, SystemExit):  # another one
                pass

    def _all_ran(self) -> bool:
        """Whether every sweep of the step that was begun has run."""
        return self._layout.program.ran(self._begun - self._layout.counted_from)

    def _settle(self, *, reading: bool = False) -> None:
        """Count a step that was begun if nothing of it is missing, as for a signal's handler; else refuse to go on.

        A handler that only reads may also come when nothing of the step is written yet.
        """
        if self._begun == self._t:
            return
        if self._begun > self._t and self._all_ran():
            self._finish(self._begun)
            return
        within = self._begun > self._t and self._begun != self._failed
        if reading and within and self._layout.program.untouched(self._begun - 1 - self._layout.counted_from):
            return
        raise FastGDError(
            f"step {self._t + 1} failed half-way: parameters and states may hold parts of it; "
            "restore the parameters and call load_state_dict with a state saved before"
        )

    def _checked_scale(self, scale: Any) -> float:
        checked = checked_number("scale", scale)
        if abs(checked) > self._largest:
            raise HyperparameterError(
                f"scale must be a number that {self._layout.targets.dtype} holds, given {scale!r}"
            )
        return checked

    def _reread(self) -> None:
        """Take over changed values of groups, and what schedules give; the rules are rebuilt, the kernels stay."""
        try:
            self._changes.pending = False  # first: another thread may set a value while they are read
            for i, group in enumerate(self._layout.groups):
                if group.changed:
                    self._read(i, group)
            if self._settings.varies:
                share = self._settings.share(self._t)
                self._layout.choose(moves_average=share > 0, t=self._t)
                self._tail["ema_c"] = share
        finally:
            if self._settings.varies or any(group.changed for group in self._layout.groups):
                self._changes.pending = True

    def _read(self, i: int, group: Group) -> None:
        layout = self._layout
        try:
            group.changed = False
            rule, scheduled = group.read(layout.rules[i], i, self._t - layout.started_at[i])
            self._refuse_alteration(i, rule)
            layout.rules[i] = rule
            group.changed = group.changed or scheduled
        except BaseException:
            group.changed = True
            raise

    def _refuse_alteration(self, i: int, rule: Rule) -> None:
        """Refuse values of a group that its kernels and states were not made for."""
        now, built = fixed(rule), self._layout.options[i]
        if now != built:
            changed = [k for k in {**built, **now} if built.get(k) != now.get(k)]
            raise HyperparameterError(
                f"group {i}: the change alters {', '.join(changed)} of {self._rule_class.__name__}, "
                "which is fixed when the optimizer is built; build a new one"
            )

    def _bind_gradients(self, grads: Any) -> None:
        """Validate the gradients and hand their addresses on; not those of the last step, object for object."""
        if self._mode == "eval":
            raise FastGDError(f"{type(self).__name__} is in eval mode, in which there are no steps: call train() first")
        waiting = self.accumulated
        if waiting and grads is not None:
            raise ArrayError(
                f"grads must be None, as {waiting} accumulated wait for this step, given {type(grads).__name__}: "
                "add these by accumulate(grads), or drop those by zero_grad()"
            )
        leaves, places = (None if waiting else self._layout.targets.leaves(grads)) or ([], [])
        if (
            self._gradients is None
            or not leaves
            or len(leaves) != len(self._leaves)
            or not all(map(operator.is_, leaves, self._leaves))
            or places != self._places
        ):
            self._leaves, self._given, self._gradients = [], _NOTHING, None
            gradients = self._accumulated_or(grads, writeable=self._settings.zero_grad)
            self._layout.bind_gradients(gradients)
            self._gradients = gradients
            self._leaves, self._places = leaves, places
        # A list or dict may hold other arrays next time, and a sum is spent.
        self._given = grads if leaves and (grads is None or is_own(grads)) else _NOTHING

    def _accumulated_or(self, grads: Any, *, writeable: bool) -> Arrays:
        """Take the sum of gradients that waits for the next step, else those given."""
        if grads is None and self.accumulated:
            return self._layout.summed().sum
        return self._layout.targets.gradients(grads, writeable=writeable)

    def capture(self, grads: Any = None, before: Callable[[], object] | None = None) -> CapturedStep:
        """Record a step in a CUDA graph, to be replayed with new numbers: one launch in the place of several.

        Parameters
        ----------
        grads : optional
            As of `step`: the gradients that every replay reads, where they lie now.
        before : callable, optional
            Recorded in front of the step, such as what computes the gradients; it must not wait for the GPU. It is
            called at the first replay, on the stream that is captured, and again where another step is recorded, as
            one in which an average rests; nothing is computed by the call itself. Run it once beforehand: CuPy
            compiles a kernel at its first use. Not for tensors of torch, which launches on a stream of its own.

        Returns
        -------
        fastgd.capture.CapturedStep
            Its ``replay(scale=1.0)`` takes a step: hyperparameters, schedules and `t` go on as with `step`, and both
            may be mixed.

        Raises
        ------
        HyperparameterError
            For parameters on the host, and for ``on_nonfinite="skip"`` and ``"raise"``, which must read the GPU.
        ArrayError
            If the gradients do not mirror the parameters.
        """
        with self._lock:
            self._settle()
            if not self._gpu:
                raise HyperparameterError(f"capture() records what runs on a GPU, given backend {self.backend!r}")
            if self.on_nonfinite != "propagate":
                raise HyperparameterError(
                    f"capture() cannot record a step that reads a flag, given on_nonfinite={self.on_nonfinite!r}: "
                    "build the optimizer with 'propagate'"
                )
            self._begin_on_gpu("capture()")
            gradients = self._layout.targets.gradients(grads, writeable=self._settings.zero_grad)
            if before is not None and not callable(before):
                raise HyperparameterError(f"before must be callable, given {before!r}")
            if before is not None and self._layout.targets.foreign:
                raise HyperparameterError(
                    "before must be None for parameters of another library, which would launch on a stream that is "
                    f"not captured, given {before!r}: have its own graph compute the gradients"
                )
            return CapturedStep(self._replay, gradients, before)

    def _replay(self, captured: CapturedStep, scale: float) -> None:
        with self._lock:
            self._settle()
            self._begin_on_gpu("replay()")
            if self.accumulated:
                raise ArrayError(
                    f"a captured step has gradients of its own, given {self.accumulated} that are accumulated: call "
                    "step(), or drop them by zero_grad()"
                )
            if self._mode == "eval":
                raise FastGDError(f"{type(self).__name__} is in eval mode, in which there are no steps: call train()")
            segments = len(self._layout.targets.segments)
            if len(captured.gradients.where.array) != segments:
                raise ArrayError(
                    f"a captured step has gradients of its own, given {len(captured.gradients.where.array)} arrays of "
                    f"them for {segments} parameters, as a group was added: capture() again"
                )
            if self._layout.targets.foreign:
                self._layout.targets.refuse_moved()
            scale = self._checked_scale(scale)
            if self._gradients is not captured.gradients:
                self._given, self._leaves, self._gradients = _NOTHING, [], None  # step() binds its own again
                self._layout.bind_gradients(captured.gradients)
                self._gradients = captured.gradients
            t = self._t + 1
            self._prepare(t, -scale if self._settings.maximize else scale)
            runs = captured.runs(self._layout)
            self._run(t, runs, whole=runs[0])

    # ---- beside the step

    def update_hessian(self, grads: Any = None, scale: float = 1.0) -> None:
        """Take a gradient into the estimate of the Hessian's diagonal, for rules that have one, as `SophiaG`.

        Parameters
        ----------
        grads, scale : optional
            As of `step`; the gradient of a loss whose labels were sampled from the model's prediction. Read only.

        Raises
        ------
        ArrayError, HyperparameterError
            As of `step`, and for a rule without such an estimate.
        """
        with self._lock:
            self._settle()
            self._refuse_without("hessian", "an estimate of the Hessian")
            if self._gpu:
                self._begin_on_gpu("update_hessian()")
            gradients = self._layout.targets.gradients(grads, writeable=False)
            self._run_aside("hessian", gradients, self._checked_scale(scale), lambda: None)

    def eval(self) -> None:
        """Put the average in the place of the parameters, for rules that keep one there, as `ScheduleFreeAdamW`.

        Until `train` there are no steps. Does nothing in eval mode; the mode is part of the state.

        Raises
        ------
        HyperparameterError
            For a rule whose parameters are what is evaluated.
        """
        self._enter("eval")

    def train(self) -> None:
        """Put the parameters back in the place of the average; the way back from `eval`, up to rounding.

        Raises
        ------
        HyperparameterError
            For a rule whose parameters are what is evaluated.
        """
        self._enter("train")

    def _enter(self, mode: str) -> None:
        def enter() -> None:
            self._mode = mode

        with self._lock:
            self._settle()
            self._refuse_without(mode, "an eval mode")
            if self._mode != mode:
                self._given = _NOTHING  # the next step asks for the mode
                self._run_aside(mode, None, 1.0, enter)

    def _refuse_without(self, aside: str, what: str) -> None:
        if aside not in self._rule.asides:
            raise HyperparameterError(
                f"the optimizer's rule must be one with {what}, given {self._rule_class.__name__}"
            )

    def _run_aside(self, name: str, gradients: Arrays | None, scale: float, done: Callable[[], None]) -> None:
        """Run a sweep beside the step, wholly, and then `done`."""
        if self._gpu:
            self._begin_on_gpu(f"{'update_' * (name == 'hessian')}{name}()")
        if self._changes.pending:
            self._reread()
        layout = self._layout
        program = layout.aside(name)
        if gradients is not None:
            program.bind("g", gradients)
        for prepare, index, i in program.prepares:
            prepare(index, _Beside(layout.rules[i], name), 0, {"gscale": scale})
        runs = program.runs or program.compile()
        try:
            program.run_wholly(runs, done)
        except Exception:
            self._begun = -1  # parts of it may be written
            raise

    # ---- gradients, groups, state

    def accumulate(self, grads: Any = None, scale: float = 1.0) -> None:
        """Add gradients to the sum that the next step takes, ``sum += scale * grads``, in one pass.

        Parameters
        ----------
        grads : optional
            As of `step`; read only, unless ``zero_grad=True``.
        scale : float
            The gradients are multiplied by this first, as by 1 over their number for a mean: finite.

        Raises
        ------
        ArrayError, HyperparameterError
            As of `step`; the sum is as before.

        Notes
        -----
        ``step()`` without gradients takes the sum in their place, once: its scale, clip and check are of the sum, and
        where it skips the step the sum is dropped. `zero_grad` drops it too. The sum takes memory of its own, of the
        size of the parameters, from the first call on. Ctrl-C takes effect when the sum is whole.

        Examples
        --------
        >>> import numpy as np, fastgd
        >>> p = np.zeros(2)
        >>> opt = fastgd.SGD(p, lr=1.0)
        >>> for g in (np.array([1.0, 2.0]), np.array([3.0, 6.0])):
        ...     opt.accumulate(g, scale=1 / 2)
        >>> opt.step()
        >>> p
        array([-2., -4.])
        """
        with self._lock:
            self._settle()
            if self._gpu:
                self._begin_on_gpu("accumulate()")
            gradients = self._layout.targets.gradients(grads, writeable=self._settings.zero_grad)
            factor = self._checked_scale(scale)
            summed = self._layout.summed()
            self._given = _NOTHING  # step() must look for the sum
            summed.add(gradients, factor, self._t + 1)

    def zero_grad(self) -> None:
        """Set the gradients that the parameters carry to zero, and drop what was accumulated.

        Raises
        ------
        ArrayError
            If there are neither (plain arrays): the gradients are the caller's.
        """
        with self._lock:
            if self.accumulated:
                self._layout.summed().step = 0
                if not self._layout.targets.carries_grad:
                    return
            self._reach_gpu("zero_grad()")
            self._clear(self._layout.targets.gradients(None, writeable=True))

    def _clear(self, gradients: Arrays | None) -> None:
        assert gradients is not None
        for part in self._layout.targets.views(gradients):
            copy_into(part, 0)

    def report(
        self,
        grads: Any = None,
        scale: float = 1.0,
        *,
        vanishing: float = 1e-7,
        exploding: float = 1e3,
        dead: float = 0.99,
    ) -> Report:
        """Say how healthy the gradients are and what a step would change; nothing is changed.

        Parameters
        ----------
        grads, scale : optional
            As of `step`; what was accumulated counts.
        vanishing, exploding : float
            Root mean square of an array's gradient below which it vanishes, above which it explodes, >= 0.
        dead : float
            Share of an array's gradient, in (0, 1], that must be exactly zero for it to be dead.

        Returns
        -------
        fastgd.health.Report
            A row for each array: norms of parameters, gradient and change, their ratio, shares of zeros and of what is
            not finite, and a verdict. Printed it is a table, by ``rich.print`` a coloured one; ``to_dicts()`` is data.

        Raises
        ------
        ArrayError, HyperparameterError
            As of `step`, and for thresholds out of range. Gradients that are not finite raise nothing here.

        Notes
        -----
        The step is computed as `step` would, with kernels that store nothing, compiled at the first report. That is one
        pass, of a rule with norms two; and of float64 as much again where a norm is 0 or too small for its square, or
        where a square is too large.

        Examples
        --------
        >>> import numpy as np, fastgd
        >>> params = fastgd.FlatParams({"w": np.ones(4), "b": np.ones(2)})
        >>> params.grad["w"] = 0.5
        >>> report = fastgd.SGD(params, lr=0.1).report()
        >>> report["w"].ratio, report["b"].verdict
        (0.05, 'dead')
        """
        limits = thresholds(vanishing, exploding, dead)
        with self._lock:
            self._settle()
            if self._gpu:
                self._begin_on_gpu("report()")
            gradients = self._accumulated_or(grads, writeable=False)
            scale = self._checked_scale(scale)
            if self._changes.pending:
                self._reread()
            factor = -scale if self._settings.maximize else scale
            layout = self._layout
            if layout.check is not None:
                self._given, self._leaves = _NOTHING, []  # the next step binds its own
                layout.check.bind(gradients)
                factor = layout.check.clipped(factor)
            steps = [(rule, self._t + 1 - start) for rule, start in zip(layout.rules, layout.started_at, strict=True)]
            tail = self._tail | {"gscale": factor}
            return layout.looked_at().report(gradients, steps, tail, scale, layout.program, limits)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, between any two steps.

        Parameters
        ----------
        group : dict
            As at construction: hyperparameters, those missing being the optimizer's, beside either ``params``, new
            arrays, which take their first step at the next one; or ``match``, a name pattern or several, which takes
            arrays, with their states and their number of steps, from the groups that they are in.

        Raises
        ------
        ArrayError
            For parameters that cannot be updated, of another dtype, or that are there already; a pattern that fits
            none; and while gradients wait in `accumulate`.
        HyperparameterError
            For a value out of range, and arrays from groups that have taken different numbers of steps.

        Notes
        -----
        A refused group changes nothing. With new ``params`` an optimizer of one form becomes one of a list of groups:
        `params`, `ema` and the gradients have one entry for each group that has parameters of its own. The arrays of
        `state` and the values of `param_groups` are replaced.
        """
        with self._lock:
            self._settle()
            if not isinstance(group, Mapping):
                raise HyperparameterError(f"group must be a dict with params or match, given {group!r}")
            if self.accumulated:
                raise ArrayError(
                    f"a group must be added between steps, given one with {self.accumulated} gradients accumulated: "
                    "step() or zero_grad() first"
                )
            if self._gpu:
                self._begin_on_gpu("add_param_group()")
            new = self._layout.with_group(group, self._t)
            self._given, self._leaves, self._gradients = _NOTHING, [], None
            self._layout = new  # at once: Ctrl-C leaves the old one or the new

    def state_dict(self) -> dict[str, Any]:
        """Copy of everything that a resumed run needs besides the parameters.

        Returns
        -------
        dict
            Keys ``rule``, ``t``, ``dtype``, ``segments``, ``param_groups``, ``state``, ``scalar_state``, ``ema``,
            ``accumulated`` and ``mode``: plain Python values, and arrays of NumPy that are copies, also of what lies
            on a GPU. A schedule is saved as the value it last gave.
        """
        with self._lock:
            self._settle(reading=True)
            self._reach_gpu("state_dict()")
            layout = self._layout
            groups = []
            for i, (group, rule, start) in enumerate(zip(layout.groups, layout.rules, layout.started_at, strict=True)):
                now = {n: getattr(rule, n) if is_schedule(group.get(n)) else group.get(n) for n in self._names}
                made = self._rule_class(**now)  # a value that was set and not yet read is checked here
                self._refuse_alteration(i, made)
                groups.append(plain(made) | {"t": self._t - start})
            return {
                "rule": self._rule_class.__name__.lower(),
                "t": self._t,
                "dtype": str(layout.targets.dtype),
                "segments": [(s.name, s.shape) for s in layout.targets.segments],
                "param_groups": groups,
                "state": {name: to_host(state.array) for name, state in layout.states.items()},
                "scalar_state": [
                    {k: v.tolist() for k, v in launch.scalar_states.items()} for launch in layout.program.launches
                ],
                "ema": None if layout.average is None else layout.targets.gather(layout.average),
                "accumulated": layout.summed().save() if self.accumulated else None,
                "mode": self._mode,
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
            self._reach_gpu("load_state_dict()")
            layout = self._layout
            launches = layout.program.launches
            expected = Expected(
                layout.rules,
                layout.targets.dtype,
                [(s.name, s.shape) for s in layout.targets.segments],
                layout.targets.extent,
                {name: state.array.size for name, state in layout.states.items()},
                [{name: len(values) for name, values in launch.scalar_states.items()} for launch in launches],
                layout.average is not None,
                ("train", "eval") if "eval" in self._rule.asides else ("train",),
            )
            loaded = checked(state, expected)
            summed = layout.accumulator if state["accumulated"] is None else layout.summed()
            self._begun = -1  # until all is taken over
            for rule, group in zip(loaded.rules, layout.groups, strict=True):
                group.update({n: getattr(rule, n) for n in self._names if not is_schedule(group.get(n))})
            layout.rules = loaded.rules
            for name, own in layout.states.items():
                copy_into(own.array, state["state"][name])
            for launch, scalars in zip(launches, loaded.scalars, strict=True):
                launch.scalar_states = scalars
            layout.program.count_from(0)
            if layout.average is not None:
                layout.targets.scatter(state["ema"], layout.average)
            self._t = layout.counted_from = loaded.t
            layout.started_at = loaded.started_at
            if summed is not None:
                summed.restore(state["accumulated"], loaded.t + 1)
            self._mode = state["mode"]
            self._given = _NOTHING
            self._begun = loaded.t
