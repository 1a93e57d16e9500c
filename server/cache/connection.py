"""What the cache asks of Redis, whichever way it gets there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol


class Write(NamedTuple):
    """One change: set `name` for so long, or delete it when there is no value."""

    name: bytes
    value: bytes | None
    ttl_ms: int = 0


class Connection(Protocol):
    """Any exception means: this did not work."""

    async def ping(self) -> None:
        """Find out whether it is there."""
        ...

    async def mget(self, names: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of these names, in order."""
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[Exception | None]:
        """Send all in one go; tells for each whether it failed."""
        ...

    async def add(self, name: bytes, value: bytes, ttl_ms: int) -> bool:
        """Set unless it is there; whether it was set."""
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[bytes]:
        """The names that match."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...
