"""What people write with numexpr: each rule as expressions that its compiler fuses and runs on its own threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numexpr
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Lines = tuple[tuple[str, str], ...]

_MOMENTS = (("m", "b1*m + c1*g"), ("v", "b2*v + c2*g*g"))
_ADAM: Lines = (*_MOMENTS, ("p", "decay*p - lr*m/(sqrt(v) + eps)"))

LINES: dict[str, Lines] = {
    "gd": (("p", "p - lr*g"),),
    "sgd": (("m", "mu*m + g"), ("p", "p - lr*m")),
    "adam": _ADAM,
    "adamw": _ADAM,
    "lion": (("p", "decay*p - where(b1*m + c1*g > 0, lr, -lr)"), ("m", "b2*m + c2*g")),
    "adagrad": (("v", "v + g*g"), ("p", "p - lr*g/(sqrt(v) + eps)")),
    "rmsprop": (("v", "alpha*v + calpha*g*g"), ("p", "p - lr*g/(sqrt(v) + eps)")),
    "lamb": (*_MOMENTS, ("u", "ratio*m/(sqrt(v) + eps) + wd*p"), ("p", "p - lr*norms*u")),
}
"""By the rule's name: arrays and what each becomes, in turn. All but p and g start at zero."""


def step(rule: str, p: Array, g: Array, threads: int, **h: Any) -> Callable[[], None]:
    """Make a step of a rule at the hyperparameters `h`, in place, on so many threads."""
    numexpr.set_num_threads(threads)
    arrays = {name: np.zeros_like(p) for name, _ in LINES[rule]} | {"p": p, "g": g}
    t = 0

    def take() -> None:
        nonlocal t
        t += 1
        scalars = _scalars(rule, t, **h)
        for target, text in LINES[rule]:
            if "norms" in text:  # numexpr's own sum is serial, and in float32 wrong by a thousandth
                u = arrays["u"]
                scalars["norms"] = math.sqrt(np.dot(p, p) / np.dot(u, u))
            given = arrays | {name: p.dtype.type(value) for name, value in scalars.items()}
            numexpr.evaluate(text, local_dict=given, global_dict={}, out=arrays[target])

    return take


def _scalars(rule: str, t: int, *, lr: float, **h: Any) -> dict[str, float]:
    """Give what the expressions name beside arrays; both of Adam's corrections are taken into scalars."""
    wd, eps = h.get("weight_decay", 0.0), h.get("eps", 0.0)
    scalars = dict(lr=lr, decay=1 - lr * wd, wd=wd, eps=eps, mu=h.get("momentum", 0.0))
    if "alpha" in h:
        scalars |= dict(alpha=h["alpha"], calpha=1 - h["alpha"])
    if "betas" not in h:
        return scalars
    b1, b2 = h["betas"]
    scalars |= dict(b1=b1, c1=1 - b1, b2=b2, c2=1 - b2)
    if rule == "lion":
        return scalars
    root = math.sqrt(1 - b2**t)
    ratio = root / (1 - b1**t)
    return scalars | (dict(eps=eps * root, ratio=ratio) if rule == "lamb" else dict(eps=eps * root, lr=lr * ratio))
