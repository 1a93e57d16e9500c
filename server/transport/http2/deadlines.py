"""When calls expire: one heap and one timer for all of them, instead of a timer each.

Rule: `now` is an argument. Calls that ended are forgotten when their turn comes, or when they are the majority.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar


class Expiring(Protocol):
    """What has a deadline."""

    def done(self) -> bool: ...


_T = TypeVar("_T", bound=Expiring)


class Deadlines(Generic[_T]):
    """The deadlines of the calls that have one, earliest first."""

    __slots__ = ("_heap", "_sequence", "finished")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _T]] = []
        self._sequence = 0
        self.finished = 0
        """How many calls in the heap ended in time; whoever ends one counts it here."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, call: _T) -> bool:
        """Remember that `call` expires at `when`. Whether that is the earliest deadline now."""
        if self.finished > 64 and self.finished * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self.finished = 0
        self._sequence += 1
        entry = (when, self._sequence, call)
        heapq.heappush(self._heap, entry)
        return self._heap[0] is entry

    def expired(self, now: float) -> list[_T]:
        """Remove what was due by `now`; those of it that are not done."""
        due: list[_T] = []
        while self._heap and self._heap[0][0] <= now:
            call = heapq.heappop(self._heap)[2]
            self.finished -= 1  # counted when it ended, or about to be
            if not call.done():
                due.append(call)
        return due

    def next(self) -> float | None:
        """The earliest deadline."""
        return self._heap[0][0] if self._heap else None
