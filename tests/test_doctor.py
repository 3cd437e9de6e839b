"""`fastgd doctor`: it finds what is there, and says what to do about what is wrong."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from fastgd import doctor
from fastgd.cli import main
from fastgd.doctor import ENDLESS, SLOW_MATMUL, SPINNING, Finding
from fastgd.kernels import cpu_cache, cpu_threads, disk_cache
from fastgd.kernels.driver import Device, Driver

NAMES = [
    "python",
    "fastgd",
    "numpy",
    "numba",
    "llvmlite",
    "backend numpy",
    "backend numba",
    "backend numba-cuda",
    "backend cupy",
    "compiler",
    "threads",
    "threading layer",
    "matmul between steps",
    "SIMD",
    "denormals",
    "cache",
]


def examined(**environment):
    """What a fresh process finds: exit code and findings by name."""
    command = [sys.executable, "-m", "fastgd.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.stderr == ""
    data = json.loads(done.stdout)
    assert data["ok"] is (done.returncode == 0)
    return done.returncode, {f["name"]: Finding(**f) for f in data["findings"]}


@pytest.fixture(scope="module")
def healthy():
    code, found = examined()
    assert code == 0
    return found


# ---- the GPU -----------------------------------------------------------------------------------------------------


def test_a_gpu_is_told_with_its_driver_and_compiler():
    devices = (Device("First", (9, 0), 85 * 10**9), Device("Second", (10, 3), 180 * 10**9))
    found = doctor.judge_gpu(Driver((13, 0), devices), "", "NVRTC 13.0.88", "")
    assert found.status == "ok"
    said = "driver of CUDA 13.0; 0: First, compute capability 9.0, 85.0 GB; 1: Second, compute capability 10.3, "
    assert found.value == said + "180.0 GB; NVRTC 13.0.88"


def test_what_a_gpu_lacks_has_advice():
    for driver, reason in ((None, "there is no driver"), (Driver((13, 0), ()), "no device")):
        found = doctor.judge_gpu(driver, reason, "NVRTC 13.0.88", "")
        assert found.status == "note" and found.advice and reason in found.value
    found = doctor.judge_gpu(None, "there is no driver", "no compiler", "add it")
    assert (found.status, found.advice) == ("warn", "add it")
    assert "no compiler" in found.value


# ---- a whole examination -----------------------------------------------------------------------------------------


def test_everything_is_looked_at(healthy):
    assert [name for name in healthy if name in NAMES] == NAMES


def test_whatever_is_not_well_has_advice(healthy):
    for finding in healthy.values():
        assert finding.status in ("ok", "note", "warn")
        assert bool(finding.advice) is (finding.status != "ok"), finding


def test_facts_are_those_of_the_machine(healthy):
    assert healthy["numpy"].value == np.__version__
    assert healthy["python"].value.startswith(platform.python_version())
    assert healthy["backend numba"].status == "ok"
    assert healthy["backend cupy"].status == "note"
    assert healthy["threads"].value.startswith(f"{cpu_threads.available_threads()} of {os.cpu_count()} CPUs")
    assert re.match(r"(tbb|omp|workqueue): ", healthy["threading layer"].value)
    folder, _ = disk_cache.status()
    assert folder is None or healthy["cache"].value.startswith(f"{folder}: ")
    assert cpu_cache.machine()[4] in healthy["SIMD"].value
    if cpu_threads.available_threads() > 1:
        figures = r"with a step in turn \d+\.\d\d times .* \(\d+\.\d ms for \d+\.\d ms, .*idle threads burn \d+\.\d ms"
        assert re.match(figures, healthy["matmul between steps"].value)


def test_a_compiler_that_is_off_is_broken():
    code, found = examined(NUMBA_DISABLE_JIT="1")
    assert code == 1
    assert found["compiler"].status == "fail"
    assert "unset NUMBA_DISABLE_JIT" in found["compiler"].advice
    assert "threads" not in found  # nothing more can be said


def test_a_number_of_threads_that_is_none_is_broken_and_the_rest_is_seen():
    code, found = examined(FASTGD_NUM_THREADS="many", FASTGD_CACHE="0")
    assert code == 1
    assert found["threads"].status == "fail"
    assert "'many'" in found["threads"].value
    assert "FASTGD_NUM_THREADS" in found["threads"].advice
    assert found["denormals"].status == "ok"
    assert found["matmul between steps"].value.startswith("not measured")
    assert found["cache"].status == "note"
    assert "unset FASTGD_CACHE" in found["cache"].advice


def test_a_probe_that_raises_is_a_finding(monkeypatch):
    def broken(*_):
        raise OSError("no such\n thing")

    for probe in ("_layer", "_matmul", "_simd", "_denormals"):
        monkeypatch.setattr(doctor, probe, broken)
    found = {f.name: f for f in doctor.examine()}
    assert found["denormals"] == Finding("denormals", "OSError: no such thing", "fail", found["denormals"].advice)
    assert found["denormals"].advice
    assert found["cache"].status != "fail"


# ---- each judgement ----------------------------------------------------------------------------------------------


def limits(used, affinity=8, quota=None, numba=8, asked=None):
    return dict(used=used, affinity=affinity, quota=quota, numba=numba, asked=asked)


@pytest.mark.parametrize(
    ("limit", "status", "advice"),
    [
        (limits(8), "ok", ""),
        (limits(2, quota=2.5), "note", "CPU quota"),
        (limits(4, numba=4), "note", "NUMBA_NUM_THREADS"),
        (limits(3, asked="3"), "note", "FASTGD_NUM_THREADS"),
        (limits(8, affinity=4, asked="8"), "warn", "only 4 can run"),
        (limits(8, quota=2.5, asked="8"), "warn", "only 2.5 can run"),
        (limits(4, affinity=4, numba=4), "note", "affinity"),
    ],
)
def test_what_limits_threads(monkeypatch, limit, status, advice):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = doctor.judge_threads(limit)
    assert (found.status, bool(found.advice)) == (status, bool(advice))
    assert advice in found.advice
    assert found.value.startswith(f"{limit['used']} of 8 CPUs: affinity {limit['affinity']}")
    quota = "no cgroup quota" if limit["quota"] is None else f" quota {limit['quota']}"
    assert quota in found.value


@pytest.mark.parametrize(
    ("layer", "installed", "wish", "status", "advice"),
    [
        ("tbb", True, None, "ok", ""),
        ("omp", False, None, "note", 'pip install "fastgd[tbb]"'),
        ("omp", True, "NUMBA_THREADING_LAYER", "note", "unset NUMBA_THREADING_LAYER"),
        ("omp", True, None, "note", "no other Numba code"),
        ("workqueue", False, None, "warn", 'pip install "fastgd[tbb]"'),
    ],
)
def test_what_a_layer_means(monkeypatch, layer, installed, wish, status, advice):
    for name in ("NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"):
        monkeypatch.delenv(name, raising=False)
    if wish:
        monkeypatch.setenv(wish, layer)
    found = doctor.judge_layer(layer, installed)
    assert found.value.startswith(f"{layer}: ")
    assert (found.status, bool(found.advice)) == (status, bool(advice))
    assert advice in found.advice


WIDE = "\tvmulps\t%zmm1, %zmm2, %zmm3\n\tvaddps (%rax), %zmm1, %zmm2\n\tvmovss %xmm0, (%rax)\n"
HALF = WIDE.replace("zmm", "ymm")
NARROW = "\tmulps\t%xmm1, %xmm2\n"
SCALAR = "\tvmulss\t%xmm1, %xmm2, %xmm3\n"
ARM = "\tfmul\tv0.4s, v1.4s, v2.4s\n"


@pytest.mark.parametrize(
    ("best", "code", "status", "seen"),
    [
        ("avx512f", WIDE, "ok", "512 bits (zmm); registers named in AdamW: zmm 5, ymm 0, xmm 1"),
        ("avx512f", HALF, "ok", "256 bits (ymm)"),  # as LLVM prefers on some
        ("avx2", NARROW, "warn", "128 bits (xmm)"),
        ("sse4.2", NARROW, "ok", "128 bits (xmm)"),
        ("avx2", SCALAR, "warn", "no vectors"),
        ("neon", ARM, "ok", "128 bits (neon or sve)"),
    ],
)
def test_vectors_are_those_of_the_machine_code(monkeypatch, best, code, status, seen):
    for name in doctor._NARROWING:
        monkeypatch.delenv(name, raising=False)
    found = doctor.judge_simd(best, "host", "target", code)
    assert found.status == status
    assert found.value.startswith(f"host with {best}; compiled for target: ")
    assert seen in found.value


def test_narrow_vectors_are_laid_to_the_variable_that_asks_for_them(monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert "unset NUMBA_CPU_NAME" in doctor.judge_simd("avx2", "host", "generic", NARROW).advice


@pytest.mark.parametrize(
    ("here", "kept", "flushed", "threads", "status", "pool"),
    [
        ([], True, False, 2, "ok", "kept in all of the pool"),
        ([], True, False, 1, "ok", "there is no pool"),
        ([], True, True, 2, "warn", "flushed in other threads"),
        (["flush-to-zero"], True, True, 2, "warn", "kept in other threads"),
        (["flush-to-zero"], False, True, 2, "warn", "flushed in all of the pool"),
    ],
)
def test_where_denormals_vanish(here, kept, flushed, threads, status, pool):
    found = doctor.judge_denormals(here, kept, flushed, threads)
    assert found.status == status
    assert pool in found.value
    assert ("in some threads and not in others" in found.advice) is (kept and flushed)


FLUSH = """
import ctypes, sys
libm = ctypes.CDLL("libm.so.6")


def flush(on):  # the bits of MXCSR that a library built with -ffast-math sets, at the end of glibc's fenv_t
    state = ctypes.create_string_buffer(32)
    libm.fegetenv(state)
    control = int.from_bytes(state[28:32], "little")
    state[28:32] = (control | 0x8040 if on else control & ~0x8040).to_bytes(4, "little")
    libm.fesetenv(state)


from fastgd import doctor
from fastgd.kernels.cpu_threads import available_threads
threads = available_threads()
print(doctor._denormals(threads).value)
flush(True)
print(doctor._denormals(threads).value)
flush(False)
print(doctor._denormals(threads).value)
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="sets the control word of x86-64"
)
def test_flushing_that_a_library_switched_on_is_found():
    done = subprocess.run([sys.executable, "-c", FLUSH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, during, after = done.stdout.splitlines()
    assert before.startswith("kept in the main thread, ")
    assert "flushed" not in before
    assert during.startswith("flush-to-zero and denormals-are-zero on in the main thread, ")
    assert after == before


def test_a_cache_that_cannot_be_used_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTGD_CACHE", str(tmp_path / "kernels"))
    (tmp_path / "kernels").mkdir(mode=0o700)
    (tmp_path / "kernels" / "one.kernel").write_bytes(bytes(2_000_000))
    (tmp_path / "kernels" / "other").write_bytes(bytes(1000))
    assert doctor._cache() == Finding("cache", f"{tmp_path / 'kernels'}: 1 kernels, 2.0 MB")
    (tmp_path / "kernels").chmod(0o777)
    found = doctor._cache()
    assert found.status == "warn"
    assert "can be written by others" in found.value
    assert "FASTGD_CACHE" in found.advice


@pytest.mark.parametrize(
    ("ratio", "spin", "layer", "status", "advice"),
    [
        (SLOW_MATMUL - 0.1, SPINNING / 2, "omp", "ok", ""),
        (SLOW_MATMUL - 0.1, SPINNING * 2, "omp", "ok", ""),
        (SLOW_MATMUL + 0.1, SPINNING * 2, "omp", "warn", "OMP_WAIT_POLICY=passive"),
        (1.0, ENDLESS * 1.1, "omp", "warn", 'pip install "fastgd[tbb]"'),  # the matmul alone was slow as well
        (SLOW_MATMUL + 0.1, SPINNING * 2, "tbb", "warn", "not those of tbb"),
        (SLOW_MATMUL + 0.1, SPINNING / 2, "omp", "warn", 'pip install "fastgd[tbb]"'),
        (SLOW_MATMUL + 0.1, SPINNING / 2, "tbb", "note", "something else"),
    ],
)
def test_whether_idle_threads_hold_the_cores(ratio, spin, layer, status, advice):
    found = doctor.judge_matmul(0.002, 0.002 * ratio, spin, layer)
    assert (found.status, bool(found.advice)) == (status, bool(advice))
    assert advice in found.advice
    assert f"{ratio:.2f} times what both take apart ({2 * ratio:.1f} ms for 2.0 ms" in found.value
    assert f"burn {spin * 1e3:.1f} ms" in found.value


# ---- what is shown -----------------------------------------------------------------------------------------------

FINDINGS = [
    Finding("numpy", "2.0"),
    Finding("threading layer", "omp: [spins]", "note", "install it"),
    Finding("compiler", "gone", "fail", "bring it back"),
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_exit_code_is_1_only_where_something_is_broken(monkeypatch, capsys, count):
    monkeypatch.setattr(doctor, "examine", lambda: FINDINGS[:count])
    monkeypatch.setattr(sys, "argv", ["fastgd", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == (1 if count == 3 else 0)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    lines = out.splitlines()
    assert lines[0].split() == ["ok", "numpy", "2.0"]
    if count == 3:
        column = lines[0].index("2.0")
        assert [line[column:] for line in lines] == [
            "2.0",
            "omp: [spins]",
            "-> install it",
            "gone",
            "-> bring it back",
        ]


def test_a_terminal_gets_a_table(monkeypatch, capsys):
    from fastgd.cli import doctor as command

    monkeypatch.setenv("COLUMNS", "100")
    command._show_rich(FINDINGS)
    out = capsys.readouterr().out
    assert re.search(r"│ note +│ threading layer +│ omp: \[spins\] +│ install it", out)
