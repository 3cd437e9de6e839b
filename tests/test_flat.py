from __future__ import annotations

import re

import numpy as np
import pytest

import fastgd
from fastgd.kernels.errors import ArrayError, BackendUnavailable


def test_segments_are_aligned_views_in_their_shapes():
    params = fastgd.FlatParams({"w": np.arange(6.0).reshape(2, 3), "e": (0, 4), "b": (5,), "s": ()}, dtype="float32")
    assert [tuple(s) for s in params.segments] == [
        ("w", 0, 6, (2, 3)),
        ("e", 64, 0, (0, 4)),
        ("b", 64, 5, (5,)),
        ("s", 128, 1, ()),
    ]
    assert params.flat.shape == (129,)
    assert params.flat.ctypes.data % 64 == 0
    assert params.grad.flat.ctypes.data % 64 == 0
    assert list(params) == ["w", "e", "b", "s"]
    assert params["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    params["w"][1, 2] = 9
    params["b"] = [1, 2, 3, 4, 5]
    params["s"] = 7
    assert params.flat[5] == 9
    assert params.flat[64:69].tolist() == [1, 2, 3, 4, 5]
    assert params.flat[128] == 7
    assert not params.grad.flat.any()


def test_large_blocks_start_at_a_huge_page():
    for n, alignment in ((1 << 19) - 1, 64), (1 << 19, 1 << 21), ((1 << 20) + 3, 1 << 21):
        params = fastgd.FlatParams({"w": (n,)}, dtype="float32")
        opt = fastgd.SGD(params, momentum=0.9)
        opt.step()
        for block in (params.flat, params.grad.flat, *opt.state.values()):
            assert block.ctypes.data % alignment == 0 and block.size == n


def test_arrays_are_copied_and_copies_are_apart():
    w = np.ones(3)
    params = fastgd.FlatParams({"w": w})
    params["w"][:] = 2
    params.grad["w"][:] = 5
    other = params.to("numpy")
    other["w"][:] = 3
    assert w.tolist() == [1, 1, 1]
    assert params["w"].tolist() == [2, 2, 2]
    assert other.grad["w"].tolist() == [5, 5, 5]
    assert params.dtype == other.dtype == np.float64


def test_dtype_follows_the_arrays():
    assert fastgd.FlatParams({"w": (3,)}).dtype == np.float32
    assert fastgd.FlatParams({"w": 3}).dtype == np.float32
    assert fastgd.FlatParams({"w": np.ones(3), "b": (2,)}).dtype == np.float64
    assert fastgd.FlatParams({"w": np.ones(3, int)}, dtype="float64")["w"].tolist() == [1, 1, 1]
    assert fastgd.FlatParams({}).flat.size == 0


@pytest.mark.parametrize(
    ("arrays", "how", "message"),
    [
        ([np.ones(3)], {}, "mapping"),
        ({"a": np.ones(3), "b": np.ones(3, np.float32)}, {}, "several dtypes"),
        ({"a": np.ones(3, int)}, {}, "say dtype="),
        ({"a": np.ones(3)}, {"dtype": "float16"}, "float32 or float64"),
        ({"a": np.ones(3)}, {"dtype": "nonsense"}, "float32 or float64"),
        ({"a": np.ones(3, complex)}, {"dtype": "float64"}, "real numbers"),
        ({"a": np.ma.ones(3)}, {}, "real numbers"),
        ({"a": "text"}, {}, "real numbers"),
        ({"a": (-1, 2)}, {}, "whole numbers from 0"),
        ({"a": True}, {}, "array or a shape"),
        ({1: np.ones(3)}, {}, "names that are str"),
        ({"a": [[1.0], [1.0, 2.0]]}, {}, "array or a shape"),
    ],
)
def test_bad_arrays_are_named(arrays, how, message):
    with pytest.raises(ArrayError, match=message) as caught:
        fastgd.FlatParams(arrays, **how)
    assert "\n" not in str(caught.value)


def test_bad_assignment_changes_nothing():
    params = fastgd.FlatParams({"w": np.ones((2, 3))})
    for name, value, message in [("x", 1, "no array 'x'"), ("w", np.ones(6), r"\(2, 3\)"), ("w", 1j, "real numbers")]:
        with pytest.raises(ArrayError, match=message):
            params[name] = value
    assert params.flat.tolist() == [1] * 6


def test_backends_say_what_is_missing():
    known = fastgd.backends()
    assert list(known) == ["numpy", "numba", "numba-cuda", "cupy"]
    assert known["numba"].available
    for name in [name for name in known if not known[name].available]:
        assert known[name].reason
        assert known[name].remedy
        with pytest.raises(BackendUnavailable, match=f"'{name}': {re.escape(known[name].reason)}"):
            fastgd.FlatParams({"w": 3}, backend=name)
    with pytest.raises(BackendUnavailable, match="'tpu'"):
        fastgd.SGD(np.ones(3), backend="tpu")
