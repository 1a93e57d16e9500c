"""Those who may share a batch: one priority level and one key."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from engines.scheduling.ordered import Ordered
from engines.scheduling.report import Pending

_PASSED_OVER: Final = 16
"""Requests too large for the room that is left, before a batch is closed without looking for smaller ones."""


class Lane:
    """Two lines: the timed by due time, and the patient, who have no due time or are past it, by arrival."""

    __slots__ = ("_arrivals", "_arrivals_kept", "key", "level", "patient", "patient_rows", "timed", "timed_rows")

    def __init__(self, level: int, key: object, *, keep_arrivals: bool) -> None:
        self.level = level
        self.key = key
        self.timed = Ordered()
        self.timed_rows = 0
        self.patient: OrderedDict[int, Pending] = OrderedDict()
        self.patient_rows = 0
        self._arrivals: deque[Pending] = deque()
        self._arrivals_kept = keep_arrivals

    def __len__(self) -> int:
        return len(self.timed) + len(self.patient)

    def __iter__(self) -> Iterator[Pending]:
        yield from (entry[2] for entry in self.timed)
        yield from self.patient.values()

    @property
    def rows(self) -> int:
        """Of all who wait here."""
        return self.timed_rows + self.patient_rows

    def add(self, pending: Pending) -> None:
        """Take it in, by its `order` and sequence number."""
        if pending.order == math.inf:
            self.patient[pending.seq] = pending
            self.patient_rows += pending.rows
        else:
            self.timed.add((pending.order, pending.seq, pending))
            self.timed_rows += pending.rows
        if self._arrivals_kept:
            self._arrivals.append(pending)

    def remove(self, pending: Pending) -> None:
        """Take out one that is in."""
        if self.patient.pop(pending.seq, None) is not None:
            self.patient_rows -= pending.rows
        else:
            self.timed.remove(pending.order, pending.seq)
            self.timed_rows -= pending.rows

    def put_back(self, pending: Pending) -> None:
        """Its queue timeout is over, which only moves it behind all who are in time."""
        self.remove(pending)
        self.patient[pending.seq] = pending
        self.patient_rows += pending.rows

    def oldest_arrival(self) -> float:
        """Of those who wait; only where arrivals are kept."""
        while self._arrivals and not self._arrivals[0].waiting:
            self._arrivals.popleft()
        return self._arrivals[0].arrived if self._arrivals else math.inf

    def cut_timed(self, start: int, room: int) -> list[Pending]:
        """Take out timed ones in order of urgency, from that rank on, while their rows fit; the first always does."""
        count = rows = 0
        for _, _, pending in islice(self.timed.walk(start), room):
            if count and rows + pending.rows > room:
                break
            rows += pending.rows
            count += 1
        members = [entry[2] for entry in self.timed.pop(start, count)]
        if rows < room and len(self.timed) > start:
            extra = _fitting((entry[2] for entry in self.timed.walk(start)), room - rows)
            for pending in extra:
                self.timed.remove(pending.order, pending.seq)
            members += extra
            rows += sum(pending.rows for pending in extra)
        self.timed_rows -= rows
        return members

    def cut_patient(self, room: int) -> list[Pending]:
        """Take out patient ones in order of arrival while their rows fit."""
        members = _fitting(self.patient.values(), room)
        for pending in members:
            del self.patient[pending.seq]
            self.patient_rows -= pending.rows
        return members


def _fitting(candidates: Iterable[Pending], room: int) -> list[Pending]:
    """The first candidates that fit together; a few larger ones are passed over."""
    members: list[Pending] = []
    passed = 0
    for pending in candidates:
        if pending.rows <= room:
            members.append(pending)
            room -= pending.rows
        else:
            passed += 1
        if room == 0 or passed == _PASSED_OVER:
            break
    return members
