"""Threads: how many, which layer, after a fork, side by side. What would kill the process runs in one of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import fastgd
from fastgd.kernels import cpu_threads
from fastgd.kernels.errors import HyperparameterError

HEAD = """
import hashlib, os, sys, threading
import numpy as np, numba, fastgd
from fastgd.kernels import cpu_threads

def stepped(n=200_000, steps=5, threads=None, seed=0):
    p, g = np.random.default_rng(seed).standard_normal((2, n), dtype=np.float32)
    opt = fastgd.AdamW(p, lr=0.1, threads=threads, max_norm=1.0)
    for _ in range(steps):
        opt.step(g)
    return hashlib.sha256(p.tobytes()).hexdigest()
"""

LAYERS = ["omp", "workqueue", *(["tbb"] if cpu_threads.tbb_library() else [])]


def python(code, layer=None, limit=120, **environment):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "FASTGD_NUM", "NUMBA_NUM"))}
    own |= {"NUMBA_THREADING_LAYER": layer} if layer else {}
    return subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env=own | environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )


def output(*given, **more):
    done = python(*given, **more)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split()


def serial_hash(seed=0):
    p, g = np.random.default_rng(seed).standard_normal((2, 200_000), dtype=np.float32)
    opt = fastgd.AdamW(p, lr=0.1, threads=1, max_norm=1.0)
    for _ in range(5):
        opt.step(g)
    return hashlib.sha256(p.tobytes()).hexdigest()


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_gives_the_bits_of_one_thread(layer):
    assert output("print(stepped(threads=2), cpu_threads.layer())", layer) == [serial_hash(), layer]


SIDE_BY_SIDE = """
expected = {seed: stepped(seed=seed) for seed in range(8)}
wrong = []
start = threading.Barrier(8)
def work(seed):
    start.wait()
    for _ in range(6):
        if stepped(seed=seed) != expected[seed]:
            wrong.append(seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong
print(cpu_threads.layer())
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_optimizers_step_side_by_side(layer):
    """Two launches at once abort the process on workqueue."""
    assert output(SIDE_BY_SIDE, layer) == [layer]


def test_workqueue_needs_its_lock():
    code = "from contextlib import nullcontext\nstepped()\ncpu_threads._one_at_a_time = nullcontext()\n"
    assert python(code + SIDE_BY_SIDE, "workqueue").returncode == -signal.SIGABRT


FORK = """
import signal
before = stepped()
for depth in range(2):
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) % 256)
{cure}
assert stepped() == before
os._exit(5)
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_a_forked_child_steps_serially(layer):
    """And its own child too; GNU OpenMP would kill them."""
    done = python(FORK.format(cure="assert cpu_threads._forked"), layer)
    assert done.returncode == 5, done.stderr


def test_openmp_needs_that():
    """A child that goes parallel is killed, or never comes back."""
    done = python(FORK.format(cure="cpu_threads._forked = False\nsignal.alarm(3)"), "omp")
    assert done.returncode in (-signal.SIGTERM % 256, -signal.SIGALRM % 256)


POOL = """
import multiprocessing
def forked(_):
    return cpu_threads._forked
pool = multiprocessing.get_context("fork").Pool(2)
print(*set(pool.starmap(stepped, [()] * 4)), stepped())
print(*set(pool.map(forked, range(4))))
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_workers_forked_before_any_step_go_parallel(layer):
    assert output(POOL, layer) == [serial_hash()] * 2 + ["False"]


@pytest.mark.parametrize("layer", LAYERS)
def test_workers_forked_in_between_are_serial(layer):
    code = POOL.replace("pool =", "stepped()\npool =")
    assert output(code, layer) == [serial_hash()] * 2 + ["True"]


def test_a_child_is_not_held_up_by_a_step_of_the_parent():
    """Forked while another thread is in a step: the lock must not be inherited, the half step is refused."""
    code = """
entered, leave = threading.Event(), threading.Event()
p = np.ones(100)
opt = fastgd.SGD(p, lr=1.0)
opt.step(np.ones(100))
def slow():
    entered.set()
    leave.wait()
opt._layout.program.runs = [slow]
threading.Thread(target=opt.step, args=(np.ones(100),), daemon=True).start()
entered.wait()
child = os.fork()
if not child:
    try:
        opt.step(np.ones(100))
    except fastgd.FastGDError as error:
        os._exit(7 if "half-way" in str(error) else 8)
    os._exit(9)
_, status = os.waitpid(child, 0)
leave.set()
print(os.waitstatus_to_exitcode(status))
"""
    assert output(code, limit=60) == ["7"]


def test_the_callers_number_of_threads_is_left_alone():
    code = (
        "numba.set_num_threads(2)\nstepped(threads=1)\nprint(numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS)"
    )
    assert output(code, NUMBA_NUM_THREADS="3") == ["2", "3"]
    code = """
used = []
launch = cpu_threads.numba.set_num_threads
cpu_threads.numba.set_num_threads = lambda n: (used.append(n), launch(n))
stepped(threads=2, steps=1)
print(*used, numba.get_num_threads())
"""
    assert output(code, NUMBA_NUM_THREADS="3")[-1] == "3"


def test_number_of_threads():
    shown = "print(*(cpu_threads.limits()[k] for k in ('used', 'numba', 'asked')))"
    assert output(shown, NUMBA_NUM_THREADS="4", FASTGD_NUM_THREADS="3") == ["3", "4", "3"]
    one = "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert output(one + shown, NUMBA_NUM_THREADS="4") == ["1", "4", "None"]
    assert output(one + shown, OMP_NUM_THREADS="4", NUMBA_NUM_THREADS="2") == ["1", "2", "None"]
    done = python("fastgd.SGD(np.ones(3))", FASTGD_NUM_THREADS="many")
    assert "HyperparameterError: FASTGD_NUM_THREADS must be a number of threads, given 'many'" in done.stderr
    done = python("fastgd.SGD(np.ones(3))", FASTGD_NUM_THREADS="9", NUMBA_NUM_THREADS="2")
    assert "HyperparameterError: FASTGD_NUM_THREADS must be a whole number from 1 to 2, given 9" in done.stderr
    for wrong in (0, -1, 1.0, True, "2", 10**6):
        with pytest.raises(HyperparameterError, match=r"threads must be a whole number from 1 to \d+, given"):
            cpu_threads.available_threads(wrong)


def cgroup(tmp_path, own, **files):
    (tmp_path / "self").write_text(own)
    for name, text in files.items():
        path = tmp_path / "fs" / name.replace("__", "/").replace("_max", ".max").replace("cfs_", ".cfs_", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return cpu_threads.cgroup_quota(tmp_path / "fs", tmp_path / "self")


def test_cgroup_quota(tmp_path):
    assert cpu_threads.cgroup_quota(tmp_path, tmp_path / "none") == float("inf")
    assert cgroup(tmp_path / "", "0::/\n") == float("inf")
    assert cgroup(tmp_path, "0::/\n", cpu_max="max 100000\n") == float("inf")
    assert cgroup(tmp_path, "0::/\n", cpu_max="250000 100000\n") == 2.5
    # its own group's, and the tightest of those above
    assert cgroup(tmp_path, "0::/a/b\n", a__b__cpu_max="400000 100000\n") == 2.5
    assert cgroup(tmp_path, "0::/a/b\n", a__b__cpu_max="150000 100000\n") == 1.5
    assert cgroup(tmp_path, "0::/a/b\n", a__b__cpu_max="20000 100000\n") == 1.0


def test_cgroup_quota_of_the_first_version(tmp_path):
    own = "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n"
    quota, period = "cpu__docker__x__cpucfs_quota_us", "cpu__docker__x__cpucfs_period_us"
    assert cgroup(tmp_path, own, **{quota: "-1\n", period: "100000\n"}) == float("inf")
    assert cgroup(tmp_path, own, **{quota: "300000\n", period: "100000\n"}) == 3.0


def test_a_quota_bounds_the_threads(monkeypatch):
    monkeypatch.delenv("FASTGD_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu_threads, "cgroup_quota", lambda: 1.5)
    assert cpu_threads.available_threads() == 1
    assert cpu_threads.limits()["quota"] == 1.5
    assert fastgd.SGD(np.zeros(10**5))._layout.program.launches[0].sweeps[0]._parallel is False


@pytest.mark.skipif("tbb" not in LAYERS, reason='TBB is not installed: pip install "fastgd[tbb]"')
def test_tbb_is_taken_where_it_is_installed():
    assert output("stepped()\nprint(numba.threading_layer())") == ["tbb"]


SPINS = """
import ctypes
stepped()
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(os.environ.get("GOMP_SPINCOUNT"), getenv(b"GOMP_SPINCOUNT"), numba.threading_layer())
"""


def test_openmp_is_told_to_spin_briefly_and_the_environment_is_as_before():
    assert output(SPINS, "omp") == ["None", "None", "omp"]
    assert output(SPINS, "omp", GOMP_SPINCOUNT="77") == ["77", "b'77'", "omp"]
    seen = "os.environ['OMP_DISPLAY_ENV'] = 'verbose'\nstepped()"
    shown = python(seen, "omp").stderr
    assert f"GOMP_SPINCOUNT = '{cpu_threads.SPINS}'" in shown
    assert "GOMP_SPINCOUNT = '123'" in python(seen, "omp", GOMP_SPINCOUNT="123").stderr
    assert f"GOMP_SPINCOUNT = '{cpu_threads.SPINS}'" not in python(seen, "omp", OMP_WAIT_POLICY="passive").stderr
