"""A peer's own process, and the hand that holds it.

Two OpenMP pools in one process fight and cost ten times, so each peer has a process. It speaks JSON, a line each way:
`open` makes the arrays and checks the peer against the float64 result, `time` measures, `close` drops the arrays.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, cast

import numpy as np

from fastgd.bench.cases import CASES, GRADIENT_FACTORS, data, max_ulp, reference
from fastgd.bench.peers import PEERS, Peer, Unsupported

_MOST_CALLS = 2000
_WARM_UP = 3
_LONG = 0.3  # seconds: steps that take longer are warm after one
# After each part the clock is looked at: with another process on its core, a thread can make a step 100 times as long.
_PARTS = 8
# Seconds: the idle threads of another peer's OpenMP spin for a while, and cost a short step 10 times its own.
_REST = 0.03


def environment(threads: int) -> dict[str, str]:
    """Give the variables by which libraries are told how many threads to start."""
    pools = ("OMP", "MKL", "OPENBLAS", "NUMBA", "NUMEXPR", "NUMEXPR_MAX")
    return {f"{name}_NUM_THREADS".replace("MAX_NUM", "MAX"): str(threads) for name in pools}


class Worker:
    """A process that holds one peer.

    Parameters
    ----------
    peer
        Its name.
    threads
        Most threads that the peer may use.
    module
        What is run there.
    """

    def __init__(self, peer: str, threads: int, module: str = "fastgd.bench.worker") -> None:
        self.peer = peer
        self._threads = threads
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | environment(threads),
        )

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def ask(self, **request: Any) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"peer": self.peer, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; `answer` says how

    def answer(self) -> dict[str, Any]:
        """Wait for the answer; where the process died, ``{"skipped": how}``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return cast(dict[str, Any], json.loads(line))
        status = self._process.wait()
        self._errors.seek(0)
        last = ["", *self._errors.read().strip().splitlines()][-1]
        return {"skipped": f"its process ended with status {status}" + (f": {last}" if last else "")}

    def kill(self) -> None:
        """End the process, from any thread; `answer` says so."""
        self._process.kill()

    def stop(self) -> None:
        """End the process, and let go of it."""
        self.kill()
        self._process.communicate()
        self._errors.close()


def _open(request: dict[str, Any], threads: int) -> tuple[Peer | None, dict[str, Any]]:
    case = CASES[request["rule"]]
    try:
        if request["n"] > case.most:
            raise Unsupported(f"takes too long with more than {case.most} elements")
        p, g = data(request["n"], request["dtype"])
        peer = PEERS[request["peer"]](case, p, g, threads)
        if peer.results is None:
            peer.step()
            return peer, {"max_ulp": None}
        original = g.copy()
        del p, g  # what the peer does not keep makes room
        for factor in GRADIENT_FACTORS:
            peer.set_gradient(factor * original)
            peer.step()
        expected = reference(case, request["dtype"], request["n"])
        error = max(max_ulp(read(), values) for read, values in zip(peer.results, expected, strict=True))
        peer.set_gradient(original)
        if not case.periodic:
            del expected
            gc.collect()  # the optimizer that gave it, with all its arrays, is in a cycle
    except ImportError as absent:
        return None, {"skipped": f"not installed: {absent}"}
    except Unsupported as reason:
        return None, {"skipped": str(reason)}
    except Exception as error:  # a foreign library may fail in any way; the report shows it, the run goes on
        first = (str(error).splitlines() or [""])[0]
        return None, {"skipped": f"{type(error).__name__}: {first}"}
    return peer, {"max_ulp": error}


def _time(peer: Peer, seconds: float, gradient: Any) -> float:
    """Mean time of one step over about so many seconds, after a rest and a few steps that are not counted."""

    def once() -> float:
        if peer.consumes_gradient:
            peer.set_gradient(gradient)
        start = time.perf_counter()
        peer.step()
        return time.perf_counter() - start

    time.sleep(_REST)
    warm = [once()]
    while len(warm) < _WARM_UP and sum(warm) < _LONG:
        warm.append(once())
    calls = max(1, min(_MOST_CALLS, int(seconds / min(warm))))
    if peer.consumes_gradient:
        return sum(once() for _ in range(calls)) / calls
    step, done, elapsed = peer.step, 0, 0.0
    part = max(1, calls // _PARTS)
    start = time.perf_counter()
    while done < calls and elapsed < 2 * seconds:
        for _ in range(part):
            step()
        done += part
        elapsed = time.perf_counter() - start
    return elapsed / done


def _threading_layer() -> str | None:
    numba = sys.modules.get("numba")
    try:
        return None if numba is None else str(numba.threading_layer())
    except ValueError:  # nothing ran in parallel
        return None


def serve(threads: int) -> None:
    """Answer requests from stdin until it ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it has CPUs, and no other wish
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    peer: Peer | None = None
    gradient = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["do"] == "time":
            assert peer is not None
            reply = {"seconds": _time(peer, request["seconds"], gradient)}
        elif request["do"] == "close":
            peer = gradient = None
            gc.collect()
            gc.freeze()  # the libraries' own objects: with torch's each collection took 0.3 s
        elif request["do"] == "open":
            peer, reply = _open(request, threads)
            if peer is not None and peer.consumes_gradient:
                gradient = data(request["n"], request["dtype"])[1]
            reply["threading_layer"] = _threading_layer()
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    np.seterr(all="ignore")
    serve(int(sys.argv[1]))
