"""Fixed memory of one instance on a GPU: two slots, each with pinned and device buffers and the events between them.

Rule: buffers only ever grow, and only while nothing queued refers to them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engines.backends.cuda.api import CudaDevice
from engines.tensor import Array, DType, elements


@dataclass(slots=True)
class Buffer:
    """The same tensor on both sides."""

    host: Array
    address: int

    @property
    def size(self) -> int:
        return int(self.host.size)


@dataclass(slots=True)
class Slot:
    """One batch's place. Events carry their latest use: nothing waits for one that was never recorded."""

    number: int
    copied_in: int
    """Inputs are on the device: their pinned memory may be overwritten."""
    consumed: int
    """Inputs were read: their device memory may be overwritten."""
    computed: int
    copied_out: int
    """Outputs are on the host: their device memory may be overwritten."""
    inputs: dict[str, Buffer] = field(default_factory=dict)
    outputs: dict[str, Buffer] = field(default_factory=dict)
    drained: threading.Event = field(default_factory=threading.Event)
    """Whether pinned outputs were read on the host and may be overwritten."""


class Slots:
    """The slots of one instance, used in turn by its thread; `grown` counts changes of address."""

    def __init__(self, device: CudaDevice, count: int, *, blocking: bool) -> None:
        self._device = device
        self._slots: list[Slot] = []
        self._next = 0
        self.grown = 0
        try:
            for number in range(count):
                copied_in, consumed, computed, copied_out = (device.event(blocking=blocking) for _ in range(4))
                slot = Slot(number, copied_in, consumed, computed, copied_out)
                slot.drained.set()
                self._slots.append(slot)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def next(self) -> Slot:
        """The slot that the next batch goes to; waits until its pinned inputs are read."""
        slot = self._slots[self._next]
        self._device.wait_event(slot.copied_in)
        return slot

    def advance(self) -> None:
        """The next slot is taken."""
        self._next = (self._next + 1) % len(self._slots)

    def fit(self, slot: Slot, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Let the slot's buffers have at least so many bytes."""
        for buffers, sizes in ((slot.inputs, inputs), (slot.outputs, outputs)):
            for name, size in sizes.items():
                held = buffers.get(name)
                if held is None or held.size < size:
                    self._replace(slot, buffers, name, size)

    def close(self) -> None:
        """Free everything; nothing is running any more."""
        for slot in self._slots:
            for buffers in (slot.inputs, slot.outputs):
                for buffer in buffers.values():
                    self._device.free_pinned(buffer.host)
                    self._device.free(buffer.address)
            for event in (slot.copied_in, slot.consumed, slot.computed, slot.copied_out):
                self._device.destroy_event(event)
        self._slots.clear()

    def _replace(self, slot: Slot, buffers: dict[str, Buffer], name: str, size: int) -> None:
        slot.drained.wait()
        for event in (slot.copied_in, slot.consumed, slot.computed, slot.copied_out):
            self._device.wait_event(event)
        address = self._device.allocate(size)
        try:
            host = self._device.pinned(size)
        except BaseException:
            self._device.free(address)
            raise
        old = buffers.get(name)
        buffers[name] = Buffer(host, address)
        self.grown += 1
        if old is not None:
            self._device.free_pinned(old.host)
            self._device.free(old.address)


class SlotStaging:
    """The pinned inputs of a slot as memory that batches are gathered into."""

    def __init__(self, slots: Slots, slot: Slot) -> None:
        self._slots = slots
        self._slot = slot

    def array(self, name: str, dtype: DType, shape: Sequence[int]) -> Array:
        """See StagingMemory.array."""
        size = elements(shape) * dtype.size
        self._slots.fit(self._slot, {name: size}, {})
        return self._slot.inputs[name].host[:size].view(dtype.numpy).reshape(tuple(shape))
