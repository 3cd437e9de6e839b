"""A process that takes one step and ends: ``python -m fastgd.bench.cold_step`` as `fastgd.bench.cold` starts it.

Each peer is used as a script of its user's would. Nothing else is imported, so that no peer pays for another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Result = Callable[[], Array]


def _fastgd(name: str, p: Array, g: Array, threads: int, h: dict[str, Any]) -> Result:
    import fastgd

    getattr(fastgd, name)(p, threads=threads, **h).step(g)
    return lambda: p


def _numpy(name: str, p: Array, g: Array, threads: int, h: dict[str, Any]) -> Result:
    from fastgd.bench.baselines import IN_PLACE

    result = IN_PLACE[name.lower()](p, g, **h)()
    return lambda: result


def _torch(name: str, p: Array, g: Array, threads: int, h: dict[str, Any]) -> Result:
    import inspect

    import torch

    torch.set_num_threads(threads)
    parameter = torch.nn.Parameter(torch.from_numpy(p))
    parameter.grad = torch.from_numpy(g)
    kind = getattr(torch.optim, name)
    known = inspect.signature(kind).parameters.keys() & h.keys()
    kind([parameter], fused=True, **{key: h[key] for key in known}).step()
    return lambda: p


def _optax(name: str, p: Array, g: Array, threads: int, h: dict[str, Any]) -> Result:
    import jax
    import optax

    b1, b2 = h["betas"]
    transform = getattr(optax, name.lower())(h["lr"], b1, b2, h["eps"], weight_decay=h["weight_decay"])

    def update(p: Any, state: Any, g: Any) -> Any:
        change, state = transform.update(g, state, p)
        return optax.apply_updates(p, change), state

    parameters = jax.numpy.array(p)
    result, _ = jax.block_until_ready(jax.jit(update)(parameters, transform.init(parameters), jax.numpy.array(g)))
    return lambda: np.asarray(result)


FIRST_STEPS: dict[str, Callable[[str, Array, Array, int, dict[str, Any]], Result]] = {
    "fastgd-numba": _fastgd,
    "numpy-inplace": _numpy,
    "torch-fused": _torch,
    "optax": _optax,
}
"""By the peer's name: takes a step of the rule of that class name, and gives what gives the parameters."""


def main(peer: str, name: str, folder: str, threads: str, hyper: str) -> None:
    """Step from the arrays in a folder, say so, then leave the result there."""
    p, g = (np.load(f"{folder}/{a}.npy") for a in "pg")
    try:
        result = FIRST_STEPS[peer](name, p, g, int(threads), json.loads(hyper))
    except ImportError as absent:
        print(f"not installed: {absent}", flush=True)
        return
    print("stepped", flush=True)
    np.save(f"{folder}/result.npy", result())


if __name__ == "__main__":
    main(*sys.argv[1:])
