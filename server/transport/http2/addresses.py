"""Addresses as gRPC writes them, bound to sockets."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """A bound socket that does not listen yet."""

    socket: socket.socket
    port: int
    """The port; 1 for a Unix socket, as gRPC has it."""
    path: Path | None = None
    """The file of a Unix socket, to be removed at the end."""

    @property
    def is_unix(self) -> bool:
        return self.socket.family == socket.AF_UNIX

    def release(self) -> None:
        """Close the socket, and remove its file."""
        self.socket.close()
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


def bind(text: str, *, reuse_port: bool) -> Address:
    """Bind "host:port", "[host]:port", "unix:path" or "unix-abstract:name". RuntimeError where that fails."""
    try:
        if text.startswith("unix:"):
            return _bind_unix(text.removeprefix("unix:").removeprefix("//"))
        if text.startswith("unix-abstract:"):
            return _bind_unix("\0" + text.removeprefix("unix-abstract:"))
        return _bind_tcp(text, reuse_port=reuse_port)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"Failed to bind to address {text}: {error}") from error


def _bind_unix(path: str) -> Address:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    return Address(bound, 1, None if path.startswith("\0") else Path(path))


def _bind_tcp(text: str, *, reuse_port: bool) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "0"
    host = host.removeprefix("[").removesuffix("]") or "::"
    family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    if host == "::" and not socket.has_dualstack_ipv6():
        family, address = socket.AF_INET, ("0.0.0.0", int(port))  # noqa: S104 - that is what [::] asks for
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return Address(bound, bound.getsockname()[1])
