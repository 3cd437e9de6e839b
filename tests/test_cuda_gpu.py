"""What only a device can show: `pytest tests/test_cuda_gpu.py --require-gpu`. Elsewhere these tests are skipped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import numbers, same_bits

import fastgd
from fastgd.backend import cupy_refusal, numba_cuda_refusal
from fastgd.bench import gpu_bits
from fastgd.kernels.cubin import cubin

RULES = ("sgd", "adamw", "lion", "lamb", "prodigy", "rprop")  # no root; the usual; signs; both kinds of sums; branches
LAUNCHERS = ("cupy", "numba-cuda")
CHECKS = [check for name in LAUNCHERS for check in gpu_bits.checks(RULES, backend=name) if check.setting == "other"]
N = 10_007
SPIN = """
extern "C" __global__ void __launch_bounds__(1)
spin(long long cycles) {
    const long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""
CYCLES = 1 << 30  # half a second or more


def required(refusal, request):
    """Skip the test where there is no device, or let it fail where one is asked for."""
    if refusal is not None and request.config.getoption("--require-gpu"):
        pytest.fail(f"a GPU is required: {refusal[0]}; {refusal[1]}")
    if refusal is not None:
        pytest.skip(f"needs a GPU: {refusal[0]}")


@pytest.fixture
def cupy(request):
    """Give CuPy, where it has a device."""
    required(cupy_refusal(), request)
    import cupy

    return cupy


@pytest.fixture(params=LAUNCHERS)
def backend(request):
    """Both launchers, one behind the other; either is given arrays of CuPy."""
    if request.param == "numba-cuda":
        required(numba_cuda_refusal(), request)
    return request.param


@pytest.fixture
def cuda(request):
    """Give numba-cuda, where it has a device."""
    required(numba_cuda_refusal(), request)
    from numba import cuda

    return cuda


def hypers(k):
    """Hyperparameters of step k of the runs below: each step has others."""
    return {"lr": 0.1 / (k + 1), "weight_decay": 0.01 * k}


def reference(rule, start, gradients, **tail):
    """Parameters that the CPU gives for steps whose hyperparameters change."""
    p = start.copy()
    opt = getattr(fastgd, rule)(p, backend="numpy", **tail)
    for k, g in enumerate(gradients):
        opt.param_groups[0].update(hypers(k))
        opt.step(g.copy())
    return p


@pytest.fixture
def start():
    return numbers(np.random.default_rng(0), N, np.float32)


@pytest.fixture
def gradients():
    rng = np.random.default_rng(1)
    return [numbers(rng, N, np.float32) for _ in range(4)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_bits_are_those_of_the_cpu(check, request):
    required(cupy_refusal() if check.backend == "cupy" else numba_cuda_refusal(), request)
    with np.errstate(all="ignore"):
        assert gpu_bits.wrong(check) == []


@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "Prodigy"])
def test_a_step_runs_on_the_current_stream(rule, cupy, backend, start, gradients):
    """What computes the gradient takes long on the same stream, and the default one has nothing to do with either."""
    expected = reference(rule, start, gradients, max_norm=1.0)
    stream = cupy.cuda.Stream(non_blocking=True)
    sources = [cupy.asarray(g) for g in gradients]
    p, g = cupy.asarray(start), cupy.zeros(N, np.float32)
    opt = getattr(fastgd, rule)(p, max_norm=1.0, backend=backend)
    cupy.cuda.Device().synchronize()
    spin = spinner(cupy)
    with stream:
        for k, source in enumerate(sources):
            opt.param_groups[0].update(hypers(k))
            spin(CYCLES >> 6)
            g[...] = source
            opt.step(g)
            g.fill(np.nan)  # which the step must not see
        stream.synchronize()
    assert same_bits(p.get(), expected)


@pytest.mark.parametrize("tail", [{}, dict(max_norm=1.0)], ids=["plain", "max_norm"])
@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "Prodigy"])
def test_a_captured_step_takes_new_hyperparameters(rule, tail, cupy, backend, start, gradients):
    expected = reference(rule, start, gradients, **tail)
    p, g = cupy.asarray(start), cupy.zeros(N, np.float32)
    opt = getattr(fastgd, rule)(p, backend=backend, **tail)
    captured = opt.capture(g)
    for k, source in enumerate(gradients):
        opt.param_groups[0].update(hypers(k))
        g.set(source)
        if k == 2:  # both ways may be mixed
            opt.step(g)
        else:
            captured.replay()
    assert opt.t == len(gradients)
    assert same_bits(p.get(), expected)


def spinner(cupy):
    """Make a function that keeps the current stream busy."""
    module = cupy.RawModule(path=str(cubin(SPIN, cupy.cuda.Device().compute_capability, "spin")))
    function = module.get_function("spin")
    function((1,), (1,), (1,))  # loads it
    cupy.cuda.Device().synchronize()
    return lambda cycles: function((1,), (1,), (cycles,))


@pytest.mark.parametrize("how", ["step", "replay"])
@pytest.mark.parametrize("tail", [{}, dict(max_norm=1.0, ema_decay=0.9, zero_grad=True)], ids=["plain", "tail"])
@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "Prodigy"])
def test_a_step_does_not_wait_for_the_device(rule, tail, how, cupy, backend, start, gradients):
    p, g = cupy.asarray(start), cupy.asarray(gradients[0])
    opt = getattr(fastgd, rule)(p, backend=backend, **tail)
    step = opt.capture(g).replay if how == "replay" else lambda: opt.step(g)
    for _ in range(2):  # what is loaded and allocated at first may wait
        step()
    spin, done = spinner(cupy), cupy.cuda.Event()
    spin(CYCLES)
    done.record()
    for k in range(3):
        opt.param_groups[0]["lr"] = 0.1 / (k + 1)
        step()
    assert not done.done, "the steps were launched when the device had finished what came before them"
    cupy.cuda.Device().synchronize()
    assert done.done and opt.t == 5


@pytest.mark.parametrize("rule", ["AdamW", "LAMB"])
def test_numbers_of_a_step_are_taken_when_it_returns(rule, cupy, backend, start, gradients):
    """The memory of the host that they came from may be another's by the time the device reads them."""
    expected = reference(rule, start, gradients, max_norm=1.0)
    p, sources = cupy.asarray(start), [cupy.asarray(g) for g in gradients]
    opt = getattr(fastgd, rule)(p, backend=backend, max_norm=1.0)
    state = opt.state_dict()
    opt.step(sources[0])  # what is loaded at first may wait
    opt.load_state_dict(state)
    p[...] = cupy.asarray(start)
    spinner(cupy)(CYCLES)
    for k, g in enumerate(sources):
        opt.param_groups[0].update(hypers(k))
        opt.step(g)
        overwriting = [b"\xff" * size for size in range(1, 2000)]
        del overwriting
    assert same_bits(cupy.asnumpy(p), expected)


def test_a_norm_is_waited_for_only_when_it_is_read(cupy, backend, start, gradients):
    p, g = cupy.asarray(start), cupy.asarray(gradients[0])
    opt = fastgd.AdamW(p, max_norm=1.0, backend=backend)
    opt.step(g)
    spin, done = spinner(cupy), cupy.cuda.Event()
    spin(CYCLES)
    done.record()
    opt.step(g)
    assert not done.done
    host = fastgd.AdamW(start.copy(), max_norm=1.0, backend="numpy")
    host.step(gradients[0])
    assert opt.grad_norm == host.grad_norm and done.done


# ---- arrays of others, memory, devices ---------------------------------------------------------------------------


@pytest.fixture
def torch(cupy):
    """Give torch, where it finds the device too."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch finds no GPU")
    return torch


def test_tensors_of_torch_are_updated_in_place(cupy, backend, torch, start, gradients):
    expected = reference("AdamW", start, gradients)
    p, g = torch.from_numpy(start.copy()).cuda(), torch.zeros(N, device="cuda")
    address = p.data_ptr()
    opt = fastgd.AdamW(p, backend=backend)
    for k, source in enumerate(gradients):
        opt.param_groups[0].update(hypers(k))
        g.copy_(torch.from_numpy(source))
        opt.step(g)
    assert p.data_ptr() == address
    assert same_bits(p.cpu().numpy(), expected)


def test_a_parameter_of_torch_is_refused_with_the_way_out(cupy, torch):
    with pytest.raises(fastgd.ArrayError, match=r"detach\(\)"):
        fastgd.AdamW(torch.nn.Parameter(torch.ones(N, device="cuda")))


def test_tensors_on_another_stream_are_refused(cupy, backend, torch, start, gradients):
    p, g = (torch.from_numpy(a.copy()).cuda() for a in (start, gradients[0]))
    opt = fastgd.AdamW(p, backend=backend)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), pytest.raises(fastgd.ArrayError, match="stream"):
        opt.step(g)
    torch.cuda.synchronize()
    assert same_bits(p.cpu().numpy(), start) and opt.t == 0


def test_tensors_on_another_stream_are_served_there(cupy, backend, torch, start, gradients):
    stream = torch.cuda.Stream()
    if not hasattr(stream, "__cuda_stream__"):
        pytest.skip("this torch does not lend its streams: it does from 2.10 on")
    expected = reference("AdamW", start, gradients)
    with torch.cuda.stream(stream), cupy.cuda.Stream.from_external(stream):
        p, g = torch.from_numpy(start.copy()).cuda(), torch.zeros(N, device="cuda")
        opt = fastgd.AdamW(p, backend=backend)
        for k, source in enumerate(gradients):
            opt.param_groups[0].update(hypers(k))
            g.copy_(torch.from_numpy(source))
            opt.step(g)
        assert same_bits(p.cpu().numpy(), expected)


def test_what_does_not_fit_is_one_error_and_leaves_all_as_it_was(cupy):
    _, total = cupy.cuda.Device().mem_info
    with pytest.raises(MemoryError, match="bytes do not fit into the GPU's memory"):
        fastgd.FlatParams({"w": total}, np.float32, backend="cupy")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    p = cupy.ones(1 << 24, np.float32)
    before = pool.get_limit()
    pool.set_limit(size=pool.used_bytes() + p.nbytes + (p.nbytes >> 1))  # one state fits, two do not
    try:
        with pytest.raises(MemoryError):
            fastgd.AdamW(p)
    finally:
        pool.set_limit(size=before)
    assert bool((p == 1).all())
    fastgd.AdamW(p, lr=0.5).step(cupy.ones_like(p))
    assert not bool((p == 1).any())


def test_the_other_device_is_named_and_serves_its_own(cupy, start, gradients):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    expected = reference("LAMB", start, gradients, max_norm=1.0)
    with cupy.cuda.Device(1):
        p = cupy.asarray(start)
    with pytest.raises(fastgd.ArrayError, match="lies on device 1, and the current one is 0"):
        fastgd.LAMB(p)
    with cupy.cuda.Device(1):
        opt = fastgd.LAMB(p, max_norm=1.0)
        for k, source in enumerate(gradients):
            opt.param_groups[0].update(hypers(k))
            opt.step(cupy.asarray(source))
        assert same_bits(p.get(), expected)


# ---- arrays and streams of numba-cuda ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "Prodigy"])
def test_arrays_of_numba_cuda_are_updated_on_their_stream(rule, cuda, start, gradients):
    """What the user's own kernel leaves on that stream is what the step sees; the default one is not waited for."""
    expected = reference(rule, start, gradients, max_norm=1.0)
    stream = cuda.stream()
    sources = [cuda.to_device(g, stream=stream) for g in gradients]
    p, g = cuda.to_device(start, stream=stream), cuda.device_array(N, np.float32, stream=stream)
    opt = getattr(fastgd, rule)(p, max_norm=1.0)
    assert opt.backend == "numba-cuda"

    @cuda.jit
    def copied(to, source):
        i = cuda.grid(1)
        if i < to.size:
            for _ in range(10_000):  # which takes long
                to[i] = source[i]

    for k, source in enumerate(sources):
        opt.param_groups[0].update(hypers(k))
        copied[-(-N // 256), 256, stream](g, source)
        opt.step(g)
    stream.synchronize()
    assert same_bits(p.copy_to_host(), expected)


@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "Prodigy"])
def test_optimizers_on_two_streams_do_not_meet(rule, cuda, start, gradients):
    """One whose stream is busy, and one that is built and stepped beside it, also by another thread."""
    expected = reference(rule, start, gradients)
    own = getattr(fastgd, rule)(start.copy(), backend="numpy")
    own.step(gradients[0])
    busy, free = cuda.stream(), cuda.stream()
    p, q = cuda.to_device(start, stream=busy), cuda.to_device(start, stream=free)
    sources = [cuda.to_device(g) for g in gradients]
    g = cuda.device_array(N, np.float32, stream=busy)

    @cuda.jit
    def copied(to, source):
        i = cuda.grid(1)
        if i < to.size:
            for _ in range(100_000):  # which takes long
                to[i] = source[i]

    copied[-(-N // 256), 256, busy](g, sources[0])
    first = getattr(fastgd, rule)(p)
    first.step(g)
    second = getattr(fastgd, rule)(q)
    for k, source in enumerate(sources):
        second.param_groups[0].update(hypers(k))
        second.step(source)
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(first.state_dict).result()
    for name, values in own.state_dict()["state"].items():
        assert same_bits(state["state"][name], values)
    free.synchronize()
    assert same_bits(q.copy_to_host(), expected)


def test_flat_parameters_of_numba_cuda_go_there_and_back(cuda, start, gradients):
    host = fastgd.FlatParams({"w": start.reshape(-1, 1), "b": ()}, np.float32)
    params = host.to("numba-cuda")
    opt, own = fastgd.LAMB(params, ema_decay=0.9), fastgd.LAMB(host, ema_decay=0.9, backend="numpy")
    for gradient in gradients:
        for one in (params, host):
            one.grad["w"], one.grad["b"] = gradient.reshape(-1, 1), 0.5
        opt.step(), own.step()
    own.load_state_dict(opt.state_dict())
    assert same_bits(params.to("numpy").flat, host.flat)
    assert same_bits(opt.ema.flat.copy_to_host(), own.ema.flat)


def test_a_captured_step_of_numba_cuda_takes_new_hyperparameters(cuda, start, gradients):
    expected = reference("LAMB", start, gradients, max_norm=1.0)
    stream = cuda.stream()
    p, g = cuda.to_device(start, stream=stream), cuda.to_device(gradients[0], stream=stream)
    opt = fastgd.LAMB(p, max_norm=1.0)
    captured = opt.capture(g)
    for k, source in enumerate(gradients):
        opt.param_groups[0].update(hypers(k))
        g.copy_to_device(source, stream=stream)
        captured.replay()
    stream.synchronize()
    assert same_bits(p.copy_to_host(), expected)


def test_what_does_not_fit_into_numba_cudas_memory_is_one_error(cuda):
    _, total = cuda.current_context().get_memory_info()
    with pytest.raises(MemoryError, match="bytes do not fit into the GPU's memory"):
        fastgd.FlatParams({"w": total}, np.float32, backend="numba-cuda")
