"""Everybody who waits, by lane, and how many they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from engines.scheduling.heap import Heap
from engines.scheduling.lane import Lane
from engines.scheduling.report import Pending


class Backlog:
    """Lanes by (level, key); a lane exists while somebody waits in it."""

    __slots__ = ("_expiry", "_keep_arrivals", "_lanes", "_per_level", "requests", "rows")

    def __init__(self, *, keep_arrivals: bool) -> None:
        self._keep_arrivals = keep_arrivals
        self._lanes: dict[tuple[int, object], Lane] = {}
        self._per_level: dict[int, int] = {}
        self._expiry = Heap()
        """Those whose queue timeout has put them among the patient, and who have a deadline all the same."""
        self.requests = 0
        self.rows = 0

    def __iter__(self) -> Iterator[Pending]:
        return (pending for lane in self._lanes.values() for pending in lane)

    @property
    def lanes(self) -> Collection[Lane]:
        """All that are not empty."""
        return self._lanes.values()

    def lane_of(self, pending: Pending) -> Lane | None:
        """Where it waits, or would."""
        return self._lanes.get((pending.level, pending.key))

    def in_level(self, level: int) -> int:
        """Requests that wait in a level."""
        return self._per_level.get(level, 0)

    def add(self, pending: Pending) -> None:
        """Take it in, by its `order` and `seq`."""
        pending.waiting = True
        lane = self.lane_of(pending)
        if lane is None:
            lane = Lane(pending.level, pending.key, keep_arrivals=self._keep_arrivals)
            self._lanes[pending.level, pending.key] = lane
        lane.add(pending)
        self._per_level[pending.level] = self.in_level(pending.level) + 1
        self.requests += 1
        self.rows += pending.rows

    def remove(self, pending: Pending) -> None:
        """Take out one that waits."""
        lane = self._lanes[pending.level, pending.key]
        delayed = pending.deadline < math.inf and pending.seq in lane.patient
        lane.remove(pending)
        self._count_out(lane, [pending])
        if delayed:
            self._expiry.left()

    def delay(self, pending: Pending) -> None:
        """Its queue timeout is over, which only puts it among the patient."""
        self._lanes[pending.level, pending.key].put_back(pending)
        if pending.deadline < math.inf:
            self._expiry.push((False, pending.deadline, pending.seq), pending)

    def first_to_expire(self) -> Pending | None:
        """Of those who were delayed, the one with the earliest deadline."""
        head = self._expiry.head()
        return None if head is None else head[1]

    def cut_timed(self, lane: Lane, start: int, room: int) -> list[Pending]:
        """See Lane.cut_timed."""
        members = lane.cut_timed(start, room)
        self._count_out(lane, members)
        return members

    def cut_patient(self, lane: Lane, room: int) -> list[Pending]:
        """See Lane.cut_patient."""
        members = lane.cut_patient(room)
        self._count_out(lane, members)
        for pending in members:
            if pending.deadline < math.inf:
                self._expiry.left()
        return members

    def _count_out(self, lane: Lane, gone: Sequence[Pending]) -> None:
        for pending in gone:
            pending.waiting = False
            self.rows -= pending.rows
        self.requests -= len(gone)
        self._per_level[lane.level] -= len(gone)
        if not lane:
            self._lanes.pop((lane.level, lane.key), None)
