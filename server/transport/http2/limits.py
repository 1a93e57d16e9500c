"""What one connection grants its peer, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.transport.http2.calm import PingLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection grants its peer."""

    max_concurrent_streams: int = 1024
    """Calls at once, counting those whose handler has not noticed yet that its client left."""
    max_frame_size: int = 1024 * 1024
    """Longest frame accepted, bytes, 16,384 to 16,777,215. Large: a message of megabytes is one frame."""
    stream_window_bytes: int = 1024 * 1024
    """Unread bytes a stream may send ahead, 65,535 to 2^31 - 1. A longer message is granted as it starts."""
    connection_window_bytes: int = 16 * 1024 * 1024
    """Bytes in flight for the whole connection; given back as they arrive. At most 2^31 - 1."""
    max_buffered_bytes: int = 256 * 1024 * 1024
    """Request bytes held for calls that cannot use them yet. A stream that exceeds it gets RESOURCE_EXHAUSTED."""
    max_unsent_bytes: int = 64 * 1024 * 1024
    """Reply bytes the peer leaves no window for. Above it, new streams are refused."""
    max_header_list_bytes: int = 16 * 1024
    """Header fields of one request, counted as HTTP/2 counts them. Beyond it: RESOURCE_EXHAUSTED."""
    control_burst: int = 4000
    """Frames that carry no request (pings, settings, empty data, window updates, ...) a peer may send at once."""
    control_per_s: float = 500.0
    """How fast that allowance comes back. Each request and each frame of payload gives some back as well."""
    reset_burst: int = 1000
    """Calls a peer may cancel, or have refused, at once."""
    reset_per_s: float = 200.0
    """How fast that allowance comes back. Each call that ends well gives one back as well.

    Calls that are given up after half of their time, of 10 ms or more, do not count: their deadline is near, and an
    overload makes a proxy's one connection give up thousands.
    """
    pings: PingLimits = field(default_factory=PingLimits)
    """How often a client may ping."""

    @property
    def max_block_bytes(self) -> int:
        """Longest compressed header block: the list's limit, with room for escapes and padding."""
        return 2 * self.max_header_list_bytes + 256
