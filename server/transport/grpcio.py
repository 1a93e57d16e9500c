"""The service on grpcio's own asyncio server."""

from __future__ import annotations

from typing import Any, Final

import grpc

from server.transport.listen import ListenOptions

_GRPC_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


def create_server(options: ListenOptions) -> tuple[Any, int]:
    """A grpc.aio server bound to the address, and the port it got. Raises OSError when the address is taken."""
    server = grpc.aio.server(
        options=(
            *_GRPC_OPTIONS,
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
        )
    )
    try:
        port = server.add_insecure_port(f"{options.host}:{options.port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {options.host}:{options.port}: {error}") from error
    return server, port
