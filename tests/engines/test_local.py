"""LocalInference: each request ends exactly once, whatever becomes of its neighbours, its caller and its engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from engines.backends.fake import FakeEngine, fake_spec
from engines.engine import Engine
from engines.errors import DeadlineExceeded, Draining, EngineDied, EngineFailed, EngineHung, InferError, Overloaded
from engines.local import LocalInference
from engines.pool import EnginePool
from engines.request import InferRequest, InferResponse
from engines.scheduling.policy import Limits, QueuePolicy, TimeoutAction
from engines.scheduling.queue import DeadlineQueue
from engines.scheduling.report import BatchReport, ClosedBy
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, to_array
from tests.support.virtual import ManualPool, ask, run_virtual

SPEC = fake_spec()
MANY = "one of many: "


class Bench:
    """A LocalInference over an engine that answers when it is told to."""

    def __init__(self, limits: Limits | None = None, spec: ModelSpec = SPEC, engines: int = 1) -> None:
        self.pool = ManualPool(spec, engines)
        self.limits = limits or Limits(max_rows=spec.max_rows)
        self.reports: list[BatchReport] = []
        pool: Any = self.pool
        self.local = LocalInference(spec, pool, DeadlineQueue(self.limits), self.limits, self.reports.append)
        self.loop = asyncio.get_running_loop()

    def start(self, *requests: InferRequest) -> list[asyncio.Task[InferResponse]]:
        return [asyncio.ensure_future(self.local.infer(request)) for request in requests]

    async def busy(self) -> asyncio.Task[InferResponse]:
        """Keep the one engine busy."""
        (task,) = self.start(ask("blocker"))
        await turn()
        assert not self.pool.has_idle
        return task


async def turn() -> None:
    """Let everything happen that can happen now."""
    for _ in range(5):
        await asyncio.sleep(0)


def on_bench(**options: Any) -> Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """Run the test on a bench, in virtual time."""

    def wrap(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        def run() -> None:
            async def main() -> None:
                bench = Bench(**options)
                await test(bench)
                assert bench.local.statistics().queue.requests == 0
                assert not bench.local._running

            run_virtual(main)

        run.__name__ = test.__name__
        return run

    return wrap


def numbers(response: InferResponse) -> list[float]:
    return to_array(response.outputs[0])[:, 0].tolist()


@on_bench()
async def test_each_caller_gets_its_own_rows(bench: Bench) -> None:
    blocker = await bench.busy()
    tasks = bench.start(ask("a", (1, 2)), ask("b", (3,)), ask("c", (4, 5, 6)))
    await turn()
    bench.pool.finish()
    await turn()
    bench.pool.finish()
    answers = [await task for task in (blocker, *tasks)]
    assert [numbers(answer) for answer in answers] == [[2], [2, 4], [6], [8, 10, 12]]
    assert [answer.id for answer in answers] == ["blocker", "a", "b", "c"]
    assert bench.pool.batches == [["blocker"], ["a", "b", "c"]]
    report = bench.reports[1]
    assert (report.rows, report.closed_by, report.error) == (6, ClosedBy.DRAINED, "")


@on_bench()
async def test_requests_of_one_turn_leave_together(bench: Bench) -> None:
    tasks = bench.start(ask("a"), ask("b"), ask("c"))
    await turn()
    assert bench.pool.batches == [["a", "b", "c"]]
    bench.pool.finish()
    await asyncio.gather(*tasks)


@on_bench()
async def test_one_of_three_cancels_inside_a_batch_and_the_others_are_answered(bench: Bench) -> None:
    tasks = bench.start(ask("a", (1,)), ask("b", (2,)), ask("c", (3,)))
    await turn()
    assert bench.pool.batches == [["a", "b", "c"]]
    tasks[1].cancel()
    await turn()
    bench.pool.finish()
    assert numbers(await tasks[0]) == [2]
    assert numbers(await tasks[2]) == [6]
    assert tasks[1].cancelled()


@on_bench()
async def test_a_cancelled_caller_leaves_the_queue(bench: Bench) -> None:
    blocker = await bench.busy()
    tasks = bench.start(ask("a"), ask("b"))
    await turn()
    tasks[0].cancel()
    await turn()
    assert bench.local.statistics().queue.requests == 1
    bench.pool.finish()
    await turn()
    bench.pool.finish()
    await asyncio.gather(blocker, tasks[1])
    assert bench.pool.batches == [["blocker"], ["b"]]


@on_bench()
async def test_the_expired_are_answered_on_time_without_being_run(bench: Bench) -> None:
    blocker = await bench.busy()
    now = bench.loop.time()
    late, early = bench.start(ask("late", deadline=now + 5.0), ask("early", deadline=now + 2.0))
    with pytest.raises(DeadlineExceeded, match="Request timeout expired"):
        await early
    assert bench.loop.time() == pytest.approx(now + 2.0)
    with pytest.raises(DeadlineExceeded):
        await late
    assert bench.loop.time() == pytest.approx(now + 5.0)
    bench.pool.finish()
    await blocker
    assert bench.pool.batches == [["blocker"]]


@on_bench()
async def test_a_request_that_comes_too_late_is_refused_at_the_door(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded):
        await bench.local.infer(ask("a", deadline=bench.loop.time()))
    assert bench.pool.batches == []


@on_bench(limits=Limits(max_rows=4, max_wait_s=0.5))
async def test_company_is_awaited_as_long_as_allowed(bench: Bench) -> None:
    began = bench.loop.time()
    (first,) = bench.start(ask("a"))
    await asyncio.sleep(0.3)
    (second,) = bench.start(ask("b"))
    await turn()
    assert bench.pool.batches == []
    await asyncio.sleep(0.2)
    await turn()
    assert bench.pool.batches == [["a", "b"]]
    assert bench.loop.time() == pytest.approx(began + 0.5)
    bench.pool.finish()
    await asyncio.gather(first, second)
    assert bench.reports[0].closed_by is ClosedBy.WAITED


@on_bench()
async def test_a_failing_batch_is_tried_again_one_by_one_so_that_only_the_poison_fails(bench: Bench) -> None:
    tasks = bench.start(ask("a", (1,)), ask("poison", (2,)), ask("c", (3,)))
    await turn()
    bench.pool.finish(error=RuntimeError("poisoned"))
    await turn()
    while bench.pool.running:
        poisoned = bench.pool.batches[-1] == ["poison"]
        bench.pool.finish(error=RuntimeError("poisoned") if poisoned else None)
        await turn()
    assert sorted(bench.pool.batches[1:]) == [["a"], ["c"], ["poison"]]
    assert numbers(await tasks[0]) == [2]
    assert numbers(await tasks[2]) == [6]
    with pytest.raises(EngineFailed, match="model 'fake' version 1 failed: poisoned") as failure:
        await tasks[1]
    assert not failure.value.retryable
    assert [report.error for report in bench.reports].count("poisoned") == 2


@on_bench()
async def test_nobody_is_tried_more_than_twice(bench: Bench) -> None:
    tasks = bench.start(ask("a"), ask("b"))
    for _ in range(3):
        await turn()
        bench.pool.finish(error=EngineDied("gone"))
    for task in tasks:
        with pytest.raises(EngineFailed) as failure:
            await task
        assert failure.value.retryable
    assert len(bench.pool.batches) == 3


@on_bench()
async def test_a_batch_that_hung_is_not_tried_again_by_the_server(bench: Bench) -> None:
    tasks = bench.start(ask("a"), ask("b"))
    await turn()
    bench.pool.finish(error=EngineHung("no end"))
    for task in tasks:
        with pytest.raises(EngineFailed, match="model 'fake' version 1 failed: no end") as failure:
            await task
        assert failure.value.retryable
    assert bench.pool.batches == [["a", "b"]]


@on_bench()
async def test_out_of_memory_the_members_are_tried_alone_and_may_try_again(bench: Bench) -> None:
    tasks = bench.start(ask("a", (1,)), ask("b", (2,)))
    await turn()
    bench.pool.finish(error=MemoryError("out of memory"))
    await turn()
    bench.pool.finish("a")
    bench.pool.finish("b", error=MemoryError("out of memory"))
    assert numbers(await tasks[0]) == [2]
    with pytest.raises(EngineFailed, match="out of memory") as failure:
        await tasks[1]
    assert failure.value.retryable


@on_bench()
async def test_an_engine_that_returns_nonsense_fails_its_batch_only(bench: Bench) -> None:
    (task,) = bench.start(ask("a"))
    await turn()
    bench.pool.finish(answer=lambda x: x.astype(np.float64))
    with pytest.raises(EngineFailed, match="returned output 'y' as float64, not FP32"):
        await task
    (task,) = bench.start(ask("b"))
    await turn()
    bench.pool.finish(answer=lambda x: x[:0])
    with pytest.raises(EngineFailed, match=r"returned output 'y' of shape \(0, 4\) for 1 rows"):
        await task


@on_bench(limits=Limits(max_rows=1, in_order=True), engines=3)
async def test_in_order_answers_wait_for_those_before_them(bench: Bench) -> None:
    tasks = bench.start(ask("a", (1,)), ask("b", (2,)), ask("c", (3,)), ask("d", (4,), deadline=bench.loop.time() + 9))
    await turn()
    bench.pool.finish("c")
    await turn()
    assert not any(task.done() for task in tasks)
    tasks[0].cancel()
    await turn()
    assert not tasks[2].done()  # b is missing
    bench.pool.finish("b")
    await turn()
    assert [task.done() for task in tasks] == [True, True, True, False]
    bench.pool.finish("a")
    bench.pool.finish("d")
    assert [numbers(await task) for task in tasks[1:]] == [[4], [6], [8]]


@on_bench(limits=Limits(max_rows=8, policy=QueuePolicy(timeout_s=1.0, action=TimeoutAction.DELAY)))
async def test_the_delayed_go_behind_those_in_time(bench: Bench) -> None:
    blocker = await bench.busy()
    (overdue,) = bench.start(ask("overdue", (1,) * 8))
    await asyncio.sleep(2.0)
    (fresh,) = bench.start(ask("fresh", (1,) * 8))
    await turn()
    for _ in range(3):
        bench.pool.finish()
        await turn()
    await asyncio.gather(blocker, overdue, fresh)
    assert bench.pool.batches == [["blocker"], ["fresh"], ["overdue"]]


@on_bench(limits=Limits(max_rows=8, policy=QueuePolicy(max_requests=1)))
async def test_a_full_queue_refuses(bench: Bench) -> None:
    blocker = await bench.busy()
    (waiting,) = bench.start(ask("a"))
    await turn()
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        await bench.local.infer(ask("b"))
    bench.pool.finish()
    await turn()
    bench.pool.finish()
    await asyncio.gather(blocker, waiting)


@on_bench()
async def test_abandon_tells_all_who_wait_and_all_who_run(bench: Bench) -> None:
    running, waiting = await bench.busy(), *bench.start(ask("a"))
    await turn()
    bench.local.abandon()
    for task in (running, waiting):
        with pytest.raises(Draining, match="model 'fake' is shutting down"):
            await task
    with pytest.raises(Draining):
        await bench.local.infer(ask("new"))
    bench.pool.finish()  # comes back to nobody


@on_bench()
async def test_close_refuses_those_who_wait(bench: Bench) -> None:
    running, waiting = await bench.busy(), *bench.start(ask("a", deadline=bench.loop.time() + 1))
    await turn()
    await bench.local.close()
    with pytest.raises(Draining, match="model 'fake' was unloaded"):
        await waiting
    bench.pool.finish()
    assert numbers(await running) == [2]
    with pytest.raises(Draining):
        await bench.local.infer(ask("new"))


VARIABLE = ModelSpec(
    "fake", 1, "fake", (TensorSpec("x", DType.FP32, (-1,)),), (TensorSpec("y", DType.FP32, (-1,)),), max_rows=8
)


@on_bench(spec=VARIABLE)
async def test_only_equal_shapes_share_a_batch(bench: Bench) -> None:
    def wide(name: str, width: int) -> InferRequest:
        tensor = Tensor("x", DType.FP32, (1, width), bytes(4 * width))
        return InferRequest(model="fake", version=1, inputs=(tensor,), wanted=("y",), id=name)

    tasks = bench.start(wide("a", 2), wide("b", 3), wide("c", 2))
    await turn()
    bench.pool.finish()
    await turn()
    bench.pool.finish()
    answers = await asyncio.gather(*tasks)
    assert bench.pool.batches == [["a", "c"], ["b"]]
    assert [answer.outputs[0].shape for answer in answers] == [(1, 2), (1, 3), (1, 2)]


@on_bench(limits=Limits(max_rows=8, allowed_rows=(4, 8)))
async def test_padding_is_cut_away(bench: Bench) -> None:
    tasks = bench.start(ask("a", (1,)), ask("b", (2,)))
    await turn()
    assert bench.pool.running[0][0].padded_rows == 4
    bench.pool.finish()
    assert [numbers(await task) for task in tasks] == [[2], [4]]
    assert (bench.reports[0].rows, bench.reports[0].padded_rows) == (2, 4)


def test_an_engine_that_dies_is_replaced_and_answers_flow_on() -> None:
    async def main() -> None:
        engines: list[FakeEngine] = []

        def open_engine() -> Engine:
            engines.append(FakeEngine(SPEC, dies_on=2 if len(engines) == 0 else 0))
            return engines[-1]

        pool = EnginePool(open_engine, 1, "fake")
        await pool.open()
        limits = Limits(max_rows=8)
        local = LocalInference(SPEC, pool, DeadlineQueue(limits), limits)
        assert numbers(await local.infer(ask("a", (1,)))) == [2]
        with pytest.raises(EngineFailed) as failure:
            await local.infer(ask("b"))
        assert failure.value.retryable
        pair = await asyncio.gather(local.infer(ask("c", (3,))), local.infer(ask("d", (4,))))
        assert [numbers(answer) for answer in pair] == [[6], [8]]
        assert pool.statistics().replaced == 1
        assert engines[0].closed
        await local.close()
        assert engines[1].closed

    asyncio.run(main())


def test_ten_thousand_requests_each_end_once_and_nothing_leaks(caplog: pytest.LogCaptureFixture) -> None:
    """Random cancels, deadlines, priorities, rows, engine failures and deaths, on real threads."""
    caplog.set_level(logging.CRITICAL, "engines")  # captured lines hold errors, and these the frames they came from
    dice = random.Random(11)
    threads = set(threading.enumerate())

    def open_engine() -> Engine:
        return FakeEngine(SPEC, fails_on={n for n in range(1, 100) if dice.random() < 0.05}, dies_on=100)

    async def one(local: LocalInference, number: int) -> str:
        loop = asyncio.get_running_loop()
        value = float(number % 1000)
        deadline = loop.time() + dice.choice([1e-4, 0.003, 10.0, 10.0, 10.0])
        request = ask(f"{MANY}{number}", (value,) * dice.randint(1, 3), deadline=deadline, priority=dice.randint(0, 2))
        task = asyncio.ensure_future(local.infer(request))
        if dice.random() < 0.2:
            loop.call_later(dice.random() * 0.002, task.cancel)
        try:
            response = await task
        except asyncio.CancelledError:
            return "cancelled"
        except InferError as error:
            return type(error).__name__
        assert numbers(response) == [2 * value] * request.rows
        assert response.id == request.id
        return "answered"

    async def main() -> None:
        limits = Limits(
            max_rows=8, allowed_rows=(4, 8), levels=2, default_level=2, policy=QueuePolicy(max_requests=300)
        )
        pool = EnginePool(open_engine, 2, "fake")
        await pool.open()
        local = LocalInference(SPEC, pool, DeadlineQueue(limits), limits)
        ends: Counter[str] = Counter()
        for first in range(0, 10_000, 1000):
            ends.update(await asyncio.gather(*(one(local, first + number) for number in range(1000))))
        assert sum(ends.values()) == 10_000
        usual = {"answered", "cancelled", "DeadlineExceeded", "Overloaded"}
        assert usual <= set(ends) <= usual | {"EngineFailed"}, ends
        assert pool.statistics().replaced > 0
        await local.close()
        assert repr(local).endswith("<DeadlineQueue [requests: 0 | rows: 0]>>")
        assert not local._running
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    assert not [held for held in gc.get_objects() if isinstance(held, InferRequest) and held.id.startswith(MANY)]
    for thread in set(threading.enumerate()) - threads:
        thread.join(30)  # it may still be on its last lines
        assert not thread.is_alive(), thread


@pytest.mark.parametrize("refused", [False, True])
def test_an_ended_request_is_let_go_without_the_collector(refused: bool) -> None:
    """Payloads in reference cycles pile up by hundreds of megabytes between two of its rounds."""

    async def main() -> None:
        bench = Bench(Limits(max_rows=8, policy=QueuePolicy(max_requests=1)))
        blocker = await bench.busy()
        (first,) = bench.start(ask("fills the queue"))
        await turn()
        data = memoryview(bytes(16))
        gone = weakref.ref(data)
        asked = InferRequest(model="fake", version=1, inputs=(Tensor("x", DType.FP32, (1, 4), data),), wanted=("y",))
        if refused:
            with pytest.raises(Overloaded):
                await bench.local.infer(asked)
        else:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            task = asyncio.ensure_future(bench.local.infer(asked))
            await turn()
            bench.pool.finish()
            await turn()
            bench.pool.finish()
            await task
            del task
        del data, asked
        await turn()
        assert gone() is None
        if refused:
            bench.pool.finish()
            await turn()
            bench.pool.finish()
            await first
        await blocker

    gc.disable()
    try:
        run_virtual(main)
    finally:
        gc.enable()
