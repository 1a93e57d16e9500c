"""Whole answers, by the very bytes of the requests that they answer: a repeated request is not even parsed.

Rule: nothing here reads a clock, awaits, locks or logs. Nothing is believed for being here: whoever takes a reply asks
the cache proper whether the answer that it was made from still stands.
Promise: what is held, bookkeeping included, never exceeds the bound; the least recently used leaves first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

ENTRY_BYTES: Final = 500
"""Bookkeeping of one reply."""
SHARE: Final = 1 / 8
"""Of the memory that is set aside for answers; the rest holds what replies are believed by."""
MOST_BYTES: Final = 16 * 1024
"""Larger requests and answers take so long to read and write that parsing them hardly shows."""


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """What was answered, and `source`, which says whether it still holds."""

    raw: bytes
    message: bytes
    source: T


class Replies(Generic[T]):
    """A dictionary with a bound. Requests are compared as a whole, so that no collision can mix them up."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._replies: OrderedDict[bytes, Reply[T]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._replies)

    def __repr__(self) -> str:
        return f"<Replies [{len(self._replies)} | bytes: {self._bytes} of {self._limit}]>"

    def get(self, raw: bytes) -> Reply[T] | None:
        """What these bytes were answered with the last time."""
        if not self._replies or len(raw) > MOST_BYTES:  # hashing is not free
            return None
        reply = self._replies.get(raw)
        if reply is not None:
            self._replies.move_to_end(raw)
        return reply

    def put(self, raw: bytes, message: bytes, source: T) -> None:
        """Remember an answer, unless it or its request is large."""
        if max(len(raw), len(message)) > MOST_BYTES:
            return
        self.drop(raw)
        self._replies[raw] = Reply(raw, message, source)
        self._bytes += ENTRY_BYTES + len(raw) + len(message)
        while self._bytes > self._limit:
            self.drop(next(iter(self._replies)))

    def drop(self, raw: bytes) -> None:
        """Forget what these bytes were answered with, if anything."""
        reply = self._replies.pop(raw, None)
        if reply is not None:
            self._bytes -= ENTRY_BYTES + len(reply.raw) + len(reply.message)
