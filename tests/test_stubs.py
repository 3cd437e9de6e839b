"""The type stubs: fresh, with the signatures of run time, shipped, and what mypy makes of them."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import inspect
import os
import subprocess
import sys
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import fastgd
from fastgd import functional, optimizers
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES

ROOT = Path(__file__).parent.parent
STUBS = sorted((ROOT / "fastgd").glob("*.pyi"))


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub(module):
    return ast.parse((ROOT / "fastgd" / f"{module}.pyi").read_text())


def parameters(function):
    """Name, kind and default of each parameter of a stub's function, as `inspect` gives them at run time."""
    a = function.args
    kinds = inspect.Parameter
    plain = [(x.arg, kinds.POSITIONAL_ONLY) for x in a.posonlyargs]
    plain += [(x.arg, kinds.POSITIONAL_OR_KEYWORD) for x in a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults + a.kw_defaults
    named = [*plain, *((x.arg, kinds.KEYWORD_ONLY) for x in a.kwonlyargs)]
    assert a.vararg is None and a.kwarg is None
    assert all(x.annotation is not None for x in [*a.posonlyargs, *a.args, *a.kwonlyargs] if x.arg != "self")
    return [
        (name, kind, kinds.empty if default is None else ast.literal_eval(default))
        for (name, kind), default in zip(named, defaults, strict=True)
    ]


def at_run_time(function):
    known = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, ... if isinstance(p.default, Rule) else p.default) for p in known]  # stubs cannot make one


def test_generated_files_are_fresh(generate, capsys):
    assert generate.main(["--check"]) == 0, f"run python docs/generate.py: {capsys.readouterr().out}"


def test_check_names_what_is_stale_and_writes_nothing(generate, tmp_path, capsys):
    (tmp_path / "fastgd").mkdir()
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme.replace("| `AdamW` |", "| `AdamV` |"))
    (tmp_path / "fastgd" / "functional.pyi").write_text((ROOT / "fastgd" / "functional.pyi").read_text())
    names = ["README.md", "docs/speed.svg", "fastgd/__init__.pyi", "fastgd/optimizers.pyi"]
    assert generate.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [f"stale: {name}" for name in names]
    assert "AdamV" in (tmp_path / "README.md").read_text() and not (tmp_path / "fastgd" / "__init__.pyi").exists()
    assert generate.main([], tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [f"written: {name}" for name in names]
    assert generate.main(["--check"], tmp_path) == 0
    for path in [ROOT / "README.md", ROOT / "docs" / "speed.svg", *STUBS]:
        assert (tmp_path / path.relative_to(ROOT)).read_text() == path.read_text()


def test_each_rule_has_a_class_with_the_signature_of_run_time():
    classes = {x.name: x for x in stub("optimizers").body if isinstance(x, ast.ClassDef)}
    assert sorted(classes) == sorted(cls.__name__ for cls in RULES.values())
    for name, node in classes.items():
        assert [ast.unparse(base) for base in node.bases] == ["Optimizer"]
        (init,) = (x for x in node.body if isinstance(x, ast.FunctionDef))
        assert init.name == "__init__"
        (self, *_), (_, *given) = parameters(init), parameters(init)
        assert self[0] == "self"
        assert given == at_run_time(getattr(optimizers, name))


def test_each_rule_has_a_function_with_the_signature_of_run_time():
    found = {}
    for node in stub("functional").body:
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(parameters(node))
    assert sorted(found) == sorted(functional.__all__)
    for name, forms in found.items():
        assert forms[0] == at_run_time(getattr(functional, name))


@pytest.mark.parametrize(
    ("rule", "states", "values"),
    [
        ("adam", ["m", "v", "vmax"], {"amsgrad": True}),
        ("adamw", ["m", "v", "vmax"], {"amsgrad": True}),
        ("sgd", ["b"], {"momentum": 0.9}),
    ],
)
def test_options_that_add_a_state_have_an_overload(rule, states, values):
    forms = [x for x in stub("functional").body if isinstance(x, ast.FunctionDef) and x.name == f"{rule}_"]
    assert len(forms) == 2
    assert [ast.unparse(x.decorator_list[0]) for x in forms] == ["overload", "overload"]
    assert [x.arg for x in forms[1].args.posonlyargs] == ["p", "g", *states]
    arrays = np.zeros((2 + len(states), 3))
    getattr(functional, f"{rule}_")(*arrays, 1, **values)


def test_the_package_stub_has_every_public_name_where_it_is():
    names = {}
    for node in stub("__init__").body:
        if isinstance(node, ast.ImportFrom):
            (alias,) = node.names
            assert alias.asname == alias.name  # an import under its own name is a re-export
            names[alias.name] = node.module
    assert set(names) == {*fastgd._HOMES, *fastgd._MODULES, *optimizers.__all__}
    for name, module in names.items():
        value = import_module(f"fastgd.{name}") if module == "fastgd" else getattr(import_module(module), name)
        assert getattr(fastgd, name) is value
    assert inspect.isfunction(fastgd.fit) and names["fit"] == "fastgd.fit"
    assert inspect.isfunction(fastgd.minimize) and names["minimize"] == "fastgd.minimize"


def test_stubs_are_shipped():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = [x.strip() for x in config["options.package_data"]["fastgd"].split(",")]
    assert len(STUBS) == 3
    for path in [*STUBS, ROOT / "fastgd" / "py.typed"]:
        assert path.exists() and any(fnmatch(path.name, pattern) for pattern in patterns)


RIGHT = """
import numpy as np
import fastgd
import fastgd.fit
import fastgd.minimize
from fastgd import functional

p = np.ones(3)
opt: fastgd.Optimizer = fastgd.AdamW(p, lr=1e-3)
fastgd.AdamW(p, lambda k: 1 / (k + 1), betas=lambda k: (0.9, 0.99), max_norm=1)
fastgd.Adam({"p": p}, betas=[0.9, 0.99], eps_mode="hat", backend="numpy")
fastgd.functional.adamw_(p, p, p, p, 1, lr=0.1)
functional.adam_(p, p, p, p, p, t=1, amsgrad=True, scale=-1)
x: float = fastgd.minimize(lambda x: x * x, 1.0, method="gd").x
history: fastgd.History = fastgd.fit(lambda params: 0.0, opt, p, epochs=1)
version: str = fastgd.__version__
"""
WRONG = {
    "fastgd.AdamW(p, lrr=1)": 'Unexpected keyword argument "lrr" for "AdamW"',
    'fastgd.AdamW(p, lr="fast")': 'Argument "lr" to "AdamW" has incompatible type "str"',
    "fastgd.AdamW(p, betas=0.9)": 'Argument "betas" to "AdamW" has incompatible type "float"',
    'fastgd.Adam(p, eps_mode="inner")': 'Argument "eps_mode" to "Adam" has incompatible type',
    "fastgd.AdamV(p)": 'Module has no attribute "AdamV"',
    "fastgd.functional.adamw_(p, p, p, p, 1, lrr=0.1)": 'Unexpected keyword argument "lrr"',
    "fastgd.functional.lion_(p, p, 1)": 'Missing positional argument "t" in call to "lion_"',
    "fastgd.fit.fit": "has no attribute",
}


def mypy(*arguments, cwd, **environment):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip('mypy is not installed: pip install "fastgd[dev]"')
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=240
    )
    assert not done.stderr, done.stderr
    return done


@pytest.mark.slow
def test_mypy_accepts_right_calls_and_refuses_wrong_ones(tmp_path):
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text("\n".join(["import fastgd", "p = [0.0]", *WRONG]))
    done = mypy("right.py", "wrong.py", cwd=tmp_path, MYPYPATH=str(ROOT))
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert not [line for line in errors if not line.startswith("wrong.py:")], done.stdout
    for number, (call, message) in enumerate(WRONG.items(), start=3):
        assert any(line.startswith(f"wrong.py:{number}:") and message in line for line in errors), (call, done.stdout)


@pytest.mark.slow
def test_mypy_accepts_the_sources_that_stubs_hide():
    """Where there is a stub mypy looks at nothing else, unless the source is named."""
    sources = [path.with_suffix(".py") for path in STUBS]
    done = mypy(*(str(path.relative_to(ROOT)) for path in sources), cwd=ROOT)
    assert done.returncode == 0, done.stdout
