"""The server's event loop has a clock that phases of microseconds can be read from."""

from __future__ import annotations

import asyncio
import gc
import time

from server.loop import new_event_loop, spare_collector


def test_the_clock_moves_within_a_turn_and_is_the_monotonic_one() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        loop = runner.get_loop()

        async def readings() -> tuple[set[float], float, float, float]:
            several = {loop.time() for _ in range(1000)}
            return several, time.monotonic(), loop.time(), time.monotonic()

        several, before, here, after = runner.run(readings())
    assert len(several) > 10
    assert before <= here <= after


def test_timers_never_fire_a_whole_millisecond_early() -> None:
    """libuv's timers count whole milliseconds; half of one is what rounding may take away."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        loop = runner.get_loop()

        async def wait_until(when: float) -> float:
            woken = asyncio.Event()
            loop.call_at(when, woken.set)
            await woken.wait()
            return loop.time()

        for delay_s in (0.0021, 0.0034, 0.0056):
            when = loop.time() + delay_s
            assert runner.run(wait_until(when)) >= when - 0.001


def test_what_is_there_is_no_business_of_the_collector() -> None:
    there = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    spare_collector()
    try:
        assert gc.get_freeze_count() > len(there)
        assert not any(found is there[0] for found in gc.get_objects())
    finally:
        gc.unfreeze()
