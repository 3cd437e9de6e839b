"""A step on a GPU: what it computes is what the host computes, nobody waits for it, and it happens wholly or not.

On stand-ins for CuPy and numba-cuda whose device is the host; their kernels are those that a GPU runs. What needs
arithmetic on whole arrays, which numba-cuda has none of, is of CuPy alone.
"""

from __future__ import annotations

import copy
import gc
import math
import signal
import sys
import weakref
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import fake_cupy
import numpy as np
import pytest
from conftest import Gpu, backend_named, same_bits
from test_atomic import Stop

import fastgd
from fastgd.kernels import Rule, per_segment, sqrt
from fastgd.kernels.errors import ArrayError, FastGDError, HyperparameterError, NonFiniteError

BACKENDS = "numpy", "gpu"
SHAPES = {"w": (5, 7), "b": (), "c": (64,)}


def flat(where, dtype=np.float32, shapes=SHAPES):
    """Parameters, the same ones on every backend."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    return fastgd.FlatParams(arrays, backend=backend_named(where))


def fill(params, k):
    """Put gradients of step k in."""
    rng = np.random.default_rng(k + 1)
    for name in params.grad:
        params.grad[name] = rng.standard_normal(params[name].shape) * 3.0


def memory(x):
    """Where an array really lies, as an array of the host."""
    return x if isinstance(x, np.ndarray) else x._host


def on_host(x):
    """Copy, without one of the device's waits."""
    return memory(x).copy()


def everything(opt):
    """All that an optimizer of a FlatParams holds, as bytes."""
    found = {"p": on_host(opt.params.flat), "g": on_host(opt.params.grad.flat)}
    found |= {name: on_host(state) for name, state in opt.state.items()}
    if opt.ema is not None:
        found["ema"] = on_host(opt.ema.flat)
    scalars = [[launch.scalar_states] for launch in opt._layout.program.launches]
    return {name: x.tobytes() for name, x in found.items()} | {"t": opt.t, "scalars": repr(scalars)}


def both(gpu, run, dtype=np.float32):
    """Have it run on both backends, and all that comes of it be the same."""
    host, gpu = (run(where, dtype) for where in BACKENDS)
    assert host == gpu
    return host


def steps(opt, n, first=0):
    for k in range(first, first + n):
        fill(opt.params, k)
        opt.step()


# ---- the same as on the host -------------------------------------------------------------------------------------


def swa(k):
    """Takes every second iterate into the mean, from the third on."""
    return 1.0 if k < 2 or k % 2 else 1 - 1 / (k // 2 + 1)


SETTINGS = {
    "schedules": (fastgd.AdamW, dict(lr=lambda k: 0.1 / (k + 1), weight_decay=lambda k: 0.01 * k)),
    "clip": (fastgd.AdamW, dict(lr=0.1, max_norm=1.0)),
    "clip of values": (fastgd.SGD, dict(lr=0.1, momentum=0.9, max_value=0.5, max_norm=3.0)),
    "maximize": (fastgd.Adam, dict(lr=0.1, maximize=True, max_norm=1.0, amsgrad=True)),
    "ema": (fastgd.Lion, dict(lr=0.1, ema_decay=0.9, zero_grad=True)),
    "swa": (fastgd.Adam, dict(lr=0.1, ema_decay=swa, max_norm=1.0)),
    "lookahead": (fastgd.SGD, dict(lr=0.1, momentum=0.9, lookahead=(2, 0.5))),
    "lamb": (fastgd.LAMB, dict(lr=0.1, weight_decay=0.1, max_norm=1.0, ema_decay=0.9)),
    "prodigy": (fastgd.Prodigy, dict(max_norm=1.0)),
    "prodigy swa": (fastgd.Prodigy, dict(ema_decay=swa)),
    "nadam": (fastgd.NAdam, dict(lr=0.1, max_norm=1.0)),
    "dadaptadam": (fastgd.DAdaptAdam, dict(use_bias_correction=True, max_norm=1.0)),
    "skip": (fastgd.AdamW, dict(lr=0.1, on_nonfinite="skip", max_norm=1.0)),
    "raise": (fastgd.LAMB, dict(lr=0.1, on_nonfinite="raise")),
    "schedule-free": (fastgd.ScheduleFreeAdamW, dict(lr=0.1)),
}


def made(name, where, dtype=np.float32):
    cls, settings = SETTINGS[name]
    return cls(flat(where, dtype), **settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SETTINGS)
def test_steps_and_resumed_steps_are_those_of_the_host(gpu, name, dtype):
    """Also a run that goes on with the other backend's state."""
    whole, saved = {}, {}
    for where in BACKENDS:
        opt = made(name, where, dtype)
        steps(opt, 3)
        saved[where] = opt.state_dict(), opt.params.to("numpy")
        steps(opt, 3, first=3)
        whole[where] = everything(opt), opt.grad_norm
    assert whole["numpy"] == whole["gpu"]
    state = saved["gpu"][0]
    for arrays in (state["state"].values(), [x for x in (state["ema"],) if x is not None]):
        assert {type(x) for x in arrays} <= {np.ndarray}
    for source, goal in (("numpy", "gpu"), ("gpu", "numpy"), ("gpu", "gpu")):
        state, params = saved[source]
        opt = SETTINGS[name][0](params.to(backend_named(goal)), **SETTINGS[name][1])
        opt.load_state_dict(state)
        again = opt.state_dict()
        assert repr(again) == repr(state)
        steps(opt, 3, first=3)
        assert (everything(opt), opt.grad_norm) == whole["numpy"], (source, goal)


@dataclass(frozen=True, kw_only=True)
class Named(Rule):
    """A rule whose names are those that kernels might have for something of their own."""

    lr: float = 0.1
    states: ClassVar[dict[str, str]] = {"x_0": "x_0", "p_x": "p_x", "e0_p": "e0_p", "r": "r"}

    def init(self):
        return dict(T=1.0)

    def stages(self):
        return ("measure", "update")

    def prepare(self, t):
        return dict(rate=self.lr, l0_0=0.5, row=0.25, h=2.0)

    @staticmethod
    def measure(p, g, x_0, p_x, e0_p, *, l0_0, row):
        x_0 = l0_0 * x_0 + g
        p_x = row * p_x + x_0
        e0_p = e0_p + g * g
        return x_0, p_x, e0_p, per_segment(t0=x_0 * x_0, kept_T=p * p)

    @staticmethod
    def combine(t0, kept_T, T, *, rate, h):
        T = T + 1
        kept = rate * h / (1 + sqrt(t0) + sqrt(kept_T) * T)
        return T, kept

    @staticmethod
    def update(p, x_0, p_x, r, *, kept, row):
        r = r + kept * x_0
        p = p - kept * (x_0 + row * p_x) - r * row
        return p, r


def test_a_rule_may_call_its_own_whatever_it_likes(gpu):
    def run(where, dtype):
        opt = fastgd.Optimizer(flat(where, dtype), Named(), max_norm=3.0, ema_decay=0.5)
        steps(opt, 3)
        return everything(opt)

    for dtype in (np.float32, np.float64):
        both(gpu, run, dtype)


def test_a_state_of_another_dtype_is_refused_and_changes_nothing(gpu):
    opt = made("lamb", "gpu")
    steps(opt, 2)
    before = everything(opt)
    other = made("lamb", "numpy", np.float64)
    with pytest.raises(fastgd.CheckpointError, match="dtype must be 'float32', given 'float64'"):
        opt.load_state_dict(other.state_dict())
    assert everything(opt) == before


def test_groups_and_values_that_change_are_those_of_the_host(gpu):
    def run(where, dtype):
        params = flat(where, dtype)
        opt = fastgd.AdamW(
            [{"params": params}, {"match": "b", "weight_decay": 0.5}, {"match": "c", "lr": lambda k: 0.1 * (k + 1)}],
            max_norm=5.0,
        )
        found = []
        for k in range(5):
            opt.param_groups[0]["lr"] = 0.01 * (k + 1)
            if k == 2:
                opt.param_groups[1]["betas"] = (0.5, 0.6)
            fill(params, k)
            opt.step(scale=0.5**k)
            found.append((on_host(params.flat).tobytes(), opt.grad_norm))
        return found

    assert len(set(both(gpu, run))) == 5


@pytest.mark.parametrize("build", [fastgd.NAdam, fastgd.LAMB, fastgd.Prodigy])
def test_groups_that_are_added_are_those_of_the_host(gpu, build):
    def run(where, dtype):
        def array(n):
            x = np.linspace(-1, 1, n).astype(dtype)
            return x if where == "numpy" else gpu.asarray(x)

        w, b, more = array(70), array(3), array(7)
        opt = build({"w": w, "b": b}, max_norm=2.0, ema_decay=0.9)
        g = {"w": array(70), "b": array(3)}
        opt.step(g)
        opt.add_param_group({"match": "b", "weight_decay": 0.125})
        opt.step(g)
        opt.add_param_group({"params": more})
        with pytest.raises(ArrayError, match="must be a list of 2"):
            opt.step(g)
        opt.step([g, array(7)])
        opt.step([g, array(7)])
        held = [w, b, more, *opt.ema[0].values(), opt.ema[1], *opt.state.values()]
        scalars = [launch.scalar_states for launch in opt._layout.program.launches]
        return [on_host(x).tobytes() for x in held], opt.t, opt.grad_norm, repr(scalars)

    both(gpu, run)


def test_gradients_that_are_accumulated(gpu):
    def run(where, dtype):
        params = flat(where, dtype)
        opt = fastgd.LAMB(params, lr=0.1, max_norm=1.0, zero_grad=True)
        found = []
        for k in range(4):
            for i in range(3):
                fill(params, 3 * k + i)
                opt.accumulate(scale=1 / 3)
                assert not on_host(params.grad.flat).any()
            assert opt.accumulated == 3
            if k == 2:
                opt.zero_grad()
                assert opt.accumulated == 0
                fill(params, k)
            if k == 3:
                state = opt.state_dict()
                assert type(state["accumulated"]["sum"]) is np.ndarray
                opt.load_state_dict(state)
            opt.step()
            found.append(everything(opt))
        return found

    both(gpu, run)


def test_zero_grad_and_fused_zero_grad(gpu):
    params = flat("gpu")
    opt = fastgd.SGD(params, lr=0.5)
    fill(params, 0)
    opt.zero_grad()
    assert not params.grad.flat._host.any()
    p, g = gpu.ones(5), gpu.ones(5)
    opt = fastgd.SGD(p, lr=0.5, zero_grad=True, on_nonfinite="skip")
    opt.step(g)
    assert (g._host.tolist(), p._host.tolist()) == ([0] * 5, [0.5] * 5)
    memory(g)[:] = math.nan
    opt.step(g)
    assert (g._host.tolist(), p._host.tolist(), opt.t) == ([0] * 5, [0.5] * 5, 1)
    with pytest.raises(ArrayError):
        opt.zero_grad()


def test_a_loss_scaler(gpu):
    def run(where, dtype):
        params = flat(where, dtype)
        opt = fastgd.AdamW(params, lr=0.1, on_nonfinite="skip", max_norm=1.0)
        scaler = fastgd.LossScaler(init_scale=2.0**20, growth_interval=2)
        found = []
        for k in range(6):
            fill(params, k)
            memory(params.grad.flat)[:] *= dtype(scaler.get_scale())
            if k == 2:
                memory(params.grad["w"])[1, 1] = math.inf
            found.append((scaler.step(opt), scaler.get_scale(), everything(opt)))
            scaler.update()
        return found

    assert [taken for taken, _, _ in both(gpu, run)] == [True, True, False, True, True, True]


def test_an_estimate_of_the_hessian(gpu):
    def run(where, dtype):
        params = flat(where, dtype)
        opt = fastgd.SophiaG(params, lr=0.1)
        found = []
        for k in range(5):
            fill(params, k)
            if k % 2 == 0:
                opt.update_hessian(scale=2.0)
            opt.step()
            found.append(everything(opt))
        return found

    both(gpu, run)


def test_eval_and_train(gpu):
    def run(where, dtype):
        opt = made("schedule-free", where, dtype)
        steps(opt, 3)
        opt.eval()
        found = [everything(opt)]
        fill(opt.params, 3)
        with pytest.raises(FastGDError, match="is in eval mode, in which there are no steps"):
            opt.step()
        opt.train()
        steps(opt, 2, first=3)
        return [*found, everything(opt)]

    a, b = both(gpu, run)
    assert a != b


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["clip", "lamb", "prodigy", "nadam"])
def test_a_report_changes_nothing(gpu, name, dtype):
    def run(where, dtype):
        opt = made(name, where, dtype)
        steps(opt, 2)
        fill(opt.params, 2)
        opt.params.grad["b"] = 1e-3
        before = everything(opt)
        report = opt.report(scale=0.5).to_dicts()
        assert everything(opt) == before
        opt.step()
        return repr(report), everything(opt), opt.grad_norm

    both(gpu, run, dtype)


@pytest.mark.parametrize(
    ("dtype", "size"), [(np.float32, 1e20), (np.float64, 1e200), (np.float32, 1e-30), (np.float64, 1e-150)]
)
@pytest.mark.parametrize("mode", ["propagate", "skip", "raise"])
def test_a_norm_beyond_the_squares_of_its_dtype_is_no_overflow(gpu, dtype, size, mode):
    def run(where, dtype):
        params = flat(where, dtype)
        opt = fastgd.SGD(params, lr=0.1, max_norm=1.0, on_nonfinite=mode)
        for k in range(3):
            fill(params, k)
            memory(params.grad.flat)[:] *= dtype(size)
            opt.step()
        return opt.t, opt.grad_norm, on_host(params.flat).tobytes()

    t, norm, _ = both(gpu, run, dtype)
    assert t == 3
    assert size < norm < 100 * size


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["clip", "lamb", "prodigy"])
def test_gradients_that_are_not_finite(gpu, name, bad):
    cls, settings = SETTINGS[name]

    def run(where, dtype, mode):
        opt = cls(flat(where, dtype), **settings, on_nonfinite=mode)
        steps(opt, 2)
        fill(opt.params, 2)
        memory(opt.params.grad["w"])[2, 3] = bad
        before = everything(opt)
        if mode == "raise":
            with pytest.raises(
                NonFiniteError, match=rf"^the gradient of 'w' is {bad} at \(2, 3\); nothing was changed$"
            ):
                opt.step()
        else:
            opt.step()
        after = everything(opt)
        assert (after == before) == (mode != "propagate")
        assert opt.t == 2 + (mode == "propagate")
        steps(opt, 1, first=3)
        return after | {"norm": repr(opt.grad_norm)}, everything(opt)

    for mode in ("propagate", "skip", "raise"):
        host, gpu = (run(where, np.float32, mode) for where in BACKENDS)
        if mode != "propagate":
            assert host == gpu
            continue
        for a, b in zip(host, gpu, strict=True):  # NaNs by class
            for key in a.keys() - {"t", "scalars", "norm"}:
                assert same_bits(*(np.frombuffer(x[key], np.float32) for x in (a, b)))


def test_a_scale_that_overflows(gpu):
    for where in BACKENDS:
        params = flat(where)
        opt = fastgd.SGD(params, lr=1e-30, on_nonfinite="skip")
        fill(params, 0)
        opt.step(scale=1e38 * 3)
        assert opt.t == 0  # the scaled gradient is infinite
        with pytest.raises(HyperparameterError, match=r"^scale must be a number that float32 holds, given 1e"):
            opt.step(scale=1e39)
        with pytest.raises(HyperparameterError, match="a step's lr is 1e"):
            fastgd.SGD(flat(where), lr=1e39).step()

    def clipped(where, dtype):
        opt = fastgd.SGD(flat(where, dtype), lr=0.1, max_norm=1.0)
        fill(opt.params, 0)
        opt.step(scale=1e38)
        opt.step(scale=-1e38)
        return everything(opt), opt.grad_norm

    both(gpu, clipped)


def test_a_norm_is_that_of_the_last_step(gpu):
    opt = made("clip", "gpu")
    assert opt.grad_norm is None
    norms = []
    for k in range(3):
        steps(opt, 1, first=k)
        if k:
            norms.append(opt.grad_norm)
            assert opt.grad_norm == norms[-1]
    assert len(set(norms)) == 2


def test_functional_steps(gpu):
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        ours = [rng.standard_normal((5, 13)).astype(dtype) for _ in range(2)] + [np.zeros((5, 13), dtype)] * 2
        ours = [x.copy() for x in ours]
        theirs = [gpu.asarray(x) for x in ours]
        for t in range(1, 4):
            for arrays in (ours, theirs):
                fastgd.functional.adamw_(*arrays, t, lr=0.1, weight_decay=0.1, scale=0.5)
        for a, b in zip(ours, theirs, strict=True):
            assert b._host.tobytes() == a.tobytes()
        p, q = ours[0].copy(), gpu.asarray(on_host(theirs[0]))
        fastgd.functional.lamb_(p, ours[1], *(np.zeros_like(p) for _ in range(2)), 1, lr=0.5)
        fastgd.functional.lamb_(q, theirs[1], *(gpu.zeros(p.shape, dtype) for _ in range(2)), 1, lr=0.5)
        assert q._host.tobytes() == p.tobytes()
    with pytest.raises(ArrayError, match=r"^g must lie in the memory of p, one of both is on a GPU: move it$"):
        fastgd.functional.sgd_(gpu.ones(3), np.ones(3), 1)
    with pytest.raises(ArrayError, match="must not share memory"):
        fastgd.functional.sgd_(p := gpu.ones(3), p, 1)
    shifted = gpu.ones(8)
    fastgd.functional.sgd_(shifted[1:], gpu.ones(7), 1, lr=1.0)
    assert shifted._host.tolist() == [1] + [0] * 7


# ---- training ----------------------------------------------------------------------------------------------------


def squares(params, x, y):
    """Mean square error of a linear model, and its gradient."""
    error = x @ params["w"] - y
    params.grad["w"] = (x.T @ error) * (2 / len(y))
    return float((error * error).mean())


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_fit_on_data_of_the_gpu(cupy, batch_size):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((30, 4)), rng.standard_normal(4)
    data, held_out = (x, x @ w), (x[:5] + 0.1, x[:5] @ w)

    def run(where, dtype):
        params = fastgd.FlatParams({"w": np.zeros(4)}, backend=backend_named(where))
        opt = fastgd.SGD(params, lr=0.02, momentum=0.5)
        given = [tuple(a if where == "numpy" else cupy.asarray(a) for a in part) for part in (data, held_out)]
        stop = fastgd.EarlyStopping(patience=2)
        history = fastgd.fit(
            squares, opt, given[0], batch_size=batch_size, epochs=12, validation=given[1], seed=3, callbacks=[stop]
        )
        assert params["w"].shape == (4,)
        return history.loss, history.val_loss, history.steps, stop.best_epoch, everything(opt)

    loss, *_, best, _ = both(cupy, run)
    assert loss[-1] < loss[0]
    assert 0 < best <= 12


def test_what_before_makes_on_its_way_lives_as_long_as_the_graph(cupy):
    params = flat("gpu")
    opt = fastgd.AdamW(params)
    pointers = []

    def before():
        on_the_way = params.flat * 2.0
        pointers.append(weakref.ref(on_the_way.pointer))
        params.grad.flat[...] = on_the_way

    captured = opt.capture(before=before)
    captured.replay()
    gc.collect()
    assert pointers[0]() is not None
    del captured
    gc.collect()
    assert pointers[0]() is None


def test_each_tail_of_a_schedule_keeps_its_graph(cupy):
    params = flat("gpu")
    opt = fastgd.AdamW(params, lookahead=(2, 0.5))
    calls = []
    captured = opt.capture(before=lambda: calls.append(opt.t))
    fake_cupy.waits.clear()
    for _ in range(12):
        captured.replay()
    assert calls == [0, 1] and len(fake_cupy.waits) <= 2  # once for each of both programs


def test_fit_ends_before_a_step_when_the_loss_is_not_finite(cupy):
    params = fastgd.FlatParams({"w": np.zeros(4)}, backend="cupy")
    opt = fastgd.SGD(params, lr=0.1)
    x = cupy.asarray(np.full((3, 4), 1e200))
    history = fastgd.fit(squares, opt, (x, cupy.asarray(np.full(3, 1e200))), epochs=3)
    assert history.message.startswith("diverged: the loss is inf")
    assert opt.t == 0
    assert not params.flat._host.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_minimize_from_a_start_on_the_gpu(cupy, shape, dtype):
    x0 = np.full(shape, 0.5, dtype)
    given = cupy.asarray(x0)
    seen = []

    def run(start, **settings):
        return fastgd.minimize(lambda x: (x - 3) * (x - 3), start, lr=0.1, max_iter=50, **settings)

    def jac(x):
        return (x - 3) * 2

    host = run(x0, jac=jac, history=True, callback=lambda r: seen.append(float(np.sum(r.fun))))
    gpu = run(given, jac=jac, history=True, callback=lambda r: seen.append(float(np.sum(on_host_or_float(r.fun)))))
    assert seen[:50] == seen[50:]
    assert (gpu.nit, gpu.nfev, gpu.njev, gpu.status) == (host.nit, host.nfev, host.njev, host.status)
    assert on_host(gpu.history).tobytes() == host.history.tobytes()
    assert isinstance(gpu.history, cupy.ndarray)
    if shape == () and dtype == np.float64:
        assert type(gpu.x) is float
        assert gpu.x == host.x
    else:
        assert isinstance(gpu.x, cupy.ndarray)
        assert (gpu.x.dtype, gpu.x.shape) == (dtype, shape)
        assert on_host(gpu.x).tobytes() == np.asarray(host.x).tobytes()
    assert given._host.tobytes() == x0.tobytes()


def on_host_or_float(x):
    return x if isinstance(x, float) else on_host(x)


def test_minimize_with_both_at_once_converges_and_stops(cupy):
    def fun(x):
        return ((x - 3) * (x - 3)).sum(), (x - 3) * 2

    result = fastgd.minimize(fun, cupy.ones(4), jac=True, method="gd", lr=0.25)
    assert result.success
    assert result.status == 0
    assert type(result.fun) is float
    np.testing.assert_allclose(result.x._host, 3, atol=1e-6)

    def stop(state):
        if state.nit == 3:
            raise StopIteration

    assert fastgd.minimize(fun, cupy.ones(4), jac=True, callback=stop).status == 99
    assert fastgd.minimize(fun, cupy.ones(4), jac=True, method="gd", lr=1e200).status == 2


def test_minimize_names_what_a_gpu_does_not_have(cupy):
    with pytest.raises(HyperparameterError, match=r"^jac must be given for an x0 on a GPU: differences are taken on"):
        fastgd.minimize(lambda x: x, cupy.ones(3))
    with pytest.raises(ArrayError, match=r"^jac must give an array in the memory of x0, given ndarray: move it there$"):
        fastgd.minimize(lambda x: 0.0, cupy.ones(3), jac=lambda x: np.ones(3))
    with pytest.raises(ArrayError, match=r"^jac must give an array in the memory of x0, given ndarray: move it there$"):
        fastgd.minimize(lambda x: 0.0, np.ones(3), jac=lambda x: cupy.ones(3))
    with pytest.raises(ArrayError, match=r"^x0 must be float32 or float64, given dtype int64$"):
        fastgd.minimize(lambda x: 0.0, cupy.ones(3, np.int64), jac=lambda x: x)


# ---- nobody waits ------------------------------------------------------------------------------------------------


@pytest.fixture
def seen():
    """Forget what has been launched and waited for, and give both lists."""

    def clear():
        fake = Gpu.now.fake
        fake.waits.clear()
        fake.launched.clear()
        return fake.waits, fake.launched

    return clear


RULES = {
    "sgd": (fastgd.SGD, dict(lr=0.1)),
    "adamw": (fastgd.AdamW, dict(lr=0.1)),
    "lion": (fastgd.Lion, dict(lr=0.1, ema_decay=0.9, zero_grad=True)),
    "lamb": (fastgd.LAMB, dict(lr=0.1)),
    "prodigy": (fastgd.Prodigy, {}),
    "nadam": (fastgd.NAdam, dict(lr=lambda k: 0.1 / (k + 1))),
}


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_no_step_waits_for_the_device(gpu, seen, name, max_norm):
    cls, settings = RULES[name]
    params = flat("gpu")
    opt = cls(params, **settings, max_norm=max_norm)
    opt.step()
    waits, launched = seen()
    for k in range(3):
        opt.param_groups[0]["lr"] = 0.1 * (k + 1)
        opt.step()
    opt.step(scale=0.5)
    assert launched
    assert waits == []


@pytest.mark.parametrize("mode", ["skip", "raise"])
@pytest.mark.parametrize("name", RULES)
def test_a_step_that_looks_at_its_gradient_waits_once(gpu, seen, name, mode):
    cls, settings = RULES[name]
    opt = cls(flat("gpu"), **settings, max_norm=1.0, on_nonfinite=mode)
    opt.step()
    waits, _ = seen()
    opt.step()
    assert len(waits) == 1


def test_numbers_that_stand_are_not_sent_again(gpu, seen):
    opt = fastgd.SGD(flat("gpu"), lr=0.1, momentum=0.9, max_norm=1.0)
    opt.step()
    opt.step()  # momentum is undamped in the first one alone
    _, launched = seen()
    opt.step()
    assert "fgd_put" not in launched
    opt.param_groups[0]["lr"] = 0.2
    opt.step()
    assert launched.count("fgd_put") == 1
    seen()
    opt.step(scale=0.5)
    assert launched.count("fgd_put") == 2  # the row of the rule, and what the factor is made of
    seen()
    opt.step({n: gpu.zeros(s, np.float32) for n, s in SHAPES.items()}, scale=0.5)
    assert launched.count("fgd_put") == 2  # addresses of the gradient, for the rule and for its norm


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_one_launch_for_all_parameters_whatever_their_groups(gpu, seen, groups):
    params = flat("gpu", shapes={"a": (8,), "b": (4, 5), "c": (64,), "d": (16,), "e": (2, 2)})
    given = [{"params": params}, *({"match": n, "weight_decay": 0.1 * k} for k, n in enumerate("bcde"[: groups - 1]))]
    opt = fastgd.AdamW(given, lr=0.1)
    opt.step()
    _, launched = seen()
    opt.step()
    assert [name for name in launched if name != "fgd_put"] == ["fgd_adamw_update_vector"]


def test_what_does_not_divide_by_a_vector_takes_one_launch_more(gpu, seen):
    opt = fastgd.AdamW(flat("gpu", shapes={"a": (7,), "b": (9,)}), lr=0.1)
    opt.step()
    _, launched = seen()
    opt.step()
    assert launched == ["fgd_put", "fgd_adamw_update_vector", "fgd_adamw_update_scalar"]


def test_arrays_by_themselves_take_one_launch(gpu, seen):
    arrays = [gpu.ones(8 * k) for k in range(1, 20)]
    grads = [gpu.ones(8 * k) for k in range(1, 20)]
    opt = fastgd.Lion(arrays, lr=0.1)
    opt.step(grads)
    _, launched = seen()
    opt.step(grads)
    assert launched == ["fgd_lion_update_vector"]


# ---- captured steps ----------------------------------------------------------------------------------------------

CAPTURED = {name: SETTINGS[name] for name in SETTINGS if name not in ("skip", "raise", "lookahead")} | {
    "zero_grad": (fastgd.AdamW, dict(lr=0.1, zero_grad=True, max_norm=1.0)),
    "lookahead": SETTINGS["lookahead"],
}


@pytest.mark.parametrize("name", CAPTURED)
def test_replayed_steps_are_steps(gpu, name):
    """With numbers that change, and mixed with steps that are not replayed."""
    cls, settings = CAPTURED[name]
    results = []
    for turns in ("s", "r", "sr", "rrs"):
        opt = cls(flat("gpu"), **settings)
        captured = opt.capture()
        found = []
        for k in range(8):
            fill(opt.params, k)
            if k == 4 and "lr" not in settings:
                opt.param_groups[0]["lr"] = 0.5
            elif k == 4 and not callable(settings["lr"]):
                opt.param_groups[0]["lr"] = 0.03125
            take = opt.step if turns[k % len(turns)] == "s" else captured.replay
            take(scale=2.0 if k == 6 else 1.0)
            found.append((everything(opt), opt.grad_norm))
        results.append(found)
    assert results[1:] == results[:1] * 3


@pytest.mark.parametrize("name", ["clip", "prodigy", "nadam", "ema"])
def test_a_replay_is_one_launch_that_nobody_waits_for(gpu, seen, name):
    cls, settings = CAPTURED[name]
    opt = cls(flat("gpu"), **settings)
    captured = opt.capture()
    captured.replay()
    gpu.fake.graphs.clear()
    waits, launched = seen()
    for _ in range(3):
        captured.replay()
    assert len(gpu.fake.graphs) == 3
    assert len(set(gpu.fake.graphs)) == 1
    assert waits == []
    assert launched.count("fgd_put") <= 3 * 2


def test_capture_itself_takes_no_step(gpu):
    opt = made("clip", "gpu")
    fill(opt.params, 0)
    before = everything(opt)
    captured = opt.capture()
    assert everything(opt) == before
    captured.replay()
    assert opt.t == 1


def test_gradients_of_a_captured_step_stay_its_own(gpu):
    def run(take):
        p = gpu.ones(70)
        own, other = gpu.asarray(np.linspace(0, 1, 70)), gpu.asarray(np.linspace(5, 9, 71))
        opt = fastgd.AdamW(p, lr=0.1, max_norm=1.0)
        again = take(opt, own)
        again()
        opt.step(other[1:])  # lies otherwise: another kernel
        again()
        again()
        opt.step(other[:70])
        again()
        return p._host.tobytes(), opt.t

    assert run(lambda opt, g: opt.capture(g).replay) == run(lambda opt, g: lambda: opt.step(g))


def test_a_group_that_is_added_by_name_goes_on_and_one_of_new_arrays_is_refused(gpu):
    def run(replayed):
        params = flat("gpu")
        opt = fastgd.AdamW(params, lr=0.1, max_norm=1.0)
        take = opt.capture().replay if replayed else opt.step
        for k in range(4):
            fill(params, k)
            take()
            if k == 1:
                opt.add_param_group({"match": "b", "weight_decay": 0.5})
        return opt, take, everything(opt)

    _, _, expected = run(False)
    opt, replay, found = run(True)
    assert found == expected
    more = gpu.ones(3, np.float32)
    opt.add_param_group({"params": more})
    with pytest.raises(ArrayError, match=r"given 3 arrays of them for 4 parameters, as a group was added: capture\(\)"):
        replay()
    assert opt.t == 4
    grads = [opt.params[0]["params"].grad, gpu.ones(3, np.float32)]
    opt.step(grads)
    assert opt.t == 5
    opt.capture(grads).replay()
    assert opt.t == 6


def test_what_computes_the_gradient_is_captured_in_front_of_the_step(cupy):
    def run(replayed):
        params = flat("gpu", shapes={"w": (4, 3)})
        x = cupy.ones((6, 4), np.float32)
        opt = fastgd.AdamW(params, lr=0.1, max_norm=1.0)
        calls = []

        def before():
            calls.append(1)
            hidden = x @ params["w"]
            params.grad["w"] = 0.0
            params.grad["w"][...] = x.T @ (hidden * 0.5 - 1.0)

        captured = opt.capture(before=before)
        assert calls == []
        for k in range(5):
            x[...] = cupy.asarray(np.cos(np.arange(24.0) + k).reshape(6, 4))
            if replayed:
                captured.replay()
            else:
                before()
                opt.step()
        return len(calls), everything(opt)

    eager, expected = run(False)
    once, found = run(True)
    assert found == expected
    assert (eager, once) == (5, 1)


def test_what_waits_in_front_of_a_captured_step_is_an_error_of_its_own(cupy):
    params = flat("gpu")
    opt = fastgd.SGD(params, lr=0.1)
    before = everything(opt)
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        opt.capture(before=lambda: float(params.grad["w"].sum())).replay()
    for call in (opt.step, opt.accumulate, opt.report, opt.capture, opt.capture().replay):
        with pytest.raises(FastGDError, match="cannot be captured"):
            opt.capture(before=call).replay()
    assert everything(opt) == before
    steps(opt, 1)
    assert opt.t == 1


def test_what_cannot_be_captured_is_refused(cupy):
    params = flat("gpu")
    for mode in ("skip", "raise"):
        opt = fastgd.SGD(params, on_nonfinite=mode)
        with pytest.raises(
            HyperparameterError, match=rf"^capture\(\) cannot record .* given on_nonfinite='{mode}': build"
        ):
            opt.capture()
    p, g, more = cupy.ones(3), cupy.ones(3), cupy.ones(2)
    with pytest.raises(ArrayError, match=r"^grads must be given"):
        fastgd.SGD(p).capture()
    opt = fastgd.SophiaG(p, lr=1.0)
    free = fastgd.ScheduleFreeAdamW(cupy.ones(3))
    opt.step(g)
    before = p._host.tobytes()
    stream = cupy.cuda.Stream(non_blocking=True)
    calls = {
        "step()": lambda: opt.step(g),
        "accumulate()": lambda: opt.accumulate(g),
        "update_hessian()": lambda: opt.update_hessian(g),
        "eval()": free.eval,
        "report()": lambda: opt.report(g),
        "capture()": lambda: opt.capture(g),
        "add_param_group()": lambda: opt.add_param_group({"params": more}),
        "sgd_": lambda: fastgd.functional.sgd_(p, g, 1),
    }
    with stream:
        stream.begin_capture()
        for name, call in calls.items():
            with pytest.raises(FastGDError) as caught:
                call()
            assert str(caught.value) == (
                f"{name} cannot be captured: a graph would repeat the numbers of this one step; opt.capture() makes a "
                "graph that takes new ones"
            )
        graph = stream.end_capture()
    assert graph.launches == []
    assert p._host.tobytes() == before
    assert opt.t == 1


def test_a_replay_is_refused_where_a_step_is(gpu):
    opt = made("schedule-free", "gpu")
    captured = opt.capture()
    fill(opt.params, 0)
    captured.replay()
    opt.accumulate()
    with pytest.raises(ArrayError, match=r"^a captured step has gradients of its own, given 1 that are accumulated"):
        captured.replay()
    opt.zero_grad()
    opt.eval()
    with pytest.raises(FastGDError, match="is in eval mode"):
        captured.replay()
    opt.train()
    with pytest.raises(HyperparameterError, match=r"^scale must be a number, finite, given nan$"):
        captured.replay(scale=math.nan)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(HyperparameterError):
        captured.replay()
    assert opt.t == 1
    opt.param_groups[0]["lr"] = 0.1
    captured.replay()
    assert opt.t == 2


def test_a_loaded_state_is_replayed_from(gpu):
    a, b = made("prodigy swa", "gpu"), made("prodigy swa", "gpu")
    captured = b.capture()
    steps(a, 5)
    steps(b, 2)
    captured.replay()
    state = a.state_dict()
    memory(b.params.flat)[:] = memory(a.params.flat)
    b.load_state_dict(state)
    for k in range(5, 9):
        steps(a, 1, first=k)
        fill(b.params, k)
        captured.replay()
    assert everything(a) == everything(b)


# ---- wholly or not at all ----------------------------------------------------------------------------------------


def two_launches(where):
    params = flat(where)
    return fastgd.SGD([{"params": params}, {"match": "c", "momentum": 0.9}], lr=0.1, ema_decay=0.5, max_norm=1.0)


INTERRUPTED = {
    "clip": lambda: made("clip", "gpu"),
    "skip": lambda: made("skip", "gpu"),
    "lamb": lambda: made("lamb", "gpu"),
    "prodigy swa": lambda: made("prodigy swa", "gpu"),
    "nadam": lambda: made("nadam", "gpu"),
    "two launches": lambda: two_launches("gpu"),
}


class Drill:
    """An optimizer away from its start, with all compiled, whose next step can be taken again and again."""

    def __init__(self, name, replayed):
        self.opt = opt = INTERRUPTED[name]()
        grouped = not isinstance(opt.params, fastgd.FlatParams)
        self.params = opt.params[0]["params"] if grouped else opt.params
        grads = [self.params.grad] if grouped else None
        self.take = opt.capture(grads).replay if replayed else lambda: opt.step(grads)
        for k in range(4):
            fill(self.params, k)
            self.take()
        self.start = opt.state_dict(), on_host(self.params.flat)
        self.before = self.held()
        self.take()
        self.after = self.held()
        assert self.before != self.after

    def again(self):
        """Go back to the state in front of the step, from another step: what that has left must not matter."""
        fill(self.params, 9)
        self.take()
        fill(self.params, 3)
        state, flat = self.start
        memory(self.params.flat)[:] = flat
        self.opt.load_state_dict(state)
        assert self.held() == self.before

    def held(self):
        opt = self.opt
        ema = [] if opt.ema is None else [opt.ema[0] if isinstance(opt.ema, list) else opt.ema]
        arrays = [self.params.flat, *(e.flat for e in ema), *opt.state.values()]
        scalars = [launch.scalar_states for launch in opt._layout.program.launches]
        return [on_host(x).tobytes() for x in arrays], opt.t, repr(scalars)


class StopOutside(Stop):
    """Does not stop in `record`, where a line that leaves ``with`` is none at which Ctrl-C is raised."""

    def __call__(self, frame, event, argument):
        if frame.f_code.co_name == "record":
            return None
        super().__call__(frame, event, argument)
        return self


@pytest.mark.parametrize(
    ("name", "replayed", "again"),
    [
        ("clip", False, False),
        ("clip", True, True),
        ("skip", False, False),
        ("lamb", False, True),
        ("lamb", True, False),
        ("prodigy swa", True, False),
        ("nadam", False, False),
        ("two launches", True, False),
    ],
)
def test_ctrl_c_before_any_line_leaves_no_half_step(gpu, name, replayed, again):
    drill = Drill(name, replayed)
    seen = set()
    for k in count(1):
        drill.again()
        stop = StopOutside(k, KeyboardInterrupt(), again)
        try:
            with stop:
                drill.take()
        except KeyboardInterrupt:
            pass
        if stop.left > 0:
            break
        now = drill.held()
        assert now in (drill.before, drill.after), f"line {k}"
        seen.add(drill.opt.t)
        if now == drill.before:
            drill.take()
        assert drill.held() == drill.after, f"line {k}"
    assert k > 30
    assert seen == {4, 5}


@pytest.mark.parametrize("replayed", [False, True], ids=["step", "replay"])
@pytest.mark.parametrize("name", ["clip", "lamb", "two launches"])
def test_a_signal_during_any_launch_leaves_a_whole_step(gpu, name, replayed, monkeypatch):
    """Signals are held back while C runs, as in a launch of CuPy, and come out behind it."""
    drill = Drill(name, replayed)
    launcher = sys.modules[f"fastgd.kernels.cuda_{gpu.backend.partition('-')[0]}"]
    whole = launcher.run_all
    interrupted = []
    for k in count(0):
        drill.again()
        left = k

        def run_all(launches):
            nonlocal left
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            if left == 0:
                signal.raise_signal(signal.SIGINT)
            left -= 1
            whole(launches)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        monkeypatch.setattr(launcher, "run_all", run_all)
        try:
            drill.take()
        except KeyboardInterrupt:
            interrupted.append(drill.opt.t)
        if left >= 0:
            break
        assert len(interrupted) == k + 1
        assert drill.held() in (drill.before, drill.after)
        if drill.opt.t == 4:
            drill.take()
        assert drill.held() == drill.after
    assert 5 in interrupted


def test_ctrl_c_while_a_step_is_recorded(cupy):
    params = flat("gpu")
    opt = fastgd.AdamW(params, lr=0.1, max_norm=1.0)
    stops = [True]

    def before():
        params.grad["w"] = 1.0
        if stops.pop() if stops else False:
            raise KeyboardInterrupt

    captured = opt.capture(before=before)
    untouched = everything(opt)
    with pytest.raises(KeyboardInterrupt):
        captured.replay()
    assert everything(opt) == untouched
    captured.replay()
    captured.replay()
    assert opt.t == 2
    assert (params.grad["w"]._host == 1).all()


def test_ctrl_c_while_gradients_are_accumulated(gpu):
    def run(stop):
        params = flat("gpu")
        opt = fastgd.SGD(params, lr=0.1, zero_grad=True)
        fill(params, 0)
        opt.accumulate()
        fill(params, 1)
        interrupted = False
        try:
            with stop:
                opt.accumulate()
        except KeyboardInterrupt:
            interrupted = True
        if opt.accumulated == 1:
            opt.accumulate()
        assert opt.accumulated == 2
        opt.step()
        return interrupted, everything(opt)

    _, expected = run(Stop(10**9, KeyboardInterrupt()))
    for k in count(1):
        stop = Stop(k, KeyboardInterrupt())
        _, found = run(stop)
        assert found == expected, f"line {k}"
        if stop.left > 0:
            break
    assert k > 10


def test_deepcopy_of_an_optimizer_that_replays(gpu):
    opt = made("clip", "gpu")
    captured = opt.capture()
    fill(opt.params, 0)
    captured.replay()
    other = copy.deepcopy(opt)
    captured.replay()
    other.step()
    assert everything(other) == everything(opt)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "LAMB", "Prodigy", "NAdam"])
def test_a_step_allocates_nothing(gpu, name):
    for tail in ({}, dict(max_norm=1.0, ema_decay=0.9, zero_grad=True, max_value=0.5)):
        params = [gpu.ones(70), gpu.ones((3, 4))]
        gradients = [[gpu.ones(70), gpu.ones((3, 4))] for _ in range(3)]
        opt = getattr(fastgd, name)(params, **tail)
        for g in gradients:
            opt.step(g)
        gpu.fake.waits.clear()
        gpu.fake.allocations_left = 0
        try:
            for g in gradients:
                opt.step(g, scale=0.5)
        finally:
            gpu.fake.allocations_left = math.inf
        assert opt.t == 6 and not gpu.fake.waits
