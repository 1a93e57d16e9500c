"""Metrics of the response cache, where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from server.telemetry.families import MODEL, Series, counter, gauge


class ModelCache(Protocol):
    """What a cache says of one model version: requests, each counted once, and seconds."""

    @property
    def memory_hits(self) -> int: ...
    @property
    def redis_hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def shared(self) -> int: ...
    @property
    def bypassed(self) -> int: ...
    @property
    def aside(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def too_large(self) -> int: ...
    @property
    def hit_s(self) -> float: ...
    @property
    def miss_s(self) -> float: ...


class StoreStatistics(Protocol):
    """What is kept, and where; None for a level that there is not."""

    @property
    def memory(self) -> Any: ...  # noqa: ANN401  (read field by field below)
    @property
    def redis(self) -> Any: ...  # noqa: ANN401


RESULTS: Final = ("memory_hits", "redis_hits", "misses", "shared", "bypassed", "aside", "failed")
_LOOKUPS: Final = ("found", "absent", "late", "failed", "skipped")
_WRITES: Final = ("written", "failed", "dropped")


def cache_metrics(
    models: Iterable[tuple[str, int, ModelCache]], store: StoreStatistics | None = None
) -> Iterator[Metric]:
    """Hits and misses of (model, version, statistics), and the state of what they share."""
    rows = [((name, str(version)), found) for name, version, found in models]
    results: list[Series] = [((*labels, each), getattr(found, each)) for labels, found in rows for each in RESULTS]
    yield counter("kairos_cache_requests", "Requests by what the cache did.", results, (*MODEL, "result"))
    hits = [(labels, found.hit_s) for labels, found in rows]
    yield counter("kairos_cache_hit_seconds", "Seconds from look-up to answer of all hits.", hits, MODEL)
    misses = [(labels, found.miss_s) for labels, found in rows]
    large = [(labels, found.too_large) for labels, found in rows]
    yield counter("kairos_cache_too_large", "Answers that were too large to be remembered.", large, MODEL)
    yield counter("kairos_cache_miss_seconds", "Seconds that the cache cost all misses.", misses, MODEL)
    if store is not None and store.memory is not None:
        yield from _memory(store.memory)
    if store is not None and store.redis is not None:
        yield from _redis(store.redis)


def _memory(now: Any) -> Iterator[Metric]:  # noqa: ANN401
    yield gauge("kairos_cache_entries", "Answers kept in this process.", [((), now.entries)])
    yield gauge("kairos_cache_bytes", "Bytes of these.", [((), now.size_bytes)])
    yield gauge("kairos_cache_limit_bytes", "Most bytes that may be kept.", [((), now.limit_bytes)])
    yield counter("kairos_cache_evictions", "Answers that left to make room.", [((), now.evictions)])
    yield counter("kairos_cache_expirations", "Answers found past their time.", [((), now.expirations)])


def _redis(now: Any) -> Iterator[Metric]:  # noqa: ANN401
    lookups: list[Series] = [((each,), getattr(now.lookups, each)) for each in _LOOKUPS]
    yield counter("kairos_redis_lookups", "Look-ups in Redis by their end.", lookups, ("result",))
    writes: list[Series] = [((each,), getattr(now.writes, each)) for each in _WRITES]
    yield counter("kairos_redis_writes", "Writes to Redis by their end.", writes, ("result",))
    yield counter("kairos_redis_trips", "MGETs sent.", [((), now.lookups.trips)])
    sides: list[Series] = [
        ((side,), each.breaker.value != "closed") for side, each in (("lookups", now.lookups), ("writes", now.writes))
    ]
    yield gauge("kairos_redis_breaker_open", "1 while Redis is left alone for a while.", sides, ("side",))
    yield _latency(now.lookups.latency)
    yield counter("kairos_redis_corrupted", "Answers from Redis that could not be used.", [((), now.corrupted)])
    yield gauge("kairos_redis_queued_bytes", "Bytes that wait to be written.", [((), now.writes.queued_bytes)])


def _latency(observed: Any) -> Metric:  # noqa: ANN401
    bounds = (*map(floatToGoString, observed.bounds_s), "+Inf")
    buckets = list(zip(bounds, itertools.accumulate(observed.buckets), strict=True))
    family = HistogramMetricFamily("kairos_redis_lookup_seconds", "Time of answered look-ups in Redis.")
    family.add_metric((), buckets, sum_value=observed.total_s)
    return family
