"""The README: its code runs, its table is fresh, its commands stand alone."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import fake_cupy
import gxx
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_code_blocks_run(tmp_path):
    gpu = ("import cupy", "numba import cuda")  # the latter's is run by tests/test_cuda_device.py
    code = "\n\n".join(block for block in BLOCKS if not any(name in block for name in gpu))
    assert code.count("assert") >= 5
    script = tmp_path / "readme.py"  # a file: the text of a rule must be readable
    script.write_text(code)
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(gxx.GXX is None, reason="needs g++")
def test_code_for_a_gpu_runs(monkeypatch):
    (code,) = (block for block in BLOCKS if "cupy" in block)
    with fake_cupy.installed(monkeypatch):
        exec(compile("import fastgd\n" + code, "README.md", "exec"), {})


def test_table_of_rules_is_fresh():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.readme(README) == README, "run python docs/generate.py"


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_commands_stand_on_lines_of_their_own(extra):
    start = f'python3 -m venv .venv && .venv/bin/pip install -e ".[{extra}]" && .venv/bin/'
    lines = [line for line in README.splitlines() if line.startswith(start)]
    assert len(lines) == 1


def test_doctests_of_the_package():
    """Examples in docstrings run."""
    import doctest
    import pkgutil

    import fastgd
    import fastgd.kernels.rules as rules

    names = ["fastgd", "fastgd.flat", "fastgd.backend", "fastgd.kernels.rule", "fastgd.minimize", "fastgd.fit"]
    names += [m.name for m in pkgutil.iter_modules(rules.__path__, "fastgd.kernels.rules.")]
    assert fastgd.__version__
    tried = 0
    for name in names:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        tried += result.attempted
    assert tried >= 20
