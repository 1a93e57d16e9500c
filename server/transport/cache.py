"""The RPCs of kairos.v1.Cache: what the response cache holds, and emptying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from server.cache.breaker import State
from server.cache.memory import MemoryStatistics
from server.cache.redis import RedisStatistics
from server.cache.store import Store
from server.pb import cache_pb2 as pb
from server.pb.cache_pb2_grpc import CacheServicer
from server.transport.model import ServedModel

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Cache"].full_name

_STATES: Final[Mapping[State, pb.BreakerState]] = {
    State.CLOSED: pb.CLOSED,
    State.OPEN: pb.OPEN,
    State.PROBING: pb.PROBING,
}


class Served(Protocol):
    """The loaded versions."""

    def served(self) -> Sequence[ServedModel]: ...


class CacheService(CacheServicer):
    """Answers for one server process."""

    def __init__(self, store: Store, models: Served) -> None:
        self._store = store
        self._models = models

    async def Statistics(self, request: pb.CacheStatisticsRequest, context: Any) -> pb.CacheStatisticsResponse:
        """Counters of each model, and the state of each level."""
        snapshot = self._store.statistics()
        return pb.CacheStatisticsResponse(
            models=[
                _model(model)
                for model in self._models.served()
                if model.cache is not None and request.model in ("", model.spec.name)
            ],
            memory=None if snapshot.memory is None else _memory(snapshot.memory),
            redis=None if snapshot.redis is None else _redis(snapshot.redis),
        )

    async def Flush(self, request: pb.CacheFlushRequest, context: Any) -> pb.CacheFlushResponse:
        """Forget one model's answers, or all; also of models that are not loaded any more."""
        flushed = await self._store.flush(request.model or None)
        return pb.CacheFlushResponse(memory=flushed.memory, redis=flushed.redis, redis_error=flushed.error)


def _model(model: ServedModel) -> pb.CachedModel:
    assert model.cache is not None
    counted = model.cache.statistics()
    return pb.CachedModel(
        name=model.spec.name, version=str(model.spec.version),
        memory_hits=counted.memory_hits, redis_hits=counted.redis_hits, misses=counted.misses, shared=counted.shared,
        bypassed=counted.bypassed, failed=counted.failed, too_large=counted.too_large, aside=counted.aside,
    )  # fmt: skip


def _memory(level: MemoryStatistics) -> pb.MemoryLevel:
    return pb.MemoryLevel(
        entries=level.entries, size_bytes=level.size_bytes, limit_bytes=level.limit_bytes,
        evictions=level.evictions, expirations=level.expirations,
    )  # fmt: skip


def _redis(level: RedisStatistics) -> pb.RedisLevel:
    lookups, writes = level.lookups, level.writes
    return pb.RedisLevel(
        found=lookups.found, absent=lookups.absent, late=lookups.late, failed=lookups.failed, skipped=lookups.skipped,
        corrupted=level.corrupted, expired=level.expired, leases_awaited=level.leases_awaited,
        lookups=_STATES[lookups.breaker],
        lookup_p50_seconds=lookups.latency.percentile_s(0.5), lookup_p99_seconds=lookups.latency.percentile_s(0.99),
        written=writes.written, write_failed=writes.failed, write_dropped=writes.dropped,
        write_queued_bytes=writes.queued_bytes, writes=_STATES[writes.breaker],
    )  # fmt: skip
