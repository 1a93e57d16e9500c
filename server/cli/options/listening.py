"""Where the server listens, and for how long it drains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import rich_click as click

from server.cli.settings import in_panel, settings
from server.transport.certificates import TlsFiles
from server.transport.listen import ListenOptions, TransportKind

declare: Final = in_panel("Listening")

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)

declared = settings(
    declare(
        "--host",
        default="127.0.0.1",
        help="Address to listen on. `0.0.0.0` opens the server to other hosts.",
    ),
    declare(
        "--grpc-port",
        default=8001,
        type=click.IntRange(0, 65535),
        help="Port for gRPC. 0: any free one.",
    ),
    declare(
        "--transport",
        type=click.Choice([kind.value for kind in TransportKind]),
        default="http2",
        help="Our own HTTP/2 gRPC server, or grpcio's, which costs several times the CPU.",
    ),
    declare(
        "--grpc-use-ssl/--no-grpc-use-ssl",
        default=False,
        type=bool,
        help="Encrypt calls (TLS); needs a certificate and its key.",
    ),
    declare(
        "--grpc-server-cert",
        type=_FILE,
        help="The server's certificate as PEM, followed by the intermediate ones.",
    ),
    declare("--grpc-server-key", type=_FILE, help="Its private key as PEM."),
    declare(
        "--grpc-use-ssl-mutual/--no-grpc-use-ssl-mutual",
        default=False,
        type=bool,
        help="Turn away clients without a certificate (mutual TLS).",
    ),
    declare(
        "--grpc-root-cert",
        type=_FILE,
        help="Who may sign clients' certificates, as PEM; for mutual TLS.",
    ),
    declare(
        "--reuse-port/--no-reuse-port",
        default=False,
        type=bool,
        help="Share the port with other server processes.",
    ),
    declare(
        "--drain-delay-secs",
        default=0.0,
        type=click.FloatRange(min=0),
        help="How long after SIGTERM new calls are still taken, with readiness off, so that balancers notice first.",
    ),
    declare(
        "--exit-timeout-secs",
        default=30.0,
        type=click.FloatRange(min=0),
        help="Longest drain after SIGTERM.",
    ),
    declare(
        "--max-message-mb",
        default=256,
        type=click.IntRange(1, 2047),
        help="Largest message taken or sent, in MiB.",
    ),
    declare(
        "--max-metadata-kb",
        default=16,
        type=click.IntRange(1, 1024),
        help="Most metadata of one call, in KiB.",
    ),
    declare(
        "--max-connections",
        default=8192,
        type=click.IntRange(min=0),
        help="Open connections; the next is closed at once. 0: no bound.",
    ),
    declare(
        "--max-connections-per-host",
        default=0,
        type=click.IntRange(min=0),
        help="Of those, from one address; a proxy is one. Only with our own transport. 0: no bound.",
    ),
    declare(
        "--max-streams",
        default=1024,
        type=click.IntRange(min=1),
        help="Calls that one connection may have at a time.",
    ),
    declare(
        "--max-calls",
        default=0,
        type=click.IntRange(min=0),
        help="Calls at a time over all connections; the next gets RESOURCE_EXHAUSTED. 0: no bound.",
    ),
    declare(
        "--request-timeout-secs",
        default=120.0,
        type=click.FloatRange(min=0),
        help="Longest wait for a unary request to arrive, up to twice that. Only with our own transport. 0: for ever.",
    ),
    declare(
        "--max-inflight-mb",
        default=256,
        type=click.IntRange(min=0),
        help="Requests and answers held at a time, in MiB; more are refused. 0: no bound.",
    ),
)


def listen_options(values: dict[str, Any]) -> ListenOptions:
    """The settings of the transport. Raises UsageError for half of TLS."""
    return ListenOptions(
        host=values["host"],
        port=values["grpc_port"],
        transport=TransportKind(values["transport"]),
        max_message_bytes=values["max_message_mb"] << 20,
        max_inflight_bytes=values["max_inflight_mb"] << 20 or None,
        tls=tls_of(values),
        reuse_port=values["reuse_port"],
        max_connections=values["max_connections"],
        max_connections_per_host=values["max_connections_per_host"],
        max_streams=values["max_streams"],
        max_calls=values["max_calls"],
        max_metadata_bytes=values["max_metadata_kb"] << 10,
        request_timeout_s=values["request_timeout_secs"],
    )


def tls_of(values: dict[str, Any]) -> TlsFiles | None:
    """The files that TLS needs; None where it is off. Raises UsageError where one is missing."""
    mutual = values["grpc_use_ssl_mutual"]
    if not values["grpc_use_ssl"] and not mutual:
        return None
    needed = {"--grpc-server-cert": values["grpc_server_cert"], "--grpc-server-key": values["grpc_server_key"]}
    if mutual:
        needed["--grpc-root-cert"] = values["grpc_root_cert"]
    for flag, path in needed.items():
        if path is None:
            raise click.UsageError(f"TLS needs {flag}")
    return TlsFiles(
        certificate=needed["--grpc-server-cert"],
        key=needed["--grpc-server-key"],
        client_ca=needed.get("--grpc-root-cert"),
    )
