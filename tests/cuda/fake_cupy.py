"""A stand-in for CuPy whose device is the host: kernels are built by g++, arrays refuse what CuPy's would refuse.

It has what fastgd uses of CuPy, and no more. Arrays cannot be turned into NumPy's without being asked to, and what
waits for the device is counted, so that a test sees it.
"""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager

import gxx
import numpy as np

BACKWARDS = False  # in which order threads and blocks take their turns
SANITIZED = ()  # further flags of g++
waits = []
"""What has waited for the device since the list was cleared."""
launched = []
"""Names of the kernels launched since the list was cleared."""


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

    def __init__(self, host):
        self._host = host

    @property
    def data(self):
        return Memory(self._host.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {**self._host.__array_interface__, "version": 3}

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
    T = property(lambda self: ndarray(self._host.T))

    @property
    def device(self):
        return Device(0)

    def get(self):
        _refuse_capture()
        waits.append("get")
        return self._host.copy()

    def set(self, values):
        if type(values) is not np.ndarray:
            raise TypeError(f"Only numpy.ndarray can be set to cupy.ndarray, given {type(values)}")
        self._host[...] = values

    def copy(self):
        return ndarray(self._host.copy())

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape))

    def fill(self, value):
        self._host.fill(value)

    def item(self):
        return self.get().item()

    def __float__(self):
        return float(self.get())

    def __bool__(self):
        return bool(self.get())

    def __len__(self):
        return len(self._host)

    def __getitem__(self, key):
        found = self._host[_inner(key)]
        return ndarray(np.asarray(found))

    def __setitem__(self, key, value):
        self._host[_inner(key)] = _operand(value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __matmul__(self, other):
        return ndarray(np.asarray(self._host @ _operand(other)))

    def all(self):
        return ndarray(np.asarray(self._host.all()))

    def any(self):
        return ndarray(np.asarray(self._host.any()))

    def max(self, *arguments, **named):
        return ndarray(np.asarray(self._host.max(*arguments, **named)))

    def min(self, *arguments, **named):
        return ndarray(np.asarray(self._host.min(*arguments, **named)))

    def sum(self, *arguments, **named):
        return ndarray(np.asarray(self._host.sum(*arguments, **named)))

    def mean(self, *arguments, **named):
        return ndarray(np.asarray(self._host.mean(*arguments, **named)))

    def argmax(self, *arguments, **named):
        return ndarray(np.asarray(self._host.argmax(*arguments, **named)))

    def astype(self, dtype):
        return ndarray(self._host.astype(dtype))


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
        with np.errstate(all="ignore"):
            return ndarray(np.asarray(getattr(self._host, name)(_operand(other))))

    return operate


def _in_place(name):
    def operate(self, other):
        getattr(self._host, name)(_operand(other))
        return self

    return operate


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(ndarray, f"__{_name}__", _in_place(f"__{_name}__"))
for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "and", "or"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
ndarray.__hash__ = None
ndarray.__neg__ = lambda self: ndarray(np.asarray(-self._host))
ndarray.__abs__ = lambda self: ndarray(np.asarray(abs(self._host)))
ndarray.__invert__ = lambda self: ndarray(np.asarray(~self._host))


def _fresh(host):
    """In memory aligned as CuPy's pool aligns it; a sanitizer must see where the array ends."""
    if SANITIZED:
        return ndarray(np.array(host))
    raw = np.zeros(host.nbytes + 512, np.uint8)
    start = -raw.ctypes.data % 512
    made = raw[start : start + host.nbytes].view(host.dtype).reshape(host.shape)
    made[...] = host
    return ndarray(made)


def zeros(shape, dtype=float):
    if np.prod(shape) * np.dtype(dtype).itemsize > 1 << 36:
        raise OutOfMemoryError(f"Out of memory allocating {np.prod(shape) * np.dtype(dtype).itemsize:,} bytes")
    return _fresh(np.zeros(shape, dtype))


def ones(shape, dtype=float):
    return _fresh(np.ones(shape, dtype))


def empty(shape, dtype=float):
    return zeros(shape, dtype)


def arange(*arguments, **named):
    return _fresh(np.arange(*arguments, **named))


def asarray(value, dtype=None):
    if isinstance(value, ndarray):
        return value if dtype in (None, value.dtype) else value.astype(dtype)
    if not isinstance(value, np.ndarray) and hasattr(value, "__cuda_array_interface__"):
        return _lent(value.__cuda_array_interface__)
    return _fresh(np.asarray(value, dtype))


array = asarray


def ascontiguousarray(value):
    return _fresh(np.ascontiguousarray(value._host))


def from_dlpack(value):
    return value.lend() if hasattr(value, "lend") else _lent(value.__cuda_array_interface__)


def _lent(interface):
    exporter = types.SimpleNamespace(__array_interface__={k: v for k, v in interface.items() if k != "stream"})
    return ndarray(np.asarray(exporter))


def isfinite(value):
    return ndarray(np.asarray(np.isfinite(value._host)))


def _function(name):
    def function(*arguments, out=None, **named):
        named |= {} if out is None else {"out": out._host}
        with np.errstate(all="ignore"):
            return ndarray(np.asarray(getattr(np, name)(*map(_operand, arguments), **named)))

    return function


exp, log, sqrt, maximum, minimum, mean, sum, matmul, full_like, zeros_like, empty_like = map(
    _function,
    ("exp", "log", "sqrt", "maximum", "minimum", "mean", "sum", "matmul", "full_like", "zeros_like", "empty_like"),
)


def stack(values):
    return ndarray(np.stack([_operand(v) for v in values]))


# ---- devices, streams, graphs ------------------------------------------------------------------------------------


class Device:
    def __init__(self, number=0):
        self.id = number
        self.compute_capability = "90"
        self.attributes = {"MultiProcessorCount": 3}

    def synchronize(self):
        waits.append("synchronize")


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream=None):
        for launch in self.launches:
            launch()


class Stream:
    current = None
    made = 0

    def __init__(self, null=False, non_blocking=False):
        Stream.made += not null
        self.ptr = 0 if null else 0x1000 * Stream.made
        self.recorded = None

    def is_capturing(self):
        return self.recorded is not None

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
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
        held = [a.data.ptr if isinstance(a, ndarray) else a for a in held]
        assert all(isinstance(a, int | np.ndarray) for a in held), held
        assert all(a.size == 1 for a in held if isinstance(a, np.ndarray))
        (blocks,), (threads,) = grid, block

        def launch():
            launched.append(self.name)
            self.library.launch(self.name, blocks, threads, held, backwards=BACKWARDS)

        if Stream.current.is_capturing():
            Stream.current.recorded.append(launch)
        else:
            launch()


class RawModule:
    def __init__(self, *, path):
        self.library = gxx.Library(path)

    def get_function(self, name):
        return RawKernel(self.library, name)


# ---- in the place of CuPy ----------------------------------------------------------------------------------------


_BOUND = ("fastgd.kernels.cuda_arrays", "fastgd.kernels.cuda_cupy")  # modules that have imported CuPy


def module():
    """Make the module."""
    made = types.ModuleType("cupy")
    names = """ndarray zeros ones empty arange asarray array ascontiguousarray from_dlpack isfinite exp log sqrt maximum
    minimum mean sum matmul full_like zeros_like empty_like stack RawModule"""
    for name in names.split():
        setattr(made, name, globals()[name])
    made.float32, made.float64, made.int64 = np.float32, np.float64, np.int64
    made.cuda = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda: Stream.current,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(CUDARuntimeError=RuntimeError),
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
    monkeypatch.setattr(backend, "_SERVING", {"cupy"})
    waits.clear()
    launched.clear()
    try:
        yield fake
    finally:
        for name in _BOUND:
            sys.modules.pop(name, None)
