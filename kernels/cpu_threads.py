"""Threads of the numba backend: how many, which layer runs them, and what is safe after a fork and side by side.

Of Numba's three layers two are dangerous as they come. GNU OpenMP kills a forked child that goes parallel, and its idle
threads spin for milliseconds on the cores that the caller's matmul wants; workqueue aborts the process on two launches
at once. The cures are here: after a fork everything is serial, TBB is taken where its wheel is, OpenMP's spinning is
cut short, and launches on workqueue queue up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config

from fastgd.kernels.errors import HyperparameterError

config: Any = _config  # its attributes are made at run time

SPINS = "30000"
"""Rounds that an idle OpenMP thread spins before it sleeps: some 0.4 ms, a tenth of libgomp's own default.

With the default a 512 x 512 matmul between two steps took 6 to 7 times its own time, with these 2 to 2.5 times, with
TBB 1.1 to 1.4 times. Fewer make it cheaper still, and steps of 1 M elements three times as long (docs/performance.md).
"""


# ---- how many ----------------------------------------------------------------------------------------------------


def available_threads(asked: int | None = None) -> int:
    """Decide how many threads to use: those asked for, or as many as the process may run at once.

    Affinity and the cgroup's CPU quota count, ``FASTGD_NUM_THREADS`` overrides both.

    Raises
    ------
    HyperparameterError
        If more are asked for than Numba has (``NUMBA_NUM_THREADS``), or less than one.
    """
    most: int = config.NUMBA_NUM_THREADS
    source = "threads"
    if asked is None and (text := os.environ.get("FASTGD_NUM_THREADS")):
        source = "FASTGD_NUM_THREADS"
        try:
            asked = int(text)
        except ValueError:
            raise HyperparameterError(f"FASTGD_NUM_THREADS must be a number of threads, given {text!r}") from None
    if asked is None:
        return max(1, int(min(most, _affinity(), cgroup_quota())))
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= most:
        raise HyperparameterError(f"{source} must be a whole number from 1 to {most}, given {asked!r}")
    return asked


def limits() -> dict[str, object]:
    """Say what bounds the number of threads.

    Returns
    -------
    dict
        ``affinity``, ``quota`` (CPUs, None without one), ``numba``, ``asked`` (by FASTGD_NUM_THREADS, or None) and
        ``used``.
    """
    quota = cgroup_quota()
    return {
        "affinity": _affinity(),
        "quota": None if quota == float("inf") else quota,
        "numba": config.NUMBA_NUM_THREADS,
        "asked": os.environ.get("FASTGD_NUM_THREADS"),
        "used": available_threads(),
    }


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs that the process's cgroup and those above it may use, at least 1; infinite without a quota."""
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return float("inf")
    quotas = []
    for _, controllers, path in groups:
        if not controllers:
            base, files = mounted, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            base, files = mounted / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in (base / inside, *(base / p for p in inside.parents)):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = " ".join((folder / name).read_text() for name in files).split()
                if int(quota) > 0:
                    quotas.append(max(1.0, int(quota) / int(period)))
    return min(quotas, default=float("inf"))


# ---- which layer -------------------------------------------------------------------------------------------------

_started: str | None = None  # the layer, once it runs
_one_at_a_time = threading.Lock()
_forked = False


def _after_fork() -> None:
    global _forked, _one_at_a_time
    _one_at_a_time = threading.Lock()  # another thread of the parent may have held it
    _forked = _forked or _running() is not None


os.register_at_fork(after_in_child=_after_fork)


def _running() -> str | None:
    try:
        return str(numba.threading_layer())  # type: ignore[attr-defined]  # public, unmarked
    except ValueError:  # none was started
        return None


def forked() -> bool:
    """Whether this process was forked from one that had gone parallel, so that it must not."""
    return _forked


def layer() -> str:
    """Start Numba's threads if they do not run yet, and name the layer: ``tbb``, ``omp`` or ``workqueue``.

    Whoever started them before, with Numba's own functions, has chosen already.
    """
    global _started
    if _started is None:
        with _one_at_a_time:
            if _running() is None:
                _offer_tbb()
                with _short_spins():
                    numba.get_num_threads()  # starts them
            _started = _running()
            assert _started is not None
    return _started


def tbb_library() -> Path | None:
    """Find the library in TBB's wheel, which lies where the dynamic linker does not look."""
    try:
        files = metadata.files("tbb") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name.startswith("libtbb.so.")), None)


def _offer_tbb() -> None:
    """Load TBB's wheel: Numba finds it only where it is loaded."""
    library = tbb_library()
    if library is not None:
        with contextlib.suppress(OSError):  # made for another machine: Numba takes the next layer
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


@contextlib.contextmanager
def _short_spins() -> Iterator[None]:
    """Have libgomp, which reads its environment when it is loaded, spin for `SPINS`; the user's own wish stands."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def launch(kernel: Callable[[int], None], control: int, threads: int, otherwise: Callable[[], None]) -> None:
    """Run a parallel kernel on so many threads; call `otherwise` where the process was forked from a parallel one."""
    if _forked:
        otherwise()
        return
    with _one_at_a_time if _started == "workqueue" else nullcontext():
        before = numba.get_num_threads()  # of this Python thread: the number is thread-local
        if before != threads:
            numba.set_num_threads(threads)
        try:
            kernel(control)
        finally:
            if before != threads:
                numba.set_num_threads(before)
