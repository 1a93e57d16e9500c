"""Tensors in the memory of this host's GPUs: regions that clients register by CUDA's handle and then refer to.

Engines on the same GPU read and write such a region in place; for any other engine its bytes go over the host. A
region stays open until it is unregistered and the last request that uses it has ended.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from engines.backends.cuda.api import IPC_HANDLE_BYTES, CudaDevice, CudaError
from engines.errors import InvalidRequest, LoadFailed, NotFound, Unsupported
from engines.spec import TensorSpec
from engines.tensor import Buffer, DeviceMemory, elements
from server.transport.regions import NamedRegions
from server.transport.shared_memory import Placement, Region, SystemSharedMemory

NO_CUDA = "CUDA shared memory needs a server with a GPU"


@dataclass(frozen=True, slots=True)
class DeviceRegion:
    """A registered region."""

    name: str
    device_id: int
    size: int
    memory: DeviceMemory

    def view(self, offset: int, size: int) -> DeviceMemory:
        """Part of the region. Raises InvalidRequest when it reaches beyond it."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{self.name}'")
        return self.memory.part(offset, size)


@dataclass(frozen=True, slots=True)
class DevicePlacement:
    """Where one tensor of a request lives, or is to be written."""

    region: DeviceRegion
    offset: int
    size: int

    @property
    def memory(self) -> DeviceMemory:
        """The memory itself."""
        return self.region.view(self.offset, self.size)

    def write(self, name: str, data: Buffer) -> None:
        """Put an output in place from the host. Raises InvalidRequest when it does not fit."""
        if len(data) > self.size:
            raise _too_small(name, self.size, len(data))
        self.memory.write(data)


class CudaSharedMemory(NamedRegions[DeviceRegion]):
    """The regions registered now. `devices` raises LoadFailed where there is no GPU."""

    def __init__(self, devices: Callable[[], Sequence[CudaDevice]]) -> None:
        super().__init__()
        self._devices = devices
        self._missing = ""

    @property
    def available(self) -> bool:
        """Whether there is a GPU; looked for once."""
        try:
            self._found()
        except Unsupported:
            return False
        return True

    def register(self, name: str, handle: bytes, device_id: int, size: int) -> None:
        """Open another process's device memory.

        Raises Unsupported without a GPU, AlreadyExists for a name in use, InvalidRequest for what cannot be opened.
        """
        devices = self._found()
        self.check_new(name, size)
        if len(handle) != IPC_HANDLE_BYTES:
            raise InvalidRequest(f"shared memory region '{name}': a CUDA handle has {IPC_HANDLE_BYTES} bytes")
        if not 0 <= device_id < len(devices):
            raise InvalidRequest(f"shared memory region '{name}': there is no GPU {device_id}")
        owner = _open(devices[device_id], name, handle, size)
        memory = DeviceMemory(device_id, owner.address, size, owner)
        self.keep(name, DeviceRegion(name, device_id, size, memory))

    def _found(self) -> Sequence[CudaDevice]:
        if self._missing:
            raise Unsupported(self._missing)
        try:
            return self._devices()
        except LoadFailed as error:
            self._missing = f"{NO_CUDA}: {error}"
            raise Unsupported(self._missing) from error


class Regions:
    """Regions of both kinds by name; those of the host come first."""

    def __init__(self, host: SystemSharedMemory, gpu: CudaSharedMemory) -> None:
        self._host = host
        self._gpu = gpu

    def get(self, name: str) -> Region | DeviceRegion:
        """A region; raises NotFound."""
        try:
            return self._host.get(name)
        except NotFound:
            return self._gpu.get(name)


def placed_outputs(
    placements: Mapping[str, Placement | DevicePlacement], outputs: Mapping[str, TensorSpec], rows: int
) -> Mapping[str, DeviceMemory] | None:
    """Where outputs go that are wanted in a GPU's memory; None when there are none.

    `rows`: 0 for a model without a batch. Raises InvalidRequest for a place that is too small.
    """
    found: dict[str, DeviceMemory] = {}
    for name, placement in placements.items():
        spec = outputs[name]
        if isinstance(placement, DevicePlacement) and spec.fixed and spec.dtype.size:
            size = (rows or 1) * elements(spec.shape) * spec.dtype.size
            if size > placement.size:
                raise _too_small(name, placement.size, size)
            found[name] = placement.memory.part(0, size)
    return found or None


def _too_small(name: str, size: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"shared memory size specified with the request for output '{name}' ({size} bytes) "
        f"should be at least {needed} bytes to hold the results"
    )


class _Opened:
    """A MemoryOwner: closes the memory once nothing refers to it."""

    def __init__(self, device: CudaDevice, address: int) -> None:
        self._device = device
        self.address = address
        weakref.finalize(self, _close, device, address)

    def read(self, address: int, size: int) -> bytes:
        """See MemoryOwner.read."""
        with self._staged(size) as (stream, host):
            self._device.copy_out(host, address, stream)
            self._device.synchronize(stream)
            return host.tobytes()

    def write(self, address: int, data: Buffer) -> None:
        """See MemoryOwner.write."""
        with self._staged(len(data)) as (stream, host):
            host[:] = np.frombuffer(data, np.uint8)
            self._device.copy_in(address, host, stream)
            self._device.synchronize(stream)

    @contextmanager
    def _staged(self, size: int) -> Iterator[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]:
        device = self._device
        device.bind()
        try:
            stream, host = device.stream(), device.pinned(size)
            try:
                yield stream, host
            finally:
                device.free_pinned(host)
                device.destroy_stream(stream)
        finally:
            device.unbind()


def _open(device: CudaDevice, name: str, handle: bytes, size: int) -> _Opened:
    device.bind()
    try:
        address = device.open_memory(handle)
        owner = _Opened(device, address)
        there = device.memory_size(address)
    except CudaError as error:
        raise InvalidRequest(f"failed to open CUDA IPC handle of shared memory region '{name}': {error}") from error
    finally:
        device.unbind()
    if size > there:
        raise InvalidRequest(
            f"failed to register shared memory region '{name}': invalid args: {size} bytes of memory that has {there}"
        )
    return owner


def _close(device: CudaDevice, address: int) -> None:
    device.bind()
    try:
        device.close_memory(address)
    finally:
        device.unbind()
