"""What an exporter can read of a running server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of one server; counts grow from its start, the others are of this moment."""

    connections: int
    """Open connections."""
    connections_accepted: int
    streams: int
    """Open streams on all connections."""
    calls: int
    """Calls whose handler runs."""
    calls_started: int
    calls_expired: int
    """Calls that their deadline ended."""
    received_bytes: int
    sent_bytes: int
    """Bytes from and to the sockets, above TLS."""
    queued_bytes: int
    """Reply bytes that clients leave no window for."""
    buffered_bytes: int
    """Request bytes that wait for their handlers."""
    resets: Mapping[str, int]
    """Streams that ended by RST_STREAM, by the name of the error code, whoever sent it."""
    connection_errors: Mapping[str, int]
    """Connections that the server ended for an error of the peer, by the name of the code."""
