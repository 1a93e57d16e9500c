"""Two threads for an engine that takes the next batch while it runs one: one that starts batches, one that ends them.

The first owns the engine: it makes it, gathers rows into its memory, starts them and closes it. The second only waits
for what was started, in the same order, so that gathering the next batch never waits for the last one's answers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engines.engine import DeviceRows, Feed, Flight, PipelinedEngine, Places
from engines.errors import EngineDied
from engines.request import InferRequest
from engines.scheduling.assemble import gather, join
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DeviceMemory, Tensor, elements
from engines.worker import Job, Outcome, Worker, fail, finish


@dataclass(frozen=True, slots=True)
class _Started:
    flight: Flight
    done: Callable[[Outcome], None]
    gather_s: float
    gathered_at: float
    placed: tuple[str, ...]


class PipelinedWorker(Worker):
    """Runs up to `engine.in_flight` jobs side by side: callers keep at most that many in it."""

    def __init__(self, open_engine: Callable[[], PipelinedEngine], name: str) -> None:
        super().__init__(open_engine, name)
        self._open_pipelined = open_engine
        self._flights: queue.SimpleQueue[_Started | None] = queue.SimpleQueue()
        self._name = name

    def _run(self) -> None:
        try:
            engine = self._open_pipelined()
        except BaseException as error:  # noqa: BLE001  (whatever stops an engine from opening goes to who asked)
            self._post(fail, self._opened, error)
            self._post(finish, self._ended)
            return
        finishing = threading.Thread(target=self._finish_all, args=(engine,), name=f"{self._name} ends", daemon=True)
        finishing.start()
        self._post(finish, self._opened)
        while (item := self._jobs.get()) is not None:
            job, done = item
            self._start(engine, job, done)
            # Nothing of a batch may stay alive while the thread waits for the next one.
            del item, job, done
        self._flights.put(None)
        finishing.join()
        try:
            engine.close()
        finally:
            self._post(finish, self._ended)

    def _start(self, engine: PipelinedEngine, job: Job, done: Callable[[Outcome], None]) -> None:
        began = gathered = time.monotonic()
        try:
            feeds = stage(job.requests, engine, job.padded_rows)
            places, wanted = destinations(job, engine)
            gathered = time.monotonic()
            flight = engine.start(feeds, wanted, places)
        except Exception as error:  # noqa: BLE001  (an engine may raise anything; it fails this batch, not the server)
            self._post(done, Outcome(None, error, gathered - began, time.monotonic() - gathered))
        else:
            self._flights.put(_Started(flight, done, gathered - began, gathered, tuple(places)))

    def _finish_all(self, engine: PipelinedEngine) -> None:
        engine.attach()
        while (started := self._flights.get()) is not None:
            try:
                outputs, error = started.flight.finish(), None
            except Exception as failure:  # noqa: BLE001  (as above)
                outputs, error = None, failure
            took_s = time.monotonic() - started.gathered_at
            self._post(started.done, Outcome(outputs, error, started.gather_s, took_s, started.placed))
            del started, outputs, error
        try:
            engine.detach()
        except EngineDied:  # it will be closed by the other thread
            return


def stage(requests: Sequence[InferRequest], engine: PipelinedEngine, padded_rows: int) -> Mapping[str, Feed]:
    """The engine's inputs: gathered into its memory, or where they are if that is on its device."""
    staging = engine.staging()
    if not any(request.on_device for request in requests):
        return gather(requests, engine.spec, padded_rows, staging)
    feeds: dict[str, Feed] = {}
    for position, first in enumerate(requests[0].inputs):
        parts = [request.inputs[position] for request in requests]
        if all(part.device is not None and part.device.device == engine.device for part in parts):
            feeds[first.name] = _resident(parts, padded_rows if engine.spec.batched else 0)
        elif engine.spec.batched:
            feeds[first.name] = join(parts, padded_rows, staging)
        else:
            feeds |= gather(requests, engine.spec, padded_rows, staging)
    return feeds


def _resident(tensors: Sequence[Tensor], padded_rows: int) -> DeviceRows:
    """Rows that are all on the device, the padding copies of the last."""
    parts: list[tuple[int, DeviceMemory]] = []
    offset = rows = 0
    for tensor in tensors:
        assert tensor.device is not None
        parts.append((offset, tensor.device))
        offset += tensor.device.size
        rows += tensor.shape[0] if padded_rows else 0
    last = tensors[-1]
    if rows < padded_rows:
        assert last.device is not None
        row_bytes = last.device.size // last.shape[0]
        row = last.device.part(last.device.size - row_bytes, row_bytes)
        parts += [(offset + extra * row_bytes, row) for extra in range(padded_rows - rows)]
    shape = (padded_rows, *last.shape[1:]) if padded_rows else last.shape
    return DeviceRows(shape, last.dtype, parts, None)


def destinations(job: Job, engine: PipelinedEngine) -> tuple[Places, Sequence[str]]:
    """Which outputs go to memory on the device, where to, and which are wanted on the host."""
    if all(request.placed is None for request in job.requests):
        return {}, tuple(job.wanted)
    places: dict[str, list[tuple[int, DeviceMemory]]] = {}
    wanted: list[str] = []
    for tensor in engine.spec.outputs:
        if tensor.name in job.wanted:
            found, all_there = _destinations_of(tensor, job, engine.spec, engine.device)
            if found:
                places[tensor.name] = found
            if not all_there:
                wanted.append(tensor.name)
    return places, wanted


def _destinations_of(
    tensor: TensorSpec, job: Job, spec: ModelSpec, device: int
) -> tuple[list[tuple[int, DeviceMemory]], bool]:
    """Where an output's rows go on this device, and whether that is all that is wanted of it."""
    targets = [(request.placed or {}).get(tensor.name) for request in job.requests]
    if not tensor.fixed or any(target is not None and target.device != device for target in targets):
        return [], False
    row_bytes = elements(tensor.shape) * tensor.dtype.size
    found: list[tuple[int, DeviceMemory]] = []
    start, all_there = 0, True
    for request, target in zip(job.requests, targets, strict=True):
        rows = request.rows if spec.batched else 1
        if target is not None:
            found.append((start * row_bytes, target.part(0, rows * row_bytes)))
        all_there &= target is not None or tensor.name not in request.wanted
        start += rows
    return found, all_there
