"""What measuring asks of CuPy, beside what steps do: clocks, copies, properties of the device, its memory."""

from __future__ import annotations

import time

from fake_cupy import Device

FREE = 1 << 34  # bytes that the device says are free


class Event:
    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass


class Pool:
    def free_all_blocks(self):
        pass


def copyto(array, values):
    array[...] = values


def properties(number):
    return dict(name=b"stand-in", major=9, minor=0, multiProcessorCount=3, totalGlobalMem=FREE)


def add_to(cupy, monkeypatch):
    """Give a stand-in for CuPy what `fastgd.bench.gpu_run` needs of it."""
    monkeypatch.setattr(Device, "mem_info", property(lambda self: (FREE, FREE)), raising=False)
    cupy.copyto = copyto
    cupy.get_default_memory_pool = Pool
    cupy.cuda.Event = Event
    cupy.cuda.get_elapsed_time = lambda start, end: 1e3 * (end.at - start.at)
    cupy.cuda.set_allocator = lambda allocator: None
    cupy.cuda.runtime.driverGetVersion = lambda: 13000
    cupy.cuda.runtime.runtimeGetVersion = lambda: 13020
    cupy.cuda.runtime.getDeviceProperties = properties
