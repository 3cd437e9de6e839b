"""What a driver says becomes devices or one reason; a made-up driver stands in for what this machine lacks."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import gxx
import pytest

import fastgd
from fastgd import backend
from fastgd.kernels import cubin, driver
from fastgd.kernels.driver import Device, Driver
from fastgd.kernels.errors import ADD_CUPY, BackendUnavailable

SOURCE = """
#include <string.h>
#include <stddef.h>
extern "C" {{
int cuInit(unsigned) {{ return {init}; }}
int cuDriverGetVersion(int* v) {{ *v = 13010; return 0; }}
int cuDeviceGetCount(int* n) {{ *n = {count}; return 0; }}
int cuDeviceGet(int* d, int i) {{ *d = 40 + i; return 0; }}
int cuDeviceGetName(char* s, int n, int d) {{ strncpy(s, d == 40 ? "First" : "Second", n); return 0; }}
int cuDeviceGetAttribute(int* v, int a, int d) {{ *v = a == 75 ? d - 31 : a == 76 ? d - 40 : -1; return 0; }}
int cuDeviceTotalMem_v2(size_t* n, int d) {{ *n = {memory}; return {total}; }}
int cuGetErrorString(int code, const char** s) {{ *s = code == 999 ? 0 : "it is broken"; return 0; }}
}}
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Put a library in the driver's place that answers as asked for."""
    if gxx.GXX is None:
        pytest.skip("no g++")

    def install(init=0, count=2, memory="80ull << 30", total=0):
        file = tmp_path / "driver.cpp"
        file.write_text(SOURCE.format(init=init, count=count, memory=memory, total=total))
        library = tmp_path / "libcuda.so.1"
        subprocess.run([gxx.GXX, "-shared", "-fPIC", "-o", library, file], check=True)
        monkeypatch.setattr(driver, "_LIBRARY", str(library))

    return install


def test_devices_are_told_with_capability_and_memory(made_up):
    made_up()
    first, second = Device("First", (9, 0), 80 << 30), Device("Second", (10, 1), 80 << 30)
    assert driver.find() == (Driver((13, 1), (first, second)), "")


def test_a_driver_without_a_device_is_one(made_up):
    made_up(init=100)
    assert driver.find() == (Driver((13, 1), ()), "")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (dict(init=3), r"does not work: cuInit: it is broken \(error 3\)"),
        (dict(init=999), r"cuInit: unknown error \(error 999\)"),
        (dict(total=2), r"cuDeviceTotalMem_v2: it is broken \(error 2\)"),
    ],
)
def test_a_driver_that_fails_says_where(made_up, how, said):
    made_up(**how)
    found, reason = driver.find()
    assert found is None
    assert re.search(said, reason)


def test_no_driver_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "_LIBRARY", str(tmp_path / "libcuda.so.1"))
    found, reason = driver.find()
    assert found is None
    assert "no NVIDIA driver" in reason
    (tmp_path / "libcuda.so.1").write_text("no library")
    assert driver.find() == (found, reason)


# ---- the backend -------------------------------------------------------------------------------------------------

HOPPER = Device("Hopper", (9, 0), 80 << 30)
TURING = Device("Turing", (7, 5), 16 << 30)
VOLTA = Device("Volta", (7, 0), 16 << 30)
PASCAL = Device("Pascal", (6, 1), 8 << 30)


@pytest.fixture
def here(monkeypatch):
    """Pretend what is installed and which driver there is; give what `fastgd.backends` then says of CuPy."""

    def pretend(found, cupy="cupy-cuda13x", bindings="13.5.0"):
        installed = {"cupy-cuda13x": None, "cupy-cuda12x": None, "cupy": None, "cuda-bindings": bindings}
        if cupy is not None:
            installed[cupy] = "14.2.0"
        monkeypatch.setattr(backend.util, "find_spec", lambda name: None if cupy is None else object())
        monkeypatch.setattr(backend, "_version", installed.get)
        monkeypatch.setattr(backend, "find_driver", lambda: (found, "" if found else "there is no driver"))
        return fastgd.backends()["cupy"]

    return pretend


@pytest.mark.parametrize(
    ("cupy", "bindings", "found"),
    [
        ("cupy-cuda13x", "13.5.0", Driver((13, 0), (HOPPER,))),
        ("cupy-cuda13x", "13.5.0", Driver((13, 1), (TURING,))),
        ("cupy-cuda13x", "13.5.0", Driver((14, 0), (PASCAL, HOPPER))),
        ("cupy-cuda12x", "12.9.4", Driver((13, 0), (VOLTA,))),
        ("cupy-cuda12x", "12.9.4", Driver((12, 4), (TURING,))),
        ("cupy", "12.9.4", Driver((12, 4), (VOLTA,))),
    ],
)
def test_cupy_serves(here, cupy, bindings, found, monkeypatch):
    monkeypatch.setattr(cubin, "nvrtc_version", lambda: "13.0.88")
    assert here(found, cupy, bindings) == (True, "", "", "14.2.0")


def test_cupy_does_not_serve_without_its_compiler(here, monkeypatch):
    def missing():
        raise BackendUnavailable(f"CUDA C++ needs NVIDIA's compiler NVRTC, which cannot be loaded: drill; {ADD_CUPY}")

    monkeypatch.setattr(cubin, "nvrtc_version", missing)
    said = here(Driver((13, 0), (HOPPER,)), "cupy-cuda13x", "13.5.0")
    assert said.reason.endswith("cannot be loaded: drill") and said.remedy == ADD_CUPY


@pytest.mark.parametrize(
    ("cupy", "bindings", "found", "reason", "remedy"),
    [
        (None, None, None, "CuPy is not installed", r"fastgd\[cupy13\].*fastgd\[cupy12\]"),
        ("cupy-cuda13x", None, None, "cuda-bindings", r"fastgd\[cupy13\]"),
        ("cupy-cuda13x", "13.5.0", None, "there is no driver", "NVIDIA GPU and its driver"),
        ("cupy-cuda13x", "13.5.0", Driver((12, 4), (HOPPER,)), "serves CUDA 12.4.*needs CUDA 13", r"fastgd\[cupy12\]"),
        ("cupy", "13.5.0", Driver((12, 4), (HOPPER,)), "serves CUDA 12.4.*needs CUDA 13", r"fastgd\[cupy12\]"),
        ("cupy-cuda13x", "13.5.0", Driver((13, 0), ()), "no GPU", "CUDA_VISIBLE_DEVICES"),
        ("cupy-cuda13x", "13.5.0", Driver((13, 0), (VOLTA,)), "needs .* 7.5, and Volta has 7.0", r"fastgd\[cupy12\]"),
        ("cupy-cuda12x", "12.9.4", Driver((12, 9), (PASCAL,)), "needs .* 7.0, and Pascal has 6.1", "^use a newer GPU"),
    ],
)
def test_each_thing_that_is_missing_has_its_remedy(here, cupy, bindings, found, reason, remedy):
    said = here(found, cupy, bindings)
    assert not said.available
    assert re.search(reason, said.reason)
    assert re.search(remedy, said.remedy)
    assert said.version == (cupy and "14.2.0")


def test_the_command_that_an_error_names_exists():
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"fastgd\[(\w+)\]", ADD_CUPY):
        assert extras["optional-dependencies"][extra]
