"""A rule's update inside a user's own kernels of numba-cuda: the bits of the CPU, and what the compiler makes of it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from types import FunctionType, ModuleType

import numba
import numpy as np
import pytest
from conftest import numbers, same_bits
from cuda_emulation import Kernel, emulated, needs_numba_cuda, run, without_driver
from numba import njit, typeof, types
from test_device import ELEMENTWISE, ROOT, RULE, SIZE, started, sweep

import fastgd
from fastgd.kernels import cuda_device, device
from fastgd.kernels.cpu_device import made, texts
from fastgd.kernels.errors import ArrayError, BackendUnavailable, HyperparameterError
from fastgd.kernels.plan import plan

ARCHITECTURES = [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]
README = (ROOT / "README.md").read_text()
(EXAMPLE,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "@cuda.jit" in b)


@pytest.fixture
def cuda(monkeypatch):
    """numba-cuda, whose compiler does without a driver."""
    return without_driver(monkeypatch)


@pytest.mark.parametrize(
    ("rule_class", "values", "dtype"),
    [
        pytest.param(*case.values, dtype, id=f"{case.id}-{np.dtype(dtype).name}")
        for dtype, cases in ((np.float32, ELEMENTWISE), (np.float64, {c.values[0]: c for c in ELEMENTWISE}.values()))
        for case in cases
    ],
)
def test_bits_are_those_of_the_cpu(rule_class, values, dtype):
    """The text that numba-cuda compiles, run by Numba with each rounded operation a plain one."""
    rng = np.random.default_rng(5)
    start, g = numbers(rng, SIZE, dtype, 0.05), numbers(rng, SIZE, dtype, 0.05)
    update = device(rule_class.__name__.lower(), dtype, **values)
    left = []
    for function in (update, emulated(update)):
        p = start.copy()
        states = started(update, p)
        sweep(function, steps=True)(p, g, *states, update.hyper(range(1, 5), scale=-0.3))
        left.append([p, *states])
    assert np.isnan(start).any() and not same_bits(start, left[0][0])
    assert all(same_bits(a, b) for a, b in zip(*left, strict=True))


# ---- what the compiler makes of it -------------------------------------------------------------------------------


def kernel(update, cuda):
    """A user's kernel that fuses its gradient, one subtraction, with the update; and the types it is called with."""
    element = [f"{a}[i]" for a in update.arrays]
    results = ", ".join(f"{a}[i]" for a in update.writes)
    text = (
        f"def fused({', '.join(update.arrays)}, h):\n"
        "    i = cuda.grid(1)\n"
        "    if i < p.size:\n"
        f"        {results} = update({', '.join(['p[i]', 'p[i] - g[i]', *element[2:]])}, h)\n"
    )
    names = {"cuda": cuda, "update": update}
    exec(text, names)
    h = update.hyper(1)
    array = types.Array(typeof(h)[0] if len(h) else typeof(h), 1, "C")
    return names["fused"], (*[array] * len(update.arrays), typeof(h))


def operations(ptx):
    return Counter(
        re.findall(r"^\s*(?:@!?%p\d+ )?((?:fma|mad|mul|add|sub|div|sqrt)\.\S*f(?:32|64))\s", ptx, re.MULTILINE)
    )


def unrounded(ptx):
    """Operations that a compiler may contract with others, or that are contracted; approximations too."""
    found = operations(ptx)
    return {name: n for name, n in found.items() if not re.fullmatch(r"(mul|add|sub|div|sqrt)\.rn\.f(32|64)", name)}


def linked(function, kinds, cuda, architecture):
    """PTX of a kernel as a launch has it linked, which optimises once more."""
    jitted = cuda.jit(function)
    jitted.compile(kinds)
    return jitted.overloads[kinds].inspect_lto_ptx(architecture)


@needs_numba_cuda
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"sm_{a[0]}{a[1]}")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_contracted(cuda, dtype, architecture):
    function, kinds = kernel(device("adamw", dtype), cuda)
    bits = dtype[-2:]
    for ptx in (cuda.compile_ptx(function, kinds, cc=architecture)[0], linked(function, kinds, cuda, architecture)):
        assert f".target sm_{architecture[0]}{architecture[1]}" in ptx
        assert unrounded(ptx) == {f"sub.f{bits}": 1}  # the gradient
        assert {f"{o}.rn.f{bits}" for o in ("mul", "add", "div", "sqrt")} < set(operations(ptx))
        assert "call" not in ptx and ".local" not in ptx
        assert dtype == "float64" or ".f64" not in ptx


@needs_numba_cuda
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rule_class", "values"), [pytest.param(*case.values, id=case.id) for case in ELEMENTWISE])
def test_no_rule_is_contracted(cuda, rule_class, values, dtype):
    function, kinds = kernel(device(rule_class.__name__.lower(), dtype, **values), cuda)
    ptx = linked(function, kinds, cuda, (9, 0))
    assert unrounded(ptx) == {f"sub.f{dtype[-2:]}": 1}
    assert operations(ptx).total() > 1 and "call" not in ptx and ".local" not in ptx
    assert dtype == "float64" or ".f64" not in ptx


@needs_numba_cuda
def test_the_text_for_the_cpu_would_be_contracted(cuda):
    """So the tests above see what they look for."""
    adamw = device("adamw")
    (rule_sweep,) = plan(adamw.rule).sweeps
    text = texts(rule_sweep, np.dtype("f4"))[0]
    plain = njit(error_model="numpy")(made(text, "plain", {"_math": math, "_T": np.float32}))
    function, kinds = kernel(adamw, cuda)
    function = FunctionType(function.__code__, {"cuda": cuda, "update": plain})
    assert any("fma" in name for name in unrounded(linked(function, kinds, cuda, (9, 0))))


# ---- what is refused ---------------------------------------------------------------------------------------------

CALLS = [
    ("update(p[0], p[1], p[2], h)", None, "missing a required argument"),
    ("update(p[0], p[1], p[2], p[3], p[4], h)", None, "too many positional arguments"),
    (
        "update(p, p[1], p[2], p[3], h)",
        ArrayError,
        r"^adamw: p must be one real number, given array\(float32, 1d, C\)$",
    ),
    ("update(p[0], p[1], 1j, p[3], h)", ArrayError, "^adamw: m must be one real number, given complex128$"),
    ("update(p[0], p[1], p[2], p[3], p[4])", HyperparameterError, r"h must be .* hyper\(t\) .* given float32$"),
    ("update(p[0], p[1], p[2], p[3], other)", HyperparameterError, "^adamw: .* given adam_float32_[0-9a-f]{16}$"),
]


def refused(compiler, call, error, message):
    names = {"update": device("adamw")}
    exec(f"def user(p, h, other):\n    p[0], p[1], p[2] = {call}\n", names)
    kinds = types.float32[::1], typeof(device("adamw").hyper(1)), typeof(device("adam", weight_decay=0.1).hyper(1))
    with pytest.raises(error, match=message) as caught:
        compiler(names["user"], kinds)
    assert "\n" not in str(caught.value) or "signature" in str(caught.value)  # Numba's own


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_what_is_refused_in_a_loop(call, error, message):
    from numba.core.errors import TypingError

    refused(lambda function, kinds: njit(function).compile(kinds), call, error or TypingError, message)


@needs_numba_cuda
@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_what_is_refused_in_a_kernel(cuda, call, error, message):
    from numba.cuda.core.errors import TypingError

    refused(lambda function, kinds: cuda.compile_ptx(function, kinds, cc=(9, 0)), call, error or TypingError, message)


@needs_numba_cuda
def test_another_type_does_not_widen(cuda):
    """A float64 or an integer among the arguments is rounded to the function's own type."""
    adamw, wide = device("adamw"), device("adamw", "float64")

    def user(p, g, h):
        p[0], p[1], p[2] = adamw(p[0], g[0], 0, p[2], h)

    ptx, _ = cuda.compile_ptx(user, (types.float32[::1], types.float64[::1], typeof(wide.hyper(1))), cc=(9, 0))
    assert unrounded(ptx) == {} and not any("f64" in name for name in operations(ptx))


def test_the_target_that_numba_brings_is_refused(monkeypatch):
    built_in = ModuleType("numba.cuda")
    built_in.implementation = "Built-in"
    monkeypatch.setattr(numba, "cuda", built_in, raising=False)
    with pytest.raises(
        BackendUnavailable, match=r"of numba-cuda but 'Built-in': pip install .fastgd\[cuda13\]"
    ) as caught:
        cuda_device.library()
    assert "\n" not in str(caught.value)


def test_numba_cuda_is_loaded_by_a_kernel_alone():
    code = (
        "import sys, numpy as np, fastgd; from numba import njit; adam = fastgd.kernels.device('adam')\n"
        "user = njit(lambda p, h: adam(p, p, p, p, h))\n"
        "user(np.float32(1), adam.hyper(1)); print([m for m in sys.modules if 'numba.cuda' in m or 'cuda_device' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


USER = """
import pytest
from cuda_emulation import without_driver
from fastgd.kernels import device
from numba import typeof, types
from own_rule import Descent

cuda = without_driver(pytest.MonkeyPatch())
descent = device(Descent)

@cuda.jit(cache=True)
def one(p, g, h):
    p[0] = descent(p[0], g[0], h)

one.compile((types.float32[::1], types.float32[::1], typeof(descent.hyper(1))))
(made,) = one.overloads.values()
print("neg.f32" in made.inspect_lto_ptx((9, 0)), sum(one._cache_hits.values()))
"""


@needs_numba_cuda
def test_a_cached_kernel_of_a_user_follows_the_rule(tmp_path):
    """As a cached function of the CPU does: see tests/test_device.py."""
    (tmp_path / "user.py").write_text(USER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "NUMBA_CUDA_CACHE_DIR": str(tmp_path / "cache"),
    }
    seen = []
    for sign in "-++-":
        (tmp_path / "own_rule.py").write_text(RULE.format(sign=sign))
        done = subprocess.run(
            [sys.executable, "-B", "user.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    assert seen == [["True", "0"], ["False", "0"], ["False", "1"], ["True", "1"]]


# ---- the example of the README -----------------------------------------------------------------------------------


def test_example_trains():
    run(EXAMPLE, {"np": np, "fastgd": fastgd})


@needs_numba_cuda
def test_example_is_compiled(cuda):
    names = {"np": np, "fastgd": fastgd}
    run(EXAMPLE.partition("\nn = ")[0], names)
    (function,) = (value.function for value in names.values() if isinstance(value, Kernel))
    row, table = types.float32[::1], types.float32[:, ::1]
    kinds = (row, row, row, table, table, typeof(names["adamw"].hyper(1)))
    function = FunctionType(function.__code__, {**names, "cuda": cuda})
    ptx = linked(function, kinds, cuda, (9, 0))
    assert operations(ptx)["sqrt.rn.f32"] == operations(ptx)["div.rn.f32"] == 1 and ".f64" not in ptx
