"""EnginePool and its workers: opening, failing, dying, being replaced, closing."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

import pytest

from engines import pool as pool_module
from engines.backends.fake import FakeEngine, fake_spec
from engines.engine import Engine
from engines.errors import EngineDied, EngineHung
from engines.pool import EnginePool, PoolStatistics
from engines.watchdog import HungEngines, Patience, Watch
from engines.worker import Job, Outcome
from tests.support.fakes import Gate, until
from tests.support.virtual import ask, run_virtual

SPEC = fake_spec()
JOB = Job((ask("a", (1, 2)),), 2, ("y",))


class Engines:
    """Opens engines, and remembers them; the n-th opening raises what `failing` has for n, counted from 1."""

    def __init__(self, failing: dict[int, Exception] | None = None, **options: object) -> None:
        self.opened: list[FakeEngine] = []
        self.threads: list[int] = []
        self._failing = failing or {}
        self._options = options
        self._attempts = 0
        self._lock = threading.Lock()

    def __call__(self) -> Engine:
        with self._lock:
            self._attempts += 1
            attempt = self._attempts
        if attempt in self._failing:
            raise self._failing[attempt]
        self.threads.append(threading.get_ident())
        self.opened.append(FakeEngine(SPEC, **self._options))  # type: ignore[arg-type]
        return self.opened[-1]


async def outcome_of(pool: EnginePool) -> Outcome:
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pool.submit(JOB, done.set_result)
    return await done


@pytest.fixture
def no_thread_is_left() -> Callable[[], None]:
    before = set(threading.enumerate())

    def check() -> None:
        for thread in set(threading.enumerate()) - before:
            thread.join(30)  # it may still be on its last lines
            assert not thread.is_alive(), thread

    return check


def test_each_engine_has_a_thread_of_its_own_and_is_closed_there(no_thread_is_left: Callable[[], None]) -> None:
    async def main() -> None:
        engines = Engines()
        pool = EnginePool(engines, 3, "fake")
        await pool.open()
        assert repr(pool) == "<EnginePool fake [engines: 0 busy, 3 idle]>"
        assert len({*engines.threads, threading.get_ident()}) == 4
        assert (await outcome_of(pool)).error is None
        await pool.close()
        assert all(engine.closed for engine in engines.opened)

    asyncio.run(main())
    no_thread_is_left()


def test_one_engine_that_does_not_open_closes_the_others(no_thread_is_left: Callable[[], None]) -> None:
    async def main() -> None:
        engines = Engines({2: RuntimeError("no memory")})
        with pytest.raises(RuntimeError, match="no memory"):
            await EnginePool(engines, 3, "fake").open()
        assert len(engines.opened) == 2
        assert all(engine.closed for engine in engines.opened)

    asyncio.run(main())
    no_thread_is_left()


def test_the_outcome_says_how_long_it_took_and_the_engine_is_idle_by_then() -> None:
    async def main() -> None:
        gate = Gate(shut=True)
        pool = EnginePool(Engines(before=gate), 1, "fake")
        await pool.open()
        done: asyncio.Future[tuple[Outcome, bool]] = asyncio.get_running_loop().create_future()
        pool.submit(JOB, lambda outcome: done.set_result((outcome, pool.has_idle)))
        await gate.wait_arrival()
        assert pool.statistics() == PoolStatistics(busy=1, idle=0, missing=0, replaced=0)
        assert not pool.has_idle
        gate.open()
        outcome, idle = await done
        assert idle
        assert outcome.outputs is not None
        assert outcome.outputs["y"].tolist() == [[2] * 4, [4] * 4]
        assert outcome.execute_s > 0
        await pool.close()

    asyncio.run(main())


def test_a_failure_keeps_the_engine_and_a_death_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "FIRST_RETRY_S", 0.001)

    async def main() -> None:
        engines = Engines({2: RuntimeError("not yet"), 3: RuntimeError("not yet")}, fails_on={1}, dies_on=2)
        pool = EnginePool(engines, 1, "fake")
        await pool.open()
        failed = await outcome_of(pool)
        assert str(failed.error) == "told to fail on execution 1"
        assert not failed.died
        freed = asyncio.Event()
        pool.freed = freed.set
        dead = await outcome_of(pool)
        assert isinstance(dead.error, EngineDied)
        assert pool.statistics().missing == 1
        assert repr(pool) == "<EnginePool fake [engines: 0 busy, 0 idle, 1 missing]>"
        await freed.wait()
        assert pool.statistics() == PoolStatistics(busy=0, idle=1, missing=0, replaced=1)
        assert engines.opened[0].closed
        await pool.close()

    asyncio.run(main())


def test_closing_waits_for_the_running_job(no_thread_is_left: Callable[[], None]) -> None:
    async def main() -> None:
        gate = Gate(shut=True)
        engines = Engines(before=gate)
        pool = EnginePool(engines, 1, "fake")
        await pool.open()
        done: list[Outcome] = []
        pool.submit(JOB, done.append)
        await gate.wait_arrival()
        closing = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.open()
        await closing
        assert len(done) == 1
        assert engines.opened[0].closed

    asyncio.run(main())
    no_thread_is_left()


def test_closing_while_a_replacement_is_on_its_way_leaves_no_thread_behind(
    no_thread_is_left: Callable[[], None],
) -> None:
    async def main() -> None:
        slow, entered = threading.Event(), threading.Event()
        opened: list[FakeEngine] = []

        def open_engine() -> Engine:
            if opened:
                entered.set()
                slow.wait(30)
            opened.append(FakeEngine(SPEC, dies_on=1))
            return opened[-1]

        pool = EnginePool(open_engine, 1, "fake")
        await pool.open()
        await outcome_of(pool)
        await asyncio.to_thread(entered.wait, 30)
        closing = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        slow.set()
        await closing
        await until(lambda: len(opened) == 2 and opened[1].closed)

    asyncio.run(main())
    no_thread_is_left()


def test_giving_up_an_opening_leaves_no_thread_behind(no_thread_is_left: Callable[[], None]) -> None:
    async def main() -> None:
        slow, entered = threading.Event(), threading.Event()
        opened: list[FakeEngine] = []

        def open_engine() -> Engine:
            entered.set()
            slow.wait(30)
            opened.append(FakeEngine(SPEC))
            return opened[-1]

        opening = asyncio.ensure_future(EnginePool(open_engine, 1, "fake").open())
        await asyncio.to_thread(entered.wait, 30)
        opening.cancel()
        await asyncio.sleep(0)
        slow.set()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: opened and opened[0].closed)

    asyncio.run(main())
    no_thread_is_left()


class Clocks:
    """Engines that hang at a gate, in a pool with a watchdog, in virtual time."""

    def __init__(self, patience: Patience, expected_s: float = 0.0, count: int = 1) -> None:
        self.gate = Gate(shut=True)
        self.engines = Engines(before=self.gate)
        self.alarms: list[int] = []
        self.hung = HungEngines(patience, lambda: self.alarms.append(self.hung.count))
        self.pool = EnginePool(self.engines, count, "fake", watch=Watch(self.hung, lambda _: expected_s))
        self.loop = asyncio.get_running_loop()

    def submit(self) -> asyncio.Future[Outcome]:
        done: asyncio.Future[Outcome] = self.loop.create_future()
        self.pool.submit(JOB, done.set_result)
        return done

    async def run(self) -> Outcome:
        """Submit a job and see its end while time stands still."""
        done = self.submit()
        await until(done.done)
        return done.result()


def test_an_execution_that_hangs_is_given_up_and_its_engine_replaced(no_thread_is_left: Callable[[], None]) -> None:
    async def main() -> None:
        clocks = Clocks(Patience(floor_s=60))
        pool, gate, engines = clocks.pool, clocks.gate, clocks.engines
        await pool.open()
        freed = asyncio.Event()
        pool.freed = freed.set
        began = clocks.loop.time()
        outcome = await clocks.submit()
        assert isinstance(outcome.error, EngineHung)
        assert outcome.died
        assert str(outcome.error) == "an execution of 2 row(s) had not ended after 60.0 s"
        assert clocks.loop.time() == pytest.approx(began + 60)
        assert repr(pool) == "<EnginePool fake [engines: 0 busy, 0 idle, 1 missing | 1 hung]>"
        await freed.wait()
        assert pool.statistics() == PoolStatistics(busy=0, idle=1, missing=0, replaced=1, hung=1)
        assert not clocks.alarms
        gate.open()
        assert (await clocks.run()).error is None
        await until(lambda: engines.opened[0].closed and not pool.statistics().hung)
        assert pool.statistics() == PoolStatistics(busy=0, idle=1, missing=0, replaced=1, hung=0)
        assert clocks.hung.count == 0
        await pool.close()

    run_virtual(main)
    no_thread_is_left()


def test_an_execution_may_take_many_times_what_it_is_expected_to() -> None:
    async def main() -> None:
        clocks = Clocks(Patience(floor_s=1, factor=20), expected_s=5.0)
        await clocks.pool.open()
        began = clocks.loop.time()
        assert isinstance((await clocks.submit()).error, EngineHung)
        assert clocks.loop.time() == pytest.approx(began + 100)
        clocks.gate.open()
        await clocks.pool.close()

    run_virtual(main)


def test_the_watchdog_has_one_timer_while_engines_work_and_none_when_they_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        clocks = Clocks(Patience(floor_s=10), count=2)
        looks: list[float] = []
        look = clocks.pool._look
        monkeypatch.setattr(clocks.pool, "_look", lambda: (looks.append(clocks.loop.time()), look()))
        clocks.gate.open()
        await clocks.pool.open()
        for _ in range(50):
            await asyncio.gather(clocks.run(), clocks.run())
        assert clocks.pool._alarm is not None
        began = clocks.loop.time()
        await asyncio.sleep(30)
        assert looks == [pytest.approx(began + 10)]
        assert clocks.pool._alarm is None
        await clocks.run()
        assert clocks.pool._alarm is not None
        await clocks.pool.close()

    run_virtual(main)


def test_beyond_what_the_process_bears_the_alarm_goes_off_and_nothing_is_replaced_until_one_comes_back() -> None:
    async def main() -> None:
        clocks = Clocks(Patience(floor_s=10, max_hung=1))
        pool = clocks.pool
        await pool.open()
        await clocks.submit()
        await until(lambda: pool.has_idle)
        assert not clocks.alarms
        await clocks.submit()
        assert clocks.alarms == [2]
        assert pool.statistics() == PoolStatistics(busy=0, idle=0, missing=1, replaced=1, hung=2)
        clocks.gate.open(1)
        await until(lambda: pool.has_idle)
        assert pool.statistics() == PoolStatistics(busy=0, idle=1, missing=0, replaced=2, hung=1)
        clocks.gate.open()
        await pool.close()

    run_virtual(main)


def test_closing_does_not_wait_for_what_was_given_up() -> None:
    async def main() -> None:
        clocks = Clocks(Patience(floor_s=10))
        await clocks.pool.open()
        await clocks.submit()
        await clocks.pool.close()
        clocks.gate.open()
        await until(lambda: clocks.engines.opened[0].closed)

    run_virtual(main)


def test_without_a_bound_nothing_is_given_up() -> None:
    async def main() -> None:
        clocks = Clocks(Patience(floor_s=math.inf))
        await clocks.pool.open()
        done = clocks.submit()
        await asyncio.sleep(1e6)
        assert not done.done()
        clocks.gate.open()
        assert (await done).error is None
        await clocks.pool.close()

    run_virtual(main)
