"""The sending half of a connection: what may go out now, what waits for window, who is next.

Rule: no socket; frames gather in `chunks` until the owner takes them, once a loop turn.
Promise: no more payload gathers than the peer's windows allow, nor, beyond one frame, than `FLUSH_BYTES` of what
had to wait.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from server.transport.http2 import frames
from server.transport.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS
from server.transport.http2.hpack import literal
from server.transport.http2.streams import AFTER_WE_ENDED, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.transport.inflight import Inflight

FLUSH_BYTES: Final = 256 * 1024
"""How much waiting payload is made ready for one write."""

_TURN_BYTES: Final = 64 * 1024
"""Longest frame that a stream sends before the next one's turn."""

_PREFIX_BYTES: Final = 5
"""A gRPC message's own head: one byte that says whether it is compressed, four of length."""

RESPONSE_BLOCK: Final = b"\x88\x0f\x10\x10application/grpc"  # :status 200 by index, content-type by its name's index
OK_BLOCK: Final = literal(b"grpc-status", b"0")

NO_TRAILERS: Final = b""
"""In place of trailers: the stream ends with its last DATA frame."""

_PREFIX: Final = Struct(">BL")
_MESSAGE_HEAD: Final = Struct(">HBBBLBL")
_UNARY_HEAD: Final = Struct(f">HBBBL{len(RESPONSE_BLOCK)}sHBBBLBL")
_UNARY_TAIL: Final = Struct(f">HBBBL{len(OK_BLOCK)}s")


class Sender:
    """Gathers frames for one connection and keeps both levels of the peer's flow control."""

    __slots__ = (
        "_on_end",
        "_on_output",
        "_waiting",
        "announced",
        "chunks",
        "corked",
        "frames",
        "inflight",
        "initial_window",
        "max_frame_size",
        "queued_bytes",
        "ready_bytes",
        "window",
    )

    def __init__(self, on_output: Callable[[], None], on_end: Callable[[Stream], None]) -> None:
        self._on_output = on_output
        self._on_end = on_end
        self._waiting: dict[Stream, None] = {}  # insertion order is the order of turns
        self.chunks: list[bytes | memoryview] = []
        self.ready_bytes = 0
        """Payload in `chunks`."""
        self.announced = False
        """Whether the owner knows that there is something to take."""
        self.corked = False
        """Whether the socket refuses more; payload then waits as if it had no window."""
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame_size = frames.DEFAULT_FRAME_SIZE
        self.queued_bytes = 0
        """Payload that waits, in all streams."""
        self.inflight: Inflight | None = None
        """Counts the payload that waits, too."""
        self.frames = 0
        """HEADERS and DATA frames sent: what the peer may well answer with frames of its own."""

    def take(self) -> list[bytes | memoryview]:
        """All that is ready, in order; the caller sends it."""
        chunks = self.chunks
        self.chunks = []
        self.ready_bytes = 0
        self.announced = False
        return chunks

    def _announce(self) -> None:
        if not self.announced:
            self.announced = True
            self._on_output()

    def control(self, frame: bytes) -> None:
        """Send a frame that no window holds back."""
        self.chunks.append(frame)
        self._announce()

    def respond(self, stream: Stream, message: bytes) -> None:
        """The whole answer of a successful unary call: head, one message, status 0."""
        size = len(message) + _PREFIX_BYTES
        if size > self.max_frame_size or size > self.window or size > stream.send_window or self.corked or stream.queue:
            self.headers(stream, RESPONSE_BLOCK)
            self.message(stream, 0, message)
            self.end(stream, OK_BLOCK)
            return
        self.window -= size
        self.ready_bytes += size
        self.frames += 3
        stream_id = stream.id
        self.chunks += (
            _UNARY_HEAD.pack(
                0, len(RESPONSE_BLOCK), HEADERS, END_HEADERS, stream_id, RESPONSE_BLOCK,
                size >> 8, size & 0xFF, DATA, 0, stream_id, 0, size - _PREFIX_BYTES,
            ),
            message,
            _UNARY_TAIL.pack(0, len(OK_BLOCK), HEADERS, END_HEADERS | END_STREAM, stream_id, OK_BLOCK),
        )  # fmt: skip
        self._ended(stream)
        if not self.announced:
            self.announced = True
            self._on_output()

    def headers(self, stream: Stream, block: bytes, *, end_stream: bool = False) -> None:
        """Send a response head, or with `end_stream` an answer that is nothing but its head."""
        self.frames += 1
        self.chunks.append(frames.headers(stream.id, block, end_stream=end_stream, max_frame_size=self.max_frame_size))
        if end_stream:
            self._ended(stream)
        self._announce()

    def message(self, stream: Stream, compressed: int, message: bytes) -> None:
        """Send one gRPC message, now as far as windows allow; the rest waits its turn."""
        size = len(message) + _PREFIX_BYTES
        if size > self.max_frame_size or size > self.window or size > stream.send_window or self.corked or stream.queue:
            self.payload(stream, _PREFIX.pack(compressed, len(message)), message)
            return
        self.window -= size
        stream.send_window -= size
        self.ready_bytes += size
        self.frames += 1
        self.chunks += (
            _MESSAGE_HEAD.pack(size >> 8, size & 0xFF, DATA, 0, stream.id, compressed, size - _PREFIX_BYTES),
            message,
        )
        if not self.announced:
            self.announced = True
            self._on_output()

    def payload(self, stream: Stream, *parts: bytes, last: bool = False) -> None:
        """Send `parts` as DATA, now as far as windows allow; the rest waits its turn. Last: END_STREAM follows them."""
        size = sum(map(len, parts))
        if (
            size <= self.max_frame_size
            and size <= self.window
            and size <= stream.send_window
            and not self.corked
            and not stream.queue
        ):
            self._data(stream, size, last=last)
            self.chunks += parts
            self._announce()
            if last:
                self._ended(stream)
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.extend([memoryview(part) for part in parts if part])
        stream.queued_bytes += size
        self.queued_bytes += size
        if self.inflight is not None:
            self.inflight.add(size)
        if last:
            stream.trailers = NO_TRAILERS
        if stream.send_window > 0:
            self._waiting[stream] = None
            self.pump()

    def end(self, stream: Stream, block: bytes) -> None:
        """Send the trailers, after all payload that still waits."""
        if stream.queue:
            stream.trailers = block
        else:
            self.headers(stream, block, end_stream=True)

    def discard(self, stream: Stream) -> None:
        """The stream is gone: forget what it wanted to send."""
        self._waiting.pop(stream, None)
        self.queued_bytes -= stream.queued_bytes
        if self.inflight is not None:
            self.inflight.release(stream.queued_bytes)
        stream.queued_bytes = 0
        stream.queue = None
        stream.trailers = None

    def enlarge(self, increment: int) -> bool:
        """The peer opened the connection's window. False where it exceeds what HTTP/2 allows."""
        self.window += increment
        if self.window > frames.MAX_WINDOW:
            return False
        self.pump()
        return True

    def enlarge_stream(self, stream: Stream, increment: int) -> bool:
        """The peer opened (or, by a new initial window, closed) a stream's window. False where it is too large.

        What waits goes out at the next `pump`.
        """
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            return False
        if stream.queue and stream.send_window > 0:
            self._waiting[stream] = None
        return True

    def cork(self) -> None:
        """The socket takes no more for now."""
        self.corked = True

    def uncork(self) -> None:
        """The socket takes more again."""
        self.corked = False
        self.pump()

    def pump(self) -> None:
        """Let the streams that wait take turns until a window, the socket or `FLUSH_BYTES` says stop."""
        waiting = self._waiting
        while waiting and self.window > 0 and not self.corked and self.ready_bytes < FLUSH_BYTES:
            stream = next(iter(waiting))
            del waiting[stream]
            if self._turn(stream):
                waiting[stream] = None

    def _turn(self, stream: Stream) -> bool:
        """Send one frame of what `stream` has waiting. Whether it could go on at once."""
        queue = stream.queue
        if not queue or stream.send_window <= 0:  # the peer may have shrunk it since
            return False
        room = min(self.max_frame_size, self.window, stream.send_window, _TURN_BYTES)
        parts: list[memoryview] = []
        size = 0
        while queue and size < room:
            view = queue.popleft()
            if len(view) > room - size:
                queue.appendleft(view[room - size :])
                view = view[: room - size]
            parts.append(view)
            size += len(view)
        last = not queue and stream.trailers is NO_TRAILERS
        self._data(stream, size, last=last)
        self.chunks += parts
        stream.queued_bytes -= size
        self.queued_bytes -= size
        if self.inflight is not None:
            self.inflight.release(size)
        self._announce()
        if last:
            self._ended(stream)
        else:
            self._progressed(stream)
        return bool(stream.queue) and stream.send_window > 0

    def _progressed(self, stream: Stream) -> None:
        if not stream.queue and stream.trailers is not None:
            block, stream.trailers = stream.trailers, None
            self.headers(stream, block, end_stream=True)
        elif stream.receiver is not None:
            stream.receiver.sent()

    def _data(self, stream: Stream, size: int, *, last: bool = False) -> None:
        self.window -= size
        stream.send_window -= size
        self.ready_bytes += size
        self.frames += 1
        self.chunks.append(frames.head(size, DATA, END_STREAM if last else 0, stream.id))

    def _ended(self, stream: Stream) -> None:
        stream.state = AFTER_WE_ENDED[stream.state]
        self._on_end(stream)
