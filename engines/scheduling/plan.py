"""Which requests of one lane should run now: earliest deadline first, tested by draining the queue in thought.

Rule: pure functions of a lane's order and an `Outlook`; nothing is taken out here.
Regimes:
1. All that waits fits into one batch that its head survives: run it.
2. Draining the queue from its head in batches that each head survives loses nobody, and serves as fast as requests
   arrive: run the first of those batches. Fair, and the latency is small.
3. Somebody will be lost, but the load is near what the engine can do, and callers differ in how much time they have:
   saving a tight one now need not cost a loose one later. So look one batch ahead. Of five sizes between
   the head's and the largest take the one after which most are met, time being charged at a third of the best rate.
4. More load than that, callers alike, or the device is shared: the largest size that as many requests survive (a
   smaller one only where it is clearly more efficient); heads that do not survive it wait for another engine, or are
   shed.
Sources: drain-tested EDF builds on Clockwork (OSDI 2020) for the largest feasible batch, and on Nexus (SOSP 2019) for
giving up heads to save the rest. The look-ahead is a one-step rollout of regime 4.
Cost: a few dozen binary searches, however long the queue is.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from engines.scheduling.ordered import Entry, Ordered

_KEEP_UP: Final = 0.9
"""Small batches are fine while they serve this share of what arrives; measured, 0.5 to 0.8 are alike, 0.9 is worse."""
_KEEP_UP_ALIKE: Final = 1.3
"""The same where all callers have about the same time: whoever is lost now would else be another one soon."""
_CROWDED: Final = 1.4
"""Load from which the largest batch is always right, and looking ahead only costs."""
_CLEARLY: Final = 1.1
"""How much more efficient a smaller batch must look: the costs of sizes that seldom run are the least certain."""
_PRICE: Final = 0.3
"""What engine time is worth, in shares of the best rate."""
_STEPS: Final = 48
"""Batches drained one by one; what waits behind them is tested block by block."""
_BETWEEN: Final = 4
"""Steps from the head's size to the largest in a look-ahead."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """All that a plan rests on beside the queue itself."""

    now: float
    means: Sequence[float]
    """Expected seconds by rows."""
    bounds: Sequence[float]
    """Seconds to plan with when a deadline depends on it, by rows; ascending."""
    sizes: Sequence[int]
    """Batch sizes worth considering, ascending."""
    others: Sequence[float] = ()
    """When the other engines are expected to be idle."""
    share: float = 1.0
    """Of the device's time, below 1 when other models or lanes wait for it too."""
    demand: float = 0.0
    """Rows a second that arrive for this lane."""
    alike: bool = False
    """Whether all callers have about the same time to their deadlines."""

    @property
    def best_rate(self) -> float:
        """Rows a second of all engines together, in full batches."""
        return (1 + len(self.others)) * (len(self.means) - 1) / (self.means[-1] or 1e-9)

    def survivable(self, seconds: float) -> int:
        """Most rows whose execution a deadline that far away survives."""
        return bisect_right(self.bounds, seconds) - 1


class Plan(NamedTuple):
    """Run `rows` rows, from the request with `start` others before it."""

    start: int
    rows: int
    latest_start: float
    """When the batch must start at the latest to meet the deadline of its first member."""


def whole(queue: Ordered, rows: int, bounds: Sequence[float], now: float) -> Plan | None:
    """Regime 1, which needs no outlook: all `rows` rows of a lane that is not empty; None when it does not apply."""
    if rows >= len(bounds):
        return None
    latest_start = queue.first()[0] - bounds[rows]
    return Plan(0, rows, latest_start) if latest_start >= now else None


def choose(queue: Ordered, rows: int, view: Outlook) -> Plan:
    """The plan for a lane that is not empty, holds that many rows, and whose hopeless heads have been shed."""
    if (everybody := whole(queue, rows, view.bounds, view.now)) is not None:
        return everybody
    head = queue.first()[0]
    reach = min(rows, view.survivable(head - view.now))
    if reach < 1:  # the estimate is not trusted, or the caller did not shed
        return Plan(0, 1, head - view.bounds[1])
    crowd = _Crowd(queue, rows)
    if _keeps_up(reach, view) and drains(queue, crowd.per, view):
        return Plan(0, reach, head - view.bounds[reach])
    largest = crowd.largest(view.now, view)
    if view.share < 1.0 or view.alike or view.demand > _CROWDED * view.best_rate:
        size = _most_efficient(largest, view)
        start = queue.rank(view.now + view.bounds[size])
    else:
        start, size = _look_ahead(crowd, reach, largest, view)
    return Plan(start, size, queue.due_at(start) - view.bounds[size])


def drains(queue: Ordered, per: float, view: Outlook) -> bool:
    """Whether batches that each head survives would lose nobody, nobody else arriving; `per` rows a request."""
    blocks = queue.blocks()
    stretch = 1.0 / view.share
    free = sorted([view.now, *view.others])
    left = len(queue) * per
    at, offset = 0, 0.0
    for _ in range(_STEPS):
        start = free[0]
        rows = view.survivable((blocks[at][int(offset)][0] - start) / stretch)
        if rows < 1:
            return False
        if rows >= left:
            return True
        heapq.heapreplace(free, start + view.means[rows] * stretch)
        left -= rows
        offset += rows / per
        while offset >= len(blocks[at]):
            offset -= len(blocks[at])
            at += 1
            if at == len(blocks):
                return True
    return _rest_drains(blocks[at:], offset, per, free[0], view)


def _rest_drains(blocks: Sequence[Sequence[Entry]], offset: float, per: float, start: float, view: Outlook) -> bool:
    """`drains` for a long queue's end: full batches must reach the end of each block before its first is due."""
    rows = -offset * per
    for block in blocks:
        rows += len(block) * per
        if start + rows / (view.best_rate * view.share) + view.bounds[-1] > block[0][0]:
            return False
    return True


def _keeps_up(rows: int, view: Outlook) -> bool:
    rate = (1 + len(view.others)) * view.share * rows
    return rate >= (_KEEP_UP_ALIKE if view.alike else _KEEP_UP) * view.demand * view.means[rows]


def _most_efficient(largest: int, view: Outlook) -> int:
    """The largest, or the size below it with the most rows a second, if it is better by more than estimates err."""
    sizes = [size for size in view.sizes if size < largest]
    best = max(sizes, key=lambda size: size / (view.means[size] or 1e-9), default=largest)
    return best if best * view.means[largest] > largest * view.means[best] * _CLEARLY else largest


class _Crowd:
    """A queue seen as rows by due time, also with a slice of it gone."""

    __slots__ = ("_end", "_queue", "_requests", "_start", "per")

    def __init__(self, queue: Ordered, rows: int) -> None:
        self._queue = queue
        self._requests = len(queue)
        self._start = self._end = 0
        self.per = rows / self._requests

    def rank(self, due: float) -> int:
        """How many requests are due before that time."""
        return self._queue.rank(due)

    def without(self, start: int, rows: int) -> None:
        """Think these rows, from that rank on, away."""
        self._start, self._end = start, start + int(rows / self.per)

    def rows_due_from(self, due: float) -> float:
        """Rows due at that time or later."""
        rank = self._queue.rank(due)
        return self.per * (self._requests - rank - max(0, self._end - max(self._start, rank)))

    def largest(self, now: float, view: Outlook) -> int:
        """Most rows that survive an execution of just as many, started then."""
        low = 0
        high = min(len(view.bounds) - 1, int((self._requests - self._end + self._start) * self.per + 1e-6))
        while low < high:
            middle = (low + high + 1) // 2
            if self.rows_due_from(now + view.bounds[middle]) >= middle - 1e-6:
                low = middle
            else:
                high = middle - 1
        return low


def _look_ahead(crowd: _Crowd, reach: int, largest: int, view: Outlook) -> tuple[int, int]:
    """Start and rows of the batch after which, with the largest to follow, most are met for the time it takes."""
    price = _PRICE * view.best_rate / (1 + len(view.others))
    best, choice = -1e300, (0, reach)
    for step in range(_BETWEEN + 1):
        rows = reach + (largest - reach) * step // _BETWEEN
        start = 0 if step == 0 else crowd.rank(view.now + view.bounds[rows])
        crowd.without(start, rows)
        then = crowd.largest(view.now + view.means[rows], view)
        score = rows + then - price * (view.means[rows] + view.means[then])
        if score >= best:
            best, choice = score, (start, rows)
    return choice
