"""The layer that answers from memory.

Rule: whatever becomes of the cache, a request gets the answer, or the error, that it would get without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from engines.inference import Inference
from engines.request import InferRequest, InferResponse, Origin
from engines.spec import ModelSpec
from server.cache.flight import Flights
from server.cache.key import Key, Keys, cacheable
from server.cache.memory import Entry, Outputs
from server.cache.store import CacheOptions, Store
from server.cache.worth import Worth

Attributes: TypeAlias = Mapping[str, str | int | float | bool]
Note: TypeAlias = Callable[[InferRequest, str, float, float, Attributes], None]
"""Takes a request, what was done for it, from when to when on the event loop's clock, and attributes of that."""

_REDIS: Final[Attributes] = {"db.system.name": "redis"}


class Remembered(NamedTuple):
    """An answer in memory: `entry` is the very object that the store held when it was looked up."""

    key: Key
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """A snapshot for one model version. Each request is counted once."""

    memory_hits: int
    redis_hits: int
    misses: int
    """Executed."""
    shared: int
    """Answered by the execution of an identical request that was in flight."""
    bypassed: int
    """Not looked for: at the caller's wish, or because the request cannot be cached."""
    aside: int
    """Not looked for, since the cache does not pay for this model at present: see worth.py."""
    failed: int
    """Ended with an error or left, neither hit nor answered."""
    too_large: int
    """Misses whose answer was not kept."""
    in_flight: int
    """Executions now under way."""
    hit_s: float
    """Seconds from the look-up to the answer, summed over all hits."""
    miss_s: float
    """Seconds spent on keys, look-ups and storing, summed over all misses."""


class CachedInference:
    """An Inference that remembers the answers of another."""

    def __init__(
        self, inner: Inference, spec: ModelSpec, store: Store, options: CacheOptions, note: Note = lambda *_: None
    ) -> None:
        """Raises ValueError when the spec has no digest. `note` is told what traced requests wait for."""
        self.spec = spec
        self._inner = inner
        self._note = note
        self._store = store
        self._options = options
        self._redis = store.shared(options)
        self._keys = Keys(spec, store.secret, store.runtime)
        self._worth = None if options.always else Worth()
        self._flights = Flights(self._run, None if self._redis is None else self._find)
        self._leased: set[Key] = set()
        self._memory_hits = self._redis_hits = self._misses = self._shared = 0
        self._bypassed = self._aside = self._failed = self._too_large = 0
        self._hit_s = self._miss_s = 0.0

    def __repr__(self) -> str:
        return (
            f"<CachedInference {self.spec.name}:{self.spec.version} "
            f"[hits: {self._memory_hits} memory, {self._redis_hits} redis | misses: {self._misses} "
            f"| shared: {self._shared} | in flight: {len(self._flights)}]>"
        )

    async def infer(self, request: InferRequest) -> InferResponse:
        """See Inference.infer; answers say in `origin` where they came from."""
        if not _cacheable(request):
            self._bypassed += 1
            return await self._inner.infer(request)
        if self._worth is not None and not self._worth.look():
            self._aside += 1
            return await self._inner.infer(request)
        started = time.monotonic()
        key = self._keys.key(request)
        outputs = self._store.get_nowait(key, asyncio.get_running_loop().time())
        now = time.monotonic()
        if request.trace:
            self._note(request, "cache", started, now, {"kairos.cache.hit": outputs is not None})
        if outputs is not None:
            self._memory_hits += 1
            self._hit_s += now - started
            if self._worth is not None:
                self._worth.hit()
            return self._answer(request, outputs)
        self._miss_s += now - started
        return await self._miss(key, request)

    async def _miss(self, key: Key, request: InferRequest) -> InferResponse:
        started = time.monotonic()
        try:
            if self._options.share_executions:
                response = await self._flights.join(key, request)
            else:
                response = await self._find(key, request) or await self._run(key, request)
        except BaseException:
            self._failed += 1
            raise
        match response.origin:
            case Origin.CACHE:
                self._redis_hits += 1
                self._hit_s += time.monotonic() - started
            case Origin.SHARED:
                self._shared += 1
                if request.trace:
                    self._note(request, "cache.wait_for_identical", started, time.monotonic(), {})
            case Origin.ENGINE:
                self._misses += 1
        self._judge(request, response)
        return response

    def _judge(self, request: InferRequest, response: InferResponse) -> None:
        if self._worth is None:
            return
        if response.origin is Origin.ENGINE:
            self._worth.miss(request.rows * response.timings.execute_s / response.timings.batch_rows)
        else:
            self._worth.hit()

    def remembered(self, request: InferRequest) -> Remembered | None:
        """Where the answer to a request is in memory, if it is."""
        key = self._keys.key(request)
        entry = self._store.use_nowait(key, asyncio.get_running_loop().time())
        return None if entry is None else Remembered(key, entry)

    def recall(self, remembered: Remembered, began: float, now: float) -> bool:
        """Whether that answer still stands; if so, it is counted as a hit of a request that began then."""
        if self._store.use_nowait(remembered.key, now) is not remembered.entry:
            return False
        self._memory_hits += 1
        self._hit_s += now - began
        if self._worth is not None:
            self._worth.hit()
        return True

    def statistics(self) -> CacheStatistics:
        """A snapshot."""
        return CacheStatistics(
            memory_hits=self._memory_hits, redis_hits=self._redis_hits, misses=self._misses, shared=self._shared,
            bypassed=self._bypassed, aside=self._aside, failed=self._failed, too_large=self._too_large,
            in_flight=len(self._flights), hit_s=self._hit_s, miss_s=self._miss_s,
        )  # fmt: skip

    async def _find(self, key: Key, request: InferRequest) -> InferResponse | None:
        """Ask Redis; with leases, also wait for another replica's answer."""
        if self._redis is None:
            return None
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        model = self.spec.name
        stored = await self._redis.look_up(model, key, request.deadline - loop.time())
        if request.trace:
            told = {**_REDIS, "db.operation.name": "MGET", "kairos.cache.hit": stored is not None}
            self._note(request, "redis MGET", started, time.monotonic(), told)
        if stored is None and self._options.lease_s > 0.0:
            asked = time.monotonic()
            lease = await self._redis.lease(model, key, request.deadline - loop.time(), self._options.lease_s)
            if request.trace:
                told = {**_REDIS, "kairos.cache.hit": not isinstance(lease, bool)}
                self._note(request, "redis lease", asked, time.monotonic(), told)
            if lease is True:
                self._leased.add(key)
            elif lease is not False:
                stored = lease
        if stored is None:
            self._miss_s += time.monotonic() - started
            return None
        self._store.promote(model, key, stored, self._options, loop.time())
        return self._answer(request, stored.outputs)

    async def _run(self, key: Key, request: InferRequest) -> InferResponse:
        try:
            response = await self._inner.infer(request)
            started = time.monotonic()
            leased = key in self._leased
            self._leased.discard(key)
            now = asyncio.get_running_loop().time()
            kept = self._store.put_nowait(self.spec.name, key, response.outputs, self._options, now, leased=leased)
            self._too_large += not kept
            self._miss_s += time.monotonic() - started
            return response
        finally:
            if key in self._leased and self._redis is not None:
                self._leased.discard(key)
                self._redis.release_nowait(self.spec.name, key)

    def _answer(self, request: InferRequest, outputs: Outputs) -> InferResponse:
        return InferResponse(
            model=self.spec.name, version=self.spec.version, outputs=outputs, id=request.id, origin=Origin.CACHE
        )


def _cacheable(request: InferRequest) -> bool:
    """Whether the answer may come from memory, or go there.

    Not when an input may still change: a client can write to shared memory while its request runs, and then the
    answer would be to another question than its key says. Only such inputs come as writable views.
    """
    if request.placed is not None:
        return False
    for tensor in request.inputs:
        data = tensor.data
        if tensor.device is not None or not (isinstance(data, bytes) or data.readonly):
            return False
    return cacheable(request.parameters)
