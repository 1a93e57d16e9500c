"""From readings to deliveries, over failures and new starts, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pytest

from engines.errors import Overloaded
from server.watch import trigger_runner as room
from server.watch.readings import Reading
from server.watch.trigger_actions import NotDelivered
from server.watch.trigger_file import LogOptions, RetryOptions, TriggerOptions
from server.watch.trigger_runner import Triggers, back_off_s
from server.watch.trigger_state import Status, TriggerStore, read_deliveries
from server.watch.triggers import Event, Rule

RETRY = RetryOptions(attempts=3, timeout_s=1.0, first_wait_s=1.0, max_wait_s=8.0)
OPTIONS = TriggerOptions(
    rules=(Rule(name="r", signal="drift", above=0.5, actions=("tell",)),), actions={"tell": LogOptions(retry=RETRY)}
)


class Telling:
    """An action that fails as often as it is told to."""

    def __init__(self, *faults: Exception) -> None:
        self.retry = RETRY
        self.faults = list(faults)
        self.told: list[str] = []
        self.blocked: asyncio.Event | None = None
        self.started = asyncio.Event()

    async def deliver(self, event: Event) -> None:
        self.told.append(event.id)
        self.started.set()
        if self.blocked is not None:
            await self.blocked.wait()
        if self.faults:
            raise self.faults.pop(0)


class Process:
    """A server with triggers, that may be killed; the clock goes on while it sleeps."""

    def __init__(self, state: Path, action: Telling, options: TriggerOptions = OPTIONS) -> None:
        self.waits: list[float] = []
        self.now = 1000.0
        self.triggers = Triggers(options, state, clock=lambda: self.now, chance=random.Random(1))
        self.triggers._actions = {"tell": action}

    async def __aenter__(self) -> Self:
        self.triggers.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.triggers.close(5.0)

    async def look(self, at: float, value: float) -> None:
        self.now = max(self.now, at)
        await self.triggers.evaluate({("m", 1): [Reading("drift", value, False, 10, at)]})

    async def settle(self) -> None:
        while self.triggers._tasks:
            await asyncio.wait(self.triggers._tasks)

    def kill(self) -> None:
        """What is in memory is gone, and so is the lock."""
        for task in self.triggers._tasks:
            task.cancel()
        self.triggers._threads.shutdown()
        self.triggers._store.close()


def run(main: Coroutine[Any, Any, None], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run it with sleeps that take no time; their lengths."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def nap(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", nap)
    asyncio.run(main)
    return [wait for wait in waits if wait > 0]


def test_a_failed_delivery_is_tried_again_with_growing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = Telling(NotDelivered("no"), ValueError("unforeseen"))

    async def main() -> None:
        async with Process(tmp_path, action) as process:
            await process.look(1.0, 0.9)
            await process.look(2.0, 0.9)
            await process.settle()
            found = process.triggers.statistics()
            assert found.events == {("r", "m", 1): 1}
            assert found.raised == {("r", "m", 1): True}
            assert found.attempts == {("tell", "failed"): 2, ("tell", "delivered"): 1}
            assert found.pending == 0

    waits = run(main(), monkeypatch)
    assert len(set(action.told)) == 1
    assert len(action.told) == 3
    assert 0.5 <= waits[0] <= 1.0
    assert 1.0 <= waits[1] <= 2.0
    (delivery,) = read_deliveries(tmp_path)
    assert (delivery.status, delivery.attempts) == (Status.DELIVERED, 3)


@pytest.mark.parametrize("faults", [[NotDelivered("no")] * 3, [NotDelivered("gone", final=True)]])
def test_it_is_given_up_in_the_end(faults: list[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = Telling(*faults)

    async def main() -> None:
        async with Process(tmp_path, action) as process:
            await process.look(1.0, 0.9)
            await process.settle()

    run(main(), monkeypatch)
    assert len(action.told) == len(faults)
    assert read_deliveries(tmp_path)[0].status is Status.GIVEN_UP
    assert read_deliveries(tmp_path)[0].error in ("no", "gone")


def test_a_killed_process_leaves_the_delivery_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = Telling()

    async def main() -> None:
        action.blocked = asyncio.Event()
        process = Process(tmp_path, action)
        process.triggers.open()
        await process.look(1.0, 0.9)
        await action.started.wait()
        process.kill()
        action.blocked = None
        async with Process(tmp_path, action) as again:
            await again.look(2.0, 0.9)  # still raised: no second event
            await again.settle()
        async with Process(tmp_path, action) as third:
            await third.settle()
            await third.look(3.0, 0.1)
            await third.look(4.0, 0.9)
            await third.settle()
        assert third.triggers.statistics().events == {("r", "m", 1): 1}

    run(main(), monkeypatch)
    assert len(action.told) == 3
    assert action.told[0] == action.told[1] != action.told[2]


def test_the_end_of_a_drain_does_not_wait_for_what_is_far_off(tmp_path: Path) -> None:
    async def main() -> None:
        action = Telling(NotDelivered("no"))
        async with Process(tmp_path, action) as process:
            await process.look(1.0, 0.9)
            await action.started.wait()  # the next attempt is seconds away
        assert read_deliveries(tmp_path)[0].status is Status.PENDING

    asyncio.run(main())


def test_an_attempt_that_hangs_is_left_to_the_next_process(tmp_path: Path) -> None:
    async def main() -> None:
        action = Telling()
        action.blocked = asyncio.Event()
        process = Process(tmp_path, action)
        process.triggers.open()
        await process.look(1.0, 0.9)
        await action.started.wait()
        assert await process.triggers.close(0.01)
        assert read_deliveries(tmp_path)[0].status is Status.PENDING

    asyncio.run(main())


def test_what_cannot_be_saved_leads_to_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = Telling()

    async def main() -> None:
        async with Process(tmp_path, action) as process:
            with monkeypatch.context() as patch:

                def full(*_: object) -> Future[None]:
                    raise Overloaded("the disk is slow")

                patch.setattr(TriggerStore, "save", full)
                await process.look(1.0, 0.9)
            assert process.triggers.statistics().failures == 1
            assert not action.told
            await process.look(1.0, 0.9)
            await process.settle()

    run(main(), monkeypatch)
    assert len(action.told) == 1


def test_too_many_deliveries_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_PENDING", 0)
    action = Telling()

    async def main() -> None:
        async with Process(tmp_path, action) as process:
            await process.look(1.0, 0.9)
            assert process.triggers.statistics().attempts == {("tell", "given_up"): 1}

    run(main(), monkeypatch)
    assert not action.told


def test_an_action_that_left_the_file_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        process = Process(tmp_path, Telling())
        process.triggers.open()
        process.triggers._room = asyncio.Semaphore(0)
        await process.look(1.0, 0.9)
        process.kill()
        other = TriggerOptions(rules=OPTIONS.rules, actions={})
        async with Process(tmp_path, Telling(), other) as again:
            again.triggers._actions = {}
            again.triggers._start(again.triggers._store.pending[0])
            await again.settle()

    run(main(), monkeypatch)
    assert read_deliveries(tmp_path)[0].error == "there is no such action any more"


def test_a_state_directory_has_one_server(tmp_path: Path) -> None:
    store = TriggerStore(tmp_path)
    store.open()
    with pytest.raises(OSError, match="another server acts on the triggers"):
        TriggerStore(tmp_path).open()
    store.close()
    again = TriggerStore(tmp_path)
    again.open()
    assert again.origin == store.origin
    again.close()


def test_waits_double_up_to_a_bound() -> None:
    assert [back_off_s(RETRY, attempts, 1.0) for attempts in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 8, 8]
    assert back_off_s(RETRY, 3, 0.0) == 2.0
