"""The two levels as one: this process's memory before the Redis that replicas share.

`Store` serves all models of a server; `CacheOptions` say what one model wants of it.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field
from typing import Final

from server.cache.connect import connect
from server.cache.key import Key
from server.cache.memory import (
    Entry,
    MemoryOptions,
    MemoryStatistics,
    MemoryStore,
    Outputs,
    bookkeeping_of,
    own,
    size_of,
)
from server.cache.redis import RedisOptions, RedisStatistics, RedisStore, Stored
from server.cache.replies import SHARE

NO_SECRET: Final = b"kairos"
"""Well known: keys are as hard to collide as with a secret, but anyone who can write to Redis can forge values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """What one model wants of the cache."""

    ttl_s: float = 3600.0
    """How long an answer is given out. Answers of a changed model are never given out, whatever this says; it bounds
    how long memory is held for models that are gone, and the error of models that are not pure functions."""
    jitter: float = 0.1
    """Each time to live is shortened by up to this share at random, so that answers do not expire together."""
    max_value_bytes: int = 1024 * 1024
    """Answers with more bytes are not remembered."""
    memory: bool = True
    """Whether to use this process's memory, where the server has room set aside."""
    redis: bool = True
    """Whether to use Redis, where the server has one."""
    share_executions: bool = True
    """Whether identical requests in flight share one execution."""
    always: bool = False
    """Whether to go on looking where it does not pay: for quick models whose requests do not repeat, see worth.py."""
    lease_s: float = 0.0
    """Redis only: how long one replica may keep others waiting for an answer that it computes. 0: each replica
    computes for itself. Not worth its extra round trip on each miss unless an execution takes tens of milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """What a server keeps answers in."""

    memory: MemoryOptions = field(default_factory=MemoryOptions)
    """With `size_bytes` 0 nothing is kept in memory. An eighth is for whole replies, see replies.py."""
    redis: RedisOptions | None = None
    secret: bytes = field(default=b"", repr=False)
    """Shared by all who share a Redis, and by nobody else: then keys cannot be guessed, nor values forged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """A snapshot; None for a level that there is not."""

    memory: MemoryStatistics | None
    redis: RedisStatistics | None


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush has deleted. `error` says why Redis, whose names may be gone in part, was not flushed."""

    memory: int
    redis: int
    error: str = ""


class Store:
    """Up to two levels."""

    def __init__(
        self, memory: MemoryStore | None, redis: RedisStore | None, secret: bytes = NO_SECRET, runtime: str = "",
        *, rand: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.secret = secret
        """From which each model's keys are made, and"""
        self.runtime = runtime
        """which is part of them: see `Keys`."""
        self._memory = memory
        self._redis = redis
        self._rand = rand or random.Random()  # noqa: S311 spreads expiries in time, protects nothing

    def __repr__(self) -> str:
        return f"<Store [{self._memory!r} | {self._redis!r}]>"

    def serves(self, options: CacheOptions) -> bool:
        """Whether there is a level that a model with these options would use."""
        return (self._memory is not None and options.memory) or (self._redis is not None and options.redis)

    def shared(self, options: CacheOptions) -> RedisStore | None:
        """The Redis that a model with these options uses."""
        return self._redis if options.redis else None

    def get_nowait(self, key: Key, now: float) -> Outputs | None:
        """From memory."""
        return None if self._memory is None else self._memory.get(key, now)

    def use_nowait(self, key: Key, now: float) -> Entry | None:
        """As `get_nowait`; see MemoryStore.use."""
        return None if self._memory is None else self._memory.use(key, now)

    def promote(self, model: str, key: Key, stored: Stored, options: CacheOptions, now: float) -> None:
        """Keep in memory what was found in Redis, for as long as it still has there."""
        if self._memory is not None and options.memory:
            outputs = tuple([own(tensor) for tensor in stored.outputs])
            self._memory.put(key, model, outputs, size_of(outputs), now + min(stored.left_s, options.ttl_s))

    def put_nowait(
        self, model: str, key: Key, outputs: Outputs, options: CacheOptions, now: float, *, leased: bool = False
    ) -> bool:
        """Remember a new answer at each level that the model uses; False when it is too large."""
        size = size_of(outputs)
        if size - bookkeeping_of(outputs) > options.max_value_bytes:
            if leased and self._redis is not None:
                self._redis.release_nowait(model, key)
            return False
        ttl_s = options.ttl_s * (1.0 - options.jitter * self._rand.random())
        outputs = tuple([own(tensor) for tensor in outputs])
        if self._memory is not None and options.memory:
            self._memory.put(key, model, outputs, size, now + ttl_s)
        if self._redis is not None and options.redis:
            self._redis.put_nowait(model, key, outputs, size, ttl_s, leased=leased)
        return True

    async def flush(self, model: str | None = None) -> Flushed:
        """Forget one model's answers, or all, in this process and in Redis."""
        memory = 0 if self._memory is None else self._memory.drop(model)
        if self._redis is None:
            return Flushed(memory, 0)
        try:
            return Flushed(memory, await self._redis.flush(model))
        except Exception as error:  # noqa: BLE001 an operator wants to read it, whatever it is
            return Flushed(memory, 0, f"{type(error).__name__}: {error}")

    def start(self) -> None:
        """Connect to Redis in the background; on a running event loop."""
        if self._redis is not None:
            self._redis.start()

    async def close(self) -> None:
        """Write what still waits, and let go of Redis."""
        if self._redis is not None:
            await self._redis.close()

    def statistics(self) -> StoreStatistics:
        """A snapshot."""
        return StoreStatistics(
            memory=None if self._memory is None else self._memory.statistics(),
            redis=None if self._redis is None else self._redis.statistics(),
        )


def open_store(options: StoreOptions, runtime: str) -> Store:
    """The levels that the options ask for; connects to nothing yet. Raises ValueError for a bad URL of Redis."""
    size = options.memory.size_bytes
    memory = MemoryStore(MemoryOptions(size_bytes=int(size * (1 - SHARE)))) if size else None
    if options.redis is None:
        # Nobody shares these keys, so nobody needs to be able to make them.
        return Store(memory, None, options.secret or secrets.token_bytes(32), runtime)
    secret = options.secret or NO_SECRET
    connection = connect(options.redis.url, timeout_s=options.redis.timeout_s)
    return Store(memory, RedisStore(connection, options.redis, secret), secret, runtime)
