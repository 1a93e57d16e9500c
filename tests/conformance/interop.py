"""The TestService of gRPC's interoperability suite, for any server with the surface of `grpc.aio.Server`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

messages, services = grpc.protos_and_services("tests/conformance/testing.proto")  # type: ignore[attr-defined] # found on sys.path

_INITIAL = "x-grpc-test-echo-initial"
_TRAILING = "x-grpc-test-echo-trailing-bin"


async def _echo_metadata(context: Any) -> None:
    metadata = dict(context.invocation_metadata())
    if _INITIAL in metadata:
        await context.send_initial_metadata(((_INITIAL, metadata[_INITIAL]),))
    if _TRAILING in metadata:
        context.set_trailing_metadata(((_TRAILING, metadata[_TRAILING]),))


async def _echo_status(request: Any, context: Any) -> None:
    if request.HasField("response_status"):
        code = request.response_status.code
        await context.abort(next(c for c in grpc.StatusCode if c.value[0] == code), request.response_status.message)


class TestService(services.TestServiceServicer):  # type: ignore[misc, name-defined]
    """As the suite's description asks; UnimplementedCall is left to the generated base."""

    __test__ = False

    async def EmptyCall(self, request: Any, context: Any) -> Any:
        await _echo_metadata(context)
        return messages.Empty()

    async def UnaryCall(self, request: Any, context: Any) -> Any:
        await _echo_metadata(context)
        await _echo_status(request, context)
        if request.response_compressed.value:
            context.set_compression(grpc.Compression.Gzip)
        return messages.SimpleResponse(payload=messages.Payload(body=bytes(request.response_size)))

    async def StreamingOutputCall(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for wanted in request.response_parameters:
            await asyncio.sleep(wanted.interval_us / 1e6)
            payload = messages.Payload(body=bytes(wanted.size))
            yield messages.StreamingOutputCallResponse(payload=payload)

    async def StreamingInputCall(self, requests: AsyncIterator[Any], context: Any) -> Any:
        size = 0
        async for request in requests:
            size += len(request.payload.body)
        return messages.StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await _echo_metadata(context)
        async for request in requests:
            await _echo_status(request, context)
            async for response in self.StreamingOutputCall(request, context):
                yield response


def add_test_service(server: Any) -> None:
    """Serve the suite on `server`."""
    services.add_TestServiceServicer_to_server(TestService(), server)
