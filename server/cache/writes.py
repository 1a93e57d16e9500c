"""Telling Redis, when it is convenient.

Rule: nobody waits for a write, and no fault gets out.
Promise: what waits to be written is bounded in number and bytes; what does not fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from server.cache.breaker import Breaker, BreakerOptions, State
from server.cache.connection import Connection, Write
from server.cache.key import Key
from server.cache.memory import Outputs
from server.cache.value import Values

_LOG: Final = logging.getLogger(__name__)
_THREAD_BYTES: Final = 64 * 1024
"""From here on a value is sealed and compressed in a thread: below, changing threads costs more than the work."""
_TRIP_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How much may wait to be written."""

    max_entries: int = 4096
    """0: write nothing."""
    max_bytes: int = 64 * 1024 * 1024
    gather_s: float = 0.005
    """How long writes gather before they leave together, unless a trip is full before. 0: until the turn's end."""
    entries_per_trip: int = 32
    """Most writes in one pipeline. The loop stands still while they are sealed: 10 microseconds for each small one."""
    breaker: BreakerOptions = field(default_factory=BreakerOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStatistics:
    """A snapshot. Each write is counted once in written, failed or dropped, when it leaves the queue."""

    written: int
    failed: int
    """Refused by Redis (out of memory, read only, ...) or lost with the connection."""
    dropped: int
    """Not tried: the queue was full or the breaker open."""
    queued: int
    queued_bytes: int
    breaker: State


@dataclass(frozen=True, slots=True)
class Answer:
    """Something to remember, or, without outputs, only a lease to give back."""

    name: bytes
    key: Key
    outputs: Outputs | None
    size_bytes: int
    """What it holds while it waits."""
    ttl_s: float = 0.0
    lease: bytes | None = None
    """Name of the lease under which it was computed, deleted with the write."""


class WriteQueue:
    """Writes in the background, a batch at a time."""

    def __init__(
        self, connection: Connection, values: Values, options: WriteOptions,
        *, rand: random.Random, wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._values = values
        self._options = options
        self._wall = wall
        self._breaker = Breaker(options.breaker, rand)
        self._queue: deque[Answer] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._written = self._failed = self._dropped = 0

    def __repr__(self) -> str:
        return f"<WriteQueue [{self._breaker.state.value} | waiting: {len(self._queue)}, {self._bytes} bytes]>"

    def put_nowait(self, answer: Answer) -> bool:
        """Have it written some time; False when it was dropped at once."""
        loop = asyncio.get_running_loop()
        size = answer.size_bytes
        full = len(self._queue) >= self._options.max_entries or self._bytes + size > self._options.max_bytes
        if full or not (self._breaker.closed or self._breaker.probe_due(loop.time())):
            self._dropped += 1
            return False
        self._queue.append(answer)
        self._bytes += size
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._drain())
        return True

    def statistics(self) -> WriteStatistics:
        """A snapshot."""
        return WriteStatistics(
            written=self._written, failed=self._failed, dropped=self._dropped,
            queued=len(self._queue), queued_bytes=self._bytes, breaker=self._breaker.state,
        )  # fmt: skip

    async def wait_empty(self) -> None:
        """Until all that waits now has left."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Drop what still waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._dropped += len(self._queue)
        self._queue.clear()
        self._bytes = 0

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            full = len(self._queue) >= self._options.entries_per_trip
            await asyncio.sleep(0 if full else self._options.gather_s)
            batch = self._take()
            probing = self._breaker.take_probe(loop.time())
            if not (probing or self._breaker.closed):
                self._dropped += len(batch)
                continue
            failures = await self._send(batch)
            self._failed += len(failures)
            self._written += len(batch) - len(failures)
            self._note(failures, probing=probing, now=loop.time())

    def _take(self) -> list[Answer]:
        batch: list[Answer] = []
        size = 0
        while self._queue and len(batch) < self._options.entries_per_trip and size < _TRIP_BYTES:
            answer = self._queue.popleft()
            size += answer.size_bytes
            batch.append(answer)
        self._bytes -= size
        return batch

    async def _send(self, batch: Sequence[Answer]) -> list[Exception]:
        """Write all; the faults, one for each that was not written."""
        try:
            writes: list[Write] = []
            for answer in batch:
                if answer.outputs is not None:
                    value = await self._encode(answer, answer.outputs)
                    writes.append(Write(answer.name, value, max(1, int(answer.ttl_s * 1000))))
                if answer.lease is not None:
                    writes.append(Write(answer.lease, None))
            outcomes = await self._connection.write(writes)
        except Exception as error:  # noqa: BLE001 no fault of Redis or its client may end the queue
            return [error] * len(batch)
        return [outcome for outcome in outcomes if outcome is not None][: len(batch)]

    async def _encode(self, answer: Answer, outputs: Outputs) -> bytes:
        expires = self._wall() + answer.ttl_s
        if answer.size_bytes < _THREAD_BYTES:
            return self._values.encode(answer.key, outputs, expires)
        return await asyncio.to_thread(self._values.encode, answer.key, outputs, expires)

    def _note(self, failures: Sequence[Exception], *, probing: bool, now: float) -> None:
        was_closed = self._breaker.closed
        if probing:
            self._breaker.probed(ok=not failures, now=now)
        else:
            self._breaker.record(ok=not failures, now=now)
        if was_closed and not self._breaker.closed:
            _LOG.warning("nothing is written to Redis for a while: %r", failures[0])
        elif not was_closed and self._breaker.closed:
            _LOG.info("Redis is written to again")
