"""Kernels of numba-cuda: the printed rule, the loops that carry it over memory, and the machine code made of them.

They do what ``transport.cuh`` and ``service.cuh`` do, take what those take and leave the same bits. Loops are written
by hand; what is done in a tile is printed, as for the CPU. A kernel sees a GPU through the names that `on_a_gpu`
gives and no other way, so that tests can run the very same function on the CPU.

Everything a kernel calls is inlined by Numba: a kernel that calls nothing is compiled without asking the driver for a
GPU. All numbers are pointers and int64, so that a launch takes what a launch of CUDA C++ takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastgd.kernels import cubin
from fastgd.kernels.between_code import BetweenCode, codes_between, loop_text
from fastgd.kernels.blocks import FIRST, HI, LANES, LO, ROW, SEGMENT
from fastgd.kernels.cpu import FLAGS, specialise
from fastgd.kernels.cuda_device import library, numba_cuda
from fastgd.kernels.cuda_source import FOLDED, THREADS, VECTOR, entry
from fastgd.kernels.errors import BackendUnavailable
from fastgd.kernels.language import Sweep
from fastgd.kernels.plan import Plan
from fastgd.kernels.printers import DType, rounded_text

# ---- memory ------------------------------------------------------------------------------------------------------


@cache
def _access(width: int) -> tuple[Any, Any]:
    """Functions that load and store `width` neighbours at once, given an array's address and the first one's index.

    Nothing but a vector of LLVM's makes one access of 128 bits; scalars and records never do.
    """

    def pointer(context: Any, builder: Any, address: Any, index: Any, scalar: Any) -> Any:
        size = ir.Constant(address.type, scalar.bitwidth // 8)
        vector = ir.VectorType(context.get_value_type(scalar), width)
        # address space 1 is a GPU's global memory, whose loads are faster than those of any memory; to a CPU it is none
        kind = vector.as_pointer(1)
        return builder.inttoptr(builder.add(address, builder.mul(index, size)), kind), vector

    def lane(k: int) -> Any:
        return ir.Constant(ir.IntType(32), k)

    @intrinsic
    def load(context, address, index, scalar):  # type: ignore[no-untyped-def]
        signature = types.UniTuple(scalar.dtype, width)(address, index, scalar)  # type: ignore[no-untyped-call]

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            kind = signature.return_type.dtype
            start, _ = pointer(context, builder, arguments[0], arguments[1], kind)
            vector = builder.load(start, align=width * kind.bitwidth // 8)
            elements = [builder.extract_element(vector, lane(k)) for k in range(width)]
            return context.make_tuple(builder, signature.return_type, elements)

        return signature, generate

    @intrinsic
    def store(context, address, index, values):  # type: ignore[no-untyped-def]
        signature = types.void(address, index, values)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            kind = signature.args[2].dtype
            start, of = pointer(context, builder, arguments[0], arguments[1], kind)
            vector = ir.Constant(of, ir.Undefined)
            for k in range(width):
                vector = builder.insert_element(vector, builder.extract_value(arguments[2], k), lane(k))
            builder.store(vector, start, align=width * kind.bitwidth // 8)
            return context.get_dummy_value()

        return signature, generate

    return load, store


# ---- the loops written by hand -----------------------------------------------------------------------------------
# `_cuda`, `_thread`, `_block` and `_blocks` are a GPU's, see `on_a_gpu`; `_tile`, `_T`, the numbers of sums (`_K`), of
# their lanes and of the threads of a block are put in by `specialise`.


def _sweep(addresses, rows, table, tiles, block_sums):  # type: ignore[no-untyped-def]
    b = _block()  # type: ignore[name-defined]  # noqa: F821
    while b < tiles:
        _tile(addresses, rows, table, b)  # type: ignore[name-defined]  # noqa: F821
        b += _blocks()  # type: ignore[name-defined]  # noqa: F821


def _sweep_sums(addresses, rows, table, tiles, block_sums):  # type: ignore[no-untyped-def]
    # A tile is one block of a sum. Each thread has its lanes for itself until they are added to each other.
    lanes = _cuda.shared.array(_SIZE, _T)  # type: ignore[name-defined]  # noqa: F821
    b = _block()  # type: ignore[name-defined]  # noqa: F821
    while b < tiles:
        _tile(addresses, rows, table, b, lanes)  # type: ignore[name-defined]  # noqa: F821
        width = LANES // 2
        while width > 0:
            _cuda.syncthreads()  # type: ignore[name-defined]  # noqa: F821
            j = _thread()  # type: ignore[name-defined]  # noqa: F821
            while j < width:
                for k in range(_K):  # type: ignore[name-defined]  # noqa: F821
                    lanes[k * LANES + j] += lanes[k * LANES + j + width]
                j += _THREADS  # type: ignore[name-defined]  # noqa: F821
            width //= 2
        if _thread() == 0:  # type: ignore[name-defined]  # noqa: F821
            for k in range(_K):  # type: ignore[name-defined]  # noqa: F821
                block_sums[table[5 * b + FIRST] * _K + k] = lanes[k * LANES]  # type: ignore[name-defined]  # noqa: F821
        _cuda.syncthreads()  # type: ignore[name-defined]  # noqa: F821  # the next tile overwrites what was read
        b += _blocks()  # type: ignore[name-defined]  # noqa: F821


def _add(numbers, parts, count, columns, out):  # type: ignore[no-untyped-def]
    """Add the numbers lo..hi of each column by the pairwise tree, one block to a row of `parts`: its lo and hi."""
    shared = _cuda.shared.array(FOLDED, _D)  # type: ignore[name-defined]  # noqa: F821
    thread = _thread()  # type: ignore[name-defined]  # noqa: F821
    part = _block()  # type: ignore[name-defined]  # noqa: F821
    while part < count:
        lo = parts[2 * part]
        size = parts[2 * part + 1] - lo
        for k in range(columns):  # the last one's sum is in shared[0], which its reader alone overwrites
            j = thread
            while j < size:
                shared[j] = numbers[(lo + j) * columns + k]
                j += THREADS
            n = size
            while n > 1:
                pairs = n // 2
                left = n - pairs
                first = 0
                while first < left:
                    j = first + thread
                    total = 0.0
                    _cuda.syncthreads()  # type: ignore[name-defined]  # noqa: F821
                    if j < pairs:
                        total = shared[2 * j] + shared[2 * j + 1]
                    elif j < left:
                        total = shared[n - 1]
                    _cuda.syncthreads()  # type: ignore[name-defined]  # noqa: F821  # all have read what is overwritten now
                    if j < left:
                        shared[j] = total
                    first += THREADS
                n = left
            if thread == 0:
                out[part * columns + k] = shared[0] if size > 0 else 0.0
        part += _blocks()  # type: ignore[name-defined]  # noqa: F821


# ---- the printed part --------------------------------------------------------------------------------------------


def tile_text(sweep: Sweep, dtype: DType, width: int) -> str:
    """Text of ``_tile``: one tile of one segment, by all threads of a block, each of which takes `width` neighbours."""
    a, n = sweep.arrays, range(width)

    def elements(name: str) -> list[str]:
        return [f"_e{e}_{name}" for e in n]

    def column(k: int) -> str:
        return f"_table[5 * _b + {k}]"

    lines = [
        f"def _tile(_addresses, _rows, _table, _b{', _lanes' if sweep.sums else ''}):",
        f"    _hi = {column(HI)}",
        f"    _row = {column(ROW)} * {len(sweep.scalars)}",
        f"    _array = {column(SEGMENT)} * {len(a)}",
        *(f"    {name} = _rows[_row + {k}]" for k, name in enumerate(sweep.scalars)),
        *(f"    _p_{name} = _addresses[_array + {k}]" for k, name in enumerate(a)),
        *(f"    _l{k}_{e} = _T(0)" for k in range(len(sweep.sums)) for e in n),
        f"    _i = {column(LO)} + {width} * _thread()",
        "    while _i < _hi:",
        *(f"        {', '.join(elements(name))}, = _load(_p_{name}, _i, _T)" for name in sweep.reads),
    ]
    for e in n:
        taken = [f"_e{e}_{name}" if name in sweep.reads else "_T(0)" for name in a]
        results = [f"_e{e}_{name}" for name in sweep.writes] + [f"_t{k}" for k in range(len(sweep.sums))]
        lines.append(f"        {', '.join(results)}, = _rule({', '.join([*taken, *sweep.scalars])})")
        add = "fadd_rn" if dtype == "float32" else "dadd_rn"
        lines += [f"        _l{k}_{e} = _lib.{add}(_l{k}_{e}, _T(_t{k}))" for k in range(len(sweep.sums))]
    lines += [f"        _store(_p_{name}, _i, ({', '.join(elements(name))},))" for name in sweep.writes]
    step = LANES if sweep.sums else width * THREADS
    lines.append(f"        _i += {step}")
    lines += [
        f"    _lanes[{k * LANES + e} + {width} * _thread()] = _l{k}_{e}" for k in range(len(sweep.sums)) for e in n
    ]
    return "\n".join(lines) + "\n"


def between_text(code: BetweenCode) -> str:
    """Text of the kernel ``_between``; see `fastgd.kernels.cuda_source.between_source`."""
    spread = ", cells, count, wide_cells, wide_count" if code.spread else ""
    lines = [
        f"def _between(sums, sizes, states, given, group_of, rows, n{spread}):",
        *loop_text(code, f"_block() * {THREADS} + _thread()", f"_blocks() * {THREADS}"),
    ]
    if not code.per_segment:
        lines += ["    _cuda.syncthreads()", "    if _thread() == 0:"]
        lines += [f"        {code.taken(x)} = _kept_{x}" for x in code.kept_once] or ["        pass"]
    if code.spread:
        lines.append("    _cuda.syncthreads()")
        for cells, count, kind in (("cells", "count", "_T"), ("wide_cells", "wide_count", "_D")):
            lines += [
                "    j = _thread()",
                f"    while j < {count}:",
                f"        _store({cells}[j], 0, ({kind}({code.taken(code.spread)}),))",
                f"        j += {THREADS}",
            ]
    return "\n".join(lines) + "\n"


# ---- kernels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A kernel before it is compiled.

    Attributes
    ----------
    name
        As a profiler shows it.
    text
        What is printed of it.
    kinds
        Types of its arguments.
    threads
        Of a block.
    make
        Makes the function, given the names by which it sees a GPU.
    """

    name: str
    text: str
    kinds: tuple[Any, ...]
    threads: int
    make: Callable[[Mapping[str, Any]], Any]


def _pointers(*kinds: Any) -> list[Any]:
    return [types.CPointer(kind) for kind in kinds]  # type: ignore[no-untyped-call]


_INT, _REAL = types.int64, types.float64


def sweep_kernel(sweep: Sweep, dtype: DType, label: str, kind: str) -> Kernel:
    """Give a sweep's kernel ``vector``, of 128-bit accesses, or ``scalar``, for what is left.

    Its arguments are those of `fastgd.kernels.cuda_source.sweep_source`. A block takes one tile.
    """
    number = np.dtype(dtype)
    width = VECTOR // number.itemsize if kind == "vector" else 1
    threads = THREADS // width if sweep.sums else THREADS
    text = rounded_text(sweep, "_rule", dtype) + tile_text(sweep, dtype, width)
    name = entry(label, sweep, kind)

    def make(gpu: Mapping[str, Any]) -> Any:
        load, store = _access(width)
        names = {**gpu, "_T": number.type, "_load": load, "_store": store}
        made = _compiled(text, names, "_rule", "_tile")
        template = _sweep_sums if sweep.sums else _sweep
        return specialise(template, name, **made, _K=len(sweep.sums), _SIZE=len(sweep.sums) * LANES, _THREADS=threads)

    pointers = _pointers(_INT, getattr(types, dtype), _INT)
    return Kernel(name, text, (*pointers, _INT, *_pointers(_REAL)), threads, make)


def add_kernel() -> Kernel:
    """Give the kernel that adds sums, the same for every rule; see ``fgd_add``."""
    kinds = (*_pointers(_REAL, _INT), _INT, _INT, *_pointers(_REAL))
    return Kernel("fgd_add", "", kinds, THREADS, lambda gpu: specialise(_add, "fgd_add", **gpu, _D=np.float64))


PUT = 64
"""Numbers of 8 bytes that one launch of ``fgd_put`` takes along."""


def put_kernel() -> Kernel:
    """Give the kernel that stores what its launch takes along; its arguments are where, how many, and `PUT` numbers."""
    words = range(PUT)
    lines = [f"def _put(to, count, {', '.join(f'_{k}' for k in words)}):"]
    for k in words:
        lines += [f"    if {k} < count:", f"        to[{k}] = _{k}"]
    text = "\n".join(lines) + "\n"

    def make(gpu: Mapping[str, Any]) -> Any:
        return specialise(_compiled(text, {})["_put"], "fgd_put")

    return Kernel("fgd_put", text, (*_pointers(_INT), _INT, *[_INT] * PUT), 1, make)


def between_kernel(code: BetweenCode, label: str) -> Kernel:
    """Give the kernel of code between sweeps; see `fastgd.kernels.cuda_source.between_source`."""
    text = rounded_text(code.function, "_rule", "float64") + between_text(code)
    name = entry(label, code.function, "scalars")
    number = np.dtype(code.dtype)

    def make(gpu: Mapping[str, Any]) -> Any:
        names = {**gpu, "_T": np.float64}  # what the rule computes in
        function = _compiled(text, names, "_rule")["_between"]
        _, store = _access(1)
        return specialise(function, name, **gpu, _T=number.type, _D=np.float64, _store=store)

    kinds = [*_pointers(_REAL, _REAL, _REAL, _REAL, _INT, getattr(types, code.dtype)), _INT]
    if code.spread:
        kinds += [*_pointers(_INT), _INT, *_pointers(_INT), _INT]
    return Kernel(name, text, tuple(kinds), THREADS, make)


def kernels(plan: Plan, dtype: DType, label: str) -> list[Kernel]:
    """Give all kernels of a step, in their order."""
    between = codes_between(plan, dtype)
    made = []
    for function in plan.functions:
        if function.name in between:
            made.append(between_kernel(between[function.name], label))
        else:
            made += [sweep_kernel(function, dtype, label, kind) for kind in ("vector", "scalar")]
    return made


def _compiled(text: str, names: dict[str, Any], *functions: str) -> dict[str, Any]:
    """Functions of a printed text that sees `names`; those named are for kernels to call."""
    exec(compile(text, "<printed>", "exec"), names)
    for function in functions:
        names[function] = names["_jit"](names[function])
    return names


# ---- the compiler ------------------------------------------------------------------------------------------------


@cache
def on_a_gpu() -> dict[str, Any]:
    """Names by which a kernel sees the GPU that it runs on.

    Raises
    ------
    BackendUnavailable
        If numba-cuda is not installed, or Numba's own target is in its place.
    """
    cuda = numba_cuda()
    inlined = njit(inline="always", **FLAGS)
    return {
        "_lib": library(),
        "_jit": inlined,
        "_thread": inlined(lambda: np.int64(cuda.threadIdx.x)),
        "_block": inlined(lambda: np.int64(cuda.blockIdx.x)),
        "_blocks": inlined(lambda: np.int64(cuda.gridDim.x)),
        "_cuda": cuda,
    }


def ptx(kernel: Kernel, arch: str) -> str:
    """Compile a kernel to the assembly language that its machine code is made from.

    Parameters
    ----------
    kernel
        The kernel.
    arch
        Number of the architecture, such as ``"90"``.

    Raises
    ------
    BackendUnavailable
        If numba-cuda is not installed, or does not serve the architecture.
    """
    cuda = numba_cuda()
    function = kernel.make(on_a_gpu())
    capability = int(arch[:-1]), int(arch[-1])
    bounds = (kernel.threads, min(8, 2 * THREADS // kernel.threads))  # as of CUDA C++: 128 registers for a thread
    try:
        text, _ = cuda.compile_ptx(function, types.void(*kernel.kinds), cc=capability, launch_bounds=bounds)
    except Exception as error:
        if type(error).__name__ != "CCSupportError":  # which numba-cuda has no public name for
            raise
        raise BackendUnavailable(f"numba-cuda does not compile for sm_{arch}: {error}") from None
    (mangled,) = re.findall(r"\.visible \.entry (\w+)\(", text)
    plain: str = text.replace(mangled, kernel.name)
    return plain


def machine_code(kernel: Kernel, arch: str) -> Path:
    """Compile a kernel to the machine code of one architecture, or find it compiled in the cache.

    Neither a GPU nor a driver is needed; see `ptx` and `fastgd.kernels.cubin.stored`.
    """
    key = (_OWN_TEXT, _CONSTANTS, kernel.name, kernel.text, repr(kernel.kinds), arch, *_versions())
    return cubin.stored(key, arch, kernel.name, lambda: _assembled(ptx(kernel, arch), arch))


_OWN_TEXT = Path(__file__).read_text(encoding="utf-8")
_CONSTANTS = repr((FIRST, LANES, FOLDED, THREADS, VECTOR, FLAGS))  # what the loops take from elsewhere


@cache
def _versions() -> tuple[str, ...]:
    """List what the machine code depends on besides the kernel."""
    found = []
    for distribution in ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink"):
        try:
            found.append(f"{distribution} {metadata.version(distribution)}")
        except metadata.PackageNotFoundError:  # CUDA 12 has other names; a toolkit may stand in
            continue
    return tuple(found)


def _assembled(text: str, arch: str) -> bytes:
    """Machine code of an assembly text."""
    nvjitlink = cubin.linker()
    content = text.encode() + b"\0"
    try:
        program = nvjitlink.create(1, [f"-arch=sm_{arch}"])
        try:
            nvjitlink.add_data(program, nvjitlink.InputType.PTX, content, len(content), "kernel")
            nvjitlink.complete(program)
            code = bytearray(nvjitlink.get_linked_cubin_size(program))
            nvjitlink.get_linked_cubin(program, code)
        finally:
            nvjitlink.destroy(program)
    except nvjitlink.nvJitLinkError as error:
        raise BackendUnavailable(
            f"NVIDIA's linker nvJitLink makes no machine code for sm_{arch}: {error}; a newer GPU needs a newer one: "
            "pip install --upgrade nvidia-nvjitlink"
        ) from None
    return bytes(code)
