"""Lookups: gathered by turns of the loop, within a budget, and silent about every fault."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from server.cache.breaker import BreakerOptions, State
from server.cache.lookups import PROBE_NAME, LookupOptions, Lookups
from tests.server.cache.support import FakeConnection, turns
from tests.support.virtual_time import scenario

BREAKER = BreakerOptions(failures=3, min_pause_s=1.0)


def lookups(**options: object) -> tuple[Lookups, FakeConnection]:
    connection = FakeConnection()
    given = LookupOptions(breaker=BREAKER, **options)  # type: ignore[arg-type]
    return Lookups(connection, given, random.Random(1)), connection


async def break_it(asked: Lookups, connection: FakeConnection) -> None:
    connection.fails = ConnectionResetError("gone")
    for _ in range(3):
        assert await asked.get(b"a", math.inf) is None
    connection.fails = None


@scenario
async def test_one_turn_of_the_loop_is_one_trip() -> None:
    asked, connection = lookups()
    connection.data = {b"a": b"1", b"c": b"3"}
    values = await asyncio.gather(*(asked.get(name, math.inf) for name in (b"a", b"b", b"c")))
    assert values == [b"1", None, b"3"]
    assert connection.trips == [(b"a", b"b", b"c")]
    await asked.get(b"c", math.inf)
    assert connection.trips[1:] == [(b"c",)]
    statistics = asked.statistics()
    assert (statistics.found, statistics.absent, statistics.trips, statistics.latency.count) == (3, 1, 2, 4)


@scenario
async def test_trips_are_bounded_in_size_and_number_and_the_next_one_gathers() -> None:
    asked, connection = lookups(trips=1, names_per_trip=2, budget_s=1.0)
    connection.delay_s = 0.1
    calls = [asyncio.ensure_future(asked.get(b"%d" % number, math.inf)) for number in range(5)]
    await turns()
    assert repr(asked) == "<Lookups [closed | trips: 1 out | names: 3 waiting]>"
    await asyncio.gather(*calls)
    assert [len(trip) for trip in connection.trips] == [2, 2, 1]


@scenario
async def test_nobody_waits_longer_than_the_budget() -> None:
    asked, connection = lookups(budget_s=0.002)
    connection.data[b"a"] = b"1"
    loop = asyncio.get_running_loop()
    for delay_s, left_s, waited_s in ((0.0019, 1.0, 0.0019), (0.1, 1.0, 0.002), (0.1, 0.005, 0.0005)):
        connection.delay_s = delay_s
        started = loop.time()
        value = await asked.get(b"a", left_s)
        assert loop.time() - started == pytest.approx(waited_s, abs=1e-6)
        assert value == (b"1" if delay_s < 0.002 else None)
    statistics = asked.statistics()
    assert (statistics.found, statistics.late) == (1, 2)
    await asked.close()


@scenario
async def test_no_time_left_is_not_even_tried() -> None:
    asked, connection = lookups()
    for left_s in (0.0, -1.0):
        assert await asked.get(b"a", left_s) is None
    assert asked.statistics().skipped == 2
    assert not connection.trips


@scenario
async def test_an_answer_that_already_lies_in_the_socket_is_not_given_up() -> None:
    asked, connection = lookups(budget_s=0.002)
    connection.data[b"a"] = b"1"

    async def mget_when_the_loop_was_busy(names: object) -> list[bytes]:
        await asyncio.sleep(0.002)  # the timer of the budget and this one are due in the same turn
        await turns(1)
        return [b"1"]

    connection.mget = mget_when_the_loop_was_busy  # type: ignore[method-assign,assignment]
    assert await asked.get(b"a", math.inf) == b"1"


@scenario
async def test_every_fault_is_a_miss_for_all_who_asked() -> None:
    for fault in (ConnectionResetError("reset"), TimeoutError(), ValueError("nonsense")):
        asked, connection = lookups()
        connection.fails = fault
        assert await asyncio.gather(*(asked.get(b"%d" % number, math.inf) for number in range(3))) == [None] * 3
        assert asked.statistics().failed == 3


@scenario
async def test_answers_that_cannot_belong_to_the_questions_are_a_fault() -> None:
    asked, connection = lookups()

    async def out_of_step(names: object) -> list[bytes]:
        return [b"1", b"2"]

    connection.mget = out_of_step  # type: ignore[method-assign,assignment]
    assert await asked.get(b"a", math.inf) is None
    assert asked.statistics().failed == 1


@scenario
async def test_after_some_failures_it_is_not_asked_any_more() -> None:
    asked, connection = lookups()
    await break_it(asked, connection)
    trips = len(connection.trips)
    assert await asked.get(b"a", math.inf) is None
    assert len(connection.trips) == trips
    assert asked.statistics().breaker is State.OPEN
    assert asked.budget_s(math.inf) == 0.0


@scenario
async def test_a_probe_is_waited_for_by_nobody_and_closes_the_breaker() -> None:
    asked, connection = lookups()
    connection.data[b"a"] = b"1"
    await break_it(asked, connection)
    connection.delay_s = 0.001
    await asyncio.sleep(1.0)
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await asked.get(b"a", math.inf) is None
    assert loop.time() == started
    await asyncio.sleep(0.01)
    assert connection.trips[-1] == (PROBE_NAME,)
    assert asked.statistics().breaker is State.CLOSED
    assert await asked.get(b"a", math.inf) == b"1"


@scenario
async def test_a_slow_redis_is_no_better_than_none() -> None:
    asked, connection = lookups()
    connection.delay_s = 0.05
    for _ in range(3):
        await asked.get(b"a", math.inf)
    assert asked.statistics().breaker is State.OPEN
    await asyncio.sleep(1.0)
    await asked.get(b"a", math.inf)
    await asyncio.sleep(0.2)
    assert asked.statistics().breaker is State.OPEN
    assert asked.statistics().late == 3


@scenario
async def test_one_request_in_a_hurry_is_not_redis_fault() -> None:
    asked, connection = lookups()
    connection.delay_s = 0.001
    for _ in range(10):
        assert await asked.get(b"a", 0.005) is None
    statistics = asked.statistics()
    assert (statistics.late, statistics.breaker) == (10, State.CLOSED)
    await asyncio.sleep(0.1)


@scenario
async def test_who_leaves_disturbs_nobody() -> None:
    asked, connection = lookups()
    connection.data = {b"a": b"1", b"b": b"2"}
    leaver = asyncio.ensure_future(asked.get(b"a", math.inf))
    other = asyncio.ensure_future(asked.get(b"b", math.inf))
    await asyncio.sleep(0)
    leaver.cancel()
    assert await other == b"2"
    assert connection.trips == [(b"b",)]


@scenario
async def test_closing_ends_all_trips() -> None:
    asked, connection = lookups(budget_s=10.0, trips=1)
    connection.delay_s = 5.0
    calls = [asyncio.ensure_future(asked.get(b"a", math.inf)) for _ in range(2)]
    await turns()
    late = asyncio.ensure_future(asked.get(b"b", math.inf))
    await turns()
    await asked.close()
    assert await asyncio.gather(*calls, late) == [None] * 3


@scenario
async def test_starting_connects_and_survives_that_nobody_is_there() -> None:
    asked, connection = lookups()
    connection.fails = ConnectionRefusedError()
    asked.start()
    await turns()
    assert connection.pings == 1
