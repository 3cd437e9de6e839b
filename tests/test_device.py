"""A rule's update inside a user's own jitted functions."""

from __future__ import annotations

import doctest
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import RULE_CASES, numbers, same_bits
from numba import njit

import fastgd
from fastgd.kernels import Rule, cpu_device, device
from fastgd.kernels.errors import ArrayError, HyperparameterError, RuleError
from fastgd.kernels.plan import plan

ROOT = Path(__file__).parent.parent
PLANS = [plan(case.values[0](**case.values[1])) for case in RULE_CASES]
ELEMENTWISE = [
    case
    for case, p in zip(RULE_CASES, PLANS, strict=True)
    if p.combine is None and p.matrix is None and not p.scalar_states
]
SIZE = 1003  # odd: the vectors' rest is run too


def sweep(update, *, steps):
    """Jitted function of whole arrays, as a user would write it: one step by h, or all steps of hs."""
    call = f"update({', '.join(f'{a}[i]' for a in update.arrays)}, h)"
    lines = ["for i in range(p.size):", f"    {', '.join(f'{a}[i]' for a in update.writes)} = {call}"]
    if steps:
        lines = ["for k in range(len(h_of)):", "    h = h_of[k]", *(f"    {line}" for line in lines)]
    head = f"def sweep({', '.join(update.arrays)}, {'h_of' if steps else 'h'}):"
    names = {"update": update}
    exec("\n    ".join([head, *lines]), names)
    return njit(error_model="numpy")(names["sweep"])


def started(update, p):
    """Zeros, or what the rule wants, for each state."""
    start = {s: update.start.get(s, 0.0) for s in update.states}
    return [p.copy() if value == "p" else np.full_like(p, value) for value in start.values()]


@pytest.mark.parametrize(
    ("rule_class", "values", "dtype"),
    [
        pytest.param(*case.values, dtype, id=f"{case.id}-{np.dtype(dtype).name}")
        for dtype, cases in ((np.float32, ELEMENTWISE), (np.float64, {c.values[0]: c for c in ELEMENTWISE}.values()))
        for case in cases
    ],
)
def test_bits_are_those_of_the_optimizer(rule_class, values, dtype):
    """One gradient throughout, as a loop of all steps in one function has none from outside."""
    rng = np.random.default_rng(3)
    start, g = numbers(rng, SIZE, dtype, 0.05), numbers(rng, SIZE, dtype, 0.05)
    update = device(rule_class.__name__.lower(), dtype, **values)
    left = []
    for backend in ("numpy", "numba"):
        p = start.copy()
        opt = fastgd.Optimizer(p, rule_class(**values), backend=backend)
        for _ in range(4):
            opt.step(g, scale=0.3)
        left.append([p, *(opt.state[name][:SIZE] for name in update.states.values())])
    p = start.copy()
    states = started(update, p)
    sweep(update, steps=True)(p, g, *states, update.hyper(range(1, 5), scale=0.3))
    left.append([p, *states])
    assert np.isnan(start).any() and not same_bits(start, left[0][0])
    for other in left[1:]:
        assert all(same_bits(a, b) for a, b in zip(left[0], other, strict=True))


def test_scalars_are_those_of_prepare_rounded_once():
    adam = device("adam", weight_decay=0.1)
    rule = fastgd.kernels.rules.RULES["adam"](lr=0.3, betas=(0.7, 0.95), weight_decay=0.1)
    h = adam.hyper(np.int64(7), lr=0.3, betas=(0.7, 0.95))
    expected = {**rule.prepare(7), "gscale": 1.0}
    assert type(h).__name__ == type(adam.hyper(1)).__name__ != type(device("adam", "float64").hyper(1)).__name__
    assert set(h._fields) < set(expected) and {"step", "rs", "gscale"} < set(h._fields)
    for name, value in h._asdict().items():
        assert type(value) is np.float32 and value == np.float32(expected[name])


def test_several_steps_are_the_steps_one_by_one():
    lion = device("lion", "float64")
    schedule = lambda k: 0.5 / (1 + k)  # noqa: E731
    hs = lion.hyper(range(1, 6), lr=schedule, weight_decay=0.2, scale=-1.0)
    single = [lion.hyper(t, lr=0.5 / t, weight_decay=0.2, scale=-1.0) for t in range(1, 6)]
    assert len(hs) == 5 and list(hs) == single and hs[-2] == single[3]
    assert lion.hyper(3, lr=schedule, weight_decay=0.2, scale=-1.0) == single[2]
    assert len(lion.hyper([])) == 0

    @njit
    def take(hs, k):
        return len(hs), hs[k]

    assert [take(hs, k) for k in (0, 4, -1)] == [(5, single[0]), (5, single[4]), (5, single[4])]
    for k in (5, -6):
        with pytest.raises(IndexError, match="no such step"):
            take(hs, k)
        with pytest.raises(IndexError):
            hs[k]
    with pytest.raises(ValueError, match="read-only"):
        hs.rows[0, 0] = 1


def test_options_are_folded():
    adam = device("adam", amsgrad=True)
    assert adam.arrays == ("p", "g", "m", "v", "vmax") and adam.writes == ("p", "m", "v", "vmax")
    assert adam.states == {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}
    assert device("sgd").arrays == ("p", "g") and device("sgd", momentum=0.5).states == {"b": "momentum_buffer"}
    assert adam.rule.amsgrad and device(adam.rule, eps=1e-3).rule.eps == 1e-3
    assert device("adam", np.dtype("f4"), amsgrad=True) is adam  # and its machine code


def test_another_type_does_not_widen():
    """A float64 or an integer among the arguments is rounded to the function's own type."""
    adam, wide = device("adam"), device("adam", "float64")

    @njit
    def step(g, h):
        return adam(np.float32(0.5), g, np.float32(0.1), 0, h)

    expected = step(np.float32(0.3), adam.hyper(2))
    assert step(np.float64(np.float32(0.3)), adam.hyper(2)) == step(np.float32(0.3), wide.hyper(2)) == expected
    assert [str(made.signature.return_type) for made in step.overloads.values()] == ["UniTuple(float32 x 3)"] * 3


@dataclass(frozen=True, kw_only=True)
class Drag(Rule):
    """Pulls towards the start; keeps a state that is only read, and one that starts at 2."""

    pull: float
    lr: float = 0.1

    def init(self):
        return dict(start="p", level=2.0)

    def prepare(self, t):
        return dict(lr=self.lr / t, pull=self.pull)

    @staticmethod
    def update(p, g, start, level, *, lr, pull):
        level = level + g * g
        p = p - lr * (g / level + pull * (p - start))
        return p, level


def test_own_rule():
    drag = device(Drag, "float64", pull=0.25)
    assert (drag.arrays, drag.writes) == (("p", "g", "start", "level"), ("p", "level"))
    assert drag.start == {"start": "p", "level": 2.0}
    rng = np.random.default_rng(4)
    p, g = rng.standard_normal((2, SIZE))
    q = p.copy()
    opt = fastgd.Optimizer(q, Drag(pull=0.25), backend="numpy")
    one = sweep(drag, steps=False)
    states = started(drag, p)
    for t in range(1, 4):
        one(p, g, *states, drag.hyper(t))
        opt.step(g)
    assert same_bits(p, q) and same_bits(states[1], opt.state["level"][:SIZE])


@dataclass(frozen=True, kw_only=True)
class Counting(Rule):
    lr: float = 0.1

    def init(self):
        return dict(product=1.0)

    def prepare(self, t, product):
        return dict(lr=self.lr * product, product=product / 2)

    @staticmethod
    def update(p, g, *, lr):
        p = p - lr * g
        return p


@dataclass(frozen=True, kw_only=True)
class Scaling(Drag):
    scale: float = 1.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: device("lamb"), RuleError, r"LAMB .* sums over whole arrays \(pp, uu\)"),
        (lambda: device(Counting), RuleError, r"Counting keeps .* \(product\)"),
        (lambda: device(Scaling(pull=0.1)), RuleError, "gradient's factor"),
        (lambda: device("adagrid"), HyperparameterError, "one of .*'adam', .* given 'adagrid'"),
        (lambda: device(3), HyperparameterError, "a Rule, given 3"),
        (lambda: device("adam", "float16"), ArrayError, "given 'float16'"),
        (lambda: device("adam", "single malt"), ArrayError, "given 'single malt'"),
        (lambda: device("adam", None), ArrayError, "given None"),
        (lambda: device("adam", ">f4"), ArrayError, "given '>f4'"),
        (lambda: device("gd", beta=1), HyperparameterError, "GD has no 'beta'; it has lr"),
        (lambda: device("gd", lr=-1), HyperparameterError, "at least 0, given -1"),
        (lambda: device("adam").hyper(1, amsgrad=True), HyperparameterError, "alters amsgrad"),
        (lambda: device("sgd").hyper(1, momentum=0.9), HyperparameterError, "alters heavy"),
        (lambda: device("adam").hyper(1, decay=1), HyperparameterError, "Adam has no 'decay'"),
        (lambda: device("adam").hyper(0), HyperparameterError, "from 1, given 0"),
        (lambda: device("adam").hyper([1, 0]), HyperparameterError, "from 1, given 0"),
        (lambda: device("adam").hyper(True), HyperparameterError, "from 1, given True"),
        (lambda: device("adam").hyper(1.0), HyperparameterError, "from 1, given 1.0"),
        (lambda: device("adam").hyper([1, 2], lr=lambda k: -k), HyperparameterError, "at least 0, given -1"),
        (lambda: device("gd").hyper(1, lr=1e39), HyperparameterError, "lr is 1e[+]39, which float32 cannot hold"),
        (lambda: device("gd").hyper(1, scale=np.inf), HyperparameterError, "scale must be .* given inf"),
        (lambda: cpu_device.nonsense, AttributeError, "nonsense"),
        (lambda: fastgd.kernels.nonsense, AttributeError, "nonsense"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86 instructions")
def test_a_users_loop_is_vectorised():
    adamw = device("adamw")
    one = sweep(adamw, steps=False)
    one(*np.zeros((4, 8), np.float32), adamw.hyper(1))
    (text,) = one.inspect_asm().values()
    assert "sqrtps" in text and "divps" in text


RULE = """
from dataclasses import dataclass
from fastgd.kernels import Rule

@dataclass(frozen=True, kw_only=True)
class Descent(Rule):
    lr: float = 0.5

    def prepare(self, t):
        return dict(lr=self.lr)

    @staticmethod
    def update(p, g, *, lr):
        p = p {sign} lr * g
        return p
"""

USER = """
from fastgd.kernels import device
from numba import njit
from own_rule import Descent

descent = device(Descent, "float64")

@njit(cache=True)
def one(p, g, h):
    return descent(p, g, h)

@njit(cache=True)
def several(p, g, hs):
    for k in range(len(hs)):
        p = descent(p, g, hs[k])
    return p

print(one(1.0, 4.0, descent.hyper(1)), several(1.0, 4.0, descent.hyper(range(1, 4))))
print(sum(one.stats.cache_hits.values()), sum(several.stats.cache_hits.values()))
"""


def test_a_cached_function_of_a_user_follows_the_rule(tmp_path):
    """Taken from the cache while the rule stands, compiled anew when it is edited; taken again when it is put back."""
    (tmp_path / "user.py").write_text(USER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    seen = []
    for sign in "--++-":
        (tmp_path / "own_rule.py").write_text(RULE.format(sign=sign))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-B", "user.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    down, up = ["-1.0", "-5.0"], ["3.0", "7.0"]
    new, kept = ["0", "0"], ["1", "1"]
    assert seen == [down + new, down + kept, up + new, up + kept, down + kept]


def test_readme_trains_as_the_optimizer_does():
    """The example of the README against the same loop with opt.step()."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "numba import njit" in block)
    names = {"np": np, "fastgd": fastgd}
    exec(example, names)

    @njit(error_model="numpy")
    def gradient(p, x, y, k, g):
        row = x[k % len(x)]
        error = (row * p).sum() - y[k % len(x)]
        for i in range(p.size):
            g[i] = 2 * error * row[i]

    p, g = np.zeros(8), np.zeros(8)
    opt = fastgd.Adam(p, lr=0.01)
    for k in range(5000):
        gradient(p, names["x"], names["x"] @ names["w"], k, g)
        opt.step(g)
    assert same_bits(p, names["p"])


def test_doctest():
    assert doctest.testmod(cpu_device) == (0, 5)
