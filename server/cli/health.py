"""`kairos health`: one gRPC health check, for containers and for probes that kubelet cannot make itself (TLS)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import grpc
import rich_click as click
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--url", default="127.0.0.1:8001", show_default=True, envvar="KAIROS_URL", help="The server's address.")
@click.option("--service", default="", help="A model to ask for by name. Default: the server.")
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait for the answer.")
@click.option(
    "--root-cert", type=_FILE, help="Who signed the server's certificate, as PEM. With it, the call uses TLS."
)
@click.option("--client-cert", type=_FILE, help="The caller's certificate as PEM, for mutual TLS.")
@click.option("--client-key", type=_FILE, help="Its private key as PEM.")
@click.option("--authority", help="The name in the server's certificate, where it is not that of the address.")
def health(url: str, service: str, timeout: float, authority: str | None, **tls: Path | None) -> None:
    """Ask a server whether it takes calls; exit status 0 if it does, 1 if not or if it does not answer."""
    options = [] if authority is None else [("grpc.ssl_target_name_override", authority)]
    credentials = _credentials(tls["root_cert"], tls["client_cert"], tls["client_key"])
    channel = grpc.insecure_channel(url) if credentials is None else grpc.secure_channel(url, credentials, options)
    serving, words = _check(channel, service, timeout)
    click.echo(words)
    if not serving:
        sys.exit(1)


def _credentials(root: Path | None, client: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    if (client is None) != (key is None):
        raise click.UsageError("--client-cert and --client-key go together")
    if root is None:
        if client is not None:
            raise click.UsageError("--client-cert needs --root-cert")
        return None
    return grpc.ssl_channel_credentials(
        root.read_bytes(), key.read_bytes() if key else None, client.read_bytes() if client else None
    )


def _check(channel: grpc.Channel, service: str, timeout_s: float) -> tuple[bool, str]:
    """Whether it serves, and the answer in words."""
    with channel:
        try:
            answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            return False, f"{error.code().name}: {error.details()}"
    words = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return words == "SERVING", words
