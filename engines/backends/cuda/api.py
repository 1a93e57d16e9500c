"""The part of CUDA's driver that engines use, as a protocol.

Rule: streams, events, graphs and device addresses are plain integers, so that TensorRT and ONNX Runtime can be given
    them; 0 is never one of ours (it would be the default stream, which waits for all others).
Promise: an implementation adds no synchronisation that CUDA does not have. What must be ordered, callers order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Protocol

from engines.tensor import Array

IPC_HANDLE_BYTES: Final = 64


class CudaError(Exception):
    """A call to CUDA failed. `name` is CUDA's own name of the error."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(f"{name}: {text}" if text else name)
        self.name = name

    @property
    def sticky(self) -> bool:
        """Whether the device is lost to this process: every later call will fail, too."""
        return self.name.removeprefix("CUDA_ERROR_") in STICKY

    @property
    def out_of_memory(self) -> bool:
        """Whether there was too little memory."""
        return self.name.removeprefix("CUDA_ERROR_") == "OUT_OF_MEMORY"


STICKY: Final = frozenset(
    {
        *("ASSERT", "CONTAINED", "CONTEXT_IS_DESTROYED", "DEINITIALIZED", "DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE"),
        *("EXTERNAL_DEVICE", "HARDWARE_STACK_ERROR", "ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION"),
        *("INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "MISALIGNED_ADDRESS"),
        *("MPS_CLIENT_TERMINATED", "NVLINK_UNCORRECTABLE", "TENSOR_MEMORY_LEAK"),
    }
)
"""Errors of which CUDA's documentation says that the process must be ended to use CUDA again, without their prefix."""


class Feature(enum.Flag):
    """What an implementation can do beyond the least."""

    NONE = 0
    GRAPHS = enum.auto()
    PRIORITIES = enum.auto()
    STREAM_ORDERED = enum.auto()
    """Memory is allocated in the order of a stream, without waiting for the device."""
    EVENT_HANDLES = enum.auto()
    """Events can be handed to other libraries."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Who a device is. `uuid` names a MIG slice of its own, where the device is one."""

    index: int
    name: str
    sm: tuple[int, int]
    """Compute capability: (9, 0) for Hopper."""
    uuid: str
    """GPU-xxxxxxxx-... or MIG-xxxxxxxx-...; a PCI address where the implementation cannot tell."""
    total_bytes: int
    driver: str
    """Version of CUDA that the driver speaks, as in 13.0."""

    @property
    def mig(self) -> bool:
        """Whether it is a slice of a GPU."""
        return self.uuid.startswith("MIG-")


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of a device's memory, whoever uses them."""

    free: int
    total: int


class CudaDevice(Protocol):
    """One device through its primary context, which TensorRT, ONNX Runtime and PyTorch share.

    All methods need `bind` to have been called on the thread, and raise CudaError. Objects are destroyed by the
    thread that made them.
    """

    @property
    def info(self) -> DeviceInfo: ...
    @property
    def features(self) -> Feature: ...

    def bind(self) -> None:
        """Make the device current on the calling thread; as often as it is undone again."""
        ...

    def unbind(self) -> None:
        """Undo `bind`, on the same thread."""
        ...

    def memory(self) -> MemoryInfo: ...

    def stream(self, *, urgent: bool = False) -> int:
        """A stream that does not wait for the default one; `urgent` asks for the highest priority there is."""
        ...

    def destroy_stream(self, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None:
        """Wait for all that was queued."""
        ...

    def event(self, *, blocking: bool = True) -> int:
        """An event without timing. Who waits for it sleeps, or spins unless `blocking`."""
        ...

    def destroy_event(self, event: int) -> None: ...
    def record(self, event: int, stream: int) -> None: ...
    def wait(self, stream: int, event: int) -> None:
        """Let what is queued on the stream from here on wait for the event's latest record; none: for nothing."""
        ...

    def wait_event(self, event: int) -> None:
        """Wait on the host for the event's latest record."""
        ...

    def event_done(self, event: int) -> bool: ...

    def pinned(self, size: int) -> Array:
        """`size` bytes of host memory that the device reads and writes by itself, as uint8."""
        ...

    def free_pinned(self, memory: Array) -> None: ...
    def allocate(self, size: int, stream: int = 0) -> int:
        """Device memory. With a stream, and Feature.STREAM_ORDERED, in the order of that stream."""
        ...

    def free(self, address: int, stream: int = 0) -> None:
        """Give memory back, the way that it was allocated."""
        ...

    def copy_in(self, target: int, source: Array, stream: int) -> None:
        """Queue a copy of all of `source`, pinned and contiguous, to the device."""
        ...

    def copy_out(self, target: Array, source: int, stream: int) -> None:
        """Queue a copy of as many bytes as `target`, pinned and contiguous, has."""
        ...

    def copy_within(self, target: int, source: int, size: int, stream: int) -> None: ...

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues on the stream instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """The recorded graph, ready to launch. Raises CudaError when something could not be recorded."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...
    def destroy_graph(self, graph: int) -> None: ...

    def export_memory(self, address: int) -> bytes:
        """A handle with which another process opens this memory: IPC_HANDLE_BYTES bytes."""
        ...

    def open_memory(self, handle: bytes) -> int:
        """The address, here, of another process's memory."""
        ...

    def close_memory(self, address: int) -> None: ...

    def memory_size(self, address: int) -> int:
        """Bytes from this address to the end of its allocation."""
        ...


class CudaApi(Protocol):
    """A way to CUDA."""

    @property
    def name(self) -> str: ...
    def count(self) -> int:
        """Devices that this process may use. Raises CudaError when there is no driver."""
        ...

    def device(self, index: int) -> CudaDevice: ...
