"""LocalInference on the loop that serves: deadlines nearer than its timers can count."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from engines.backends.fake import FakeEngine, fake_spec
from engines.errors import DeadlineExceeded
from engines.local import LocalInference
from engines.pool import EnginePool
from engines.request import InferRequest
from engines.scheduling.policy import Limits
from engines.scheduling.queue import DeadlineQueue
from engines.scheduling.report import BatchReport
from engines.tensor import DType, Tensor
from server.loop import ServerLoop


class SteppedLoop(ServerLoop):
    """Its clock moves only when a test says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def request(deadline: float) -> InferRequest:
    inputs = (Tensor("x", DType.FP32, (1, 4), bytes(16)),)
    return InferRequest(model="fake", version=1, inputs=inputs, wanted=("y",), deadline=deadline)


def test_deadlines_that_are_all_but_over_end_their_own_calls_and_no_other() -> None:
    loop = SteppedLoop()
    gate, running = threading.Event(), threading.Event()

    def block(_: object) -> None:
        running.set()
        gate.wait(30)

    async def main() -> None:
        spec, limits = fake_spec(), Limits(max_rows=8)
        pool = EnginePool(lambda: FakeEngine(spec, before=block), 1, "fake")
        await pool.open()
        local = LocalInference(spec, pool, DeadlineQueue(limits), limits)
        first = asyncio.ensure_future(local.infer(request(math.inf)))
        await asyncio.to_thread(running.wait, 30)
        near = [asyncio.ensure_future(local.infer(request(loop.now + left))) for left in (3e-4, 2e-4, 1e-4, 4e-4)]
        await asyncio.sleep(0)
        loop.now += 2.5e-4
        ended = await asyncio.gather(*near[1:3], return_exceptions=True)
        assert [type(outcome) for outcome in ended] == [DeadlineExceeded] * 2
        assert not near[0].done()
        gate.set()
        answers = await asyncio.gather(first, near[0], near[3])
        assert all(answer.outputs for answer in answers)
        await local.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def test_what_the_loop_does_after_an_execution_of_its_own_is_no_part_of_it() -> None:
    loop = SteppedLoop()
    reports: list[BatchReport] = []

    def long_turn() -> None:
        loop.now += 5.0

    async def main() -> None:
        spec, limits = fake_spec(), Limits(max_rows=8)
        pool = EnginePool(lambda: FakeEngine(spec, before=lambda _: loop.call_soon(long_turn)), 1, "fake", inline=True)
        await pool.open()
        local = LocalInference(spec, pool, DeadlineQueue(limits), limits, reports.append)
        assert (await local.infer(request(math.inf))).outputs
        await local.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    (report,) = reports
    assert loop.now >= 1005.0
    assert report.finished - report.started == pytest.approx(report.gather_s + report.execute_s)
