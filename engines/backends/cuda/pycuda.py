"""CUDA through PyCUDA.

It has no graphs, priorities, stream-ordered memory or handles of events; engines do without. Objects are kept alive
here by their integers, and dropped by the thread that made them, since PyCUDA leaks those that another thread drops.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np

from engines.backends.cuda.api import IPC_HANDLE_BYTES, CudaDevice, CudaError, DeviceInfo, Feature, MemoryInfo
from engines.tensor import Array

_NAMES: Final = {"MemoryError": "CUDA_ERROR_OUT_OF_MEMORY", "LaunchError": "CUDA_ERROR_LAUNCH_FAILED"}
"""PyCUDA's exceptions that say what went wrong by their class; the others only say it in words."""
_WORDS: Final = {
    "illegal memory access": "CUDA_ERROR_ILLEGAL_ADDRESS",
    "launch timed out": "CUDA_ERROR_LAUNCH_TIMEOUT",
    "uncorrectable ECC": "CUDA_ERROR_ECC_UNCORRECTABLE",
    "no CUDA-capable device": "CUDA_ERROR_NO_DEVICE",
    "misaligned address": "CUDA_ERROR_MISALIGNED_ADDRESS",
    "illegal instruction": "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "device-side assert": "CUDA_ERROR_ASSERT",
}


class PyCuda:
    """A CudaApi. Raises ImportError without the package, CudaError without a driver."""

    name = "pycuda"

    def __init__(self, driver: Any = None) -> None:  # noqa: ANN401  (a module without types)
        self._driver = driver or importlib.import_module("pycuda.driver")
        self._guard = _Guard(self._driver)
        self._guard(self._driver.init)

    def count(self) -> int:
        return int(self._guard(self._driver.Device.count))

    def device(self, index: int) -> CudaDevice:
        return PyCudaDevice(self._driver, index)


class _Guard:
    """Calls PyCUDA, with its errors turned into ours."""

    def __init__(self, driver: Any) -> None:  # noqa: ANN401  (as above)
        self._errors: tuple[type[Exception], ...] = (driver.Error,)

    def __call__(self, function: Any, *arguments: object) -> Any:  # noqa: ANN401  (whatever PyCUDA returns)
        try:
            return function(*arguments)
        except self._errors as error:
            raise CudaError(_name_of(error), str(error)) from error


def _no_graphs(of: int) -> CudaError:
    return CudaError("CUDA_ERROR_NOT_SUPPORTED", f"PyCUDA has no graphs ({of:#x})")


def _name_of(error: Exception) -> str:
    for words, name in _WORDS.items():
        if words in str(error):
            return name
    return _NAMES.get(type(error).__name__, "CUDA_ERROR_UNKNOWN")


class PyCudaDevice:
    """A CudaDevice."""

    features = Feature.NONE

    def __init__(self, driver: Any, index: int) -> None:  # noqa: ANN401  (as above)
        self._driver = driver
        self._guard = _Guard(driver)
        self._device = self._guard(driver.Device, index)
        self._context = self._guard(self._device.retain_primary_context)
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._memory: dict[int, Any] = {}
        self._opened: dict[int, Any] = {}
        self._pinned: dict[int, Array] = {}
        version = int(self._guard(driver.get_driver_version))
        self.info = DeviceInfo(
            index=index,
            name=str(self._guard(self._device.name)),
            sm=tuple(self._guard(self._device.compute_capability)),
            uuid=str(self._guard(self._device.pci_bus_id)),
            total_bytes=int(self._guard(self._device.total_memory)),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )

    def bind(self) -> None:
        self._guard(self._context.push)

    def unbind(self) -> None:
        self._guard(self._driver.Context.pop)

    def memory(self) -> MemoryInfo:
        free, total = self._guard(self._driver.mem_get_info)
        return MemoryInfo(int(free), int(total))

    def stream(self, *, urgent: bool = False) -> int:  # noqa: ARG002  (PyCUDA knows no priorities)
        stream = self._guard(self._driver.Stream, _NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        self._guard(self._streams[stream].synchronize)

    def event(self, *, blocking: bool = True) -> int:
        kinds = self._driver.event_flags
        flags = int(kinds.DISABLE_TIMING) | (int(kinds.BLOCKING_SYNC) if blocking else 0)
        event = self._guard(self._driver.Event, flags)
        self._events[id(event)] = event
        return id(event)

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        self._guard(self._events[event].record, self._streams[stream])

    def wait(self, stream: int, event: int) -> None:
        self._guard(self._streams[stream].wait_for_event, self._events[event])

    def wait_event(self, event: int) -> None:
        self._guard(self._events[event].synchronize)

    def event_done(self, event: int) -> bool:
        return bool(self._guard(self._events[event].query))

    def pinned(self, size: int) -> Array:
        memory: Array = self._guard(self._driver.pagelocked_empty, max(1, size), np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return memory[:size]

    def free_pinned(self, memory: Array) -> None:
        allocation: Any = self._pinned.pop(memory.ctypes.data).base
        self._guard(allocation.free)

    def allocate(self, size: int, stream: int = 0) -> int:  # noqa: ARG002  (PyCUDA allocates at once)
        allocation = self._guard(self._driver.mem_alloc, max(1, size))
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int, stream: int = 0) -> None:
        if stream:  # what the stream still does may need the memory
            self.synchronize(stream)
        self._guard(self._memory.pop(address).free)

    def copy_in(self, target: int, source: Array, stream: int) -> None:
        self._guard(self._driver.memcpy_htod_async, target, source, self._streams[stream])

    def copy_out(self, target: Array, source: int, stream: int) -> None:
        self._guard(self._driver.memcpy_dtoh_async, target, source, self._streams[stream])

    def copy_within(self, target: int, source: int, size: int, stream: int) -> None:
        self._guard(self._driver.memcpy_dtod_async, target, source, size, self._streams[stream])

    def begin_capture(self, stream: int) -> None:
        raise _no_graphs(stream)

    def end_capture(self, stream: int) -> int:
        raise _no_graphs(stream)

    def launch(self, graph: int, stream: int) -> None:  # noqa: ARG002  (there is none to launch)
        raise _no_graphs(graph)

    def destroy_graph(self, graph: int) -> None:
        raise _no_graphs(graph)

    def export_memory(self, address: int) -> bytes:
        return bytes(self._guard(self._driver.mem_get_ipc_handle, address))

    def open_memory(self, handle: bytes) -> int:
        opened = self._guard(self._driver.IPCMemoryHandle, bytearray(handle[:IPC_HANDLE_BYTES]))
        self._opened[int(opened)] = opened
        return int(opened)

    def close_memory(self, address: int) -> None:
        self._guard(self._opened.pop(address).close)

    def memory_size(self, address: int) -> int:
        base, size = self._guard(self._driver.mem_get_address_range, address)
        return int(base) + int(size) - address


_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING: PyCUDA passes flags of streams on, but does not name them."""
