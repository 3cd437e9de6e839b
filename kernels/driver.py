"""The NVIDIA driver and its devices, asked through its own library: no package is needed to tell that there are none.

Nothing here runs before it is called, and only what wants a GPU calls it: a process that has started the driver cannot
use it in children that it forks.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

_LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Device(NamedTuple):
    """One GPU: its name, compute capability and bytes of memory."""

    name: str
    capability: tuple[int, int]
    memory: int


class Driver(NamedTuple):
    """The CUDA version that the driver serves, and the devices in the order of their numbers."""

    version: tuple[int, int]
    devices: tuple[Device, ...]


def find() -> tuple[Driver | None, str]:
    """Start the driver and look at its devices.

    Returns
    -------
    driver : Driver or None
        None where there is none that works; one without devices is a driver.
    reason : str
        Why there is none; else empty.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None, f"there is no NVIDIA driver here ({_LIBRARY} cannot be loaded)"
    try:
        version, count = ctypes.c_int(), ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(version))
        if _call(library, "cuInit", 0, allowed=_NO_DEVICE) != _NO_DEVICE:
            _call(library, "cuDeviceGetCount", ctypes.byref(count))
        devices = tuple(_device(library, number) for number in range(count.value))
    except (OSError, AttributeError) as error:  # the latter: a library without the function
        return None, f"the NVIDIA driver does not work: {error}"
    return Driver((version.value // 1000, version.value % 1000 // 10), devices), ""


def c_function(name: str) -> Any:
    """Give a function of the driver's own library, which gives its error, 0 for none, as an int.

    A call of it runs no Python: NVIDIA's bindings make each answer one of an enumeration's by a method in Python, in
    which Ctrl-C may be raised when the driver has done its work. It takes numbers of 32 bits as int, and others as
    objects of `ctypes`: to have it convert them takes as long as the call.
    """
    return getattr(ctypes.CDLL(_LIBRARY), name)


def _device(library: ctypes.CDLL, number: int) -> Device:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(handle), number)
    _call(library, "cuDeviceGetName", name, len(name), handle)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, handle)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, handle)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    return Device(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _call(library: ctypes.CDLL, function: str, *arguments: object, allowed: int = 0) -> int:
    code: int = getattr(library, function)(*arguments)
    if code not in (0, allowed):
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        raise OSError(f"{function}: {(text.value or b'unknown error').decode(errors='replace')} (error {code})")
    return code
