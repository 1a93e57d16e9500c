"""Metrics of a gRPC transport that keeps statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from prometheus_client.core import Metric

from server.telemetry.families import counter, counts, gauge


class TransportStatistics(Protocol):
    """A snapshot; counts grow from the server's start, the others are of this moment."""

    @property
    def resets(self) -> Mapping[str, int]: ...
    @property
    def connection_errors(self) -> Mapping[str, int]: ...


class InflightBytes(Protocol):
    """What the process holds of requests and answers, and may hold."""

    @property
    def used_bytes(self) -> int: ...
    @property
    def limit_bytes(self) -> int: ...
    @property
    def refused(self) -> int: ...


GAUGES: Final = {
    "connections": ("kairos_connections", "Open connections."),
    "streams": ("kairos_streams", "Open HTTP/2 streams on all connections."),
    "calls": ("kairos_calls", "Calls whose handler runs."),
    "queued_bytes": ("kairos_transport_queued_bytes", "Reply bytes that clients leave no window for."),
    "buffered_bytes": ("kairos_transport_buffered_bytes", "Request bytes that wait for their handlers."),
}
COUNTERS: Final = {
    "connections_accepted": ("kairos_connections_accepted", "Connections ever accepted."),
    "calls_started": ("kairos_calls_started", "Calls of all methods."),
    "calls_expired": ("kairos_calls_expired", "Calls that their deadline ended."),
    "received_bytes": ("kairos_received_bytes", "Bytes from sockets, above TLS."),
    "sent_bytes": ("kairos_sent_bytes", "Bytes to sockets, above TLS."),
}


def transport_metrics(now: TransportStatistics) -> Iterator[Metric]:
    """Connections, streams, bytes and faults."""
    for field, (name, text) in GAUGES.items():
        yield gauge(name, text, [((), getattr(now, field))])
    for field, (name, text) in COUNTERS.items():
        yield counter(name, text, [((), getattr(now, field))])
    yield counter("kairos_stream_resets", "Streams that ended by RST_STREAM.", counts(now.resets), ("code",))
    errors = counts(now.connection_errors)
    yield counter("kairos_connection_errors", "Connections ended for an error of the peer.", errors, ("code",))


def inflight_metrics(now: InflightBytes) -> Iterator[Metric]:
    """Bytes held, their bound, and requests refused because of it."""
    yield gauge("kairos_inflight_bytes", "Bytes of requests and answers that are held.", [((), now.used_bytes)])
    yield gauge("kairos_inflight_limit_bytes", "Above this, requests are refused.", [((), now.limit_bytes)])
    text = "Requests refused because too many bytes were held."
    yield counter("kairos_inflight_refused", text, [((), now.refused)])
