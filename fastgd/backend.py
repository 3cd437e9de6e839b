"""Backends by name: which there are, which one serves an array, and why one cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata, util
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.between import HostBetween, Terms
from fastgd.kernels.blocks import Where
from fastgd.kernels.driver import find as find_driver
from fastgd.kernels.errors import ADD_CUPY, ADD_NUMBA_CUDA, BackendUnavailable, HyperparameterError
from fastgd.kernels.language import Sweep

Backend = Literal["numpy", "numba", "numba-cuda", "cupy"]
_NAMES: tuple[Backend, ...] = ("numpy", "numba", "numba-cuda", "cupy")
_CUPY = {"cupy-cuda13x": 13, "cupy-cuda12x": 12}  # distributions of CuPy, and the CUDA they are built for


class Status(NamedTuple):
    """What `backends` says of one backend."""

    available: bool
    reason: str
    remedy: str
    version: str | None


class Between(Protocol):
    """What is computed between two sweeps; see `fastgd.kernels.between.HostBetween`."""

    # D102: the docstrings are those of HostBetween

    prepared: tuple[str, ...]

    @property
    def states(self) -> MutableMapping[str, NDArray[np.float64]]: ...  # noqa: D102

    def prepare(self) -> None: ...  # noqa: D102
    def put(self, index: int, values: Mapping[str, float]) -> None: ...  # noqa: D102
    def begin(self) -> None: ...  # noqa: D102
    def combine(self) -> None: ...  # noqa: D102
    def keep(self) -> None: ...  # noqa: D102
    def share(self, other: Any) -> None: ...  # noqa: D102


class SweepOnArrays(Protocol):
    """One sweep of a rule over all segments, as every backend offers it; see `fastgd.kernels.cpu.CpuSweep`."""

    # D102: the docstrings are those of CpuSweep

    runs: int
    atomic: bool

    @property
    def run(self) -> Callable[[], None]: ...  # noqa: D102
    def bind(self, name: str, arrays: list[Any], where: Where) -> None: ...  # noqa: D102
    def prepare(self) -> None: ...  # noqa: D102
    def resume(self) -> None: ...  # noqa: D102
    def sums(self) -> NDArray[np.float64]: ...  # noqa: D102
    def total(self) -> NDArray[np.float64]: ...  # noqa: D102


def backends() -> dict[str, Status]:
    """Tell which backends can serve here.

    Returns
    -------
    dict of str to Status
        For ``"numpy"``, ``"numba"``, ``"numba-cuda"`` and ``"cupy"``: whether it is available, if not the reason and
        the remedy, and the version of its library, or None where that is not installed.

    Examples
    --------
    >>> import fastgd
    >>> fastgd.backends()["numba"].available
    True
    """
    return {name: _status(name) for name in _NAMES}


def _status(name: Backend) -> Status:
    if name in ("numpy", "numba"):
        return Status(True, "", "", metadata.version(name))
    refused = cupy_refusal() if name == "cupy" else numba_cuda_refusal()
    version = next(filter(None, map(_version, (*_CUPY, "cupy") if name == "cupy" else (name,))), None)
    return Status(True, "", "", version) if refused is None else Status(False, *refused, version)


def cupy_refusal() -> tuple[str, str] | None:
    """Tell why backend ``"cupy"`` cannot serve here.

    CuPy is not imported for that, and where it is installed the driver is started: children that are forked from now on
    cannot use it.

    Returns
    -------
    tuple of str or None
        The reason and the remedy; None where it can.
    """
    if util.find_spec("cupy") is None:
        return "CuPy is not installed", ADD_CUPY
    name = next((name for name in _CUPY if _version(name)), "cupy")
    if int((_version(name) or "14").partition(".")[0]) < 14:
        return f"CuPy {_version(name)} is installed, and 14 is the oldest that serves", f"pip install --upgrade {name}"
    bindings = _version("cuda-bindings")
    if bindings is None:
        return "NVIDIA's bindings to its compiler, cuda-bindings, are not installed", ADD_CUPY
    cuda = _CUPY.get(name) or int(bindings.partition(".")[0])
    refused = _driver_refusal("CuPy", cuda, f'pip uninstall {name} and pip install "fastgd[cupy12]"')
    if refused is not None:
        return refused
    from fastgd.kernels.cubin import nvrtc_version

    return _compiler_refusal(nvrtc_version)


def numba_cuda_refusal() -> tuple[str, str] | None:
    """Tell why backend ``"numba-cuda"`` cannot serve here; as `cupy_refusal`."""
    version = _version("numba-cuda") if util.find_spec("numba_cuda") is not None else None
    if version is None:
        return "numba-cuda is not installed, and the target that Numba brings is not served", ADD_NUMBA_CUDA
    if tuple(map(int, version.split(".")[:2])) < (0, 30):
        return f"numba-cuda {version} is installed, and 0.30 is the oldest that serves", ADD_NUMBA_CUDA
    cuda = int((_version("cuda-bindings") or "13").partition(".")[0])
    refused = _driver_refusal("numba-cuda", cuda, 'pip install "fastgd[cuda12]" in a new environment')
    if refused is not None:
        return refused
    from fastgd.kernels.cubin import linker

    return _compiler_refusal(linker)


def _compiler_refusal(ask: Callable[[], object]) -> tuple[str, str] | None:
    """Tell what is missing of a compiler, asked by what raises BackendUnavailable without it."""
    try:
        ask()
    except BackendUnavailable as error:
        reason, _, remedy = str(error).partition("; ")
        return reason, remedy
    return None


def _driver_refusal(library: str, cuda: int, older: str) -> tuple[str, str] | None:
    """Tell why a library that is built for a major version of CUDA cannot serve with the driver and GPUs of here.

    Parameters
    ----------
    library, cuda
        The library and that version.
    older
        What installs the one of CUDA 12.
    """
    driver, reason = find_driver()
    if driver is None:
        return reason, "run on a machine with an NVIDIA GPU and its driver; backend='numba' serves NumPy arrays here"
    if driver.version[0] < cuda:
        return (
            f"the driver serves CUDA {driver.version[0]}.{driver.version[1]}, and the {library} installed needs "
            f"CUDA {cuda}",
            f"update the driver, or {older}" if driver.version[0] == 12 else "update the driver",
        )
    if not driver.devices:
        return (
            "the driver has no GPU to offer",
            "unset CUDA_VISIBLE_DEVICES if it hides them; in a container or a batch job, ask for a GPU",
        )
    oldest = (7, 5) if cuda >= 13 else (7, 0)
    if max(device.capability for device in driver.devices) < oldest:
        found = ", ".join(f"{d.name} has {d.capability[0]}.{d.capability[1]}" for d in driver.devices)
        way = f"{older} serves from 7.0 on, else " if cuda >= 13 else ""
        return (
            f"CUDA {cuda} needs compute capability {oldest[0]}.{oldest[1]}, and {found}",
            f"{way}use a newer GPU; backend='numba' serves NumPy arrays here",
        )
    return None


def lender_backend() -> Backend:
    """Give the backend for arrays that other libraries lend from a GPU: CuPy's, unless numba-cuda alone is there."""
    if "cupy" in _SERVING or _is_there(util.find_spec, "cupy"):
        return "cupy"
    return "numba-cuda" if "numba-cuda" in _SERVING or _is_there(util.find_spec, "numba_cuda") else "cupy"


@cache
def _is_there(find: Callable[[str], object], module: str) -> bool:
    """Whether a module can be found; looking takes 14 µs, and each tensor that is lent would ask."""
    return find(module) is not None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # the module came with another distribution
        return None


def resolve(name: str, auto: Backend = "numba") -> Backend:
    """Turn the name a user gave into a backend that serves.

    Parameters
    ----------
    name
        As given.
    auto
        What serves where the arrays lie.

    Raises
    ------
    BackendUnavailable
        If the name is unknown, or the backend cannot serve; with the reason and the remedy.
    """
    if name == "auto":
        name = auto
    if name not in _NAMES:
        cuda = str(name).lower() in ("cuda", "gpu")
        hint = "; CuPy's arrays are served by 'cupy', Numba's by 'numba-cuda'" if cuda else ""
        known = ", ".join(map(repr, _NAMES))
        raise BackendUnavailable(f"backend must be 'auto' or one of {known}, given {name!r}{hint}")
    refuse_missing(name)
    return name


def refuse_missing(name: str) -> None:
    """Refuse a backend that cannot serve here.

    Raises
    ------
    BackendUnavailable
        With the reason and the remedy.
    """
    if name in ("numpy", "numba") or name in _SERVING:
        return
    status = _status(name)  # type: ignore[arg-type]  # checked by the caller
    if not status.available:
        raise BackendUnavailable(f"backend {name!r}: {status.reason}; {status.remedy}")
    _SERVING.add(name)


_SERVING: set[str] = set()
"""Backends that have been found to serve; a driver does not go away."""


class Maker(Protocol):
    """Makes what a step runs on a backend."""

    def __call__(
        self, sweep: Sweep, sizes: Sequence[int], rows: Sequence[int], scalars: NDArray[Any], label: str
    ) -> SweepOnArrays:
        """Make a sweep."""

    def between(self, terms: Terms, sweeps: Sequence[Any], rows: Sequence[NDArray[Any]]) -> Between:
        """Make what is computed between two sweeps; see `fastgd.kernels.between.HostBetween`."""

    def matrix(self, title: str) -> None:
        """Refuse a matrix rule where it is not served.

        Raises
        ------
        HyperparameterError
            That names the rule.
        """

    def clip(self, sweep: Any, function: Sweep, dtype: np.dtype[Any]) -> Any:
        """Make the clip of a gradient whose norm the host never sees; None where it sees it."""


@dataclass(frozen=True)
class HostMaker:
    """Makes sweeps over arrays of the host.

    Attributes
    ----------
    sweep
        Constructor of a sweep.
    code_between
        Constructor of what is computed between two sweeps.
    """

    sweep: Callable[..., SweepOnArrays]
    code_between: Callable[..., Between]

    def __call__(  # noqa: D102  # as of Maker
        self, sweep: Sweep, sizes: Sequence[int], rows: Sequence[int], scalars: NDArray[Any], label: str
    ) -> SweepOnArrays:
        return self.sweep(sweep, sizes, rows, scalars, label)

    def between(self, terms: Terms, sweeps: Sequence[Any], rows: Sequence[NDArray[Any]]) -> Between:  # noqa: D102
        return self.code_between(terms, sweeps[0], rows)

    def matrix(self, title: str) -> None:  # noqa: D102  # as of Maker
        pass

    def clip(self, sweep: Any, function: Sweep, dtype: np.dtype[Any]) -> Any:  # noqa: D102  # as of Maker
        return None


@dataclass(frozen=True)
class GpuMaker:
    """Makes sweeps over arrays of a GPU.

    Attributes
    ----------
    backend
        Its name.
    gpu
        The launcher; see `fastgd.kernels.cuda_sweep.Gpu`.
    """

    backend: Backend
    gpu: Any

    def __call__(  # noqa: D102  # as of Maker
        self, sweep: Sweep, sizes: Sequence[int], rows: Sequence[int], scalars: NDArray[Any], label: str
    ) -> SweepOnArrays:
        from fastgd.kernels.cuda_sweep import GpuSweep

        return GpuSweep(self.gpu, sweep, sizes, rows, scalars, label)

    def between(self, terms: Terms, sweeps: Sequence[Any], rows: Sequence[NDArray[Any]]) -> Between:  # noqa: D102
        from fastgd.kernels.cuda_between import GpuBetween

        return GpuBetween(terms, sweeps)

    def matrix(self, title: str) -> None:  # noqa: D102  # as of Maker
        raise HyperparameterError(
            f"{title} works on whole matrices, which backend {self.backend!r} does not serve yet: move the parameters "
            "to the host, or take a rule of elements such as AdamW"
        )

    def clip(self, sweep: Any, function: Sweep, dtype: np.dtype[Any]) -> Any:  # noqa: D102  # as of Maker
        from fastgd.kernels.cuda_between import GpuClip

        return GpuClip(sweep, function, dtype)


def maker(backend: Backend, threads: int | None) -> Maker:
    """Give what makes sweeps on a backend; its library is loaded here and not before.

    Raises
    ------
    HyperparameterError
        If the backend does not have that many threads.
    """
    if backend != "numba" and threads not in (None, 1):
        raise HyperparameterError(f"threads must be None or 1 with backend {backend!r}, given {threads!r}")
    if backend == "numpy":
        from fastgd.kernels.reference import NumpySweep

        return HostMaker(NumpySweep, HostBetween)
    if backend == "cupy":
        return GpuMaker(backend, import_module("fastgd.kernels.cuda_cupy"))
    if backend == "numba-cuda":
        return GpuMaker(backend, import_module("fastgd.kernels.cuda_numba"))
    from fastgd.kernels.cpu import CpuSweep
    from fastgd.kernels.cpu_between import CpuBetween
    from fastgd.kernels.cpu_threads import available_threads, config

    if config.DISABLE_JIT:
        raise BackendUnavailable("backend 'numba': NUMBA_DISABLE_JIT switches its compiler off; unset it")
    return HostMaker(partial(CpuSweep, threads=available_threads(threads)), CpuBetween)
