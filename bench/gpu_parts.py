"""The parts of a run on a GPU: bits, tests, compute-sanitizer, bandwidth, launch cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from threading import Timer
from typing import Any

from fastgd.bench import gpu_bits
from fastgd.bench.cases import Case
from fastgd.bench.gpu_peers import GPU_CASES, names
from fastgd.bench.gpu_run import Run, Scale, backends, describe, settings
from fastgd.bench.report import size_text
from fastgd.bench.worker import Worker
from fastgd.state import plain

ROOT = Path(__file__).resolve().parent.parent

_MODULE = "fastgd.bench.gpu_peers"
_SANITIZED = ("sgd", "adamw", "lamb", "prodigy")  # few states, the usual ones, and both kinds of sums
_LAUNCHED = ("adamw", "adamw-clip", "sgd", "lamb")
_FIRST = ("adamw", "adamw-clip")
_HUGE = ("adamw", "sgd", "lion", "lamb", "prodigy")
_VARIANTS = ("adamw-tail", "adamw-gpt2", "adamw-tail-gpt2", "lamb-gpt2")
_ERRORS = 99  # exit status that compute-sanitizer is told to give for what it finds


def full(*, quick: bool) -> Scale:
    """Say how much is done."""
    served = tuple(gpu_bits.served())
    rest = tuple(name for name in (*_VARIANTS, *served) if name not in _FIRST)
    whole = Scale(served, _HUGE, _FIRST, _HUGE, rest)
    return replace(whole, compared=_HUGE, huge=(), rest=_HUGE[1:], rounds=3) if quick else whole


def parts(scale: Scale) -> list[tuple[str, Callable[[Run], None]]]:
    """List what is done, in the order in which it matters: what has no time left is at the end."""
    large, most = size_text(scale.large), size_text(scale.most)
    return [
        ("device and versions", describe),
        ("bits", bits),
        ("tests on the GPU", suite),
        (f"speed at {large} elements: {', '.join(scale.first)}", speed(scale.first, scale.large)),
        *([(f"speed at {most} elements", speed(scale.huge, scale.most))] if scale.huge else []),
        ("launch cost", launches),
        ("blocks for each processor", grids),
        ("compute-sanitizer", sanitizer),
        (f"speed at {large} elements: the others", speed(scale.rest, scale.large)),
    ]


# ---- checks ------------------------------------------------------------------------------------------------------


def bits(run: Run) -> None:
    """Compare the bits of every rule with NumPy's."""
    listed = gpu_bits.checks(run.scale.compared)
    if "numba-cuda" in backends(run):  # whose text of a rule is the same for both dtypes
        listed += gpu_bits.checks(run.scale.compared, ("float32",), "numba-cuda")
        listed += gpu_bits.checks(run.scale.in_both, ("float64",), "numba-cuda")
    rest = run.left() / 2  # for what else is to be seen
    gpu_bits.compile_ahead(listed)
    result: dict[str, Any] = {"compared": 0, "wrong": {}}
    run.report["bits"] = result
    missed: dict[str, int] = {}
    for check, found in gpu_bits.compare(listed, lambda: run.left() > rest and run.has_time()):
        if found is None:
            missed[check.rule] = missed.get(check.rule, 0) + 1
            continue
        result["compared"] += 1
        if found:
            result["wrong"][check.name] = gpu_bits.shown(found)
            print(f"WRONG: {check.name}: {gpu_bits.shown(found)}", flush=True)
    for rule, count in missed.items():
        run.leave_out(f"{count} comparisons of {rule}'s bits")
    print(f"{result['compared']} comparisons, {len(result['wrong'])} wrong", flush=True)


def suite(run: Run) -> None:
    """Run the tests that need a device."""
    if not (tests := ROOT / "tests" / "test_cuda_gpu.py").exists():
        run.leave_out("tests on the GPU", "fastgd is installed without its tests")
        return
    with tempfile.TemporaryDirectory() as folder:
        # settings of its own: those of the project ask for plug-ins that may not be here
        settings = Path(folder) / "pytest.ini"
        settings.write_text(f"[pytest]\npythonpath = {ROOT} {ROOT / 'tests' / 'cuda'}\n")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            str(settings),
            "--rootdir",
            str(ROOT),
            "-p",
            "no:cacheprovider",
        ]
        status, text = _output(run, [*command, "-q", "-rs", "--require-gpu", str(tests)])
    last = (text.splitlines() or ["no output"])[-1]
    if status is None:
        run.leave_out("tests on the GPU", "they did not end in time")
    elif status:
        run.fail("tests on the GPU", last)
        print(text[-6000:], flush=True)
    else:
        run.report["checked"]["tests on the GPU"] = last
        for line in text.splitlines():
            if line.startswith("SKIPPED"):
                run.leave_out("test on the GPU", line.removeprefix("SKIPPED "))


def sanitizer(run: Run) -> None:
    """Have compute-sanitizer look for bad accesses and races."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    for tool, backend in product(("memcheck", "racecheck"), backends(run)):
        name = f"compute-sanitizer's {tool}, {backend}"
        if program is None:
            run.leave_out(name, "compute-sanitizer is not installed")
        elif not run.has_time():
            run.leave_out(name)
        else:
            _sanitize(run, program, tool, backend)


def _sanitize(run: Run, program: str, tool: str, backend: str) -> None:
    options = ["--tool", tool, "--error-exitcode", str(_ERRORS)]
    if tool == "memcheck":  # CuPy asks the runtime for what a device may not have, and takes no for an answer
        options += ["--report-api-errors", "no"]
    command = [program, *options, sys.executable, "-m", "fastgd.bench.gpu_bits", "--backend", backend, *_SANITIZED]
    status, text = _output(run, command)
    summary = next((line.strip("= ") for line in reversed(text.splitlines()) if "SUMMARY" in line), "")
    name = f"compute-sanitizer's {tool}, {backend}"
    if status is None:
        run.leave_out(name, "it did not end in time")
    elif not summary:
        run.leave_out(name, f"it does not work here: {(text.splitlines() or ['no output'])[-1]}")
    elif status:
        run.fail(name, summary)
        print(text[-6000:], flush=True)
    else:
        run.report["checked"][name] = summary


def _output(run: Run, command: list[str]) -> tuple[int | None, str]:
    """Status and output of a command; None where it did not end within half of what time is left."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=run.left() / 2, cwd=ROOT
        )
    except subprocess.TimeoutExpired as late:
        return None, late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
    return done.returncode, done.stdout


# ---- measurements ------------------------------------------------------------------------------------------------


@contextmanager
def _workers(run: Run, peers: Sequence[str]) -> Iterator[list[Worker]]:
    """Start the processes of peers; they end with the deadline, so that none can hold the run up."""
    workers = [Worker(name, 1, _MODULE) for name in peers]
    timers = [Timer(max(0.0, run.left()), worker.kill) for worker in workers]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield workers
    finally:
        for timer, worker in zip(timers, workers, strict=True):
            timer.cancel()
            worker.stop()


def speed(cases: Sequence[str], n: int) -> Callable[[Run], None]:
    """Make a part that measures cases at a size."""

    def part(run: Run) -> None:
        from fastgd.bench import gpu_timing

        wanted = dict.fromkeys(peer for name in cases for peer in names(GPU_CASES[name]))
        with _workers(run, list(wanted)) as workers:
            by_name = {worker.peer: worker for worker in workers}
            copies: gpu_timing.Copies | None = None
            for name in cases:
                case = GPU_CASES[name]
                title = f"{name} at {size_text(n)} elements"
                free = gpu_timing.memory().free + (0 if copies is None else 8 * n)
                if not run.has_time():
                    run.leave_out(title)
                elif (needed := 4 * n * gpu_timing.arrays(case)) > 0.9 * free:
                    run.leave_out(title, f"it needs {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free")
                else:
                    copies = copies or gpu_timing.Copies(n)
                    taking = [by_name[peer] for peer in names(case)]
                    served: list[gpu_bits.GpuBackend] = backends(run) if name in run.scale.first else ["cupy"]
                    rows = gpu_timing.measure(case, n, copies, taking, run.scale.rounds, run.scale.seconds, served)
                    run.report["gpu"]["settings"] = settings()[1]  # as they are while it works
                    _measured(run, case, rows)

    return part


def _measured(run: Run, case: Case, rows: list[dict[str, Any]]) -> None:
    run.report["cases"][case.name] = {
        "hyper": plain(case.build()),
        "tail": dict(case.tail),
        "tensors": len(case.tensors),
        "float32_bytes": case.bytes_per_param(4),
    }
    run.report["rows"] += rows
    run.write()
    for row in rows:
        said = f"skipped: {row['skipped']}" if row["skipped"] else f"{row['gbps']:.0f} GB/s, {row['copy_share']:.1%}"
        print(f"  {case.name} {size_text(row['n'])} {row['peer']}: {said}", flush=True)


def launches(run: Run) -> None:
    """Measure what a small step costs the host and the GPU."""
    from fastgd.bench import gpu_timing

    n, rounds = run.scale.small, run.scale.rounds
    busy = gpu_timing.busy(gpu_timing.Copies(run.scale.large))
    rows = run.report["launches"]
    served = backends(run)
    peers = dict.fromkeys(peer for name in _LAUNCHED for peer in names(GPU_CASES[name]) if peer.startswith("torch"))
    with _workers(run, list(peers)) as workers:
        for name in _LAUNCHED:
            if not run.has_time():
                run.leave_out(f"launch cost of {name}")
                continue
            for backend in served:
                for what, cost in gpu_timing.launch_cost(GPU_CASES[name], n, rounds, busy, backend).items():
                    rows.append({"case": name, "n": n, "peer": f"fastgd-{backend} {what}", "skipped": None} | cost)
            for worker in workers:
                if worker.peer in names(GPU_CASES[name]):
                    rows.append({"case": name, "n": n, "peer": worker.peer} | _foreign_launch(worker, name, n, rounds))


def _foreign_launch(worker: Worker, name: str, n: int, rounds: int) -> dict[str, Any]:
    worker.ask(do="open", case=name, n=n)
    answers = [worker.answer()]
    for _ in range(rounds if "skipped" not in answers[0] else 0):
        worker.ask(do="launch")
        answers.append(worker.answer())
    if why := next((answer["skipped"] for answer in answers if "skipped" in answer), None):
        return {"skipped": why}
    middle = sorted(answers[1:], key=lambda answer: answer["host"])[rounds // 2]
    return {"skipped": None} | middle


def grids(run: Run) -> None:
    """Try other numbers of blocks for each processor."""
    from fastgd.bench import gpu_timing

    name, scale = "adamw", run.scale
    rows = gpu_timing.grids(GPU_CASES[name], scale.large, scale.blocks, scale.rounds, scale.seconds)
    run.report["grids"] = [{"case": name, "n": scale.large} | row for row in rows]
