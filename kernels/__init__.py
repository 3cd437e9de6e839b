"""Update rules, the language they are written in, and the sweeps that run them.

Write a rule with `Rule` and the functions of the rule language; see `fastgd.kernels.rules` for those that ship.

A rule is parsed once (`language`, `rule`), laid out in sweeps and the code between them (`plan`), given its tail
(`tail`) and cut into tiles and sums of one shape (`blocks`). All that is the same for every target. Where they differ:

================  ===================  ========================  ==========================  ==========================
backend           numpy                numba                     cupy                        numba-cuda
================  ===================  ========================  ==========================  ==========================
printed as        array expressions    typed scalar Python       CUDA C++                    Python, rounded by name
compiled by       nobody               Numba, `cpu`              NVRTC, `cubin`              its compiler and nvJitLink
loop over memory  `reference`          `cpu`                     ``transport.cuh``           `cuda_numba_source`
sums of sums      `blocks`             `cpu`                     ``service.cuh``             `cuda_numba_source`
between sweeps    `between`            `cpu_between`             `cuda_between`              `cuda_between`
launched by       a call               `cpu`, on `cpu_threads`   `cuda_sweep`, `cuda_cupy`   `cuda_sweep`, `cuda_numba`
arrays            NumPy's              NumPy's                   `cupy_arrays`               `numba_arrays`
================  ===================  ========================  ==========================  ==========================

What code between sweeps takes and gives, and where it lies, is the same for all kernels (`between_code`). The two of a
GPU take the same arguments kernel by kernel (`cuda_source`), so that `cuda_sweep` and `cuda_between` know neither CuPy
nor numba-cuda. All four printers are in `printers`. Matrix rules (`matrix`) have no kernels: they are computed by the
operators of the arrays' library (`matrix_sweep`).
"""

# The guard stands before the imports: they would fail less clearly.
if __name__ != "fastgd.kernels":
    raise ImportError(
        f"this package is `fastgd.kernels`, imported here as `{__name__}`: "
        "install fastgd, or put the project's root on sys.path, and `import fastgd.kernels`"
    )

from importlib import import_module
from typing import Any

from fastgd.kernels.language import (
    clip,
    copysign,
    maximum,
    minimum,
    per_segment,
    sign,
    sqrt,
    squared,
    total,
)
from fastgd.kernels.matrix import MatrixRule
from fastgd.kernels.rule import Rule

__all__ = [
    "MatrixRule",
    "Rule",
    "clip",
    "copysign",
    "device",
    "maximum",
    "minimum",
    "per_segment",
    "sign",
    "sqrt",
    "squared",
    "total",
]


def __getattr__(name: str) -> Any:
    if name == "device":  # loads Numba
        from fastgd.kernels.cpu_device import device

        return device
    if name == "rules":
        return import_module("fastgd.kernels.rules")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
