"""A sorted sequence of waiting requests, cut into blocks so that no operation touches them all.

Rule: entries are (due, seq, pending); `seq` is unique, so pendings are never compared.
Cost: adding and removing take a binary search and move at most one block (512 pointers); a rank is a binary search
and one length per block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, TypeAlias

from engines.scheduling.report import Pending

Entry: TypeAlias = tuple[float, int, Pending]

_MOST: Final = 512
"""Entries in a block before it is split: moving this many pointers costs less than one more level of search."""
_FEW: Final = _MOST // 8
"""A block smaller than this joins its neighbour."""


class Ordered:
    """Entries by due time, then arrival."""

    __slots__ = ("_blocks", "_lasts", "_size")

    def __init__(self) -> None:
        self._blocks: list[list[Entry]] = []
        self._lasts: list[Entry] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(self._blocks)

    def add(self, entry: Entry) -> None:
        """Insert an entry whose (due, seq) is not in yet."""
        self._size += 1
        if not self._blocks:
            self._blocks.append([entry])
            self._lasts.append(entry)
            return
        at = min(bisect_left(self._lasts, entry), len(self._blocks) - 1)
        block = self._blocks[at]
        insort(block, entry)
        if len(block) > _MOST:
            middle = len(block) // 2
            self._blocks[at : at + 1] = [block[:middle], block[middle:]]
            self._lasts[at : at + 1] = [block[middle - 1], block[-1]]
        else:
            self._lasts[at] = block[-1]

    def remove(self, due: float, seq: int) -> None:
        """Take out the entry of this due time and sequence number; KeyError when there is none."""
        at = bisect_left(self._lasts, (due, seq))
        if at == len(self._blocks):
            raise KeyError((due, seq))
        block = self._blocks[at]
        place = bisect_left(block, (due, seq))
        if block[place][:2] != (due, seq):
            raise KeyError((due, seq))
        del block[place]
        self._size -= 1
        self._tidy(at)

    def first(self) -> Entry:
        """The entry due first; IndexError when there is none."""
        return self._blocks[0][0]

    def rank(self, due: float) -> int:
        """How many entries are due before that time."""
        at = bisect_left(self._lasts, (due,))
        before = sum(map(len, self._blocks[:at]))
        return before if at == len(self._blocks) else before + bisect_left(self._blocks[at], (due,))

    def due_at(self, rank: int) -> float:
        """Due time of the entry with that many before it."""
        return next(self.walk(rank))[0]

    def walk(self, start: int) -> Iterator[Entry]:
        """The entries from rank `start` on."""
        at, offset = self._locate(start)
        return islice(chain.from_iterable(self._blocks[at:]), offset, None)

    def pop(self, start: int, count: int) -> list[Entry]:
        """Take out `count` entries from rank `start` on."""
        taken: list[Entry] = []
        at, offset = self._locate(start)
        while len(taken) < count and at < len(self._blocks):
            block = self._blocks[at]
            piece = block[offset : offset + count - len(taken)]
            del block[offset : offset + len(piece)]
            taken += piece
            self._size -= len(piece)
            if block:
                self._lasts[at] = block[-1]
                at += 1
            else:
                del self._blocks[at], self._lasts[at]
            offset = 0
        if at > 0:
            self._tidy(at - 1)
        return taken

    def blocks(self) -> list[list[Entry]]:
        """The blocks themselves, for readers that walk fast; not to be changed."""
        return self._blocks

    def _locate(self, rank: int) -> tuple[int, int]:
        for at, block in enumerate(self._blocks):
            if rank < len(block):
                return at, rank
            rank -= len(block)
        return len(self._blocks), 0

    def _tidy(self, at: int) -> None:
        """Drop block `at` when it is empty, or join it to its neighbour when it is small."""
        block = self._blocks[at]
        if not block:
            del self._blocks[at], self._lasts[at]
            return
        self._lasts[at] = block[-1]
        if len(block) < _FEW and at + 1 < len(self._blocks) and len(self._blocks[at + 1]) < _MOST - _FEW:
            self._blocks[at : at + 2] = [block + self._blocks[at + 1]]
            del self._lasts[at]
