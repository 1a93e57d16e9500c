"""tritonclient for asyncio, and its streams."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.support.servers import RunningServer

pytestmark = pytest.mark.integration


def inputs(number: int) -> list[triton.InferInput]:
    row = np.full((1, 16), number, np.int32)
    return [triton.InferInput(name, row.shape, "INT32").set_data_from_numpy(row) for name in ("INPUT0", "INPUT1")]


def test_many_calls_at_once(server: RunningServer) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(client.infer("simple", inputs(number), client_timeout=30.0) for number in range(100))
            )
            for number, result in enumerate(results):
                assert (result.as_numpy("OUTPUT0") == 2 * number).all()

    asyncio.run(main())


def test_a_cancelled_call_leaves_its_neighbours_alone(server: RunningServer) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(server.url) as client:
            calls = [asyncio.ensure_future(client.infer("simple", inputs(number))) for number in range(30)]
            await asyncio.sleep(0)
            for call in calls[::3]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for number, result in enumerate(results):
                if number % 3:
                    assert (result.as_numpy("OUTPUT0") == 2 * number).all()
                else:
                    assert isinstance(result, asyncio.CancelledError | InferenceServerException)

    asyncio.run(main())


def test_an_asyncio_stream_answers_in_order_with_errors_in_band(server: RunningServer) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(50):
            model = "nowhere" if number == 20 else "simple"
            yield {"model_name": model, "inputs": inputs(number), "request_id": str(number)}

    async def main() -> None:
        async with triton_aio.InferenceServerClient(server.url) as client:
            stream = client.stream_infer(requests())
            number = 0
            async for result, error in stream:
                if number == 20:
                    assert result is None
                    assert error.message() == "[request id: 20] Request for unknown model: 'nowhere' is not found"
                else:
                    assert error is None
                    assert result.get_response().id == str(number)
                    assert (result.as_numpy("OUTPUT0") == 2 * number).all()
                number += 1
            assert number == 50

    asyncio.run(main())


@pytest.fixture
def answers() -> queue.Queue[tuple[Any, Any]]:
    return queue.Queue()


def test_a_blocking_stream_answers_in_order(
    client: triton.InferenceServerClient, answers: queue.Queue[tuple[Any, Any]]
) -> None:
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(200):
        client.async_stream_infer("simple", inputs(number), request_id=str(number))
    for number in range(200):
        result, error = answers.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(number)
        assert (result.as_numpy("OUTPUT0") == 2 * number).all()
    client.stop_stream()


def test_a_stream_goes_on_after_an_error(
    client: triton.InferenceServerClient, answers: queue.Queue[tuple[Any, Any]]
) -> None:
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("simple", inputs(1)[:1], request_id="bad")
    client.async_stream_infer("simple", inputs(2), request_id="good")
    _, error = answers.get(timeout=30)
    assert error.message().startswith("[request id: bad] expected 2 inputs but got 1 inputs for model 'simple'")
    result, error = answers.get(timeout=30)
    assert error is None
    assert result.get_response().id == "good"
    client.stop_stream()


def test_a_stream_may_ask_for_the_status_instead(
    client: triton.InferenceServerClient, answers: queue.Queue[tuple[Any, Any]]
) -> None:
    client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
    client.async_stream_infer("nowhere", inputs(1))
    _, error = answers.get(timeout=30)
    assert error.status() == "StatusCode.NOT_FOUND"
    assert error.message() == "Request for unknown model: 'nowhere' is not found"
    client.stop_stream()


def test_the_final_response_is_marked_for_those_who_ask(
    client: triton.InferenceServerClient, answers: queue.Queue[tuple[Any, Any]]
) -> None:
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("simple", inputs(1), enable_empty_final_response=True)
    client.async_stream_infer("simple", inputs(2))
    marked, _ = answers.get(timeout=30)
    assert marked.get_response().parameters["triton_final_response"].bool_param is True
    plain, _ = answers.get(timeout=30)
    assert "triton_final_response" not in plain.get_response().parameters
    client.stop_stream()


def test_a_cancelled_stream_does_not_harm_the_server(
    client: triton.InferenceServerClient, answers: queue.Queue[tuple[Any, Any]]
) -> None:
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(300):
        client.async_stream_infer("simple", inputs(number))
    client.stop_stream(cancel_requests=True)
    assert client.is_server_live()
    assert (client.infer("simple", inputs(5)).as_numpy("OUTPUT0") == 10).all()


def test_an_empty_stream_ends_well(server: RunningServer, stub: Any) -> None:
    call: grpc.Call = stub.ModelStreamInfer(iter(()))
    assert list(call) == []  # type: ignore[call-overload]  # a call is also an iterator
    assert call.code() is grpc.StatusCode.OK
