"""What NVRTC makes of every sweep: one pass over memory in 128-bit accesses, nothing spilt, nothing contracted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import sass
from oracles import SETTINGS

from fastgd.kernels import cubin
from fastgd.kernels.between_code import codes_between
from fastgd.kernels.cuda_source import VECTOR, between_source, entry, sweep_source
from fastgd.kernels.language import Sweep
from fastgd.kernels.plan import gradient_norm, plan
from fastgd.kernels.rules import RULES
from fastgd.kernels.tail import Tail

TAIL = Tail("ema", True, True)
ITEMSIZES = {"float32": 4, "float64": 8}
FEW = ("sgd", "adamw", "lamb")  # few states, the usual ones, and sums


class Case(NamedTuple):
    title: str
    label: str
    sweep: Sweep
    dtype: str
    text: str


def cases(dtype: str, names: Iterable[str] = RULES, settings: slice = slice(None)) -> list[Case]:
    """Sweeps of rules with and without the tail, and that of the gradient's norm; each text once."""
    found = [("gradient", "gradient", gradient_norm())]
    for name in names:
        for k, values in enumerate(SETTINGS[name][settings]):
            for tail in (Tail(), TAIL):
                sweeps = plan(RULES[name](**values), tail).sweeps
                found += [(f"{name}-{k}{'-tail' * (tail is TAIL)} {sweep.name}", name, sweep) for sweep in sweeps]
    made = [Case(title, label, s, dtype, sweep_source(s, dtype, label)) for title, label, s in found]
    return list({case.text: case for case in made}.values())


def texts_between(name: str, dtype: str) -> Iterable[tuple[str, str]]:
    """Code between the sweeps of a rule: name of the kernel, and text."""
    planned = plan(RULES[name](**SETTINGS[name][-1]))
    codes = codes_between(planned, dtype)
    return [(f"fgd_{name}_{f}_scalars", between_source(code, name)) for f, code in codes.items()]


def all_of(check, items) -> list[str]:
    """Faults of all items; the compiler and the disassembler let other threads run."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [fault for faults in pool.map(check, items) for fault in faults]


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGD_CACHE", str(tmp_path_factory.mktemp("cubins")))
        yield


# ---- machine code ------------------------------------------------------------------------------------------------


def moved(accesses) -> int:
    """Bytes that instructions move for one thread."""
    return sum(width * count for width, count in accesses.items())


def faults(case: Case, arch: str = "90") -> list[str]:
    found = sass.kernels(cubin.cubin(case.text, arch, case.label))
    sweep, itemsize = case.sweep, ITEMSIZES[case.dtype]
    vector, scalar = (found[entry(case.label, sweep, kind)] for kind in ("vector", "scalar"))
    # of each tile: lo, hi, row and segment, and where its sums go; the arrays' addresses; the row of scalars
    of_a_tile = 8 * (4 + bool(sweep.sums) + len(sweep.arrays)) + itemsize * len(sweep.scalars)
    sums = 8 * len(sweep.sums)
    in_vectors = VECTOR * (vector.loads[VECTOR] + vector.stores[VECTOR])
    times = 1 if sweep.writes else 7  # what only reads is unrolled: 4 at once, then what is left of them, 2 and 1
    checks = {
        "stack or local memory": all(k.stack == k.local == k.spills == 0 for k in found.values()),
        f"{in_vectors} bytes in vectors": in_vectors == times * VECTOR // itemsize * sweep.bytes_per_element(itemsize),
        "loads beside the vectors": moved(vector.loads) - VECTOR * vector.loads[VECTOR] == of_a_tile,
        "stores beside the vectors": moved(vector.stores) - VECTOR * vector.stores[VECTOR] == sums,
        "loads of single elements": moved(scalar.loads) == of_a_tile + times * itemsize * len(sweep.reads),
        "stores of single elements": moved(scalar.stores) == sums + itemsize * len(sweep.writes),
        "barriers": all((k.barriers > 0) == bool(sweep.sums) for k in (vector, scalar)),
        f"{vector.registers} and {scalar.registers} registers": few_registers(case, vector.registers, scalar.registers),
    }
    if case.dtype == "float32":  # what leaves a block is float64, once for each sum
        checks["float64"] = all((k.doubles, k.conversions) == (0, len(sweep.sums)) for k in (vector, scalar))
    return [f"{case.title}, {case.dtype}, sm_{arch}: {what}" for what, sound in checks.items() if not sound]


def few_registers(case: Case, *registers: int) -> bool:
    """Whether a processor holds four blocks of AdamW and what is smaller, three of its tail's, two of anything."""
    arrays = len(case.sweep.arrays)
    bound = 128
    if case.dtype == "float32" and not case.sweep.sums and arrays <= 5:
        bound = 64 if arrays <= 4 else 80
    return max(registers) <= bound


@sass.needs_tools
def test_float32_sweeps():
    assert not all_of(faults, cases("float32"))


@sass.needs_tools
def test_float64_sweeps():
    assert not all_of(faults, cases("float64", settings=slice(1)))


@sass.needs_tools
@pytest.mark.parametrize("arch", ["75", "80", "100", "120"])
def test_sweeps_on_other_architectures(arch):
    assert not all_of(lambda case: faults(case, arch), cases("float32", FEW, slice(1)))


@sass.needs_compiler
@pytest.mark.parametrize("arch", ["75", "80", "100", "120"])
def test_every_rule_is_compiled_for_other_architectures(arch):
    def compiled(case):
        cubin.cubin(case.text, arch, case.label)
        return []

    assert not all_of(compiled, cases("float32", settings=slice(1)))


@sass.needs_tools
@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_code_between_sweeps(dtype):
    def spilt(kernel_and_text):
        kernel, text = kernel_and_text
        found = sass.kernels(cubin.cubin(text, "90", "between"))
        return [kernel] if found[kernel].stack or found[kernel].local or found[kernel].spills else []

    codes = [code for name in RULES for code in texts_between(name, dtype)]
    assert codes
    assert not all_of(spilt, codes)


@sass.needs_tools
@pytest.mark.parametrize(
    ("of", "planted", "found"),
    [
        ("#pragma unroll 1\n", "#pragma unroll 2\n", "bytes in vectors"),
        ("(FGD_THREADS, 2)", "(FGD_THREADS, 8)", "stack or local memory"),
        ("alignas(N * sizeof(T)) ", "", "bytes in vectors"),
        ("Rule::apply(element", "element[0] = element[0] * 1.1; Rule::apply(element", "float64"),
        ("const fgd_Place<Rule> place", "__syncthreads(); const fgd_Place<Rule> place", "barriers"),
    ],
    ids=["unrolled", "spilt", "unaligned", "double", "barrier"],
)
def test_the_drill_bites(of, planted, found):
    (case,) = [c for c in cases("float32", ["adamw"], slice(1)) if c.title == "adamw-0 update"]
    assert not faults(case)
    assert of in case.text
    said = faults(case._replace(text=case.text.replace(of, planted)))
    assert any(found in fault for fault in said), said


# ---- arithmetic --------------------------------------------------------------------------------------------------
# In PTX: machine code has fused operations of its own, inside a division and a root.

SOUND = re.compile(
    r"(ld|st)\.(global|shared|param)(\.v[24])?\.f\d\d"
    r"|(mov|selp|setp\.[a-z]+|neg|abs)\.f\d\d"
    r"|cvt\.f64\.f32|cvt\.rn\.f32\.f64|cvt\.rn\.f64\.[su]64"
    r"|(add|sub|mul|div|sqrt|rcp)\.rn\.f\d\d"
)


def unsound(text: str) -> list[str]:
    """Operations on floats that other backends do not have, or do not round as they do."""
    ptx = cubin.ptx(text, "90", "text")
    operations = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*\.f(?:16|32|64)\w*)", ptx, flags=re.MULTILINE)
    assert operations
    return sorted({operation for operation in operations if not SOUND.fullmatch(operation)})


@sass.needs_compiler
@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_each_operation_is_rounded_by_itself(dtype):
    """With the tail: it holds all that is there without."""
    texts = [case.text for case in cases(dtype, settings=slice(-1, None)) if "-tail" in case.title]
    texts += [text for name in RULES for _, text in texts_between(name, dtype)]
    assert not all_of(unsound, texts)


@sass.needs_compiler
@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--fmad=true",), "fma.rn.f32"),
        (("--fmad=false", "--ftz=true"), "mul.rn.ftz.f32"),
        (("--fmad=false", "--prec-div=false"), "div.full.f32"),
        (("--fmad=false", "--prec-sqrt=false"), "sqrt.approx.f32"),
    ],
)
def test_what_an_option_would_change_is_seen(monkeypatch, options, found):
    monkeypatch.setattr(cubin, "OPTIONS", ("--std=c++17", *options))
    text = "__device__ float f(float a, float b) { return sqrtf(a * b + a) / b; }\n"
    assert found in unsound(text + 'extern "C" __global__ void k(float *p) { p[0] = f(p[1], p[2]); }\n')
