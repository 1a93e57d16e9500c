"""Identical requests in flight share one execution.

The execution belongs to none of its joiners: it runs in a task of its own, goes on when any of them leaves, the
first one included, and is cancelled when the last of them has left.

Deadlines. An execution carries the deadline of the most urgent joiner there is when it starts, so that nobody's
place in the queue is worse than it would be alone.
- A later joiner with a later deadline adds nothing to wait for. When the execution is refused because its deadline
  cannot be met, that is the answer only of those whose deadline is not later; for the others it is run again,
  carrying their latest deadline.
- A later joiner in more of a hurry waits for half of the time it has left; then an execution starts with its
  deadline, beside the one that runs or the look-up that goes on. The first answer settles all, and the other execution
  is withdrawn. At its own deadline it is told so.

Failures. Any other failure is the failure of all joiners. While another execution of the same flight runs, a failure
does not count. Nothing is retried: whoever calls again starts a new flight.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from engines.errors import Cancelled, DeadlineExceeded, InferError, Overloaded
from engines.request import InferRequest, InferResponse, Origin
from server.cache.key import Key

Run: TypeAlias = Callable[[Key, InferRequest], Awaitable[InferResponse]]
Find: TypeAlias = Callable[[Key, InferRequest], Awaitable[InferResponse | None]]
_Outcome: TypeAlias = InferResponse | Exception

EXPIRED: Final = "Request timeout expired"


class _Joiner:
    __slots__ = ("future", "request", "timer")

    def __init__(self, request: InferRequest, future: asyncio.Future[_Outcome]) -> None:
        self.request = request
        self.future = future
        self.timer: asyncio.TimerHandle | None = None

    @property
    def deadline(self) -> float:
        return self.request.deadline

    def settle(self, outcome: _Outcome) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if not self.future.done():
            self.future.set_result(outcome)


class Flights:
    """Those under way, by key."""

    def __init__(self, run: Run, find: Find | None) -> None:
        """`run` executes; `find`, if any, is asked first and may know the answer."""
        self._run = run
        self._find = find
        self._by_key: dict[Key, _Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    async def join(self, key: Key, request: InferRequest) -> InferResponse:
        """The answer, from the flight that is under way or from a new one. Raises what the execution raises."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = _Flight(key, self._run, self._find, self._landed)
        return await flight.join(request)

    def _landed(self, flight: _Flight) -> None:
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]


class _Flight:
    __slots__ = ("_find", "_joiners", "_landed", "_run", "_tasks", "_tightest", "_tried", "key")

    def __init__(self, key: Key, run: Run, find: Find | None, landed: Callable[[_Flight], None]) -> None:
        self.key = key
        self._run = run
        self._find = find
        self._landed = landed
        self._joiners: dict[_Joiner, None] = {}
        """In order of arrival."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._tightest = -math.inf
        """Earliest deadline that a running execution, or the one who asks first whether it is known, carries."""
        self._tried = -math.inf
        """Latest deadline that an execution has carried."""

    async def join(self, request: InferRequest) -> InferResponse:
        loop = asyncio.get_running_loop()
        joiner = _Joiner(request, loop.create_future())
        self._joiners[joiner] = None
        if not self._tasks:
            if self._find is None:
                self._start(request)
            else:
                self._tightest = request.deadline
                self._tasks.add(loop.create_task(self._execute(request, self._find)))
        elif request.deadline < self._tightest:
            now = loop.time()
            joiner.timer = loop.call_at(now + max(0.0, request.deadline - now) / 2, self._hurry, joiner)
        try:
            outcome = await joiner.future
        except asyncio.CancelledError:
            self._leave(joiner)
            raise
        if isinstance(outcome, Exception):
            # A copy each: raising one and the same in many tasks would pile up all their tracebacks on it.
            raise copy.copy(outcome) if isinstance(outcome, InferError) else outcome
        return outcome

    def _start(self, request: InferRequest) -> None:
        self._carry(request.deadline)
        self._tasks.add(asyncio.get_running_loop().create_task(self._execute(request)))

    def _carry(self, deadline: float) -> None:
        self._tightest = deadline
        self._tried = max(self._tried, deadline)

    async def _execute(self, request: InferRequest, find: Find | None = None) -> None:
        try:
            response = None if find is None else await find(self.key, request)
            if response is None:
                if find is not None:
                    if len(self._tasks) > 1:
                        self._retire()  # one in a hurry has not waited, and executes
                        return
                    request = min(self._joiners, key=_urgency).request
                    self._carry(request.deadline)
                response = await self._run(self.key, request)
        except asyncio.CancelledError:
            self._land(Cancelled("the execution was cancelled"))
            raise
        except Exception as error:  # noqa: BLE001 joiners must be told of any fault
            self._failed(error)
        else:
            self._land(response, request)

    def _failed(self, error: Exception) -> None:
        self._retire()
        if self._tasks:
            return
        later = [joiner for joiner in self._joiners if joiner.deadline > self._tried]
        if not later or not isinstance(error, (DeadlineExceeded, Overloaded)):
            self._land(error)
            return
        for joiner in self._joiners:
            if joiner.deadline <= self._tried:
                joiner.settle(error)
        self._joiners = dict.fromkeys(later)
        latest = max(later, key=_urgency)
        for joiner in later:
            if joiner.deadline < latest.deadline:
                self._expire_in_time(joiner)
        self._start(latest.request)

    def _retire(self) -> None:
        """The current task leaves the rest to the others."""
        current = asyncio.current_task()
        self._tasks = {task for task in self._tasks if task is not current}

    def _hurry(self, joiner: _Joiner) -> None:
        self._expire_in_time(joiner)
        if joiner.deadline < self._tightest:
            self._start(joiner.request)

    def _expire_in_time(self, joiner: _Joiner) -> None:
        if joiner.timer is not None:
            joiner.timer.cancel()
        joiner.timer = asyncio.get_running_loop().call_at(joiner.deadline, self._expire, joiner)

    def _expire(self, joiner: _Joiner) -> None:
        joiner.settle(DeadlineExceeded(EXPIRED))
        self._leave(joiner)

    def _leave(self, joiner: _Joiner) -> None:
        if joiner not in self._joiners:
            return
        del self._joiners[joiner]
        if joiner.timer is not None:
            joiner.timer.cancel()
        if not self._joiners:
            self._land()

    def _land(self, outcome: _Outcome | None = None, executed: InferRequest | None = None) -> None:
        """Settle all who are still there, and end every execution but the one that tells."""
        self._landed(self)
        joiners, self._joiners = self._joiners, {}
        for joiner in joiners:
            if isinstance(outcome, InferResponse):
                joiner.settle(_for(joiner.request, outcome, executed))
            elif outcome is not None:
                joiner.settle(outcome)
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._tasks = set()


def _urgency(joiner: _Joiner) -> tuple[float, int]:
    return joiner.request.deadline, joiner.request.priority


def _for(request: InferRequest, response: InferResponse, executed: InferRequest | None) -> InferResponse:
    """The answer as this request's own."""
    if request is executed:
        return response
    return InferResponse(
        model=response.model, version=response.version, outputs=response.outputs, id=request.id,
        origin=Origin.CACHE if response.origin is Origin.CACHE else Origin.SHARED,
    )  # fmt: skip
