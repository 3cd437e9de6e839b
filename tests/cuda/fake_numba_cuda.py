"""A stand-in for numba-cuda and NVIDIA's bindings to the driver, whose device is the host.

It has what fastgd uses of them, and no more. Kernels are those of numba-cuda, compiled by Numba for the CPU; what waits
for the device is counted, and what is launched while a stream is captured is recorded. See fake_cupy.py.
"""

from __future__ import annotations

import ctypes
import enum
import math
import sys
import threading
import types
from contextlib import contextmanager
from functools import wraps
from itertools import count

import numba
import numba_emulation
import numpy as np

BACKWARDS = False  # in which order threads and blocks take their turns
PROCESSORS = 3
waits = []
"""What has waited for the device since the list was cleared."""
launched = []
"""Names of the kernels launched since the list was cleared."""
failing = []
"""Names of the kernels whose launch fails; "graph" is that of any graph."""
allocations_left = math.inf
"""How many more arrays the device's memory takes."""
current_device = 0


class CudaAPIError(Exception):
    """numba-cuda's name of what the driver says."""


# ---- arrays ------------------------------------------------------------------------------------------------------


class DeviceNDArray:
    """An array of the device; `_host` is where it really lies."""

    __module__ = "numba.cuda.cudadrv.devicearray"
    __cuda_ndarray__ = True
    __array_ufunc__ = None

    def __init__(self, host, stream=0, device=None, owner=None):
        self._host = host
        self.stream = stream
        self.owner = owner
        self.device = current_device if device is None else device
        self.shape, self.dtype, self.size, self.ndim = host.shape, host.dtype, host.size, host.ndim
        self.nbytes, self.strides = host.nbytes, host.strides

    @property
    def device_ctypes_pointer(self):
        return ctypes.c_void_p(self._host.ctypes.data if self.size else None)

    @property
    def __cuda_array_interface__(self):
        stream = int(self.stream) if self.stream else None
        return {**self._host.__array_interface__, "version": 3, "stream": stream}

    def __array__(self, *_, **__):
        raise AssertionError("an array of the device was copied without being asked to")

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        found = self._host[key]
        assert isinstance(found, np.ndarray), "a number was fetched from the device"
        return DeviceNDArray(found, self.stream, self.device, self)

    def is_c_contiguous(self):
        return self._host.flags.c_contiguous

    def bind(self, stream=0):
        return DeviceNDArray(self._host, stream, self.device, self)

    def copy_to_host(self, ary=None, stream=0):
        waits.append("copy_to_host")
        return self._host.copy()

    def __deepcopy__(self, memo):
        raise AssertionError("an array of the device was copied without being asked to")


def device_array(shape, dtype=np.float64, strides=None, order="C", stream=0):
    global allocations_left
    _thread.context = True
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    nbytes = size * np.dtype(dtype).itemsize
    if nbytes:
        if allocations_left < 1 or nbytes > 1 << 36:
            raise CudaAPIError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        allocations_left -= 1
    raw = np.zeros(nbytes + 512, np.uint8)
    start = -raw.ctypes.data % 512
    made = raw[start : start + nbytes].view(dtype).reshape(shape)
    made.view(np.uint8 if made.ndim else made.dtype)[...] = 0xAB  # what was there before: nobody clears it
    return DeviceNDArray(made, stream)


def to_device(obj, stream=0, copy=True, to=None):
    made = device_array(obj.shape, obj.dtype, stream=stream)
    made._host[...] = obj
    return made


def from_cuda_array_interface(desc, owner=None, sync=True):
    assert not sync, "this waits for the stream"
    _thread.context = True
    assert desc.get("strides") is None or owner is not None
    address, shape, dtype = desc["data"][0], tuple(desc["shape"]), np.dtype(desc["typestr"])
    size = math.prod(shape)
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address) if size else b""
    flat = np.frombuffer(memory, dtype)
    host = flat.reshape(shape)
    if desc.get("strides") is not None:
        host = np.lib.stride_tricks.as_strided(flat, shape, desc["strides"])
    return DeviceNDArray(host, 0, getattr(owner, "device", None), owner)


def as_cuda_array(obj, sync=True):
    interface = obj.__cuda_array_interface__
    made = from_cuda_array_interface(interface, obj, sync)
    made.device = getattr(getattr(obj, "device", None), "id", current_device)
    return made


class Stream:
    handles = count(0x1000, 16)

    def __init__(self, handle=None):
        self.handle = next(self.handles) if handle is None else handle

    def __int__(self):
        assert self.handle, "numba-cuda warns: it gives what is no int"
        return self.handle

    def synchronize(self):
        waits.append("synchronize")


class _Gpus:
    @contextmanager
    def _as_current(self, number):
        global current_device
        before, current_device = current_device, number
        try:
            yield
        finally:
            current_device = before

    def __getitem__(self, number):
        return self._as_current(number)


_thread = threading.local()
"""Has an attribute `context` in threads that can call the driver."""


def get_current_device():
    _thread.context = True
    return types.SimpleNamespace(id=current_device, compute_capability=(9, 0), MULTIPROCESSOR_COUNT=PROCESSORS)


# ---- the driver --------------------------------------------------------------------------------------------------


class CUresult(enum.IntEnum):
    """As of the bindings, an int too."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


_OK = CUresult.CUDA_SUCCESS
recorded = {}
"""What has been launched on the streams that are captured, by handle."""


def _enqueue(stream, work):
    if int(stream) in recorded:
        recorded[int(stream)].append(work)
    else:
        work()


_BY_HANDLE = {}
"""Kernels and graphs."""


def _handle(made):
    _BY_HANDLE[id(made)] = made
    return id(made)


def _move(to, source, size):
    ctypes.memmove(to, source, size)


def _refuse_capture(stream):
    if int(stream) in recorded:
        return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
    return None


def _in_context(functions):
    """Have the functions of a class fail in a thread that numba-cuda has not made ready, as the driver's do."""
    for name, function in list(vars(functions).items()):
        if isinstance(function, staticmethod):
            setattr(functions, name, staticmethod(_refusing(function.__func__)))
    return functions


def _refusing(function):
    @wraps(function)
    def refusing(*arguments):
        return function(*arguments) if hasattr(_thread, "context") else (CUresult.CUDA_ERROR_INVALID_CONTEXT,)

    return refusing


@_in_context
class driver:
    """Functions of the driver, of which each gives a result and values."""

    CUresult = CUresult

    class CUpointer_attribute:
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9

    class CUstream_flags:
        CU_STREAM_NON_BLOCKING = 1

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_RELAXED = 2

    @staticmethod
    def cuCtxGetDevice():
        return _OK, current_device

    @staticmethod
    def cuMemsetD8Async(to, value, size, stream):
        _enqueue(stream, lambda: ctypes.memset(to, value, size))
        return (_OK,)

    @staticmethod
    def cuMemcpyHtoDAsync(to, source, size, stream):
        content = ctypes.string_at(source, size) if isinstance(source, int) else bytes(source)[:size]
        refused = _refuse_capture(stream)
        if refused is None:
            _move(to, content, size)
        return refused or (_OK,)

    @staticmethod
    def cuMemcpyDtoHAsync(to, source, size, stream):
        refused = _refuse_capture(stream)
        if refused is None:
            _move(to, source, size)
        return refused or (_OK,)

    @staticmethod
    def cuMemcpyDtoDAsync(to, source, size, stream):
        _enqueue(stream, lambda: _move(to, source, size))
        return (_OK,)

    @staticmethod
    def cuStreamSynchronize(stream):
        refused = _refuse_capture(stream)
        if refused is None:
            waits.append("synchronize")
        return refused or (_OK,)

    @staticmethod
    def cuStreamIsCapturing(stream):
        return _OK, types.SimpleNamespace(value=int(int(stream) in recorded))

    @staticmethod
    def cuPointerGetAttribute(kind, address):
        assert kind == driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return _OK, _devices.get(address, current_device)

    @staticmethod
    def cuModuleLoadData(code):
        return _OK, code

    @staticmethod
    def cuModuleGetFunction(module, name):
        assert module.kernel.name == name.decode()
        return _OK, _handle(module.emulated)

    @staticmethod
    def cuLaunchKernel(handle, x, y, z, threads, ty, tz, shared, stream, places, extra):
        assert (y, z, ty, tz, shared, extra) == (1, 1, 1, 1, 0, 0) and x > 0
        function = _BY_HANDLE[handle]
        size = len(function.kernel.kinds)
        where = np.frombuffer((ctypes.c_char * (8 * size)).from_address(places), np.uint64)
        given = [ctypes.c_int64.from_address(int(place)).value for place in where]

        if function.kernel.name in failing:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)

        def run():
            launched.append(function.kernel.name)
            function(x, threads, given, backwards=BACKWARDS)

        _enqueue(stream, run)
        return (_OK,)

    @staticmethod
    def cuStreamCreate(flags):
        return _OK, Stream()

    @staticmethod
    def cuStreamDestroy(stream):
        return (_OK,)

    @staticmethod
    def cuStreamBeginCapture(stream, mode):
        recorded[int(stream)] = []
        return (_OK,)

    @staticmethod
    def cuStreamEndCapture(stream):
        return _OK, recorded.pop(int(stream))

    @staticmethod
    def cuGraphInstantiate(graph, flags):
        return _OK, _handle(list(graph))

    @staticmethod
    def cuGraphDestroy(graph):
        return (_OK,)

    @staticmethod
    def cuGraphExecDestroy(graph):
        return (_OK,)

    @staticmethod
    def cuGraphLaunch(graph, stream):
        if "graph" in failing:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        graphs.append(graph)
        for work in _BY_HANDLE[graph]:
            work()
        return (_OK,)


graphs = []
"""Graphs launched, by handle, since the list was cleared."""


def _c_function(name):
    function = getattr(driver, name)

    def call(*arguments):
        values = [(a.value or 0) if isinstance(a, ctypes.c_void_p) else a for a in arguments]
        return int(function(*values)[0])

    return call


_devices = {}
"""Devices of addresses that do not lie on the current one."""


# ---- in the place of numba-cuda ----------------------------------------------------------------------------------

_EMULATED = {}


class Code:
    """Machine code of a kernel."""

    def __init__(self, kernel):
        self.kernel = kernel

    def read_bytes(self):
        return self

    @property
    def emulated(self):
        key = self.kernel.name, self.kernel.text, self.kernel.kinds
        if key not in _EMULATED:
            _EMULATED[key] = numba_emulation.Emulated(self.kernel)
        return _EMULATED[key]


_BOUND = (
    "fastgd.kernels.numba_arrays",
    "fastgd.kernels.cuda_numba",
)  # modules that have imported numba-cuda or the driver


def module():
    """Make the module ``numba.cuda``."""
    made = types.ModuleType("numba.cuda")
    made.implementation = "NVIDIA"
    for function in (
        device_array,
        to_device,
        from_cuda_array_interface,
        as_cuda_array,
        get_current_device,
    ):
        setattr(made, function.__name__, function)
    made.gpus = _Gpus()
    made.stream = Stream
    made.external_stream = Stream
    return made


@contextmanager
def installed(monkeypatch):
    """Have fastgd find this module when it imports numba-cuda, and Numba compile its kernels for the CPU."""
    from fastgd import backend
    from fastgd.kernels import cuda_numba_source
    from fastgd.kernels import driver as c_driver

    fake = module()
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver
    monkeypatch.setattr(numba, "cuda", fake, raising=False)
    for name, stand_in in (
        ("numba.cuda", fake),
        ("cuda.bindings", bindings),
        ("cuda.bindings.driver", driver),
    ):
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    for name in _BOUND:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(c_driver, "c_function", _c_function)
    monkeypatch.setattr(cuda_numba_source, "machine_code", lambda kernel, arch: Code(kernel))
    monkeypatch.setattr(backend, "_SERVING", {*backend._SERVING, "numba-cuda"})
    _forget()
    global allocations_left, current_device
    for seen in (waits, launched, graphs, failing):
        seen.clear()
    recorded.clear()
    allocations_left, current_device = math.inf, 0
    try:
        yield fake
    finally:
        for name in _BOUND:
            sys.modules.pop(name, None)
        _forget()


def _forget():
    """Have modules that are loaded by name looked for anew."""
    from fastgd import memory

    memory._gpu.cache_clear()
