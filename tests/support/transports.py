"""Starts the same handlers on either transport, for tests that compare them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from server.transport.http2 import Options, Server

Handlers = Mapping[str, grpc.RpcMethodHandler]


def http2_server(options: Options | None = None) -> Any:
    return Server(options)


def grpcio_server(options: Options | None = None) -> Any:
    options = options or Options()
    arguments = [("grpc.max_receive_message_length", options.max_receive_message_bytes)]
    if options.max_send_message_bytes is not None:
        arguments.append(("grpc.max_send_message_length", options.max_send_message_bytes))
    return grpc.aio.server(options=arguments, compression=options.compression)


TRANSPORTS: Mapping[str, Callable[[Options | None], Any]] = {"http2": http2_server, "grpcio": grpcio_server}


@asynccontextmanager
async def serving(server: Any, handlers: Handlers | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `server`, which offers `handlers` as service "test" and ends with the block."""
    if handlers is not None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", dict(handlers)),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(
        f"127.0.0.1:{port}",
        options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)],
    )
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(None)
