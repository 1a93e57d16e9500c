"""How commands reach a running server: its address, and credentials where it asks for them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import grpc
import rich_click as click
from rich.console import Console

Stub = TypeVar("Stub")

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and how to be let in."""

    url: str
    token_file: Path | None = None
    """With a bearer token."""
    ca_cert: Path | None = None
    """Whose certificates are believed. None: the connection is not encrypted."""

    @contextmanager
    def calling(self, stub: Callable[[grpc.Channel], Stub]) -> Iterator[Stub]:
        """A stub for the length of a `with` block; a call that fails ends the command and says why."""
        with self.channel() as channel:
            try:
                yield stub(channel)
            except grpc.RpcError as error:
                self.fail(error)

    def fail(self, error: Any) -> NoReturn:  # noqa: ANN401  (grpc.RpcError, whose subclasses alone have the methods)
        """End the command with what a call said."""
        away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        fail(f"{self.url}{' does not answer' if away else ''}: {error.details()}")

    def channel(self) -> grpc.Channel:
        """A channel to it, to be used in a `with` block."""
        if self.ca_cert is None:
            channel = grpc.insecure_channel(self.url)
        else:
            channel = grpc.secure_channel(self.url, grpc.ssl_channel_credentials(self.ca_cert.read_bytes()))
        if self.token_file is None:
            return channel
        return grpc.intercept_channel(channel, _Bearer(self.token_file))

    def aio_channel(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
        """The same for asyncio; of unary calls only."""
        interceptors: list[Any] = [] if self.token_file is None else [_AioBearer(self.token_file)]
        if self.ca_cert is None:
            return grpc.aio.insecure_channel(self.url, options=options, interceptors=interceptors)
        credentials = grpc.ssl_channel_credentials(self.ca_cert.read_bytes())
        return grpc.aio.secure_channel(self.url, credentials, options=options, interceptors=interceptors)


def fail(text: str) -> NoReturn:
    """End a command with status 1, and say why."""
    Console(stderr=True).print(f"[bold red]{text}[/]", highlight=False, soft_wrap=True)
    sys.exit(1)


def with_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which server is meant; the command gets an Address as `server`."""

    @functools.wraps(command)
    def run(url: str, token_file: Path | None, ca_cert: Path | None, **others: Any) -> Any:  # noqa: ANN401  (as click has it)
        return command(server=Address(url, token_file, ca_cert), **others)

    for option in (
        click.option("--ca-cert", type=_FILE, envvar="KAIROS_CA_CERT", help="Use TLS, and believe this authority."),
        click.option("--token-file", type=_FILE, envvar="KAIROS_TOKEN_FILE", help="File with a bearer token."),
        click.option(
            "--url", default="127.0.0.1:8001", show_default=True, envvar="KAIROS_URL", help="The server's address."
        ),
    ):
        run = option(run)
    return run


class _Details(NamedTuple):
    """`grpc.ClientCallDetails`, which is an interface."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Token:
    """Sends a bearer token with each call, on channels that are not encrypted, too."""

    def __init__(self, file: Path) -> None:
        self._entry = ("authorization", f"Bearer {file.read_text().strip()}")

    def with_token(self, details: Any) -> _Details:  # noqa: ANN401  (the library's own class is not public)
        metadata = (*(details.metadata or ()), self._entry)
        compression = getattr(details, "compression", None)
        return _Details(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready, compression
        )


class _AioBearer(_Token, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        details = self.with_token(client_call_details)
        metadata = grpc.aio.Metadata(*details.metadata)
        return await continuation(
            grpc.aio.ClientCallDetails(
                details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
            ),
            request,
        )


class _Bearer(_Token, grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        return continuation(self.with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        return continuation(self.with_token(client_call_details), request)
