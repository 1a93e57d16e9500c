"""WriteQueue: in the background, bounded, and silent about every fault."""

from __future__ import annotations

import asyncio
import random

from engines.tensor import DType, Tensor
from server.cache.breaker import BreakerOptions, State
from server.cache.key import Key
from server.cache.memory import size_of
from server.cache.value import Values
from server.cache.writes import Answer, WriteOptions, WriteQueue
from tests.server.cache.support import FakeConnection, turns
from tests.support.virtual_time import scenario

KEY = Key(b"k" * 32)
VALUES = Values(b"secret", 1 << 20)


def answer(name: bytes = b"a", size: int = 10, lease: bytes | None = None) -> Answer:
    outputs = (Tensor("OUT", DType.UINT8, (size,), bytes(size)),)
    return Answer(name, KEY, outputs, size_of(outputs), 60.0, lease)


def queue(**options: object) -> tuple[WriteQueue, FakeConnection]:
    connection = FakeConnection()
    given = WriteOptions(breaker=BreakerOptions(failures=2, min_pause_s=1.0), **options)  # type: ignore[arg-type]
    return WriteQueue(connection, VALUES, given, rand=random.Random(1), wall=lambda: 5000.0), connection


@scenario
async def test_writes_gather_and_leave_together_with_their_time_to_live() -> None:
    writes, connection = queue()
    for name in (b"a", b"b"):
        assert writes.put_nowait(answer(name))
    await asyncio.sleep(0.003)
    assert writes.put_nowait(answer(b"c"))
    assert not connection.writes
    await writes.wait_empty()
    assert [[write.name for write in trip] for trip in connection.writes] == [[b"a", b"b", b"c"]]
    assert connection.ttls_ms[b"a"] == 60_000
    outputs, expires = VALUES.decode(KEY, connection.data[b"a"])
    assert (bytes(outputs[0].data), expires) == (bytes(10), 5060.0)
    assert writes.statistics().written == 3
    assert repr(writes) == "<WriteQueue [closed | waiting: 0, 0 bytes]>"


@scenario
async def test_what_does_not_fit_is_dropped_and_counted() -> None:
    writes, _ = queue(max_entries=2)
    assert [writes.put_nowait(answer()) for _ in range(3)] == [True, True, False]
    await writes.wait_empty()
    assert writes.put_nowait(answer())
    await writes.wait_empty()
    assert (writes.statistics().written, writes.statistics().dropped) == (3, 1)
    writes, _ = queue(max_bytes=answer().size_bytes + 1)
    assert [writes.put_nowait(answer()) for _ in range(2)] == [True, False]
    await writes.wait_empty()


@scenario
async def test_trips_are_bounded() -> None:
    writes, connection = queue(entries_per_trip=2)
    for number in range(5):
        writes.put_nowait(answer(b"%d" % number))
    await writes.wait_empty()
    assert [len(trip) for trip in connection.writes] == [2, 2, 1]


@scenario
async def test_large_values_are_sealed_in_a_thread() -> None:
    writes, connection = queue()
    writes.put_nowait(answer(size=500_000))
    await writes.wait_empty()
    assert VALUES.decode(KEY, connection.data[b"a"])[0][0].shape == (500_000,)


@scenario
async def test_a_lease_is_given_back_with_the_answer_or_without() -> None:
    writes, connection = queue()
    connection.data = {b"a!": b"token", b"b!": b"token"}
    writes.put_nowait(answer(b"a", lease=b"a!"))
    writes.put_nowait(Answer(b"b", KEY, None, size_of(()), lease=b"b!"))
    await writes.wait_empty()
    assert set(connection.data) == {b"a"}


@scenario
async def test_a_full_redis_is_counted_then_left_alone_then_probed() -> None:
    writes, connection = queue()
    connection.refuses = MemoryError("OOM command not allowed")
    for _ in range(2):
        writes.put_nowait(answer())
        await writes.wait_empty()
    statistics = writes.statistics()
    assert (statistics.failed, statistics.breaker) == (2, State.OPEN)
    assert not writes.put_nowait(answer())
    assert writes.statistics().dropped == 1
    await asyncio.sleep(1.0)
    connection.refuses = None
    assert writes.put_nowait(answer())
    await writes.wait_empty()
    assert writes.statistics().breaker is State.CLOSED
    assert b"a" in connection.data


@scenario
async def test_a_broken_connection_loses_the_trip_and_nothing_else() -> None:
    writes, connection = queue()
    connection.fails = ConnectionResetError("gone")
    for name in (b"a", b"b"):
        writes.put_nowait(answer(name))
    await writes.wait_empty()
    connection.fails = None
    writes.put_nowait(answer(b"c"))
    await writes.wait_empty()
    assert set(connection.data) == {b"c"}
    assert (writes.statistics().failed, writes.statistics().written) == (2, 1)


@scenario
async def test_what_waits_when_the_breaker_opens_is_dropped() -> None:
    writes, connection = queue(entries_per_trip=1)
    connection.fails = ConnectionResetError("gone")
    for _ in range(5):
        writes.put_nowait(answer())
    await writes.wait_empty()
    assert (writes.statistics().failed, writes.statistics().dropped) == (2, 3)


@scenario
async def test_closing_drops_the_rest() -> None:
    writes, connection = queue()
    writes.put_nowait(answer())
    await turns()
    await writes.close()
    assert (writes.statistics().dropped, writes.statistics().queued_bytes) == (1, 0)
    assert not connection.writes
