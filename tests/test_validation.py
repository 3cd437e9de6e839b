"""What is refused: in one line that names what was given and what is expected, before a byte is written."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import fastgd
from fastgd import backend as backends
from fastgd.kernels.errors import ArrayError, BackendUnavailable, FastGDError, HyperparameterError

NAN, INF = math.nan, math.inf


class Subclass(np.ndarray):
    pass


def shifted(n=4):
    """Doubles that start one byte behind where they should."""
    return np.frombuffer(bytearray(8 * n + 1), np.uint8)[1:].view(np.float64)


def read_only(n=4):
    array = np.ones(n)
    array.flags.writeable = False
    return array


class OnGpu:
    def __init__(self):
        self.__cuda_array_interface__ = dict(shape=(4,), typestr="<f8", data=(1, False), version=3)


class Foreign:
    """Speaks DLPack, and says where it lies."""

    def __init__(self, device):
        self.device = device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **_):
        raise BufferError("the memory of another device")


# Arrays of four doubles that no kernel can use: name, array, what the message says of it.
ARRAYS = [
    ("list", [1.0, 2.0, 3.0, 4.0], "list|float"),
    ("number", 3.0, "float"),
    ("scalar", np.float64(3.0), "float64"),
    ("none", None, "NoneType|carry no grad"),
    ("string", "grad", "str"),
    ("object", np.array([1, 2, 3, 4], object), "O"),
    ("integers", np.ones(4, int), "i8"),
    ("booleans", np.ones(4, bool), "b1"),
    ("complex", np.ones(4, complex), "c16"),
    ("half", np.ones(4, np.float16), "f2"),
    ("long double", np.ones(4, np.longdouble), "f16"),
    ("foreign byte order", np.ones(4, ">f8"), ">f8"),
    ("structured", np.ones(4, [("x", float)]), "V8|x"),
    ("masked", np.ma.ones(4), "MaskedArray"),
    ("matrix", np.ones(4).view(np.matrix), "matrix"),
    ("record", np.ones(4).view(np.recarray), "recarray"),
    ("subclass", np.ones(4).view(Subclass), "Subclass"),
    ("every second", np.ones(8)[::2], "strides"),
    ("backwards", np.ones(4)[::-1], "strides"),
    ("broadcast", np.broadcast_to(np.ones(1), 4), "strides"),
    ("unaligned", shifted(), "shifted"),
    ("on another device", Foreign((10, 0)), "Foreign.*memory of another device"),
]
SHAPES = [
    ("too long", np.ones(5), r"shape \(4,\), given \(5,\)"),
    ("without elements", np.ones(0), r"shape \(4,\), given \(0,\)"),
    ("too short", np.ones(3), r"shape \(4,\), given \(3,\)"),
    ("a column", np.ones((4, 1)), r"shape \(4,\), given \(4, 1\)"),
    ("a dimension more", np.ones((1, 4)), r"given \(1, 4\)"),
    ("no dimension", np.array(1.0), r"given \(\)"),
    ("single", np.ones(4, np.float32), "dtype float64, given float32"),
]


def whole_line(caught):
    message = str(caught.value)
    assert message and "\n" not in message
    assert "given" in message or "share memory" in message or "must be given" in message
    return message


def four(**hyper):
    p = np.arange(1.0, 5.0)
    opt = fastgd.AdamW(p, **hyper)
    opt.step(np.ones(4))
    return p, opt


def everything(opt, p, *more):
    arrays = [p, *more, *(opt.state[name] for name in opt.state), *([] if opt.ema is None else [opt.ema])]
    return opt.t, [a.tobytes() for a in arrays], repr(opt.param_groups)


def refused(opt, p, error, message, *arguments, more=(), **keywords):
    before = everything(opt, p, *more)
    with pytest.raises(error, match=message) as caught:
        opt.step(*arguments, **keywords)
    whole_line(caught)
    assert everything(opt, p, *more) == before
    opt.step(np.ones(4))  # and it can go on
    assert opt.t == before[0] + 1


@pytest.mark.parametrize("given", [OnGpu(), Foreign((2, 0))], ids=["CUDA's interface", "DLPack"])
def test_arrays_of_a_gpu_need_one(given, monkeypatch):
    monkeypatch.setattr(backends, "_SERVING", set())
    monkeypatch.setattr(backends, "cupy_refusal", lambda: ("there is no driver", "get one"))
    p = np.ones(4)
    opt = fastgd.SGD(p)
    for refused in (lambda: fastgd.SGD(given), lambda: opt.step(given), lambda: fastgd.functional.gd_(p, given, 1)):
        with pytest.raises(BackendUnavailable, match=r"^backend 'cupy': there is no driver; get one$"):
            refused()
    assert p.tolist() == [1] * 4 and opt.t == 0


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize(("given", "message"), [pytest.param(*a[1:], id=a[0]) for a in ARRAYS + SHAPES])
def test_gradients(given, message, backend):
    p, opt = four(backend=backend, ema_decay=0.9)
    refused(opt, p, ArrayError, message, given)


@pytest.mark.parametrize(
    ("given", "message"), [pytest.param(*a[1:], id=a[0]) for a in [*ARRAYS, ("read-only", read_only(), "read-only")]]
)
def test_parameters(given, message):
    before = np.array(given).tobytes() if isinstance(given, np.ndarray) else None
    for params in (given, {"w": given}) if not isinstance(given, list | str) else (given,):
        with pytest.raises(ArrayError, match=message.replace("|carry no grad", "")) as caught:
            fastgd.AdamW(params)
        whole_line(caught)
    if before is not None:
        assert np.array(given).tobytes() == before


def test_a_gradient_that_is_only_read_may_be_read_only():
    _, opt = four()
    opt.step(read_only())
    assert opt.t == 2
    _, opt = four(zero_grad=True)
    with pytest.raises(ArrayError, match="writeable, given a read-only"):
        opt.step(read_only())


def memory_of(opt, p):
    yield "params", p
    yield "exp_avg", opt.state["exp_avg"]
    yield "exp_avg_sq", opt.state["exp_avg_sq"]
    yield "ema", opt.ema


@pytest.mark.parametrize("shift", [0, 1, 3], ids=["whole", "from the second", "the last"])
@pytest.mark.parametrize("which", range(4), ids=["p", "m", "v", "ema"])
def test_gradients_in_memory_that_is_written(which, shift):
    block = np.arange(16.0)
    p = block[4:8]
    opt = fastgd.AdamW(p, ema_decay=0.5)
    name, array = list(memory_of(opt, p))[which]
    base = np.lib.stride_tricks.as_strided(array, (8,), (8,))  # four more doubles behind it
    overlapping = base[shift : shift + 4]
    with pytest.raises(ArrayError, match=f"{name}.*grads|grads.*{name}") as caught:
        opt.step(overlapping)
    assert "share memory" in whole_line(caught)
    assert block.tolist() == list(range(16))
    assert opt.t == 0
    opt.step(block[8:12])  # beside it is no overlap
    assert opt.t == 1


def test_parameters_that_share_memory():
    own = np.ones(8)
    for params in ([own, own], {"a": own[:5], "b": own[4:]}, [{"params": own}, {"params": [own[7:]]}]):
        with pytest.raises(ArrayError, match="share memory"):
            fastgd.SGD(params)
    fastgd.SGD([own[:4], own[4:]])


def test_gradients_may_share_memory_unless_they_are_zeroed():
    p, g = [np.zeros(3), np.zeros(3)], np.ones(3)
    fastgd.SGD(p, lr=1.0).step([g, g])
    assert [a.tolist() for a in p] == [[-1] * 3] * 2
    with pytest.raises(ArrayError, match="grads must not share memory"):
        fastgd.SGD(p, zero_grad=True).step([g, g])
    assert g.tolist() == [1] * 3


NUMBERS = [NAN, INF, -INF, "0.1", None, 1j, [0.1], np.ones(2), True, object()]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_hyperparameters(name, value):
    with pytest.raises(HyperparameterError, match=rf"AdamW: {name} must be .*, given") as caught:
        fastgd.AdamW(np.ones(3), **{name: value})
    whole_line(caught)
    p, opt = four()
    opt.param_groups[0][name] = value
    before = everything(opt, p)
    with pytest.raises(HyperparameterError, match=name):
        opt.step(np.ones(4))
    assert everything(opt, p) == before
    opt.param_groups[0][name] = 0.5
    opt.step(np.ones(4))


@pytest.mark.parametrize("value", [NAN, INF, -INF, "2", None, 1j, True, np.ones(2), 1e39, object()], ids=repr)
def test_scale(value):
    p = np.ones(4, np.float32)
    opt = fastgd.AdamW(p)
    with pytest.raises(HyperparameterError, match=r"scale must be a number.*given") as caught:
        opt.step(np.ones(4, np.float32), scale=value)
    whole_line(caught)
    assert (opt.t, p.tolist()) == (0, [1.0] * 4)


def test_numbers_of_other_kinds_are_numbers():
    for value in (1, np.float32(0.5), np.int8(2), Fraction(1, 4)):
        p = np.zeros(2)
        fastgd.SGD(p, lr=value).step(np.ones(2))
        assert p.tolist() == [-float(value)] * 2
    with pytest.raises(HyperparameterError, match="Decimal"):
        fastgd.SGD(np.zeros(2), lr=Decimal(1))


OWN = np.ones(3)

CALLS = [
    (lambda: fastgd.SGD(OWN, lr=-1), HyperparameterError, "lr must be at least 0, given -1"),
    (lambda: fastgd.SGD(OWN, momentum=1.0), HyperparameterError, "below 1, given 1.0"),
    (lambda: fastgd.SGD(OWN, nesterov=True), HyperparameterError, "momentum above 0"),
    (lambda: fastgd.SGD(OWN, nesterov=1), HyperparameterError, "True or False, given 1"),
    (lambda: fastgd.Adam(OWN, betas=0.9), HyperparameterError, "2 numbers, given 0.9"),
    (lambda: fastgd.Adam(OWN, betas=(0.9, 0.99, 0.9)), HyperparameterError, "2 numbers"),
    (lambda: fastgd.Adam(OWN, betas=(0.9, 1.0)), HyperparameterError, "below 1"),
    (lambda: fastgd.Adam(OWN, betas=(-0.1, 0.9)), HyperparameterError, "at least 0"),
    (lambda: fastgd.Adam(OWN, betas=(NAN, 0.9)), HyperparameterError, "given nan"),
    (lambda: fastgd.Adam(OWN, betas="ab"), HyperparameterError, "given 'ab'"),
    (lambda: fastgd.Adam(OWN, eps_mode="under"), HyperparameterError, "given 'under'"),
    (lambda: fastgd.Adam(OWN, eps_mode=1), HyperparameterError, "given 1"),
    (lambda: fastgd.Adam(OWN, max_norm=0), HyperparameterError, "max_norm must be a number, above 0, given 0"),
    (lambda: fastgd.Adam(OWN, max_norm=NAN), HyperparameterError, "max_norm.*given nan"),
    (lambda: fastgd.Adam(OWN, max_norm="1"), HyperparameterError, "max_norm.*given '1'"),
    (lambda: fastgd.Adam(OWN, ema_decay=1), HyperparameterError, "ema_decay must be .* below 1, given 1"),
    (lambda: fastgd.Adam(OWN, ema_decay=-0.5), HyperparameterError, "ema_decay"),
    (lambda: fastgd.Adam(OWN, on_nonfinite="ignore"), HyperparameterError, "given 'ignore'"),
    (lambda: fastgd.Adam(OWN, on_nonfinite=["skip"]), HyperparameterError, r"given \['skip'\]"),
    (lambda: fastgd.Adam(OWN, maximize=1), HyperparameterError, "maximize must be True or False, given 1"),
    (lambda: fastgd.Adam(OWN, zero_grad="yes"), HyperparameterError, "zero_grad must be True or False, given 'yes'"),
    (lambda: fastgd.Adam(OWN, state_dtype="bfloat16"), HyperparameterError, "state_dtype.*given 'bfloat16'"),
    (lambda: fastgd.Adam(OWN, threads=0), HyperparameterError, "from 1 to .*, given 0"),
    (lambda: fastgd.Adam(OWN, threads=2.0), HyperparameterError, "given 2.0"),
    (lambda: fastgd.Adam(OWN, backend="numpy", threads=2), HyperparameterError, "threads.*given 2"),
    (lambda: fastgd.Adam(OWN, backend="torch"), BackendUnavailable, "one of .*'numba'.*given 'torch'"),
    (lambda: fastgd.Adam(OWN, backend=None), BackendUnavailable, "given None"),
    (lambda: fastgd.Adam(OWN, backend=["numba"]), BackendUnavailable, "given \\['numba'\\]"),
    (lambda: fastgd.Adam(OWN, backend="cupy"), BackendUnavailable, "'cupy': .*; "),
    (lambda: fastgd.Adam(OWN, backend="numba-cuda"), BackendUnavailable, "'numba-cuda': .*; "),
    (lambda: fastgd.Optimizer(OWN, "adam"), HyperparameterError, "must be a Rule.*given 'adam'"),
    (lambda: fastgd.Optimizer(OWN, fastgd.Adam), HyperparameterError, "must be a Rule"),
    (lambda: fastgd.SGD([OWN, np.ones(3, np.float32)]), ArrayError, "one dtype, given float32 and float64"),
    (lambda: fastgd.SGD([{"params": OWN, "lrr": 1}]), HyperparameterError, "no 'lrr'"),
    (lambda: fastgd.SGD([{"params": OWN, "match": "*"}]), HyperparameterError, "either 'params' or 'match', given"),
    (lambda: fastgd.SGD([{"match": "x"}]), ArrayError, "fits no array"),
    (lambda: fastgd.SGD([{"params": OWN}, {"match": 3}]), ArrayError, "match must be .* given 3"),
    (lambda: fastgd.SGD(OWN.copy()).step(), ArrayError, "grads must be given"),
    (lambda: fastgd.SGD([OWN.copy()]).step([]), ArrayError, "a list of 1 arrays, given a list of 0"),
    (lambda: fastgd.SGD([OWN.copy()]).step({"0": OWN}), ArrayError, "a list of 1 arrays, given a dict with '0'"),
    (lambda: fastgd.SGD({"a": OWN.copy()}).step({"b": np.ones(3)}), ArrayError, "no 'a'; it has 'b'"),
    (lambda: fastgd.SGD({"a": OWN.copy()}).step({}), ArrayError, "a dict with 'a', given"),
    (lambda: fastgd.SGD({"a": OWN.copy()}).step(np.ones(3)), ArrayError, "a dict with 'a', given"),
    (lambda: fastgd.SGD(fastgd.FlatParams({"w": 3})).step(np.ones(4)), ArrayError, r"shape \(3,\), given \(4,\)"),
    (lambda: fastgd.SGD([{"params": OWN.copy()}]).step(np.ones(3)), ArrayError, "a list of 1, one for each group"),
    (lambda: fastgd.SGD(np.ones(3, np.float32), lr=1e39).step(np.ones(3, np.float32)), HyperparameterError, "1e\\+39"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_calls(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FastGDError) and error.__mro__[2] in (ValueError, RuntimeError)
    assert OWN.tolist() == [1, 1, 1]


def test_no_elements_are_a_step_that_counts():
    for params, grads in ((np.ones(0), np.ones(0)), ([np.ones((0, 3)), np.ones(2)], [np.ones((0, 3)), np.ones(2)])):
        for backend in ("numba", "numpy"):
            opt = fastgd.AdamW(params, backend=backend, max_norm=1.0, ema_decay=0.5, on_nonfinite="raise")
            opt.step(grads)
            opt.step(grads)
            assert opt.t == 2
    for empty in ([], {}, fastgd.FlatParams({})):
        opt = fastgd.AdamW(empty)
        opt.step(None if isinstance(empty, fastgd.FlatParams) else empty)
        assert opt.t == 1


def test_a_form_is_refused_also_behind_a_good_step():
    a, b, c = (np.ones(2) for _ in range(3))
    for params, good, wrong in (
        (np.zeros(2), a, [a]),
        ([np.zeros(2)], [a], a),
        ([np.zeros(2), np.zeros(2)], [a, b], [[a], b]),
        ({"x": np.zeros(2), "y": np.zeros(2)}, {"x": a, "y": b}, [a, b]),
        (
            [{"params": [np.zeros(2), np.zeros(2)]}, {"params": [np.zeros(2)]}],
            [[a, b], [c]],
            [[a], [b, c]],
        ),
        (fastgd.FlatParams({"x": 2}, "float64"), None, [None]),
    ):
        opt = fastgd.SGD(params)
        opt.step(good)
        with pytest.raises(ArrayError):
            opt.step(wrong)
        assert opt.t == 1


class Lender:
    """Lends its memory, which it may exchange."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)


def test_memory_that_is_lent_is_asked_for_at_every_step():
    p, g = np.zeros(2), Lender(np.ones(2))
    opt = fastgd.SGD(p, lr=1.0)
    opt.step(g)
    g.array = np.full(2, 100.0)
    opt.step(g)
    assert p.tolist() == [-101.0] * 2
    lent = Lender(np.zeros(2))
    opt = fastgd.SGD({"w": lent}, lr=1.0)
    opt.step({"w": np.ones(2)})
    before, lent.array = lent.array, np.zeros(2)
    with pytest.raises(ArrayError, match="must stay where they are, given a Lender"):
        opt.step({"w": np.ones(2)})
    assert (opt.t, before.tolist(), lent.array.tolist()) == (1, [-1, -1], [0, 0])


def test_keys_of_the_same_name():
    with pytest.raises(ArrayError, match="given '1' twice"):
        fastgd.SGD({1: np.ones(2), "1": np.ones(2)})


def test_numbers_that_no_float_holds():
    with pytest.raises(HyperparameterError, match="lr must be finite and at least 0, given 1000"):
        fastgd.SGD(np.ones(2), lr=10**400)
    with pytest.raises(HyperparameterError, match="scale must be a number"):
        fastgd.SGD(np.ones(2)).step(np.ones(2), scale=10**400)
    with pytest.raises(HyperparameterError, match="t must be the number"):
        fastgd.functional.gd_(np.ones(2), np.ones(2), 10**400)


def test_a_value_set_while_values_are_read_stands():
    p = np.zeros(2)

    def schedule(k):
        if k == 1:
            opt.param_groups[0]["weight_decay"] = 0.5
        return 0.1

    opt = fastgd.SGD(p, lr=schedule)
    for _ in range(3):
        opt.step(np.ones(2))
    assert opt.param_groups[0]["weight_decay"] == opt.rule.weight_decay == 0.5


def test_a_group_keeps_its_parameters():
    opt = fastgd.SGD(np.zeros(2), lr=1.0)
    opt.param_groups[0]["params"] = np.zeros(2)
    with pytest.raises(HyperparameterError, match="its params stay what they are"):
        opt.step(np.ones(2))


def test_values_of_groups():
    _, opt = four()
    group = opt.param_groups[0]
    group["lrr"] = 0.1
    with pytest.raises(HyperparameterError, match="group 0: AdamW has no 'lrr'; it has lr"):
        opt.step(np.ones(4))
    del group["lrr"], group["lr"]
    with pytest.raises(HyperparameterError, match="'lr' was taken out"):
        opt.step(np.ones(4))
    group["lr"] = 0.1
    group["amsgrad"] = True
    with pytest.raises(HyperparameterError, match="amsgrad of AdamW, which is fixed"):
        opt.step(np.ones(4))
    group |= {"amsgrad": False, "betas": [0.5, 0.5]}
    opt.step(np.ones(4))
    assert group["betas"] == (0.5, 0.5)
    assert opt.t == 2
    with pytest.raises(TypeError):
        opt.param_groups[0] = {}
    with pytest.raises(AttributeError):
        opt.t = 3
