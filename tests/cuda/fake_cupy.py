"""A stand-in for CuPy whose device is the host: kernels are built by g++, arrays refuse what CuPy's would refuse.

It has what fastgd uses of CuPy, and no more. Arrays cannot be turned into NumPy's without being asked to, and what
waits for the device is counted, so that a test sees it.
"""

from __future__ import annotations

import math
import sys
import types
from contextlib import contextmanager
from itertools import count

import gxx
import numpy as np

BACKWARDS = False  # in which order threads and blocks take their turns
PROCESSORS = 3
SANITIZED = ()  # further flags of g++
waits = []
"""What has waited for the device since the list was cleared."""
launched = []
"""Names of the kernels launched since the list was cleared."""
allocations_left = math.inf
"""How many more arrays the device's memory takes."""


class OutOfMemoryError(MemoryError):
    pass


class Flags:
    def __init__(self, flags):
        self.c_contiguous = flags.c_contiguous


class Memory:
    def __init__(self, address):
        self.ptr = address


class ndarray:  # CuPy's name
    """An array of the device; `_host` is where it really lies."""

    __array_ufunc__ = None
    __module__ = "cupy"

    def __init__(self, host, device=None):
        self._host = host
        self.device = Device() if device is None else device

    @property
    def data(self):
        return Memory(self._host.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {**self._host.__array_interface__, "version": 3, "stream": Stream.current.ptr or 1}

    def __dlpack_device__(self):
        return 2, self.device.id

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return asarray, (self.get(),)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host.flags))
    T = property(lambda self: ndarray(self._host.T, self.device))

    def get(self):
        _refuse_capture()
        waits.append("get")
        return self._host.copy()

    def set(self, values):
        _refuse_capture()
        if not isinstance(values, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if values.dtype != self.dtype:
            raise TypeError(f"{values.dtype} array cannot be set to {self.dtype} array")
        if values.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {values.shape}")
        if not (self._host.flags.c_contiguous or self._host.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self._host[...] = values

    def copy(self):
        return _computed(self._host.copy)

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape), self.device)

    def fill(self, value):
        self[...] = value

    def item(self):
        return self.get().item()

    def __float__(self):
        return float(self.get())

    def __bool__(self):
        return bool(self.get())

    def __len__(self):
        return len(self._host)

    def __getitem__(self, key):
        inner = _inner(key)
        found = self._host[inner]
        if isinstance(found, np.ndarray) and np.may_share_memory(found, self._host):
            return ndarray(found, self.device)
        return _computed(lambda: self._host[inner])  # 0-d, or indexed by an array: copied by a kernel

    def __setitem__(self, key, value):
        inner, values = _inner(key), _operand(value)

        def write():
            with np.errstate(all="ignore"):
                self._host[inner] = values

        _launch(write)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __matmul__(self, other):
        operand = _operand(other)
        return _computed(lambda: self._host @ operand)

    def all(self):
        return _computed(self._host.all)

    def any(self):
        return _computed(self._host.any)

    def max(self, *arguments, **named):
        return _computed(lambda: self._host.max(*arguments, **named))

    def min(self, *arguments, **named):
        return _computed(lambda: self._host.min(*arguments, **named))

    def argmax(self, *arguments, **named):
        return _computed(lambda: self._host.argmax(*arguments, **named))

    def sum(self, *arguments, **named):
        return _computed(lambda: self._host.sum(*arguments, **named))

    def mean(self, *arguments, **named):
        return _computed(lambda: self._host.mean(*arguments, **named))

    def astype(self, dtype):
        return _computed(lambda: self._host.astype(dtype))


def _launch(kernel):
    """Run what a kernel does, now or, on a stream that is captured, when the graph is launched."""
    if Stream.current.is_capturing():
        Stream.current.recorded.append(kernel)
    else:
        kernel()


def _computed(function):
    """Array that a kernel fills with what a function of NumPy gives."""
    with np.errstate(all="ignore"):
        first = np.asarray(function())
    out = _fresh(first)
    if Stream.current.is_capturing():
        out._host.fill(0)  # nothing has run

        def kernel():
            with np.errstate(all="ignore"):
                out._host[...] = function()

        Stream.current.recorded.append(kernel)
    return out


def _inner(key):
    if isinstance(key, np.ndarray):
        raise IndexError(f"arrays used as indices must be CuPy's, given {type(key)}")
    if isinstance(key, tuple):
        return tuple(map(_inner, key))
    return key._host if isinstance(key, ndarray) else key


def _operand(value):
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _binary(name):
    def operate(self, other):
        operand = _operand(other)
        return _computed(lambda: getattr(self._host, name)(operand))

    return operate


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "and", "or"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
ndarray.__hash__ = None
ndarray.__neg__ = lambda self: _computed(self._host.__neg__)
ndarray.__abs__ = lambda self: _computed(self._host.__abs__)
ndarray.__invert__ = lambda self: _computed(self._host.__invert__)


def _fresh(host):
    """In memory aligned as CuPy's pool aligns it; a sanitizer must see where the array ends."""
    global allocations_left
    if host.dtype.kind not in "?biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    if host.nbytes:
        if allocations_left < 1:
            raise OutOfMemoryError(f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: 0 bytes).")
        allocations_left -= 1
    pointer = _allocator(host.nbytes)
    if SANITIZED:
        return ndarray(np.array(host))
    raw = np.zeros(host.nbytes + 512, np.uint8)
    start = -raw.ctypes.data % 512
    made = raw[start : start + host.nbytes].view(host.dtype).reshape(host.shape)
    made[...] = host
    array = ndarray(made)
    array.pointer = pointer
    return array


class MemoryPointer:
    """What an allocator gives; the memory goes back to its pool with it."""


def get_allocator():
    return _allocator


def _allocator(size):
    return MemoryPointer()


@contextmanager
def using_allocator(allocator):
    global _allocator
    before, _allocator = _allocator, allocator
    try:
        yield
    finally:
        _allocator = before


def zeros(shape, dtype=float):
    wanted = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    if wanted > 1 << 36:
        raise OutOfMemoryError(f"Out of memory allocating {wanted:,} bytes (allocated so far: 0 bytes).")
    made = _fresh(np.zeros(shape, dtype))
    _launch(lambda: made._host.fill(0))
    return made


def ones(shape, dtype=float):
    return _computed(lambda: np.ones(shape, dtype))


def empty(shape, dtype=float):
    return zeros(shape, dtype)


def arange(*arguments, **named):
    return _computed(lambda: np.arange(*arguments, **named))


def asarray(value, dtype=None):
    if isinstance(value, ndarray):
        return value if dtype in (None, value.dtype) else value.astype(dtype)
    if not isinstance(value, np.ndarray) and hasattr(value, "__cuda_array_interface__"):
        return _lent(value.__cuda_array_interface__)
    _refuse_capture()
    return _fresh(np.asarray(value, dtype))


def array(value, dtype=None):
    return asarray(value, dtype).copy()


def ascontiguousarray(value):
    return value if value.flags.c_contiguous else _computed(lambda: np.ascontiguousarray(value._host))


def from_dlpack(value):
    """Take what the protocol lends; the exporters of the tests lend memory of the host under a device's name."""
    kind, device = value.__dlpack_device__()
    if kind not in (2, 13):
        raise RuntimeError("CuPy is built against CUDA, different from the backend that backs the incoming tensor")
    capsule = value.__dlpack__(stream=Stream.current.ptr or 1)
    host = np.from_dlpack(types.SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0)))
    return ndarray(host, Device(device))


def _lent(interface):
    if interface.get("stream") is not None:
        waits.append("synchronize")  # with the stream that the interface names
    exporter = types.SimpleNamespace(__array_interface__={k: v for k, v in interface.items() if k != "stream"})
    return ndarray(np.asarray(exporter))


def isfinite(value):
    return _computed(lambda: np.isfinite(value._host))


def _function(name):
    def function(*arguments, **named):
        operands = [list(map(_operand, a)) if isinstance(a, list | tuple) else _operand(a) for a in arguments]
        out = named.pop("out", None)
        if out is None:
            return _computed(lambda: getattr(np, name)(*operands, **named))
        _launch(lambda: getattr(np, name)(*operands, out=out._host, **named))
        return out

    return function


_NAMES = (
    "exp log sqrt add subtract multiply maximum minimum mean sum matmul full_like zeros_like empty_like stack".split()
)
for _name in _NAMES:
    globals()[_name] = _function(_name)


# ---- devices, streams, graphs ------------------------------------------------------------------------------------


class Device:
    current = 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number
        self.compute_capability = "90"
        self.attributes = {"MultiProcessorCount": PROCESSORS}

    def synchronize(self):
        waits.append("synchronize")

    def __enter__(self):
        self.before, Device.current = Device.current, self.id
        return self

    def __exit__(self, *_):
        Device.current = self.before


graphs = []
"""Graphs launched, by identity, since the list was cleared."""


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream=None):
        graphs.append(id(self))
        for launch in self.launches:
            launch()


_HANDLES = count(0x1000, 16)


class Stream:
    current = None

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else next(_HANDLES)
        self.recorded = None

    @classmethod
    def from_external(cls, other):
        made = cls()
        _, made.ptr = other.__cuda_stream__()
        return made

    def is_capturing(self):
        return self.recorded is not None

    def begin_capture(self, mode=None):
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.recorded = []

    def end_capture(self):
        graph, self.recorded = Graph(self.recorded), None
        return graph

    def synchronize(self):
        _refuse_capture()
        waits.append("synchronize")

    def wait_event(self, event):
        pass

    def record(self):
        return object()

    def __enter__(self):
        self.before, Stream.current = Stream.current, self
        return self

    def __exit__(self, *_):
        Stream.current = self.before


Stream.null = Stream.current = Stream(null=True)


def _refuse_capture():
    if Stream.current.is_capturing():
        raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


class RawKernel:
    num_regs = 32

    def __init__(self, library, name):
        self.library, self.name = library, name
        getattr(library.library, f"run_{name}")  # raises where it is not there

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        held = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]  # handed over at the launch
        assert all(a.device.id == Device.current for a in held if isinstance(a, ndarray)), "another device's memory"
        held = [a.data.ptr if isinstance(a, ndarray) else a for a in held]
        assert all(isinstance(a, int | np.ndarray) for a in held), held
        assert all(a.size == 1 for a in held if isinstance(a, np.ndarray))
        (blocks,), (threads,) = grid, block

        def launch():
            launched.append(self.name)
            self.library.launch(self.name, blocks, threads, held, backwards=BACKWARDS)

        _launch(launch)


class RawModule:
    def __init__(self, *, path):
        self.library = gxx.Library(path)

    def get_function(self, name):
        return RawKernel(self.library, name)


# ---- in the place of CuPy ----------------------------------------------------------------------------------------


_BOUND = (
    "fastgd.kernels.cupy_arrays",
    "fastgd.kernels.cuda_cupy",
)  # modules that have imported CuPy


def module():
    """Make the module."""
    made = types.ModuleType("cupy")
    names = "ndarray zeros ones empty arange asarray array ascontiguousarray from_dlpack isfinite RawModule".split()
    for name in names + _NAMES:
        setattr(made, name, globals()[name])
    made.float32, made.float64, made.int64 = np.float32, np.float64, np.int64
    made.cuda = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda: Stream.current,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(CUDARuntimeError=RuntimeError),
        get_allocator=get_allocator,
        using_allocator=using_allocator,
    )
    return made


def asked_for(monkeypatch):
    """Give a set that collects the texts of kernels, none of which is then run."""
    from fastgd.kernels import cubin

    texts = set()
    monkeypatch.setattr(cubin, "cubin", lambda text, arch, label: texts.add(text))
    monkeypatch.setattr(gxx, "Library", lambda path: types.SimpleNamespace(library=_Any(), launch=lambda *a, **k: None))
    return texts


class _Any:
    def __getattr__(self, name):
        return name


@contextmanager
def installed(monkeypatch):
    """Have fastgd find this module when it imports CuPy, and g++ compile its kernels."""
    from fastgd import backend

    fake = module()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for name in _BOUND:
        monkeypatch.delitem(sys.modules, name, raising=False)
    from fastgd.kernels import cubin

    monkeypatch.setattr(cubin, "cubin", lambda text, arch, label: gxx.build(text, SANITIZED))
    monkeypatch.setattr(cubin, "closest", lambda arch: arch)  # which would ask NVRTC
    monkeypatch.setattr(backend, "_SERVING", {*backend._SERVING, "cupy"})
    global allocations_left
    waits.clear()
    launched.clear()
    allocations_left, Stream.current, Device.current = math.inf, Stream.null, 0
    try:
        yield fake
    finally:
        for name in _BOUND:
            sys.modules.pop(name, None)
