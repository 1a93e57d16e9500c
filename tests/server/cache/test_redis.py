"""Both levels together, over a Redis in a dictionary; tests/integration/test_redis.py has a real one."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from engines.errors import DeadlineExceeded, EngineFailed
from engines.request import Origin
from server.cache.breaker import State
from server.cache.cached import CachedInference
from server.cache.key import Keys
from server.cache.memory import MemoryOptions, MemoryStore
from server.cache.redis import RedisOptions, RedisStore
from server.cache.store import CacheOptions, Flushed, Store
from tests.server.cache.support import SPEC, ControlledInference, FakeConnection, data_of, request, turns
from tests.support.virtual_time import scenario

SECRET = b"secret"


class Replica:
    """One server process."""

    def __init__(
        self, connection: FakeConnection, *, memory: bool = True, at_once: bool = True, **options: object
    ) -> None:
        self.wall = 5000.0
        self.redis = RedisStore(
            connection, RedisOptions(url=""), SECRET, rand=random.Random(1), wall=lambda: self.wall
        )  # fmt: skip
        level = MemoryStore(MemoryOptions(size_bytes=100_000)) if memory else None
        self.store = Store(level, self.redis, SECRET, rand=random.Random(1))
        self.inner = ControlledInference(at_once=at_once)
        self.cached = CachedInference(self.inner, SPEC, self.store, CacheOptions(**options))  # type: ignore[arg-type]

    async def ask(self, data: bytes = b"abc", deadline: float = math.inf) -> tuple[bytes, Origin]:
        response = await self.cached.infer(request(data, deadline=deadline))
        return data_of(response), response.origin


@scenario
async def test_replicas_share_answers() -> None:
    connection = FakeConnection()
    one, other = Replica(connection), Replica(connection)
    assert await one.ask() == (b"abcabc", Origin.ENGINE)
    await one.redis.wait_written()
    assert await other.ask() == (b"abcabc", Origin.CACHE)
    assert await other.ask() == (b"abcabc", Origin.CACHE)
    statistics = other.cached.statistics()
    assert (statistics.redis_hits, statistics.memory_hits, statistics.misses) == (1, 1, 0)
    assert not other.inner.asked


@scenario
async def test_names_and_leases_can_be_told_from_others() -> None:
    connection = FakeConnection()
    replica = Replica(connection)
    await replica.ask()
    await replica.redis.wait_written()
    (name,) = connection.data
    assert name.startswith(b"kairos:1:double:")
    assert len(name) == len(b"kairos:1:double:") + 32
    assert 0 < connection.ttls_ms[name] <= 3_600_000


@scenario
async def test_memory_forgets_when_redis_would_have() -> None:
    connection = FakeConnection()
    one, other = Replica(connection, ttl_s=100.0, jitter=0.0), Replica(connection, ttl_s=100.0, jitter=0.0)
    await one.ask()
    await one.redis.wait_written()
    other.wall += 60.0
    await other.ask()
    connection.data.clear()
    await asyncio.sleep(39.0)
    assert (await other.ask())[1] is Origin.CACHE
    await asyncio.sleep(2.0)
    assert (await other.ask())[1] is Origin.ENGINE
    await other.redis.wait_written()


@scenario
async def test_a_value_past_its_time_is_a_miss() -> None:
    connection = FakeConnection()
    one, other = Replica(connection), Replica(connection)
    await one.ask()
    await one.redis.wait_written()
    other.wall += 3601.0
    assert (await other.ask())[1] is Origin.ENGINE
    assert other.redis.statistics().expired == 1
    await other.redis.wait_written()


@scenario
async def test_spoiled_values_are_misses_and_counted() -> None:
    connection = FakeConnection()
    replica = Replica(connection, memory=False)
    await replica.ask(b"abc")
    await replica.ask(b"xyz")
    await replica.redis.wait_written()
    first, second = connection.data
    for spoiled in (connection.data[second], connection.data[first][:-1], b"", b"cos\nsystem\n(S'true'\ntR."):
        connection.data[first] = spoiled
        assert await replica.ask(b"abc") == (b"abcabc", Origin.ENGINE)
        await asyncio.sleep(0)
        await replica.redis.wait_written()
    assert replica.redis.statistics().corrupted == 4


@scenario
async def test_identical_requests_look_up_and_execute_once() -> None:
    connection = FakeConnection()
    replica = Replica(connection)
    answers = await asyncio.gather(*(replica.ask() for _ in range(20)))
    assert [origin for _, origin in answers] == [Origin.ENGINE] + [Origin.SHARED] * 19
    assert len(connection.trips) == 1
    await replica.redis.wait_written()
    other = Replica(connection)
    answers = await asyncio.gather(*(other.ask() for _ in range(20)))
    assert {origin for _, origin in answers} == {Origin.CACHE}
    assert other.cached.statistics().redis_hits == 20


@scenario
async def test_the_most_urgent_of_those_who_came_during_the_look_up_gives_its_deadline() -> None:
    connection = FakeConnection()
    connection.delay_s = 0.001
    replica = Replica(connection)
    now = asyncio.get_running_loop().time()
    await asyncio.gather(*(replica.ask(deadline=now + left_s) for left_s in (9.0, 2.0, 5.0)))
    assert [asked.deadline for asked in replica.inner.asked] == [now + 2.0]
    await replica.store.close()


@scenario
async def test_a_broken_redis_costs_nothing_but_its_hits() -> None:
    connection = FakeConnection()
    connection.fails = ConnectionRefusedError("nobody there")
    replica = Replica(connection, memory=False)
    replica.store.start()
    for number in range(50):
        assert await replica.ask(bytes([number])) == (bytes([number]) * 2, Origin.ENGINE)
    statistics = replica.redis.statistics()
    assert statistics.lookups.breaker is State.OPEN
    assert statistics.lookups.failed + statistics.lookups.skipped == 50
    await replica.redis.wait_written()
    await replica.store.close()
    assert connection.closed


@scenario
async def test_flushing_one_model_spares_the_others() -> None:
    connection = FakeConnection()
    replica = Replica(connection)
    for data in (b"a", b"b"):
        await replica.ask(data)
    await replica.redis.wait_written()
    foreign = {
        b"kairos:lease:double:x": b"0",
        b"other:1:double:x": b"1",
        b"kairos:1:double2:x": b"2",
        b"kairos:1:dou%5B:x": b"3",
    }
    connection.data |= foreign
    assert await replica.store.flush("dou*") == Flushed(0, 0)
    assert await replica.store.flush("double") == Flushed(2, 2)
    assert connection.data == foreign
    assert (await replica.ask(b"a"))[1] is Origin.ENGINE
    await replica.redis.wait_written()
    assert await replica.store.flush() == Flushed(1, 3)
    assert set(connection.data) == {b"other:1:double:x", b"kairos:lease:double:x"}


@scenario
async def test_a_flush_that_redis_refuses_says_so() -> None:
    connection = FakeConnection()
    replica = Replica(connection)
    await replica.ask()
    await replica.redis.wait_written()
    connection.refuses = PermissionError("NOPERM")
    assert await replica.store.flush() == Flushed(1, 0, "PermissionError: NOPERM")
    connection.fails = ConnectionResetError("gone")
    assert (await replica.store.flush()).error == "ConnectionResetError: gone"


@scenario
async def test_with_a_lease_replicas_execute_once_between_them() -> None:
    connection = FakeConnection()
    one = Replica(connection, at_once=False, lease_s=1.0)
    other = Replica(connection, lease_s=1.0)
    first = asyncio.ensure_future(one.ask())
    await turns()
    second = asyncio.ensure_future(other.ask())
    await asyncio.sleep(0.1)
    assert not second.done()
    one.inner.finish()
    assert await first == (b"abcabc", Origin.ENGINE)
    assert await second == (b"abcabc", Origin.CACHE)
    assert not other.inner.asked
    assert other.redis.statistics().leases_awaited == 1
    assert [name for name in connection.data if b":lease:" in name] == []


@scenario
async def test_a_lease_is_given_back_when_the_execution_fails_or_everyone_leaves() -> None:
    for failure in (EngineFailed("broken"), None):
        connection = FakeConnection()
        one = Replica(connection, at_once=False, lease_s=60.0)
        other = Replica(connection, lease_s=60.0)
        first = asyncio.ensure_future(one.ask())
        await turns()
        second = asyncio.ensure_future(other.ask())
        await turns()
        started = asyncio.get_running_loop().time()
        if failure is None:
            first.cancel()
        else:
            one.inner.fail(failure)
        await asyncio.wait({first})
        with pytest.raises((EngineFailed, asyncio.CancelledError)):
            first.result()
        assert await second == (b"abcabc", Origin.ENGINE)
        assert asyncio.get_running_loop().time() - started < 0.1
        await other.redis.wait_written()


@scenario
async def test_nobody_waits_for_a_lease_past_half_of_the_time_left() -> None:
    connection = FakeConnection()
    one = Replica(connection, at_once=False, lease_s=60.0)
    other = Replica(connection, lease_s=60.0)
    first = asyncio.ensure_future(one.ask())
    await turns()
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await other.ask(deadline=started + 1.0) == (b"abcabc", Origin.ENGINE)
    assert loop.time() - started <= 0.5
    one.inner.finish()
    await first
    await one.redis.wait_written()
    await other.redis.wait_written()


@scenario
async def test_one_in_a_hurry_does_not_wait_for_a_lease_that_the_patient_waits_for() -> None:
    connection = FakeConnection()
    one = Replica(connection, at_once=False, lease_s=60.0)
    other = Replica(connection, at_once=False, lease_s=60.0)
    first = asyncio.ensure_future(one.ask())
    await turns()
    loop = asyncio.get_running_loop()
    now = loop.time()
    patient = asyncio.ensure_future(other.ask(deadline=now + 100.0))
    await asyncio.sleep(0.1)
    urgent = asyncio.ensure_future(other.ask(deadline=now + 1.1))
    await asyncio.sleep(0.4)
    assert not other.inner.asked
    await asyncio.sleep(0.2)
    assert [asked.deadline for asked in other.inner.asked] == [now + 1.1]
    other.inner.finish()
    assert await asyncio.gather(urgent, patient) == [(b"abcabc", Origin.ENGINE), (b"abcabc", Origin.SHARED)]
    one.inner.finish()
    await first
    for replica in (one, other):
        await replica.redis.wait_written()


@scenario
async def test_one_in_a_hurry_is_told_at_its_deadline_while_the_patient_waits_for_a_lease() -> None:
    connection = FakeConnection()
    one = Replica(connection, at_once=False, lease_s=1.0)
    other = Replica(connection, at_once=False, lease_s=1.0)
    first = asyncio.ensure_future(one.ask())
    await turns()
    now = asyncio.get_running_loop().time()
    patient = asyncio.ensure_future(other.ask(deadline=now + 100.0))
    await asyncio.sleep(0.1)
    urgent = asyncio.ensure_future(other.ask(deadline=now + 0.5))
    with pytest.raises(DeadlineExceeded):
        await urgent
    assert asyncio.get_running_loop().time() == pytest.approx(now + 0.5)
    await asyncio.sleep(1.0)  # the look-up for the lease has ended without starting another execution
    assert len(other.inner.asked) == 1
    other.inner.finish()
    assert await patient == (b"abcabc", Origin.SHARED)
    one.inner.finish()
    await first
    for replica in (one, other):
        await replica.redis.wait_written()


@scenario
async def test_a_lease_that_redis_does_not_grant_in_time_is_done_without() -> None:
    connection = FakeConnection()
    replica = Replica(connection, lease_s=1.0)
    connection.delay_s = 0.05
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert (await replica.ask())[1] is Origin.ENGINE
    assert loop.time() - started <= 0.0045
    await asyncio.sleep(0.1)
    await replica.store.close()


def test_the_key_names_are_those_of_the_secret() -> None:
    assert Keys(SPEC, SECRET).key(request()) != Keys(SPEC, b"another").key(request())
