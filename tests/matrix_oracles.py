"""What the rules on matrices must compute: oracles, as those of ``oracles``, that need the shape of a segment.

A state that a segment does not have is None in the list of that state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from oracles import EXTRA_KEYWORDS, Array, Result, Segments, _blend, _double, _zeros, oracle

EXTRA_KEYWORDS.add("machine_eps")


def _rms(a: Array) -> float:
    return float(np.sqrt(np.mean(np.square(a))))


def _unit_values(a: Array, steps: int, coefficients: tuple[float, float, float], least: float) -> Array:
    """Matrix of a's singular vectors, its singular values over its norm mapped this often to c s + d s^3 + e s^5."""
    c, d, e = coefficients
    left, values, right = np.linalg.svd(a, full_matrices=False)
    s = values / max(float(np.sqrt(np.sum(values**2))), least)
    for _ in range(steps):
        s = c * s + d * s**3 + e * s**5
    unit: Array = (left * s) @ right
    return unit


@oracle(
    dict(lr=0.02, momentum=0.8, weight_decay=0.3),
    dict(
        lr=0.01,
        momentum=0.9,
        nesterov=False,
        ns_coefficients=(1.875, -1.25, 0.375),
        ns_steps=3,
        adjust_lr_fn="match_rms_adamw",
    ),
    dict(lr=0.02, eps=300.0, ns_steps=4, weight_decay=0.0, adjust_lr_fn="spectral_unclamped"),
    dict(lr=5e-3, momentum=0.5, ns_steps=0, weight_decay=0.05, adjust_lr_fn="original"),
)
def muon(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> Result:
    """Muon (Jordan et al. 2024), as in torch but for its bfloat16: an average of gradients, its singular values near 1.

    A step of Newton and Schulz on a matrix is a polynomial of its singular values, and is taken of them here. They are
    first divided by their norm, or by eps where that is larger (torch; Jordan adds eps). Axes after the first are one,
    as Jordan has them for the four of a convolution; he reads three as a batch of matrices, and scales a convolution's
    step by its last two. The decay is by lr, whatever adjust_lr_fn makes of it for the step.
    """
    xs, means = _double(segments), _zeros(segments)
    for step in grads:
        for i, y in enumerate(_double(step)):
            means[i] = _blend(momentum, means[i], y)
            ahead = (1 - momentum) * y + momentum * means[i] if nesterov else means[i]
            table = ahead.reshape(len(y), -1)
            rows, columns = table.shape
            stretch = {
                None: math.sqrt(max(1, rows / columns)),
                "original": math.sqrt(max(1, rows / columns)),
                "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
                "spectral_unclamped": math.sqrt(rows / columns),
            }[adjust_lr_fn]
            turn = _unit_values(table, ns_steps, ns_coefficients, eps).reshape(y.shape)
            xs[i] = xs[i] - lr * weight_decay * xs[i] - lr * stretch * turn
    return xs, {"momentum_buffer": means}


class _Factored:
    """Averages, over steps, of the means of each row and each column of arrays of two or more dimensions, by segment.

    An array of fewer dimensions has its average elementwise.
    """

    def __init__(self, segments: Segments) -> None:
        self.rows: list[Any] = [np.zeros(np.shape(s)[:-1]) if np.ndim(s) > 1 else None for s in segments]
        self.columns: list[Any] = [
            np.zeros(np.shape(s)[:-2] + np.shape(s)[-1:]) if np.ndim(s) > 1 else None for s in segments
        ]
        self.elements: list[Any] = [None if np.ndim(s) > 1 else np.zeros(np.shape(s)) for s in segments]

    def take(self, i: int, keep: float, a: Array, least: float | None = None) -> Array:
        """Take in the array a of segment i, and give the average that rows and columns make.

        Their product is divided by the mean of the matrix, or by least where that is larger.
        """
        if a.ndim < 2:
            mean: Array = _blend(keep, self.elements[i], a)
            self.elements[i] = mean
            return mean
        rows = self.rows[i] = _blend(keep, self.rows[i], np.mean(a, axis=-1))
        columns = self.columns[i] = _blend(keep, self.columns[i], np.mean(a, axis=-2))
        level = np.mean(rows, axis=-1)[..., None, None]  # the mean of each matrix
        made: Array = rows[..., :, None] * columns[..., None, :] / np.maximum(level, 0.0 if least is None else least)
        return made


@oracle(
    dict(lr=0.3, beta2_decay=-0.6, weight_decay=0.1, scale_parameter=False),  # 1 / sqrt(k) is less from step 12 on
    dict(lr=0.02, eps=(0.1, 1.3), d=1.25, weight_decay=0.2, beta1=0.9),
    dict(lr=0.3, eps=(None, 1.3), d=1.25, weight_decay=0.1, form="paper"),
    dict(
        lr=0.3,
        eps=(0.1, 1e-3),
        weight_decay=0.05,
        beta1=0.8,
        form="paper",
        scale_parameter=False,
        relative_step=False,
    ),
)
def adafactor(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    beta1: float = 0.0,
    form: str = "torch",
    scale_parameter: bool = True,
    relative_step: bool = True,
    machine_eps: float = 2.0**-52,
) -> Result:
    """Adafactor (Shazeer & Stern, arXiv:1804.04235, algorithm 4; algorithm 5 for vectors), as torch or as the paper.

    "paper" averages y^2 + eps_1 (Hugging Face and fairseq); "torch" averages y^2, and keeps the mean of a matrix above
    eps_1 and the root of the average above eps_1. That eps_1 is 1e-30, or the machine's, where it is not given.
    "torch" decays by lr, "paper" by the whole step size, as Hugging Face. Matrices are the last two axes; the root mean
    squares are of the segment. The first moment, with beta1, is of directions: Hugging Face and fairseq average steps,
    so that a step size of the past stays in it.
    """
    xs, means, squares = _double(segments), _zeros(segments), _Factored(segments)
    torchs = {"torch": True, "paper": False}[form]
    tiny, low = eps
    if tiny is None:
        tiny = machine_eps if torchs else 1e-30
    for k, step in enumerate(grads, start=1):
        share = k**beta2_decay
        for i, y in enumerate(_double(step)):
            size = max(low, _rms(xs[i])) if scale_parameter else 1.0
            rate = size * (min(lr, 1 / math.sqrt(k)) if relative_step else lr)
            if torchs:
                turn = y / np.maximum(np.sqrt(squares.take(i, 1 - share, y**2, least=tiny)), tiny)
            else:
                turn = y / np.sqrt(squares.take(i, 1 - share, y**2 + tiny))
            means[i] = _blend(beta1, means[i], turn / max(1.0, _rms(turn) / d))
            xs[i] = xs[i] - (lr if torchs else rate) * weight_decay * xs[i] - rate * means[i]
    kept: dict[str, Segments] = {"row_var": squares.rows, "col_var": squares.columns, "variance": squares.elements}
    return xs, {**kept, "exp_avg": means} if beta1 else kept


@oracle(
    dict(lr=0.01, betas=(0.8, 0.95, 0.99), weight_decay=0.1),
    dict(lr=0.01, eps=(0.1, 0.05), clip_threshold=0.5, betas=(0.5, 0.9, 0.98)),
    dict(lr=2e-3, clip_threshold=2.0, weight_decay=0.3),
)
def came(
    segments: Segments,
    grads: Sequence[Segments],
    *,
    lr: float = 2e-4,
    eps: tuple[float, float] = (1e-30, 1e-16),
    clip_threshold: float = 1.0,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    weight_decay: float = 0.0,
) -> Result:
    """CAME (Luo et al., arXiv:2307.02047, algorithm 2), as the authors' code.

    Adafactor's direction, clipped; its first moment; and that over the root of how far the directions are from it,
    squared, factored as the gradients' squares are. No average is corrected. A vector, whose squares are kept
    elementwise and with eps_1 too, moves by the first moment alone.
    """
    xs, means = _double(segments), _zeros(segments)
    squares, doubts = _Factored(segments), _Factored(segments)
    a, b, c = betas
    for step in grads:
        for i, y in enumerate(_double(step)):
            turn = y / np.sqrt(squares.take(i, b, y**2 + eps[0]))
            turn = turn / max(1.0, _rms(turn) / clip_threshold)
            means[i] = _blend(a, means[i], turn)
            move = means[i]
            if y.ndim > 1:
                move = move / np.sqrt(doubts.take(i, c, (turn - means[i]) ** 2 + eps[1]))
            xs[i] = xs[i] - lr * (move + weight_decay * xs[i])
    return xs, {
        "exp_avg": means,
        "exp_avg_sq_row": squares.rows,
        "exp_avg_sq_col": squares.columns,
        "exp_avg_sq": squares.elements,
        "exp_avg_res_row": doubts.rows,
        "exp_avg_res_col": doubts.columns,
    }
