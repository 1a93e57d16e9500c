"""The service with engines that do what the test says: deadlines, cancellation, streams, failures, drains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import numpy as np
import pytest

from engines.backends.fake import FakeEngine
from engines.scheduling.policy import Limits, QueuePolicy, TimeoutAction
from server.lifecycle import Phase
from server.pb import grpc_service_pb2 as pb
from server.telemetry.meter import Outcome
from server.transport.inflight import Inflight
from server.transport.listen import TransportKind
from server.transport.model import ServedModel
from server.transport.status import StatusCodes
from tests.support.fakes import SIMPLE, FakeServer, Gate, add_and_subtract, fake_server, serve_model, until

Main = Callable[[FakeServer, ServedModel, Gate], Coroutine[Any, Any, None]]


def request(value: int = 1, **rest: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="simple", **rest)
    for name, number in (("INPUT0", value), ("INPUT1", 0)):
        message.inputs.add(name=name, datatype="INT32", shape=[1, 4])
        message.raw_input_contents.append(np.full(4, number, np.int32).tobytes())
    return message


def value_of(response: pb.ModelInferResponse) -> int:
    return int(np.frombuffer(response.raw_output_contents[0], np.int32)[0])


def run(main: Main, *, limits: Limits | None = None, engine: dict[str, Any] | None = None, **options: Any) -> None:
    """Serve `simple` on one engine behind a gate, and call `main`."""

    async def whole() -> None:
        gate = Gate()
        arguments = {"before": gate, "answer": add_and_subtract, **(engine or {})}
        model = await serve_model(SIMPLE, lambda: FakeEngine(SIMPLE, **arguments), limits=limits)
        async with fake_server(model, **options) as server:
            await main(server, model, gate)
            gate.open()
        left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        assert not left, left
        assert model.meter.in_flight == 0
        assert repr(model.engines) == (
            "<LocalInference simple:1 <EnginePool simple [engines: 0 busy, 0 idle, 1 missing]> "
            "<DeadlineQueue [requests: 0 | rows: 0]>>"
        )

    asyncio.run(whole())


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def block(server: FakeServer, gate: Gate) -> Any:
    """Keep the engine busy with a call, until the gate opens."""
    gate.shut()
    call = server.stub.ModelInfer(request(9))
    await gate.wait_arrival()
    return call


def waiting(model: ServedModel) -> int:
    return model.engines.statistics().queue.requests


both_transports = pytest.mark.parametrize("transport", TransportKind)


@both_transports
def test_one_of_three_callers_in_a_batch_cancels_and_the_others_are_answered(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        calls = [server.stub.ModelInfer(request(value)) for value in (1, 2, 3)]
        await until(lambda: waiting(model) == 3)
        gate.open(1)
        await gate.wait_arrival()
        assert gate.rows == [1, 3]
        calls[1].cancel()
        await until(lambda: model.meter.outcomes[Outcome.CANCELLED] == 1)
        gate.open()
        assert value_of(await calls[0]) == 1
        assert value_of(await calls[2]) == 3
        assert value_of(await blocker) == 9

    run(main, transport=transport)


@both_transports
def test_a_cancelled_caller_leaves_the_queue(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        calls = [server.stub.ModelInfer(request(value)) for value in (1, 2, 3)]
        await until(lambda: waiting(model) == 3)
        calls[1].cancel()
        await until(lambda: waiting(model) == 2)
        gate.open()
        assert [value_of(await call) for call in (blocker, calls[0], calls[2])] == [9, 1, 3]
        assert gate.rows == [1, 2]

    run(main, transport=transport)


@both_transports
def test_a_call_whose_deadline_passes_while_it_waits_is_never_run(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        error = await refusal(server.stub.ModelInfer(request(), timeout=0.02))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: waiting(model) == 0)
        gate.open()
        await blocker
        assert gate.rows == [1]
        assert model.meter.outcomes[Outcome.EXPIRED] == 1

    run(main, transport=transport)


@pytest.mark.parametrize(
    ("codes", "code"),
    [(StatusCodes.KAIROS, grpc.StatusCode.DEADLINE_EXCEEDED), (StatusCodes.TRITON, grpc.StatusCode.UNAVAILABLE)],
)
def test_the_timeout_parameter_counts_from_arrival(codes: StatusCodes, code: grpc.StatusCode) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        hurried = request(id="hurried")
        hurried.parameters["timeout"].int64_param = 2000  # microseconds
        error = await refusal(server.stub.ModelInfer(hurried))
        assert (error.code(), error.details()) == (code, "[request id: hurried] Request timeout expired")
        gate.open()
        await blocker
        assert gate.rows == [1]

    run(main, status_codes=codes)


def test_a_delayed_request_is_answered_late_instead() -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        patient = asyncio.ensure_future(server.stub.ModelInfer(request(4)))
        await until(lambda: waiting(model) == 1)
        gate.open()
        assert value_of(await patient) == 4
        await blocker

    policy = QueuePolicy(timeout_s=1e-6, action=TimeoutAction.DELAY)
    run(main, limits=Limits(max_rows=8, policy=policy))


@pytest.mark.parametrize(
    ("codes", "code"),
    [(StatusCodes.KAIROS, grpc.StatusCode.RESOURCE_EXHAUSTED), (StatusCodes.TRITON, grpc.StatusCode.UNAVAILABLE)],
)
def test_a_full_queue_refuses_at_once(codes: StatusCodes, code: grpc.StatusCode) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        first = await block(server, gate)
        second = asyncio.ensure_future(server.stub.ModelInfer(request(2)))
        await until(lambda: waiting(model) == 1)
        error = await refusal(server.stub.ModelInfer(request(3)))
        assert (error.code(), error.details()) == (code, "Exceeds maximum queue size")
        gate.open()
        assert [value_of(await call) for call in (first, second)] == [9, 2]
        assert model.meter.outcomes[Outcome.SHED] == 1

    run(main, status_codes=codes, limits=Limits(max_rows=8, policy=QueuePolicy(max_requests=1)))


@both_transports
def test_a_stream_answers_in_order_though_work_finishes_out_of_order(transport: TransportKind) -> None:
    """The second of three is urgent, so that it runs first."""

    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        requests = [request(number, id=str(number)) for number in (1, 2, 3)]
        requests[1].parameters["timeout"].int64_param = 60_000_000
        stream = server.stub.ModelStreamInfer(iter(requests))
        await until(lambda: waiting(model) == 3)
        gate.open()
        answers = [answer.infer_response async for answer in stream]
        assert [(answer.id, value_of(answer)) for answer in answers] == [("1", 1), ("2", 2), ("3", 3)]
        await blocker
        assert gate.rows == [1, 1, 1, 1]

    run(main, transport=transport, limits=Limits(max_rows=1))


@both_transports
def test_a_cancelled_stream_takes_its_work_with_it(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        stream = server.stub.ModelStreamInfer()
        for number in range(5):
            await stream.write(request(number))
        await until(lambda: waiting(model) == 5)
        stream.cancel()
        await until(lambda: waiting(model) == 0)
        gate.open()
        assert value_of(await blocker) == 9
        assert value_of(await server.stub.ModelInfer(request(7))) == 7
        assert gate.rows == [1, 1]
        assert model.meter.outcomes[Outcome.CANCELLED] == 5

    run(main, transport=transport)


@both_transports
def test_a_stream_that_asks_for_the_status_ends_with_its_first_error(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        requests = [request(1), request(2, model_version="9", id="x"), request(3)]
        stream = server.stub.ModelStreamInfer(iter(requests), metadata=(("triton_grpc_error", "true"),))
        assert value_of((await stream.read()).infer_response) == 1
        error = await refusal(stream.read())
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "[request id: x] Request for unknown model: 'simple' version 9 is not found"

    run(main, transport=transport)


@both_transports
def test_a_drain_answers_what_was_sent_before_its_sender_could_know_of_it(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        gate.shut()
        running = asyncio.ensure_future(server.stub.ModelInfer(request(5)))
        await gate.wait_arrival()
        server.lifecycle.advance(Phase.DRAINING)
        crossing = asyncio.ensure_future(server.stub.ModelInfer(request(6)))
        await until(lambda: waiting(model) == 1)
        assert not (await server.stub.ServerReady(pb.ServerReadyRequest())).ready
        assert (await server.stub.ServerLive(pb.ServerLiveRequest())).live
        stopping = asyncio.ensure_future(server.transport.stop(60))
        gate.open()
        assert [value_of(await running), value_of(await crossing)] == [5, 6]
        await stopping
        error = await refusal(server.stub.ModelInfer(request(7)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE

    run(main, transport=transport)


@both_transports
def test_a_drain_ends_streams_once_their_work_is_answered(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        idle, busy = server.stub.ModelStreamInfer(), server.stub.ModelStreamInfer()
        gate.shut()
        await busy.write(request(5))
        await gate.wait_arrival()
        server.lifecycle.advance(Phase.DRAINING)
        assert (await refusal(idle.read())).code() is grpc.StatusCode.UNAVAILABLE
        gate.open()
        assert value_of((await busy.read()).infer_response) == 5
        assert (await refusal(busy.read())).details() == "the server is shutting down"
        async with asyncio.timeout(20):
            await server.transport.stop(60)  # nobody is left to be waited for

    run(main, transport=transport)


@both_transports
def test_abandoned_work_is_told_so(transport: TransportKind) -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        running = await block(server, gate)
        calls = [server.stub.ModelInfer(request(number)) for number in range(2)]
        await until(lambda: waiting(model) == 2)
        model.engines.abandon()
        errors = [await refusal(call) for call in (running, *calls)]
        assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        assert {error.details() for error in errors} == {"model 'simple' is shutting down"}

    run(main, transport=transport)


def test_a_failing_engine_fails_its_request_only() -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        error = await refusal(server.stub.ModelInfer(request()))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "model 'simple' version 1 failed: told to fail on execution 1"
        assert value_of(await server.stub.ModelInfer(request(4))) == 4
        assert model.meter.counters.failed_executions == 1

    run(main, engine={"fails_on": {1}})


def test_an_engine_that_dies_says_that_trying_again_may_help() -> None:
    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        error = await refusal(server.stub.ModelInfer(request()))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert ("retryable", "true") in tuple(error.trailing_metadata())

    run(main, engine={"dies_on": 1})


def test_out_of_memory_is_no_fault_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError

    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("server.transport.service.read_inputs", full)
            error = await refusal(server.stub.ModelInfer(request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("retryable", "true") in tuple(error.trailing_metadata())
        assert value_of(await server.stub.ModelInfer(request(4))) == 4

    run(main)


@both_transports
def test_a_fault_of_ours_is_told_without_its_details(
    transport: TransportKind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("secret")

    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        monkeypatch.setattr("server.transport.service.read_inputs", broken)
        error = await refusal(server.stub.ModelInfer(request()))
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error: ZeroDivisionError")
        (answer,) = [answer async for answer in server.stub.ModelStreamInfer(iter([request()]))]
        assert answer.error_message == "internal error: ZeroDivisionError"
        assert "secret" in caplog.text

    run(main, transport=transport)


@both_transports
def test_more_bytes_than_the_server_may_hold_are_refused_and_counted_out_again(transport: TransportKind) -> None:
    inflight = Inflight(request().ByteSize() * 2)

    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        blocker = await block(server, gate)
        second = server.stub.ModelInfer(request(2))
        await until(lambda: waiting(model) == 1)
        error = await refusal(server.stub.ModelInfer(request(3)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "the server holds as many bytes of requests and answers as it may"
        trailers = dict(error.trailing_metadata())
        assert (trailers["retryable"], trailers["grpc-retry-pushback-ms"]) == ("true", "100")
        (answer,) = [answer async for answer in server.stub.ModelStreamInfer(iter([request(4)]))]
        assert answer.error_message == error.details()
        second.cancel()
        gate.open()
        assert value_of(await blocker) == 9
        await until(lambda: inflight.used_bytes == 0)
        assert inflight.refused == 2
        answers = [answer async for answer in server.stub.ModelStreamInfer(iter([request(5), request(6)]))]
        assert [value_of(answer.infer_response) for answer in answers] == [5, 6]
        await until(lambda: inflight.used_bytes == 0)

    run(main, transport=transport, inflight=inflight)


@both_transports
def test_a_stream_that_its_client_leaves_gives_its_bytes_back(transport: TransportKind) -> None:
    inflight = Inflight(1 << 20)

    async def main(server: FakeServer, model: ServedModel, gate: Gate) -> None:
        gate.shut()
        call = server.stub.ModelStreamInfer(iter([request(number) for number in range(5)]))
        await until(lambda: waiting(model) == 4)
        assert inflight.used_bytes >= 5 * request().ByteSize()
        call.cancel()
        gate.open()
        await until(lambda: inflight.used_bytes == 0)

    run(main, transport=transport, inflight=inflight)
