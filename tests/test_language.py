"""The rule language: what it refuses and says, what it folds, what its functions mean."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import fake_cupy
import numpy as np
import pytest
from conftest import same_bits
from gxx import GXX

from fastgd.backend import maker
from fastgd.kernels import Rule, clip, copysign, maximum, minimum, sign, sqrt, total
from fastgd.kernels.blocks import Where
from fastgd.kernels.cpu import CpuSweep
from fastgd.kernels.errors import RuleError
from fastgd.kernels.language import parse
from fastgd.kernels.plan import plan
from fastgd.kernels.printers import cxx_text
from fastgd.kernels.reference import NumpySweep
from fastgd.memory import to_host

# fmt: off
# ruff: noqa: E702, F821, F841


def literal(p, g): p = p - "x" * g; return p
def power(p, g): p = p - g**2; return p
def index(p, g): p = p - g[0]; return p
def attribute(p, g): p = p - math.exp(g); return p
def unknown(p, g): p = p - q * g; return p
def expression_returned(p, g): return p - g
def two_targets(p, g): p, g = g, p; return p
def call(p, g): p = p - float(g); return p
def chain(p, g): p = p - (g if 0 < g < 1 else 0); return p
def number_as_condition(p, g): p = p - (g and p); return p
def truth(p, g): p = p - True * g; return p
def floor(p, g): p = p - g // 2; return p
def keywords(p, g): p = p - minimum(a=p, b=g); return p
def arity(p, g): p = p - minimum(g); return p
def walrus(p, g): p = p - (y := g); return p
def underscore(p, g): _i = g; p = p - _i; return p
def starred(p, g, *more): p = p - g; return p
def default(p, g=1): p = p - g; return p
def function_name(p, g): sign = g; p = p - sign; return p
def scalar_only(p, g, *, b1): p = p - (1 - b1) * g; return p
def scalar_product(p, g, *, lr, b1): p = p - lr * b1 * g; return p
def scalar_condition(p, g, *, lr): p = p - (g if lr > 0 else 0); return p
def scalar_assigned(p, g, *, lr): lr = g; p = p - lr * g; return p
def option_as_number(p, g, *, mode): p = p - mode * g; return p
def missing(p, g, *, nowhere): p = p - nowhere * g; return p
def infinite(p, g): p = p - 1e999 * g; return p


def loop(p, g):
    for _ in range(3):
        p = p - g
    return p


def branch(p, g):
    if g > 0:
        p = p - g
    return p


def early(p, g, *, mode):
    if mode:
        return p
    p = p - g
    return p


def condition_as_number(p, g):
    k = g > 0
    p = p - k * g
    return p


def changes_kind(p, g):
    k = g > 0
    k = g
    p = p - k
    return p


def no_return(p, g):
    p = p - g


def two_sums(p, g):
    return total(a=g), total(b=g)
# fmt: on

REFUSED = {
    literal: "finite number",
    power: "a square is x * x",
    index: "not in the rule language",
    attribute: "not in the rule language",
    unknown: "used before it is assigned",
    expression_returned: "what is returned is written",
    two_targets: "one name at a time",
    call: "not in the rule language",
    chain: "two numbers at a time",
    number_as_condition: "where a condition is wanted",
    truth: "finite number",
    floor: "only + - * /",
    keywords: "not in the rule language",
    arity: "minimum takes 2 numbers, given 1",
    walrus: "not in the rule language",
    underscore: "starts with an underscore",
    starred: "plain arguments only",
    default: "plain arguments only",
    function_name: "a function of the rule language",
    scalar_only: "compute it in prepare(), in float64",
    scalar_product: "compute it in prepare(), in float64",
    scalar_condition: "compute it in prepare(), in float64",
    scalar_assigned: "the same for all elements",
    option_as_number: "a static option is no number",
    missing: "prepare(), derive(), combine() and options() do not give",
    infinite: "finite number",
    loop: "not in the rule language",
    branch: "`if` is for static options",
    early: "return once",
    condition_as_number: "a condition is no number",
    changes_kind: "changes between a number and a condition",
    no_return: "ends with `return`",
    two_sums: "sum once",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_refusal_names_file_line_expression_and_way_out(function):
    with pytest.raises(RuleError, match=re.escape(REFUSED[function])) as caught:
        parse(function, {"mode": True}, {"b1", "lr"})
    message = str(caught.value)
    first = function.__code__.co_firstlineno
    file, line = re.match(r"(.*?):(\d+): ", message).groups()
    assert file.endswith("test_language.py")
    assert first <= int(line) <= first + 4
    assert "`" in message
    assert "\n" not in message


def test_rule_without_source_is_refused():
    names = {}
    exec("def f(p, g):\n    p = p - g\n    return p\n", names)
    with pytest.raises(RuleError, match="source text cannot be read"):
        parse(names["f"], {}, ())


def test_rule_without_staticmethod_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Rule):
        def prepare(self, t):
            return {}

        def update(self, p, g):
            p = p - g
            return p

    with pytest.raises(RuleError, match="@staticmethod"):
        plan(Wrong())


def test_literal_that_float32_cannot_hold_is_refused():
    def f(p, g):
        p = p - 1e39 * g
        return p

    with pytest.raises(RuleError, match="not finite in float32"):
        cxx_text(parse(f, {}, ()), "f", "float32")
    assert "f)" not in cxx_text(parse(f, {}, ()), "f", "float64")


def folded(p, g, m, n, *, mode, kind):
    x = g
    if not mode:
        x = x * m
    elif kind == "b" and mode:
        n = n + g
        x = x - n
    p = p - (x if mode else g * m)
    return p, m, n


def test_options_are_folded_and_what_is_unused_is_dropped():
    plain = parse(folded, {"mode": True, "kind": "a"}, ())
    assert plain.arrays == ("p", "g")
    assert set(plain.writes) == {"p"}
    buffered = parse(folded, {"mode": True, "kind": "b"}, ())
    assert buffered.arrays == ("p", "g", "n")
    assert set(buffered.writes) == {"p", "n"}
    other = parse(folded, {"mode": False, "kind": "b"}, ())
    assert other.arrays == ("p", "g", "m")
    assert set(other.writes) == {"p"}
    assert other.reads == ("p", "g", "m")


def f_functions(p, g, m, *, lo, hi):
    x = maximum(abs(p), 0.1) * m
    y = minimum(x, g * 3)
    z = clip(y, lo, hi) if y > x and not g == 0 else sign(y - m)
    m = copysign(z, p) + lo * m
    p = p - hi * (z / (sqrt(g) + 1e-3))
    return p, m


def f_minimum(p, g, m):
    p = minimum(p, g)
    return p


def f_maximum(p, g, m):
    p = maximum(p, g)
    return p


def f_sign(p, g, m):
    p = sign(g)
    return p


def f_clip(p, g, m):
    p = clip(p, g, m)
    return p


def f_copysign(p, g, m):
    p = copysign(p, g)
    return p


def f_sqrt(p, g, m):
    p = sqrt(p) / g
    return p


def f_negative(p, g, m):
    p = -p if not p > g and (g < 1 or p == -2) else -abs(m)
    return p


FUNCTIONS = [f_functions, f_minimum, f_maximum, f_sign, f_clip, f_copysign, f_sqrt, f_negative]


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_mean_the_same_everywhere(function, dtype, monkeypatch):
    """Every triple of special values, in every print; in float64 also as plain Python."""
    info = np.finfo(dtype)
    special = [np.nan, np.inf, 0.0, info.smallest_subnormal, info.tiny, info.max, 1, 0.5, 0.1, 2, 1e-3]
    values = np.array([*special, *(-x for x in special)], dtype)
    start = [np.ascontiguousarray(x.ravel()) for x in np.meshgrid(values, values, values, indexing="ij")]
    sweep = parse(function, {}, ("lo", "hi"))
    row = np.array([[-0.5, 0.25][: len(sweep.scalars)]], dtype)
    n = start[0].size
    results = []

    def run(make, as_array):
        arrays = {a: as_array(x.copy()) for a, x in zip("pgm", start, strict=True)}
        bound = make(sweep, [n], [0], row, "language")
        for a in sweep.arrays:
            bound.bind(a, [arrays[a]], Where(np.zeros(1, np.int64), np.zeros(1, np.int64)))
        bound.run()
        results.append([to_host(arrays[a]) for a in sweep.writes])

    for make in (NumpySweep, CpuSweep):
        run(make, np.asarray)
    if GXX is not None:
        with fake_cupy.installed(monkeypatch) as cupy:
            run(maker("cupy", None), cupy.asarray)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert same_bits(a, b)
    if dtype == np.float64 and function is not f_sqrt and function is not f_functions:  # Python raises at x / 0
        plain = np.array([function(*map(float, triple)) for triple in zip(*start, strict=True)])
        assert same_bits(plain, results[0][0])
