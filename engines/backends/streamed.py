"""Runs a model on one GPU with copies and computation side by side, whatever computes.

Each batch goes through three streams, chained by events; the arrows are the waits, all of them needed:

    copy in        waits for `consumed` of the slot's last batch: its inputs on the device were read
    compute        waits for `copied_in`, and for `copied_out` of the slot's last batch: its outputs were taken
    copy out       waits for `computed`; on the host, for `drained`: the last batch's pinned outputs were read

so that with two slots the inputs of one batch travel while the one before is computed and the outputs of the one
before that travel back. What a CudaDevice queues costs a few microseconds a call; a CUDA graph replaces the many
launches of `compute` by one, for each slot and shape.

Rule: one thread owns an engine. Another may wait in `Flight.finish`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np

from engines.backends.cuda.api import CudaDevice, CudaError, Feature
from engines.backends.options import StreamOptions
from engines.backends.slots import Slot, Slots, SlotStaging
from engines.engine import NOWHERE, DeviceRows, Feed, Places, StagingMemory
from engines.errors import EngineDied, EngineFailed
from engines.spec import ModelSpec
from engines.tensor import Array, DeviceMemory, DType, elements

log = logging.getLogger(__name__)

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]

MAX_GRAPHS: Final = 128
"""Graphs an engine keeps, of which each takes some device memory; the one unused for longest makes room."""
MAX_SEEN: Final = 4096
"""Shapes that are remembered for having come once."""
MAX_CAPTURE_FAILURES: Final = 2
"""After so many an engine does without graphs."""


class Runner(Protocol):
    """Computes outputs from inputs that are on the device. Used by the engine's thread, which has bound it."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def graphs(self) -> bool:
        """Whether `enqueue` may be captured."""
        ...

    @property
    def capacity(self) -> Mapping[str, int]:
        """The most bytes of tensors, where that is known: their buffers are made at once."""
        ...

    def open(self, stream: int) -> None:
        """Called first, with the stream that computations will be queued on; `close` is called whatever it raises."""
        ...

    def prepare(self, shapes: Shapes) -> Mapping[str, Shape | None]:
        """Get ready for inputs of these shapes; the shapes of all outputs, None where they depend on the data.

        Raises InvalidRequest for shapes that cannot be run.
        """
        ...

    def enqueue(self, slot: int, shapes: Shapes, addresses: Mapping[str, int], stream: int, consumed: int) -> bool:
        """Queue the computation; whether `consumed` will be recorded once the inputs were read. 0: do not."""
        ...

    def found(self, slot: int, name: str) -> tuple[int, Shape]:
        """Where an output whose shape depends on the data is, and its shape, once it is computed."""
        ...

    def close(self) -> None: ...


class StreamedEngine:
    """A PipelinedEngine. Made, used and closed by one thread, on which it binds the device."""

    def __init__(self, device: CudaDevice, runner: Runner, options: StreamOptions) -> None:
        self._device = device
        self._runner = runner
        self._spec = runner.spec
        self._dtypes = {tensor.name: tensor.dtype for tensor in (*self._spec.inputs, *self._spec.outputs)}
        self._streams: list[int] = []
        self._graphs: OrderedDict[object, int] = OrderedDict()
        self._seen: set[object] = set()
        self._capture = False
        self._capture_failures = 0
        self._died: EngineDied | None = None
        self._in_flight = min(options.in_flight, options.slots + 1)
        self._slots: Slots | None = None
        self.closed: Callable[[], None] = lambda: None
        """Called once everything is freed."""
        device.bind()
        try:
            self._streams = [device.stream(urgent=options.urgent) for _ in range(3)]
            self._in, self._compute, self._out = self._streams
            runner.open(self._compute)
            self._capture = options.graphs and runner.graphs and Feature.GRAPHS in device.features
            self._slots = Slots(device, options.slots, blocking=not options.spin)
            self._grown = 0
            self._make_buffers(self._slots)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return (
            f"<StreamedEngine {self._spec.name}:{self._spec.version} on {self._device.info.uuid} "
            f"[slots: {len(self._places)}, graphs: {len(self._graphs) if self._capture else 'off'}]>"
        )

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def slots(self) -> int:
        """Batches whose buffers exist side by side."""
        return len(self._places)

    @property
    def device(self) -> int:
        return self._device.info.index

    def attach(self) -> None:
        """See PipelinedEngine.attach."""
        self._device.bind()

    def detach(self) -> None:
        """See PipelinedEngine.detach."""
        self._device.unbind()

    @property
    def _places(self) -> Slots:
        assert self._slots is not None
        return self._slots

    def staging(self) -> StagingMemory:
        """See PipelinedEngine.staging."""
        self._check()
        try:
            return SlotStaging(self._places, self._places.next)
        except CudaError as error:
            raise self._failure(error) from error

    def start(self, inputs: Mapping[str, Feed], wanted: Collection[str], places: Places = NOWHERE) -> StreamedFlight:
        """See PipelinedEngine.start."""
        self._check()
        try:
            return self._start(inputs, wanted, places)
        except CudaError as error:
            self._settle()
            raise self._failure(error) from error
        except Exception as error:
            self._settle()
            if self._died is not None:
                raise self._died from error
            raise

    def execute(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> Mapping[str, Array]:
        """See Engine.execute."""
        self.staging()
        return self.start(inputs, wanted).finish()

    def close(self) -> None:
        """See Engine.close."""
        try:
            self._settle()
            for graph in self._graphs.values():
                self._device.destroy_graph(graph)
            if self._slots is not None:
                self._slots.close()
            self._runner.close()
            for stream in self._streams:
                self._device.destroy_stream(stream)
        except CudaError as error:  # a lost device frees nothing; the process's end does
            log.debug("closing %r: %s", self._spec.name, error)
        finally:
            self._device.unbind()
            self.closed()

    # ---- one batch

    def _start(self, inputs: Mapping[str, Feed], wanted: Collection[str], places: Places) -> StreamedFlight:
        device, slots = self._device, self._places
        slot = slots.next
        shapes: dict[str, Shape] = {name: tuple(feed.shape) for name, feed in inputs.items()}
        outputs = self._runner.prepare(shapes)
        # Outputs of sizes that nobody knows lie where the runner puts them, which it may do again only when taken.
        if None in outputs.values():
            slot.drained.wait()
        known = {name: shape for name, shape in outputs.items() if shape is not None}
        slots.fit(
            slot,
            {name: elements(shape) * self._dtypes[name].size for name, shape in shapes.items()},
            {name: elements(shape) * self._dtypes[name].size for name, shape in known.items()},
        )
        slots.advance()
        device.wait(self._in, slot.consumed)
        for name, feed in inputs.items():
            self._copy_in(slot, name, feed)
        device.record(slot.copied_in, self._in)
        device.wait(self._compute, slot.copied_in)
        device.wait(self._compute, slot.copied_out)
        addresses = {name: buffer.address for name, buffer in (*slot.inputs.items(), *slot.outputs.items())}
        launched = self._run(slot, shapes, addresses)
        device.record(slot.computed, self._compute)
        if not launched and self._capture:
            self._consider(slot, shapes, addresses)
        slot.drained.wait()
        slot.drained.clear()
        try:
            device.wait(self._out, slot.computed)
            hosts = {name: self._copy_out(slot, name, known[name]) for name in wanted if name in known}
            for name, parts in places.items():
                if name in known:
                    self._place(slot.outputs[name].address, parts)
            device.record(slot.copied_out, self._out)
        except BaseException:
            slot.drained.set()
            raise
        late = [name for name in dict.fromkeys((*wanted, *places)) if name not in known]
        return StreamedFlight(self, slot, wanted, hosts, places, late)

    def _copy_in(self, slot: Slot, name: str, feed: Feed) -> None:
        buffer, dtype = slot.inputs[name], self._dtypes[name]
        size = elements(feed.shape) * dtype.size
        if not isinstance(feed, DeviceRows):
            self._copy_host(buffer.host[:size], feed, buffer.address)
            return
        if feed.host is not None:
            self._copy_host(buffer.host[:size], feed.host, buffer.address)
        for offset, memory in feed.parts:
            self._device.copy_within(buffer.address + offset, memory.address, memory.size, self._in)

    def _copy_host(self, pinned: Array, array: Array, address: int) -> None:
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if source.ctypes.data != pinned.ctypes.data:  # else it was gathered into its place
            pinned[:] = source
        self._device.copy_in(address, pinned, self._in)

    def _run(self, slot: Slot, shapes: Shapes, addresses: Mapping[str, int]) -> bool:
        """Queue the computation; whether as a graph."""
        if self._grown != self._places.grown:  # addresses are baked into graphs
            self._forget_graphs()
        key = _key(slot, shapes)
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self._device.launch(graph, self._compute)
        elif self._runner.enqueue(slot.number, shapes, addresses, self._compute, slot.consumed):
            return False
        # A record inside a graph tells nobody outside; here it says that the whole graph has read its inputs.
        self._device.record(slot.consumed, self._compute)
        return graph is not None

    def _consider(self, slot: Slot, shapes: Shapes, addresses: Mapping[str, int]) -> None:
        """Capture shapes that come again, right after they ran: whatever a change of shapes takes is done by then."""
        key = _key(slot, shapes)
        if key not in self._seen:
            if len(self._seen) > MAX_SEEN:
                self._seen.clear()
            self._seen.add(key)
            return
        graph = self._record(slot, shapes, addresses)
        if graph:
            self._graphs[key] = graph
            if len(self._graphs) > MAX_GRAPHS:
                _, oldest = self._graphs.popitem(last=False)
                self._device.synchronize(self._compute)
                self._device.destroy_graph(oldest)

    def _record(self, slot: Slot, shapes: Shapes, addresses: Mapping[str, int]) -> int:
        """A graph of the computation; 0 where it cannot be captured."""
        try:
            self._device.begin_capture(self._compute)
            try:
                self._runner.enqueue(slot.number, shapes, addresses, self._compute, 0)
            finally:
                graph = self._device.end_capture(self._compute)
        except Exception as error:
            if isinstance(error, CudaError) and error.sticky:
                raise
            self._capture_failures += 1
            self._capture = self._capture_failures < MAX_CAPTURE_FAILURES
            log.warning("%s: no CUDA graph for %s: %s", self._spec.name, dict(shapes), error)
            return 0
        return graph

    def _forget_graphs(self) -> None:
        self._grown = self._places.grown
        if self._graphs:
            self._device.synchronize(self._compute)
            for graph in self._graphs.values():
                self._device.destroy_graph(graph)
        self._graphs.clear()
        self._seen.clear()

    def _copy_out(self, slot: Slot, name: str, shape: Shape) -> Array:
        buffer, dtype = slot.outputs[name], self._dtypes[name]
        host = buffer.host[: elements(shape) * dtype.size]
        self._device.copy_out(host, buffer.address, self._out)
        return _shaped(host, dtype, shape)

    def _place(self, address: int, parts: Sequence[tuple[int, DeviceMemory]]) -> None:
        for offset, memory in parts:
            self._device.copy_within(memory.address, address + offset, memory.size, self._out)

    # ---- for flights, on whatever thread finishes them

    def finish(
        self, slot: Slot, hosts: Mapping[str, Array], places: Places, late: Collection[str]
    ) -> Mapping[str, Array]:
        """The outputs in memory of their own; the slot's pinned outputs are free again."""
        try:
            self._device.wait_event(slot.copied_out)
            found = {name: host.copy() for name, host in hosts.items()}
            for name in late:
                found[name] = self._fetch(slot, name, places.get(name, ()))
        except CudaError as error:
            raise self._failure(error) from error
        finally:
            slot.drained.set()
        return found

    def _fetch(self, slot: Slot, name: str, parts: Sequence[tuple[int, DeviceMemory]]) -> Array:
        """An output whose size was not known before: copied now."""
        address, shape = self._runner.found(slot.number, name)
        dtype = self._dtypes[name]
        host = self._device.pinned(elements(shape) * dtype.size)
        try:
            self._place(address, parts)
            if host.size:
                self._device.copy_out(host, address, self._out)
            self._device.synchronize(self._out)
            return _shaped(host, dtype, shape).copy()
        finally:
            self._device.free_pinned(host)

    # ---- failures

    def _check(self) -> None:
        if self._died is not None:
            raise self._died

    def _failure(self, error: CudaError) -> Exception:
        """What becomes of a batch: a lost device ends the engine, anything else only the batch."""
        if error.sticky:
            self._died = EngineDied(f"the device {self._device.info.uuid} was lost: {error}")
            return self._died
        return EngineFailed(f"model '{self._spec.name}' failed on the GPU: {error}", retryable=True)

    def _settle(self) -> None:
        """Let all that was queued end, so that no half-started batch meets the next one."""
        for stream in self._streams:
            try:
                self._device.synchronize(stream)
            except CudaError as error:
                self._failure(error)

    def _make_buffers(self, slots: Slots) -> None:
        capacity = self._runner.capacity
        inputs = {tensor.name: capacity[tensor.name] for tensor in self._spec.inputs if tensor.name in capacity}
        outputs = {tensor.name: capacity[tensor.name] for tensor in self._spec.outputs if tensor.name in capacity}
        for _ in range(len(slots)):
            slots.fit(slots.next, inputs, outputs)
            slots.advance()


def _key(slot: Slot, shapes: Shapes) -> object:
    return slot.number, tuple(sorted(shapes.items()))


def _shaped(host: Array, dtype: DType, shape: Shape) -> Array:
    array: Array = host.view(dtype.numpy).reshape(shape)
    return array


@dataclass(frozen=True, slots=True)
class StreamedFlight:
    """A Flight."""

    engine: StreamedEngine
    slot: Slot
    wanted: Collection[str]
    hosts: Mapping[str, Array]
    places: Places
    late: Collection[str]

    def finish(self) -> Mapping[str, Array]:
        """See Flight.finish."""
        return self.engine.finish(self.slot, self.hosts, self.places, self.late)
