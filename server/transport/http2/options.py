"""What an operator can set on the server as a whole; the connection's own limits are nested."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from server.transport.http2.limits import Limits
from server.transport.http2.turns import Turns
from server.transport.inflight import Inflight

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.transport.http2.call import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the server treats messages, connections and sockets."""

    limits: Limits = field(default_factory=Limits)
    """What each connection grants its peer."""
    max_receive_message_bytes: int = 4 * 1024 * 1024
    """Longest request message, after decompression. A longer one: RESOURCE_EXHAUSTED."""
    max_send_message_bytes: int | None = None
    """Longest reply message, before compression. A longer one: RESOURCE_EXHAUSTED. None: any length."""
    compression: grpc.Compression = grpc.Compression.NoCompression
    """How replies are compressed where the client accepts it and the call sets nothing else."""
    max_concurrent_calls: int | None = None
    """Calls at once over all connections; the next gets RESOURCE_EXHAUSTED. None: no bound."""
    max_connections: int | None = None
    """Open connections; the next is closed at once. None: no bound."""
    max_connections_per_host: int | None = None
    """Open connections from one address; the next is closed at once. None: no bound."""
    admit: Callable[[Call], bool] | None = None
    """Asked as the head of a call arrives; False where it has ended the call. None: all calls are let in."""
    handshake_timeout_s: float = 20.0
    """Longest wait, from accepting a connection, for the client's first frame."""
    frame_timeout_s: float = 20.0
    """Longest wait for the rest of a header block or a control frame that a client began to send."""
    request_timeout_s: float = 120.0
    """Longest wait for the one message of a unary request, give or take as much again. math.inf: for ever."""
    keepalive_interval_s: float = 7200.0
    """Silence after which the client is pinged. math.inf: never."""
    keepalive_timeout_s: float = 20.0
    """Longest wait for a sign of life after that ping; then the connection is dropped."""
    send_timeout_s: float = 60.0
    """Longest time a client may take nothing of what waits for it; then it is dropped. math.inf: for ever."""
    max_connection_idle_s: float = math.inf
    """How long a connection may have no call before it is drained. math.inf: for ever."""
    max_connection_age_s: float = math.inf
    """Age at which a connection is drained, give or take a tenth. math.inf: never."""
    max_connection_age_grace_s: float = math.inf
    """How long its calls may then go on before they are cancelled. math.inf: until they end."""
    turns: Turns | None = None
    """Has calls of its path wait for their turn, and refuses whom that is too late for. None: all start at once."""
    inflight: Inflight | None = None
    """Counts the bytes of all connections; beyond its limit requests get RESOURCE_EXHAUSTED. None: no such bound."""
    reuse_port: bool = False
    """Whether other processes may listen on the same port (SO_REUSEPORT), sharing its connections."""
    backlog: int = 1024
    """Connections the kernel holds until they are accepted; it may cut the number."""
