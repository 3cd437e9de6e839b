"""The peers: whoever has a rule, made ready to take steps on the same data.

A peer is made in a process of its own (`fastgd.bench.worker`). Its library is loaded there and nowhere else; a peer
whose library is missing says so by the ImportError.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.bench.cases import Case
from fastgd.flat import FlatParams
from fastgd.memory import zeros
from fastgd.optimizer import Optimizer

Array = NDArray[Any]


class Unsupported(Exception):
    """The peer's library is here but has not this rule or dtype."""


@dataclass(frozen=True)
class Peer:
    """A peer that holds its arrays.

    Attributes
    ----------
    step
        Takes one step and returns when it is done.
    results
        Give what `fastgd.bench.cases.reference` gives, as it is now; None for the roof, which computes nothing.
    set_gradient
        Takes over the values of an array.
    consumes_gradient
        Whether a step destroys the gradient, so that it must be set again before the next.
    """

    step: Callable[[], object]
    results: tuple[Callable[[], Array], ...] | None
    set_gradient: Callable[[Array], object]
    consumes_gradient: bool = False


def _peer(
    case: Case,
    step: Callable[[], object],
    parameters: Sequence[Array],
    gradients: Sequence[Array],
    averages: Sequence[Array] = (),
) -> Peer:
    """Make a peer that holds these tensors."""

    def set_gradient(values: Array) -> None:
        for own, part in zip(gradients, case.cut(values), strict=True):
            np.copyto(own, part)

    kept = (parameters, averages, gradients) if case.tail else (parameters,)
    return Peer(step, tuple(partial(np.concatenate, a) for a in kept), set_gradient, consumes_gradient=bool(case.tail))


def _fastgd(backend: str, case: Case, p: Array, g: Array, threads: int) -> Peer:
    given = g.reshape(case.shape(g.size))
    params: Any = p.reshape(given.shape)
    gradients = [given]
    if len(case.tensors) > 1:
        params = FlatParams({str(k): a.reshape(case.shape(a.size)) for k, a in enumerate(case.cut(p))})
        gradients = list(params.grad.values())
    optimizer = Optimizer(
        params, case.build(), backend=backend, threads=threads if backend == "numba" else None, **case.tail
    )

    def tensors(given: Any) -> list[Array]:
        return [a.reshape(-1) for a in (given.values() if isinstance(given, Mapping) else [given]) if a is not None]

    step = partial(optimizer.step, given if len(case.tensors) == 1 else None)
    return _peer(case, step, tensors(params), [a.reshape(-1) for a in gradients], tensors(optimizer.ema))


def _matmul(case: Case, p: Array, g: Array, threads: int) -> Peer:
    """Take Muon's products alone, into arrays that are there."""
    rows, columns = case.shape(p.size)
    x = np.resize(p / np.linalg.norm(p), (min(rows, columns), max(rows, columns)))
    square, other, y = np.empty((len(x), len(x)), x.dtype), np.empty((len(x), len(x)), x.dtype), np.empty_like(x)
    count = case.full()["ns_steps"]

    def step() -> None:
        for _ in range(count):
            np.matmul(x, x.T, out=square)
            np.matmul(square, square, out=other)
            np.matmul(other, x, out=y)

    return Peer(step, None, lambda values: None)


def _roof(case: Case, p: Array, g: Array, threads: int) -> Peer:
    from fastgd.bench.roofline import arrays, sweep

    changed, read = arrays(p, g, *case.streams())
    gradient = [*changed, *read][-1]
    step = sweep(changed, read, threads=threads)
    return Peer(step, None, partial(np.copyto, gradient), consumes_gradient=bool(case.tail))


def _numpy(kind: str, case: Case, p: Array, g: Array, threads: int) -> Peer:
    from fastgd.bench.baselines import IN_PLACE, TEXTBOOK, with_tail

    step = {"textbook": TEXTBOOK, "inplace": IN_PLACE}[kind][case.rule](p, g, **case.full())
    average = p
    if case.tail:
        step, average = with_tail(step, p, g, **case.tail)
    latest = [p]

    def take() -> None:
        latest[0] = step()

    return _peer(case, take, latest, [g], [average])


def _numexpr(case: Case, p: Array, g: Array, threads: int) -> Peer:
    import numexpr

    numexpr.set_num_threads(threads)
    h = case.full()
    states = {
        name: np.zeros_like(p) for name in {"sgd": "m", "lion": "m", "adam": "mv", "adamw": "mv"}.get(case.rule, "")
    }
    arrays = {"p": p, "g": g, **states}
    t = 0

    def scalars() -> dict[str, float]:
        decay = 1 - h["lr"] * h.get("weight_decay", 0.0)
        if case.rule in ("gd", "sgd"):
            return dict(lr=h["lr"], mu=h.get("momentum", 0.0))
        b1, b2 = h["betas"]
        moments = dict(decay=decay, b1=b1, c1=1 - b1, b2=b2, c2=1 - b2)
        if case.rule == "lion":
            return dict(moments, lr=h["lr"])
        root = (1 - b2**t) ** 0.5
        return dict(moments, lr=h["lr"] * root / (1 - b1**t), eps=h["eps"] * root)

    adam = (("m", "b1*m + c1*g"), ("v", "b2*v + c2*g*g"), ("p", "decay*p - lr*m/(sqrt(v) + eps)"))
    lines = {
        "gd": (("p", "p - lr*g"),),
        "sgd": (("m", "mu*m + g"), ("p", "p - lr*m")),
        "adam": adam,
        "adamw": adam,
        "lion": (("p", "decay*p - where(b1*m + c1*g > 0, lr, -lr)"), ("m", "b2*m + c2*g")),
    }[case.rule]

    def step() -> None:
        nonlocal t
        t += 1
        given = arrays | {name: p.dtype.type(value) for name, value in scalars().items()}
        for target, text in lines:
            numexpr.evaluate(text, local_dict=given, global_dict={}, out=arrays[target])

    return _peer(case, step, [p], [g])


def _torch_parameters(
    parameters: list[Array], gradients: list[Array], threads: int, case: Case
) -> tuple[Any, list[Any]]:
    import torch

    torch.set_num_threads(threads)
    torch.set_default_dtype(
        {"float32": torch.float32, "float64": torch.float64}[parameters[0].dtype.name]
    )  # of scalars
    made = [torch.nn.Parameter(torch.from_numpy(a.reshape(case.shape(a.size)))) for a in parameters]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient.reshape(parameter.shape))
    return torch, made


def _own(tensors: list[Array]) -> list[Array]:
    """Copy each into memory of its own, aligned as torch aligns: one array cut up is what nobody trains."""
    made = [zeros(a.size, a.dtype) for a in tensors]
    for own, a in zip(made, tensors, strict=True):
        np.copyto(own, a)
    return made


def _torch(how: dict[str, bool], case: Case, p: Array, g: Array, threads: int) -> Peer:
    own, gradients = _own(case.cut(p)), _own(case.cut(g))
    torch, parameters = _torch_parameters(own, gradients, threads, case)
    kind = getattr(torch.optim, "SGD" if case.rule == "gd" else type(case.build()).__name__)
    known = inspect.signature(kind).parameters
    optimizer = kind(parameters, **{n: value for n, value in case.full().items() if n in known}, **how)
    if not case.tail:
        return _peer(case, optimizer.step, own, gradients)
    averages = [a.detach().clone() for a in parameters]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, case.tail["max_norm"])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - case.tail["ema_decay"])  # as torch.optim.swa_utils does
        optimizer.zero_grad(set_to_none=False)

    return _peer(case, step, own, gradients, [a.numpy() for a in averages])


def _optax(case: Case, p: Array, g: Array, threads: int) -> Peer:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import optax

    jax.config.update("jax_enable_x64", p.dtype == np.float64)
    h = case.full()
    lr = h["lr"]
    betas = dict(zip(("b1", "b2"), h.get("betas", ()), strict=False))
    rest = {name: h[name] for name in ("eps", "weight_decay") if name in h and case.rule != "adam"}
    transform = {
        "gd": lambda: optax.sgd(lr),
        "sgd": lambda: optax.sgd(lr, momentum=h["momentum"]),
        "adam": lambda: optax.adam(lr, **betas, eps=h["eps"]),
        "adamw": lambda: optax.adamw(lr, **betas, **rest),
        "lion": lambda: optax.lion(lr, **betas, **rest),
        "lamb": lambda: optax.lamb(lr, **betas, **rest),
    }[case.rule]()

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(p: Any, state: Any, g: Any) -> Any:
        change, state = transform.update(g, state, p)
        return optax.apply_updates(p, change), state

    held = [jax.numpy.array(p), None, jax.numpy.array(g)]
    held[1] = transform.init(held[0])

    def step() -> None:
        held[0], held[1] = jax.block_until_ready(update(*held))

    def set_gradient(values: Array) -> None:
        held[2] = jax.numpy.array(values)

    return Peer(step, (lambda: np.asarray(held[0]),), set_gradient)


def _deepspeed(case: Case, p: Array, g: Array, threads: int) -> Peer:
    os.environ["DS_ACCELERATOR"] = "cpu"
    if p.dtype != np.float32:
        raise Unsupported("float32 only")
    _, parameters = _torch_parameters([p], [g], threads, case)
    h = case.full()
    if case.rule == "lion":
        from deepspeed.ops.lion import DeepSpeedCPULion

        optimizer = DeepSpeedCPULion(parameters, **h)
    else:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        given = {name: h[name] for name in ("lr", "betas", "eps", "weight_decay")}
        optimizer = DeepSpeedCPUAdam(parameters, **given, adamw_mode=case.rule == "adamw")
    return _peer(case, optimizer.step, [p], [g])


def _thinc(case: Case, p: Array, g: Array, threads: int) -> Peer:
    from thinc.api import Adam

    if p.dtype != np.float32:
        raise Unsupported("float32 only")
    h = case.full()
    b1, b2 = h["betas"]
    optimizer = Adam(h["lr"], beta1=b1, beta2=b2, eps=h["eps"], L2=h["weight_decay"], grad_clip=0.0)
    latest = [p]

    def step() -> None:
        latest[0], _ = optimizer((0, "p"), latest[0], g)

    return Peer(step, (lambda: latest[0],), partial(np.copyto, g), consumes_gradient=True)


PEERS: dict[str, Callable[[Case, Array, Array, int], Peer]] = {
    "roof": _roof,
    "matmul": _matmul,
    "fastgd-numba": partial(_fastgd, "numba"),
    "fastgd-numpy": partial(_fastgd, "numpy"),
    "numpy-textbook": partial(_numpy, "textbook"),
    "numpy-inplace": partial(_numpy, "inplace"),
    "numexpr": _numexpr,
    "torch-loop": partial(_torch, {"foreach": False}),
    "torch-foreach": partial(_torch, {"foreach": True}),
    "torch-fused": partial(_torch, {"fused": True}),
    "optax": _optax,
    "deepspeed": _deepspeed,
    "thinc": _thinc,
}
"""Every peer by name: takes the case, parameters and gradient that it may keep, and a number of threads."""
