"""Connections that only stand there, plain or encrypted."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from server.transport.http2 import frames
from tests.support.certificates import Authority

_PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """A server's certificate and key in files, and the authority that a client has to believe."""

    folder: Path
    authority: bytes

    @property
    def flags(self) -> tuple[str, ...]:
        """For the server."""
        chain, key = str(self.folder / "chain.pem"), str(self.folder / "key.pem")
        return "--grpc-use-ssl", "--grpc-server-cert", chain, "--grpc-server-key", key

    def context(self) -> ssl.SSLContext:
        """For a client that speaks HTTP/2."""
        made = ssl.create_default_context(cadata=self.authority.decode())
        made.set_alpn_protocols(["h2"])
        return made


@contextmanager
def certificates() -> Iterator[Certificates]:
    """Of an authority of its own."""
    authority = Authority()
    options = authority.server_options()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "chain.pem").write_bytes(options.certificate_chain)
        (Path(name) / "key.pem").write_bytes(options.private_key)
        yield Certificates(Path(name), authority.certificate)


class Crowd:
    """Greeted connections without a call, encrypted where there are certificates; closed at the end of the block."""

    def __init__(self, issued: Certificates | None = None) -> None:
        self._context = issued.context() if issued else None
        self._sockets: list[socket.socket] = []

    @property
    def encrypted(self) -> bool:
        return self._context is not None

    def __len__(self) -> int:
        return len(self._sockets)

    def grow(self, url: str, to: int) -> None:
        """Open connections until there are so many. OSError where the server takes no more."""
        while len(self._sockets) < to:
            self._sockets.append(self._opened(url))

    def _opened(self, url: str) -> socket.socket:
        host, _, port = url.rpartition(":")
        opened = socket.create_connection((host, int(port)), _PATIENCE_S)
        if self._context is not None:
            opened = self._context.wrap_socket(opened, server_hostname="localhost")
        opened.sendall(frames.PREFACE + frames.settings(()))
        heard = b""
        while frames.SETTINGS_ACK not in heard:
            data = opened.recv(4096)
            if not data:
                raise ConnectionError(f"{url} closed a connection, after {len(self)} others")
            heard += data
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()
