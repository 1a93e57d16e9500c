"""The life of a stream (RFC 9113, section 5.1) as tables, and the record the connection keeps of each.

A client's stream is born with its HEADERS; the server never opens one, so the reserved states do not occur.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

from server.transport.http2.errors import ErrorCode
from server.transport.http2.frames import CONTINUATION, DATA, HEADERS, RST_STREAM, WINDOW_UPDATE

if TYPE_CHECKING:
    from collections import deque

IDLE: Final = 0
OPEN: Final = 1
HALF_CLOSED_LOCAL: Final = 2
HALF_CLOSED_REMOTE: Final = 3
CLOSED: Final = 4

AFTER_PEER_ENDED: Final = (IDLE, HALF_CLOSED_REMOTE, CLOSED, HALF_CLOSED_REMOTE, CLOSED)
"""State -> state once the peer's END_STREAM came."""

AFTER_WE_ENDED: Final = (IDLE, HALF_CLOSED_LOCAL, HALF_CLOSED_LOCAL, CLOSED, CLOSED)
"""State -> state once our END_STREAM went out."""

UNEXPECTED: Final[dict[int, dict[int, ErrorCode]]] = {
    IDLE: dict.fromkeys((DATA, RST_STREAM, WINDOW_UPDATE, CONTINUATION), ErrorCode.PROTOCOL_ERROR),
    OPEN: {},
    HALF_CLOSED_LOCAL: {},
    HALF_CLOSED_REMOTE: dict.fromkeys((DATA, HEADERS), ErrorCode.STREAM_CLOSED),
    CLOSED: dict.fromkeys((DATA, HEADERS), ErrorCode.STREAM_CLOSED),
}
"""State -> the frames that may not arrive in it, and the error each is. IDLE: of the connection; else of the stream."""


class Receiver(Protocol):
    """Who a stream's payload is for; the connection calls it, in order, from within `receive`."""

    def data_received(self, view: memoryview, ended: bool) -> None:
        """Bytes of the request body; `view` is valid only during the call. Ended: nothing follows."""

    def landing(self, limit: int) -> memoryview | None:
        """Where the next body bytes, at most `limit`, would be stored anyway, or None when in no hurry."""

    def landed(self, size: int, ended: bool) -> None:
        """`size` bytes were stored at the start of the last `landing`."""

    def reset(self, code: int) -> None:
        """The stream is gone: the peer reset it, broke a rule on it, or the connection was lost."""

    def sent(self) -> None:
        """Part of what waited for window was sent: a writer that waits may go on."""


class Nobody:
    """Receives what still comes for a call that is over, or was answered from its head alone."""

    def data_received(self, view: memoryview, ended: bool) -> None:
        pass

    def landing(self, limit: int) -> memoryview | None:  # noqa: ARG002 - the protocol's signature
        return None

    def landed(self, size: int, ended: bool) -> None:
        pass

    def reset(self, code: int) -> None:
        pass

    def sent(self) -> None:
        pass


NOBODY: Final = Nobody()


class Stream:
    """One stream of a connection. Only the connection changes it; receivers read it."""

    __slots__ = (
        "content_left",
        "forgiven_from",
        "id",
        "patient",
        "queue",
        "queued_bytes",
        "receive_window",
        "receiver",
        "send_window",
        "state",
        "trailers",
    )

    def __init__(self, stream_id: int, receive_window: int, send_window: int) -> None:
        self.id = stream_id
        self.state = OPEN
        self.receiver: Receiver | None = None
        self.receive_window = receive_window
        """Bytes the peer may still send."""
        self.send_window = send_window
        """Bytes we may still send; negative after the peer shrank its initial window."""
        self.queue: deque[memoryview] | None = None
        """Payload that waits for window; None as long as nothing ever had to wait."""
        self.queued_bytes = 0
        self.trailers: bytes | None = None
        """The header block that follows the queue."""
        self.content_left: int | None = None
        """What content-length still promises."""
        self.forgiven_from = math.inf
        """From when on a reset by the peer is no more than impatience."""
        self.patient = False
        """Whether a request that was answered early may send its body to the end."""

    def __repr__(self) -> str:
        state = ("idle", "open", "half-closed (local)", "half-closed (remote)", "closed")[self.state]
        return f"<Stream {self.id} [{state} | {self.queued_bytes} bytes queued]>"
