"""The cache on disk: used, kept apart, healed, refused where others could write, and done without."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastgd.kernels import disk_cache

RUN = """
import json, logging, sys
import numpy as np, fastgd
from fastgd.kernels import cpu_cache, disk_cache
from fastgd.kernels.rules import RULES

class Notes(logging.Handler):
    def emit(self, record):
        notes.append(record.getMessage())

notes, compiled = [], []
logging.getLogger("fastgd").addHandler(Notes())
save = cpu_cache.KernelFile.save_overload
cpu_cache.KernelFile.save_overload = lambda self, *a: (compiled.append(self._name), save(self, *a))
for name in sys.argv[2:]:
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((2, int(sys.argv[1])), dtype=np.float32)
    q = p.copy()
    values = dict(lr=0.1, weight_decay=0.5) if name != "gd" else dict(lr=0.1)
    ours = fastgd.Optimizer(p, RULES[name](**values), threads=2)
    reference = fastgd.Optimizer(q, RULES[name](**values), backend="numpy")
    for _ in range(3):
        ours.step(g)
        reference.step(g)
    assert np.array_equal(p, q), name
folder, reason = disk_cache.status()
print(json.dumps(dict(compiled=compiled, notes=notes, folder=folder and str(folder), reason=reason)))
"""


def start(size, *names, **environment):
    own = {k: v for k, v in os.environ.items() if k not in ("FASTGD_CACHE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(size), *names],
        env=own | {k: str(v) for k, v in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return json.loads(out)


def run(size, *names, **environment):
    return end(start(size, *names, **environment))


def kernels(folder):
    return sorted(folder.glob("*.kernel"))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "cache"
    run(100, "sgd", FASTGD_CACHE=folder)
    return folder


@pytest.fixture
def cache(made_once, tmp_path):
    """A private folder with one sound kernel."""
    return Path(shutil.copytree(made_once, tmp_path / "cache"))


@pytest.mark.parametrize("size", [1000, 200_000], ids=["serial", "parallel"])
def test_kernels_of_other_processes_are_used_and_kept_apart(tmp_path, size):
    """Numba gives symbols numbers that start anew in each process; once, one kernel ran another's arithmetic."""
    names = ("adam", "sgd", "lamb")
    for name in names:
        assert run(size, name, FASTGD_CACHE=tmp_path)["compiled"]
    assert run(size, *names, FASTGD_CACHE=tmp_path)["compiled"] == []
    # those of the disk beside one that is compiled: the compiler is set up only now
    assert len(run(size, *names, "lion", FASTGD_CACHE=tmp_path)["compiled"]) == 1


def test_the_folder_is_private_and_named_by_the_environment(tmp_path, monkeypatch):
    for name in ("FASTGD_CACHE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    ways = [
        ("HOME", tmp_path / "home", tmp_path / "home" / ".cache" / "fastgd"),
        ("XDG_CACHE_HOME", tmp_path / "x", tmp_path / "x" / "fastgd"),
        ("NUMBA_CACHE_DIR", tmp_path / "n", tmp_path / "n" / "fastgd"),
        ("FASTGD_CACHE", tmp_path / "a" / "b", tmp_path / "a" / "b"),
    ]
    for name, value, expected in ways:  # each goes before those above it
        monkeypatch.setenv(name, str(value))
        assert disk_cache.status() == (expected, "")
        assert expected.stat().st_mode & 0o777 == 0o700


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def foreign(content):
    """A sound file whose payload is no kernel."""
    payload = pickle.dumps(("not", "a", "kernel"))
    return content[:16] + hashlib.sha256(payload).hexdigest().encode() + payload


@pytest.mark.parametrize("damage", [truncate, flip, foreign, lambda c: b"", lambda c: b"x" * 40])
def test_damaged_files_are_healed(cache, damage):
    (file,) = kernels(cache)
    file.write_bytes(damage(file.read_bytes()))
    found = run(100, "sgd", FASTGD_CACHE=cache)
    assert found["compiled"] == [file.stem]
    assert len(found["notes"]) == 1 and "compiled again" in found["notes"][0] and str(file) in found["notes"][0]
    assert run(100, "sgd", FASTGD_CACHE=cache) == found | {"compiled": [], "notes": []}


def test_switched_off_it_writes_nothing(tmp_path):
    found = run(100, "sgd", FASTGD_CACHE=0, HOME=tmp_path, TMPDIR=tmp_path)
    assert found["compiled"] and found["folder"] is None and "FASTGD_CACHE=0" in found["reason"]
    assert not kernels(tmp_path) and not list(tmp_path.rglob("*.kernel"))


def test_where_nothing_can_be_written_it_does_without(tmp_path):
    """Files stand in the folders' places: modes prove nothing, root may write anywhere."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    places = [tmp_path / "numba", tmp_path / "xdg", temporary / f"fastgd-{os.geteuid()}"]
    for place in places:
        place.write_text("in the way")
    found = run(100, "sgd", NUMBA_CACHE_DIR=places[0], XDG_CACHE_HOME=places[1], TMPDIR=temporary)
    assert found["compiled"] and found["folder"] is None
    assert all(str(place) in found["reason"] for place in places)
    assert all(place.read_text() == "in the way" for place in places)
    assert not list(tmp_path.rglob("*.kernel"))


def test_a_write_that_fails_is_said_and_nothing_else(cache):
    (file,) = kernels(cache)
    file.unlink()
    file.mkdir()  # in the way of the file
    found = run(100, "sgd", FASTGD_CACHE=cache)
    assert found["compiled"] == [file.stem]
    assert len(found["notes"]) == 1 and "compiled anew" in found["notes"][0]
    assert [path.name for path in cache.iterdir()] == [file.name]


class Mark:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def planted(cache, tmp_path):
    """A folder with a kernel that leaves a mark when it is loaded, and the mark."""
    mark = tmp_path / "mark"
    (file,) = kernels(cache)
    payload = pickle.dumps(Mark(mark))
    file.write_bytes(file.read_bytes()[:16] + hashlib.sha256(payload).hexdigest().encode() + payload)
    return cache, mark


def test_the_drill_bites(planted):
    folder, mark = planted
    assert run(100, "sgd", FASTGD_CACHE=folder)["compiled"]
    assert mark.exists()


def refusal(monkeypatch, folder):
    monkeypatch.setenv("FASTGD_CACHE", str(folder))
    found, reason = disk_cache.status()
    assert found is None
    return reason


def test_a_folder_that_others_may_write_is_not_read(planted, monkeypatch):
    folder, mark = planted
    for mode in (0o777, 0o770, 0o702, 0o1777):
        folder.chmod(mode)
        assert f"can be written by others (mode {mode:04o})" in refusal(monkeypatch, folder)
    assert run(100, "sgd", FASTGD_CACHE=folder)["compiled"]
    assert not mark.exists()
    folder.chmod(0o700)
    folder.parent.chmod(0o777)
    assert "anybody may replace it" in refusal(monkeypatch, folder)
    folder.parent.chmod(0o1777)  # as /tmp is
    assert disk_cache.status() == (folder, "")


def test_a_link_is_not_followed(cache, monkeypatch):
    link = cache.parent / "link"
    link.symlink_to(cache)
    assert "link" in refusal(monkeypatch, link)


def test_a_folder_of_somebody_else_is_not_read(planted, monkeypatch):
    folder, mark = planted
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, -1)
    assert "belongs to user 12345" in refusal(monkeypatch, folder)
    assert run(100, "sgd", FASTGD_CACHE=folder)["compiled"]
    assert not mark.exists()


def test_processes_that_start_cold_at_once(tmp_path):
    racing = [start(size, "sgd", "adam", FASTGD_CACHE=tmp_path) for size in (100, 100, 200_000, 200_000)]
    for process in racing:
        end(process)
    assert len(list(tmp_path.iterdir())) == len(kernels(tmp_path)) == 4
    assert run(100, "sgd", "adam", FASTGD_CACHE=tmp_path)["compiled"] == []


def test_what_changes_the_code_changes_the_name(cache):
    """Numba's switches and the processor; a rule's text is in the printed functions."""
    for switch in ({"NUMBA_BOUNDSCHECK": 1}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, {"NUMBA_OPT": 1}):
        before = kernels(cache)
        assert len(run(100, "sgd", FASTGD_CACHE=cache, **switch)["compiled"]) == 1
        assert len(kernels(cache)) == len(before) + 1
