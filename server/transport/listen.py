"""Where the server listens, and on which of the two gRPC servers the service runs."""

from __future__ import annotations

import enum
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from server.transport import http2
from server.transport.inflight import CountCalls, Inflight


class TransportKind(enum.Enum):
    """The gRPC servers to choose from; both have the surface of `grpc.aio.Server`."""

    HTTP2 = "http2"  # our own
    GRPCIO = "grpcio"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Who the server is, and whom it trusts: PEM files, read when the server starts."""

    certificate: Path
    """The server's certificate, followed by the intermediate ones."""
    key: Path
    """Its private key."""
    client_ca: Path | None = None
    """Who may sign clients' certificates; clients then need one. None: any client may call."""


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


_NO_PING_STRIKES: Final = (("grpc.http2.max_pings_without_data", 0), ("grpc.keepalive_permit_without_calls", 1))


def create_server(options: ListenOptions, inflight: Inflight | None = None) -> tuple[Any, int]:
    """A gRPC server bound to the address, and the port it got; it keeps `inflight` up to date.

    Raises OSError when the address is taken.
    """
    own = options.transport is TransportKind.HTTP2
    server = _http2(options, inflight) if own else _grpcio(options, inflight)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{host}:{options.port}"
    try:
        if options.tls is None:
            port: int = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _identity(options.tls) if own else _credentials(options.tls))
    except (RuntimeError, ssl.SSLError) as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    return server, port


def _identity(files: TlsFiles) -> http2.TlsOptions:
    return http2.TlsOptions(
        private_key=files.key.read_bytes(),
        certificate_chain=files.certificate.read_bytes(),
        client_ca=files.client_ca.read_bytes() if files.client_ca else None,
    )


def _credentials(files: TlsFiles) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.certificate.read_bytes())],
        root_certificates=files.client_ca.read_bytes() if files.client_ca else None,
        require_client_auth=files.client_ca is not None,
    )


def _http2(options: ListenOptions, inflight: Inflight | None) -> Any:  # noqa: ANN401  (the two servers share a surface, but no type)
    return http2.Server(
        http2.Options(
            max_receive_message_bytes=options.max_message_bytes,
            max_send_message_bytes=options.max_message_bytes,
            inflight=inflight,
            reuse_port=options.reuse_port,
        )
    )


def _grpcio(options: ListenOptions, inflight: Inflight | None) -> Any:  # noqa: ANN401
    return grpc.aio.server(
        interceptors=() if inflight is None else (CountCalls(inflight),),
        options=(
            *_NO_PING_STRIKES,
            ("grpc.so_reuseport", int(options.reuse_port)),
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
        ),
    )
