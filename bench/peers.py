"""The peers: whoever has a rule, made ready to take steps on the same data.

A peer is made in a process of its own (`fastgd.bench.worker`). Its library is loaded there and nowhere else; a peer
whose library is missing says so by the ImportError.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.bench.cases import Case, aligned
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
    from fastgd.bench.roofline import sweeps

    arrays = {"p": p, "g": g}
    passes = case.passes()
    for name in (name for one in passes for name in (*one.changed, *one.read)):
        if name not in arrays:
            arrays[name] = zeros(p.size, p.dtype)
    step = sweeps(passes, arrays, threads=threads)
    return Peer(step, None, partial(np.copyto, g), consumes_gradient=bool(case.tail))


def _numpy(kind: str, case: Case, p: Array, g: Array, threads: int) -> Peer:
    from fastgd.bench.baselines import IN_PLACE, TEXTBOOK, with_tail

    baseline = {"textbook": TEXTBOOK, "inplace": IN_PLACE}[kind][case.rule]
    own, gradients = case.cut(p), case.cut(g)
    steps = [baseline(a, b, **case.full()) for a, b in zip(own, gradients, strict=True)]
    if not case.tail:
        return _peer(case, partial(_each, steps, own), own, gradients)
    whole, average = with_tail(steps[0], p, g, **case.tail)
    return _peer(case, whole, own, gradients, [average])


def _numexpr(case: Case, p: Array, g: Array, threads: int) -> Peer:
    from fastgd.bench.expressions import step

    return _peer(case, step(case.rule, p, g, threads, **case.full()), [p], [g])


def _each(steps: Sequence[Callable[[], Array]], latest: list[Array]) -> None:
    """Take a step with each tensor, and keep what it gives: it may be another array."""
    for k, step in enumerate(steps):
        latest[k] = step()


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
    """Copy each into memory of its own: one array cut up is what nobody trains."""
    return [aligned(a) for a in tensors]


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

    if case.rule == "adagrad" and p.dtype == np.float64:
        raise Unsupported("its epsilon stands inside the root, which float32 cannot tell and float64 can")
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
        "adagrad": lambda: optax.adagrad(lr, h["initial_accumulator_value"], h["eps"]),
        "rmsprop": lambda: optax.rmsprop(lr, h["alpha"], h["eps"], eps_in_sqrt=False),
    }[case.rule]()

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(p: Any, state: Any, g: Any) -> Any:
        change, state = transform.update(g, state, p)
        return optax.apply_updates(p, change), state

    def tensors(a: Array) -> list[Any]:
        return [jax.numpy.array(part) for part in case.cut(a)]

    held: list[Any] = [tensors(p), None, tensors(g)]
    held[1] = transform.init(held[0])

    def step() -> None:
        held[0], held[1] = jax.block_until_ready(update(*held))

    def set_gradient(values: Array) -> None:
        held[2] = tensors(values)

    return Peer(step, (lambda: np.concatenate(held[0]),), set_gradient)


def _deepspeed(case: Case, p: Array, g: Array, threads: int) -> Peer:
    os.environ["DS_ACCELERATOR"] = "cpu"
    if p.dtype != np.float32:
        raise Unsupported("float32 only")
    own, gradients = _own(case.cut(p)), _own(case.cut(g))
    _, parameters = _torch_parameters(own, gradients, threads, case)
    h = case.full()
    if case.rule == "lion":
        from deepspeed.ops.lion import DeepSpeedCPULion as Kind

        options: dict[str, Any] = {}
    elif case.rule == "adagrad":
        from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad as Kind

        options = {}
    else:
        from deepspeed.ops.adam import DeepSpeedCPUAdam as Kind

        options = {"adamw_mode": case.rule == "adamw"}
    known = inspect.signature(Kind).parameters.keys() & {"lr", "betas", "eps", "weight_decay"}
    optimizer = Kind(parameters, **{name: h[name] for name in known}, **options)
    return _peer(case, optimizer.step, own, gradients)


def _thinc(case: Case, p: Array, g: Array, threads: int) -> Peer:
    from thinc.api import SGD, Adam

    if p.dtype != np.float32:
        raise Unsupported("float32 only")
    h = case.full()
    alone = dict(grad_clip=0.0, use_averages=False)  # both are on unless told otherwise
    if case.rule == "gd":
        optimizer = SGD(h["lr"], L2=0.0, **alone)
    else:
        b1, b2 = h["betas"]
        optimizer = Adam(h["lr"], beta1=b1, beta2=b2, eps=h["eps"], L2=h["weight_decay"], **alone)
    latest = [p]

    def step() -> None:
        latest[0], _ = optimizer((0, "p"), latest[0], g)

    return Peer(step, (lambda: latest[0],), partial(np.copyto, g), consumes_gradient=True)


def _sklearn(case: Case, p: Array, g: Array, threads: int) -> Peer:
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

    h = case.full()
    own, gradients = case.cut(p), case.cut(g)
    if case.rule != "adam":
        momentum = SGDOptimizer(own, h["lr"], momentum=h.get("momentum", 0.0), nesterov=False)
        return _peer(case, partial(momentum.update_params, own, gradients), own, gradients)
    b1, b2 = h["betas"]
    adam = AdamOptimizer(own, h["lr"], b1, b2, h["eps"])

    def step() -> None:
        # it adds eps to the root before it is corrected: with an eps that shrinks likewise the rule is ours
        adam.epsilon = h["eps"] * math.sqrt(1 - b2 ** (adam.t + 1))
        adam.update_params(own, gradients)

    return _peer(case, step, own, gradients)


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
    "sklearn": _sklearn,
}
"""Every peer by name: takes the case, parameters and gradient that it may keep, and a number of threads."""
