"""Reads machine code of NVIDIA's GPUs: what each kernel takes, which memory it touches and how wide."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastgd.kernels import cubin
from fastgd.kernels.errors import BackendUnavailable


def _missing(*asked):
    for ask in asked:
        try:
            ask()
        except BackendUnavailable as error:
            return str(error)
    return ""


_NO_COMPILER = _missing(cubin.nvrtc_version)
_NO_TOOLS = _missing(cubin.nvrtc_version, lambda: cubin.tool("nvdisasm"), lambda: cubin.tool("cuobjdump"))
needs_compiler = pytest.mark.skipif(bool(_NO_COMPILER), reason=_NO_COMPILER)
needs_tools = pytest.mark.skipif(bool(_NO_TOOLS), reason=_NO_TOOLS)

_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # bytes; 4 where none is said
_DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|MUFU\.\w*64")
_CONVERSION = re.compile(r"(F2F|F2I|I2F)\b.*\.F64")


@dataclass(frozen=True)
class Kernel:
    """What one kernel is made of.

    Attributes
    ----------
    registers
        Of a thread.
    stack, shared, local
        Bytes: of a thread, of a block, of a thread.
    loads, stores
        Instructions that touch global memory, by the bytes that each moves for a thread.
    spills
        Instructions that touch local memory.
    doubles, conversions
        Instructions that compute with 64-bit floats, and those that make or take them.
    barriers
        Instructions that wait for the block.
    """

    registers: int
    stack: int
    shared: int
    local: int
    loads: Counter[int]
    stores: Counter[int]
    spills: int
    doubles: int
    conversions: int
    barriers: int


def kernels(path: Path) -> dict[str, Kernel]:
    """Take a file of machine code apart, by the kernels' names."""
    used = cubin.resources(path)
    texts = re.split(r"^\.text\.(\S+):$", cubin.sass(path), flags=re.MULTILINE)
    return {name: _kernel(text, used[name]) for name, text in zip(texts[1::2], texts[2::2], strict=True)}


def _kernel(text: str, used: dict[str, int]) -> Kernel:
    operations = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text, flags=re.MULTILINE)
    assert operations
    return Kernel(
        registers=used["reg"],
        stack=used["stack"],
        shared=used["shared"],
        local=used["local"],
        loads=Counter(_width(o) for o in operations if o.startswith("LDG")),
        stores=Counter(_width(o) for o in operations if o.startswith("STG")),
        spills=sum(o.startswith(("LDL", "STL")) for o in operations),
        doubles=sum(bool(_DOUBLE.match(o)) for o in operations),
        conversions=sum(bool(_CONVERSION.match(o)) for o in operations),
        barriers=sum(o.startswith("BAR") for o in operations),
    )


def _width(operation: str) -> int:
    return next((_WIDTHS[part] for part in operation.split(".") if part in _WIDTHS), 4)
