"""A computation for StreamedEngine on a FakeDevice, without any library: each output is twice the input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.backends.cuda.fake import FakeDevice
from engines.backends.fake import fake_spec
from engines.errors import InvalidRequest
from engines.spec import ModelSpec


class DoubleRunner:
    """`late`: the output's shape is known only after the fact. `capturable` False: capture fails half-way."""

    graphs = True

    def __init__(
        self, device: FakeDevice, spec: ModelSpec | None = None, *, late: bool = False, capturable: bool = True
    ) -> None:
        self.spec = spec or fake_spec()
        self.closed = False
        self.enqueued = 0
        self._device = device
        self._late = late
        self._capturable = capturable
        self._found: dict[int, tuple[int, tuple[int, ...]]] = {}

    @property
    def capacity(self) -> Mapping[str, int]:
        return {} if self._late else {"x": 8 * 4 * 4, "y": 8 * 4 * 4}

    def open(self, stream: int) -> None:
        pass

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...] | None]:
        if shapes["x"][0] > 100:
            raise InvalidRequest("too many rows")
        return {"y": None if self._late else shapes["x"]}

    def enqueue(
        self,
        slot: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        stream: int,
        consumed: int,
    ) -> bool:
        device, size = self._device, int(np.prod(shapes["x"])) * 4
        self.enqueued += 1
        if not self._capturable and stream in device._captures:
            device.synchronize(stream)
        if self._late:
            if slot in self._found:
                device.free(self._found[slot][0])
            self._found[slot] = (device.allocate(size), shapes["x"])
        target = self._found[slot][0] if self._late else addresses["y"]
        source = addresses["x"]
        scratch: list[np.ndarray] = []

        def read() -> None:
            scratch[:] = [device.view(source, size).view(np.float32) * 2]

        def write() -> None:
            device.view(target, size).view(np.float32)[:] = scratch[0]

        device.run(stream, read)
        if consumed:
            device.record(consumed, stream)
        device.run(stream, write)
        return bool(consumed)

    def found(self, slot: int, name: str) -> tuple[int, tuple[int, ...]]:
        return self._found[slot]

    def close(self) -> None:
        self.closed = True
        for address, _ in self._found.values():
            self._device.free(address)
