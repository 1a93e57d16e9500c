"""The least that our own transport can do: no protobuf, every request is its own answer."""

from __future__ import annotations

import asyncio
import sys

import grpc

from server.loop import new_event_loop
from server.transport import http2


async def main() -> None:
    """Serve until the process is ended."""

    async def echo(request: bytes, context: object) -> bytes:
        del context
        return request

    server = http2.Server(http2.Options())
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"kairos is ready: gRPC 127.0.0.1:{port}, metrics port 0", file=sys.stderr, flush=True)
    await server.wait_for_termination()


with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
