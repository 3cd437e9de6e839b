"""Arrays of a GPU as parameters and gradients: what is taken as it lies, and what is refused before a byte is written.

On stand-ins for CuPy and numba-cuda whose device is the host. What other libraries lend to numba-cuda, and what it
refuses, is in test_numba_arrays.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
import types

import fake_cupy
import numpy as np
import pytest

import fastgd
from fastgd import backend
from fastgd.kernels.errors import ADD_CUPY, ArrayError, BackendUnavailable, FastGDError, HyperparameterError

START = {"w": np.linspace(-1, 1, 35).reshape(5, 7), "b": np.array(0.5), "none": np.zeros((0, 3)), "c": np.ones(64)}


def start(dtype):
    return {name: x.astype(dtype) for name, x in START.items()}


def slopes(k, dtype=np.float64):
    """Gradients of step k."""
    return {name: np.asarray(np.cos(x + k), dtype) for name, x in START.items()}


def on_host(x):
    return x if isinstance(x, np.ndarray) else x._host


def trained(make, to_gradients, dtype, steps=3):
    """Parameters after some steps, by name: `make` gives the optimizer's, and what to read of them."""
    params, read = make(start(dtype))
    opt = fastgd.AdamW(params, lr=0.1, amsgrad=True)
    for k in range(steps):
        opt.step(to_gradients(slopes(k, dtype)))
    return [on_host(x).tobytes() for x in read], opt


# ---- arrays that are taken ---------------------------------------------------------------------------------------


def listed(arrays):
    made = list(arrays.values())
    return made, made


def named(arrays):
    made = dict(arrays)
    return made, list(made.values())


def grouped(arrays):
    made = list(arrays.values())
    groups = [{"params": made[0], "lr": 0.2}, {"params": made[1:2]}, {"params": made[2:], "weight_decay": 0.3}]
    return groups, made


def flat(arrays):
    made = fastgd.FlatParams(arrays)
    return made, list(made.values())


FORMS = {
    "list": (listed, lambda g: list(g.values())),
    "dict": (named, dict),
    "groups": (grouped, lambda g: [g["w"], [g["b"]], [g["none"], g["c"]]]),
    "flat": (flat, dict),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_arrays_is_updated_in_place(gpu, form, dtype):
    make, order = FORMS[form]
    given = []

    def on_gpu(arrays):
        given.extend(map(gpu.asarray, arrays.values()))
        return make(dict(zip(arrays, given, strict=True)))

    def to_gradients(gradients):
        return order({name: gpu.asarray(g) for name, g in gradients.items()})

    expected, _ = trained(make, order, dtype)
    found, opt = trained(on_gpu, to_gradients, dtype)
    assert found == expected
    assert opt.backend == gpu.backend
    assert all(map(gpu.is_own, opt.state.values()))
    assert f"backend={gpu.backend!r}" in repr(opt)
    if form != "flat":  # which copies
        assert [x._host.tobytes() for x in given] == expected


@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (0,), (4096,), (4099,)])
def test_a_lone_array_of_any_shape(gpu, shape):
    p = np.full(shape, 0.5, np.float32)
    q = gpu.asarray(p)
    for x, g in ((p, np.full(shape, 2.0, np.float32)), (q, gpu.asarray(np.full(shape, 2.0, np.float32)))):
        opt = fastgd.AdamW(x, lr=0.1, max_norm=1.0)
        opt.step(g)
        opt.step(g)
    assert q._host.tobytes() == p.tobytes()
    assert not p.size or (p != 0.5).all()


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_views_that_are_not_aligned_for_vectors(gpu, dtype, shift):
    """They go through the scalar kernel, and nothing beside the view is touched."""
    whole = np.linspace(-1, 1, 4110).astype(dtype)
    ours, theirs = whole.copy(), gpu.asarray(whole)
    g = np.cos(whole)
    for x, gradient in ((ours, g), (theirs, gpu.asarray(g))):
        opt = fastgd.LAMB(x[shift : shift + 4097], lr=0.1, max_norm=1.0)
        for k in (0, 3):  # the gradient lies otherwise at the second step
            opt.step(gradient[k : k + 4097])
    assert theirs._host.tobytes() == ours.tobytes()
    assert (ours[:shift] == whole[:shift]).all()


def test_flat_parameters_made_on_the_gpu(gpu):
    params = fastgd.FlatParams({"w": START["w"], "b": 4, "c": (2, 3)}, backend=gpu.backend)
    assert params.backend == gpu.backend
    assert gpu.is_own(params.flat)
    assert gpu.is_own(params.grad.flat)
    assert params.flat._host.ctypes.data % 256 == params.grad.flat._host.ctypes.data % 256 == 0
    assert params["w"].shape == params.grad["w"].shape == (5, 7)
    assert params["w"]._host.tobytes() == START["w"].tobytes()
    assert not params["c"]._host.any()
    gpu.put(params.grad["w"], 2.0)  # a view
    assert params.grad.flat._host[:35].tolist() == [2.0] * 35
    assert params.grad.flat._host[35:].any() == np.False_


def test_flat_parameters_of_arrays_of_the_gpu_stay_there_and_are_copies(gpu):
    w = gpu.ones((2, 3))
    params = fastgd.FlatParams({"w": w, "b": np.zeros(2)})  # one of them is enough
    assert params.backend == gpu.backend
    gpu.put(params["w"], 5.0)
    assert w._host.tolist() == [[1.0] * 3] * 2
    held = fastgd.FlatParams({"w": w}, backend="numpy")
    assert isinstance(held.flat, np.ndarray)
    assert held["w"].tolist() == [[1.0] * 3] * 2


def test_values_of_every_kind_are_copied_in(gpu):
    params = fastgd.FlatParams({"w": (2, 2)}, dtype=np.float32, backend=gpu.backend)
    for given, wanted in (
        (3, [[3, 3], [3, 3]]),
        (np.float64(0.1), np.full((2, 2), 0.1, np.float32).tolist()),
        (np.array(7.0), [[7, 7], [7, 7]]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        (np.arange(4.0).reshape(2, 2).T, [[0, 2], [1, 3]]),
        (gpu.asarray(np.full((2, 2), 6.0)), [[6, 6], [6, 6]]),
        (gpu.asarray(np.array(8)), [[8, 8], [8, 8]]),
    ):
        params["w"] = given
        params.grad["w"] = given
        assert params["w"]._host.tolist() == params.grad["w"]._host.tolist() == wanted
    before = params.flat._host.tobytes()
    for given, message in (
        (gpu.ones(3), r"'w' has shape \(2, 2\), given \(3,\)"),
        (gpu.asarray(np.ones((2, 2), bool)), "'w' takes real numbers, given dtype bool"),
        (np.ones((2, 2), complex), "'w' takes real numbers, given dtype complex128"),
    ):
        with pytest.raises(ArrayError, match=f"^{message}$"):
            params["w"] = given
    assert params.flat._host.tobytes() == before


def test_host_parameters_take_arrays_of_the_gpu(gpu):
    params = fastgd.FlatParams({"w": 3})
    params["w"] = gpu.asarray(np.array([1.0, 2.0, 3.0]))
    assert params["w"].tolist() == [1, 2, 3]


def test_parameters_move_there_and_back(gpu):
    held = fastgd.FlatParams(start(np.float32))
    held.grad.flat[:] = 3.0
    moved = held.to(gpu.backend)
    assert (moved.backend, held.backend) == (gpu.backend, "numba")
    assert gpu.is_own(moved["w"])
    assert moved.flat._host.tobytes() == held.flat.tobytes()
    assert moved.grad.flat._host.tobytes() == held.grad.flat.tobytes()
    back = moved.to("numpy")
    gpu.put(moved.flat, 0)
    assert back.flat.tobytes() == held.flat.tobytes()
    assert (back.grad.flat == 3).all()
    assert back.backend == "numpy"


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda p: p.copy(), lambda p: p.to("auto")])
def test_copies_are_on_the_gpu_and_apart(gpu, how):
    params = fastgd.FlatParams(start(np.float64), backend=gpu.backend)
    params.grad["b"] = 2.0
    made = how(params)
    assert made.backend == gpu.backend
    before = made.flat._host.tobytes(), made.grad.flat._host.tobytes()
    assert before == (params.flat._host.tobytes(), params.grad.flat._host.tobytes())
    gpu.put(params.flat, 9)
    gpu.put(params.grad.flat, 9)
    assert (made.flat._host.tobytes(), made.grad.flat._host.tobytes()) == before
    gpu.put(made["w"], 4.0)  # its views are of its own block
    assert (made.flat._host[:35] == 4).all()


def test_pickled_parameters_come_back_on_the_gpu(gpu):
    params = fastgd.FlatParams(start(np.float32), backend=gpu.backend)
    params.grad["c"] = 2.0
    for made, given in (
        (pickle.loads(pickle.dumps(params)), params),
        (pickle.loads(pickle.dumps(params.grad)), params.grad),
        (copy.deepcopy(params.grad), params.grad),
    ):
        assert type(made) is type(given)
        assert gpu.is_own(made.flat)
        assert made.flat._host.tobytes() == given.flat._host.tobytes()
        assert made["c"]._host.ctypes.data != given["c"]._host.ctypes.data


def test_a_copied_optimizer_goes_its_own_way(gpu):
    made = []
    for where in ("numpy", gpu.backend):
        params = fastgd.FlatParams(start(np.float32), backend=where)
        opt = fastgd.LAMB(params, lr=0.1, max_norm=1.0, ema_decay=0.9)
        params.grad["w"] = 2.0
        opt.step()
        other = copy.deepcopy(opt)
        assert other.grad_norm == opt.grad_norm
        opt.step()
        other.params.grad["w"] = 3.0
        other.step()
        made.append([on_host(x).tobytes() for o in (opt, other) for x in (o.params.flat, o.ema.flat)])
    assert made[0] == made[1]


# ---- arrays that another library lends ---------------------------------------------------------------------------


class Lender:
    """Memory of the host under the name of a device's."""

    def __init__(self, array):
        self.array = array


class ByDlpack(Lender):
    streams = ()
    device = 2, 0

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams = [*self.streams, stream]
        return self.array.__dlpack__()


class ByInterface(Lender):
    stream = None

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "version": 3, "stream": self.stream}


class Tensor(ByDlpack):
    """As torch's tensor on a GPU."""

    requires_grad = False

    @property
    def __cuda_array_interface__(self):
        if self.requires_grad:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad. Use var.detach()")
        return {**self.array.__array_interface__, "version": 2}

    def __dlpack__(self, *, stream=None):
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        return super().__dlpack__(stream=stream)

    device = 2, 0


Tensor.__module__ = "torch"


@pytest.fixture
def torch(monkeypatch):
    """Module of that name whose current stream can be set."""
    made = types.ModuleType("torch")
    made.stream = 0
    made.cuda = types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(cuda_stream=made.stream))
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


@pytest.mark.parametrize("lender", [ByDlpack, ByInterface, Tensor])
def test_lent_arrays_are_updated_in_place(cupy, torch, lender):
    ours = np.linspace(-1, 1, 70, dtype=np.float32)
    theirs = lender(ours.copy())
    g = np.cos(ours)
    for params, gradient in ((ours, g), (theirs, lender(g.copy()))):
        opt = fastgd.AdamW(params, lr=0.1, max_norm=1.0)
        for _ in range(3):
            opt.step(gradient)
    assert opt.backend == "cupy"
    assert theirs.array.tobytes() == ours.tobytes()
    # and as a dict, beside CuPy's own
    q = lender(np.ones(3, np.float32))
    opt = fastgd.SGD({"a": q, "b": cupy.ones(2, np.float32)}, lr=1.0)
    opt.step({"a": cupy.ones(3, np.float32), "b": lender(np.ones(2, np.float32))})
    assert q.array.tolist() == [0, 0, 0]


def test_flat_parameters_copy_what_is_lent(cupy, torch):
    for lender in (ByDlpack, ByInterface, Tensor):
        params = fastgd.FlatParams({"w": lender(np.ones((2, 3), np.float32))})
        assert params.backend == "cupy"
        assert params.dtype == np.float32
        assert params["w"]._host.tolist() == [[1.0] * 3] * 2


def test_the_lender_is_told_the_stream_of_the_step(cupy):
    params, g = ByDlpack(np.ones(4)), ByDlpack(np.ones(4))
    opt = fastgd.SGD(params)
    opt.step(g)
    assert set(g.streams) == {1}  # the legacy default stream, as the protocol has it
    stream = cupy.cuda.Stream()
    with stream:
        opt.step(g)
    assert g.streams[-1] == params.streams[-1] == stream.ptr


def test_a_tensor_that_requires_a_gradient_names_the_way_out(cupy, torch):
    p = Tensor(np.ones(3))
    p.requires_grad = True
    with pytest.raises(ArrayError, match=r"^params cannot be shared with CuPy, given Tensor: .*: pass x\.detach\(\)$"):
        fastgd.SGD(p)
    with pytest.raises(ArrayError, match=r"^'w' cannot be shared with CuPy, given Tensor: .*: pass x\.detach\(\)$"):
        fastgd.FlatParams({"w": p})


def test_a_tensor_of_another_stream_is_refused(cupy, torch):
    p, g = Tensor(np.ones(3)), Tensor(np.ones(3))
    opt = fastgd.SGD(p, lr=1.0)
    torch.stream = 0x70
    message = (
        r"is a tensor of torch, whose current stream is 0x70, and CuPy's is 0x0: step inside "
        r"`with cupy\.cuda\.Stream\.from_external\(torch\.cuda\.current_stream\(\)\):`$"
    )
    with pytest.raises(ArrayError, match=r"^params " + message):
        opt.step(g)
    with pytest.raises(ArrayError, match=r"^params " + message):
        fastgd.SGD(p)
    assert p.array.tolist() == [1, 1, 1]
    assert opt.t == 0
    with cupy.cuda.Stream.from_external(types.SimpleNamespace(__cuda_stream__=lambda: (0, 0x70))):
        opt.step(g)
    assert p.array.tolist() == [0, 0, 0]
    torch.stream = 1  # another name of the default stream
    opt.step(g)
    own = fastgd.SGD(cupy.ones(3), lr=1.0)
    torch.stream = 0x70
    with pytest.raises(ArrayError, match=r"^grads " + message):
        own.step(g)
    assert own.t == 0


def test_lent_parameters_that_have_moved_are_refused(cupy):
    p = ByDlpack(np.ones(3))
    opt = fastgd.SGD(p)
    opt.step(cupy.ones(3))
    p.array = kept = np.ones(3)
    with pytest.raises(ArrayError, match="given a ByDlpack that has been moved in memory"):
        opt.step(cupy.ones(3))
    assert kept.tolist() == [1, 1, 1]


def test_jax_arrays_are_read_and_not_written(cupy):
    class Array(ByDlpack):
        pass

    Array.__module__ = "jaxlib._jax"
    with pytest.raises(ArrayError, match=r"^params must be writeable, given a Array of jaxlib, which is immutable$"):
        fastgd.SGD(Array(np.ones(3)))
    p = cupy.ones(3)
    with pytest.raises(ArrayError, match=r"^grads must be writeable, given a Array of jaxlib, which is immutable$"):
        fastgd.SGD(p, zero_grad=True).step(Array(np.ones(3)))
    fastgd.SGD(p, lr=1.0).step(Array(np.ones(3)))
    assert p._host.tolist() == [0, 0, 0]


def test_what_its_library_does_not_lend_is_refused(cupy):
    class Odd(ByDlpack):
        def __dlpack__(self, *, stream=None):
            raise BufferError("sparse\nand more")

    with pytest.raises(ArrayError, match=r"^params cannot be shared with CuPy, given Odd: sparse$"):
        fastgd.SGD(Odd(np.ones(3)))


# ---- what is refused ---------------------------------------------------------------------------------------------

REFUSED = "CuPy is not installed", ADD_CUPY


@pytest.mark.parametrize(
    "build",
    [
        lambda: fastgd.SGD(np.ones(3), backend="cupy"),
        lambda: fastgd.FlatParams({"w": 3}, backend="cupy"),
        lambda: fastgd.FlatParams({"w": 3}).to("cupy"),
        lambda: fastgd.SGD(ByInterface(np.ones(3))),
        lambda: fastgd.SGD([ByDlpack(np.ones(3))]),
        lambda: fastgd.FlatParams({"w": ByDlpack(np.ones(3))}),
        lambda: fastgd.SGD(np.ones(3)).step(ByDlpack(np.ones(3))),
        lambda: fastgd.functional.sgd_(ByDlpack(np.ones(3)), ByDlpack(np.ones(3)), 1),
        lambda: fastgd.minimize(lambda x: x, ByDlpack(np.ones(3)), jac=lambda x: x),
    ],
)
def test_without_cupy_the_reason_and_the_command_are_named(monkeypatch, build):
    monkeypatch.setattr(backend, "_SERVING", set())
    monkeypatch.setattr(backend, "cupy_refusal", lambda: REFUSED)
    with pytest.raises(BackendUnavailable) as caught:
        build()
    assert str(caught.value) == f"backend 'cupy': {REFUSED[0]}; {REFUSED[1]}"


def test_without_a_driver_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(backend, "_SERVING", set())
    monkeypatch.setattr(backend, "find_driver", lambda: (None, "there is no NVIDIA driver here"))
    monkeypatch.setattr(backend.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backend, "_version", lambda name: "14.2")
    with pytest.raises(BackendUnavailable, match=r"^backend 'cupy': there is no NVIDIA driver here; run on a machine"):
        fastgd.FlatParams({"w": 3}, backend="cupy")
    monkeypatch.setattr(backend, "_version", lambda name: "13.0")
    with pytest.raises(BackendUnavailable, match=r"CuPy 13\.0 is installed, and 14 is the oldest .* --upgrade cupy-"):
        fastgd.FlatParams({"w": 3}, backend="cupy")


def test_cupys_backend_is_named_to_those_who_ask_for_a_gpu():
    hint = "CuPy's arrays are served by 'cupy', Numba's by 'numba-cuda'"
    with pytest.raises(BackendUnavailable, match=rf"given 'cuda'; {hint}$"):
        fastgd.SGD(np.ones(3), backend="cuda")


def test_read_only_memory_of_another_library_is_not_written(cupy):
    class Lent:
        def __init__(self, array):
            interface = array.__cuda_array_interface__
            self.__cuda_array_interface__ = {**interface, "data": (interface["data"][0], True)}

    p, g = cupy.ones(4), cupy.ones(4)
    with pytest.raises(ArrayError, match=r"^params must be writeable, given a read-only Lent$"):
        fastgd.SGD(Lent(p))
    fastgd.SGD(p, lr=1.0).step(Lent(g))
    assert not p._host.any()


def test_what_computes_the_gradients_of_a_captured_step_must_be_callable(cupy):
    opt = fastgd.SGD(fastgd.FlatParams({"w": 3}, backend="cupy"))
    with pytest.raises(HyperparameterError, match=r"^before must be callable, given 3$"):
        opt.capture(before=3)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_backend_of_the_host_is_refused_for_arrays_of_a_gpu(cupy, name):
    for params in (
        cupy.ones(3),
        [cupy.ones(3)],
        fastgd.FlatParams({"w": 3}, backend="cupy"),
        [{"params": {"w": cupy.ones(3)}}],
    ):
        with pytest.raises(BackendUnavailable) as caught:
            fastgd.SGD(params, backend=name)
        assert str(caught.value) == (
            f"backend {name!r} does not serve arrays on a GPU, where params lie: pass backend='auto', or copies on the "
            "host, as of params.to('numpy') and x.get()"
        )
    with pytest.raises(BackendUnavailable, match="does not serve arrays on a GPU"):
        fastgd.minimize(lambda x: x, cupy.ones(3), jac=lambda x: x, backend=name)


def test_the_gpu_is_refused_for_arrays_of_the_host(cupy):
    for params in (np.ones(3), [np.ones(3)], fastgd.FlatParams({"w": 3}), [{"params": {"w": np.ones(3)}}]):
        with pytest.raises(BackendUnavailable) as caught:
            fastgd.SGD(params, backend="cupy")
        assert str(caught.value) == (
            "backend 'cupy' does not serve arrays on the host, where params lie: pass backend='auto', or copies on a "
            "GPU, as of params.to('cupy') and cupy.asarray(x)"
        )


def test_params_in_two_memories_are_refused(cupy):
    with pytest.raises(ArrayError, match=r"^params must lie in one memory, given arrays on the host and on a GPU$"):
        fastgd.SGD([np.ones(3), cupy.ones(3)])
    opt = fastgd.SGD(cupy.ones(3))
    with pytest.raises(ArrayError, match=r"^params must lie in one memory"):
        opt.add_param_group({"params": np.ones(3)})
    assert len(opt.param_groups) == 1


def test_gradients_in_the_other_memory_are_refused(cupy):
    for params, grads, message in (
        (cupy.ones(3), np.ones(3), "grads lies on the host and the parameters on a GPU: move it there"),
        (np.ones(3), cupy.ones(3), "grads lies on a GPU and the parameters on the host: move it there"),
        (
            {"w": cupy.ones(3)},
            {"w": np.ones(3)},
            r"grads\['w'\] lies on the host and the parameters on a GPU: move it there",
        ),
        (
            fastgd.FlatParams({"w": 3}, np.float64, "cupy"),
            fastgd.FlatParams({"w": 3}, np.float64).grad,
            "grads lies on the host and the parameters on a GPU: move it there",
        ),
        (
            fastgd.FlatParams({"w": 3}, np.float64),
            {"w": cupy.ones(3)},
            r"grads\['w'\] lies on a GPU and the parameters on the host: move it there",
        ),
    ):
        opt = fastgd.SGD(params)
        for refused in (opt.step, opt.accumulate, opt.report):
            with pytest.raises(ArrayError, match=f"^{message}$"):
                refused(grads)
        assert opt.t == opt.accumulated == 0
    opt = fastgd.SGD(np.ones(3))
    with pytest.raises(HyperparameterError, match=r"^capture\(\) records what runs on a GPU, given backend 'numba'$"):
        opt.capture(np.ones(3))


def test_arrays_that_no_kernel_takes_are_refused(cupy):
    for given, message in (
        (cupy.ones(3, np.int64), "must be float32 or float64, given dtype int64"),
        (cupy.ones(3, np.float16), "must be float32 or float64, given dtype float16"),
        (
            cupy.ones((2, 3)).T,
            r"must be C-contiguous, given shape \(3, 2\) with strides \(8, 24\): it is updated in place, so pass "
            r"cupy\.ascontiguousarray\(x\) and keep that",
        ),
        (
            cupy.ones(8)[::2],
            r"must be C-contiguous, given shape \(4,\) with strides \(16,\): it is updated in place, so pass "
            r"cupy\.ascontiguousarray\(x\) and keep that",
        ),
    ):
        with pytest.raises(ArrayError, match=f"^params {message}$"):
            fastgd.SGD(given)
        p = cupy.ones(given.shape)
        opt = fastgd.SGD(p)
        with pytest.raises(ArrayError, match=f"^grads {message}$"):
            opt.step(given)
        assert opt.t == 0
        assert (p._host == 1).all()
    shifted = np.zeros(33, np.uint8)[1:].view(np.float64)
    with pytest.raises(ArrayError, match=r"^params must be aligned to its 8 byte elements, given a shifted view$"):
        fastgd.SGD(ByInterface(shifted))


def test_gradients_of_another_shape_or_dtype_are_refused(cupy):
    params = fastgd.FlatParams({"w": (2, 3), "b": 3}, np.float64, "cupy")
    opt = fastgd.SGD(params)
    for grads, message in (
        (cupy.ones(6), r"grads must have shape \(67,\), given \(6,\)"),
        ({"w": cupy.ones(6), "b": cupy.ones(3)}, r"grads\['w'\] must have shape \(2, 3\), given \(6,\)"),
        (
            {"w": cupy.ones((2, 3), np.float32), "b": cupy.ones(3)},
            r"grads\['w'\] must have the parameters' dtype float64, given float32",
        ),
        ({"w": cupy.ones((2, 3))}, "grads must be a dict with 'w', 'b', given a dict with 'w'"),
    ):
        with pytest.raises(ArrayError, match=f"^{message}$"):
            opt.step(grads)
    with pytest.raises(ArrayError, match=r"^params must have one dtype, given float32 and float64$"):
        fastgd.SGD([cupy.ones(3), cupy.ones(3, np.float32)])
    assert not params.flat._host.any()
    assert opt.t == 0


def test_overlapping_memory_is_refused(cupy):
    x = cupy.ones(130)
    with pytest.raises(
        ArrayError, match=r"^params must not share memory: an array, or a part of one, was given twice$"
    ):
        fastgd.SGD([x[:70], x[60:]])
    opt = fastgd.SGD(x[:64])
    for g in (x[:64], x[32:96]):
        with pytest.raises(ArrayError, match=r"must not share memory: a step would read what it has written$"):
            opt.step(g)
    opt.step(x[64:128])
    with pytest.raises(ArrayError, match=r"^grads must not share memory"):
        fastgd.SGD([cupy.ones(3), cupy.ones(3)], zero_grad=True).step([x[:3], x[2:5]])


def test_arrays_of_another_device_than_the_current_one_are_refused(cupy):
    with cupy.cuda.Device(1):
        there = cupy.ones(3)
        params = fastgd.FlatParams({"w": 3}, backend="cupy")
        opt = fastgd.SGD(there, lr=1.0, max_norm=100.0)
        g = cupy.ones(3)
        opt.step(g)
    message = (
        r"lies on device 1, and the current one is 0: build and step the optimizer inside "
        r"`with cupy\.cuda\.Device\(1\):`, with all its arrays there$"
    )
    for given in (there, params):
        with pytest.raises(ArrayError, match=r"^params " + message):
            fastgd.SGD(given)
    with pytest.raises(ArrayError, match=r"^params\[1\] " + message):
        fastgd.SGD([cupy.ones(3), there])
    here = fastgd.SGD(cupy.ones(3))
    with pytest.raises(ArrayError, match=r"^grads " + message):
        here.step(there)
    assert here.t == 0
    # gradients that are known already are not looked at again: the step itself is refused
    for name, call in (
        ("step", lambda: opt.step(g)),
        ("accumulate", lambda: opt.accumulate(g)),
        ("capture", lambda: opt.capture(g)),
        ("report", lambda: opt.report(g)),
        ("add_param_group", lambda: opt.add_param_group({"params": cupy.ones(3)})),
    ):
        with pytest.raises(ArrayError, match=rf"^{name}\(\) must be called where params lie, on device 1, and"):
            call()
    assert there._host.tolist() == [0, 0, 0]
    with cupy.cuda.Device(1):
        opt.step(g)
    assert opt.t == 2


@pytest.mark.parametrize("threads", [2, 0])
def test_threads_are_refused(cupy, threads):
    with pytest.raises(HyperparameterError, match=r"^threads must be None or 1 with backend 'cupy', given"):
        fastgd.SGD(cupy.ones(3), threads=threads)
    fastgd.SGD(cupy.ones(3), threads=1)


@pytest.mark.parametrize("rule", ["Muon", "Adafactor", "CAME"])
def test_rules_of_matrices_are_refused_as_not_served_yet(cupy, rule):
    message = (
        f"^{rule} works on whole matrices, which backend 'cupy' does not serve yet: move the parameters to the host"
    )
    p = cupy.ones((3, 4))
    with pytest.raises(HyperparameterError, match=message):
        getattr(fastgd, rule)(p)
    with pytest.raises(HyperparameterError, match=message):
        fastgd.minimize(lambda x: x.sum(), p, jac=lambda x: x, method=rule.lower())
    shapes = {"Muon": [(3, 4)], "Adafactor": [(3,), (4,)], "CAME": [(3, 4), (3,), (4,), (3,), (4,)]}[rule]
    with pytest.raises(HyperparameterError, match=message):
        getattr(fastgd.functional, f"{rule.lower()}_")(p, cupy.ones((3, 4)), *map(cupy.ones, shapes), 1)
    assert (p._host == 1).all()


@pytest.mark.parametrize("build", [fastgd.LAMB, fastgd.NAdam])
def test_memory_that_does_not_suffice_leaves_nothing_half_made(cupy, build):
    """At every allocation of construction and of the first step."""
    tail = dict(lr=0.1, max_norm=1.0, ema_decay=0.9)
    w, g = cupy.ones(70), cupy.ones(70)
    expected = cupy.ones(70)
    opt = build(expected, **tail)
    opt.step(g)
    failed_at = set()
    for k in range(200):
        w.fill(1)
        fake_cupy.allocations_left = k
        made = None
        try:
            made = build(w, **tail)
            made.step(g)
        except MemoryError as error:
            assert "\n" not in str(error)
            failed_at.add("construction" if made is None else "step")
            assert (w._host == 1).all()
            if made is not None:
                fake_cupy.allocations_left = math.inf
                assert made.t == 0
                made.step(g)
                assert w._host.tobytes() == expected._host.tobytes()
            continue
        finally:
            fake_cupy.allocations_left = math.inf
        break
    else:
        pytest.fail("it never fits")
    assert failed_at == {"construction", "step"}
    assert w._host.tobytes() == expected._host.tobytes()


def test_memory_that_does_not_suffice_for_gradients_that_lie_otherwise_leaves_the_optimizer_as_it_was(cupy):
    w, g, shifted = cupy.ones(70), cupy.ones(70), cupy.ones(71)
    opt = fastgd.LAMB(w, lr=0.1, max_norm=1.0)
    opt.step(g)
    before = w._host.tobytes()
    for k in range(2):
        fake_cupy.allocations_left = k
        with pytest.raises(MemoryError):
            opt.step(shifted[1:])
        fake_cupy.allocations_left = math.inf
        assert opt.t == 1
        assert w._host.tobytes() == before
    opt.step(shifted[1:])
    assert opt.t == 2


def test_memory_that_does_not_suffice_for_a_group_more_leaves_the_optimizer_as_it_was(cupy):
    w, more = cupy.ones(70), cupy.ones(5)
    opt = fastgd.LAMB(w, lr=0.1, ema_decay=0.9, max_norm=1.0)
    opt.step(cupy.ones(70))
    for k in range(200):
        fake_cupy.allocations_left = k
        try:
            opt.add_param_group({"params": more})
        except MemoryError:
            fake_cupy.allocations_left = math.inf
            assert len(opt.param_groups) == 1
            continue
        fake_cupy.allocations_left = math.inf
        break
    assert k > 5
    opt.step([cupy.ones(70), cupy.ones(5)])
    assert opt.t == 2


def test_parameters_that_do_not_fit_raise_an_error_of_memory(cupy):
    with pytest.raises(MemoryError, match=r"^137,438,953,472 bytes do not fit into the GPU's memory: "):
        fastgd.FlatParams({"w": 2**35}, backend="cupy")


def test_a_compiler_that_fails_leaves_the_optimizer_as_it_was(cupy, monkeypatch):
    from fastgd.kernels import cubin

    compile_ = cubin.cubin

    def fail(text, arch, label):
        raise FastGDError("drill")

    for build in (fastgd.LAMB, fastgd.Lion):
        w = cupy.ones(70)
        opt = build(w, lr=0.25)
        cuda_cupy = sys.modules["fastgd.kernels.cuda_cupy"]
        cuda_cupy._module.cache_clear()
        monkeypatch.setattr(cuda_cupy, "cubin", fail)
        for _ in range(2):
            with pytest.raises(FastGDError, match=r"^drill$"):
                opt.step(cupy.ones(70))
            assert (w._host == 1).all()
            assert opt.t == 0
        monkeypatch.setattr(cuda_cupy, "cubin", compile_)
        opt.step(cupy.ones(70))
        assert opt.t == 1
        assert (w._host != 1).all()
