"""Asking Redis, within a budget.

Rule: nobody waits longer than the budget, and no fault gets out: whatever goes wrong is a miss, and counted.
Look-ups of one turn of the event loop travel in one MGET; while all trips are out, the next one gathers.
A trip that is late goes on without those who asked, so that its connection stays in step with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from server.cache.breaker import Breaker, BreakerOptions, State
from server.cache.connection import Connection
from server.cache.latency import Latencies, LatencySummary

_LOG: Final = logging.getLogger(__name__)

PROBE_NAME: Final = b"kairos:probe"
_GRACE_TURNS: Final = 3
"""Turns of the loop between the end of the budget and giving up. When the loop itself was busy, the answer may lie
in the socket already: uvloop runs timers before it reads, and redis-py needs one more turn to parse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupOptions:
    """How much a look-up may take of a request's time."""

    budget_s: float = 0.002
    """Longest wait for an answer. 0: never ask."""
    budget_share: float = 0.1
    """And no more than this share of the time that the request has left."""
    names_per_trip: int = 256
    """Most names in one MGET."""
    trips: int = 2
    """Most MGETs that are out at a time. More of them are smaller, and cost more CPU for each look-up."""
    breaker: BreakerOptions = field(default_factory=BreakerOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupStatistics:
    """A snapshot. Each look-up is counted once in found, absent, late, failed or skipped."""

    found: int
    absent: int
    late: int
    """Not answered within the budget."""
    failed: int
    """Answered with an error, or the connection broke."""
    skipped: int
    """Not even tried: the breaker was open, or no time was left."""
    trips: int
    """MGETs sent."""
    breaker: State
    latency: LatencySummary
    """Of found and absent."""


class _Fault:
    """Stands for the value that a look-up did not get."""


_LATE: Final = _Fault()
_FAILED: Final = _Fault()
_Answer: TypeAlias = bytes | _Fault | None
_Waiting: TypeAlias = asyncio.Future[_Answer]


class Lookups:
    """Gathers look-ups into trips."""

    def __init__(self, connection: Connection, options: LookupOptions, rand: random.Random) -> None:
        self._connection = connection
        self._options = options
        self._breaker = Breaker(options.breaker, rand)
        self._queue: deque[tuple[bytes, _Waiting]] = deque()
        self._turn: list[_Waiting] = []
        self._out = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._latencies = Latencies()
        self._found = self._absent = self._late_count = self._failed = self._skipped = self._trips = 0

    def __repr__(self) -> str:
        return f"<Lookups [{self._breaker.state.value} | trips: {self._out} out | names: {len(self._queue)} waiting]>"

    def start(self) -> None:
        """Connect in the background, so that no request pays for it; that may fail."""
        self._spawn(self._greet())

    async def get(self, name: bytes, left_s: float) -> bytes | None:
        """The value, or None: also when Redis is slow or broken. `left_s`: until the request's deadline."""
        loop = asyncio.get_running_loop()
        budget_s = self.budget_s(left_s)
        if budget_s <= 0.0:
            self._skipped += 1
            if self._breaker.take_probe(loop.time()):
                self._spawn(self._probe())
            return None
        started = time.perf_counter()
        waiting = self._enqueue(name, loop)
        if budget_s < self._options.budget_s:
            loop.call_later(budget_s, self._give_up, (waiting,), _GRACE_TURNS, False)
        answer = await waiting
        if isinstance(answer, _Fault):
            if answer is _LATE:
                self._late_count += 1
            else:
                self._failed += 1
            return None
        self._latencies.observe(time.perf_counter() - started)
        if answer is None:
            self._absent += 1
        else:
            self._found += 1
        return answer

    def budget_s(self, left_s: float) -> float:
        """How long a request with so much time left may wait for Redis now; 0: not at all."""
        if not self._breaker.closed:
            return 0.0
        return max(0.0, min(self._options.budget_s, self._options.budget_share * left_s))

    def statistics(self) -> LookupStatistics:
        """A snapshot."""
        return LookupStatistics(
            found=self._found, absent=self._absent, late=self._late_count, failed=self._failed,
            skipped=self._skipped, trips=self._trips, breaker=self._breaker.state, latency=self._latencies.summary(),
        )  # fmt: skip

    async def close(self) -> None:
        """End all trips; those who still wait have missed."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._queue:
            _settle(self._queue.popleft()[1], _FAILED)

    def _enqueue(self, name: bytes, loop: asyncio.AbstractEventLoop) -> _Waiting:
        waiting: _Waiting = loop.create_future()
        self._queue.append((name, waiting))
        if not self._turn:
            loop.call_soon(self._end_turn, loop)
        self._turn.append(waiting)
        return waiting

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        asked, self._turn = self._turn, []
        loop.call_later(self._options.budget_s, self._give_up, asked, _GRACE_TURNS, True)
        self._depart()

    def _depart(self) -> None:
        while self._queue and self._out < self._options.trips:
            count = min(len(self._queue), self._options.names_per_trip)
            batch = [self._queue.popleft() for _ in range(count)]
            if batch := [asked for asked in batch if not asked[1].done()]:
                self._out += 1
                self._trips += 1
                self._spawn(self._trip(batch))

    async def _trip(self, batch: Sequence[tuple[bytes, _Waiting]]) -> None:
        answers: Sequence[_Answer] = [_FAILED] * len(batch)
        try:
            values = await self._connection.mget([name for name, _ in batch])
            if len(values) != len(batch):
                raise RuntimeError(f"{len(values)} values for {len(batch)} names")  # noqa: TRY301 a fault like any other
            answers = values
        except Exception as error:  # noqa: BLE001 no fault of Redis or its client may reach a request
            self._record(ok=False, why=repr(error))
        finally:
            self._out -= 1
            # Not a generator: each waiter must be settled, whatever the first one is.
            in_time = [_settle(waiting, answer) for (_, waiting), answer in zip(batch, answers, strict=True)]
        if answers[0] is not _FAILED and any(in_time):
            self._record(ok=True)
        self._depart()

    def _give_up(self, asked: Sequence[_Waiting], grace_turns: int, blame: bool) -> None:
        """The budget is used up; `blame` Redis for it, unless the request was in more of a hurry than most."""
        open_ = [waiting for waiting in asked if not waiting.done()]
        if not open_:
            return
        if grace_turns:
            asyncio.get_running_loop().call_soon(self._give_up, open_, grace_turns - 1, blame)
            return
        for waiting in open_:
            _settle(waiting, _LATE)
        if blame:
            self._record(ok=False, why=f"no answer within {self._options.budget_s * 1000:g} ms")

    def _record(self, *, ok: bool, why: str = "") -> None:
        was_closed = self._breaker.closed
        self._breaker.record(ok=ok, now=asyncio.get_running_loop().time())
        if was_closed and not self._breaker.closed:
            _LOG.warning("Redis is not asked for a while: %s", why)

    async def _greet(self) -> None:
        with contextlib.suppress(Exception):  # the first look-ups will tell
            await self._connection.ping()

    async def _probe(self) -> None:
        """Connect, then see whether a look-up that no request waits for is answered in time."""
        loop = asyncio.get_running_loop()
        ok = False
        try:
            await self._connection.ping()
            ok = not isinstance(await self._enqueue(PROBE_NAME, loop), _Fault)
        except Exception as error:  # noqa: BLE001 any fault means: not yet
            _LOG.debug("Redis still fails: %r", error)
        finally:
            self._breaker.probed(ok=ok, now=loop.time())
        if ok:
            _LOG.info("Redis is asked again")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _settle(waiting: _Waiting, answer: _Answer) -> bool:
    """Answer one who still waits; whether they did."""
    if waiting.done():
        return False
    waiting.set_result(answer)
    return True
