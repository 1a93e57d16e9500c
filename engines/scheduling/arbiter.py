"""One device, several models: who may run next.

Rule: pure; `wake` callbacks only tell a driver to ask its queue again, they must not call back at once.
Policy: the model whose next batch has the earliest latest start (deadline of its head minus its cost) runs; each
plans with the share of the device that its waiting work is of all waiting work. A batch that does not fit beside
those that run keeps its turn: smaller ones do not slip past it for ever.
Promise: an execution that takes far longer than it should stops counting, so that a stuck engine holds nobody up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engines.scheduling.drain import DrainQueue

_PLANNED: Final = 3
"""Models, by their heads, that are worth a plan."""
_LEAST_SHARE: Final = 0.05
"""However little of a model waits, it counts on this much."""


@dataclass(frozen=True, slots=True)
class _Member:
    wake: Callable[[], None]
    ready: Callable[[], bool]
    load: float


class Arbiter:
    """A device that runs batches side by side up to its `capacity`, whoever they belong to."""

    def __init__(self, capacity: float = 1.0) -> None:
        self.capacity = capacity
        """In the unit of the members' loads: processor cores, or one for a device that runs one batch at a time."""
        self._members: dict[DrainQueue, _Member] = {}

    def __repr__(self) -> str:
        running = sum(member.load * len(queue.running) for queue, member in self._members.items())
        return f"<Arbiter [queues: {len(self._members)} | running: {running:g} of {self.capacity:g}]>"

    def join(
        self,
        queue: DrainQueue,
        wake: Callable[[], None],
        ready: Callable[[], bool] = lambda: True,
        load: float = 1.0,
    ) -> None:
        """From now on the queue asks here.

        `wake` has its driver call `take` soon; `ready` says whether an engine of its own is idle; `load` is the part
        of the capacity that one of its batches takes.
        """
        self._members[queue] = _Member(wake, ready, load)
        queue.arbiter = self

    def leave(self, queue: DrainQueue) -> None:
        """The model goes away, or has the device to itself."""
        if self._members.pop(queue, None) is not None:
            queue.arbiter = None

    def share(self, queue: DrainQueue) -> float:
        """Part of the device's time that the queue can count on, by what waits."""
        total = sum(other.waiting_s for other in self._members)
        return 1.0 if total <= 0.0 else max(_LEAST_SHARE, queue.waiting_s / total)

    def grants(self, queue: DrainQueue, now: float) -> bool:
        """Whether the queue, whose engine is idle, may run now; if not, the one whose turn it is is woken."""
        if all(other is queue or not (other.waits or len(other.running)) for other in self._members):
            return True
        if not self._has_room(queue, now):
            return False
        best = self._most_urgent(now) or queue
        if best is not queue and self._has_room(best, now):
            self._members[best].wake()
        return best is queue

    def wake_next(self, now: float) -> None:
        """An execution has ended: wake whose turn it is."""
        best = self._most_urgent(now)
        if best is not None and self._has_room(best, now):
            self._members[best].wake()

    def ask_again_at(self, now: float) -> float:
        """When one who was not granted its turn should ask again, should nobody wake it before; infinite for never."""
        return min((queue.running.next_stuck(now) for queue in self._members), default=math.inf)

    def free_at(self, queue: DrainQueue, now: float) -> float:
        """When a batch of the queue is expected to fit beside what runs."""
        if self._has_room(queue, now):
            return now
        return min((other.running.first_end(now) for other in self._members), default=now)

    def _has_room(self, queue: DrainQueue, now: float) -> bool:
        running = sum(member.load * other.running.busy(now) for other, member in self._members.items())
        return running <= 0.0 or running + self._members[queue].load <= self.capacity

    def _most_urgent(self, now: float) -> DrainQueue | None:
        best, earliest = None, math.inf
        planned = 0
        waiting = [queue for queue, member in self._members.items() if queue.waits and member.ready()]
        for queue in sorted(waiting, key=lambda each: each.urgency):
            start = queue.latest_start(now)
            if queue.has_news:
                self._members[queue].wake()
            if start is None:
                continue
            if best is None or start < earliest:
                best, earliest = queue, start
            planned += 1
            if planned == _PLANNED:
                break
        return best
