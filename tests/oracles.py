"""What every rule must compute: one float64 NumPy function per rule, written from the papers and nothing else.

An oracle takes the initial parameters of each segment and, for each step, the gradient of each segment. It returns the
final parameters and the states by torch's names. Its keyword arguments and their defaults are those of the rule; the
settings beside it are the hyperparameters that the tests run, each of them off its default at least once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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

EXTRA_KEYWORDS = {"hessians", "each"}
"""Keyword arguments of oracles that are data of a run and no hyperparameters of a rule."""


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


def _filled(segments: Iterable[Array], value: float) -> Segments:
    return [np.full(np.shape(s), float(value)) for s in segments]


def _blend(keep: float, old: Array, new: Array) -> Array:
    """Exponential average of weight ``keep`` for what was."""
    return keep * old + (1 - keep) * new


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
    dict(lr=0.02, momentum=0.8, dampening=0.3, weight_decay=0.05, lr_in_momentum=True),
    dict(lr=0.01, momentum=0.7, nesterov=True, weight_decay=0.02, lr_in_momentum=True),
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
    lr_in_momentum: bool = False,
) -> Result:
    """Gradient descent with momentum (Sutskever et al. 2013), in torch's form with lr outside the velocity.

    y = gradient + weight_decay x; velocity z_1 = y_1, z_k = momentum z_{k-1} + (1 - dampening) y_k; the step is z_k,
    with nesterov y_k + momentum z_k, and without momentum y_k.

    With lr_in_momentum the velocity w holds lr times the gradient, as in Keras and Chainer and as Sutskever et al.
    write it: w_k = momentum w_{k-1} - lr (1 - dampening) y_k and x += w_k, with nesterov x += momentum w_k - lr y_k.
    The buffer is then -w. Only a lr that changes tells the two forms apart in x.
    """
    xs, zs = _double(segments), _zeros(segments)
    for k, step in enumerate(grads, start=1):
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            if lr_in_momentum and momentum != 0:
                w = -lr * y if k == 1 else momentum * -zs[i] - lr * (1 - dampening) * y
                xs[i] = xs[i] + (momentum * w - lr * y if nesterov else w)
                zs[i] = -w
                continue
            zs[i] = y if k == 1 else momentum * zs[i] + (1 - dampening) * y
            if momentum == 0:
                direction = y
            else:
                direction = y + momentum * zs[i] if nesterov else zs[i]
            xs[i] = xs[i] - lr * direction
    return xs, {"momentum_buffer": zs} if momentum else {}


class _Moments:
    """Averages of the gradient and of its square, and the direction that Adam makes of them."""

    def __init__(self, segments: Segments, betas: tuple[float, float], amsgrad: bool, cautious: bool = False) -> None:
        self.a, self.b = betas
        self.amsgrad, self.cautious = amsgrad, cautious
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
        if self.cautious:
            agrees = np.where(self.first[i] * y > 0, 1.0, 0.0)
            mean = mean * agrees / max(float(np.mean(agrees)), 1e-3)
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
    dict(lr=0.01, eps=1e-2, betas=(0.8, 0.95), weight_decay=0.3, cautious=True),
    dict(lr=0.01, eps=1e-2, eps_mode="hat", weight_decay=0.1, decoupled_weight_decay=True, cautious=True),
    dict(lr=0.01, eps=1e-2, eps_mode="inside", amsgrad=True, cautious=True),
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
    cautious: bool = False,
) -> Result:
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1; its section 2 for the eps-hat form), AMSGrad as an option.

    The decay is added to the gradient, or, decoupled, shrinks x by the factor 1 - lr weight_decay before the step.

    cautious (Liang et al., arXiv:2411.16085) leaves out of the step what has another sign than the gradient, a coupled
    decay included, and enlarges the rest by the inverse of its share, at most 1000 times, as the authors' code does
    since timm did; the paper has n / (number + 1). The averages are kept whole.
    """
    xs, moments = _double(segments), _Moments(segments, betas, amsgrad, cautious)
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
    dict(lr=0.01, eps=1e-2, eps_mode="hat", weight_decay=0.3, cautious=True),
    dict(lr=0.01, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.2, amsgrad=True, cautious=True),
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
    cautious: bool = False,
) -> Result:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2), with lr as its product of schedule and step size.

    Step and decay are both taken from the old x, in one bracket, as the paper writes it. cautious is Adam's; it leaves
    the decay whole.
    """
    xs, moments = _double(segments), _Moments(segments, betas, amsgrad, cautious)
    for k, step in enumerate(grads, start=1):
        for i, y in enumerate(_double(step)):
            xs[i] = xs[i] - lr * (moments.direction(i, k, y, eps, eps_mode) + weight_decay * xs[i])
    return xs, moments.states()


@oracle(
    dict(lr=0.01),
    dict(lr=0.02, betas=(0.7, 0.9), weight_decay=0.3),
    dict(lr=3e-3, betas=(0.95, 0.5), weight_decay=2.0),
    dict(lr=0.01, betas=(0.9, 0.95), weight_decay=0.3, cautious=True),
)
def lion(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    cautious: bool = False,
) -> Result:
    """Lion (Chen et al., arXiv:2302.06675, algorithm 2): the sign of one average, the memory of another.

    cautious (Liang et al., arXiv:2411.16085) drops the votes that the gradient's sign contradicts and enlarges the rest
    by n / (their number + 1), as the paper and C-Lion do; C-AdamW, and with it timm's Lion, divides by their share.
    """
    xs, zs = _double(segments), _zeros(segments)
    a, b = betas
    for step in grads:
        for i, y in enumerate(_double(step)):
            vote = np.sign(a * zs[i] + (1 - a) * y)
            if cautious:
                agrees = vote * y > 0
                vote = vote * agrees * y.size / (np.sum(agrees) + 1)
            xs[i] = xs[i] - lr * (vote + weight_decay * xs[i])
            zs[i] = b * zs[i] + (1 - b) * y
    return xs, {"exp_avg": zs}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
    dict(lr=5e-3, weight_decay=0.0, eps=1e-2, always_adapt=True),
    dict(lr=0.01, weight_decay=0.0, betas=(0.5, 0.9), grad_averaging=False),
    dict(lr=0.01, weight_decay=0.3, eps=1e-3, adam_w_mode=False, bias_correction=False),
)
def lamb(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    grad_averaging: bool = True,
    adam_w_mode: bool = True,
    always_adapt: bool = False,
) -> Result:
    """LAMB (You et al., arXiv:1904.00962, algorithm 2, with the identity for its function phi), as Apex's FusedLAMB.

    As there the layer's ratio is left out where there is no decay, unless always_adapt (its use_nvlamb) asks for it,
    grad_averaging=False sums gradients, and adam_w_mode=False adds the decay to the gradient. Apex's clip of all
    gradients together comes before.
    """
    xs, means, squares = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        grown_a, grown_b = (1 - a**k, 1 - b**k) if bias_correction else (1.0, 1.0)
        for i, gradient in enumerate(_double(step)):
            penalty = weight_decay * xs[i]
            y = gradient if adam_w_mode else gradient + penalty
            means[i] = a * means[i] + (1 - a if grad_averaging else 1.0) * y
            squares[i] = _blend(b, squares[i], y**2)
            turn = means[i] / grown_a / (np.sqrt(squares[i] / grown_b) + eps)
            if adam_w_mode:
                turn = turn + penalty
            size, reach = np.linalg.norm(xs[i]), np.linalg.norm(turn)
            adapts = (weight_decay != 0 or always_adapt) and size > 0 and reach > 0
            xs[i] = xs[i] - lr * (size / reach if adapts else 1.0) * turn
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.05, momentum=0.8, dampening=0.3, weight_decay=0.1, trust_coeff=0.5, eps=0.1),
    dict(lr=0.02, momentum=0.7, nesterov=True, weight_decay=0.02, trust_coeff=0.01, trust_clip=True),
    dict(lr=0.02, trust_coeff=0.02, trust_clip=True, always_adapt=True, eps=1e-2),
    dict(lr=5e-3, momentum=0.9),
)
def lars(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    trust_coeff: float = 1e-3,
    eps: float = 1e-8,
    trust_clip: bool = False,
    always_adapt: bool = False,
) -> Result:
    """LARS (You et al., arXiv:1708.03888, algorithm 1) as in timm, with lr outside the momentum and an eps.

    The decayed gradient is scaled by trust_coeff |x| / (|gradient| + weight_decay |x| + eps), or by 1 where a norm is
    0; trust_clip (NVIDIA's LARC) divides the scale by lr and bounds it by 1, the 1 of a norm of 0 too. Without decay
    nothing is scaled, unless always_adapt.
    """
    xs, zs = _double(segments), _zeros(segments)
    for k, step in enumerate(grads, start=1):
        for i, gradient in enumerate(_double(step)):
            size, slope = float(np.linalg.norm(xs[i])), float(np.linalg.norm(gradient))
            scale = 1.0
            if weight_decay != 0 or always_adapt:
                if size > 0 and slope > 0:
                    scale = trust_coeff * size / (slope + weight_decay * size + eps)
                if trust_clip:
                    scale = min(scale / lr, 1.0)
            y = scale * (gradient + weight_decay * xs[i])
            zs[i] = y if k == 1 else momentum * zs[i] + (1 - dampening) * y
            if momentum == 0:
                direction = y
            else:
                direction = y + momentum * zs[i] if nesterov else zs[i]
            xs[i] = xs[i] - lr * direction
    return xs, {"momentum_buffer": zs} if momentum else {}


@oracle(
    dict(lr=0.1, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.2),
    dict(lr=0.01, betas=(0.7, 0.98), weight_decay=0.1, reg_inside_moment=True, grad_averaging=False, eps=1e-3),
    dict(lr=0.05, betas=(0.95, 0.9), weight_decay=0.05, reg_inside_moment=True, init_zero=True),
    dict(lr=0.05, init_zero=True, bias_correction=False, eps=0.1),
)
def novograd(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    bias_correction: bool = True,
    grad_averaging: bool = True,
    reg_inside_moment: bool = False,
    init_zero: bool = False,
) -> Result:
    """NovoGrad (Ginsburg et al., arXiv:1905.11286, algorithm 1) as Apex's FusedNovoGrad with the Euclidean norm.

    The average of a layer's squared norms starts from the first, or from 0 with init_zero. The paper divides each
    gradient before its average, with the decay (reg_inside_moment), corrects no bias and starts the average of
    gradients from the first; Apex by default divides the average and adds the decay to the step, and by its bias
    correction enlarges the norm also where that starts from the first. Divided by a norm and eps of 0 it is 0 here.
    """
    xs, means = _double(segments), _zeros(segments)
    firsts = _zeros(segments) if init_zero or not grads else _double(grads[0])
    squares = [float(np.sum(y**2)) for y in firsts]
    a, b = betas
    for k, step in enumerate(grads, start=1):
        grown_a, grown_b = (1 - a**k, 1 - b**k) if bias_correction else (1.0, 1.0)
        for i, y in enumerate(_double(step)):
            squares[i] = b * squares[i] + (1 - b) * float(np.sum(y**2))
            fall = math.sqrt(squares[i] / grown_b) + eps
            inverse = 1 / fall if fall > 0 else 0.0
            fresh = y * inverse + weight_decay * xs[i] if reg_inside_moment else y
            means[i] = a * means[i] + (1 - a if grad_averaging else 1.0) * fresh
            turn = means[i] / grown_a
            xs[i] = xs[i] - lr * (turn if reg_inside_moment else turn * inverse + weight_decay * xs[i])
    return xs, {"exp_avg": means}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
    dict(lr=5e-3, eps=1e-2, weight_decay=0.0),
    dict(lr=0.01, betas=(0.95, 0.9), eps=0.1, weight_decay=1.0),
)
def stableadamw(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
) -> Result:
    """StableAdamW (Wortsman et al., arXiv:2304.13013, algorithm 2), as in optimi: AdamW with the clip of Adafactor.

    The averages are kept corrected: beta (1 - beta^(k-1)) / (1 - beta^k) is in the place of beta. The rate of a layer,
    for the decay too, is lr over the root mean square of gradient / max(root, eps) where that exceeds 1.
    """
    xs, means, squares = _double(segments), _zeros(segments), _zeros(segments)
    for k, step in enumerate(grads, start=1):
        a, b = (beta * (1 - beta ** (k - 1)) / (1 - beta**k) for beta in betas)
        for i, y in enumerate(_double(step)):
            means[i], squares[i] = _blend(a, means[i], y), _blend(b, squares[i], y**2)
            excess = np.sqrt(np.mean(y**2 / np.maximum(squares[i], eps**2)))
            rate = lr / max(1.0, excess)
            xs[i] = xs[i] - rate * (means[i] / (np.sqrt(squares[i]) + eps) + weight_decay * xs[i])
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    dict(lr=0.01, betas=(0.5, 0.9), eps=1e-2, weight_decay=0.05, eps_mode="outside"),
    dict(lr=5e-3, eps=1e-4, eps_mode="outside"),
)
def adamax(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_mode: str = "inside",
) -> Result:
    """Adamax (Kingma & Ba, arXiv:1412.6980, algorithm 2): a decaying maximum in the place of the squares.

    The paper has no eps. "inside" adds it to the gradient's size before the maximum (torch, optax), "outside" to the
    maximum, which is kept without it (Keras).
    """
    xs, means, tops = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            before, after = {"inside": (eps, 0.0), "outside": (0.0, eps)}[eps_mode]
            means[i] = _blend(a, means[i], y)
            tops[i] = np.maximum(b * tops[i], np.abs(y) + before)
            xs[i] = xs[i] - lr / (1 - a**k) * means[i] / (tops[i] + after)
    return xs, {"exp_avg": means, "exp_inf": tops}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    dict(lr=5e-3, momentum_decay=0.5, eps=1e-4),
    dict(lr=0.01, betas=(0.95, 0.9), eps=1e-3, weight_decay=0.3, momentum_decay=0.05, decoupled_weight_decay=True),
)
def nadam(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Result:
    """NAdam (Dozat 2016, with its momentum schedule), as in torch; optax's has no schedule.

    The schedule is mu_k = beta_1 (1 - 0.96^(k momentum_decay) / 2); Keras fixes momentum_decay to 1.
    """
    xs, means, squares = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas

    def pull(k: int) -> float:
        weight: float = a * (1 - 0.5 * 0.96 ** (k * momentum_decay))
        return weight

    for k, step in enumerate(grads, start=1):
        past = math.prod(pull(j) for j in range(1, k + 1))
        for i, gradient in enumerate(_double(step)):
            y = gradient if decoupled_weight_decay else gradient + weight_decay * xs[i]
            shrunk = xs[i] - lr * weight_decay * xs[i] if decoupled_weight_decay else xs[i]
            means[i], squares[i] = _blend(a, means[i], y), _blend(b, squares[i], y**2)
            ahead = (1 - pull(k)) / (1 - past) * y + pull(k + 1) / (1 - past * pull(k + 1)) * means[i]
            xs[i] = shrunk - lr * ahead / (np.sqrt(squares[i] / (1 - b**k)) + eps)
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


def _rectification(b: float, k: int) -> tuple[float, float]:
    """Length of the simple average that the squares' average stands for at step k, and RAdam's factor r_k of it."""
    longest = 2 / (1 - b) - 1
    length = longest - 2 * k * b**k / (1 - b**k)
    if length <= 4:
        return length, math.nan
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return length, math.sqrt(ratio)


@oracle(
    dict(lr=5e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    dict(lr=5e-3, betas=(0.9, 0.9), eps=1e-2, weight_decay=0.3, decoupled_weight_decay=True, eps_mode="outside"),
    dict(lr=1e-3, eps=1e-4, weight_decay=0.2, decoupled_weight_decay=True),
    dict(lr=2e-3, betas=(0.5, 0.98), eps=1e-2, weight_decay=0.05, eps_mode="outside"),
)
def radam(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    eps_mode: str = "hat",
) -> Result:
    """RAdam (Liu et al., arXiv:1908.03265, algorithm 2).

    The paper rectifies where the average is longer than 4, torch where it is longer than 5, optax from 5 on; this is
    torch's. The paper has no eps: "hat" adds it to the root of the raw average (torch), "outside" to that of the
    corrected one (optax).
    """
    xs, means, squares = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        length, factor = _rectification(b, k)
        grown: float = 1 - b**k
        for i, gradient in enumerate(_double(step)):
            y = gradient if decoupled_weight_decay else gradient + weight_decay * xs[i]
            shrunk = xs[i] - lr * weight_decay * xs[i] if decoupled_weight_decay else xs[i]
            means[i], squares[i] = _blend(a, means[i], y), _blend(b, squares[i], y**2)
            turn = means[i] / (1 - a**k)
            if length > 5:
                fall = {
                    "hat": (np.sqrt(squares[i]) + eps) / math.sqrt(grown),
                    "outside": np.sqrt(squares[i] / grown) + eps,
                }[eps_mode]
                turn = factor * turn / fall
            xs[i] = shrunk - lr * turn
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.1, eps=1e-3, weight_decay=0.1),
    dict(lr=0.05, lr_decay=0.2, initial_accumulator_value=0.1, eps=1e-7, eps_mode="inside"),
    dict(lr=0.05, lr_decay=0.01, initial_accumulator_value=0.5, weight_decay=0.02),
)
def adagrad(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    eps_mode: str = "outside",
) -> Result:
    """Adagrad (Duchi et al. 2011, its diagonal form): the sum of all squares so far.

    eps is added to its root, "outside" (torch), or under it, "inside" (Keras, optax).
    """
    xs, sums = _double(segments), _filled(segments, initial_accumulator_value)
    for k, step in enumerate(grads, start=1):
        rate = lr / (1 + (k - 1) * lr_decay)
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            sums[i] = sums[i] + y**2
            fall = {"outside": np.sqrt(sums[i]) + eps, "inside": np.sqrt(sums[i] + eps)}[eps_mode]
            xs[i] = xs[i] - rate * y / fall
    return xs, {"sum": sums}


@oracle(
    dict(lr=0.5, rho=0.8, eps=1e-3, weight_decay=0.1),
    dict(lr=2.0, eps=1e-4),
)
def adadelta(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Result:
    """Adadelta (Zeiler, arXiv:1212.5701, algorithm 1), its step times lr; the average of steps leaves lr out."""
    xs, squares, moves = _double(segments), _zeros(segments), _zeros(segments)
    for step in grads:
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            squares[i] = _blend(rho, squares[i], y**2)
            move = -np.sqrt(moves[i] + eps) / np.sqrt(squares[i] + eps) * y
            moves[i] = _blend(rho, moves[i], move**2)
            xs[i] = xs[i] + lr * move
    return xs, {"square_avg": squares, "acc_delta": moves}


@oracle(
    dict(lr=0.02, alpha=0.9, eps=1e-3, weight_decay=0.1),
    dict(lr=5e-3, alpha=0.95, eps=1e-2, momentum=0.8, centered=True, weight_decay=0.02),
    dict(lr=0.01, alpha=0.95, eps=1e-3, momentum=0.7, eps_mode="inside", lr_in_momentum=True),
    dict(lr=0.01, alpha=0.9, eps=1e-3, momentum=0.5, centered=True, eps_mode="inside", lr_in_momentum=True),
    dict(lr=0.01, alpha=0.98, eps=1e-2, centered=True, eps_mode="inside"),
)
def rmsprop(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    eps_mode: str = "outside",
    lr_in_momentum: bool = False,
) -> Result:
    """RMSprop (Tieleman & Hinton 2012; Graves, arXiv:1308.0850, eq. 38 to 45, for centered and momentum).

    eps is added to the root, "outside" (torch), or under it, "inside" (Graves, Keras, optax). With lr_in_momentum the
    buffer holds steps (Graves, Keras, optax), else directions before lr (torch). A variance that rounding makes
    negative counts as 0 here; torch takes its root.
    """
    xs, squares = _double(segments), _zeros(segments)
    means, buffers = _zeros(segments), _zeros(segments)
    inner, outer = (lr, 1.0) if lr_in_momentum else (1.0, lr)
    for step in grads:
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            squares[i], means[i] = _blend(alpha, squares[i], y**2), _blend(alpha, means[i], y)
            spread = np.maximum(squares[i] - means[i] ** 2, 0) if centered else squares[i]
            fall = {"outside": np.sqrt(spread) + eps, "inside": np.sqrt(spread + eps)}[eps_mode]
            buffers[i] = momentum * buffers[i] + inner * y / fall
            xs[i] = xs[i] - outer * buffers[i]
    states = {"square_avg": squares}
    if momentum != 0:
        states["momentum_buffer"] = buffers
    if centered:
        states["grad_avg"] = means
    return xs, states


@oracle(
    dict(lr=0.05),
    dict(lr=0.02, etas=(0.4, 1.5), step_sizes=(8e-3, 0.1)),
)
def rprop(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
) -> Result:
    """Rprop (Riedmiller & Braun 1993) without backtracking, as torch: iRprop- of Igel & Huesken (2000).

    A step size of an element's own grows while its gradient keeps the sign and shrinks where the sign turns; there the
    element rests, and its gradient is remembered as 0. A gradient of 0 leaves the step size as it is, within bounds.
    optax's (0.2.8) gives each step one step late (its pull request 1725).
    """
    xs, lasts, sizes = _double(segments), _zeros(segments), _filled(segments, lr)
    slower, faster = etas
    low, high = step_sizes
    for step in grads:
        for i, y in enumerate(_double(step)):
            same = np.sign(y) * np.sign(lasts[i])
            sizes[i] = np.clip(sizes[i] * np.where(same > 0, faster, np.where(same < 0, slower, 1.0)), low, high)
            lasts[i] = np.where(same < 0, 0.0, y)
            xs[i] = xs[i] - sizes[i] * np.sign(lasts[i])
    return xs, {"prev": lasts, "step_size": sizes}


@oracle(
    dict(lr=0.02, lambd=0.1, alpha=0.5, t0=5.0, weight_decay=0.05),
    dict(lr=0.05, lambd=1e-2),
    dict(lr=0.01, lambd=1.0, alpha=1.0, t0=0.0),
)
def asgd(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
) -> Result:
    """Averaged descent (Polyak & Juditsky 1992) with the decay and the rate of Bottou's sgd, as in torch.

    Step k goes at the rate lr / (1 + lambd lr (k - 1))^alpha. Up to step t0 + 2 the average is x; afterwards step
    k = t0 + 1 + j enters with weight 1 / j. Where lr changes between steps, torch's rate follows one step late: it is
    computed at the end of a step, from the lr of that step, for the next. lr is constant here.
    """
    xs, means = _double(segments), _zeros(segments)
    for k, step in enumerate(grads, start=1):
        rate = lr / (1 + lambd * lr * (k - 1)) ** alpha
        share = 1 / max(1, k - 1 - t0)
        for i, gradient in enumerate(_double(step)):
            y = gradient + weight_decay * xs[i]
            xs[i] = (1 - lambd * rate) * xs[i] - rate * y
            means[i] = _blend(1 - share, means[i], xs[i])
    return xs, {"ax": means}


@oracle(
    dict(lr=0.01, momentum=0.8, weight_decay=0.3),
    dict(lr=0.02, momentum=0.0, weight_decay=0.1),
    dict(lr=2.0**-8),  # in float32 a step of the same size every time errs to the same side every time
)
def signum(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Result:
    """Signum (Bernstein et al., arXiv:1802.04434, algorithm 2), signSGD (algorithm 1) without momentum.

    The sign does not see a bias correction. The decay is that of Bernstein et al., arXiv:1810.05291, algorithm 1: in
    one bracket with the sign, from the old x. MXNet has a second, inside the average; optax's signum has none.
    """
    xs, means = _double(segments), _zeros(segments)
    for step in grads:
        for i, y in enumerate(_double(step)):
            means[i] = _blend(momentum, means[i], y)
            xs[i] = xs[i] - lr * (np.sign(means[i]) + weight_decay * xs[i])
    return xs, {"exp_avg": means} if momentum else {}


@oracle(
    dict(lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1),
    dict(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.05, fixed_decay=True, amsgrad=True),
    dict(lr=0.01, betas=(0.5, 0.9), eps=1e-4, weight_decay=0.1, weight_decouple=False, rectify=False),
    dict(lr=5e-3, eps=1e-8, amsgrad=True, rectify=False, weight_decay=0.3),
    dict(lr=5e-3, betas=(0.9, 0.9), weight_decay=0.02, weight_decouple=False, amsgrad=True),
)
def adabelief(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    weight_decouple: bool = True,
    fixed_decay: bool = False,
    rectify: bool = True,
) -> Result:
    """AdaBelief (Zhuang et al., arXiv:2010.07468, algorithm 2) with the options of adabelief-pytorch 0.2.1.

    eps is added twice, as in the paper: to the average of squared surprises, which is kept with it, and to its root.
    Rectified, it is RAdam's step from a length of 5 on (RAdam in torch: above 5), with eps beside the root of the
    average before bias correction. Rectified with amsgrad, the peak divides here as it does unrectified; the package
    keeps it and then divides by the average that is not the peak, as if amsgrad were off.
    """
    xs, means, spreads, peaks = _double(segments), _zeros(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        length, factor = _rectification(b, k)
        grown: float = 1 - b**k
        for i, gradient in enumerate(_double(step)):
            y = gradient if weight_decouple else gradient + weight_decay * xs[i]
            drop = (1.0 if fixed_decay else lr) * weight_decay if weight_decouple else 0.0
            means[i] = _blend(a, means[i], y)
            spreads[i] = _blend(b, spreads[i], (y - means[i]) ** 2) + eps
            peaks[i] = np.maximum(peaks[i], spreads[i])
            root = np.sqrt(peaks[i] if amsgrad else spreads[i])
            turn = means[i] / (1 - a**k)
            if not rectify:
                turn = turn / (root / math.sqrt(grown) + eps)
            elif length >= 5:
                turn = factor * math.sqrt(grown) * turn / (root + eps)
            xs[i] = xs[i] - drop * xs[i] - lr * turn
    kept = {"exp_avg": means, "exp_avg_var": spreads}
    return xs, {**kept, "max_exp_avg_var": peaks} if amsgrad else kept


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-2, initial_accumulator_value=0.01),
    dict(lr=5e-3, betas=(0.5, 0.9)),
)
def yogi(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    initial_accumulator_value: float = 1e-6,
) -> Result:
    """Yogi (Zaheer et al. 2018, algorithm 2): the average of squares follows by an amount that it has no say in.

    The paper corrects no bias. optax, followed here, corrects both averages as Adam does although it starts both, the
    mean too, at the initial value, whose own share the correction then enlarges.
    """
    xs = _double(segments)
    means, squares = _filled(segments, initial_accumulator_value), _filled(segments, initial_accumulator_value)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        for i, y in enumerate(_double(step)):
            means[i] = _blend(a, means[i], y)
            squares[i] = squares[i] + (1 - b) * np.sign(y**2 - squares[i]) * y**2
            xs[i] = xs[i] - lr * (means[i] / (1 - a**k)) / (np.sqrt(squares[i] / (1 - b**k)) + eps)
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.01, betas=(0.8, 0.95, 0.99), alpha=3.0, eps=1e-3, weight_decay=0.2),
    dict(lr=0.01, betas=(0.5, 0.9, 0.999), alpha=8.0, t_alpha=16.0, t_beta3=12.0, eps=1e-4),
    dict(lr=5e-3, betas=(0.9, 0.98, 0.9999), t_beta3=100, weight_decay=0.0, eps=1e-3),
    dict(lr=5e-3, t_alpha=40, weight_decay=0.1, eps=1e-4),
)
def ademamix(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 5.0,
    t_alpha: float | None = None,
    t_beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Result:
    """AdEMAMix (Pagliardini et al., arXiv:2409.03137, algorithm 1): AdamW with a second, slow average beside the first.

    The slow average is not corrected. Its weight alpha_k = min(k alpha / t_alpha, alpha) and its beta_3 grow from step
    1 on; beta_3 so that the half-life ln(1/2) / ln(beta) grows linearly with k / t_beta3, from that of beta_1. The
    authors' code adds 1e-8 to each beta under the logarithm.
    """
    xs, quick, slow, squares = _double(segments), _zeros(segments), _zeros(segments), _zeros(segments)
    a, b, last = betas
    for k, step in enumerate(grads, start=1):
        weight = alpha if t_alpha is None else min(k * alpha / t_alpha, alpha)
        c = last
        if t_beta3 is not None and k < t_beta3:
            first_life, last_life = math.log(0.5) / math.log(a), math.log(0.5) / math.log(last)
            life = first_life + k / t_beta3 * (last_life - first_life)
            c = min(0.5 ** (1 / life), last)
        for i, y in enumerate(_double(step)):
            quick[i], slow[i] = _blend(a, quick[i], y), _blend(c, slow[i], y)
            squares[i] = _blend(b, squares[i], y**2)
            mixed = quick[i] / (1 - a**k) + weight * slow[i]
            turn = mixed / (np.sqrt(squares[i] / (1 - b**k)) + eps)
            xs[i] = xs[i] - lr * (turn + weight_decay * xs[i])
    return xs, {"exp_avg": quick, "exp_avg_slow": slow, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    dict(lr=0.01, betas=(0.5, 0.9), eps=0.05, weight_decay=0.3, decouple=True, clip_exponent=None),
    dict(lr=0.01, betas=(0.9, 0.99), eps=1e-2, weight_decay=0.2, decouple=True),
    dict(lr=0.01, eps=0.01, weight_decay=0.05, clip_exponent=0.5),
)
def adopt(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    decouple: bool = False,
    clip_exponent: float | None = 0.25,
) -> Result:
    """ADOPT (Taniguchi et al., arXiv:2411.02853, with the clipping of its third version): the squares before this step.

    The first gradient only starts the squares: x stays, undecayed. Update k = 1, 2, ... takes gradient k + 1. A decay
    that is not decoupled is part of every gradient, of the first too.
    """
    xs, means, squares = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads):
        for i, gradient in enumerate(_double(step)):
            y = gradient if decouple else gradient + weight_decay * xs[i]
            if k == 0:
                squares[i] = y**2
                continue
            unit = y / np.maximum(np.sqrt(squares[i]), eps)
            if clip_exponent is not None:
                unit = np.clip(unit, -(k**clip_exponent), k**clip_exponent)
            means[i] = _blend(a, means[i], unit)
            xs[i] = xs[i] - lr * (means[i] + (weight_decay * xs[i] if decouple else 0.0))
            squares[i] = _blend(b, squares[i], y**2)
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.012, betas=(0.9, 0.8, 0.95), eps=1e-3, weight_decay=0.3),  # 1 + lr weight_decay is nearly a float32
    dict(lr=0.02, betas=(0.7, 0.6, 0.9), eps=1e-2, weight_decay=0.3, no_prox=True),
    dict(lr=5e-3, eps=1e-4),
)
def adan(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
) -> Result:
    """Adan (Xie et al., arXiv:2208.06677, algorithm 1), with the bias corrections of the authors' code.

    The paper's betas are 1 minus these, so that its factor 1 - beta_2 of the differences is beta_2 here; optax kept
    1 - beta_2. The paper starts the averages from the first gradients instead of correcting their bias. Its decay is a
    proximal step, a division; no_prox shrinks the old x as AdamW does.
    """
    xs, means, turns, squares = _double(segments), _zeros(segments), _zeros(segments), _zeros(segments)
    lasts = _double(grads[0]) if grads else _zeros(segments)
    a, b, c = betas
    for k, step in enumerate(grads, start=1):
        for i, y in enumerate(_double(step)):
            change = y - lasts[i]
            means[i], turns[i] = _blend(a, means[i], y), _blend(b, turns[i], change)
            squares[i] = _blend(c, squares[i], (y + b * change) ** 2)
            lasts[i] = y
            ahead = means[i] / (1 - a**k) + b * turns[i] / (1 - b**k)
            move = lr * ahead / (np.sqrt(squares[i] / (1 - c**k)) + eps)
            if no_prox:
                xs[i] = xs[i] - lr * weight_decay * xs[i] - move
            else:
                xs[i] = (xs[i] - move) / (1 + lr * weight_decay)
    return xs, {"exp_avg": means, "exp_avg_diff": turns, "exp_avg_sq": squares, "pre_grad": lasts}


@oracle(
    dict(lr=0.01, betas=(0.8, 0.9), rho=0.05, weight_decay=0.3, bs=200.0),
    dict(lr=0.02, betas=(0.9, 0.5), rho=0.5, weight_decay=0.0, bs=4.0),
)
def sophiag(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.965, 0.99),
    rho: float = 0.04,
    weight_decay: float = 0.1,
    bs: float = 5120.0,
    hessians: Mapping[int, Segments] | None = None,
) -> Result:
    """Sophia-G (Liu et al., arXiv:2305.14342, algorithm 3 with the estimator of algorithm 2), as the authors' code.

    hessians gives, for some steps k = 1, 2, ..., the gradients with labels drawn from the model; their squares enter
    the average of curvatures before step k. The paper clips z / max(gamma h, eps) to 1, where the code has the same of
    |z| / (rho bs h + 1e-15); without curvature the step is the sign.
    """
    xs, means, bends = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        if hessians is not None and k in hessians:
            bends = [_blend(b, h, drawn**2) for h, drawn in zip(bends, _double(hessians[k]), strict=True)]
        for i, y in enumerate(_double(step)):
            means[i] = _blend(a, means[i], y)
            turn = np.clip(means[i] / (rho * bs * bends[i] + 1e-15), -1, 1)
            xs[i] = xs[i] - lr * (turn + weight_decay * xs[i])
    return xs, {"exp_avg": means, "hessian": bends}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
    dict(lr=5e-3, betas=(0.95, 0.9), eps=1e-2),
)
def grams(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Result:
    """Grams (Cao et al., arXiv:2412.17107): as far as Adam goes, but where the gradient points.

    eps stands beside the root of the average before bias correction, as in the authors' code; the paper has it beside
    the root of the corrected one.
    """
    xs, means, squares = _double(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        for i, y in enumerate(_double(step)):
            means[i], squares[i] = _blend(a, means[i], y), _blend(b, squares[i], y**2)
            reach = math.sqrt(1 - b**k) * np.abs(means[i] / (1 - a**k)) / (np.sqrt(squares[i]) + eps)
            xs[i] = xs[i] - lr * (np.sign(y) * reach + weight_decay * xs[i])
    return xs, {"exp_avg": means, "exp_avg_sq": squares}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2, gamma=0.05),
    dict(lr=0.01, betas=(0.8, 0.98), eps=1e-2, amsgrad=True),
    dict(lr=0.01, betas=(0.8, 0.99), weight_decay=0.3, gamma=0.02, mars_type="mars-lion"),
)
def mars(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    gamma: float = 0.025,
    amsgrad: bool = False,
    mars_type: str = "mars-adamw",
) -> Result:
    """MARS (Yuan et al., arXiv:2411.10438, algorithm 2, or 3 for "mars-lion") in its approximate form.

    The gradient plus gamma beta_1 / (1 - beta_1) times its change, scaled down to a norm of 1 for each layer, enters
    AdamW or an average whose sign is the step. The change at the first step is from 0, as in the authors' code; timm
    has none there. The gradient before is a copy; the authors' code keeps the gradient's own memory.
    """
    xs, lasts = _double(segments), _zeros(segments)
    means, squares, peaks = _zeros(segments), _zeros(segments), _zeros(segments)
    a, b = betas
    for k, step in enumerate(grads, start=1):
        for i, gradient in enumerate(_double(step)):
            y = gradient + gamma * a / (1 - a) * (gradient - lasts[i])
            y = y / max(1.0, float(np.linalg.norm(y)))
            lasts[i] = gradient
            means[i] = _blend(a, means[i], y)
            if mars_type == "mars-lion":
                turn = np.sign(means[i])
            else:
                squares[i] = _blend(b, squares[i], y**2)
                peaks[i] = np.maximum(peaks[i], squares[i])
                spread = peaks[i] if amsgrad else squares[i]
                turn = means[i] / (1 - a**k) / (np.sqrt(spread / (1 - b**k)) + eps)
            xs[i] = xs[i] - lr * (turn + weight_decay * xs[i])
    states = {"exp_avg": means, "last_grad": lasts}
    if mars_type == "mars-adamw":
        states["exp_avg_sq"] = squares
        if amsgrad:
            states["max_exp_avg_sq"] = peaks
    return xs, states


def _own(each: Sequence[Mapping[str, float]] | None, segments: Segments, key: str, common: float) -> list[float]:
    """Give a hyperparameter of each segment, its own or the common one."""
    return [common] * len(segments) if each is None else [own.get(key, common) for own in each]


@oracle(
    dict(lr=0.7, betas=(0.8, 0.95), beta3=0.9, eps=1e-3, weight_decay=0.1, d0=0.02, d_coef=0.5, growth_rate=1.1),
    dict(lr=0.5, weight_decay=0.1, decouple=False, use_bias_correction=True, eps=1e-3, d0=0.02),
    dict(lr=0.2, betas=(0.0, 0.9), eps=1e-2, safeguard_warmup=True, d0=0.02, d_coef=4.0),
    dict(lr=0.2, betas=(0.0, 0.95), eps=1e-2, weight_decay=0.1, decouple=False, d0=0.02),
    dict(lr=0.5, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.05, safeguard_warmup=True, d0=0.02, growth_rate=1.15),
)
def prodigy(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float | None = None,
    each: Sequence[Mapping[str, float]] | None = None,
) -> Result:
    """Prodigy (Mishchenko & Defazio, arXiv:2306.06101, algorithm 4), as prodigyopt 1.1.2.

    One distance d for all segments, from sums over all. The step has the old d in its rate and the new d beside eps
    and, where beta_1 is 0 and no average is kept, in the place of the average's. As long as d is d0 it takes any
    estimate that is larger, unbounded by growth_rate. A step on which all of s is 0 moves nothing and does not count.
    The package wants one lr, or 0, for all segments; its decoupled decay, and with beta_1 = 0 its step, then take the
    lr of the others where it is 0. Here each segment has its own in all places, and with 0 stands still.
    """
    xs, starts = _double(segments), _double(segments)
    means, squares, slopes = _zeros(segments), _zeros(segments), _zeros(segments)
    rates, decays = _own(each, segments, "lr", lr), _own(each, segments, "weight_decay", weight_decay)
    a, b = betas
    c = math.sqrt(b) if beta3 is None else beta3
    d, largest, progress, k = d0, d0, 0.0, 0
    for step in grads:
        correction = math.sqrt(1 - b ** (k + 1)) / (1 - a ** (k + 1)) if use_bias_correction else 1.0
        live = [i for i, rate in enumerate(rates) if rate > 0]
        ys = [y + (0.0 if decouple else decays[i]) * xs[i] for i, y in enumerate(_double(step))]
        gain = 0.0
        for i in live:
            rate = d * rates[i] * correction
            gain += d / d0 * rate * float(np.sum(ys[i] * (starts[i] - xs[i])))
            means[i] = a * means[i] + d * (1 - a) * ys[i]
            squares[i] = _blend(b, squares[i], (d * ys[i]) ** 2)
            slopes[i] = c * slopes[i] + d / d0 * (d if safeguard_warmup else rate) * ys[i]
        total = sum(float(np.sum(np.abs(slopes[i]))) for i in live)
        if total == 0:
            continue
        k += 1
        progress = c * progress + gain
        estimate = d_coef * progress / total
        before = d
        if d == d0:
            d = max(d, estimate)
        largest = max(largest, estimate)
        d = largest if growth_rate is None else min(largest, d * growth_rate)
        for i in live:
            rate = before * rates[i] * correction
            turn = (means[i] if a > 0 else d * ys[i]) / (np.sqrt(squares[i]) + d * eps)
            xs[i] = xs[i] - rate * (turn + (decays[i] if decouple else 0.0) * xs[i])
    kept = {"exp_avg_sq": squares, "s": slopes, "p0": starts}
    return xs, {"exp_avg": means, **kept} if a > 0 else kept


@oracle(
    dict(lr=0.4, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, decouple=True, d0=1e-2, growth_rate=1.1),
    dict(lr=0.7, betas=(0.9, 0.99), eps=1e-2, weight_decay=0.2, use_bias_correction=True, d0=1e-3),
    dict(lr=0.4, eps=1e-4),
)
def dadaptadam(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    use_bias_correction: bool = False,
    d0: float = 1e-6,
    growth_rate: float | None = None,
    each: Sequence[Mapping[str, float]] | None = None,
) -> Result:
    """Adam with D-Adaptation (Defazio & Mishchenko, arXiv:2301.07733, algorithm 5), as DAdaptAdam in dadaptation 3.2.

    One distance d for all segments, from sums over all, which never falls. The rate, with d before the step, is inside
    the average of gradients. The old s is divided by the root as it was before the step. A step on which all of s is 0
    moves nothing and does not count. As for Prodigy each segment has its own lr; the package has a layer_scale.
    """
    xs, means, squares, slopes = _double(segments), _zeros(segments), _zeros(segments), _zeros(segments)
    rates, decays = _own(each, segments, "lr", lr), _own(each, segments, "weight_decay", weight_decay)
    a, b = betas
    c = math.sqrt(b)
    d, progress, k = d0, 0.0, 0
    for step in grads:
        correction = math.sqrt(1 - b ** (k + 1)) / (1 - a ** (k + 1)) if use_bias_correction else 1.0
        live = [i for i, rate in enumerate(rates) if rate > 0]
        ys = [y + (0.0 if decouple else decays[i]) * xs[i] for i, y in enumerate(_double(step))]
        gain = 0.0
        for i in live:
            rate = d * rates[i] * correction
            gain += rate * float(np.sum(ys[i] * slopes[i] / (np.sqrt(squares[i]) + eps)))
            means[i] = _blend(a, means[i], rate * ys[i])
            squares[i] = _blend(b, squares[i], ys[i] ** 2)
            slopes[i] = _blend(c, slopes[i], rate * ys[i])
        total = sum(float(np.sum(np.abs(slopes[i]))) for i in live)
        if total == 0:
            continue
        k += 1
        progress = c * progress + (1 - c) * gain
        estimate = progress / ((1 - c) * total)
        before = d
        d = max(d, estimate if growth_rate is None else min(estimate, d * growth_rate))
        for i in live:
            shrink = before * rates[i] * correction * decays[i] if decouple else 0.0
            xs[i] = xs[i] - shrink * xs[i] - means[i] / (np.sqrt(squares[i]) + eps)
    return xs, {"exp_avg": means, "exp_avg_sq": squares, "s": slopes}


class _ScheduleFree:
    """The points x, y and z of Defazio et al., each kept, as the paper has them; the gradient belongs to y."""

    def __init__(self, segments: Segments, beta: float) -> None:
        self.xs, self.zs = _double(segments), _double(segments)
        self.beta, self.weights, self.peak = beta, 0.0, 0.0

    def y(self, i: int) -> Array:
        return _blend(self.beta, self.xs[i], self.zs[i])

    def rate(self, k: int, lr: float, warmup_steps: float, r: float, weight_lr_power: float) -> tuple[float, float]:
        """Rate of step k = 1, 2, ... and the share of its z in the average x."""
        rate = lr * min(1.0, k / warmup_steps) if warmup_steps else lr
        self.peak = max(self.peak, rate)
        weight = k**r * self.peak**weight_lr_power
        self.weights += weight
        return rate, weight / self.weights if self.weights else 0.0

    def move(self, i: int, rate: float, share: float, direction: Array) -> None:
        self.zs[i] = self.zs[i] - rate * direction
        self.xs[i] = _blend(1 - share, self.xs[i], self.zs[i])


@oracle(
    dict(lr=0.05, momentum=0.8, weight_decay=0.1),
    dict(lr=0.02, warmup_steps=10.0, r=1.0, weight_decay=0.02),
    dict(lr=0.02, momentum=0.95, warmup_steps=4, r=0.5, weight_lr_power=1.0),
)
def schedulefreesgd(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Result:
    """Schedule-free gradient descent (Defazio et al., arXiv:2405.15682), decayed at y as in the authors' code.

    y = (1 - momentum) z + momentum x, where the gradient is taken; z moves by rate (gradient + weight_decay y); x is
    the average of all z with weights k^r (largest rate so far)^weight_lr_power. Given back is y.
    """
    at = _ScheduleFree(segments, momentum)
    for k, step in enumerate(grads, start=1):
        rate, share = at.rate(k, lr, warmup_steps, r, weight_lr_power)
        for i, gradient in enumerate(_double(step)):
            at.move(i, rate, share, gradient + weight_decay * at.y(i))
    return [at.y(i) for i in range(len(at.xs))], {"z": at.zs}


@oracle(
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    dict(lr=0.02, warmup_steps=10.0, r=1.0, eps=1e-4, weight_decay=0.02),
    dict(lr=0.01, betas=(0.95, 0.9), warmup_steps=4, r=0.5, weight_lr_power=1.0, eps=1e-3),
)
def schedulefreeadamw(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 2.5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Result:
    """Schedule-free AdamW (Defazio et al., arXiv:2405.15682, algorithm 1), decayed at y; r is of the authors' code.

    As schedule-free gradient descent, with the gradient over the root of its corrected average square. The paper puts
    the root of the correction into the rate, and so into the weights, and so does early code; the code since does not.
    """
    at, squares = _ScheduleFree(segments, betas[0]), _zeros(segments)
    b = betas[1]
    for k, step in enumerate(grads, start=1):
        rate, share = at.rate(k, lr, warmup_steps, r, weight_lr_power)
        for i, gradient in enumerate(_double(step)):
            squares[i] = _blend(b, squares[i], gradient**2)
            unit = gradient / (np.sqrt(squares[i] / (1 - b**k)) + eps)
            at.move(i, rate, share, unit + weight_decay * at.y(i))
    return [at.y(i) for i in range(len(at.xs))], {"z": at.zs, "exp_avg_sq": squares}


def schedule_free_x(ys: Segments, zs: Segments, beta: float) -> Segments:
    """Averages of a schedule-free run, to evaluate, from the parameters y that it trains."""
    return [y + (1 - 1 / beta) * (z - y) for y, z in zip(_double(ys), _double(zs), strict=True)]


def schedule_free_y(xs: Segments, zs: Segments, beta: float) -> Segments:
    """Parameters to train from averages of a schedule-free run."""
    return [x + (1 - beta) * (z - x) for x, z in zip(_double(xs), _double(zs), strict=True)]


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
