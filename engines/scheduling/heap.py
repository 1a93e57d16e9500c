"""A heap from which requests may also leave in the middle."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, TypeAlias

from engines.scheduling.report import Pending

_MIN_DEAD: Final = 64
"""Heaps with fewer dead entries than this are not worth tidying."""

Urgency: TypeAlias = tuple[bool, float, int]
"""(is past its queue timeout, due, seq): lower goes first."""


class Heap:
    """Entries whose request no longer waits are skipped when they surface."""

    __slots__ = ("_dead", "_items")

    def __init__(self) -> None:
        self._items: list[tuple[Urgency, Pending]] = []
        self._dead = 0

    def __iter__(self) -> Iterator[Pending]:
        return (pending for _, pending in self._items if pending.waiting)

    def push(self, urgency: Urgency, pending: Pending) -> None:
        """Add an entry."""
        heapq.heappush(self._items, (urgency, pending))

    def head(self) -> tuple[Urgency, Pending] | None:
        """The most urgent entry that still waits."""
        items = self._items
        while items:
            if items[0][1].waiting:
                return items[0]
            heapq.heappop(items)
            self._dead -= 1
        return None

    def replace_head(self, urgency: Urgency, pending: Pending) -> None:
        """Put the head at another place; only right after `head` returned it."""
        heapq.heapreplace(self._items, (urgency, pending))

    def left(self) -> None:
        """Some entry has stopped waiting: count it, and tidy once the dead outnumber the living."""
        self._dead += 1
        if self._dead > _MIN_DEAD and 2 * self._dead > len(self._items):
            self._items = [item for item in self._items if item[1].waiting]
            heapq.heapify(self._items)
            self._dead = 0
