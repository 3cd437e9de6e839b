"""What every rule must compute: one float64 NumPy function per rule, written from the papers and nothing else.

An oracle takes the initial parameters of each segment and, for each step, the gradient of each segment. It returns the
final parameters and the states by torch's names. Its keyword arguments and their defaults are those of the rule; the
settings beside it are the hyperparameters that the tests run, each of them off its default at least once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Segments = list[Array]
Result = tuple[Segments, dict[str, Segments]]
Oracle = Callable[..., Result]

ORACLES: dict[str, Oracle] = {}
"""Oracle of each rule by the rule's lower-case name."""

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {}
"""Hyperparameters to test each rule with."""


def oracle(*settings: dict[str, Any]) -> Callable[[Oracle], Oracle]:
    """Register a function as the oracle of the rule of its name, to be tested with these settings."""

    def register(function: Oracle) -> Oracle:
        ORACLES[function.__name__] = function
        SETTINGS[function.__name__] = settings
        return function

    return register


def _double(segments: Iterable[Array]) -> Segments:
    return [np.array(s, np.float64) for s in segments]


def _zeros(segments: Iterable[Array]) -> Segments:
    return [np.zeros(np.shape(s)) for s in segments]


@oracle(dict(lr=0.1), dict(lr=3e-4))
def gd(segments: Segments, grads: Sequence[Segments], *, lr: float = 1e-3) -> Result:
    """x_k = x_{k-1} - lr y_k, with y_k the gradient at step k (Cauchy 1847)."""
    xs = _double(segments)
    for step in grads:
        xs = [x - lr * y for x, y in zip(xs, _double(step), strict=True)]
    return xs, {}


@oracle(
    dict(lr=0.05, weight_decay=0.1),
    dict(lr=0.02, momentum=0.9),
    dict(lr=0.02, momentum=0.8, dampening=0.3, weight_decay=0.05),
    dict(lr=0.01, momentum=0.7, nesterov=True, weight_decay=0.02),
)
def sgd(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Result:
    """Gradient descent with momentum (Sutskever et al. 2013), in torch's form with lr outside the velocity.

    y = gradient + weight_decay x; velocity z_1 = y_1, z_k = momentum z_{k-1} + (1 - dampening) y_k; the step is z_k,
    with nesterov y_k + momentum z_k, and without momentum y_k.
    """
    xs, zs = _double(segments), _zeros(segments)
    for k, step in enumerate(grads, start=1):
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            zs[i] = y if k == 1 else momentum * zs[i] + (1 - dampening) * y
            if momentum == 0:
                direction = y
            else:
                direction = y + momentum * zs[i] if nesterov else zs[i]
            xs[i] = xs[i] - lr * direction
    return xs, {"momentum_buffer": zs} if momentum else {}


class _Moments:
    """Averages of the gradient and of its square, and the direction that Adam makes of them."""

    def __init__(self, segments: Segments, betas: tuple[float, float], amsgrad: bool) -> None:
        self.a, self.b = betas
        self.amsgrad = amsgrad
        self.first, self.second, self.peak = _zeros(segments), _zeros(segments), _zeros(segments)

    def direction(self, i: int, k: int, y: Array, eps: float, eps_mode: str) -> Array:
        """Take in the gradient y of segment i at step k = 1, 2, ...; give the direction before lr."""
        self.first[i] = self.a * self.first[i] + (1 - self.a) * y
        self.second[i] = self.b * self.second[i] + (1 - self.b) * y**2
        self.peak[i] = np.maximum(self.peak[i], self.second[i])  # of the raw average, as torch and Reddi et al.
        spread = self.peak[i] if self.amsgrad else self.second[i]
        grown_a: float = 1 - self.a**k
        grown_b: float = 1 - self.b**k
        mean = self.first[i] / grown_a
        if eps_mode == "outside":
            return mean / (np.sqrt(spread / grown_b) + eps)
        if eps_mode == "hat":
            return math.sqrt(grown_b) * mean / (np.sqrt(spread) + eps)
        if eps_mode == "inside":
            return mean / np.sqrt(spread / grown_b + eps)
        raise ValueError(f"eps_mode must be 'outside', 'hat' or 'inside', given {eps_mode!r}")

    def states(self) -> dict[str, Segments]:
        kept = {"exp_avg": self.first, "exp_avg_sq": self.second}
        return {**kept, "max_exp_avg_sq": self.peak} if self.amsgrad else kept


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3),
    dict(lr=5e-3, weight_decay=0.1, amsgrad=True, betas=(0.5, 0.9)),
    dict(lr=0.01, eps=1e-2, eps_mode="hat", weight_decay=0.05),
    dict(lr=0.01, eps=1e-2, eps_mode="inside", betas=(0.95, 0.98), amsgrad=True),
    dict(lr=0.01, eps=1e-2, eps_mode="hat", amsgrad=True, betas=(0.0, 0.99)),
    dict(lr=0.03, eps=1e-4, decoupled_weight_decay=True, weight_decay=0.2),
)
def adam(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    eps_mode: str = "outside",
    decoupled_weight_decay: bool = False,
) -> Result:
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1; its section 2 for the eps-hat form), AMSGrad as an option.

    The decay is added to the gradient, or, decoupled, shrinks x by the factor 1 - lr weight_decay before the step.
    """
    xs, moments = _double(segments), _Moments(segments, betas, amsgrad)
    coupled = 0.0 if decoupled_weight_decay else weight_decay
    shrink = 1 - lr * weight_decay if decoupled_weight_decay else 1.0
    for k, step in enumerate(grads, start=1):
        for i, gradient in enumerate(_double(step)):
            y = gradient + coupled * xs[i]
            xs[i] = shrink * xs[i] - lr * moments.direction(i, k, y, eps, eps_mode)
    return xs, moments.states()


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
    dict(lr=5e-3, amsgrad=True, betas=(0.5, 0.9), weight_decay=0.1),
    dict(lr=0.01, eps=1e-2, eps_mode="hat", weight_decay=0.5),
    dict(lr=0.01, eps=1e-2, eps_mode="inside", betas=(0.95, 0.98), amsgrad=True),
)
def adamw(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    eps_mode: str = "outside",
) -> Result:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2), with lr as its product of schedule and step size.

    Step and decay are both taken from the old x, in one bracket, as the paper writes it.
    """
    xs, moments = _double(segments), _Moments(segments, betas, amsgrad)
    for k, step in enumerate(grads, start=1):
        for i, y in enumerate(_double(step)):
            xs[i] = xs[i] - lr * (moments.direction(i, k, y, eps, eps_mode) + weight_decay * xs[i])
    return xs, moments.states()


@oracle(
    dict(lr=0.01),
    dict(lr=0.02, betas=(0.7, 0.9), weight_decay=0.3),
    dict(lr=3e-3, betas=(0.95, 0.5), weight_decay=2.0),
)
def lion(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> Result:
    """Lion (Chen et al., arXiv:2302.06675, algorithm 2): the sign of one average, the memory of another."""
    xs, zs = _double(segments), _zeros(segments)
    a, b = betas
    for step in grads:
        for i, y in enumerate(_double(step)):
            vote = np.sign(a * zs[i] + (1 - a) * y)
            xs[i] = xs[i] - lr * (vote + weight_decay * xs[i])
            zs[i] = b * zs[i] + (1 - b) * y
    return xs, {"exp_avg": zs}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
    dict(lr=5e-3, weight_decay=0.0, eps=1e-2, always_adapt=True),
    dict(lr=0.01, weight_decay=0.0, betas=(0.5, 0.9)),
)
def lamb(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    always_adapt: bool = False,
) -> Result:
    """LAMB (You et al., arXiv:1904.00962, algorithm 2, with the identity for its function phi).

    As in Apex the layer's ratio is left out where there is no decay, unless always_adapt asks for it.
    """
    xs, moments = _double(segments), _Moments(segments, betas, amsgrad=False)
    for k, step in enumerate(grads, start=1):
        for i, y in enumerate(_double(step)):
            turn = moments.direction(i, k, y, eps, "outside") + weight_decay * xs[i]
            size, reach = np.linalg.norm(xs[i]), np.linalg.norm(turn)
            adapts = (weight_decay != 0 or always_adapt) and size > 0 and reach > 0
            xs[i] = xs[i] - lr * (size / reach if adapts else 1.0) * turn
    return xs, moments.states()


def global_norm(gradients: Segments) -> float:
    """Euclidean norm of all gradients of one step together."""
    return float(np.sqrt(sum(np.sum(np.square(y)) for y in _double(gradients))))


def clip_global_norm(gradients: Segments, max_norm: float) -> Segments:
    """Scale the gradients of one step as ``torch.nn.utils.clip_grad_norm_`` does."""
    factor = np.minimum(1.0, max_norm / (global_norm(gradients) + 1e-6))  # NaN where the norm is
    return [factor * y for y in _double(gradients)]


def ema(history: Sequence[Segments], decay: float) -> Segments:
    """Average parameters x_0, x_1, ... of a run: e_0 = x_0, e_k = e_{k-1} + (1 - decay) (x_k - e_{k-1})."""
    means = _double(history[0])
    for xs in history[1:]:
        means = [e + (1 - decay) * (x - e) for e, x in zip(means, _double(xs), strict=True)]
    return means
