"""What the outermost layer counts, for every way in which a request can end."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from engines.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
)
from engines.request import InferRequest, InferResponse, Origin
from server.telemetry.access import AccessLog
from server.telemetry.context import REQUEST
from server.telemetry.meter import ModelMeter, Outcome, UnroutedMeter, outcome_of
from server.telemetry.metered import MeteredInference
from server.telemetry.traces import TraceOptions, Tracer
from tests.support.telemetry import Clock, Scripted, meter, report, request, response


def send(
    counted: ModelMeter,
    outcome: InferResponse | BaseException,
    *,
    seconds: float = 0.02,
    asked: InferRequest | None = None,
    access: int = 0,
) -> None:
    async def main() -> None:
        clock = Clock()
        tracer = Tracer(TraceOptions())
        layer = MeteredInference(Scripted(clock, seconds, outcome), counted, tracer, AccessLog(access), clock)
        await layer.infer(asked or request())

    if isinstance(outcome, BaseException):
        with pytest.raises(type(outcome)):
            asyncio.run(main())
    else:
        asyncio.run(main())


def nonzero(counts: dict[Outcome, int]) -> dict[str, int]:
    return {outcome.value: count for outcome, count in counts.items() if count}


@pytest.mark.parametrize(("deadline", "outcome"), [(100.5, "in_deadline"), (math.inf, "in_deadline"), (100.01, "late")])
def test_answers_are_in_time_or_late(deadline: float, outcome: str) -> None:
    counted = meter()
    send(counted, response(), asked=request(deadline))
    assert nonzero(counted.outcomes) == {outcome: 1}
    assert counted.request.count == 1
    assert counted.request.total == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("error", "deadline", "outcome"),
    [
        (Overloaded("full"), math.inf, "shed"),
        (Draining("bye"), math.inf, "shed"),
        (DeadlineExceeded("over"), 100.01, "expired"),
        (asyncio.CancelledError(), math.inf, "cancelled"),
        (asyncio.CancelledError(), 100.01, "expired"),  # the transport withdraws calls whose time is over
        (asyncio.CancelledError(), 100.022, "expired"),  # so does the caller, whose clock is a little ahead
        (asyncio.CancelledError(), 101.0, "cancelled"),
        (Cancelled("left"), math.inf, "cancelled"),
        (InvalidRequest("no such output"), math.inf, "invalid"),
        (EngineFailed("broken"), math.inf, "error"),
        (RuntimeError("bug"), math.inf, "error"),
    ],
)
def test_failures_are_counted_by_their_kind_and_in_no_histogram(
    error: BaseException, deadline: float, outcome: str
) -> None:
    counted = meter()
    send(counted, error, asked=request(deadline))
    assert nonzero(counted.outcomes) == {outcome: 1}
    assert counted.counters.failures.count == 1
    assert counted.counters.failures.seconds == pytest.approx(0.02)
    assert counted.request.count == 0
    assert counted.in_flight == 0


def test_phases_and_slack_of_an_answer() -> None:
    counted = meter()
    send(counted, response(), asked=request(100.05, rows=2))
    assert counted.queue.total == pytest.approx(0.003)
    assert counted.slack_at_dispatch.total == pytest.approx(0.05 - 0.003)
    assert counted.slack_at_reply.total == pytest.approx(0.05 - 0.02)
    assert counted.counters.inferences == 2


def test_without_a_deadline_there_is_no_slack() -> None:
    counted = meter()
    send(counted, response())
    assert counted.slack_at_dispatch.count == counted.slack_at_reply.count == 0


def test_what_no_engine_answered_has_no_phases() -> None:
    counted = meter()
    send(counted, response(origin=Origin.CACHE))
    assert counted.origins[Origin.CACHE] == counted.remembered.count == counted.request.count == 1
    assert counted.queue.count == counted.counters.inferences == 0


def test_batches_count_padding_and_rows_that_nobody_waited_for() -> None:
    counted = meter()
    counted.observe(report(rows=3, padded_rows=8, abandoned_rows=1))
    counted.observe(report(error="boom"))
    counters = counted.counters
    assert (counters.executions, counters.failed_executions) == (1, 1)
    assert (counters.executed_rows, counters.padding_rows, counters.abandoned_rows) == (8, 5, 1)
    assert counted.batch.total == pytest.approx(0.009)
    assert counted.batches[3].execute.seconds == pytest.approx(0.008)


def test_phases_of_a_batch_are_those_of_each_member_that_it_answered() -> None:
    counted = meter()
    counted.observe(report(rows=3, answered=2))
    assert [(phase.count, phase.total) for phase in (counted.gather, counted.execute, counted.scatter)] == [
        (2, pytest.approx(0.002)),
        (2, pytest.approx(0.016)),
        (2, pytest.approx(0.001)),
    ]


def test_statistics_are_the_same_numbers() -> None:
    counted = meter()
    for deadline in (math.inf, 100.001):
        send(counted, response(), asked=request(deadline))
    send(counted, response(origin=Origin.SHARED))
    send(counted, Overloaded("full"))
    counted.invalid()
    counted.observe(report(rows=2, answered=2))
    statistics = counted.statistics()
    inference = statistics.inference_stats
    assert (inference.success.count, inference.success.ns) == (3, 60_000_000)
    assert (inference.fail.count, inference.fail.ns) == (2, 20_000_000)
    assert (inference.queue.count, inference.queue.ns) == (2, 6_000_000)
    assert (inference.compute_infer.count, inference.compute_infer.ns) == (2, 16_000_000)
    assert inference.cache_hit.count == 1
    assert (statistics.inference_count, statistics.execution_count) == (2, 1)
    assert [(batch.batch_size, batch.compute_infer.ns) for batch in statistics.batch_stats] == [(2, 8_000_000)]


def test_a_meter_can_start_anew_after_the_warm_up() -> None:
    counted = meter()
    send(counted, response())
    counted.reset()
    assert counted.statistics().inference_stats.success.count == 0
    assert nonzero(counted.outcomes) == {}


def test_layers_below_can_tell_whose_request_they_work_on() -> None:
    seen: list[InferRequest | None] = []

    class Curious(Scripted):
        async def infer(self, request: InferRequest) -> InferResponse:
            seen.append(REQUEST.get())
            return await super().infer(request)

    async def main() -> None:
        clock = Clock()
        inner = Curious(clock, 0.0, response())
        await MeteredInference(inner, meter(), Tracer(TraceOptions()), AccessLog(0), clock).infer(request(id="7"))

    asyncio.run(main())
    assert [found.id for found in seen if found] == ["7"]


def test_one_in_so_many_requests_gets_a_line(caplog: pytest.LogCaptureFixture) -> None:
    counted = meter()
    access = AccessLog(2)
    with caplog.at_level(logging.INFO, "server.access"):
        for _ in range(4):
            access.answered(request(100.0), response(), 0.01, now=100.5)
        access.failed(request(), Overloaded("the queue is full"), "shed", 0.001)
        access.failed(request(), Overloaded("the queue is full"), "shed", 0.001)
    assert [record.getMessage() for record in caplog.records] == [
        "request late after 10.000 ms, 1 row(s)",
        "request late after 10.000 ms, 1 row(s)",
        "request shed after 1.000 ms, 1 row(s)",
    ]
    assert caplog.records[0].__dict__["origin"] == "engine"
    assert caplog.records[2].__dict__["error"] == "the queue is full"
    assert counted.in_flight == 0


def test_access_lines_are_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "server.access"):
        send(meter(), response())
        assert not caplog.records
        send(meter(), response(), access=1)
        send(meter(), EngineFailed("broken"), access=1)
    assert [record.__dict__["outcome"] for record in caplog.records] == ["in_deadline", "error"]


def test_requests_that_reach_no_model_are_counted_apart() -> None:
    unrouted = UnroutedMeter()
    for error in (ModelNotFound("who?"), ModelNotReady("soon"), Draining("bye")):
        unrouted.refused(error)
    assert unrouted.outcomes == {Outcome.INVALID: 1, Outcome.SHED: 2}
    assert outcome_of(ModelNotReady("soon")) is Outcome.SHED
