"""A step happens wholly or not at all: every point at which it can be stopped is tried."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import fastgd
from fastgd.kernels.errors import FastGDError, HyperparameterError
from fastgd.kernels.rules import RULES

PACKAGE = str(Path(fastgd.__file__).parent)
N = 70


def adamw(backend):
    params = fastgd.FlatParams({"w": np.linspace(-1, 1, N), "b": np.ones(3)})
    tail = dict(max_norm=1.0, ema_decay=0.9, zero_grad=True, on_nonfinite="skip")
    return fastgd.AdamW(params, lr=lambda k: 0.1 / (k + 1), backend=backend, **tail)


def lamb(backend):
    return fastgd.LAMB([np.linspace(-1, 1, N), np.ones(3)], lr=0.1, weight_decay=0.1, backend=backend)


def two_launches(backend):
    a, b = np.linspace(-1, 1, N), np.ones(3)
    return fastgd.SGD([{"params": a}, {"params": b, "momentum": 0.9}], lr=0.1, ema_decay=0.5, backend=backend)


def gradients(opt, k):
    """Those of step k, in arrays of their own."""
    wave = np.cos(np.arange(N) + k), np.full(3, k + 0.5)
    if isinstance(opt.params, fastgd.FlatParams):
        return dict(zip(opt.params, (w.copy() for w in wave), strict=True))
    return list(wave)


def arrays(opt):
    """All memory that a step writes, but for the gradients."""
    if isinstance(opt.params, fastgd.FlatParams):
        found = [opt.params.flat, opt.ema.flat]
    else:
        found = [g["params"] for g in opt.params] if isinstance(opt.params[0], dict) else list(opt.params)
        found += [] if opt.ema is None else list(opt.ema)
    return found + [opt.state[name] for name in sorted(opt.state)]


def memory(opt):
    return b"".join(a.tobytes() for a in arrays(opt)) + bytes(opt.t)


class Stop:
    """Raises an error before the k-th line of fastgd that runs, and before the one after next."""

    def __init__(self, k, error, again=False):
        self.left, self.error, self.again = k, error, again

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0 or (self.again and self.left == -2):
                raise self.error
        return self

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)

    def __exit__(self, *_):
        sys.settrace(self.before)


def expected(make, backend, steps):
    opt = make(backend)
    found = [memory(opt)]
    for k in range(steps):
        opt.step(gradients(opt, k))
        found.append(memory(opt))
    return found


CASES = [pytest.param(m, b, id=f"{m.__name__}-{b}") for m in (adamw, lamb, two_launches) for b in ("numba", "numpy")]


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize(("make", "backend"), CASES)
def test_ctrl_c_before_any_line_leaves_no_half_step(make, backend, again):
    first, whole, last = expected(make, backend, 2)[0], *expected(make, backend, 2)[1:]
    seen = set()
    for k in count(1):
        opt = make(backend)
        opt.step(gradients(opt, 0))  # compiled, and away from the start
        given = gradients(opt, 1)
        stop = Stop(k, KeyboardInterrupt(), again)
        try:
            with stop:
                opt.step(given)
        except KeyboardInterrupt:
            pass
        if stop.left > 0:
            break
        now = memory(opt)
        assert now in (whole, last), f"line {k}"
        seen.add(now)
        if now == whole:
            opt.step(gradients(opt, 1))
        assert memory(opt) == last, f"line {k}"
    assert k > 30
    assert seen == {whole, last} != {first}


@pytest.mark.parametrize(("make", "backend"), CASES)
def test_an_error_before_any_line_leaves_nothing_or_a_mark(make, backend):
    _, whole, last = expected(make, backend, 2)
    marked = 0
    for k in count(1):
        opt = make(backend)
        opt.step(gradients(opt, 0))
        saved = opt.state_dict(), [a.copy() for a in arrays(opt)]
        stop = Stop(k, MemoryError("drill"))
        try:
            with stop:
                opt.step(gradients(opt, 1))
        except MemoryError:
            pass
        if stop.left > 0:
            break
        if opt._begun != opt.t:
            marked += 1
            for refused in (partial(opt.step, gradients(opt, 1)), opt.state_dict, partial(copy.deepcopy, opt)):
                with pytest.raises(FastGDError, match=r"step 2 failed half-way.*load_state_dict"):
                    refused()
            assert opt.t == 1
            for array, before in zip(arrays(opt), saved[1], strict=True):
                array[...] = before
            opt.load_state_dict(saved[0])
        if opt.t == 1:
            assert memory(opt) == whole, f"line {k}"
            opt.step(gradients(opt, 1))
        assert memory(opt) == last, f"line {k}"
    assert marked > 1


SIGINT = """
import os, signal, threading, time
import numpy as np, fastgd
p, g = np.ones(30_000_000, np.float32), np.ones(30_000_000, np.float32)
opt = fastgd.AdamW(p, lr=0.5, weight_decay=0.0)
fastgd.AdamW(np.ones(100_000, np.float32)).step(np.ones(100_000, np.float32))  # compiled
at = []
def interrupt():
    while not opt.t:  # the machine may be slow to start a thread, or a step
        time.sleep(0.001)
    time.sleep(0.004)
    at.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
start = time.perf_counter()
try:
    while True:
        opt.step(g)
except KeyboardInterrupt:
    assert start < at[0]
steps, q = opt.t, np.ones(1, np.float32)
same = fastgd.AdamW(q, lr=0.5, weight_decay=0.0)
for _ in range(steps):
    same.step(g[:1])
assert (p == q[0]).all() and steps > 0, steps
opt.step(g)
print("whole", steps)
"""


def test_a_signal_during_a_step_takes_effect_after_it():
    done = subprocess.run([sys.executable, "-c", SIGINT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("whole")


def test_steps_of_one_optimizer_come_one_after_the_other():
    n, threads, steps = 50_000, 8, 25
    p = np.zeros(n)
    opt = fastgd.SGD(p, lr=1.0)

    def work():
        for _ in range(steps):
            opt.step(np.ones(n))

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert opt.t == threads * steps
    assert (p == -threads * steps).all()


def test_a_schedule_that_fails_is_asked_again():
    p, asked = np.zeros(2), []

    def schedule(k):
        asked.append(k)
        if asked.count(1) == 1 == k:
            raise OSError("a file")
        return 1.0

    opt = fastgd.SGD(p, lr=schedule)
    opt.step(np.ones(2))
    with pytest.raises(OSError, match="a file"):
        opt.step(np.ones(2))
    assert (opt.t, p.tolist()) == (1, [-1, -1])
    opt.step(np.ones(2))
    assert (opt.t, p.tolist()) == (2, [-2, -2])


def test_a_refused_value_stays_refused_until_it_is_mended():
    p = np.zeros(2)
    opt = fastgd.SGD(p, lr=1.0)
    opt.param_groups[0]["lr"] = -1.0
    for _ in range(2):
        with pytest.raises(HyperparameterError, match="-1"):
            opt.step(np.ones(2))
    opt.param_groups[0].update(lr=0.5)
    opt.step(np.ones(2))
    assert (opt.t, p.tolist()) == (1, [-0.5, -0.5])


def test_what_an_aborted_sweep_computed_is_not_stored_later():
    p = np.zeros(2)
    opt = fastgd.SGD(p, lr=1.0, max_norm=100.0, backend="numpy")
    opt.step(np.zeros(2))
    saved, finished = opt.state_dict(), False
    for k in count(1):
        stop = Stop(k, MemoryError("drill"))
        try:
            with stop:
                opt.step(np.full(2, 7.0))
            finished = stop.left > 0
        except MemoryError:
            pass
        p[:] = 0
        opt.load_state_dict(saved)
        opt.step(np.ones(2))
        assert (p.tolist(), opt.grad_norm) == ([-1, -1], pytest.approx(2**0.5)), f"line {k}"
        if finished:
            break
        p[:] = 0
        opt.load_state_dict(saved)


HANDLER = """
import os, signal, sys, threading, time
import numpy as np, fastgd
p, g = np.ones(20_000_000, np.float32), np.ones(20_000_000, np.float32)
opt = fastgd.AdamW(p, lr=0.5, weight_decay=0.0)
opt.step(g)
def handle(*_):
    saved.append(opt.state_dict()["t"])
    {end}
saved = []
signal.signal(signal.SIGTERM, handle)
def send():
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=send).start()
try:
    while not saved or opt.t < saved[0] + 3:
        opt.step(g)
finally:
    q = np.ones(1, np.float32)
    same = fastgd.AdamW(q, lr=0.5, weight_decay=0.0)
    for _ in range(opt.state_dict()["t"]):
        same.step(g[:1])
    print((p == q[0]).all(), 0 <= opt.t - saved[0] <= 3)
"""


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("raise ValueError", 1), ("pass", 0)])
def test_a_signals_handler_may_save_the_state_and_leave(end, code):
    done = subprocess.run([sys.executable, "-c", HANDLER.format(end=end)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (code, "True True\n"), done.stderr


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_a_signals_handler_may_save_the_state_before_anything_is_written(rule):
    p, g = np.ones(5), np.full(5, 0.5)
    opt = fastgd.Optimizer(p, RULES[rule](), max_norm=1.0)
    opt.step(g)
    expected, saved = opt.state_dict(), []
    program = opt._layout.program
    program.runs = [lambda: saved.append(opt.state_dict()), *program.runs]
    opt.step(g)
    assert opt.t == 2 and saved[0]["t"] == 1
    for name, state in expected["state"].items():
        assert np.array_equal(saved[0]["state"][name], state)
    saved.clear()
    program.runs = [*program.runs[1:], lambda: saved.append(opt.state_dict())]
    opt.step(g)  # and behind it, when all is
    assert opt.t == 3 and saved[0]["t"] == 3


def test_a_state_that_does_not_fit_leaves_the_optimizer_as_it_was():
    opt = fastgd.Adam(np.zeros(2))
    good = opt.state_dict()
    for wrong in (
        {"param_groups": None},
        {"scalar_state": None},
        {"scalar_state": [{"x": [1.0]}]},
        {"state": None},
        {"t": -1},
        {"t": 1.5},
        {"param_groups": [good["param_groups"][0] | {"t": 100}]},
    ):
        with pytest.raises(FastGDError, match="the state"):
            opt.load_state_dict(good | wrong)
        opt.step(np.ones(2))
    assert opt.t == 7
    del opt.param_groups[0]["lr"]
    opt.load_state_dict(good)
    assert (opt.t, opt.param_groups[0]["lr"]) == (0, 1e-3)
