"""The one call on a GPU, with a stand-in for the device: it finds a wrong bit, and names what it leaves out."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import fake_clock
import fake_cupy
import fake_numba_cuda
import gxx
import numpy as np
import pytest

from fastgd.bench import gpu, gpu_bits, gpu_parts, gpu_peers, gpu_run
from fastgd.bench.gpu_report import COLUMNS
from fastgd.kernels import cubin
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.rules import RULES

ROOT = Path(__file__).parent.parent
TINY = gpu_run.Scale(
    compared=("sgd",),
    in_both=("sgd",),
    first=("adamw",),
    huge=("sgd",),
    rest=("adamw-clip", "lamb", "adamw-tail-gpt2"),
    small=256,
    large=1 << 12,
    most=1 << 13,
    rounds=2,
    seconds=1e-4,
    blocks=(1, 4),
    least=5.0,
)

needs_compiler = pytest.mark.skipif(gxx.GXX is None, reason="needs g++")


@pytest.fixture
def device(monkeypatch):
    """A stand-in, under which what has imported CuPy is imported anew; no process of a peer is started."""
    with fake_cupy.installed(monkeypatch) as cupy, fake_numba_cuda.installed(monkeypatch):
        fake_clock.add_to(cupy, monkeypatch)
        import_module("fastgd.kernels.cuda_cupy")
        monkeypatch.delitem(sys.modules, "fastgd.bench.gpu_timing", raising=False)
        monkeypatch.setattr(sys.modules["fastgd.bench"], "gpu_timing", import_module("fastgd.bench.gpu_timing"), False)
        monkeypatch.setattr(cubin, "nvrtc_version", lambda: "13.0")
        monkeypatch.setattr(gpu_bits, "compile_ahead", lambda listed: None)
        monkeypatch.setattr(gpu_parts, "names", lambda case: [])
        monkeypatch.setattr(gpu_parts, "suite", lambda run: None)
        monkeypatch.setattr(gpu_parts, "sanitizer", lambda run: None)
        yield cupy
        sys.modules.pop("fastgd.bench.gpu_timing", None)


def ran(folder, *arguments, scale=TINY):
    status = gpu.main(["--output", str(folder), *arguments], scale)
    return status, json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


# ---- the call ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_there_is_one_clear_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench/gpu.py measures on an NVIDIA GPU: backend 'cupy': ")
    assert not any(tmp_path.iterdir())


def test_the_quick_run_is_a_part_of_the_whole():
    quick, whole = gpu_parts.full(quick=True), gpu_parts.full(quick=False)
    assert set(quick.compared) < set(whole.compared) and set(quick.rest) < set(whole.rest)
    assert set(whole.compared) == {name for name, rule in RULES.items() if not issubclass(rule, MatrixRule)}
    measured = {*whole.first, *whole.rest}
    assert measured <= set(gpu_peers.GPU_CASES) and measured >= set(whole.compared)
    assert len(measured) == len([*whole.first, *whole.rest])


@needs_compiler
def test_a_run_writes_what_it_measured(device, tmp_path):
    status, report, text = ran(tmp_path)
    assert status == 0 and report["failed"] == {} and report["left_out"] == []
    assert report["bits"] == {"compared": 2 * len(gpu_bits.checks(["sgd"])), "wrong": {}}
    assert [(row["case"], row["n"]) for row in report["rows"] if row["peer"] == "fastgd-cupy"] == [
        ("adamw", 4096),
        ("sgd", 8192),
        ("adamw-clip", 4096),
        ("lamb", 4096),
        ("adamw-tail-gpt2", 4096),
    ]
    for row in report["rows"]:
        assert row["seconds"] > 0 and row["gbps"] > 0 and row["skipped"] is None
        assert row["copy_share"] == pytest.approx(1) if row["peer"] == "copy" else row["copy_share"] > 0
    errors = {row["case"]: row["max_ulp"] for row in report["rows"] if row["peer"] == "fastgd-cupy"}
    assert errors["adamw"] < 32 and errors["sgd"] < 32 and errors["adamw-clip"] < 32 and errors["lamb"] is None
    assert {(row["case"], row["peer"]) for row in report["launches"]} >= {
        ("adamw", f"fastgd-{backend} {what}") for backend in ("cupy", "numba-cuda") for what in ("step", "replay")
    }
    assert [row["blocks"] for row in report["grids"]] == [1, 4]
    assert report["gpu"]["name"] == "stand-in" and report["gpu"]["versions"]["CUDA driver"] == "13.0"
    assert text.startswith("# fastgd bench on a GPU\n\n- bits: 32 comparisons with NumPy, 0 wrong\n")
    assert "## adamw float32, 4 k elements; lr=0.001, " in text and "## A step of 256 elements" in text
    assert text.count("| " + " | ".join(COLUMNS) + " |") == 5
    assert text.count("stand-in, 16 GiB, compute capability 9.0") == 7


@needs_compiler
def test_a_wrong_bit_is_named_and_makes_the_status_1(device, tmp_path, monkeypatch):
    def planted(text, arch, label):
        return gxx.build(text.replace("x[a].e[e] = element[a];", "x[a].e[e] = element[a] * (e == 3 ? 1.0000002f : 1);"))

    monkeypatch.setattr(cubin, "cubin", planted)
    import_module("fastgd.kernels.cuda_cupy").cubin = planted
    monkeypatch.setattr(gpu_parts, "speed", lambda cases, n: lambda run: None)
    status, report, text = ran(tmp_path)
    assert status == 1
    assert "sgd (defaults) float32, plain, flat, cupy" in report["bits"]["wrong"]
    # one vector of 4 elements is wrong in its last; those of fewer have none
    assert (
        "  - WRONG: sgd (defaults) float32, plain, flat, cupy: parameter 1 after step 1; parameter 2 after step 1; "
        in text
    )


# ---- time and memory ---------------------------------------------------------------------------------------------


@needs_compiler
def test_what_has_no_time_is_named(device, tmp_path):
    status, report, text = ran(tmp_path, "--seconds", "4")
    assert status == 0 and report["rows"] == [] and report["bits"] is None
    assert [what for what, _ in report["left_out"]] == [name for name, _ in gpu_parts.parts(TINY)]
    assert "## Left out\n\n- device and versions: there was no time left\n" in text
    assert ran(tmp_path, "--seconds", "4", "--require-gpu")[0] == 1


@needs_compiler
def test_a_part_that_runs_out_of_time_names_the_rest(device, tmp_path, monkeypatch):
    run = gpu_run.Run(TINY, 100.0, tmp_path)
    gpu_run.describe(run)
    turns = iter([True] * 3 + [False] * 100)
    monkeypatch.setattr(run, "has_time", lambda: next(turns))
    gpu_parts.bits(run)
    assert run.report["bits"]["compared"] == 3
    gpu_parts.speed(("adamw", "lamb"), 4096)(run)
    gpu_parts.launches(run)
    assert [what for what, _ in run.report["left_out"]] == [
        "29 comparisons of sgd's bits",
        "adamw at 4 k elements",
        "lamb at 4 k elements",
        *(f"launch cost of {name}" for name in ("adamw", "adamw-clip", "sgd", "lamb")),
    ]
    assert run.status(whole=False) == 0 and run.status(whole=True) == 1


@needs_compiler
def test_what_does_not_fit_is_named(device, tmp_path, monkeypatch):
    monkeypatch.setattr(fake_clock, "FREE", 6 * 4 * 4096)
    run = gpu_run.Run(TINY, 100.0, tmp_path)
    gpu_parts.speed(("adamw",), 4096)(run)
    assert run.report["left_out"] == [("adamw at 4 k elements", "it needs 0 GiB, and 0 are free")]


def test_what_fails_is_named_and_the_rest_is_done(tmp_path):
    def failing(run):
        raise RuntimeError("an illegal memory access\nand a long story")

    run = gpu_run.Run(TINY, 100.0, tmp_path)
    done = []
    run.report["gpu"] = {}
    run.do("first", failing)
    run.do("second", done.append)
    assert done == [run] and run.status(whole=False) == 1
    assert "- FAILED: first: RuntimeError: an illegal memory access\n" in (tmp_path / "gpu.md").read_text()


# ---- other programs ----------------------------------------------------------------------------------------------


def test_the_tests_on_a_gpu_are_required_to_find_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # where there is one
    run = gpu_run.Run(TINY, 200.0, tmp_path)
    gpu_parts.suite(run)
    assert re.match(r"(\d+ failed, )?\d+ errors in ", run.report["failed"]["tests on the GPU"])
    assert "a GPU is required: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", "checked"),
        ("echo '========= ERROR SUMMARY: 2 errors'; exit 99", "failed"),
        ("echo '========= Error: Device not supported'; exit 1", "left_out"),
    ],
)
def test_what_the_sanitizer_says_is_kept(script, kept, tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda name, path=None: str(program))
    monkeypatch.setattr(gpu_parts, "backends", lambda run: ["cupy", "numba-cuda"])
    run = gpu_run.Run(TINY, 100.0, tmp_path)
    gpu_parts.sanitizer(run)
    found = run.report[kept]
    assert [*(dict(found) if kept == "left_out" else found)] == [
        f"compute-sanitizer's {tool}, {backend}"
        for tool in ("memcheck", "racecheck")
        for backend in ("cupy", "numba-cuda")
    ]
    assert all(not run.report[other] for other in {"checked", "failed", "left_out"} - {kept})


def test_a_sanitizer_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(gpu_parts, "backends", lambda run: ["cupy"])
    run = gpu_run.Run(TINY, 100.0, tmp_path)
    gpu_parts.sanitizer(run)
    assert run.report["left_out"][1] == ("compute-sanitizer's racecheck, cupy", "compute-sanitizer is not installed")


@needs_compiler
def test_the_sanitized_program_compares_bits(device, capsys, monkeypatch):
    assert gpu_bits.main(["sgd"]) == gpu_bits.main(["sgd", "--backend", "numba-cuda"]) == 0
    monkeypatch.setattr(gpu_bits, "wrong", lambda check: ["parameter 1"])
    assert gpu_bits.main(["gd"]) == 1
    assert "gd (defaults) float32, plain, flat, cupy: parameter 1" in capsys.readouterr().out


# ---- bits and peers ----------------------------------------------------------------------------------------------


def test_data_of_the_comparison_has_every_kind_of_number():
    rng = np.random.default_rng(0)
    x = gpu_bits._numbers(rng, 1 << 17, np.dtype(np.float32), hard=True)
    tiny = np.finfo(np.float32).tiny
    assert (
        np.isnan(x).any() and np.isinf(x).any() and np.any((x != 0) & (abs(x) < tiny)) and np.signbit(x[x == 0]).any()
    )
    assert np.isfinite(gpu_bits._numbers(rng, 1 << 17, np.dtype(np.float32), hard=False)).all()


def test_every_rule_is_compared_at_its_defaults_and_at_another_setting():
    for rule in gpu_bits.served():
        found = gpu_bits.settings(rule)
        assert found["defaults"] == {} and found["other"]
        RULES[rule](**found["other"])


def test_every_foreign_peer_is_known_and_one_that_is_missing_is_named(monkeypatch):
    wanted = {peer for case in gpu_peers.GPU_CASES.values() for peer in gpu_peers.names(case)}
    assert wanted == set(gpu_peers.PEERS)
    monkeypatch.setitem(sys.modules, "torch", None)
    peer, reply = gpu_peers.opened({"peer": "torch-fused", "case": "adamw", "n": 4})
    assert peer is None and reply["skipped"].startswith("not installed: ")


TORCH = [
    (name, peer)
    for name, case in gpu_peers.GPU_CASES.items()
    for peer in gpu_peers.names(case)
    if case.rule in gpu_bits.served() and peer in ("torch-foreach", "torch-fused")
]


@pytest.mark.parametrize(("name", "peer"), TORCH)
def test_torch_computes_the_rule_that_it_is_compared_in(name, peer, monkeypatch):
    """Under a torch whose GPU is the host."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    made, reply = gpu_peers.opened({"peer": peer, "case": name, "n": 1000})
    case = gpu_peers.GPU_CASES[name]
    if not case.tail and len(case.tensors) == 1:
        assert reply["max_ulp"] < 64
    else:
        assert reply == {"max_ulp": None}
    assert sum(p.numel() for p in made.parameters) == 1000 and len(made.parameters) == len(case.tensors)


def test_a_peer_answers_until_its_input_ends():
    pytest.importorskip("torch")
    requests = [{"do": "open", "peer": "torch-fused", "case": "adamw", "n": 4}, {"do": "time", "seconds": 1}]
    done = subprocess.run(
        [sys.executable, "-m", "fastgd.bench.gpu_peers"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == {"skipped": "this torch finds no GPU"}
    assert second["skipped"].startswith("AssertionError")
