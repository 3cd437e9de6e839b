"""Whether a GPU gives the bits of NumPy: every rule, dtype and tail, over shapes of memory that take every kernel.

Each launcher is given arrays of its own library.

``python -m fastgd.bench.gpu_bits RULE ...`` compares a few rules and exits with 1 on a wrong bit; that is what
compute-sanitizer is given.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastgd.bench.cases import CASES
from fastgd.flat import FlatParams
from fastgd.kernels.language import Sweep
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES
from fastgd.kernels.tail import Tail
from fastgd.memory import copy_into, memory_of_backend, to_host, view
from fastgd.optimizer import Optimizer

Array = NDArray[Any]
Shape = Literal["flat", "views"]
GpuBackend = Literal["cupy", "numba-cuda"]

SIZES = (1, 63, 64, 65, 0, 4095, 4096, 4097, 16384, 33331, 7)
SHAPES = {4095: (63, 65), 4096: (64, 64), 16384: (64, 256)}
"""Of those that are matrices, which some rules treat in another way."""

TAILS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tail": dict(max_norm=1.0, max_value=0.1, ema_decay=0.9, zero_grad=True),
}
DTYPES = ("float32", "float64")
_SHAPES: tuple[Shape, ...] = ("flat", "views")
_SCALES = (1.0, 0.5, 2.0, 1.0)  # of the steps: a gradient that is scaled, and one that is not
_SPECIAL = 0.001  # of the numbers


@dataclass(frozen=True)
class Check:
    """One comparison: a rule at a setting, a dtype, a tail, and how the arrays lie.

    Attributes
    ----------
    rule
        Lower-case name in the registry.
    setting
        What `values` are, for the report.
    values
        Hyperparameters off their defaults.
    dtype
        Of the parameters.
    tail
        Name in `TAILS`.
    shape
        ``"flat"``: a FlatParams, all of whose arrays are aligned; ``"views"``: separate arrays, every other of which
        starts one element behind a multiple of 16 bytes.
    backend
        The launcher that is compared.
    """

    rule: str
    setting: str
    values: Mapping[str, Any]
    dtype: str
    tail: str
    shape: Shape
    backend: GpuBackend = "cupy"

    @property
    def name(self) -> str:
        """Name in the report."""
        return f"{self.rule} ({self.setting}) {self.dtype}, {self.tail}, {self.shape}, {self.backend}"


def served() -> list[str]:
    """Give the rules that have kernels: all but those of matrices."""
    return [name for name, rule in RULES.items() if not issubclass(rule, MatrixRule)]


def settings(rule: str) -> dict[str, Mapping[str, Any]]:
    """Give the rule's defaults and one other setting: of the tests where they are there, else that of the bench."""
    found = _tested()[rule][-1] if rule in _tested() else CASES[rule].hyper
    return {"defaults": {}, "other": found} if found else {"defaults": {}}


@cache
def _tested() -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Give the settings that the tests run, by rule; empty where fastgd is installed without its tests."""
    file = Path(__file__).resolve().parent.parent / "tests" / "oracles.py"
    if not file.exists():
        return {}
    spec = spec_from_file_location("oracles", file)
    assert spec is not None and spec.loader is not None
    oracles = module_from_spec(spec)
    spec.loader.exec_module(oracles)
    found: dict[str, tuple[Mapping[str, Any], ...]] = oracles.SETTINGS
    return found


def checks(rules: Iterable[str], dtypes: Iterable[str] = DTYPES, backend: GpuBackend = "cupy") -> list[Check]:
    """List every comparison of these rules."""
    return [
        Check(rule, setting, values, dtype, tail, shape, backend)
        for rule in rules
        for setting, values in settings(rule).items()
        for dtype, tail, shape in product(dtypes, TAILS, _SHAPES)
    ]


# ---- one comparison ----------------------------------------------------------------------------------------------


def wrong(check: Check) -> list[str]:
    """Name what a GPU's run leaves behind that has other bits than NumPy's."""
    expected, found = trace(check, "numpy"), trace(check, check.backend)
    assert expected.keys() == found.keys()
    return [name for name, values in expected.items() if not same_bits(values, found[name])]


def trace(check: Check, backend: Literal["numpy"] | GpuBackend) -> dict[str, Array]:
    """Take a few steps, and give everything that they leave behind, by name, as arrays of the host."""
    rng = np.random.default_rng(1)
    dtype = np.dtype(check.dtype)
    place: Callable[[Array], Any] = np.array
    if backend != "numpy":
        place = import_module(f"fastgd.kernels.{memory_of_backend(backend)}_arrays").to_device
    rule: Any = RULES[check.rule](**check.values)
    # with a norm NaN and infinity leave nothing but NaN: they come last, when all else has been compared
    spreads = plan(rule).combine is not None or "max_norm" in TAILS[check.tail]
    start = [_numbers(rng, n, dtype, hard=not spreads).reshape(SHAPES.get(n, (n,))) for n in SIZES]
    params, gradients, groups = (_flat if check.shape == "flat" else _views)(start, place, backend)
    if rule.serves((1,)):  # a fallback has values of its own
        groups[1]["lr"] = 0.37 * rule.lr
    optimizer = Optimizer(groups, rule, backend=backend, **TAILS[check.tail])
    given = None if check.shape == "flat" else [gradients[0::3], [*gradients[1::3], *gradients[2::3]]]
    left: dict[str, Array] = {}
    for k, scale in enumerate(_SCALES):
        hard = k == len(_SCALES) - 1 or (k > 0 and not spreads)
        for own in gradients:
            copy_into(own, _numbers(rng, own.size, dtype, hard=hard).reshape(own.shape))
        optimizer.step(given, scale=scale)
        left |= {f"{name} after step {k + 1}": values for name, values in _left(optimizer, params, gradients).items()}
    return left


def _flat(start: list[Array], place: Callable[[Array], Any], backend: str) -> tuple[list[Any], list[Any], list[Any]]:
    params = FlatParams({f"w{i}": place(a) for i, a in enumerate(start)}, backend=backend)
    return [*params.values()], [*params.grad.values()], [{"params": params}, {"match": ["w1", "w3", "w9"]}]


def _views(start: list[Array], place: Callable[[Array], Any], backend: str) -> tuple[list[Any], list[Any], list[Any]]:
    def shifted(i: int, values: Array) -> Any:
        whole = np.concatenate([np.zeros(i % 2, values.dtype), values.reshape(-1)])
        return view(place(whole), i % 2, values.shape)

    params = [shifted(i, a) for i, a in enumerate(start)]
    gradients = [shifted(i // 2, a) for i, a in enumerate(start)]
    groups: list[Any] = [{"params": params[0::3]}, {"params": [*params[1::3], *params[2::3]]}]
    return params, gradients, groups


def _left(optimizer: Optimizer, params: list[Any], gradients: list[Any]) -> dict[str, Array]:
    """Copy parameters, gradients, and everything that a checkpoint holds."""
    left = {f"parameter {i}": to_host(own) for i, own in enumerate(params)}
    left |= {f"gradient {i}": to_host(own) for i, own in enumerate(gradients)}
    left["grad_norm"] = np.array(optimizer.grad_norm or 0.0)
    saved = optimizer.state_dict()
    left |= {f"state {name}": np.asarray(values) for name, values in saved["state"].items()}
    for i, launch in enumerate(saved["scalar_state"]):
        left |= {f"{name} of launch {i}": np.array(values, float) for name, values in launch.items()}
    if saved["ema"] is not None:
        left["average"] = np.asarray(saved["ema"])
    return left


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays agree in every bit; NaNs, whose payload means nothing, by class."""
    unsigned = f"u{a.dtype.itemsize}"
    return bool(np.all((a.view(unsigned) == b.view(unsigned)) | (np.isnan(a) & np.isnan(b))))


def _numbers(rng: np.random.Generator, size: int, dtype: np.dtype[Any], *, hard: bool) -> Array:
    """Random numbers over many decades, some of them zero or denormal, and, with `hard`, NaN or infinite."""
    info = np.finfo(dtype)
    low, high = (-20, 10) if dtype == np.float32 else (-160, 100)
    x = (rng.standard_normal(size) * 10.0 ** rng.integers(low, high, size)).astype(dtype)
    special = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, 3 * info.smallest_subnormal, 1.0]
    special += [np.nan, np.inf, -np.inf, info.max] if hard else []
    chosen = rng.random(size) < _SPECIAL
    x[chosen] = rng.choice(np.array(special, dtype), int(chosen.sum()))
    return x


# ---- many --------------------------------------------------------------------------------------------------------


def _sweeps(listed: Iterable[Check]) -> Iterator[tuple[Sweep, str, str]]:
    """Sweeps of comparisons, their dtype and label."""
    for check in listed:
        tail = Tail("ema", max_value=True, zero_grad=True) if TAILS[check.tail] else Tail()
        for sweep in plan(RULES[check.rule](**check.values), tail).sweeps:
            yield sweep, check.dtype, check.rule


def compile_ahead(listed: Sequence[Check]) -> None:
    """Compile the sweeps on all cores, which a run would compile one by one: NVRTC takes 0.1 s for each, Numba 0.5."""
    from fastgd.kernels.cubin import cubin
    from fastgd.kernels.cuda_cupy import _properties
    from fastgd.kernels.cuda_source import sweep_source

    arch, _ = _properties(0)
    by_cupy = _sweeps(check for check in listed if check.backend == "cupy")
    texts = dict.fromkeys((sweep_source(sweep, dtype, label), label) for sweep, dtype, label in by_cupy)  # type: ignore[arg-type]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda given: cubin(given[0], arch, given[1]), texts))
    by_numba = [check for check in listed if check.backend == "numba-cuda"]
    if by_numba:  # which holds a lock while it compiles: processes of their own, which leave their files
        context = get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), context) as processes:
            for _ in processes.map(_compile_by_numba, by_numba, [arch] * len(by_numba), chunksize=4):
                pass


def _compile_by_numba(check: Check, arch: str) -> None:
    from fastgd.kernels.cuda_numba_source import machine_code, sweep_kernel

    for sweep, dtype, label in _sweeps([check]):
        for kind in ("vector", "scalar"):
            machine_code(sweep_kernel(sweep, dtype, label, kind), arch)  # type: ignore[arg-type]


def shown(found: list[str]) -> str:
    """Write what is wrong in one comparison, shortened."""
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def compare(listed: Iterable[Check], is_time_left: Callable[[], bool]) -> Iterator[tuple[Check, list[str] | None]]:
    """Give for each comparison what is wrong; None where there was no time left. What fails is wrong."""
    with np.errstate(all="ignore"):
        for check in listed:
            if not is_time_left():
                yield check, None
                continue
            try:
                yield check, wrong(check)
            except Exception as error:  # whatever it is: the others are to be seen
                yield check, [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]


def main(arguments: list[str] | None = None) -> int:
    """Compare the rules named, float32, without a pool of memory, so that a checker sees the bounds of each array."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("rules", nargs="+", choices=served())
    parser.add_argument("--backend", choices=("cupy", "numba-cuda"), default="cupy")
    given = parser.parse_args(arguments)
    if given.backend == "cupy":  # numba-cuda has no pool
        import cupy

        cupy.cuda.set_allocator(None)
    status = 0
    for check, found in compare(checks(given.rules, ("float32",), given.backend), lambda: True):
        if found:
            print(f"{check.name}: {shown(found)}")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
