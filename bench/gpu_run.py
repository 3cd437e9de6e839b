"""A run on a GPU within a deadline: how much is done, the report that grows, what it runs on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any

from fastgd.backend import refuse_missing
from fastgd.bench.cases import ULP_LIMIT
from fastgd.bench.gpu_bits import GpuBackend
from fastgd.bench.gpu_report import markdown
from fastgd.bench.report import write_json
from fastgd.bench.run import describe_machine
from fastgd.kernels.errors import BackendUnavailable

SCHEMA = 1

_LIBRARIES = ("cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "cuda-bindings", "triton", "apex", "bitsandbytes")
_SETTINGS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes
    ----------
    compared
        Rules whose bits are compared.
    in_both
        Those of them whose bits are compared in float64 with numba-cuda, too.
    first, huge
        Cases that are measured at `large` and at `most` elements before the deadline can interfere.
    rest
        Cases that are measured at `large` elements with what time is left.
    small, large, most
        Numbers of elements.
    rounds
        In which those that are compared take turns.
    seconds
        Of a turn.
    blocks
        Blocks for each processor that are tried.
    least
        Seconds that must be left for a part that cannot be cut short.
    """

    compared: tuple[str, ...]
    in_both: tuple[str, ...]
    first: tuple[str, ...]
    huge: tuple[str, ...]
    rest: tuple[str, ...]
    small: int = 1 << 12
    large: int = 1 << 26
    most: int = 1 << 30
    rounds: int = 9
    seconds: float = 0.02
    blocks: tuple[int, ...] = (4, 6, 8, 16, 32, 1024)  # the last: one for each tile
    least: float = 15.0


class Run:
    """A report that grows, and the time that is left for it.

    Attributes
    ----------
    report
        What is written.
    """

    def __init__(self, scale: Scale, seconds: float, output: Path) -> None:
        self.scale = scale
        self._end = monotonic() + seconds
        self._output = output
        self.report: dict[str, Any] = {
            "schema": SCHEMA,
            "machine": describe_machine(1),
            "gpu": {},
            "cases": {},
            "ulp_limit": ULP_LIMIT,
            "bits": None,
            "checked": {},
            "rows": [],
            "launches": [],
            "grids": [],
            "left_out": [],
            "failed": {},
        }

    def left(self) -> float:
        """Seconds to the deadline."""
        return self._end - monotonic()

    def has_time(self) -> bool:
        """Whether another part that cannot be cut short may begin."""
        return self.left() >= self.scale.least

    def leave_out(self, what: str, why: str = "there was no time left") -> None:
        """Name what is not done."""
        self.report["left_out"].append((what, why))
        print(f"left out: {what}: {why}", flush=True)

    def do(self, name: str, part: Callable[[Run], None]) -> None:
        """Do a part, if there is time; what it raises is a failure, and the others are still done."""
        if not self.has_time():
            self.leave_out(name)
            return
        print(f"{name} ({self.left():.0f} s left)", flush=True)
        try:
            part(self)
        except Exception as error:  # whatever it is: the report shows it
            self.fail(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        self.write()

    def fail(self, name: str, why: str) -> None:
        """Keep what went wrong."""
        self.report["failed"][name] = why
        print(f"FAILED: {name}: {why}", flush=True)

    def write(self) -> None:
        """Write what there is so far, so that little is lost with a device that hangs."""
        self._output.mkdir(parents=True, exist_ok=True)
        write_json(self.report, self._output / "gpu.json")
        (self._output / "gpu.md").write_text(markdown(self.report))

    def status(self, *, whole: bool) -> int:
        """Exit status; with `whole` what was left out counts as failed."""
        wrong = self.report["bits"] is not None and self.report["bits"]["wrong"]
        return int(bool(wrong or self.report["failed"] or (whole and self.report["left_out"])))


# ---- versions ----------------------------------------------------------------------------------------------------


def refusal() -> str:
    """Tell why there is nothing to measure here; empty where there is a GPU that can be served."""
    try:
        refuse_missing("cupy")
    except BackendUnavailable as reason:
        return str(reason)
    return ""


def backends(run: Run) -> list[GpuBackend]:
    """Give the launchers that there are here; one that is missing is left out by its name."""
    try:
        refuse_missing("numba-cuda")
    except BackendUnavailable as reason:
        if ("numba-cuda", str(reason)) not in run.report["left_out"]:
            run.leave_out("numba-cuda", str(reason))
        return ["cupy"]
    return ["cupy", "numba-cuda"]


def describe(run: Run) -> None:
    """Look at the device and at the versions of what drives it."""
    import cupy

    from fastgd.kernels.cubin import nvrtc_version

    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(cupy.cuda.Device().id)
    versions = {name: version for name in _LIBRARIES if (version := _version(name))}
    cuda = {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}
    versions |= {f"CUDA {what}": f"{number // 1000}.{number % 1000 // 10}" for what, number in cuda.items()}
    versions["NVRTC"] = nvrtc_version()
    driver, clocks = settings()
    if driver:
        versions["NVIDIA driver"] = driver
    run.report["gpu"] = {
        "name": found["name"].decode(),
        "capability": f"{found['major']}.{found['minor']}",
        "processors": found["multiProcessorCount"],
        "memory": found["totalGlobalMem"],
        "versions": versions,
        "settings": clocks,
    }
    for name, version in (run.report["machine"]["versions"] | versions).items():
        print(f"{name} {version}")
    shown = ", ".join(f"{name} {value}" for name, value in clocks.items())
    print(f"{found['name'].decode()}, compute capability {found['major']}.{found['minor']}; {shown}", flush=True)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def settings() -> tuple[str, dict[str, str]]:
    """Give the driver's version, and clocks, power and temperature; empty where nvidia-smi cannot read them."""
    command = ["nvidia-smi", f"--query-gpu=driver_version,{','.join(_SETTINGS)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "", {}
    driver, *given = (cell.strip() for cell in done.stdout.strip().split(","))
    if done.returncode or len(given) != len(_SETTINGS):
        return "", {}
    return driver, {name: value for name, value in zip(_SETTINGS, given, strict=True) if "[" not in value}
