"""Plain order: the batch is headed by the most urgent, or the oldest, request and takes whom it can.

It knows nothing of costs; `drain.DrainQueue` does.

Rule: nothing here reads a clock, awaits, locks or logs.
Promise: a request leaves exactly once: in a Batch, in a Refusal, or by withdraw().
Order: priority level, then due time, then arrival. Requests with different keys never share a batch.
Cost: offer, withdraw and leaving are O(log n); choosing the head is linear in the number of (level, key) lanes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from engines.errors import DeadlineExceeded, Overloaded
from engines.scheduling.heap import Heap, Urgency
from engines.scheduling.policy import Limits
from engines.scheduling.report import Batch, BatchReport, ClosedBy, Pending, QueueStatistics, Refusal, Turn

EXPIRED: Final = "Request timeout expired"
FULL: Final = "Exceeds maximum queue size"


class _Lane:
    """Those who may share a batch: one priority level and one key."""

    __slots__ = ("arrivals", "heap", "level", "requests", "rows")

    def __init__(self, level: int) -> None:
        self.level = level
        self.heap = Heap()
        self.arrivals: deque[Pending] = deque()
        self.requests = 0
        self.rows = 0

    def oldest_arrival(self) -> float:
        while not self.arrivals[0].waiting:
            self.arrivals.popleft()
        return self.arrivals[0].arrived


class DeadlineQueue:
    """The Scheduler for `Limits.in_order`, and for comparison."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lanes: dict[tuple[int, object], _Lane] = {}
        self._expiry = Heap()
        self._per_level: dict[int, int] = {}
        self._requests = 0
        self._rows = 0
        self._seq = 0

    def __repr__(self) -> str:
        return f"<DeadlineQueue [requests: {self._requests} | rows: {self._rows}]>"

    def offer(self, pending: Pending, now: float) -> None:
        """See Scheduler.offer."""
        level = pending.level
        if min(pending.deadline, pending.start_by) <= now:
            raise DeadlineExceeded(EXPIRED)
        bound = self._limits.policy_of(level).max_requests
        waiting = self._per_level.get(level, 0)
        if 0 < bound <= waiting:
            raise Overloaded(FULL)
        self._seq = pending.seq = self._seq + 1
        pending.waiting = True
        lane = self._lanes.get((level, pending.key))
        if lane is None:
            lane = self._lanes[level, pending.key] = _Lane(level)
        lane.heap.push((False, 0.0 if self._limits.in_order else pending.due, pending.seq), pending)
        lane.requests += 1
        lane.rows += pending.rows
        if self._limits.max_wait_s > 0.0:
            lane.arrivals.append(pending)
        gone_at = min(pending.deadline, pending.start_by)
        if gone_at < math.inf:
            self._expiry.push((False, gone_at, pending.seq), pending)
        self._per_level[level] = waiting + 1
        self._requests += 1
        self._rows += pending.rows

    def withdraw(self, pending: Pending) -> bool:
        """See Scheduler.withdraw."""
        if not pending.waiting:
            return False
        self._leave(pending)
        return True

    def take(self, now: float) -> Turn:
        """See Scheduler.take."""
        refusals = self.expire(now)
        lane = self._most_urgent_lane(now)
        if lane is None:
            return Turn(refusals=refusals)
        target, closed_by, wake_at = self._close(lane, now)
        if closed_by is None:
            return Turn(refusals=refusals, wake_at=wake_at)
        members: list[Pending] = []
        rows = 0
        while (head := self._head(lane, now)) is not None:
            pending = head[1]
            if members and rows + pending.rows > target:
                break
            self._leave(pending)
            members.append(pending)
            rows += pending.rows
        return Turn(batch=Batch(members, rows, self._padded(rows), closed_by), refusals=refusals)

    def expire(self, now: float) -> Sequence[Refusal]:
        """See Scheduler.expire."""
        refusals: list[Refusal] = []
        while (head := self._expiry.head()) is not None and head[0][1] <= now:
            self._leave(head[1])
            refusals.append(Refusal(head[1], DeadlineExceeded(EXPIRED)))
        return refusals

    def next_expiry(self) -> float:
        """See Scheduler.next_expiry."""
        head = self._expiry.head()
        return math.inf if head is None else head[0][1]

    def learn(self, report: BatchReport) -> None:
        """See Scheduler.learn. This policy has no cost model."""

    def clear(self) -> Sequence[Pending]:
        """See Scheduler.clear."""
        everyone = [pending for lane in self._lanes.values() for pending in lane.heap]
        for pending in everyone:
            self._leave(pending)
        return everyone

    def statistics(self) -> QueueStatistics:
        """See Scheduler.statistics. Linear in the number of those who wait."""
        arrivals = (pending.arrived for lane in self._lanes.values() for pending in lane.heap)
        return QueueStatistics(self._requests, self._rows, min(arrivals, default=math.inf))

    def _leave(self, pending: Pending) -> None:
        pending.waiting = False
        level = pending.level
        lane = self._lanes[level, pending.key]
        lane.heap.left()
        lane.requests -= 1
        lane.rows -= pending.rows
        if lane.requests == 0:
            del self._lanes[level, pending.key]
        if min(pending.deadline, pending.start_by) < math.inf:
            self._expiry.left()
        self._per_level[level] -= 1
        self._requests -= 1
        self._rows -= pending.rows

    def _head(self, lane: _Lane, now: float) -> tuple[Urgency, Pending] | None:
        """The lane's most urgent entry; those whose queue timeout only delays them are first moved back."""
        while (head := lane.heap.head()) is not None:
            (late, due, seq), pending = head
            if late or due > now or self._limits.in_order:
                return head
            lane.heap.replace_head((True, due, seq), pending)
        return None

    def _most_urgent_lane(self, now: float) -> _Lane | None:
        best: _Lane | None = None
        best_rank: tuple[int, Urgency] | None = None
        for lane in self._lanes.values():
            head = self._head(lane, now)
            if head is None:
                continue
            rank = (lane.level, head[0])
            if best_rank is None or rank < best_rank:
                best, best_rank = lane, rank
        return best

    def _close(self, lane: _Lane, now: float) -> tuple[int, ClosedBy | None, float]:
        """How many rows to take from the lane now, and why; or no reason, and when to ask again."""
        limits = self._limits
        if limits.max_rows <= 1:
            return 1, ClosedBy.ALONE, math.inf
        if lane.rows >= limits.max_rows:
            return limits.max_rows, ClosedBy.FULL, math.inf
        reached = max((rows for rows in limits.preferred_rows if rows <= lane.rows), default=0)
        if reached:
            return reached, ClosedBy.PREFERRED, math.inf
        if limits.max_wait_s > 0.0:
            wake_at = lane.oldest_arrival() + limits.max_wait_s
            if wake_at > now:
                return 0, None, wake_at
            return lane.rows, ClosedBy.WAITED, math.inf
        return lane.rows, ClosedBy.DRAINED, math.inf

    def _padded(self, rows: int) -> int:
        return next((allowed for allowed in self._limits.allowed_rows if allowed >= rows), rows)
