"""Policies to compare with: what the field does, in its own spirit, behind the same interface.

Only the simulator uses them. They see the same cost model as `DrainQueue`; several models on one device are keys of
one scheduler. Each is as published in what it decides, and no product's code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from engines.scheduling.latency import CostModel
from engines.scheduling.policy import Limits
from engines.scheduling.report import Batch, BatchReport, ClosedBy, Pending, QueueStatistics, Refusal, Turn


class Rival(ABC):
    """Sorted lines by key, and the parts of a Scheduler that all rivals share. They never refuse at the door."""

    def __init__(self, limits: Limits, cost: CostModel) -> None:
        self.limits = limits
        self.cost = cost
        self._lines: dict[object, list[tuple[float, int, Pending]]] = {}
        self._seq = 0

    def order(self, pending: Pending) -> float:
        """What a line is sorted by."""
        return pending.deadline

    @abstractmethod
    def plan(self, line: Sequence[tuple[float, int, Pending]], now: float) -> tuple[float, int, int]:
        """Urgency (the lowest goes first), first and last + 1 of the batch; what is before the first is dropped."""

    def doomed(self, pending: Pending, now: float) -> bool:  # noqa: ARG002
        """Whether the head of a line is given up before anything is planned."""
        return False

    def offer(self, pending: Pending, now: float) -> None:  # noqa: ARG002
        """See Scheduler.offer."""
        self._seq = pending.seq = self._seq + 1
        pending.waiting = True
        insort(self._lines.setdefault(pending.key, []), (self.order(pending), pending.seq, pending))

    def withdraw(self, pending: Pending) -> bool:
        """See Scheduler.withdraw."""
        if not pending.waiting:
            return False
        self._lines[pending.key].remove((self.order(pending), pending.seq, pending))
        pending.waiting = False
        return True

    def take(self, now: float) -> Turn:
        """See Scheduler.take."""
        plans = []
        for key, line in self._lines.items():
            doomed = 0
            while doomed < len(line) and self.doomed(line[doomed][2], now):
                doomed += 1
            del line[:doomed]
            if line:
                plans.append((*self.plan(line, now), key))
        chosen = min((plan for plan in plans if plan[1] < plan[2]), key=lambda plan: plan[0], default=None)
        if chosen is None:
            wake_at = min((plan[0] for plan in plans), default=math.inf)
            return Turn(wake_at=wake_at if wake_at > now else math.inf)
        _, start, end, key = chosen
        members = [entry[2] for entry in self._lines[key][start:end]]
        del self._lines[key][:end]
        for pending in members:
            pending.waiting = False
        rows = sum(pending.rows for pending in members)
        return Turn(Batch(members, rows, self.cost.padded(rows), ClosedBy.DRAINED))

    def expire(self, now: float) -> Sequence[Refusal]:  # noqa: ARG002
        """See Scheduler.expire."""
        return ()

    def next_expiry(self) -> float:
        """See Scheduler.next_expiry."""
        return math.inf

    def learn(self, report: BatchReport) -> None:
        """See Scheduler.learn."""
        self.cost.observe(report.padded_rows, report.finished - report.started)

    def clear(self) -> Sequence[Pending]:
        """See Scheduler.clear."""
        everyone = [entry[2] for line in self._lines.values() for entry in line]
        for pending in everyone:
            self.withdraw(pending)
        return everyone

    def statistics(self) -> QueueStatistics:
        """See Scheduler.statistics."""
        everyone = [entry[2] for line in self._lines.values() for entry in line]
        oldest = min((pending.arrived for pending in everyone), default=math.inf)
        return QueueStatistics(len(everyone), sum(pending.rows for pending in everyone), oldest)

    def _reach(self, line: Sequence[tuple[float, int, Pending]], start: int, rows: int) -> int:
        """Where a batch of at most that many rows ends."""
        room = rows
        end = start
        while end < len(line) and (room >= line[end][2].rows or end == start):
            room -= line[end][2].rows
            end += 1
        return end

    def _survivable(self, seconds: float) -> int:
        return bisect_right(self.cost.bounds, seconds) - 1


class Fifo(Rival):
    """Order of arrival; leaves when full or the oldest has waited `max_wait_s`. Deadlines are not read."""

    def order(self, pending: Pending) -> float:
        """By arrival."""
        return pending.arrived

    def plan(self, line: Sequence[tuple[float, int, Pending]], now: float) -> tuple[float, int, int]:
        """The oldest and company."""
        end = self._reach(line, 0, self.limits.max_rows)
        ripe = line[0][2].arrived + self.limits.max_wait_s
        full = sum(entry[2].rows for entry in line[:end]) >= self.limits.max_rows
        return (line[0][0], 0, end) if full or ripe <= now else (ripe, 0, 0)


class FifoReject(Fifo):
    """FIFO that refuses whoever has waited as long as the smallest time to a deadline that it has seen."""

    def __init__(self, limits: Limits, cost: CostModel) -> None:
        super().__init__(limits, cost)
        self._timeout = math.inf

    def offer(self, pending: Pending, now: float) -> None:
        """Also learns the timeout."""
        self._timeout = min(self._timeout, pending.deadline - pending.arrived)
        super().offer(pending, now)

    def doomed(self, pending: Pending, now: float) -> bool:
        """It waited too long."""
        return now - pending.arrived >= self._timeout


class EdfSlack(Rival):
    """Earliest deadline first, the batch as large as the head's slack allows; nobody is dropped (Clipper's way)."""

    def plan(self, line: Sequence[tuple[float, int, Pending]], now: float) -> tuple[float, int, int]:
        """The head and those it can afford."""
        rows = max(1, min(self.limits.max_rows, self._survivable(line[0][0] - now)))
        return line[0][0], 0, self._reach(line, 0, rows)


class Clockwork(Rival):
    """Largest batch that as many requests survive; earliest (deadline - cost) first; the hopeless are dropped."""

    def doomed(self, pending: Pending, now: float) -> bool:
        """Not even alone would it be in time."""
        return pending.deadline < now + self.cost.bounds[min(pending.rows, self.limits.max_rows)]

    def plan(self, line: Sequence[tuple[float, int, Pending]], now: float) -> tuple[float, int, int]:
        """By binary search over batch sizes: fewer rows are survived by more requests."""
        low, high = 1, self.limits.max_rows
        while low < high:
            middle = (low + high + 1) // 2
            start = bisect_left(line, (now + self.cost.bounds[middle],))
            if len(line) - start >= middle:
                low = middle
            else:
                high = middle - 1
        start = min(bisect_left(line, (now + self.cost.bounds[low],)), len(line) - 1)
        return line[start][0] - self.cost.bounds[low], start, self._reach(line, start, low)


class Nexus(Clockwork):
    """Early drop: slide a window of the expected batch over the line until its first survives, drop what is before.

    The expected batch is the one whose execution takes half of the mean time to a deadline.
    """

    def __init__(self, limits: Limits, cost: CostModel) -> None:
        super().__init__(limits, cost)
        self._mean_left = 0.0

    def offer(self, pending: Pending, now: float) -> None:
        """Also learns the expected batch."""
        left = pending.deadline - pending.arrived
        if left < math.inf:
            self._mean_left += 0.01 * (left - self._mean_left) if self._mean_left else left
        super().offer(pending, now)

    def plan(self, line: Sequence[tuple[float, int, Pending]], now: float) -> tuple[float, int, int]:
        """The first window that survives."""
        window = max(1, min(self.limits.max_rows, self._survivable(self._mean_left / 2.0)))
        for start in range(len(line)):
            rows = min(window, len(line) - start)
            if now + self.cost.bounds[rows] <= line[start][0]:
                return line[start][0] - self.cost.bounds[rows], start, self._reach(line, start, rows)
        return line[-1][0], len(line) - 1, len(line)
