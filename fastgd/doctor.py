"""Examines whether this process can run steps well: facts, measurements, and what to do about each.

`fastgd doctor` shows it for a fresh process. In yours it may look different, since threads and the treatment of
denormal numbers depend on what else was loaded: call `examine` there.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastgd.backend import backends
from fastgd.kernels.driver import Driver
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES

Status = Literal["ok", "note", "warn", "fail"]

SLOW_MATMUL = 1.5
"""Times what they take apart that a matmul and a step in turn may take: 1.0 to 1.2 with TBB, 2 to 8 with OpenMP."""

SPINNING = 0.002
"""Seconds of CPU time after a step from which on idle threads are to blame: at rest 0.1 to 1 ms, with libgomp 3."""

_REST = 0.05  # seconds for which they are watched
ENDLESS = 0.4 * _REST
"""Seconds of CPU time from which on they do not seem to stop; other processes may have taken the rest."""

_LIBRARIES = {  # distributions that bring them
    "fastgd": ("fastgd",),
    "numpy": ("numpy",),
    "numba": ("numba",),
    "llvmlite": ("llvmlite",),
    "tbb": ("tbb",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "numba-cuda": ("numba-cuda",),
    "torch": ("torch",),
}
_NARROWING = (
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "NUMBA_ENABLE_AVX",
    "NUMBA_LOOP_VECTORIZE",
    "NUMBA_OPT",
    "NUMBA_BOUNDSCHECK",
)
_ADD_TBB = 'pip install "fastgd[tbb]"'


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What it is.
    value
        What was found.
    status
        ``"ok"``; ``"note"``: good to know; ``"warn"``: steps are slower or less exact than they could be; ``"fail"``:
        steps cannot run.
    advice
        What to do about it, or empty.
    """

    name: str
    value: str
    status: Status = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything, in some 3 seconds; nothing is raised for what is broken.

    Returns
    -------
    list of Finding
        Versions, backends, compiler, threads, threading layer, SIMD, denormals, cache, the time of a matmul between
        steps and, where CuPy or numba-cuda is installed, the GPU. Without a compiler that works the list ends there.

    Examples
    --------
    >>> from fastgd.doctor import examine
    >>> all(finding.advice for finding in examine() if finding.status in ("warn", "fail"))
    True
    """
    findings = [*_versions(), *_backends()]
    compiled, machine_code = _compiler()
    findings.append(compiled)
    if compiled.status == "fail":
        return findings
    threads, used = _threads()
    findings.append(threads)
    probes: dict[str, Callable[[], Finding]] = {
        "threading layer": _layer,
        "matmul between steps": lambda: _matmul(used),
        "SIMD": lambda: _simd(machine_code),
        "denormals": lambda: _denormals(used),
        "cache": _cache,
    }
    if any(util.find_spec(library) is not None for library in ("cupy", "numba_cuda")):
        probes["GPU"] = _gpu
    for name, probe in probes.items():
        try:
            findings.append(probe())
        except Exception as error:  # whatever it is: the others are to be seen
            findings.append(_failure(name, error, "a step would fail likewise: see the message"))
    return findings


def _failure(name: str, error: Exception, advice: str) -> Finding:
    text = " ".join(str(error).split())
    return Finding(name, f"{type(error).__name__}: {text[:200]}", "fail", advice)


# ---- what is installed -------------------------------------------------------------------------------------------


def _versions() -> list[Finding]:
    found = [Finding("python", f"{platform.python_version()} on {platform.machine()}")]
    for library, distributions in _LIBRARIES.items():
        for distribution in distributions:
            try:
                found.append(Finding(library, metadata.version(distribution)))
            except metadata.PackageNotFoundError:
                continue
            break
    return found


def _backends() -> list[Finding]:
    return [
        Finding(f"backend {name}", "available")
        if status.available
        else Finding(f"backend {name}", f"not available: {status.reason}", "note", status.remedy)
        for name, status in backends().items()
    ]


def _gpu() -> Finding:
    from fastgd.kernels.cubin import linker, nvrtc_version
    from fastgd.kernels.driver import find
    from fastgd.kernels.errors import BackendUnavailable

    asked: list[Callable[[], str]] = []
    if util.find_spec("cupy") is not None:
        asked.append(lambda: f"NVRTC {nvrtc_version()}")
    if util.find_spec("numba_cuda") is not None:
        asked.append(lambda: "nvJitLink {}.{}".format(*linker().version()))
    compilers, missing = [], []
    for ask in asked:
        try:
            compilers.append(ask())
        except BackendUnavailable as error:
            reason, _, cure = str(error).partition("; ")
            compilers.append(reason)
            missing.append(cure)
    driver, reason = find()
    return judge_gpu(driver, reason, "; ".join(compilers), "; ".join(missing))


def judge_gpu(driver: Driver | None, reason: str, compiler: str, missing: str) -> Finding:
    """Say what kernels for a GPU have to run on.

    Parameters
    ----------
    driver, reason
        What `fastgd.kernels.driver.find` gives.
    compiler
        What is to be said of their compilers.
    missing
        What to do about it, or empty.
    """
    if driver is None:
        parts = [reason]
    else:
        parts = [f"driver of CUDA {driver.version[0]}.{driver.version[1]}"]
        parts += [
            f"{number}: {device.name}, compute capability {device.capability[0]}.{device.capability[1]}, "
            f"{device.memory / 1e9:.1f} GB"
            for number, device in enumerate(driver.devices)
        ] or ["no device"]
    value = "; ".join([*parts, compiler])
    if missing:
        return Finding("GPU", value, "warn", missing)
    if driver is None or not driver.devices:
        return Finding("GPU", value, "note", "nothing to do for arrays of NumPy; cupy and numba-cuda need one")
    return Finding("GPU", value)


def _compiler() -> tuple[Finding, str]:
    """Whether Numba compiles, and the machine code that it makes of AdamW."""
    try:
        from fastgd.kernels.cpu import dispatcher

        start = perf_counter()
        sweep = plan(RULES["adamw"]()).sweeps[0]
        made = dispatcher(sweep, np.dtype(np.float32), "adamw", parallel=False)
        machine_code: str = made.inspect_asm(made.signatures[0])
    except Exception as error:  # an import that fails, or whatever a compiler raises
        off = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
        cure = "unset NUMBA_DISABLE_JIT" if off else "pip install --upgrade numba; until then backend='numpy' serves"
        return _failure("compiler", error, cure), ""
    return Finding("compiler", f"numba compiled AdamW in {perf_counter() - start:.1f} s"), machine_code


# ---- threads -----------------------------------------------------------------------------------------------------


def _threads() -> tuple[Finding, int]:
    from fastgd.kernels.cpu_threads import limits
    from fastgd.kernels.errors import HyperparameterError

    try:
        limit: dict[str, Any] = limits()
    except HyperparameterError as error:
        return Finding("threads", str(error), "fail", "unset FASTGD_NUM_THREADS or correct it"), 1
    return judge_threads(limit), limit["used"]


def judge_threads(limit: dict[str, Any]) -> Finding:
    """Say what bounds the number of threads, given what `fastgd.kernels.cpu_threads.limits` has found."""
    used, affinity, quota, numba = (limit[k] for k in ("used", "affinity", "quota", "numba"))
    free = affinity if quota is None else min(affinity, quota)
    value = f"{used} of {os.cpu_count()} CPUs: affinity {affinity}, {_quota_text(quota)}, NUMBA_NUM_THREADS {numba}"
    value += f", FASTGD_NUM_THREADS {limit['asked'] or 'not set'}"
    if used > free:
        return Finding("threads", value, "warn", f"only {free:g} can run at once: unset FASTGD_NUM_THREADS")
    if limit["asked"] and used < int(free):
        return Finding("threads", value, "note", "FASTGD_NUM_THREADS limits them: unset it to use all")
    if numba < int(free):
        return Finding("threads", value, "note", "NUMBA_NUM_THREADS limits them: unset it to use all")
    if quota is not None and quota < affinity:
        return Finding("threads", value, "note", "the CPU quota of the container limits them: raise it to use all")
    if affinity < (os.cpu_count() or 1):
        return Finding("threads", value, "note", "the affinity (taskset, the batch system) limits them")
    return Finding("threads", value)


def _quota_text(quota: float | None) -> str:
    if quota is None:
        return "no cgroup quota"
    return f"cgroup {'v2' if Path('/sys/fs/cgroup/cgroup.controllers').exists() else 'v1'} quota {quota:g}"


def _layer() -> Finding:
    from fastgd.kernels.cpu_threads import layer, tbb_library

    return judge_layer(layer(), tbb_library() is not None)


def judge_layer(layer: str, tbb_installed: bool) -> Finding:
    """Say what a threading layer means; `tbb_installed`: whether TBB's wheel is there."""
    name = "threading layer"
    if layer == "tbb":
        return Finding(name, "tbb: idle threads sleep, steps may run side by side")
    wishes = [name for name in ("NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY") if name in os.environ]
    cure = f"better: {_ADD_TBB}"
    if tbb_installed and wishes:
        cure = f"TBB is installed: unset {' and '.join(wishes)} to take it"
    elif tbb_installed:
        cure = "TBB is installed and was not taken: let no other Numba code start the threads first"
    if layer == "omp":
        meaning = "omp: idle threads spin before they sleep; after a fork the child's steps are serial"
        return Finding(name, meaning, "note", cure)
    return Finding(name, f"{layer}: slow to start, one parallel step at a time, others wait", "warn", cure)


# ---- the processor -----------------------------------------------------------------------------------------------


def _simd(machine_code: str) -> Finding:
    from llvmlite import binding

    from fastgd.kernels.cpu_cache import machine

    features = binding.get_host_cpu_features()
    has = [f for f in ("avx512f", "avx2", "avx", "sse4.2", "sve", "neon") if features.get(f)]
    *_, target, _ = machine()  # name of the processor that Numba compiles for, and its features
    return judge_simd(has[0] if has else "", binding.get_host_cpu_name(), target, machine_code)


def judge_simd(best: str, host: str, target: str, machine_code: str) -> Finding:
    """Compare the vectors of compiled code with those of the processor.

    Parameters
    ----------
    best
        Widest vectors the processor has, by LLVM's name, or empty.
    host, target
        Names of the processor, and of the one that is compiled for.
    machine_code
        Text of a float32 kernel.
    """
    seen = {r: len(re.findall(rf"%{r}\d", machine_code)) for r in ("zmm", "ymm", "xmm")}
    packed = set(re.findall(r"\bv?(?:add|sub|mul|div|sqrt)ps\b.*%([xyz]mm)", machine_code))
    if re.search(r"\bf(?:add|sub|mul|div|sqrt)\s+[vz]\d+\.4?s\b", machine_code):  # ARM
        packed.add("neon or sve")
    bits = {"zmm": 512, "ymm": 256, "xmm": 128, "neon or sve": 128}
    widest = max(packed, key=bits.__getitem__, default=None)
    counts = ", ".join(f"{register} {count}" for register, count in seen.items())
    used = "no vectors" if widest is None else f"vectors of {bits[widest]} bits ({widest})"
    value = f"{host} with {best or 'no vectors'}; compiled for {target}: {used}"
    value += f"; registers named in AdamW: {counts}" if any(seen.values()) else ""
    if widest is None or (best in ("avx512f", "avx2") and bits[widest] < 256):
        given = [name for name in _NARROWING if name in os.environ]
        cure = f"unset {', '.join(given)}" if given else "a step in cache is slower than it need be: report it, please"
        return Finding("SIMD", value, "warn", cure)
    return Finding("SIMD", value)


def _denormals(threads: int) -> Finding:
    from fastgd.optimizers import GD

    size = 1 << 21  # a step of more than a millisecond: every thread of the pool gets a part
    denormal = np.full(size, 1 << 20, np.uint32).view(np.float32)
    p, g = np.empty_like(denormal), np.zeros_like(denormal)
    step = GD(p, lr=0.0, threads=threads).step
    kept = flushed = False
    for _ in range(3):
        p[:] = denormal
        step(g)  # p - 0 * g
        unchanged = p.view(np.uint32) == denormal.view(np.uint32)  # as integers: a comparison may flush as well
        kept, flushed = kept or bool(unchanged.any()), flushed or not unchanged.all()
    return judge_denormals(_flushing_here(), kept, flushed, threads)


def _flushing_here() -> list[str]:
    """Name what this thread does to denormal numbers."""

    def vanishes(x: NDArray[np.float32], factor: float) -> bool:
        return not (x * np.float32(factor)).view(np.uint32).any()

    smallest, denormal = (np.full(16, bits, np.uint32).view(np.float32) for bits in (1 << 23, 1 << 20))
    on = {"flush-to-zero": vanishes(smallest, 0.5), "denormals-are-zero": vanishes(denormal, 2.0**40)}
    return [name for name, is_on in on.items() if is_on]


def judge_denormals(here: list[str], kept: bool, flushed: bool, threads: int) -> Finding:
    """Say where denormal numbers become zero.

    Parameters
    ----------
    here
        What is on in the main thread.
    kept, flushed
        Whether a parallel step has kept some, and whether it has flushed some.
    threads
        Threads of the step.
    """
    main = f"{' and '.join(here)} on" if here else "kept"
    if threads == 1:
        pool = "there is no pool"
    elif here:
        pool = "kept in other threads of the pool" if kept else "flushed in all of the pool"
    else:
        pool = "flushed in other threads of the pool" if flushed else "kept in all of the pool"
    value = f"{main} in the main thread, {pool}"
    if here or flushed:
        mixed = kept if here else True
        cure = (
            f"tiny numbers become 0{' in some threads and not in others' if mixed else ''}, against the promise of the "
            "same bits: a library, perhaps one built with -ffast-math, has switched it on; import them one by one to "
            "find it, and do without it or switch it off after its import"
        )
        return Finding("denormals", value, "warn", cure)
    return Finding("denormals", value)


# ---- cache and neighbours ----------------------------------------------------------------------------------------


def _cache() -> Finding:
    from fastgd.kernels.disk_cache import status

    folder, reason = status()
    if folder is None:
        off = os.environ.get("FASTGD_CACHE") == "0"
        cure = "unset FASTGD_CACHE" if off else "name a folder that only you can write, as FASTGD_CACHE=folder"
        value = f"not in use, every process compiles anew: {reason}"
        return Finding("cache", value, "note" if off else "warn", cure)
    sizes = []
    for path in (*folder.glob("*.kernel"), *folder.glob("*.cubin")):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # just replaced or removed by another process
            continue
    value = f"{folder}: {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB"
    if not os.access(folder, os.W_OK):
        return Finding("cache", f"{value}, read-only", "note", "other kernels are compiled anew in each process")
    return Finding("cache", value)


def _matmul(threads: int) -> Finding:
    if threads == 1:
        return Finding("matmul between steps", "not measured: a step on one thread leaves no other one spinning")
    from fastgd.kernels.cpu_threads import layer

    return judge_matmul(*_matmul_times(threads), layer())


def _matmul_times(threads: int) -> tuple[float, float, float]:
    """Seconds of a matmul and a parallel step apart, of both in turn, and of what idle threads burn after a step."""
    from fastgd.kernels.cpu import CROSSOVER
    from fastgd.optimizers import AdamW

    a = np.random.default_rng(0).standard_normal((512, 512))
    out = np.empty_like(a)
    g = np.zeros(CROSSOVER // 16, np.float32)  # parallel, and small: it leaves the matrices in the cache
    optimizer = AdamW(np.zeros_like(g), threads=threads)

    def step() -> None:
        optimizer.step(g)

    def matmul() -> None:
        np.matmul(a, a, out=out)

    def both() -> None:
        matmul()
        step()

    def burnt() -> float:
        step()
        start = process_time()  # of all threads
        sleep(_REST)
        return process_time() - start

    def seconds(work: Callable[[], None]) -> float:
        """Usual time of one of many in a row; other processes disturb some, threads in each other's way most."""
        taken: list[float] = []
        end = perf_counter() + 0.4
        while len(taken) < 9 or (perf_counter() < end and len(taken) < 200):
            start = perf_counter()
            work()
            taken.append(perf_counter() - start)
        return median(taken)

    matmul_alone = seconds(matmul)  # before the first step: some threads never stop spinning after it
    step()
    sleep(0.2)  # for the threads of NumPy's matmul, which spin as well
    spin = median(burnt() for _ in range(5))
    step_alone = seconds(step)
    return matmul_alone + step_alone, seconds(both), spin


def judge_matmul(apart: float, in_turn: float, spin: float, layer: str) -> Finding:
    """Compare the seconds of a matmul and a step apart and in turn, given those that idle threads burn after a step."""
    ratio = in_turn / apart
    value = (
        f"with a step in turn {ratio:.2f} times what both take apart ({in_turn * 1e3:.1f} ms for {apart * 1e3:.1f} ms, "
    )
    value += f"512 x 512, float64); idle threads burn {spin * 1e3:.1f} ms{' and more' * (spin > ENDLESS)} after a step"
    load = os.getloadavg()[0]
    if load > 0.5 * (os.cpu_count() or 1):
        value += f"; other processes run (load {load:.1f}), which blurs this"
    if ratio < SLOW_MATMUL and spin < ENDLESS:
        return Finding("matmul between steps", value)
    if layer == "omp":
        cure = f"the threads of OpenMP and of the matmul hold each other up: {_ADD_TBB}"
        if spin >= SPINNING:
            cure += ", or set OMP_WAIT_POLICY=passive before Python starts"
        return Finding("matmul between steps", value, "warn", cure)
    if spin < SPINNING:
        cure = "something else wants the cores: examine again when the machine is idle, or give steps fewer threads"
        return Finding("matmul between steps", value, "note", cure)
    cure = f"idle threads hold the cores, and they are not those of {layer}: see what else computes in this process"
    return Finding("matmul between steps", value, "warn", cure)
