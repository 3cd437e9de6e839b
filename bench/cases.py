"""The one table of what is compared: rule, hyperparameters, tail, tensors, the peers that have all that.

It drives the check that precedes a timing and the timing itself, so what we claim to beat is what we claim to equal. A
rule that is registered and not named here is measured too, at its defaults and without foreign peers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.language import Sweep
from fastgd.kernels.matrix import MatrixRule, MatrixUpdate
from fastgd.kernels.plan import plan
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES
from fastgd.kernels.tail import Tail
from fastgd.memory import zeros
from fastgd.optimizer import Optimizer

GRADIENT_FACTORS = (1.0, -0.5, 2.0)
"""Factors of the gradient at the checked steps: under a constant one Adam does not depend on its betas."""

ULP_LIMIT = 64
"""A peer further from the float64 result than this does not compute the rule."""

PERIOD = 1 << 16
"""Elements after which the data repeat, so that the float64 result is computed for these only."""

_NUMPY = ("numpy-textbook", "numpy-inplace", "numexpr")
_TORCH = ("torch-loop", "torch-foreach", "torch-fused")
_MANY = ("numpy-inplace", *_TORCH, "optax")  # of many tensors
_SGD = dict(lr=1e-3, momentum=0.9)
_ADAMW = dict(lr=1e-3, weight_decay=0.1)
_LION = dict(lr=1e-3, weight_decay=0.1)
_LAMB = dict(lr=1e-3, weight_decay=0.1)
_TAIL = dict(max_norm=1.0, ema_decay=0.99, zero_grad=True)

_WIDTH, _LAYERS = 768, 12
_NORM = (_WIDTH, _WIDTH)  # weight, bias
_ATTENTION = (3 * _WIDTH**2, 3 * _WIDTH, _WIDTH**2, _WIDTH)
_MLP = (4 * _WIDTH**2, 4 * _WIDTH, 4 * _WIDTH**2, _WIDTH)
GPT2 = (50257 * _WIDTH, 1024 * _WIDTH, *(_NORM + _ATTENTION + _NORM + _MLP) * _LAYERS, *_NORM)
"""Sizes of the 148 tensors of GPT-2 small: 124 M elements."""


def _resnet50() -> tuple[int, ...]:
    def convolution(inputs: int, outputs: int, side: int) -> tuple[int, ...]:
        return (inputs * outputs * side**2, outputs, outputs)  # no bias; the normalization behind it has two vectors

    sizes, inputs = [*convolution(3, 64, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            sizes += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, 4 * width, 1)
            if block == 0:
                sizes += convolution(inputs, 4 * width, 1)  # the shortcut, which changes the width too
            inputs = 4 * width
    return (*sizes, inputs * 1000, 1000)


RESNET50 = _resnet50()
"""Sizes of the 161 tensors of ResNet-50: 26 M elements, two thirds of the tensors of at most 2048."""


class Pass(NamedTuple):
    """Names of the arrays that are read and written in one pass over memory, and of those that are only read."""

    changed: tuple[str, ...]
    read: tuple[str, ...]

    @classmethod
    def of(cls, steps: Sequence[Sweep | MatrixUpdate], without: Collection[str] = ()) -> Pass:
        """Make one pass of steps."""
        written = dict.fromkeys(a for step in steps for a in step.writes if a not in without)
        read = dict.fromkeys(a for step in steps for a in step.reads if a not in without and a not in written)
        return cls((*written,), (*read,))

    @property
    def streams(self) -> int:
        """Elements read and written for each parameter."""
        return 2 * len(self.changed) + len(self.read)


@dataclass(frozen=True)
class Case:
    """A rule at the hyperparameters at which it is compared, what comes with it, and who else has all that.

    Attributes
    ----------
    rule
        Lower-case name in the registry.
    hyper
        Hyperparameters; what is missing stands at the rule's default.
    peers
        Names of the foreign peers in `fastgd.bench.peers.PEERS`.
    variant
        What sets it apart from the rule by itself, in its name.
    tail
        Empty, or ``max_norm``, ``ema_decay`` and ``zero_grad=True`` of the optimizer: all three.
    tensors
        Sizes, in proportion, of the tensors that the elements are cut into.
    most
        Most elements that it is measured with.
    """

    rule: str
    hyper: Mapping[str, Any]
    peers: tuple[str, ...] = ()
    variant: str = ""
    tail: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[int, ...] = (1,)
    most: float = math.inf

    @property
    def name(self) -> str:
        """Name in the table and in reports."""
        return f"{self.rule}-{self.variant}" if self.variant else self.rule

    def build(self) -> Rule:
        """Make the rule."""
        return RULES[self.rule](**self.hyper)

    def full(self) -> dict[str, Any]:
        """Give every hyperparameter, defaults included."""
        rule = self.build()
        return {name: getattr(rule, name) for name in rule.hyperparameters()}

    def bytes_per_param(self, itemsize: int) -> int:
        """Bytes that one step must read and write for each parameter; a norm's read of the gradient is one more."""
        few = np.zeros(self.shape(4), f"f{itemsize}")
        return Optimizer(few, self.build(), backend="numpy", **self.tail).bytes_per_param

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape of a tensor of n elements: for a rule of matrices one, about square if n is even enough."""
        rule = self.build()
        if rule.serves((n,)) and not isinstance(rule, MatrixRule):
            return (n,)
        rows = math.gcd(n, 1 << (n.bit_length() // 2))
        return (rows, n // rows)

    @property
    def periodic(self) -> bool:
        """Whether an element's step depends on no other: one period of the data is then enough to know the result."""
        made = plan(self.build())
        return made.combine is None and made.matrix is None

    def cut(self, a: NDArray[Any]) -> list[NDArray[Any]]:
        """Give views of an array, one for each tensor; none is empty if there are as many elements."""
        ends = np.cumsum(self.tensors)
        ends = ends * (a.size - ends.size) // ends[-1] + np.arange(1, ends.size + 1)  # one for each, the rest shared
        return np.split(a, ends[:-1])

    def passes(self) -> tuple[Pass, ...]:
        """Give what a step reads and writes: one pass, or several where it must know a sum before it moves."""
        made = plan(self.build(), Tail("ema", zero_grad=True) if self.tail else Tail())
        norm = (Pass((), ("g",)),) if "max_norm" in self.tail else ()
        if made.matrix is None:
            return (*norm, *(Pass.of([sweep]) for sweep in made.sweeps))
        return (*norm, Pass.of(made.steps, made.matrix.small))


_TABLE: dict[str, Case] = {
    case.name: case
    for case in (
        Case("gd", dict(lr=1e-3), (*_NUMPY, *_TORCH, "optax", "thinc", "sklearn")),
        Case("sgd", _SGD, (*_NUMPY, *_TORCH, "optax", "sklearn")),
        Case("sgd", _SGD, (*_MANY, "sklearn"), "resnet50", tensors=RESNET50),
        Case("adam", dict(lr=1e-3), (*_NUMPY, *_TORCH, "optax", "deepspeed", "thinc", "sklearn")),
        Case("adamw", _ADAMW, (*_NUMPY, *_TORCH, "optax", "deepspeed")),
        Case("adamw", _ADAMW, ("numpy-inplace", *_TORCH), "tail", _TAIL),
        Case("adamw", _ADAMW, (*_MANY, "deepspeed"), "gpt2", tensors=GPT2),
        Case("adamw", _ADAMW, (*_MANY, "deepspeed"), "resnet50", tensors=RESNET50),
        Case("adamw", _ADAMW, _TORCH, "tail-gpt2", _TAIL, GPT2),
        Case("lion", _LION, (*_NUMPY, "optax", "deepspeed")),
        Case("lamb", _LAMB, (*_NUMPY, "optax")),
        Case("lamb", _LAMB, ("numpy-inplace", "optax"), "gpt2", tensors=GPT2),
        Case("lars", dict(lr=1e-2, momentum=0.9, weight_decay=0.1, trust_coeff=0.1)),
        Case("prodigy", dict(d0=1e-3)),  # with its default parameters differ from their start by next to nothing
        Case("prodigy", dict(d0=1e-3), (), "gpt2", tensors=GPT2),
        Case("dadaptadam", dict(d0=1e-3)),
        Case("muon", dict(lr=1e-3), ("matmul",), most=1 << 24),
        Case("adafactor", {}, _TORCH[:2]),
        Case("adamw", dict(_ADAMW, cautious=True), (), "cautious"),
        Case("adagrad", dict(lr=1e-2), (*_NUMPY, *_TORCH, "optax", "deepspeed")),
        Case("rmsprop", dict(lr=1e-3, alpha=0.95), (*_NUMPY, *_TORCH[:2], "optax")),
        Case("schedulefreesgd", dict(lr=1e-2)),  # with its default of 1 parameters cancel to next to nothing
        *(
            Case(rule, {}, _TORCH[:2])
            for rule in ("adadelta", "adamax", "asgd", "nadam", "radam", "rprop")  # torch fuses no others
        ),
    )
}

CASES: dict[str, Case] = {name: Case(name, {}) for name in RULES} | _TABLE
"""Every registered rule by itself, then the variants."""


def data(n: int, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Parameters and gradient of n elements, the same at every call.

    No element is near zero, so that an error in units in the last place says something, and none becomes denormal.
    They lie as fastgd lays out its own arrays: where `numpy.empty` puts them a step takes up to twice as long, or not,
    from one process to the next.
    """
    rng = np.random.default_rng(20)
    p, g = (rng.uniform(low, low + 1, min(n, PERIOD)) * rng.choice((-1.0, 1.0), min(n, PERIOD)) for low in (0.5, 0.1))
    return aligned(np.resize(p.astype(dtype), n)), aligned(np.resize(g.astype(dtype), n))


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """Copy 1-D values into memory that is laid out as fastgd's."""
    copy: NDArray[Any] = zeros(values.size, values.dtype)
    np.copyto(copy, values)
    return copy


def reference(
    case: Case, dtype: str, n: int, factors: Sequence[float] = GRADIENT_FACTORS
) -> tuple[NDArray[np.float64], ...]:
    """Take the checked steps of n elements in float64, from data rounded to `dtype`; of one period, if that is all.

    Returns
    -------
    tuple of array
        The parameters; with a tail also their average and the gradient that is left.
    """
    if not case.periodic:
        return _whole_reference(case, dtype, n, factors)
    p, g = (a.astype(np.float64) for a in data(min(n, PERIOD), dtype))
    tail = dict(case.tail)
    max_norm = tail.pop("max_norm", math.inf)
    optimizer = Optimizer(p, case.build(), backend="numpy", **tail)
    whole, rest = divmod(n, PERIOD)  # the norm is that of all elements, the steps are taken with one period
    norm = math.sqrt(whole * np.dot(g, g) + np.dot(g[:rest], g[:rest]))
    for factor in factors:
        left = factor * g
        optimizer.step(left, scale=min(1.0, max_norm / (abs(factor) * norm + 1e-6)))
    return (p, optimizer.ema, left) if case.tail else (p,)


def _whole_reference(case: Case, dtype: str, n: int, factors: Sequence[float]) -> tuple[NDArray[np.float64], ...]:
    p, g = (a.astype(np.float64) for a in data(n, dtype))
    optimizer = Optimizer([a.reshape(case.shape(a.size)) for a in case.cut(p)], case.build())
    for factor in factors:
        optimizer.step([factor * a.reshape(case.shape(a.size)) for a in case.cut(g)])
    return (p,)


def max_ulp(result: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Largest distance to the expected values, which repeat, in units in the last place of the result's dtype."""
    period = expected.size
    step = max(1, min(period, PERIOD))  # by parts: float64 copies of the whole could be gigabytes
    worst = 0.0
    unit = _spacing(expected[:step], result.dtype)
    for start in range(0, result.size, step):
        part = result[start : start + step]
        wanted = expected[start % period :][: part.size]
        if period > step:
            unit = _spacing(wanted, result.dtype)
        with np.errstate(over="ignore"):  # what should be zero may be more units away than there are numbers
            worst = max(worst, float(np.max(np.abs(part - wanted) / unit[: part.size], initial=0.0)))
        if not np.isfinite(part).all():
            return float("inf")
    return worst


def _spacing(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    spacing: NDArray[np.float64] = np.spacing(np.abs(values).astype(dtype)).astype(np.float64)
    return spacing
