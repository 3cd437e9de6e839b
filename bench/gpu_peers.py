"""Whoever else has a rule on a GPU, each in a process of its own: torch's optimizers, apex and bitsandbytes.

It speaks as `fastgd.bench.worker` does: JSON, a line each way; ``open``, ``time``, ``launch`` and ``close``.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from fastgd.bench.cases import CASES, GRADIENT_FACTORS, PERIOD, Case, data, max_ulp, reference
from fastgd.bench.peers import Unsupported

GPU_CASES = CASES | {"adamw-clip": replace(CASES["adamw-tail"], variant="clip", tail=dict(max_norm=1.0))}
"""The table of the bench, and what a clip costs by itself."""

_WARM_UP = 3
_MOST_CALLS = 1000
_LAUNCHES = 100
_BUSY_CYCLES = 40_000_000  # some 20 ms: the steps are launched meanwhile


@dataclass
class Peer:
    """A peer that holds its tensors on the GPU.

    Attributes
    ----------
    torch
        The module.
    step
        Launches one step.
    parameters, gradients
        Tensors.
    """

    torch: Any
    step: Callable[[], object]
    parameters: list[Any]
    gradients: list[Any]


def names(case: Case) -> list[str]:
    """Names of the peers that have a case's rule."""
    torch = [name for name in case.peers if name in ("torch-foreach", "torch-fused")]
    more = {"adamw": ["torch-capturable", "apex", "bitsandbytes"], "adam": ["apex", "bitsandbytes"]}
    more |= {"lamb": ["apex"], "lion": ["bitsandbytes"], "sgd": ["apex"]}
    return torch + ([] if case.tail or len(case.tensors) > 1 else more.get(case.rule, []))


def _torch(how: dict[str, bool], case: Case, parameters: list[Any]) -> Any:
    import torch

    kind = getattr(torch.optim, "SGD" if case.rule == "gd" else type(case.build()).__name__)
    known = inspect.signature(kind).parameters
    if unknown := set(how) - set(known):
        raise Unsupported(f"torch's {kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(parameters, **{name: value for name, value in case.full().items() if name in known}, **how)


def _apex(case: Case, parameters: list[Any]) -> Any:
    from apex import optimizers

    h = case.full()
    if case.rule in ("adam", "adamw"):
        given = {name: h[name] for name in ("lr", "betas", "eps", "weight_decay")}
        return optimizers.FusedAdam(parameters, **given, adam_w_mode=case.rule == "adamw")
    if case.rule == "lamb":
        return optimizers.FusedLAMB(parameters, **{name: h[name] for name in ("lr", "betas", "eps", "weight_decay")})
    return optimizers.FusedSGD(parameters, lr=h["lr"], momentum=h["momentum"])


def _bitsandbytes(case: Case, parameters: list[Any]) -> Any:
    from bitsandbytes import optim

    kind = {"adam": optim.Adam32bit, "adamw": optim.AdamW32bit, "lion": optim.Lion32bit}[case.rule]
    given = {name: case.full()[name] for name in ("lr", "betas", "weight_decay")}
    return kind(parameters, **given, **({} if case.rule == "lion" else {"eps": case.full()["eps"]}))


PEERS: dict[str, Callable[[Case, list[Any]], Any]] = {
    "torch-fused": lambda case, parameters: _torch({"fused": True}, case, parameters),
    "torch-foreach": lambda case, parameters: _torch({"foreach": True}, case, parameters),
    "torch-capturable": lambda case, parameters: _torch({"foreach": True, "capturable": True}, case, parameters),
    "apex": _apex,
    "bitsandbytes": _bitsandbytes,
}
"""By name: make an optimizer of parameters."""


def _made(peer: str, case: Case, n: int) -> Peer:
    import torch

    if not torch.cuda.is_available():
        raise Unsupported("this torch finds no GPU")
    sizes = [a.size for a in case.cut(np.broadcast_to(np.float32(0), n))]
    pieces = []
    for values in data(min(n, PERIOD), "float32"):
        one = torch.from_numpy(values).cuda()
        pieces.append([one.repeat(-(-size // one.numel()))[:size].clone() for size in sizes])
    parameters = [torch.nn.Parameter(piece) for piece in pieces[0]]
    for parameter, gradient in zip(parameters, pieces[1], strict=True):
        parameter.grad = gradient
    optimizer = PEERS[peer](case, parameters)
    if not case.tail:
        return Peer(torch, optimizer.step, parameters, pieces[1])
    averages = [a.detach().clone() for a in parameters] if "ema_decay" in case.tail else []

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, case.tail["max_norm"])
        optimizer.step()
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - case.tail["ema_decay"])
        if case.tail.get("zero_grad"):
            optimizer.zero_grad(set_to_none=False)

    return Peer(torch, step, parameters, pieces[1])


def _error(peer: Peer, case: Case, n: int) -> float | None:
    """Largest error of a few steps against float64, where an element's step depends on no other; it takes them."""
    if not case.periodic or case.tail or len(case.tensors) > 1:
        peer.step()
        return None
    own, original = peer.gradients[0], peer.gradients[0].clone()
    for factor in GRADIENT_FACTORS:
        own.copy_(original * factor)
        peer.step()
    own.copy_(original)
    found = peer.parameters[0].detach()[:PERIOD].cpu().numpy()
    return max_ulp(found, reference(case, "float32", n)[0])


def opened(request: dict[str, Any]) -> tuple[Peer | None, dict[str, Any]]:
    """Make a peer; or say why it is skipped."""
    try:
        case = GPU_CASES[request["case"]]
        peer = _made(request["peer"], case, request["n"])
        return peer, {"max_ulp": _error(peer, case, request["n"])}
    except ImportError as absent:
        return None, {"skipped": f"not installed: {absent}"}
    except Unsupported as reason:
        return None, {"skipped": str(reason)}
    except Exception as error:  # a foreign library may fail in any way; the report shows it, the run goes on
        return None, {"skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def _seconds(peer: Peer, calls: int) -> float:
    start, end = (peer.torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        peer.step()
    end.record()
    end.synchronize()
    seconds: float = start.elapsed_time(end) / 1e3 / calls
    return seconds


def _turn(peer: Peer, seconds: float) -> float:
    once = min(_seconds(peer, 1) for _ in range(_WARM_UP))
    return _seconds(peer, max(1, min(_MOST_CALLS, int(seconds / max(once, 1e-9)))))


def _launch(peer: Peer) -> dict[str, float]:
    """Time of the host and of the GPU for a step whose launch costs more than its work."""
    cuda = peer.torch.cuda
    cuda.synchronize()
    cuda._sleep(_BUSY_CYCLES)
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    before = perf_counter()
    for _ in range(_LAUNCHES):
        peer.step()
    host = (perf_counter() - before) / _LAUNCHES
    end.record()
    end.synchronize()
    return {"host": host, "device": start.elapsed_time(end) / 1e3 / _LAUNCHES}


def serve() -> None:
    """Answer requests from stdin until it ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if request["do"] in ("time", "launch"):
                assert peer is not None
                reply = {"seconds": _turn(peer, request["seconds"])} if request["do"] == "time" else _launch(peer)
            else:
                peer = None
                gc.collect()
                if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
                    sys.modules["torch"].cuda.empty_cache()
            if request["do"] == "open":
                peer, reply = opened(request)
        except Exception as error:  # out of memory at a step, say
            reply = {"skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    np.seterr(all="ignore")
    serve()
