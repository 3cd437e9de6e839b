"""Machine code of GPUs in the cache: compiled once, verified, healed, refused where others could write it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sass

from fastgd.kernels import cubin
from fastgd.kernels.errors import BackendUnavailable

pytestmark = sass.needs_compiler

TEXT = 'extern "C" __global__ void twice(float *p) { p[threadIdx.x] *= 2.0f; }\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch):
    """What has been compiled since, by label."""
    labels = []
    inner = cubin._compiled

    def counting(text, arch, label, form):
        labels.append(label)
        return inner(text, arch, label, form)

    monkeypatch.setattr(cubin, "_compiled", counting)
    return labels


def test_what_was_compiled_is_found(cache, compiled):
    path = cubin.cubin(TEXT, "90", "twice")
    assert path.parent == cache
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert path.stat().st_mode & 0o777 == 0o600
    assert cubin.cubin(TEXT, "90", "twice") == path
    assert compiled == ["twice"]
    assert list(cache.iterdir()) == [path]


def test_another_process_finds_it_and_leaves_the_compiler_alone(cache):
    path = cubin.cubin(TEXT, "90", "twice")
    code = (
        "import sys; from fastgd.kernels import cubin; cubin._compiled = None; "
        f"print(cubin.cubin({TEXT!r}, '90', 'twice')); assert not {{'numba', 'cupy', 'cuda.core'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{path}\n", done.stderr


def test_what_changes_the_code_changes_the_name(cache, compiled, monkeypatch):
    paths = [
        cubin.cubin(TEXT, "90", "twice"),
        cubin.cubin(TEXT, "80", "twice"),
        cubin.cubin(TEXT + "//", "90", "twice"),
    ]
    monkeypatch.setattr(cubin, "OPTIONS", (*cubin.OPTIONS, "--maxrregcount=32"))
    paths.append(cubin.cubin(TEXT, "90", "twice"))
    monkeypatch.setattr(cubin, "nvrtc_version", lambda: "99.0")
    paths.append(cubin.cubin(TEXT, "90", "twice"))
    assert len(set(paths)) == len(compiled) == 5
    assert len({path.name.rpartition("-")[0] for path in paths}) == 5  # not for their content alone


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c[:99] + b"?" + c[100:]])
def test_a_damaged_file_is_healed(cache, compiled, caplog, damage):
    path = cubin.cubin(TEXT, "90", "twice")
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    with caplog.at_level(logging.WARNING, "fastgd"):
        assert cubin.cubin(TEXT, "90", "twice") == path
    (note,) = caplog.messages
    assert note == f"{path} is damaged and is compiled again"
    assert path.read_bytes() == sound
    assert compiled == ["twice"] * 2


def test_a_file_that_others_may_write_is_not_used(cache, compiled):
    path = cubin.cubin(TEXT, "90", "twice")
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert cubin.cubin(TEXT, "90", "twice") == path
        assert path.stat().st_mode & 0o777 == 0o600  # a new file in its place
    assert compiled == ["twice"] * 3


def test_a_file_of_somebody_else_is_not_used(cache, compiled):
    if os.geteuid():
        pytest.skip("only root can give a file away")
    path = cubin.cubin(TEXT, "90", "twice")
    os.chown(path, 12345, -1)
    assert cubin.cubin(TEXT, "90", "twice") == path
    assert path.stat().st_uid == os.geteuid()
    assert compiled == ["twice"] * 2


def test_switched_off_it_lies_in_a_folder_that_goes_with_the_process(tmp_path):
    code = f"from fastgd.kernels import cubin; p = [cubin.cubin({TEXT!r}, '90', 'twice') for _ in range(2)]; "
    code += "assert p[0] == p[1] and p[0].exists(); print(p[0])"
    environment = {**os.environ, "FASTGD_CACHE": "0", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_child_that_ends_leaves_the_folder_to_its_parent(tmp_path):
    code = (
        f"import os, sys; from fastgd.kernels import cubin; p = cubin.cubin({TEXT!r}, '90', 'twice')\n"
        "if os.fork() == 0: sys.exit()\n"
        "assert os.wait()[1] == 0 and p.exists()"
    )
    environment = {**os.environ, "FASTGD_CACHE": "0", "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_is_said_and_the_kernel_is_there(cache, caplog):
    path = cubin.cubin(TEXT, "90", "twice")
    path.unlink()
    path.mkdir()  # in the way of the file
    with caplog.at_level(logging.WARNING, "fastgd"):
        elsewhere = cubin.cubin(TEXT, "90", "twice")
    assert elsewhere.parent != cache and elsewhere.read_bytes()[:4] == b"\x7fELF"
    (note,) = caplog.messages
    assert "compiled anew" in note
    assert list(cache.iterdir()) == [path]


def test_an_error_of_the_compiler_is_one_with_its_log(cache):
    message = r"NVRTC \S+ cannot compile wrong for sm_90:\nwrong.cu\(1\): error: identifier \"y\" is undefined"
    with pytest.raises(BackendUnavailable, match=message):
        cubin.cubin("__device__ float x = y;", "90", "wrong")
    assert not list(cache.iterdir())


def test_an_architecture_that_is_not_known_is_named(cache):
    assert {"75", "80", "90", "100", "120"} <= set(cubin.architectures())
    with pytest.raises(
        BackendUnavailable,
        match=r"NVRTC \S+ compiles for architectures 75, .*, given 70: for a newer GPU pip install .*",
    ):
        cubin.cubin(TEXT, "70", "twice")


def test_without_the_bindings_the_command_that_adds_them_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailable, match=r"not installed; pip install .fastgd\[cupy13\]"):
        cubin.ptx(TEXT, "90", "twice")


def test_without_the_compiler_the_command_that_adds_it_is_named(monkeypatch):
    from cuda.bindings import nvrtc

    def missing():
        raise RuntimeError("libnvrtc.so.13 not found\nin many places")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    with pytest.raises(
        BackendUnavailable, match=r"NVRTC, which cannot be loaded: libnvrtc.so.13 not found; pip install"
    ):
        cubin.ptx(TEXT, "90", "twice")


def test_bits_are_those_of_the_cpu(cache):
    """What the options promise, in PTX: nothing is contracted, flushed or approximated."""
    text = "__device__ float f(float a, float b) { return sqrtf(a * b + a) / b; }\n"
    ptx = cubin.ptx(text + 'extern "C" __global__ void k(float *p) { p[0] = f(p[1], p[2]); }\n', "90", "k")
    floats = re.findall(r"^\s*([a-z.]+\.f32)\s", ptx, flags=re.MULTILINE)
    arithmetic = [o for o in floats if o.split(".")[0] not in ("ld", "st", "mov")]
    assert arithmetic == ["mul.rn.f32", "add.rn.f32", "sqrt.rn.f32", "div.rn.f32"]


@sass.needs_tools
def test_machine_code_is_read(cache):
    text = """
    extern "C" __global__ void wide(const float4 *in, double *out, int n) {
        __shared__ double half[32];
        float4 x = in[threadIdx.x];
        half[threadIdx.x] = (double)x.x * 0.5;
        __syncthreads();
        out[threadIdx.x] = half[31 - threadIdx.x];
    }
    extern "C" __global__ void spilt(float *p, int n) {
        float x[32];
        for (int i = 0; i < n; i++) x[(int)p[i] & 31] = p[i];
        p[0] = x[n & 31];
    }
    """
    found = sass.kernels(cubin.cubin(text, "80", "read"))
    assert found.keys() == {"wide", "spilt"}
    wide, spilt = found["wide"], found["spilt"]
    assert wide.stores == {8: 1} and sum(wide.loads.values()) == 1
    assert (wide.shared, wide.stack, wide.spills, wide.barriers) == (256, 0, 0, 1)
    assert wide.doubles == 1 and wide.conversions == 1
    assert spilt.stack == 128 and spilt.spills > 0 and spilt.doubles == 0
    assert 0 < spilt.registers <= 255


@sass.needs_tools
def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    file = tmp_path / "no.cubin"
    file.write_text("none")
    with pytest.raises(BackendUnavailable, match=r"nvdisasm cannot read .*no\.cubin"):
        cubin.sass(file)
    with pytest.raises(BackendUnavailable, match="nvnothing is not installed; pip install nvidia-cuda-nvnothing"):
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
        cubin.tool("nvnothing")


def test_a_newer_device_of_a_family_is_given_its_elder_s_machine_code(monkeypatch):
    monkeypatch.setattr(cubin, "architectures", lambda: ("75", "80", "86", "90", "100"))
    given = {"75": "75", "87": "86", "89": "86", "90": "90", "103": "100", "121": "121", "70": "70"}
    assert {arch: cubin.closest(arch) for arch in given} == given
