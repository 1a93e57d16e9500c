"""CUDA through NVIDIA's cuda-python: graphs, priorities, stream-ordered memory, and wheels for all platforms.

The functions of `cuda.bindings.driver` return a tuple of the status and the results; the module is imported and the
driver looked for when the first object is made, so that importing this one needs neither.
"""

from __future__ import annotations

import ctypes
import importlib
import uuid
from typing import Any, Final

import numpy as np

from engines.backends.cuda.api import IPC_HANDLE_BYTES, CudaDevice, CudaError, DeviceInfo, Feature, MemoryInfo
from engines.tensor import Array

_NAME_BYTES: Final = 256


class BindingsCuda:
    """A CudaApi. Raises ImportError without the package, CudaError without a driver."""

    name = "cuda-python"

    def __init__(self, driver: Any = None) -> None:  # noqa: ANN401  (a module without types)
        self._driver = driver or importlib.import_module("cuda.bindings.driver")
        try:
            _call(self._driver, "cuInit", 0)
        except CudaError:
            raise
        except Exception as error:
            raise CudaError("CUDA_ERROR_NO_DEVICE", f"NVIDIA's driver cannot be loaded: {error}") from error

    def count(self) -> int:
        return int(_call(self._driver, "cuDeviceGetCount"))

    def device(self, index: int) -> CudaDevice:
        return BindingsDevice(self._driver, index)


def _call(driver: Any, function: str, *arguments: object) -> Any:  # noqa: ANN401  (whatever CUDA returns)
    """Call one function of the driver; its result, a tuple when there are several. Raises CudaError."""
    status, *results = getattr(driver, function)(*arguments)
    if int(status) != 0:
        _, text = driver.cuGetErrorString(status)
        raise CudaError(status.name, f"{function}: {text.decode() if isinstance(text, bytes) else text}")
    return results[0] if len(results) == 1 else tuple(results)


class BindingsDevice:
    """A CudaDevice; every thread may use it once bound."""

    def __init__(self, driver: Any, index: int) -> None:  # noqa: ANN401  (as above)
        self._driver = driver
        self._device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._pinned: dict[int, int] = {}
        attributes = driver.CUdevice_attribute
        self.info = DeviceInfo(
            index=index,
            name=self._call("cuDeviceGetName", _NAME_BYTES, self._device).split(b"\0")[0].decode(),
            sm=(
                self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
            ),
            uuid=self._uuid(),
            total_bytes=int(self._call("cuDeviceTotalMem", self._device)),
            driver=_version(int(self._call("cuDriverGetVersion"))),
        )
        self.features = Feature.GRAPHS | Feature.PRIORITIES | Feature.EVENT_HANDLES
        if self._attribute(attributes.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED):
            self.features |= Feature.STREAM_ORDERED

    def _call(self, function: str, *arguments: object) -> Any:  # noqa: ANN401  (as above)
        return _call(self._driver, function, *arguments)

    def _attribute(self, attribute: object) -> int:
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def _uuid(self) -> str:
        plain = uuid.UUID(bytes=bytes(self._call("cuDeviceGetUuid", self._device).bytes))
        # The driver gives a MIG slice's own UUID but not its prefix; the name of the device tells.
        name = self._call("cuDeviceGetName", _NAME_BYTES, self._device)
        return f"{'MIG' if b' MIG ' in name else 'GPU'}-{plain}"

    def bind(self) -> None:
        self._call("cuCtxPushCurrent", self._context)

    def unbind(self) -> None:
        self._call("cuCtxPopCurrent")

    def memory(self) -> MemoryInfo:
        free, total = self._call("cuMemGetInfo")
        return MemoryInfo(int(free), int(total))

    def stream(self, *, urgent: bool = False) -> int:
        _, highest = self._call("cuCtxGetStreamPriorityRange")
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(self._call("cuStreamCreateWithPriority", flags, int(highest) if urgent else 0))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", self._driver.CUstream(stream))

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", self._driver.CUstream(stream))

    def event(self, *, blocking: bool = True) -> int:
        kinds = self._driver.CUevent_flags
        flags = int(kinds.CU_EVENT_DISABLE_TIMING) | (int(kinds.CU_EVENT_BLOCKING_SYNC) if blocking else 0)
        return int(self._call("cuEventCreate", flags))

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", self._driver.CUevent(event))

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", self._driver.CUevent(event), self._driver.CUstream(stream))

    def wait(self, stream: int, event: int) -> None:
        self._call("cuStreamWaitEvent", self._driver.CUstream(stream), self._driver.CUevent(event), 0)

    def wait_event(self, event: int) -> None:
        self._call("cuEventSynchronize", self._driver.CUevent(event))

    def event_done(self, event: int) -> bool:
        try:
            self._call("cuEventQuery", self._driver.CUevent(event))
        except CudaError as error:
            if error.name == "CUDA_ERROR_NOT_READY":
                return False
            raise
        return True

    def pinned(self, size: int) -> Array:
        address = int(self._call("cuMemHostAlloc", max(1, size), self._driver.CU_MEMHOSTALLOC_PORTABLE))
        memory: Array = np.ctypeslib.as_array((ctypes.c_uint8 * max(1, size)).from_address(address))
        self._pinned[memory.ctypes.data] = address
        return memory[:size]

    def free_pinned(self, memory: Array) -> None:
        self._call("cuMemFreeHost", self._pinned.pop(memory.ctypes.data))

    def allocate(self, size: int, stream: int = 0) -> int:
        if stream and Feature.STREAM_ORDERED in self.features:
            return int(self._call("cuMemAllocAsync", max(1, size), self._driver.CUstream(stream)))
        return int(self._call("cuMemAlloc", max(1, size)))

    def free(self, address: int, stream: int = 0) -> None:
        pointer = self._driver.CUdeviceptr(address)
        if stream and Feature.STREAM_ORDERED in self.features:
            self._call("cuMemFreeAsync", pointer, self._driver.CUstream(stream))
        else:
            self._call("cuMemFree", pointer)

    def copy_in(self, target: int, source: Array, stream: int) -> None:
        driver = self._driver
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, driver.CUstream(stream))

    def copy_out(self, target: Array, source: int, stream: int) -> None:
        driver = self._driver
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, driver.CUstream(stream))

    def copy_within(self, target: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, size, self._driver.CUstream(stream))

    def begin_capture(self, stream: int) -> None:
        # Thread-local: what other threads do, allocations included, must not spoil the recording.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._driver.CUstream(stream), mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cuStreamEndCapture", self._driver.CUstream(stream))
        if not int(graph):
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "nothing was recorded")
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", self._driver.CUgraphExec(graph), self._driver.CUstream(stream))

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", self._driver.CUgraphExec(graph))

    def export_memory(self, address: int) -> bytes:
        handle = self._call("cuIpcGetMemHandle", self._driver.CUdeviceptr(address))
        return ctypes.string_at(handle.getPtr(), IPC_HANDLE_BYTES)

    def open_memory(self, handle: bytes) -> int:
        opaque = self._driver.CUipcMemHandle()
        ctypes.memmove(opaque.getPtr(), handle, IPC_HANDLE_BYTES)
        flags = int(self._driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        return int(self._call("cuIpcOpenMemHandle", opaque, flags))

    def close_memory(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", self._driver.CUdeviceptr(address))

    def memory_size(self, address: int) -> int:
        base, size = self._call("cuMemGetAddressRange", self._driver.CUdeviceptr(address))
        return int(base) + int(size) - address


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
