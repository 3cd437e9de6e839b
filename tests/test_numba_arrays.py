"""Arrays of numba-cuda as parameters and gradients: streams, what other libraries lend, and what is refused.

On a stand-in for numba-cuda whose device is the host.
"""

from __future__ import annotations

import copy
import pickle
import re
import signal
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_void_p
from functools import partial

import fake_numba_cuda
import gxx
import numpy as np
import pytest
from conftest import gpu_of
from test_cuda_arrays import ByDlpack, ByInterface, Tensor, torch  # noqa: F401  # a fixture
from test_layers import ROOT

import fastgd
from fastgd import backend, functional
from fastgd.kernels import driver
from fastgd.kernels.driver import c_function
from fastgd.kernels.errors import ADD_NUMBA_CUDA, ArrayError, BackendUnavailable, FastGDError, HyperparameterError

G = np.linspace(-1, 1, 70, dtype=np.float32)


@pytest.fixture
def cuda(monkeypatch):
    with gpu_of("numba-cuda", monkeypatch) as found:
        yield found.library


@pytest.fixture
def alone(cuda, monkeypatch):
    """Without CuPy, which would take what others lend."""
    find = backend.util.find_spec
    monkeypatch.setattr(backend.util, "find_spec", lambda name: None if name == "cupy" else find(name))
    return cuda


# ---- streams -----------------------------------------------------------------------------------------------------


def launches_by_stream(monkeypatch):
    """Have the streams of launches and copies listed."""
    seen = []
    calls = fake_numba_cuda.driver
    enqueue, copy_there, copy_back = fake_numba_cuda._enqueue, calls.cuMemcpyHtoDAsync, calls.cuMemcpyDtoHAsync

    def listed(stream, work):
        seen.append(int(stream))
        enqueue(stream, work)

    def listed_copy(to, source, size, stream):
        seen.append(int(stream))
        return copy_there(to, source, size, stream)

    def listed_copy_back(to, source, size, stream):
        seen.append(int(stream))
        return copy_back(to, source, size, stream)

    monkeypatch.setattr(fake_numba_cuda, "_enqueue", listed)
    monkeypatch.setattr(calls, "cuMemcpyHtoDAsync", staticmethod(listed_copy))
    monkeypatch.setattr(calls, "cuMemcpyDtoHAsync", staticmethod(listed_copy_back))
    return seen


@pytest.mark.parametrize("build", [fastgd.AdamW, fastgd.LAMB, fastgd.Prodigy])
def test_a_step_runs_on_the_stream_of_the_parameters(cuda, build, monkeypatch):
    stream = cuda.stream()
    p, q = cuda.to_device(G, stream=stream), cuda.to_device(G)
    a, b = build(p, max_norm=1.0), build(q, max_norm=1.0)
    g = cuda.to_device(G)
    a.step(g), b.step(g)
    seen = launches_by_stream(monkeypatch)
    a.step(g)
    assert set(seen) == {stream.handle}
    seen.clear()
    b.step(g)
    assert set(seen) == {0}
    assert p._host.tobytes() == q._host.tobytes() != G.tobytes()


def test_views_and_copies_stay_on_their_stream(cuda):
    stream = cuda.stream()
    p = cuda.to_device(np.ones((3, 4)), stream=stream)
    opt = fastgd.SGD(p)
    assert opt._layout.targets.parameters.arrays[0].stream is stream
    assert copy.deepcopy(opt).params.stream is stream


def test_functional_steps_are_on_the_stream_of_p(cuda, monkeypatch):
    stream = cuda.stream()
    p, g = cuda.to_device(G, stream=stream), cuda.to_device(G)
    fastgd.functional.sgd_(p, g, 1)
    seen = launches_by_stream(monkeypatch)
    fastgd.functional.sgd_(p, g, 2, lr=0.5)
    assert set(seen) == {stream.handle}


def in_thread(call):
    """Have a new thread call; give what it gave."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_all_can_be_called_in_any_thread(cuda):
    """In a thread that no context of CUDA's is current in, until numba-cuda is asked for one."""
    net = fastgd.FlatParams({"w": cuda.to_device(G)})
    opt = fastgd.AdamW(net, max_norm=1.0)
    opt.step()
    state = in_thread(opt.state_dict)
    for call in (
        lambda: opt.load_state_dict(state),
        lambda: opt.grad_norm,
        lambda: net.to("numpy"),
        lambda: net.__setitem__("w", G),
        lambda: copy.deepcopy(opt),
        lambda: pickle.dumps(net),
        opt.zero_grad,
        opt.step,
    ):
        in_thread(call)
    assert opt.t == 2


def test_all_work_of_an_optimizer_is_on_its_stream(cuda, monkeypatch):
    """Whichever stream this thread's last step was on: another one would not wait for it."""
    streams = cuda.stream(), cuda.stream()
    p, q = (cuda.to_device(G, stream=stream) for stream in streams)
    first = fastgd.AdamW(p, max_norm=1.0)
    first.step(cuda.to_device(G))
    seen = launches_by_stream(monkeypatch)
    second = fastgd.Prodigy(q, max_norm=1.0, ema_decay=0.9)
    assert set(seen) - {0} == {streams[1].handle}  # new memory is filled on 0
    second.step(cuda.to_device(G))
    state = second.state_dict()
    for call in (
        lambda: second.state_dict(),
        lambda: second.load_state_dict(state),
        lambda: second.grad_norm,
        lambda: copy.deepcopy(second),
    ):
        first.step(cuda.to_device(G))
        seen.clear()
        call()
        assert set(seen) <= {streams[1].handle, 0} and seen[-1] == streams[1].handle


def test_a_flatparams_is_on_the_default_stream(cuda, monkeypatch):
    stream = cuda.stream()
    net = fastgd.FlatParams({"w": 70}, backend="numba-cuda")
    own = fastgd.SGD(net)
    other = fastgd.SGD(cuda.to_device(G, stream=stream))
    seen = launches_by_stream(monkeypatch)
    for call in (
        lambda: net.__setitem__("w", G),
        lambda: net.to("numpy"),
        lambda: net.copy(),
        lambda: copy.deepcopy(net.grad),
        lambda: pickle.loads(pickle.dumps(net)),
        lambda: own.zero_grad(),
    ):
        other.step(cuda.to_device(G))
        seen.clear()
        call()
        assert set(seen) == {0}


def test_a_stream_may_go(cuda, monkeypatch):
    """Nothing is put on the one that this thread last worked on unless an array is on it."""
    fastgd.SGD(cuda.to_device(G, stream=cuda.stream())).step(cuda.to_device(G))
    seen = launches_by_stream(monkeypatch)
    net = fastgd.FlatParams({"w": G}, backend="numba-cuda")
    fastgd.LAMB(net, max_norm=1.0).step()
    fastgd.functional.adamw_(*(cuda.to_device(G) for _ in range(4)), 1)
    assert set(seen) == {0}


def test_a_copy_from_another_stream_waits_for_it(cuda, monkeypatch):
    stream = cuda.stream()
    net = fastgd.FlatParams({"w": 70}, backend="numba-cuda")
    waited = []
    wait = fake_numba_cuda.driver.cuStreamSynchronize
    listed = staticmethod(lambda stream: waited.append(int(stream)) or wait(stream))
    monkeypatch.setattr(fake_numba_cuda.driver, "cuStreamSynchronize", listed)
    net["w"] = cuda.to_device(G)
    assert waited == []
    net["w"] = cuda.to_device(G, stream=stream)
    assert waited == [stream.handle, 0]
    net.grad["w"] = cuda.to_device(np.ones((70, 2), np.float32), stream=stream)[:, 0]
    assert waited[2:4] == [stream.handle, stream.handle]


@pytest.mark.parametrize("handle", [0, 1])
def test_names_of_the_default_stream(cuda, handle, monkeypatch):
    """``cuda.default_stream()`` is an object whose number numba-cuda gives with a warning."""
    stream = types.SimpleNamespace(handle=handle)
    opt = fastgd.SGD(cuda.to_device(G, stream=stream))
    seen = launches_by_stream(monkeypatch)
    opt.step(cuda.to_device(G))
    assert set(seen) == {0}


@pytest.mark.parametrize("name", ["capture", "accumulate", "report", "update_hessian"])
def test_gradients_on_another_stream_are_refused_beside_the_step_too(cuda, name, monkeypatch):
    with gpu_of("cupy", monkeypatch) as cupy:
        opt = fastgd.SophiaG(cuda.to_device(G, stream=cuda.stream()))
        fastgd.SGD(cuda.to_device(G)).step(cuda.to_device(G))  # on another stream, in this thread
        with pytest.raises(ArrayError, match=r"^grads is an array of cupy, whose current stream is 0x0, and the par"):
            getattr(opt, name)(cupy.asarray(G))


def test_a_copy_of_an_optimizer_holds_a_copy_of_what_is_lent(alone):
    p = ByInterface(G.copy())
    opt = fastgd.SGD(p, lr=1.0)
    twin = copy.deepcopy(opt)
    twin.step(alone.to_device(G))
    assert type(twin.params) is ByInterface and not twin.params.array.any()
    assert p.array.tobytes() == G.tobytes()


def test_functional_steps_on_two_streams_share_no_memory(gpu, monkeypatch):
    """What the one is still reading would be overwritten on the other, or not be there yet."""
    made = []
    build = functional._Call.__init__
    monkeypatch.setattr(functional._Call, "__init__", lambda self, *given: made.append(self) or build(self, *given))
    arrays = G[:61], G[:61].copy()
    for _ in range(2):
        if gpu.backend == "cupy":
            with gpu.library.cuda.Stream():
                on_stream = [gpu.asarray(a) for a in arrays]
                fastgd.functional.sgd_(*on_stream, 1)
                fastgd.functional.sgd_(*on_stream, 2)
        else:
            stream = gpu.library.stream()
            on_stream = [gpu.library.to_device(a, stream=stream) for a in arrays]
            fastgd.functional.sgd_(*on_stream, 1)
            fastgd.functional.sgd_(*on_stream, 2)
    assert len(made) == 2


def test_functional_steps_take_arrays_of_one_stream(cuda, monkeypatch):
    with gpu_of("cupy", monkeypatch) as cupy, pytest.raises(ArrayError, match=r"^g is an array of cupy, whose"):
        fastgd.functional.sgd_(cuda.to_device(G, stream=cuda.stream()), cupy.asarray(G), 1)


def test_a_captured_stream_is_refused(cuda):
    stream = cuda.stream()
    p, g = cuda.to_device(G, stream=stream), cuda.to_device(G)
    opt = fastgd.SGD(p)
    opt.step(g)
    before = p._host.tobytes()
    fake_numba_cuda.recorded[stream.handle] = work = []
    for name, call in (("step()", opt.step), ("capture()", opt.capture), ("accumulate()", opt.accumulate)):
        with pytest.raises(FastGDError, match=rf"^{name[:-2]}\(\) cannot be captured: a graph would repeat"):
            call(g)
    assert work == [] and p._host.tobytes() == before and opt.t == 1


def test_what_would_launch_elsewhere_is_no_part_of_a_captured_step(cuda):
    p, g = cuda.to_device(G), cuda.to_device(G)
    opt = fastgd.SGD(p)
    captured = opt.capture(g, before=lambda: None)
    with pytest.raises(HyperparameterError, match=r"^before must be None with backend 'numba-cuda': 'cupy' records"):
        captured.replay()
    assert opt.t == 0 and p._host.tobytes() == G.tobytes()
    opt.capture(g).replay()
    assert opt.t == 1


@pytest.mark.parametrize("captured", [False, True])
def test_a_launch_that_fails_is_raised_and_marks_the_optimizer(cuda, captured):
    """Nothing is launched behind it, and the step does not count."""
    p, g = cuda.to_device(G), cuda.to_device(G)
    opt = fastgd.LAMB(p)
    step = opt.capture(g).replay if captured else partial(opt.step, g)
    step()
    state = opt.state_dict()
    # behind the launches of one step: where the graph stands, else the second of them
    fake_numba_cuda.failing[:] = ["graph" if captured else "fgd_add"]
    fake_numba_cuda.launched.clear()
    with pytest.raises(RuntimeError, match=r"^the NVIDIA driver says CUDA_ERROR_INVALID_VALUE$"):
        step()
    assert not any("update" in name for name in fake_numba_cuda.launched)
    fake_numba_cuda.failing.clear()
    assert opt.t == 1
    with pytest.raises(FastGDError, match="load_state_dict"):
        step()
    opt.load_state_dict(state)
    step()
    assert opt.t == 2


def test_ctrl_c_is_raised_behind_all_launches_that_stand_together(cuda, monkeypatch):
    """The functions are the driver's own, of which each answer of NVIDIA's bindings would run Python."""
    code = """
#include <signal.h>
static int launched;
extern "C" int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                              void **, void **) { raise(SIGINT); return ++launched < 4 ? 0 : 1; }
"""
    from fastgd.kernels import cuda_numba

    monkeypatch.setattr(driver, "_LIBRARY", str(gxx.build(code)))
    launch = cuda_numba.Launch(c_function("cuLaunchKernel"), (c_void_p(), 1, 1, 1, 1, 1, 1, 0), (c_void_p(),) * 2)
    runs = np.zeros((), np.int64)
    with pytest.raises(KeyboardInterrupt):
        cuda_numba.run_all([launch, launch, launch, partial(np.add.at, runs, (), 1)])
    assert runs == 1
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(RuntimeError, match="says CUDA_ERROR_INVALID_VALUE"):
            cuda_numba.run_all([launch, partial(np.add.at, runs, (), 1)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert runs == 1


# ---- arrays that another library lends ---------------------------------------------------------------------------


@pytest.mark.parametrize("lender", [ByInterface, Tensor])
def test_lent_arrays_are_updated_in_place(alone, torch, lender):  # noqa: F811
    ours = G.copy()
    theirs = lender(ours.copy())
    for params, gradient in ((ours, np.cos(G)), (theirs, lender(np.cos(G)))):
        opt = fastgd.AdamW(params, lr=0.1, max_norm=1.0)
        for _ in range(3):
            opt.step(gradient)
    assert opt.backend == "numba-cuda"
    assert theirs.array.tobytes() == ours.tobytes()
    # and as a dict, beside numba-cuda's own
    q = lender(np.ones(3, np.float32))
    opt = fastgd.SGD({"a": q, "b": alone.to_device(np.ones(2, np.float32))}, lr=1.0)
    opt.step({"a": alone.to_device(np.ones(3, np.float32)), "b": lender(np.ones(2, np.float32))})
    assert q.array.tolist() == [0, 0, 0]


def test_gradients_of_cupy_go_with_parameters_of_numba_cuda(cuda, monkeypatch):
    with gpu_of("cupy", monkeypatch) as cupy:
        p, g = cuda.to_device(G), cupy.asarray(G)
        opt = fastgd.SGD(p, lr=1.0)
        for _ in range(2):
            opt.step(g)
        assert p._host.tolist() == (G - G - G).tolist()
        stream = cupy.library.cuda.Stream()
        with stream, pytest.raises(ArrayError, match=r"^grads is an array of cupy, whose current stream is 0x1"):
            opt.step(g)
        assert opt.t == 2


def test_parameters_of_cupy_are_served_on_cupys_stream(cuda, monkeypatch):
    with gpu_of("cupy", monkeypatch) as cupy:
        p, g = cupy.asarray(G), cupy.asarray(G)
        opt = fastgd.AdamW(p, lr=0.1, backend="numba-cuda", max_norm=1.0)
        ours = G.copy()
        host = fastgd.AdamW(ours, lr=0.1, max_norm=1.0)
        stream = cupy.library.cuda.Stream()
        opt.step(g), host.step(G)
        seen = launches_by_stream(monkeypatch)
        with stream:
            opt.step(g)
        host.step(G)
        assert set(seen) == {stream.ptr}
        assert p._host.tobytes() == ours.tobytes()
        assert {type(x).__module__ for x in opt.state.values()} == {"cupy"}


def test_tensors_on_another_stream_are_refused(alone, torch):  # noqa: F811
    torch.stream = 0x50
    p, g = Tensor(np.ones(3)), Tensor(np.ones(3))
    opt = fastgd.SGD(p, lr=1.0)
    opt.step(g)
    assert opt._layout.targets.parameters.arrays[0].stream.handle == 0x50
    torch.stream = 0x70
    message = (
        r"is an array of torch, whose current stream is 0x70, and the parameters were taken on 0x50: build and step "
        r"the optimizer on one stream$"
    )
    with pytest.raises(ArrayError, match="^params " + message):
        opt.step(g)
    assert p.array.tolist() == [0, 0, 0] and opt.t == 1
    own = fastgd.SGD(alone.to_device(np.ones(3)), lr=1.0)
    with pytest.raises(ArrayError, match=r"^grads is an array of torch, .* taken on 0x0"):
        own.step(g)
    torch.stream = 1  # another name of the default stream
    own.step(g)


def test_a_tensor_that_requires_a_gradient_names_the_way_out(alone, torch):  # noqa: F811
    p = Tensor(np.ones(3))
    p.requires_grad = True
    with pytest.raises(ArrayError, match=r"^params cannot be shared with numba-cuda, given Tensor: .*: pass x\.detach"):
        fastgd.SGD(p)


def test_what_speaks_dlpack_alone_is_refused(alone):
    with pytest.raises(ArrayError, match=r"^params cannot be shared with numba-cuda, given ByDlpack: "):
        fastgd.SGD(ByDlpack(np.ones(3)))


def test_read_only_memory_of_another_library_is_not_written(alone):
    class Lent:
        def __init__(self, array):
            interface = array.__array_interface__
            self.__cuda_array_interface__ = {**interface, "data": (interface["data"][0], True), "version": 3}

    ones = np.ones(4)
    with pytest.raises(ArrayError, match=r"^params must be writeable, given a read-only Lent$"):
        fastgd.SGD(Lent(ones))
    p = alone.to_device(ones)
    fastgd.SGD(p, lr=1.0).step(Lent(ones))
    assert not p._host.any()


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: fastgd.SGD(np.ones(3), backend="numba-cuda"),
        lambda: fastgd.FlatParams({"w": 3}, backend="numba-cuda"),
        lambda: fastgd.FlatParams({"w": 3}).to("numba-cuda"),
    ],
)
def test_without_numba_cuda_the_reason_and_the_command_are_named(monkeypatch, build):
    monkeypatch.setattr(backend, "_SERVING", set())
    monkeypatch.setattr(backend.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable) as caught:
        build()
    assert str(caught.value) == (
        "backend 'numba-cuda': numba-cuda is not installed, and the target that Numba brings is not served; "
        f"{ADD_NUMBA_CUDA}"
    )


def test_without_a_driver_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(backend, "_SERVING", set())
    monkeypatch.setattr(backend, "find_driver", lambda: (None, "there is no NVIDIA driver here"))
    monkeypatch.setattr(backend.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backend, "_version", lambda name: "0.30.4" if name == "numba-cuda" else "13.5")
    with pytest.raises(BackendUnavailable, match=r"^backend 'numba-cuda': there is no NVIDIA driver here; run on"):
        fastgd.FlatParams({"w": 3}, backend="numba-cuda")
    monkeypatch.setattr(backend, "_version", lambda name: "0.22.0")
    with pytest.raises(BackendUnavailable, match=r"numba-cuda 0\.22\.0 is installed, and 0\.30 is the oldest"):
        fastgd.FlatParams({"w": 3}, backend="numba-cuda")


def test_without_a_linker_the_command_is_named(monkeypatch):
    monkeypatch.setattr(backend, "_SERVING", set())
    monkeypatch.setattr(backend, "_driver_refusal", lambda *given: None)
    monkeypatch.setattr(backend.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backend, "_version", lambda name: "0.30.4" if name == "numba-cuda" else "13.5")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        BackendUnavailable, match=r"^backend 'numba-cuda': .*nvJitLink, which cannot be loaded: .*; pip"
    ):
        fastgd.FlatParams({"w": 3}, backend="numba-cuda")


def test_an_array_of_numbas_own_target_is_refused(monkeypatch):
    """Which is deprecated, and has the same name."""
    monkeypatch.setattr(backend, "_SERVING", set())
    monkeypatch.setattr(backend.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="the target that Numba brings is not served"):
        fastgd.SGD(fake_numba_cuda.DeviceNDArray(np.ones(3)))


def test_each_memory_has_its_backend(cuda, monkeypatch):
    p = cuda.to_device(G)
    for name in ("numpy", "numba"):
        with pytest.raises(BackendUnavailable, match=rf"^backend '{name}' does not serve arrays on a GPU, .*copy_to_h"):
            fastgd.SGD(p, backend=name)
    with pytest.raises(BackendUnavailable, match=r"^backend 'numba-cuda' does not serve .* on the host.*cuda\.to_dev"):
        fastgd.SGD(G.copy(), backend="numba-cuda")
    with gpu_of("cupy", monkeypatch) as cupy:
        with pytest.raises(BackendUnavailable, match=r"^backend 'cupy' does not serve arrays of numba-cuda.*asarray"):
            fastgd.SGD(p, backend="cupy")
        with pytest.raises(ArrayError, match="one memory, given arrays of CuPy and of numba-cuda"):
            fastgd.SGD([p, cupy.asarray(G)])
    with pytest.raises(ArrayError, match="on the host and on a GPU"):
        fastgd.SGD([p, np.ones(3, np.float32)])
    with pytest.raises(ArrayError, match="grads lies on the host and the parameters on a GPU: move it there"):
        fastgd.SGD(p).step(G)


def test_arrays_that_no_kernel_takes_are_refused(cuda):
    wide = cuda.to_device(np.ones((4, 6)))
    for array, message in (
        (cuda.to_device(np.ones(3, np.int64)), "params must be float32 or float64, given dtype int64"),
        (wide[:, ::2], r"params must be C-contiguous, given shape \(4, 3\) with strides \(48, 16\): "),
        (cuda.to_device(np.ones(9, np.uint8))[1:]._host[:8].view(np.float64), None),
    ):
        if message is None:
            array, message = fake_numba_cuda.DeviceNDArray(array), "params must be aligned to its 8 byte elements"
        with pytest.raises(ArrayError, match=f"^{message}"):
            fastgd.SGD(array)
    p = cuda.to_device(np.ones(3))
    with pytest.raises(ArrayError, match="must not share memory"):
        fastgd.AdamW(p).step(p)
    with pytest.raises(HyperparameterError, match=r"^Muon works on whole matrices, which backend 'numba-cuda'"):
        fastgd.Muon(wide)


def test_another_device_is_named(cuda, monkeypatch):
    with cuda.gpus[1]:
        there = cuda.to_device(np.ones(3))
    monkeypatch.setitem(fake_numba_cuda._devices, there._host.ctypes.data, 1)
    with pytest.raises(ArrayError, match=r"^params lies on device 1, .* is 0: .* `with numba\.cuda\.gpus\[1\]:`"):
        fastgd.SGD(there)
    with cuda.gpus[1]:
        opt = fastgd.SGD(there, lr=1.0)
        opt.step(cuda.to_device(np.ones(3)))
    with pytest.raises(ArrayError, match=r"^step\(\) must be called where params lie, on device 1, .* one is 0"):
        opt.step(there)
    assert there._host.tolist() == [0, 0, 0]


def test_what_needs_arithmetic_on_whole_arrays_says_so(cuda):
    message = r"^numba-cuda's arrays have no arithmetic, .* cupy\.asarray\(x\), which shares their memory"
    with pytest.raises(BackendUnavailable, match=message):
        fastgd.minimize(lambda x: 0.0, cuda.to_device(G), jac=lambda x: x)
    mlp = fastgd.nn.MLP((3, 2))
    params = mlp.init(0).to("numba-cuda")
    with pytest.raises(BackendUnavailable, match=message):
        mlp.loss_and_grad(params, np.ones((1, 3)), np.zeros(1, int))


def test_memory_that_runs_out_leaves_all_as_it_was(cuda):
    with pytest.raises(MemoryError, match=r"^137,438,953,472 bytes do not fit into the GPU's memory: "):
        fastgd.FlatParams({"w": 2**35}, backend="numba-cuda")
    p, g = cuda.to_device(G), cuda.to_device(G)
    for most in range(12):
        fake_numba_cuda.allocations_left = most
        try:
            opt = fastgd.AdamW(p, max_norm=1.0)
            opt.step(g)
            break
        except MemoryError:
            assert p._host.tobytes() == G.tobytes()
    else:
        fake_numba_cuda.allocations_left = 40
        fastgd.AdamW(p, max_norm=1.0).step(g)
    assert p._host.tobytes() != G.tobytes()


def test_fit_computes_gradients_by_a_users_own_kernels(cuda):
    """The function that gives them is the user's; epochs, held out data and the best parameters are copies."""
    params = fastgd.FlatParams({"w": 3}, np.float32, backend="numba-cuda")
    x = np.arange(12, dtype=np.float32).reshape(4, 3) / 12

    def loss_and_grad(params, x):
        w = params["w"].copy_to_host()
        params.grad["w"] = 2 * (w - x.mean(axis=0))
        return float(((w - x.mean(axis=0)) ** 2).sum())

    opt = fastgd.SGD(params, lr=0.25)
    stopping = fastgd.EarlyStopping(2)
    history = fastgd.fit(loss_and_grad, opt, x, epochs=20, validation=x, callbacks=[stopping])
    assert history.loss[-1] < 1e-3 * history.loss[0]


def test_example_of_the_readme(cuda):
    readme = (ROOT / "README.md").read_text()
    (example,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "cuda.stream()" in b)
    exec(example, {"np": np, "fastgd": fastgd})
