"""Where the server listens, and on which of the two gRPC servers the service runs."""

from __future__ import annotations

import enum
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from server.transport import http2
from server.transport.certificates import Certificates, TlsFiles
from server.transport.guard import EarlyCall
from server.transport.inflight import CountCalls, Inflight


class TransportKind(enum.Enum):
    """The gRPC servers to choose from; both have the surface of `grpc.aio.Server`."""

    HTTP2 = "http2"  # our own
    GRPCIO = "grpcio"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Options of the gRPC listener, whichever transport it is."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this host only."""
    port: int = 8001
    """0: any free one."""
    transport: TransportKind = TransportKind.HTTP2
    max_message_bytes: int = 256 << 20
    """Largest message taken or sent; larger ones end the call with RESOURCE_EXHAUSTED."""
    tls: TlsFiles | None = None
    """None: calls are neither encrypted nor authenticated."""
    max_inflight_bytes: int | None = 256 << 20
    """Bytes of requests and answers held at a time; beyond it requests get RESOURCE_EXHAUSTED. None: no bound."""
    reuse_port: bool = False
    """Whether other processes may listen on the same port and share its connections."""
    max_connections: int = 8192
    """Open connections; the next is closed at once. 0: no bound."""
    max_connections_per_host: int = 0
    """Of those, from one address; only on our own transport. 0: no bound, since a proxy has one address."""
    max_streams: int = 1024
    """Calls that one connection may have at a time."""
    max_calls: int = 0
    """Calls at a time over all connections; the next gets RESOURCE_EXHAUSTED. 0: no bound."""
    max_metadata_bytes: int = 16 << 10
    """Metadata of one call, counted as HTTP/2 counts it; more ends the call with RESOURCE_EXHAUSTED."""
    request_timeout_s: float = 120.0
    """Longest wait for a unary request to arrive, up to twice that; only on our own transport. 0: for ever."""


INFER_PATH: Final = b"/inference.GRPCInferenceService/ModelInfer"
_NO_PING_STRIKES: Final = (("grpc.http2.max_pings_without_data", 0), ("grpc.keepalive_permit_without_calls", 1))


def create_server(
    options: ListenOptions,
    certificates: Certificates | None = None,
    admit: Callable[[str, EarlyCall], bool] | None = None,
    inflight: Inflight | None = None,
    shed: Callable[[], None] = lambda: None,
) -> tuple[Any, int]:
    """A gRPC server bound to the address, and the port it got. Raises OSError when the address is taken.

    `certificates` are those of `options.tls`, where they are to be followed. `admit` is asked about each call by its
    path as its head arrives; only our own transport knows of it then. `inflight` is kept up to date. `shed` is
    called for each inference that our own transport refuses unread, since more come than the event loop can answer.
    """
    own = options.transport is TransportKind.HTTP2
    server = _http2(options, admit, inflight, shed) if own else _grpcio(options, inflight)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{host}:{options.port}"
    try:
        if options.tls is None:
            port: int = server.add_insecure_port(address)
        else:
            certificates = certificates or Certificates(options.tls)
            port = server.add_secure_port(address, certificates.for_http2() if own else certificates.for_grpcio())
    except (RuntimeError, ssl.SSLError) as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    return server, port


def _http2(
    options: ListenOptions,
    admit: Callable[[str, EarlyCall], bool] | None,
    inflight: Inflight | None,
    shed: Callable[[], None],
) -> Any:  # noqa: ANN401  (the two servers share a surface, but no type)
    def admitted(call: Any) -> bool:  # noqa: ANN401  (our transport's own)
        assert admit is not None
        return admit(call.head.path.decode("latin-1"), call)

    return http2.Server(
        http2.Options(
            limits=http2.Limits(
                max_concurrent_streams=options.max_streams, max_header_list_bytes=options.max_metadata_bytes
            ),
            max_receive_message_bytes=options.max_message_bytes,
            max_send_message_bytes=options.max_message_bytes,
            max_connections=options.max_connections or None,
            max_connections_per_host=options.max_connections_per_host or None,
            max_concurrent_calls=options.max_calls or None,
            request_timeout_s=options.request_timeout_s or math.inf,
            admit=None if admit is None else admitted,
            turns=http2.Turns(INFER_PATH, shed),
            inflight=inflight,
            reuse_port=options.reuse_port,
        )
    )


def _grpcio(options: ListenOptions, inflight: Inflight | None) -> Any:  # noqa: ANN401
    return grpc.aio.server(
        interceptors=() if inflight is None else (CountCalls(inflight),),
        maximum_concurrent_rpcs=options.max_calls or None,
        options=(
            *_NO_PING_STRIKES,
            ("grpc.so_reuseport", int(options.reuse_port)),
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
            ("grpc.max_concurrent_streams", options.max_streams),
            # Between the two limits grpcio refuses at random; above the second, always.
            ("grpc.max_metadata_size", options.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
            *((("grpc.max_allowed_incoming_connections", options.max_connections),) if options.max_connections else ()),
        ),
    )
