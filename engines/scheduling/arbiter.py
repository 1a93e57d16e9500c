"""One device, several models: who may run next.

Rule: pure; `wake` callbacks only tell a driver to ask its queue again, they must not call back at once.
Policy: the model whose next batch has the earliest latest start (deadline of its head minus its cost) runs; each
plans with the share of the device that its waiting work is of all waiting work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from engines.scheduling.drain import DrainQueue

_PLANNED: Final = 3
"""Models, by their heads, that are worth a plan."""
_LEAST_SHARE: Final = 0.05
"""However little of a model waits, it counts on this much."""


class Arbiter:
    """A device that runs at most `slots` batches at a time, whoever they belong to."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self._wakes: dict[DrainQueue, Callable[[], None]] = {}

    def __repr__(self) -> str:
        return f"<Arbiter [queues: {len(self._wakes)} | running: {self._running} of {self.slots}]>"

    def join(self, queue: DrainQueue, wake: Callable[[], None]) -> None:
        """From now on the queue asks here; `wake` has its driver call `take` soon."""
        self._wakes[queue] = wake
        queue.arbiter = self

    def leave(self, queue: DrainQueue) -> None:
        """The model goes away, or has the device to itself."""
        del self._wakes[queue]
        queue.arbiter = None

    def share(self, queue: DrainQueue) -> float:
        """Part of the device's time that the queue can count on, by what waits."""
        total = sum(other.waiting_s for other in self._wakes)
        return 1.0 if total <= 0.0 else max(_LEAST_SHARE, queue.waiting_s / total)

    def grants(self, queue: DrainQueue, now: float) -> bool:
        """Whether the queue, whose engine is idle, may run now; if not, the one whose turn it is is woken."""
        if self._running >= self.slots:
            return False
        best = self._most_urgent(now)
        if best is None or best is queue:
            return True
        self._wakes[best]()
        return False

    def wake_next(self, now: float) -> None:
        """An execution has ended: wake whose turn it is."""
        if self._running < self.slots and (best := self._most_urgent(now)) is not None:
            self._wakes[best]()

    @property
    def _running(self) -> int:
        return sum(len(queue.running) for queue in self._wakes)

    def _most_urgent(self, now: float) -> DrainQueue | None:
        best, earliest = None, math.inf
        planned = 0
        for queue in sorted(self._wakes, key=lambda each: each.first_order):
            start = queue.latest_start(now)
            if queue.has_news:
                self._wakes[queue]()
            if start is None:
                continue
            if best is None or start < earliest:
                best, earliest = queue, start
            planned += 1
            if planned == _PLANNED:
                break
        return best
