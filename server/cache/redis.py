"""Answers shared by all replicas, through Redis.

Rule: whatever happens to Redis, a request sees at worst a miss, within the budget; starting needs no Redis.

Names are `<namespace>:1:<model>:` and the 32 bytes of the key, the model percent-encoded; leases have `lease` in place
of `1`. Everything has a time to live.
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from server.cache.connection import Connection, Write
from server.cache.key import Key
from server.cache.lookups import LookupOptions, Lookups, LookupStatistics
from server.cache.memory import Outputs, size_of
from server.cache.value import Corrupted, Values
from server.cache.writes import Answer, WriteOptions, WriteQueue, WriteStatistics

_FLUSH_BATCH: Final = 500
_FIRST_POLL_S: Final = 0.002
_LAST_POLL_S: Final = 0.032
"""A replica that waits for another's answer asks after 2 ms, then half as often each time down to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """How to use Redis."""

    url: str = field(repr=False)
    """See `server.cache.connect`."""
    namespace: str = "kairos"
    """Begins every name: servers that are to share answers have the same, others on the same Redis another."""
    timeout_s: float = 1.0
    """Bound on connecting and on each command; requests wait for the look-up budget at most."""
    max_value_bytes: int = 16 * 1024 * 1024
    """Larger values are not unpacked, whoever wrote them; models have limits of their own for what is written."""
    lookups: LookupOptions = field(default_factory=LookupOptions)
    writes: WriteOptions = field(default_factory=WriteOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStatistics:
    """A snapshot."""

    lookups: LookupStatistics
    writes: WriteStatistics
    corrupted: int
    """Found, but truncated, altered, sealed with another secret or of an unknown layout: misses."""
    expired: int
    """Found past their own time."""
    leases_awaited: int
    """Misses that waited for another replica's answer."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What Redis had."""

    outputs: Outputs
    left_s: float
    """Until it expires."""


class RedisStore:
    """The level that replicas share."""

    def __init__(
        self, connection: Connection, options: RedisOptions, secret: bytes,
        *, rand: random.Random | None = None, wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        rand = rand or random.Random()  # noqa: S311 spreads probes in time, protects nothing
        self._connection = connection
        self._namespace = options.namespace
        self._values_in = f"{options.namespace}:1:".encode()
        self._leases_in = f"{options.namespace}:lease:".encode()
        self._wall = wall
        self._values = Values(secret, options.max_value_bytes)
        self._lookups = Lookups(connection, options.lookups, rand)
        self._writes = WriteQueue(connection, self._values, options.writes, rand=rand, wall=wall)
        self._timeout_s = options.timeout_s
        self._prefixes: dict[str, bytes] = {}
        self._corrupted = self._expired = self._leases_awaited = 0

    def __repr__(self) -> str:
        return f"<RedisStore {self._namespace} [{self._lookups!r} | {self._writes!r}]>"

    def start(self) -> None:
        """Connect in the background; on a running event loop."""
        self._lookups.start()

    async def close(self) -> None:
        """Write what still waits, for a second at most, then let go."""
        await asyncio.wait({asyncio.ensure_future(self._writes.wait_empty())}, timeout=self._timeout_s)
        await self._writes.close()
        await self._lookups.close()
        await self._connection.close()

    async def look_up(self, model: str, key: Key, left_s: float) -> Stored | None:
        """What is stored under this key, if Redis says so in time; `left_s`: until the request's deadline."""
        return self._open(key, await self._lookups.get(self._name(model, key), left_s))

    def put_nowait(
        self, model: str, key: Key, outputs: Outputs, size: int, ttl_s: float, *, leased: bool = False
    ) -> bool:
        """Have it written, and the lease given back; False when it was dropped at once. For `size` see `size_of`."""
        name = self._name(model, key)
        return self._writes.put_nowait(Answer(name, key, outputs, size, ttl_s, self._lease(name) if leased else None))

    def release_nowait(self, model: str, key: Key) -> None:
        """Give a lease back without an answer."""
        name = self._name(model, key)
        self._writes.put_nowait(Answer(name, key, None, size_of(()), lease=self._lease(name)))

    async def lease(self, model: str, key: Key, left_s: float, lease_s: float) -> Stored | bool:
        """The sole right to compute this answer for so long, or another replica's answer if it has that right.

        Returns what the other replica stored; or True when the lease is ours; or False when Redis did not say in
        time, or the other one failed or took too long: then compute without a lease.
        """
        name = self._name(model, key)
        acquired = await self._acquire(self._lease(name), left_s, lease_s)
        if acquired is not False:
            return bool(acquired)
        self._leases_awaited += 1
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + min(lease_s, left_s / 2)
        pause_s = _FIRST_POLL_S
        while loop.time() + pause_s < give_up_at:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_POLL_S)
            value, lease = await asyncio.gather(
                self._lookups.get(name, left_s), self._lookups.get(self._lease(name), left_s)
            )
            if stored := self._open(key, value):
                return stored
            if lease is None:
                break
        return False

    async def flush(self, model: str | None = None) -> int:
        """Delete the answers of one model, or all of this namespace; returns how many. Raises what Redis raises."""
        prefix = self._values_in if model is None else self._prefix(model)
        deleted = 0
        batch: list[Write] = []
        async for name in self._connection.scan(_literally(prefix) + b"*"):
            batch.append(Write(name, None))
            deleted += 1
            if len(batch) >= _FLUSH_BATCH:
                await self._delete(batch)
                batch = []
        await self._delete(batch)
        return deleted

    def statistics(self) -> RedisStatistics:
        """A snapshot."""
        return RedisStatistics(
            lookups=self._lookups.statistics(), writes=self._writes.statistics(), corrupted=self._corrupted,
            expired=self._expired, leases_awaited=self._leases_awaited,
        )  # fmt: skip

    async def wait_written(self) -> None:
        """Until all that waits to be written now has been."""
        await self._writes.wait_empty()

    def _open(self, key: Key, value: bytes | None) -> Stored | None:
        if value is None:
            return None
        try:
            outputs, expires = self._values.decode(key, value)
        except Corrupted:
            self._corrupted += 1
            return None
        left_s = expires - self._wall()
        if left_s <= 0.0:
            self._expired += 1
            return None
        return Stored(outputs, left_s)

    async def _acquire(self, lease: bytes, left_s: float, lease_s: float) -> bool | None:
        """Whether the lease is ours; None when Redis did not say within the budget."""
        budget_s = self._lookups.budget_s(left_s)
        if budget_s <= 0.0:
            return None
        # Left running when it is late, as a look-up is: an interrupted command would cost its connection.
        adding = asyncio.ensure_future(self._connection.add(lease, b"1", int(lease_s * 1000)))
        adding.add_done_callback(_consume)
        done, _ = await asyncio.wait({adding}, timeout=budget_s)
        if not done or adding.cancelled() or adding.exception() is not None:
            return None
        return adding.result()

    async def _delete(self, batch: list[Write]) -> None:
        if not batch:
            return
        for outcome in await self._connection.write(batch):
            if outcome is not None:
                raise outcome

    def _name(self, model: str, key: Key) -> bytes:
        return (self._prefixes.get(model) or self._prefix(model)) + key

    def _lease(self, name: bytes) -> bytes:
        return self._leases_in + name[len(self._values_in) :]

    def _prefix(self, model: str) -> bytes:
        prefix = self._values_in + f"{urllib.parse.quote(model, safe='')}:".encode()
        self._prefixes[model] = prefix
        return prefix


def _literally(text: bytes) -> bytes:
    """The text as a pattern that matches nothing else."""
    for special in (b"\\", b"*", b"?", b"[", b"]"):
        text = text.replace(special, b"\\" + special)
    return text


def _consume(task: asyncio.Future[bool]) -> None:
    """Look at the outcome, so that a fault that nobody waits for any more is no complaint in the log."""
    if not task.cancelled():
        task.exception()
