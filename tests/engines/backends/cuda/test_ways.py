"""PyCUDA and cuda-python as CudaApis, with doubles of their modules; both keep the promises that engines rely on."""

from __future__ import annotations

import ctypes
import enum
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.backends.cuda import find
from engines.backends.cuda.api import STICKY, CudaError, DeviceInfo, Feature
from engines.backends.cuda.bindings import BindingsCuda, BindingsDevice
from engines.backends.cuda.find import Way, find_cuda
from engines.backends.cuda.pycuda import PyCuda
from engines.errors import LoadFailed

FUNCTIONS = {
    *("cuCtxGetStreamPriorityRange", "cuCtxPopCurrent", "cuCtxPushCurrent", "cuDeviceGet", "cuDeviceGetAttribute"),
    *("cuDeviceGetCount", "cuDeviceGetName", "cuDeviceGetUuid", "cuDevicePrimaryCtxRetain", "cuDeviceTotalMem"),
    *("cuDriverGetVersion", "cuEventCreate", "cuEventDestroy", "cuEventQuery", "cuEventRecord"),
    *("cuEventSynchronize", "cuGetErrorString", "cuGraphDestroy", "cuGraphExecDestroy", "cuGraphInstantiate"),
    *("cuGraphLaunch", "cuInit", "cuIpcCloseMemHandle", "cuIpcGetMemHandle", "cuIpcOpenMemHandle", "cuMemAlloc"),
    *("cuMemAllocAsync", "cuMemFree", "cuMemFreeAsync", "cuMemFreeHost", "cuMemGetAddressRange", "cuMemGetInfo"),
    *("cuMemHostAlloc", "cuMemcpyDtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuStreamBeginCapture"),
    *("cuStreamCreateWithPriority", "cuStreamDestroy", "cuStreamEndCapture", "cuStreamSynchronize"),
    "cuStreamWaitEvent",
}
"""Those of cuda.bindings.driver 13.5 that may be used; the list was made from the module itself."""


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Driver:
    """A double of cuda.bindings.driver: notes calls, and answers what the test gives it, or a number."""

    CU_MEMHOSTALLOC_PORTABLE = 1
    CUstream = CUevent = CUdeviceptr = CUgraphExec = staticmethod(lambda value: value)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_BLOCKING_SYNC=1, CU_EVENT_DISABLE_TIMING=2)
    CUipcMem_flags = SimpleNamespace(CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local")
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED="pools",
    )

    class CUipcMemHandle:
        def __init__(self) -> None:
            self.memory = ctypes.create_string_buffer(64)

        def getPtr(self) -> int:
            return ctypes.addressof(self.memory)

    def __init__(self, name: bytes = b"NVIDIA H200") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: dict[str, Any] = {
            "cuDeviceGetCount": 1,
            "cuDeviceGetName": name + b"\0\0",
            "cuDeviceGetUuid": SimpleNamespace(bytes=bytes(range(16))),
            "cuDriverGetVersion": 13010,
            "cuCtxGetStreamPriorityRange": (0, -5),
            "cuMemGetInfo": (10, 100),
            "cuMemGetAddressRange": (1000, 64),
        }
        self.fails: dict[str, Status] = {}

    def __getattr__(self, name: str) -> Any:
        assert name in FUNCTIONS, name

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                return (Status.CUDA_SUCCESS, b"in words")
            status = self.fails.get(name, Status.CUDA_SUCCESS)
            answer = self.answers.get(name, 9 if name == "cuDeviceGetAttribute" else 77)
            answers = answer if isinstance(answer, tuple) else (answer,)
            return (status, *(answers if status is Status.CUDA_SUCCESS else ()))

        return call

    def last(self, name: str) -> tuple[Any, ...]:
        return next(arguments for called, arguments in reversed(self.calls) if called == name)


def test_cuda_python_says_who_a_device_is() -> None:
    api = BindingsCuda(Driver())
    assert api.count() == 1
    uuid = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert api.device(0).info == DeviceInfo(0, "NVIDIA H200", (9, 9), uuid, 77, "13.1")
    slice_of_it = BindingsCuda(Driver(b"NVIDIA H200 MIG 1g.18gb")).device(0).info
    assert slice_of_it.mig
    assert slice_of_it.uuid.startswith("MIG-0001")


def test_cuda_python_makes_streams_events_and_memory_as_asked() -> None:
    driver = Driver()
    device = BindingsCuda(driver).device(0)
    device.bind()
    device.stream(urgent=True)
    assert driver.last("cuStreamCreateWithPriority") == (1, -5)
    device.stream()
    assert driver.last("cuStreamCreateWithPriority") == (1, 0)
    device.event()
    assert driver.last("cuEventCreate") == (3,)
    device.event(blocking=False)
    assert driver.last("cuEventCreate") == (2,)
    device.allocate(0, 5)
    assert driver.last("cuMemAllocAsync") == (1, 5)
    device.free(77)
    assert driver.last("cuMemFree") == (77,)
    assert device.memory_size(1010) == 54
    assert device.memory().free == 10
    array = np.zeros(12, np.uint8)
    device.copy_in(500, array, 4)
    assert driver.last("cuMemcpyHtoDAsync") == (500, array.ctypes.data, 12, 4)
    device.copy_out(array, 500, 4)
    assert driver.last("cuMemcpyDtoHAsync") == (array.ctypes.data, 500, 12, 4)
    device.unbind()
    assert [name for name, _ in driver.calls if name.startswith("cuCtxP")] == ["cuCtxPushCurrent", "cuCtxPopCurrent"]


def test_cuda_python_pins_captures_and_shares() -> None:
    driver = Driver()
    kept = ctypes.create_string_buffer(64)
    driver.answers["cuMemHostAlloc"] = ctypes.addressof(kept)
    device = BindingsCuda(driver).device(0)
    memory = device.pinned(16)
    memory[:] = 7
    assert kept.raw[:16] == b"\7" * 16
    device.free_pinned(memory)
    assert driver.last("cuMemFreeHost") == (ctypes.addressof(kept),)
    device.begin_capture(3)
    assert driver.last("cuStreamBeginCapture") == (3, "thread-local")
    assert device.end_capture(3) == 77
    assert driver.last("cuGraphDestroy") == (77,)
    driver.answers["cuStreamEndCapture"] = 0
    with pytest.raises(CudaError, match="CAPTURE_INVALIDATED"):
        device.end_capture(3)
    handle = bytes(range(64))
    device.open_memory(handle)
    assert driver.last("cuIpcOpenMemHandle")[0].memory.raw == handle
    driver.answers["cuIpcGetMemHandle"] = driver.last("cuIpcOpenMemHandle")[0]
    assert device.export_memory(5) == handle


def test_cuda_pythons_errors_have_their_names() -> None:
    driver = Driver()
    device = BindingsCuda(driver).device(0)
    driver.fails["cuEventQuery"] = Status.CUDA_ERROR_NOT_READY
    assert not device.event_done(1)
    driver.fails["cuMemAlloc"] = Status.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(CudaError, match="cuMemAlloc: in words") as memory:
        device.allocate(8)
    assert memory.value.out_of_memory
    assert not memory.value.sticky
    driver.fails["cuEventSynchronize"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(CudaError) as lost:
        device.wait_event(1)
    assert lost.value.sticky


def test_all_that_the_adapter_calls_is_in_the_module() -> None:
    source = __import__("inspect").getsource(BindingsDevice)
    called = {word for word in source.replace('"', " ").split() if word.startswith("cu") and word[2:3].isupper()}
    assert called <= FUNCTIONS
    try:
        driver = __import__("importlib").import_module("cuda.bindings.driver")
    except ImportError:
        return
    assert all(hasattr(driver, name) for name in FUNCTIONS)


# ---- PyCUDA


class Error(Exception):
    pass


OutOfMemory = type("MemoryError", (Error,), {})
"""PyCUDA's has the name of the built-in one."""


class PyStream:
    handle = 0x51

    def __init__(self, notes: list[tuple[Any, ...]], flags: int) -> None:
        self._notes = notes
        notes.append(("stream", flags))

    def synchronize(self) -> None:
        self._notes.append(("synchronize",))

    def wait_for_event(self, event: object) -> None:
        self._notes.append(("wait", event))


class PyEvent:
    def __init__(self, notes: list[tuple[Any, ...]], flags: int) -> None:
        self._notes = notes
        notes.append(("event", flags))

    def record(self, stream: object) -> None:
        self._notes.append(("record", stream))

    def synchronize(self) -> None:
        raise Error("cuEventSynchronize failed: an illegal memory access was encountered")


class Py:
    """A double of pycuda.driver."""

    Error = Error
    event_flags = SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        notes = self.calls
        self.Stream = functools.partial(PyStream, notes)
        self.Event = functools.partial(PyEvent, notes)
        self.Context = SimpleNamespace(pop=lambda: notes.append(("pop",)))
        context = SimpleNamespace(push=lambda: notes.append(("push",)))
        self._allocation = type("Allocation", (int,), {"free": lambda address: notes.append(("free", int(address)))})
        self.Device = lambda _: SimpleNamespace(
            retain_primary_context=lambda: context,
            name=lambda: "NVIDIA H100",
            compute_capability=lambda: (9, 0),
            pci_bus_id=lambda: "0000:01:00.0",
            total_memory=lambda: 100,
        )

    def init(self) -> None:
        pass

    def get_driver_version(self) -> int:
        return 12080

    def mem_alloc(self, size: int) -> Any:
        if size > 100:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return self._allocation(500)

    def memcpy_htod_async(self, target: int, source: Any, stream: Any) -> None:
        self.calls.append(("in", target, stream.handle))


def test_pycuda_does_what_it_can_and_says_what_it_cannot() -> None:
    driver = Py()
    device = PyCuda(driver).device(0)
    assert device.info == DeviceInfo(0, "NVIDIA H100", (9, 0), "0000:01:00.0", 100, "12.8")
    assert device.features is Feature.NONE
    device.bind()
    stream, event = device.stream(urgent=True), device.event()
    device.record(event, stream)
    device.wait(stream, event)
    device.copy_in(500, np.zeros(4, np.uint8), stream)
    address = device.allocate(8)
    device.free(address, stream)
    kinds = [call[0] for call in driver.calls]
    assert kinds == ["push", "stream", "event", "record", "wait", "in", "synchronize", "free"]
    assert driver.calls[1:3] == [("stream", 1), ("event", 3)]
    with pytest.raises(CudaError, match="PyCUDA has no graphs"):
        device.begin_capture(stream)
    with pytest.raises(CudaError) as memory:
        device.allocate(1000)
    assert memory.value.out_of_memory
    with pytest.raises(CudaError) as lost:
        device.wait_event(event)
    assert lost.value.sticky


def test_the_way_is_found_or_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError

    def broken() -> Any:
        raise CudaError("CUDA_ERROR_NO_DEVICE")

    empty = SimpleNamespace(name="x", count=lambda: 0)
    one = SimpleNamespace(name="y", count=lambda: 1)
    for ways, text in (
        ({Way.CUDA_PYTHON: absent, Way.PYCUDA: absent}, r"needs cuda-python or pycuda: install kairos\[gpu\]"),
        ({Way.CUDA_PYTHON: broken, Way.PYCUDA: absent}, "CUDA_ERROR_NO_DEVICE"),
        ({Way.CUDA_PYTHON: lambda: empty, Way.PYCUDA: absent}, "CUDA_VISIBLE_DEVICES"),
    ):
        monkeypatch.setattr(find, "_WAYS", ways)
        with pytest.raises(LoadFailed, match=text):
            find_cuda()
    monkeypatch.setattr(find, "_WAYS", {Way.CUDA_PYTHON: absent, Way.PYCUDA: lambda: one})
    assert find_cuda() is one
    assert "LAUNCH_FAILED" in STICKY
