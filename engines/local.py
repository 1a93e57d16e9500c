"""Answers requests with the engines of this process: scheduler, pool and waiters put together.

First a free engine, then the batch: nothing is decided before an engine can run it. All of it happens on the event
loop, at the end of the loop turn in which requests arrived, so that those read together can leave together.

Promise: each request gets exactly one answer or error, unless its caller has left.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from engines.errors import Draining, EngineDied, EngineFailed, EngineHung, InferError
from engines.pool import EnginePool, PoolStatistics
from engines.request import InferRequest, InferResponse, Timings
from engines.scheduling.arbiter import Arbiter
from engines.scheduling.assemble import Scatter, signature
from engines.scheduling.drain import DrainQueue
from engines.scheduling.policy import Limits, Scheduler, TimeoutAction
from engines.scheduling.report import Batch, BatchReport, Pending, QueueStatistics, Refusal
from engines.spec import ModelSpec
from engines.tensor import Tensor
from engines.worker import Job, Outcome

log = logging.getLogger(__name__)


Listener: TypeAlias = Callable[[InferRequest, float], None]
"""Told of a request and the time at which it came. Must not raise."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """Who waits for one request."""

    request: InferRequest
    future: asyncio.Future[InferResponse]
    place: Pending | None = None
    """Its place in the queue, or its last one."""
    retried: bool = False
    outcome: InferResponse | InferError | None = field(default=None)
    """Set only where answers must keep the order of arrival, and an earlier one is still missing."""


@dataclass(frozen=True, slots=True)
class LocalStatistics:
    """A snapshot."""

    queue: QueueStatistics
    engines: PoolStatistics


class LocalInference:
    """The bottom of the stack of Inference layers."""

    def __init__(
        self,
        spec: ModelSpec,
        pool: EnginePool,
        scheduler: Scheduler,
        limits: Limits,
        observe: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._scheduler = scheduler
        self._limits = limits
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._one_key = spec.one_signature
        self._dispatching = False
        self._closing = False
        self._alarm: asyncio.Handle | None = None
        self._alarm_at = math.inf  # kept here, since uvloop gives handles without `when` for times that are near
        self._in_order: deque[_Waiter] = deque()
        self._running: dict[int, Batch] = {}
        self._listeners: tuple[Listener, ...] = ()
        self._leave: Callable[[], None] = lambda: None
        self.device = "cpu"
        """What reports say that batches ran on."""
        self.closed: Callable[[], None] = lambda: None
        """Called once all engines are closed."""
        pool.freed = self._dispatch_soon

    def __repr__(self) -> str:
        return f"<LocalInference {self._spec.name}:{self._spec.version} {self._pool} {self._scheduler}>"

    def share(self, device: Arbiter, load: float) -> None:
        """Take turns with the other models of a device, of which each batch takes `load`, until all is closed."""
        if isinstance(queue := self._scheduler, DrainQueue):  # the others know nothing of their neighbours
            device.join(queue, self._dispatch_soon, lambda: self._pool.has_idle, load)
            self._leave = lambda: device.leave(queue)

    async def infer(self, request: InferRequest) -> InferResponse:
        """See Inference.infer."""
        if self._closing:
            raise Draining(f"model '{self._spec.name}' version {self._spec.version} is shutting down")
        waiter = _Waiter(request, self._loop.create_future())
        now = self._loop.time()
        for listener in self._listeners:
            listener(request, now)
        self._offer(self._pending(waiter, now))
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.place is not None:
                self._scheduler.withdraw(waiter.place)
            self._answer_in_order()
            raise
        finally:
            waiter.place = None  # which refers back: the request would stay until the collector comes by
            del waiter  # else an error that it was told would hold its own frames, and the request, until collected

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each request that comes from now on, before it is refused or waits."""
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return end

    @property
    def idle(self) -> bool:
        """Whether an engine has nothing to do: a request would wait for nobody."""
        return self._pool.has_idle

    def statistics(self) -> LocalStatistics:
        """How much waits, and how many engines do what."""
        return LocalStatistics(self._scheduler.statistics(), self._pool.statistics())

    def abandon(self) -> None:
        """Take nothing new, and tell all who still wait, in the queue or for a running batch, that it is over."""
        self._closing = True
        left = [*self._scheduler.clear(), *(member for batch in self._running.values() for member in batch.members)]
        for pending in left:
            self._settle(pending.waiter, Draining(f"model '{self._spec.name}' is shutting down"))

    async def close(self) -> None:
        """Refuse what waits, let running batches end, close the engines."""
        self._closing = True
        for pending in self._scheduler.clear():
            self._settle(pending.waiter, Draining(f"model '{self._spec.name}' was unloaded"))
        if self._alarm is not None:
            self._alarm.cancel()
        await self._pool.close()
        self._leave()
        self.closed()

    def _pending(self, waiter: _Waiter, now: float) -> Pending:
        request = waiter.request
        level = self._limits.level(request.priority)
        policy = self._limits.policy_of(level)
        asked = request.parameters.get("timeout")
        timeout_at = now + policy.timeout_for(int(asked) / 1e6 if asked else math.inf)
        delays = policy.action is TimeoutAction.DELAY
        return Pending(
            rows=request.rows,
            arrived=now,
            deadline=request.deadline,
            due=min(request.deadline, timeout_at) if delays else request.deadline,
            start_by=math.inf if delays else timeout_at,
            level=level,
            key=() if self._one_key else signature(request),
            tenant=request.tenant,
            waiter=waiter,
        )

    def _offer(self, pending: Pending) -> None:
        waiter: _Waiter = pending.waiter
        self._scheduler.offer(pending, pending.arrived)
        waiter.place = pending
        if self._limits.in_order:
            self._in_order.append(waiter)
        if self._pool.has_idle:
            self._dispatch_soon()
        else:
            self._wake_by(self._scheduler.next_expiry())

    def _dispatch_soon(self) -> None:
        if not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        wake_at = math.inf
        while self._pool.has_idle:
            now = self._loop.time()
            turn = self._scheduler.take(now)
            self._refuse(turn.refusals)
            if turn.batch is None:
                wake_at = turn.wake_at
                break
            self._launch(turn.batch, now)
            if self._pool.inline:  # it is done, and its answers leave before the next one
                return
        self._wake_by(min(wake_at, self._scheduler.next_expiry()))

    def _wake_by(self, when: float) -> None:
        """Look again at `when` at the latest. One timer serves all; it is only ever moved forward."""
        if when >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = self._loop.call_at(when, self._wake), when

    def _wake(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        if not self._pool.has_idle:
            self._refuse(self._scheduler.expire(self._loop.time()))
        self._dispatch()

    def _refuse(self, refusals: Sequence[Refusal]) -> None:
        for pending, error in refusals:
            self._settle(pending.waiter, error)

    def _launch(self, batch: Batch, now: float) -> None:
        requests = [member.waiter.request for member in batch.members]
        first = requests[0].wanted
        wanted = first if len(requests) == 1 else {name for request in requests for name in request.wanted}
        self._running[id(batch)] = batch
        self._pool.submit(Job(requests, batch.padded_rows, wanted), partial(self._finished, batch, now))

    def _finished(self, batch: Batch, started: float, outcome: Outcome) -> None:
        finished = self._loop.time()
        if self._pool.inline:  # what else the loop had to do before it came to tell is no cost of the engine
            finished = started + outcome.gather_s + outcome.execute_s
        del self._running[id(batch)]
        gone = [member for member in batch.members if member.waiter.future.done()]
        if self._pool.inline:  # answers first: the next execution would hold them up
            self._dispatch_soon()
        else:  # the engine gets its next batch before this one's answers are cut out
            self._dispatch()
        failure, scatter_s = outcome.error, 0.0
        if outcome.outputs is not None:
            failure, scatter_s = self._deliver(batch, started, outcome)
        if failure is not None:
            self._recover(batch, failure)
        text = "" if failure is None else str(failure) or type(failure).__name__
        report = self._report(batch, (started, finished, scatter_s), outcome, text, gone)
        self._scheduler.learn(report)
        self._observe(report)

    def _deliver(self, batch: Batch, started: float, outcome: Outcome) -> tuple[Exception | None, float]:
        """Answer all members; the failure that prevents it, and the seconds it took to cut the rows apart."""
        spec = self._spec
        cut_at = self._loop.time()
        try:
            answers = self._cut(batch, outcome)
        except Exception as failure:  # noqa: BLE001  (an engine may return anything; its callers are told)
            return failure, 0.0
        scatter_s = self._loop.time() - cut_at
        for member, outputs in zip(batch.members, answers, strict=True):
            waiter: _Waiter = member.waiter
            timings = Timings(started - member.arrived, outcome.gather_s, outcome.execute_s, scatter_s, batch.rows)
            response = InferResponse(
                model=spec.name, version=spec.version, outputs=outputs, id=waiter.request.id, timings=timings
            )
            self._settle(waiter, response)
        return None, scatter_s

    def _cut(self, batch: Batch, outcome: Outcome) -> list[tuple[Tensor, ...]]:
        scatter = Scatter(outcome.outputs or {}, self._spec, batch.padded_rows)
        answers = []
        start = 0
        for member in batch.members:
            request = member.waiter.request
            if outcome.placed:
                answers.append(scatter.rows_of(request, start, outcome.placed))
            else:
                answers.append(scatter.rows(start, member.rows, request.wanted))
            start += member.rows
        return answers

    def _recover(self, batch: Batch, failure: Exception) -> None:
        """One request's data may have spoilt the batch: each member gets one more try by itself.

        Not after a batch that hung: its members have waited long enough, and may each hang an engine of their own.
        """
        alone = len(batch.members) == 1 or isinstance(failure, EngineHung)
        if not isinstance(failure, InferError | EngineDied):
            log.warning("batch of %d rows of %s failed: %s", batch.rows, self._spec.name, failure)
        for member in batch.members:
            waiter: _Waiter = member.waiter
            if alone or waiter.retried or self._closing:
                self._settle(waiter, self._as_error(failure))
            elif not waiter.future.done():
                waiter.retried = True
                self._retry(waiter, member)

    def _retry(self, waiter: _Waiter, member: Pending) -> None:
        again = Pending(
            rows=member.rows,
            arrived=member.arrived,
            deadline=member.deadline,
            due=member.due,
            start_by=member.start_by,
            level=member.level,
            key=object(),
            tenant=member.tenant,
            waiter=waiter,
        )
        try:
            self._scheduler.offer(again, self._loop.time())
        except InferError as refusal:
            self._settle(waiter, refusal)
        else:
            waiter.place = again
            self._dispatch_soon()

    def _as_error(self, failure: Exception) -> InferError:
        if isinstance(failure, InferError):
            return failure
        text = str(failure) or type(failure).__name__
        return EngineFailed(
            f"model '{self._spec.name}' version {self._spec.version} failed: {text}",
            retryable=isinstance(failure, EngineDied | MemoryError),
        )

    def _settle(self, waiter: _Waiter, outcome: InferResponse | InferError) -> None:
        if not self._limits.in_order:
            _tell(waiter, outcome)
            return
        waiter.outcome = outcome
        self._answer_in_order()

    def _answer_in_order(self) -> None:
        line = self._in_order
        while line and (line[0].outcome is not None or line[0].future.done()):
            first = line.popleft()
            if first.outcome is not None:
                _tell(first, first.outcome)

    def _report(
        self, batch: Batch, times: tuple[float, float, float], outcome: Outcome, error: str, gone: Sequence[Pending]
    ) -> BatchReport:
        started, finished, scatter_s = times
        members = batch.members
        return BatchReport(
            model=self._spec.name,
            version=self._spec.version,
            device=self.device,
            rows=batch.rows,
            padded_rows=batch.padded_rows,
            closed_by=batch.closed_by,
            opened=min(member.arrived for member in members),
            started=started,
            finished=finished,
            gather_s=outcome.gather_s,
            execute_s=outcome.execute_s,
            traces=tuple(trace for member in members if (trace := member.waiter.request.trace)),
            scatter_s=scatter_s,
            error=error,
            answered=len(members) - len(gone),
            abandoned_rows=sum(member.rows for member in gone),
            number=batch.number,
        )


def _tell(waiter: _Waiter, outcome: InferResponse | InferError) -> None:
    future = waiter.future
    if future.done():  # the caller left; the neighbours do not care
        return
    if isinstance(outcome, InferResponse):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
