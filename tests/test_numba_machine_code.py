"""What numba-cuda makes of every sweep, for each architecture: vectors, no spill, nothing contracted, no float64.

Neither a driver nor a patch of numba-cuda is needed for that: the kernels call nothing that is compiled by itself.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
import sass
from cuda_emulation import MISSING, needs_numba_cuda
from test_cuda_machine_code import ITEMSIZES, SOUND, TAIL, Case, few_registers, moved

from fastgd.kernels import cubin, cuda_numba_source
from fastgd.kernels.between_code import codes_between
from fastgd.kernels.cuda_numba_source import (
    add_kernel,
    between_kernel,
    machine_code,
    ptx,
    put_kernel,
    sweep_kernel,
)
from fastgd.kernels.cuda_source import VECTOR
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES
from fastgd.kernels.tail import gradient_norm

pytestmark = needs_numba_cuda
needs_tools = pytest.mark.skipif(bool(MISSING or sass._NO_TOOLS), reason=sass._NO_TOOLS or MISSING)

ELEMENTWISE = [name for name, rule in RULES.items() if not issubclass(rule, MatrixRule)]
FEW = ("adamw", "lamb")
OTHERS = ("75", "80", "100", "120")


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGD_CACHE", str(tmp_path_factory.mktemp("cubins")))
        yield


def sweeps(name):
    """Sweeps of a rule with the tail, which holds all that is there without."""
    return plan(RULES[name](), TAIL).sweeps


def kernels(name, dtype):
    return [(sweep, sweep_kernel(sweep, dtype, name, kind)) for sweep in sweeps(name) for kind in ("vector", "scalar")]


def unsound(text):
    """Operations on floats that other backends do not have, or do not round as they do."""
    operations = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*\.f(?:16|32|64)\w*)", text, flags=re.MULTILINE)
    assert operations
    plain = r"(add|sub)\.f\d\d"  # of sums, whose terms come from memory: there is no product to contract them with
    return sorted({o for o in operations if not SOUND.fullmatch(o) and not re.fullmatch(plain, o)})


def faults(sweep, kernel, dtype, arch):
    text = ptx(kernel, arch)
    found = sass.kernels(machine_code(kernel, arch))[kernel.name]
    itemsize = ITEMSIZES[dtype]
    width = VECTOR if kernel.name.endswith("vector") else itemsize
    times = found.loads[width] // len(sweep.reads)  # how often the loop is unrolled
    arrays = f".global.v{width // itemsize}." if width > itemsize else ".global."
    case = Case(kernel.name, "", sweep, dtype, "")
    checks = {
        "stack or local memory": found.stack == found.local == found.spills == 0,
        f"{unsound(text)}": not unsound(text),
        "products that may be contracted": "mul.f" not in text and "fma" not in text,
        "accesses in PTX": arrays in text,
        "calls": "call" not in text,
        f"{found.registers} registers": few_registers(case, found.registers) or found.registers <= 128,
        "the architecture": f".target sm_{arch}" in text,
    }
    if width > itemsize:
        # all elements go through vectors, however often the loop is unrolled; of the rest, a tile is told once
        read, written = found.loads[VECTOR], found.stores[VECTOR]
        checks["vectors"] = (read, written) == (times * len(sweep.reads), times * len(sweep.writes))
        checks["stores beside the vectors"] = moved(found.stores) - VECTOR * written == 8 * len(sweep.sums)
        tile = 8 * (4 + bool(sweep.sums) + len(sweep.arrays)) + itemsize * len(sweep.scalars)
        checks["loads beside the vectors"] = moved(found.loads) - VECTOR * read <= tile + 8 * len(sweep.sums)
    if dtype == "float32":
        checks["float64"] = (found.doubles, found.conversions) == (0, len(sweep.sums))
    return [f"{kernel.name}, {dtype}, sm_{arch}: {what}" for what, sound in checks.items() if not sound]


@needs_tools
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_float32_sweeps(name):
    assert not [fault for pair in kernels(name, "float32") for fault in faults(*pair, "float32", "90")]


@needs_tools
@pytest.mark.parametrize("name", FEW)
def test_float64_sweeps(name):
    assert not [fault for pair in kernels(name, "float64") for fault in faults(*pair, "float64", "90")]


@needs_tools
@pytest.mark.parametrize("arch", OTHERS)
def test_sweeps_on_other_architectures(arch):
    assert not [f for name in FEW for pair in kernels(name, "float32") for f in faults(*pair, "float32", arch)]


@pytest.mark.slow
@pytest.mark.parametrize("arch", OTHERS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_rule_is_compiled_for_other_architectures(name, arch):
    for sweep in sweeps(name):
        kernel = sweep_kernel(sweep, "float32", name, "vector")
        assert machine_code(kernel, arch).read_bytes()[:4] == b"\x7fELF"


@needs_tools
@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_code_between_sweeps_and_sums(dtype):
    made = [add_kernel(), put_kernel()]
    for name in ("lamb", "prodigy"):
        made += [between_kernel(code, name) for code in codes_between(plan(RULES[name]()), dtype).values()]
    norm = gradient_norm(wide=dtype == "float64")
    made += [sweep_kernel(norm, dtype, "gradient", kind) for kind in ("vector", "scalar")]
    for kernel in made:
        text = ptx(kernel, "90")
        found = sass.kernels(machine_code(kernel, "90"))[kernel.name]
        assert (found.stack, found.local, found.spills) == (0, 0, 0), kernel.name
        assert kernel.name == "fgd_put" or unsound(text) == [], kernel.name  # which has no floats
        assert not re.search("mul[.]f|fma|call", text), kernel.name


@needs_tools
def test_the_drill_bites(monkeypatch):
    """An unrounded print is contracted, one of another width has no vectors, and a literal of Python's is float64."""
    (sweep,) = sweeps("adamw")

    def said():
        found = faults(sweep, sweep_kernel(sweep, "float32", "adamw", "vector"), "float32", "90")
        return Counter(fault.partition(": ")[2].split()[0] for fault in found)

    assert not said()
    rounded, tile = cuda_numba_source.rounded_text, cuda_numba_source.tile_text
    with monkeypatch.context() as patched:
        plain = lambda *a: re.sub(r"_lib\.fmul_rn\((\w+), (\w+)\)", r"(\1 * \2)", rounded(*a))  # noqa: E731
        patched.setattr(cuda_numba_source, "rounded_text", plain)
        assert said()["products"]
    with monkeypatch.context() as patched:
        wide = lambda *a: tile(*a).replace("_rule(_e0_p", "_rule(_T(float(_e0_p) * 1.1)", 1)  # noqa: E731
        patched.setattr(cuda_numba_source, "tile_text", wide)
        assert said()["float64"]
    with monkeypatch.context() as patched:
        access = cuda_numba_source._access
        patched.setattr(cuda_numba_source, "tile_text", lambda *a: tile(*a).replace("_load(_p_g, _i, _T)", SPLIT))
        names = {**cuda_numba_source.on_a_gpu(), "_one": access(1)[0]}
        patched.setattr(cuda_numba_source, "on_a_gpu", lambda: names)
        assert said()["vectors"]


SPLIT = ", ".join(f"_one(_p_g, _i + {k}, _T)[0]" for k in range(4))


def test_a_kernel_is_compiled_once(monkeypatch):
    (sweep,) = sweeps("sgd")
    kernel = sweep_kernel(sweep, "float32", "sgd", "vector")
    first = machine_code(kernel, "90")
    monkeypatch.setattr(cuda_numba_source, "ptx", lambda *a: pytest.fail("compiled again"))
    assert machine_code(sweep_kernel(sweep, "float32", "sgd", "vector"), "90") == first
    assert kernel.name in first.name and "-sm90-" in first.name


def test_an_architecture_that_is_not_served_is_named():
    (sweep,) = sweeps("sgd")
    with pytest.raises(cubin.BackendUnavailable, match=r"^numba-cuda does not compile for sm_20: .*requires"):
        ptx(sweep_kernel(sweep, "float32", "sgd", "vector"), "20")
