"""`fastgd kernels`: what it shows is what runs, and what is piped can be fed to tools."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import types
from textwrap import dedent

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

import sass
from cuda_emulation import needs_numba_cuda

from fastgd.cli import main
from fastgd.kernels.cuda_source import entry, sweep_source
from fastgd.kernels.plan import describe, plan
from fastgd.kernels.printers import numpy_text, scalar_text
from fastgd.kernels.rules import RULES
from fastgd.kernels.rules.lamb import LAMB

COMMAND = [sys.executable, "-m", "fastgd.cli"]


@pytest.fixture
def kernels(monkeypatch, capsys):
    """Run `fastgd kernels` with arguments, to stdout that is no terminal: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastgd", "kernels", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


@pytest.fixture
def shown(kernels):
    """Give what `fastgd kernels show` prints."""

    def run(*arguments):
        code, out, err = kernels("show", *arguments)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        return out

    return run


# ---- list --------------------------------------------------------------------------------------------------------


def test_list_is_plain_and_aligned(kernels):
    code, out, _ = kernels("list")
    assert code == 0
    assert out.isascii()
    head, *rows = out.splitlines()
    assert [re.split(" {2,}", row.strip())[0] for row in rows] == list(RULES)
    ends = head.index("bytes/param") + len("bytes/param")
    for row, cls in zip(rows, RULES.values(), strict=True):
        about = describe(cls())
        assert row[:ends].endswith(f"  {about['moved']}")
        assert sum(map(int, re.findall("[0-9]+", about["moved"].partition("(")[2]))) in (0, about["bytes"])
        assert row[head.index("states") :].startswith(", ".join(about["states"]) or "-")
        assert row[head.index("options") :] == (", ".join(about["options"]) or "-")


def test_list_as_data(kernels):
    _, out, _ = kernels("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows.keys() == RULES.keys()
    assert rows["sgd"]["hyperparameters"]["nesterov"] is False
    assert rows["adamw"]["states"] == ["exp_avg", "exp_avg_sq"]
    assert rows["adamw"]["bytes"] == 28
    assert "decoupled_weight_decay" not in rows["adamw"]["hyperparameters"]  # cannot be given


# ---- show --------------------------------------------------------------------------------------------------------


def test_a_fallback_can_be_left_out_and_not_given(kernels, shown):
    assert "vmax" in shown("mars", "--target", "numpy", "--option", "fallback=none", "--option", "amsgrad=true")
    code, _, err = kernels("show", "muon", "--option", "fallback=adamw")
    assert (
        code == 2 and "--option fallback must be none: another rule can be given in Python only, given 'adamw'" in err
    )


@pytest.mark.parametrize("name", RULES)
def test_rule_is_the_source_as_written(shown, name):
    text = shown(name)
    rule = RULES[name]()
    functions = ["derive"] * hasattr(rule, "derive") + ["measure", "combine", "update"]
    if "measure" not in rule.stages():
        functions = rule.stages()
    assert text == "\n".join(dedent(inspect.getsource(getattr(RULES[name], f))) for f in functions)


def test_a_name_in_capitals_is_taken(shown):
    assert shown("AdamW") == shown("adamw")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_is_the_text_that_steps(shown, dtype):
    names = {"_np": np, "_T": np.dtype(dtype).type}
    exec(shown("lamb", "--target", "numpy", "--dtype", dtype), names)
    planned = plan(LAMB())
    for sweep in (*planned.sweeps, planned.combine):
        parameters = inspect.signature(names[sweep.name]).parameters
        assert tuple(parameters) == sweep.arrays + sweep.scalars
    rng = np.random.default_rng(0)
    p, g, m, v = (rng.random(5).astype(dtype) for _ in range(4))
    k = {n: names["_T"](x) for n, x in dict(LAMB(lr=0.1).prepare(3), gscale=1.0).items()}
    m, v, *parts = names["measure"](p, g, m, v, *(k[n] for n in planned.sweeps[0].scalars))
    names["_T"] = np.float64  # always, between the sweeps
    (step,) = names["combine"](*(np.float64(part.sum()) for part in parts), *(k[n] for n in planned.combine.scalars))
    names["_T"] = np.dtype(dtype).type
    k["step"] = names["_T"](step)
    (q,) = names["update"](p, m, v, *(k[n] for n in planned.sweeps[1].scalars))
    assert q.dtype == dtype
    assert np.linalg.norm(q - p) == pytest.approx(0.1 * np.linalg.norm(p), rel=1e-5)  # LAMB's step


def test_numba_is_rule_and_tile_of_every_sweep(shown):
    from fastgd.kernels.cpu import tile_text

    text = shown("lamb", "--target", "numba", "--dtype", "float64")
    compile(text, "numba", "exec")
    for sweep in plan(LAMB()).sweeps:
        assert f"# sweep {sweep.name}\n{scalar_text(sweep, '_rule', 'float64')}" in text
        assert tile_text(sweep) in text


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_is_the_text_that_is_compiled(shown, dtype):
    text = shown("lamb", "--target", "cuda", "--dtype", dtype)
    for sweep in plan(LAMB()).sweeps:
        assert f"// {sweep.name}\n{sweep_source(sweep, dtype, 'lamb')}" in text
    assert text.index("fgd_lamb_measure_") < text.index("fgd_lamb_combine_scalars(") < text.index("fgd_lamb_update_")
    assert shown("prodigy", "--target", "cuda").startswith("// derive\n")
    (sweep,) = plan(RULES["adamw"]()).sweeps
    assert shown("adamw", "--target", "cuda", "--dtype", dtype, "--backend", "cupy") == sweep_source(
        sweep, dtype, "adamw"
    )


@sass.needs_compiler
def test_ptx_is_of_the_architecture_and_every_sweep(shown):
    text = shown("lamb", "--target", "ptx")
    assert text.count(".target sm_90") == 3
    for sweep in plan(LAMB()).sweeps:
        assert f"// {sweep.name}\n" in text
        assert f".entry {entry('lamb', sweep, 'vector')}(" in text
    text = shown("gd", "--target", "ptx", "--arch", "sm_120", "--dtype", "float64")
    assert ".target sm_120" in text and "mul.rn.f64" in text


def test_cuda_of_numba_cuda_is_python(shown):
    text = shown("lamb", "--target", "cuda", "--backend", "numba-cuda")
    names = "measure_vector", "measure_scalar", "combine_scalars", "update_vector", "update_scalar"
    assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# fgd_lamb_{name}" for name in names]
    compile(text, "kernels", "exec")
    assert "_lib.fmul_rn(gscale, g)" in text and "_lib.dsqrt_rn(" in text


@needs_numba_cuda
def test_ptx_and_sass_of_numba_cuda(shown):
    text = shown("lamb", "--target", "ptx", "--backend", "numba-cuda", "--arch", "sm_80")
    assert text.count(".target sm_80") == text.count(".visible .entry fgd_lamb_") == 5
    assert "ld.global.v4.f32" in text and "fma" not in text
    assert "LDG.E.128" in shown("gd", "--target", "sass", "--backend", "numba-cuda")


@needs_numba_cuda
@pytest.mark.parametrize(
    ("arch", "said"), [("sm_20", "numba-cuda does not compile for sm_20"), ("sm_133", "no machine code for sm_133")]
)
def test_an_architecture_that_numba_cuda_does_not_serve_is_named(kernels, arch, said):
    code, out, err = kernels("show", "gd", "--target", "sass", "--backend", "numba-cuda", "--arch", arch)
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


def test_without_numba_cuda_the_command_that_adds_it_is_named(kernels, monkeypatch):
    monkeypatch.setattr("numba.cuda", types.ModuleType("numba.cuda"), raising=False)
    code, out, err = kernels("show", "gd", "--target", "ptx", "--backend", "numba-cuda")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and 'pip install "fastgd[cuda13]"' in err


@sass.needs_tools
def test_sass_is_machine_code(shown):
    assert "LDG.E.128" in shown("gd", "--target", "sass", "--arch", "sm_80")


@sass.needs_compiler
@pytest.mark.parametrize("target", ["ptx", "sass"])
def test_an_architecture_that_the_compiler_does_not_know_is_named(kernels, target):
    code, out, err = kernels("show", "gd", "--target", target, "--arch", "sm_12")
    assert (code, out) == (2, "")
    assert re.search(rf"--target {target}: NVRTC \S+ compiles for architectures 75, .*90.*, given 12", err)


def test_without_the_compiler_the_command_that_adds_it_is_named(kernels, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    code, out, err = kernels("show", "gd", "--target", "ptx")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and 'pip install "fastgd[cupy13]"' in err


@pytest.mark.parametrize(
    ("rule", "options", "parallel"), [("gd", (), True), ("lamb", (), False), ("sgd", ("momentum=0.9",), False)]
)
def test_llvm_is_one_module_with_every_sweep(shown, rule, options, parallel):
    from llvmlite import binding

    given = [x for option in options for x in ("--option", option)]
    text = shown(rule, "--target", "llvm", *given, *["--parallel"] * parallel)
    module = binding.parse_assembly(text)
    module.verify()
    defined = " ".join(f.name for f in module.functions if not f.is_declaration)
    for sweep in plan(RULES[rule]()).sweeps:
        assert f"{rule}_{sweep.name}_float32" in defined
    assert ("parfor" in text) is parallel


def test_asm_is_of_every_sweep_in_its_dtype(shown):
    from fastgd.kernels.cpu_cache import machine

    text = shown("lamb", "--target", "asm", "--dtype", "float64")
    for sweep in plan(LAMB()).sweeps:
        assert re.search(rf"^\s*\.globl\s+\w*lamb_{sweep.name}_float64", text, re.MULTILINE)
        assert f"# {sweep.name}\n" in text
    if any("x86_64" in part for part in machine()):
        assert re.search(r"\bv?sqrtpd\b", text)
        assert not re.search(r"\bv?sqrtps\b", text)


def signature_of(text):
    names = {}
    exec(text, names)
    return tuple(inspect.signature(names["update"]).parameters)


def test_options_and_tail_are_folded_in(shown):
    plain = shown("adam", "--target", "numpy")
    assert "vmax" not in plain
    amsgrad = shown("adam", "--target", "numpy", "--option", "amsgrad=true", "--option", "betas=0.8,0.99")
    assert "vmax" in signature_of(amsgrad)
    assert "b" not in signature_of(shown("sgd", "--target", "numpy"))
    nesterov = shown("sgd", "--target", "numpy", "--option", "momentum=0.9", "--option", "nesterov=yes")
    assert "b" in signature_of(nesterov)
    assert nesterov != shown("sgd", "--target", "numpy", "--option", "momentum=0.9")
    inside = shown("adam", "--target", "numpy", "--option", "eps_mode=inside")
    assert inside == numpy_text(plan(RULES["adam"](eps_mode="inside")).sweeps[0], "update", "float32")
    tail = signature_of(shown("gd", "--target", "numpy", "--ema", "--zero-grad"))
    assert tail == ("p", "g", "ema", "lr", "gscale", "ema_c")
    assert "_zero" in shown("gd", "--target", "numpy", "--zero-grad")


def test_the_source_as_written_says_that_it_is_not_folded(kernels):
    code, out, err = kernels("show", "adam", "--option", "amsgrad=true")
    assert code == 0
    assert "if amsgrad:" in out
    assert len(err.splitlines()) == 1
    assert "as written" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("adamx",), ("'adamx'", "adam, adamax, adamw", "did you mean adamax?")),
        (("zzz",), ("'zzz'", "adam, adamax, adamw")),
        (
            ("adam", "--target", "lvm"),
            ("'lvm'", "rule, numpy, numba, llvm, asm, cuda, ptx, sass", "did you mean llvm?"),
        ),
        (("adam", "--dtype", "float16"), ("'float16'", "float32, float64", "did you mean float64?")),
        (("adam", "--option", "amsgrd=true"), ("'amsgrd'", "weight_decay, amsgrad", "did you mean amsgrad?")),
        (
            ("adamw", "--option", "decoupled_weight_decay=false"),
            ("'decoupled_weight_decay'", "lr, betas", "did you mean weight_decay?"),
        ),
        (("adam", "--option", "amsgrad=perhaps"), ("'perhaps'", "true or false")),
        (("adam", "--option", "amsgrad"), ("'amsgrad'", "name=value")),
        (("adam", "--option", "lr=fast"), ("'fast'", "a number")),
        (("adam", "--option", "lr=-1"), ("-1.0", "at least 0")),
        (("adam", "--option", "betas=0.9"), ("(0.9,)", "2 numbers")),
        (("adam", "--option", "betas=a,b"), ("'a,b'", "0.9,0.99")),
        (("adam", "--option", "eps_mode=both"), ("'both'", "'outside', 'hat', 'inside'")),
        (("sgd", "--option", "nesterov=true"), ("nesterov needs momentum",)),
        (("adam", "--parallel"), ("--parallel", "llvm or asm", "--target rule")),
        (("adam", "--backend", "cupy"), ("--backend", "cuda, ptx or sass", "--target rule")),
        (("adam", "--target", "cuda", "--backend", "cuppy"), ("'cuppy'", "cupy", "did you mean cupy?")),
        (("adam", "--target", "numba", "--arch", "sm_90"), ("--arch", "cuda, ptx or sass", "--target numba")),
        (("adam", "--target", "ptx", "--arch", "90"), ("'90'", "such as sm_90")),
        ((), ("RULE",)),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_2(kernels, arguments, named):
    code, out, err = kernels("show", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    for text in named:
        assert text in err
    assert ("did you mean" in err) is any("did you mean" in text for text in named)


def test_every_kind_of_hyperparameter_can_be_given():
    from fastgd.cli.kernels import _value

    assert _value("x", "float | None", "None") is None
    assert _value("x", "float", "1e-3") == 1e-3
    assert _value("x", "tuple[float, float]", "(0.9, 0.99)") == (0.9, 0.99)
    assert _value("x", "str", "None") == "None"


# ---- pipes and terminals -----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize("arguments", [("list",), ("show", "adamw"), ("show", "gd", "--target", "llvm")])
def test_a_reader_that_goes_is_no_traceback(arguments):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*COMMAND, "kernels", *arguments], stdout=write, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="terminals as POSIX has them")
def test_a_terminal_gets_colours_and_the_same_text(shown):
    plain = shown("adam", "--target", "cuda")
    coloured = on_terminal("show", "adam", "--target", "cuda")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain  # whole lines: not cut, not filled


@pytest.mark.skipif(os.name != "posix", reason="terminals as POSIX has them")
def test_a_terminal_gets_a_box(kernels):
    out = on_terminal("list")
    assert "│ lamb " in out
    assert "│" not in kernels("list")[1]


def on_terminal(*arguments):
    import pty

    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([*COMMAND, "kernels", *arguments], stdout=theirs, env=environment)
    os.close(theirs)
    chunks = []
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")
