"""A queue that is full, over the wire: who is refused, and what the refusal says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server

pytestmark = pytest.mark.integration

CALLS = 12


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_the_shed_are_told_when_to_come_back(tmp_path: Path, transport: str) -> None:
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    onnx_models.write(tmp_path, "slow", config=f"max_batch_size: 1\n{queue}\n{ONE_ENGINE}", proto=onnx_models.slow())
    request = pb.ModelInferRequest(model_name="slow", raw_input_contents=[np.ones((1, 4), np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])

    async def call(stub: GRPCInferenceServiceStub) -> grpc.aio.AioRpcError | None:
        try:
            await stub.ModelInfer(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            return error
        return None

    async def main(url: str) -> list[grpc.aio.AioRpcError | None]:
        async with grpc.aio.insecure_channel(url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            return await asyncio.gather(*(call(stub) for _ in range(CALLS)))

    with running_server(tmp_path, "--transport", transport) as server:
        ends = asyncio.run(main(server.url))
    refused = [error for error in ends if error is not None]
    assert 0 < len(refused) < CALLS
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "Exceeds maximum queue size"
        trailers = dict(error.trailing_metadata() or ())
        assert int(trailers["retry-after-ms"]) > 0
        assert trailers["grpc-retry-pushback-ms"] == trailers["retry-after-ms"]
