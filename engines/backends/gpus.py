"""The GPUs of this process: which there are, how much of their memory is spoken for, where instances go.

Promise: an instance is opened only where its memory fits, and one that died is opened again where it was.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from engines.backends.canary import Canary
from engines.backends.cuda.api import CudaApi, CudaDevice, CudaError
from engines.backends.options import GpuGroup, GpuOptions
from engines.backends.streamed import StreamedEngine
from engines.backends.sweep import sample_inputs
from engines.errors import EngineDied, LoadFailed

log = logging.getLogger(__name__)

REHEARSALS: Final = 5
"""Of each size in each slot: one to warm up, one to be captured, three to be timed."""

OpenOn = Callable[[CudaDevice], StreamedEngine]


class Gpus:
    """All devices that this process may use. The driver is asked for them when the first model needs one.

    `lost` is called, on any thread, the first time that a device turns out to be lost to this process: only a new
    process can use it again.
    """

    def __init__(self, find: Callable[[], CudaApi], lost: Callable[[str], None] = lambda _: None) -> None:
        self._find = find
        self._lost = lost
        self._told = False
        self._lock = threading.Lock()
        self._devices: list[CudaDevice] | None = None
        self._promised: dict[int, int] = {}
        """Bytes by device that instances will take which are being opened."""

    def devices(self) -> Sequence[CudaDevice]:
        """At least one. Raises LoadFailed, saying what is missing."""
        with self._lock:
            if self._devices is None:
                api = self._find()
                try:
                    self._devices = [api.device(index) for index in range(api.count())]
                except CudaError as error:
                    raise LoadFailed(f"no NVIDIA GPU can be used: {error}") from error
                for device in self._devices:
                    info = device.info
                    log.info("GPU %d: %s %s, %d MiB", info.index, info.name, info.uuid, info.total_bytes >> 20)
            return self._devices

    def place(self, groups: Sequence[GpuGroup], instance_bytes: int) -> list[CudaDevice]:
        """A device for each instance. Raises LoadFailed when there is no such device, or no room."""
        devices = self.devices()
        left = {device.info.index: self.free_bytes(device) for device in devices}
        placed: list[CudaDevice] = []
        for group in groups:
            named = [self._named(name) for name in group.devices]
            for target in named * group.count if named else [None] * group.count:
                device = target or max(devices, key=lambda one: left[one.info.index])
                index = device.info.index
                if instance_bytes > left[index]:
                    raise LoadFailed(
                        f"an instance needs about {instance_bytes >> 20} MiB of a GPU's memory, and "
                        f"{device.info.name} ({device.info.uuid}) has {left[index] >> 20} MiB left: "
                        "unload a model, ask for fewer instances, or set gpu.memory_bytes if the estimate is wrong"
                    )
                left[index] -= instance_bytes
                placed.append(device)
        return placed

    def free_bytes(self, device: CudaDevice) -> int:
        """Memory of a device that neither anybody uses nor was promised to an instance."""
        device.bind()
        try:
            free = device.memory().free
        except CudaError as error:
            raise self.failure(error, device) from error
        finally:
            device.unbind()
        with self._lock:
            return free - self._promised.get(device.info.index, 0)

    @contextmanager
    def promised(self, device: CudaDevice, size: int) -> Iterator[None]:
        """Count the bytes as taken while an instance is being opened."""
        index = device.info.index
        with self._lock:
            self._promised[index] = self._promised.get(index, 0) + size
        try:
            yield
        finally:
            with self._lock:
                self._promised[index] -= size

    def failure(self, error: CudaError, device: CudaDevice) -> LoadFailed:
        """What to say of an instance that could not be opened."""
        if error.sticky:
            with self._lock:
                first, self._told = not self._told, True
            if first:
                self._lost(f"{device.info.name} ({device.info.uuid}) is lost to this process: {error}")
        if error.out_of_memory:
            return LoadFailed(f"{device.info.name} ({device.info.uuid}) has too little memory left: {error}")
        return LoadFailed(f"{device.info.name} ({device.info.uuid}) cannot be used: {error}")

    def _named(self, name: str) -> CudaDevice:
        devices = self.devices()
        found = [device for device in devices if str(device.info.index) == name]
        found = found or [device for device in devices if not name.isdigit() and device.info.uuid.startswith(name)]
        if len(found) != 1:
            there = ", ".join(f"{device.info.index} ({device.info.uuid})" for device in devices)
            raise LoadFailed(f"there is {'more than one' if found else 'no'} GPU '{name}': this process sees {there}")
        return found[0]


@dataclass(slots=True)
class _Seat:
    device: CudaDevice
    taken: bool = False


class Seats:
    """Opens the instances of one model version, each on a device of its own share. Used by many threads."""

    def __init__(self, gpus: Gpus, options: GpuOptions, instance_bytes: int, open_on: OpenOn) -> None:
        self._gpus = gpus
        self._bytes = options.memory_bytes or instance_bytes
        self._open_on = open_on
        self._seats = [_Seat(device) for device in gpus.place(options.groups, self._bytes)]
        self._lock = threading.Lock()
        self.canary: Canary | None = None
        """Known answers that each instance must give before it serves."""
        self._seconds: dict[int, float] = {}
        self.sizes: Sequence[int] = ()
        """Rows of the batches that each instance rehearses before it serves, so that its graphs are captured."""

    def __len__(self) -> int:
        return len(self._seats)

    def rehearsed(self) -> Mapping[int, float]:
        """Seconds that a batch took in rehearsal, by rows."""
        return dict(self._seconds)

    @property
    def devices(self) -> Sequence[str]:
        """Names for logs and reports."""
        return [f"cuda:{index}" for index in sorted({seat.device.info.index for seat in self._seats})]

    def __call__(self) -> StreamedEngine:
        """An instance on a device where one is missing. Raises LoadFailed."""
        seat = self._take()
        try:
            with self._gpus.promised(seat.device, self._bytes):
                engine = self._open_on(seat.device)
        except CudaError as error:
            seat.taken = False
            raise self._gpus.failure(error, seat.device) from error
        except BaseException:
            seat.taken = False
            raise
        before = engine.closed

        def closed() -> None:
            seat.taken = False
            before()

        engine.closed = closed
        try:
            if self.canary is not None:
                self.canary.check(engine)
            self._seconds |= rehearse(engine, self.sizes)
        except BaseException:
            engine.close()
            raise
        return engine

    def _take(self) -> _Seat:
        with self._lock:
            seat = next((one for one in self._seats if not one.taken), None)
            if seat is None:
                raise LoadFailed(f"all {len(self._seats)} instances are open")
            seat.taken = True
            return seat


def rehearse(engine: StreamedEngine, sizes: Sequence[int]) -> Mapping[int, float]:
    """Run batches of these sizes in every slot, to warm up, to be captured, and to see how long they take.

    Seconds by rows, the median of the last executions. Raises EngineDied.
    """
    wanted = [tensor.name for tensor in engine.spec.outputs]
    seconds: dict[int, float] = {}
    for rows in sizes:
        inputs = sample_inputs(engine.spec, rows)
        taken: list[float] = []
        try:
            for _ in range(REHEARSALS * engine.slots):
                began = time.monotonic()
                engine.execute(inputs, wanted)
                taken.append(time.monotonic() - began)
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001  (made-up inputs may be refused; real ones will do)
            log.info("%s cannot rehearse with made-up inputs: %s", engine.spec.name, error)
            break
        seconds[rows] = statistics.median(taken[2 * engine.slots :])
    return seconds
