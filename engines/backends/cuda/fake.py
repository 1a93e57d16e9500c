"""A CUDA device made of NumPy, for tests: work is queued and run in any order that CUDA would allow.

What waits on streams is run in seeded, legal interleavings: only the order within a stream and waits for events are
respected. Copies read and write host memory when they run, not when they are queued. New memory holds rubbish. So a
missing wait, or a buffer that is used again too early, gives wrong answers under some seed.

Kernels are Python functions, queued by `run` (the fake TensorRT does).
"""

from __future__ import annotations

import itertools
import random
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engines.backends.cuda.api import IPC_HANDLE_BYTES, CudaDevice, CudaError, DeviceInfo, Feature, MemoryInfo
from engines.tensor import Array

EVERYTHING: Final = Feature.GRAPHS | Feature.PRIORITIES | Feature.STREAM_ORDERED | Feature.EVENT_HANDLES
RUBBISH: Final = 0xCD

_exported: Final[dict[bytes, tuple[FakeDevice, Array]]] = {}
_handles: Final = itertools.count(1)


class FakeCuda:
    """A CudaApi with `devices` FakeDevices, which differ in their seeds only."""

    name = "fake"

    def __init__(
        self, devices: int = 1, *, seed: int = 0, total_bytes: int = 1 << 30, features: Feature = EVERYTHING
    ) -> None:
        self.devices = [
            FakeDevice(index, seed=seed + index, total_bytes=total_bytes, features=features) for index in range(devices)
        ]

    def count(self) -> int:
        return len(self.devices)

    def device(self, index: int) -> CudaDevice:
        return self.devices[index]


@dataclass(slots=True)
class _Event:
    recorded: int = 0
    done: int = 0


@dataclass(slots=True)
class _Work:
    """One thing on a stream: `run` it once `event` has reached `ticket`."""

    run: Callable[[], None]
    event: _Event | None = None
    ticket: int = 0

    @property
    def ready(self) -> bool:
        return self.event is None or self.event.done >= self.ticket


@dataclass(slots=True)
class _Fault:
    """Fail the call that makes `left` zero."""

    left: int
    name: str


@dataclass
class _Capture:
    work: list[Callable[[], None]] = field(default_factory=list)
    broken: bool = False


def _nothing() -> None:
    """Work that only takes its place on a stream."""


class FakeDevice:
    """A CudaDevice. `fail` makes calls fail; `faults` in kernels lose the device as a bad address would."""

    def __init__(
        self, index: int = 0, *, seed: int = 0, total_bytes: int = 1 << 30, features: Feature = EVERYTHING
    ) -> None:
        self.info = DeviceInfo(index, "Fake GPU", (9, 0), f"GPU-fake-{index}", total_bytes, "13.0")
        self.features = features
        self.calls: dict[str, int] = {}
        """How often each method was called."""
        self._random = random.Random(seed)  # noqa: S311  (an order of work, no secret)
        self._lock = threading.RLock()
        self._bound = threading.local()
        self._numbers = itertools.count(0x1000)
        self._addresses = 0x7F0000000000
        self._streams: dict[int, deque[_Work]] = {}
        self._events: dict[int, _Event] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, _Capture] = {}
        self._memory: dict[int, Array] = {}
        self._opened: set[int] = set()
        self._pinned: dict[int, Array] = {}
        self._faults: dict[str, _Fault] = {}
        self._lost: CudaError | None = None

    # ---- for tests

    def fail(self, call: str, name: str, after: int = 0) -> None:
        """Let a later call of that method fail: the next one, or the one after so many that succeed."""
        self._faults[call] = _Fault(after, name)

    def run(self, stream: int, work: Callable[[], None]) -> None:
        """Queue a kernel. What it raises loses the device, unless it is a CudaError that is not sticky."""
        with self._call("run"):
            self._queue(stream, work)

    def view(self, address: int, size: int) -> Array:
        """Device memory as it is now; for kernels and for tests to look at. Raises CudaError outside allocations."""
        with self._lock:
            bases = sorted(self._memory)
            place = bisect_right(bases, address) - 1
            if place >= 0:
                base = bases[place]
                memory = self._memory[base]
                if address + size <= base + memory.size:
                    return memory[address - base : address - base + size]
            raise CudaError("CUDA_ERROR_ILLEGAL_ADDRESS", f"{size} bytes at {address:#x}")

    @property
    def leaks(self) -> dict[str, int]:
        """What was made and not destroyed."""
        kinds: dict[str, Sized] = {
            "streams": self._streams,
            "events": self._events,
            "graphs": self._graphs,
            "memory": self._memory,
            "pinned": self._pinned,
        }
        return {name: len(made) for name, made in kinds.items() if made}

    # ---- CudaDevice

    def bind(self) -> None:
        self._bound.count = getattr(self._bound, "count", 0) + 1

    def unbind(self) -> None:
        self._bound.count -= 1

    def memory(self) -> MemoryInfo:
        with self._call("memory"):
            used = sum(memory.size for memory in self._memory.values())
            return MemoryInfo(self.info.total_bytes - used, self.info.total_bytes)

    def stream(self, *, urgent: bool = False) -> int:  # noqa: ARG002  (any order is legal)
        with self._call("stream"):
            number = next(self._numbers)
            self._streams[number] = deque()
            return number

    def destroy_stream(self, stream: int) -> None:
        with self._lock:
            if self._lost is None:
                self._run_until(lambda: not self._streams[stream])
            del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        with self._call("synchronize"):
            if stream in self._captures:
                self._captures[stream].broken = True
                raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
            self._run_until(lambda: not self._streams[stream])

    def event(self, *, blocking: bool = True) -> int:  # noqa: ARG002  (nobody really waits)
        with self._call("event"):
            number = next(self._numbers)
            self._events[number] = _Event()
            return number

    def destroy_event(self, event: int) -> None:
        with self._lock:
            del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._call("record"):
            if stream in self._captures:  # inside a graph it tells nobody outside
                return
            state = self._events[event]
            state.recorded += 1
            ticket = state.recorded

            def done() -> None:
                state.done = max(state.done, ticket)

            self._queue(stream, done)

    def wait(self, stream: int, event: int) -> None:
        with self._call("wait"):
            if stream in self._captures:
                raise CudaError("CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "the event was recorded outside")
            state = self._events[event]
            self._streams[stream].append(_Work(_nothing, state, state.recorded))
            self._drift()

    def wait_event(self, event: int) -> None:
        with self._call("wait_event"):
            state = self._events[event]
            ticket = state.recorded
            self._run_until(lambda: state.done >= ticket)

    def event_done(self, event: int) -> bool:
        with self._call("event_done"):
            self._drift()
            state = self._events[event]
            return state.done >= state.recorded

    def pinned(self, size: int) -> Array:
        with self._call("pinned"):
            memory = np.full(max(1, size), RUBBISH, np.uint8)
            self._pinned[memory.ctypes.data] = memory
            return memory[:size]

    def free_pinned(self, memory: Array) -> None:
        with self._lock:
            self._pinned.pop(memory.ctypes.data)

    def allocate(self, size: int, stream: int = 0) -> int:
        with self._call("allocate"):
            if stream in self._captures and stream:
                raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
            used = sum(memory.size for memory in self._memory.values())
            if used + size > self.info.total_bytes:
                raise CudaError("CUDA_ERROR_OUT_OF_MEMORY", f"{size} bytes")
            return self._place(np.full(max(1, size), RUBBISH, np.uint8))

    def free(self, address: int, stream: int = 0) -> None:
        with self._lock:
            if address not in self._memory:
                raise CudaError("CUDA_ERROR_INVALID_VALUE", f"{address:#x} was not allocated")
            if stream and self._lost is None:
                self._queue(stream, lambda: self._drop(address))
            else:
                self._drop(address)

    def copy_in(self, target: int, source: Array, stream: int) -> None:
        with self._call("copy_in"):

            def copy() -> None:
                self.view(target, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

            self._queue(stream, copy)

    def copy_out(self, target: Array, source: int, stream: int) -> None:
        with self._call("copy_out"):

            def copy() -> None:
                target.reshape(-1).view(np.uint8)[:] = self.view(source, target.nbytes)

            self._queue(stream, copy)

    def copy_within(self, target: int, source: int, size: int, stream: int) -> None:
        with self._call("copy_within"):

            def copy() -> None:
                self.view(target, size)[:] = self.view(source, size)

            self._queue(stream, copy)

    def begin_capture(self, stream: int) -> None:
        with self._call("begin_capture"):
            if Feature.GRAPHS not in self.features:
                raise CudaError("CUDA_ERROR_NOT_SUPPORTED")
            self._captures[stream] = _Capture()

    def end_capture(self, stream: int) -> int:
        with self._lock:
            capture = self._captures.pop(stream)
        with self._call("end_capture"):
            if capture.broken:
                raise CudaError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
            number = next(self._numbers)
            self._graphs[number] = capture.work
            return number

    def launch(self, graph: int, stream: int) -> None:
        with self._call("launch"):
            for work in self._graphs[graph]:
                self._queue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        with self._lock:
            del self._graphs[graph]

    def export_memory(self, address: int) -> bytes:
        with self._call("export_memory"):
            handle = next(_handles).to_bytes(IPC_HANDLE_BYTES, "little")
            _exported[handle] = (self, self._memory[address])
            return handle

    def open_memory(self, handle: bytes) -> int:
        with self._call("open_memory"):
            owner, memory = _exported.get(handle, (self, None))
            if memory is None or owner is self:  # a process cannot open its own
                raise CudaError("CUDA_ERROR_INVALID_CONTEXT" if memory is not None else "CUDA_ERROR_INVALID_VALUE")
            address = self._place(memory)
            self._opened.add(address)
            return address

    def close_memory(self, address: int) -> None:
        with self._lock:
            self._opened.remove(address)
            self._drop(address)

    def memory_size(self, address: int) -> int:
        with self._call("memory_size"):
            for base, memory in self._memory.items():
                if base <= address < base + memory.size:
                    return base + memory.size - address
            raise CudaError("CUDA_ERROR_NOT_FOUND")

    # ---- how it runs

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        with self._lock:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self._lost is not None:
                raise self._lost
            if not getattr(self._bound, "count", 0):
                raise CudaError("CUDA_ERROR_INVALID_CONTEXT", f"{name}: this thread has not bound the device")
            fault = self._faults.get(name)
            if fault is not None:
                if fault.left == 0:
                    del self._faults[name]
                    raise self._note(CudaError(fault.name, f"{name} was told to fail"))
                fault.left -= 1
            yield

    def _note(self, error: CudaError) -> CudaError:
        if error.sticky:
            self._lost = error
        return error

    def _place(self, memory: Array) -> int:
        address = self._addresses
        self._addresses += (memory.size + 0x1FFF) // 0x1000 * 0x1000  # what runs over meets no neighbour
        self._memory[address] = memory
        return address

    def _drop(self, address: int) -> None:
        self._memory.pop(address)

    def _queue(self, stream: int, run: Callable[[], None]) -> None:
        if stream in self._captures:
            self._captures[stream].work.append(run)
            return
        if stream not in self._streams:
            raise CudaError("CUDA_ERROR_INVALID_HANDLE", f"there is no stream {stream}")
        self._streams[stream].append(_Work(run))
        self._drift()

    def _drift(self) -> None:
        """Let the device get on with some of what it may run."""
        for _ in range(self._random.randrange(3)):
            if not self._step():
                return

    def _step(self) -> bool:
        ready = [queue for queue in self._streams.values() if queue and queue[0].ready]
        if not ready:
            return False
        work = self._random.choice(ready).popleft()
        try:
            work.run()
        except CudaError as error:
            self._note(error)
            raise
        except Exception as error:
            self._lost = CudaError("CUDA_ERROR_ILLEGAL_ADDRESS", f"a kernel failed: {error}")
            raise self._lost from error
        return True

    def _run_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if not self._step():
                raise CudaError("CUDA_ERROR_LAUNCH_TIMEOUT", "what is waited for can never happen")
