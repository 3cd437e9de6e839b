"""Imports go downwards only, in the order below, and importing fastgd loads nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first; a module may import from layers below its own, and from its own.
LAYERS = [
    ["kernels.errors"],
    ["kernels.squares"],
    ["kernels.language", "kernels.tail", "kernels.rule", "kernels.matrix", "kernels.rules", "kernels.plan"],
    ["kernels.printers", "kernels.storage", "kernels.blocks"],
    ["kernels.between_code"],
    ["kernels.cuda_source"],
    ["kernels.disk_cache", "kernels.driver"],
    ["kernels.cpu_cache", "kernels.cpu_threads", "kernels.cubin"],
    [
        "kernels.cpu",
        "kernels.cpu_device",
        "kernels.cuda_device",
        "kernels.gpu_arrays",
        "kernels.reference",
    ],
    ["kernels.between", "kernels.matrix_sweep", "kernels.cupy_arrays", "kernels.numba_arrays"],
    ["kernels.cpu_between"],
    ["kernels.cuda_sweep", "kernels.cuda_between", "kernels.cuda_numba_source"],
    ["kernels.cuda_cupy", "kernels.cuda_numba"],
    ["checks"],
    ["backend"],
    ["memory"],
    ["flat"],
    ["targets", "groups", "settings", "state", "schedules"],
    ["launch", "gradient", "accumulation"],
    ["program", "state_arrays"],
    ["health"],
    ["layout"],
    ["capture"],
    ["optimizer"],
    ["optimizers", "functional", "presets", "loss_scaler"],
    ["checkpoint", "distributed"],
    ["nn"],
    ["callbacks", "fit", "minimize"],
    ["tune", "evaluate"],
    ["interop", "bench", "doctor"],
    ["cli"],
]
STANDARD_ONLY = (
    "kernels.errors",
    "kernels.squares",
    "kernels.language",
    "kernels.tail",
    "kernels.rule",
    "kernels.rules",
    "kernels.matrix",
    "kernels.plan",
    "kernels.printers",
    "kernels.disk_cache",
    "kernels.driver",
)
OWNERS = {
    "numba": {
        "kernels.cpu",
        "kernels.cpu_cache",
        "kernels.cpu_threads",
        "kernels.cpu_device",
        "kernels.cpu_between",
        "kernels.cuda_device",
        "kernels.cuda_numba_source",
        "bench.roofline",
    },
    "numba.cuda": {"kernels.cuda_device"},
    "cupy": {
        "kernels.cupy_arrays",
        "kernels.cuda_cupy",
        "bench.gpu_bits",
        "bench.gpu_run",
        "bench.gpu_timing",
    },
    "cuda": {"kernels.cubin", "kernels.cuda_numba", "kernels.cuda_numba_source", "kernels.numba_arrays"},
}


def modules():
    for folder, prefix in (("fastgd", ""), ("kernels", "kernels."), ("bench", "bench.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if inside.parts[0] in ("kernels", "bench") or inside.name.startswith("test_"):
                continue
            name = prefix + ".".join(inside.with_suffix("").parts)
            yield name.removesuffix(".__init__").removesuffix("__init__").rstrip("."), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("fastgd", "fastgd.kernels", "numba"):
                yield from (f"{node.module}.{a.name}" for a in node.names)
            else:
                yield node.module


def layer(module):
    return next((i for i, names in enumerate(LAYERS) for n in names if module == n or module.startswith(f"{n}.")), None)


def test_imports_go_downwards():
    wrong = []
    for name, path in modules():
        own = layer(name)
        if name in ("", "kernels"):  # public names only
            continue
        assert own is not None, f"{name} has no layer"
        for imported in imports(path):
            if not imported.startswith("fastgd."):
                continue
            other = layer(imported.removeprefix("fastgd."))
            if other is not None and other > own:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_rules_need_the_standard_library_only():
    for name, path in modules():
        if any(name == s or name.startswith(f"{s}.") for s in STANDARD_ONLY):
            outside = {i.split(".")[0] for i in imports(path)} - set(sys.stdlib_module_names) - {"fastgd"}
            assert not outside, f"{name} imports {outside}"


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_one_importer(library):
    users = {n for n, path in modules() if any(f"{i}.".startswith(f"{library}.") for i in imports(path))}
    assert users <= OWNERS[library]


def test_import_loads_nothing_heavy():
    code = (
        "import sys, json, numpy, fastgd; fastgd.FlatParams; fastgd.backends(); print(json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(json.loads(out.stdout))
    assert "fastgd.flat" in loaded
    heavy = "numba llvmlite cupy cuda scipy typer rich matplotlib sklearn torch"
    assert not loaded & set(heavy.split())


def test_kernels_refuse_to_be_top_level():
    done = subprocess.run([sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "this package is `fastgd.kernels`" in done.stderr
