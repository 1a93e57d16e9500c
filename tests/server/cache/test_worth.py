"""Worth: a cache that does not pay steps aside, and comes back for what repeats."""

from __future__ import annotations

import random

import pytest

from engines.request import Origin
from server.cache.cached import CachedInference
from server.cache.memory import MemoryOptions, MemoryStore
from server.cache.store import CacheOptions, Store
from server.cache.worth import LEAST_HITS, PERIOD, PROBE, SLOW_S, WINDOW, Worth
from tests.server.cache.support import SPEC, ControlledInference, request
from tests.support.virtual_time import scenario

QUICK_S = SLOW_S / 10


def aside() -> Worth:
    worth = Worth()
    for _ in range(WINDOW):
        assert worth.look()
        worth.miss(QUICK_S)
    return worth


def test_without_hits_a_quick_model_is_looked_for_now_and_then_only() -> None:
    worth = aside()
    assert repr(worth) == "<Worth [aside | hits: 0 | misses: 0]>"
    assert sum(worth.look() for _ in range(10 * PERIOD)) == 10 * PROBE


def test_one_hit_brings_it_back() -> None:
    worth = aside()
    worth.hit()
    assert all(worth.look() for _ in range(PERIOD))


@pytest.mark.parametrize(("hits", "execute_s"), [(LEAST_HITS, QUICK_S), (0, 1.1 * SLOW_S)], ids=["repeats", "slow"])
def test_what_repeats_enough_or_takes_long_is_always_looked_for(hits: int, execute_s: float) -> None:
    worth = Worth()
    for _ in range(5):
        for number in range(WINDOW):
            assert worth.look()
            worth.hit() if number < hits else worth.miss(execute_s)


@scenario
async def test_requests_go_past_a_cache_that_is_aside_and_repetition_is_noticed() -> None:
    inner = ControlledInference(at_once=True)
    store = Store(MemoryStore(MemoryOptions(size_bytes=10_000_000)), None, rand=random.Random(1))
    cached = CachedInference(inner, SPEC, store, CacheOptions())
    for number in range(3 * WINDOW):
        await cached.infer(request(number.to_bytes(4, "big")))
    counted = cached.statistics()
    assert counted.misses + counted.aside == 3 * WINDOW
    assert counted.misses < WINDOW + 3 * WINDOW // 16
    origins = [(await cached.infer(request(b"again"))).origin for _ in range(2 * PERIOD)]
    assert origins[-100:] == [Origin.CACHE] * 100


@scenario
async def test_whoever_wants_it_is_always_looked_for() -> None:
    inner = ControlledInference(at_once=True)
    store = Store(MemoryStore(MemoryOptions(size_bytes=10_000_000)), None, rand=random.Random(1))
    cached = CachedInference(inner, SPEC, store, CacheOptions(always=True))
    for number in range(WINDOW + PERIOD):
        await cached.infer(request(number.to_bytes(4, "big")))
    assert cached.statistics().aside == 0
