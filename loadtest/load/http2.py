"""The client's end of gRPC over HTTP/2, without a socket: what load costs should be the server's, not its own.

Rule: bytes in, bytes out; no clock, no socket. A call is known by its number. Its answer's message is counted, not
kept. Flow control of answers is opened as wide as the protocol allows, so that nothing is sent back for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from server.transport.http2 import frames, hpack

OK, CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE = 0, 1, 4, 13, 14

Field = tuple[bytes, bytes]
Ended = Callable[[int, int], None]
"""Called once for each call, with its number and its gRPC status code."""

_WIDE: Final = 2**30
_MESSAGE_HEAD_BYTES: Final = 5
_REFUSED: Final = 0x7
_CANCEL: Final = 0x8
_DYNAMIC_FROM: Final = len(hpack.STATIC) + 1
_STATIC: Final = {field: index for index, field in enumerate(hpack.STATIC, 1)}
# RFC 9113, section 7, as gRPC's statuses ("PROTOCOL-HTTP2": HTTP2 transport mapping).
_RESETS: Final = {0x8: CANCELLED, 0xB: 8, 0xC: 7}


class ProtocolBroken(Exception):
    """The server said what this client does not understand; the connection is of no more use."""


def head_of(path: str, authority: str, metadata: tuple[tuple[str, str], ...] = ()) -> tuple[Field, ...]:
    """The header fields of a call, all but its timeout."""
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
        ("te", "trailers"), ("content-type", "application/grpc"), *metadata,
    ]  # fmt: skip
    return tuple((name.encode(), value.encode()) for name, value in fields)


def timeout_field(seconds: float) -> bytes:
    """grpc-timeout as a literal of HPACK; at most eight digits are allowed."""
    micros = max(1, round(seconds * 1e6))
    text = b"%du" % micros if micros < 10**8 else b"%dm" % min(10**8 - 1, micros // 1000)
    return hpack.literal(b"grpc-timeout", text)


class Fields:
    """Encodes the heads of one connection: each field is spelt out once and named by its number afterwards."""

    def __init__(self) -> None:
        self.table_bytes = hpack.DEFAULT_TABLE_BYTES
        """What the server has room for."""
        self._used = 0
        self._inserted: dict[Field, int] = {}
        self._blocks: dict[tuple[Field, ...], bytes] = {}

    def block(self, head: tuple[Field, ...]) -> bytes:
        """The header block for `head`."""
        known = self._blocks.get(head)
        if known is not None:
            return known
        before = len(self._inserted)
        block = b"".join([self._encode(field) for field in head])
        if len(self._inserted) == before:
            self._blocks[head] = block
        else:
            self._blocks.clear()  # all numbers have moved
        return block

    def _encode(self, field: Field) -> bytes:
        if field in _STATIC:
            return hpack.encode_integer(_STATIC[field], 7, 0x80)
        if field in self._inserted:
            return hpack.encode_integer(_DYNAMIC_FROM - 1 + len(self._inserted) - self._inserted[field], 7, 0x80)
        size = len(field[0]) + len(field[1]) + 32
        literal = hpack.literal(*field)
        if self._used + size > self.table_bytes:
            return literal
        self._used += size
        self._inserted[field] = len(self._inserted)
        return b"\x40" + literal[1:]


class _Call(NamedTuple):
    number: int
    head: tuple[Field, ...]
    message: bytes
    timeout_s: float | None


class _Unsent:
    """A message that waits for the server's flow control."""

    __slots__ = ("data", "stream", "window")

    def __init__(self, stream: int, data: memoryview, window: int) -> None:
        self.stream, self.data, self.window = stream, data, window


class Connection:
    """One connection. Give `take()` to the socket after each turn, and what the socket gives to `receive`."""

    def __init__(self, ended: Ended) -> None:
        self._ended = ended
        self._out: list[bytes] = [
            frames.PREFACE,
            frames.settings(((frames.ENABLE_PUSH, 0), (frames.INITIAL_WINDOW_SIZE, frames.MAX_WINDOW))),
            frames.window_update(0, _WIDE),
        ]
        self._in = bytearray()
        self._fields = Fields()
        self._decoder = hpack.Decoder(max_list_bytes=1 << 16)
        self._statuses: dict[bytes, int | None] = {}
        self._generation = 0
        self._next_stream = 1
        self._calls: dict[int, _Call] = {}
        self._streams: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._unsent: dict[int, _Unsent] = {}
        self._waiting: deque[_Call] = deque()
        self._window = frames.DEFAULT_WINDOW
        self._stream_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.DEFAULT_FRAME_SIZE
        self._most_streams = 2**31
        self._received = 0
        self._block: tuple[int, int, bytearray] | None = None
        self.greeted = False
        """Whether the server's settings have come: its limits are known then."""
        self.closing = False
        """The server takes no more calls on this connection."""

    @property
    def in_flight(self) -> int:
        """Calls without an answer."""
        return len(self._calls) + len(self._waiting)

    def take(self) -> bytes:
        """What is to be written to the socket."""
        if not self._out:
            return b""
        out = b"".join(self._out)
        self._out.clear()
        return out

    # calls

    def start(self, call: int, head: tuple[Field, ...], message: bytes, timeout_s: float | None) -> None:
        """Begin a call, or queue it where the server allows no more at a time. `message` has gRPC's prefix."""
        begun = _Call(call, head, message, timeout_s)
        if len(self._calls) >= self._most_streams:
            self._waiting.append(begun)
        else:
            self._send(begun)

    def _send(self, call: _Call) -> None:
        number, head, message, timeout_s = call
        stream = self._next_stream
        self._next_stream += 2
        self._calls[stream] = call
        self._streams[number] = stream
        block = self._fields.block(head)
        if timeout_s is not None:
            block += timeout_field(timeout_s)
        size = len(message)
        if size <= self._frame_bytes and size <= self._window and size <= self._stream_window and not self._unsent:
            self._window -= size
            headers = frames.head(len(block), frames.HEADERS, frames.END_HEADERS, stream)
            self._out += (headers, block, frames.head(size, frames.DATA, frames.END_STREAM, stream), message)
            return
        self._out.append(frames.headers(stream, block, end_stream=False, max_frame_size=self._frame_bytes))
        self._unsent[stream] = _Unsent(stream, memoryview(message), self._stream_window)
        self._pump()

    def _pump(self) -> None:
        """Send as much of the waiting messages as the server has room for."""
        for unsent in list(self._unsent.values()):
            while unsent.data and (room := min(self._window, unsent.window, self._frame_bytes)) > 0:
                piece, unsent.data = unsent.data[:room], unsent.data[room:]
                size = len(piece)
                flags = 0 if unsent.data else frames.END_STREAM
                self._out += (frames.head(size, frames.DATA, flags, unsent.stream), bytes(piece))
                self._window -= size
                unsent.window -= size
            if not unsent.data:
                del self._unsent[unsent.stream]
            if self._window <= 0:
                return

    def cancel(self, call: int, code: int = CANCELLED) -> None:
        """End a call from this side."""
        stream = self._streams.get(call)
        if stream is None:
            self._waiting = deque(each for each in self._waiting if each.number != call)
            self._ended(call, code)
            return
        self._out.append(frames.rst_stream(stream, _CANCEL))
        self._end(stream, code)

    def lost(self) -> None:
        """The socket is gone: end all calls."""
        self.closing = True
        for stream in list(self._calls):
            self._end(stream, UNAVAILABLE)
        while self._waiting:
            self._ended(self._waiting.popleft().number, UNAVAILABLE)

    def _end(self, stream: int, code: int) -> None:
        call = self._forget(stream)
        if call is not None:
            self._ended(call.number, code)
            self._send_waiting()

    def _forget(self, stream: int) -> _Call | None:
        call = self._calls.pop(stream, None)
        if call is not None:
            del self._streams[call.number]
            self._sizes.pop(stream, None)
            self._unsent.pop(stream, None)
        return call

    def _send_waiting(self) -> None:
        if self._waiting and len(self._calls) < self._most_streams and not self.closing:
            self._send(self._waiting.popleft())

    def _reset(self, stream: int, code: int) -> None:
        if code != _REFUSED:
            self._end(stream, _RESETS.get(code, INTERNAL))
        elif (call := self._forget(stream)) is not None:
            self._waiting.append(call)  # the server has not touched it: gRPC's clients try again by themselves, too
            if not self._calls:
                self._send_waiting()

    # what comes in

    def receive(self, data: bytes | memoryview) -> None:
        """Take what the socket gave. ProtocolBroken where it makes no sense."""
        self._in += data
        buffer, at, size = self._in, 0, len(self._in)
        unpack = frames.HEAD.unpack_from
        view = memoryview(buffer)
        try:
            while size - at >= frames.HEAD_BYTES:
                high, low, kind, flags, stream = unpack(buffer, at)
                end = at + frames.HEAD_BYTES + (high << 8 | low)
                if end > size:
                    break
                self._frame(kind, flags, stream & frames.MAX_STREAM_ID, view[at + frames.HEAD_BYTES : end])
                at = end
        finally:
            view.release()
        del buffer[:at]

    def _frame(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        if kind == frames.DATA:
            self._data(flags, stream, len(payload))
        elif kind == frames.HEADERS:
            self._headers(flags, stream, _unpadded(payload, flags))
        elif kind == frames.CONTINUATION:
            if self._block is None:
                raise ProtocolBroken("a continuation of nothing")
            first_flags, stream, block = self._block
            block += payload
            if flags & frames.END_HEADERS:
                self._block = None
                self._fields_came(first_flags, stream, bytes(block))
        elif kind == frames.RST_STREAM:
            self._reset(stream, frames.parse_long(payload))
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._settings(payload)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(stream, frames.parse_long(payload))
        elif kind == frames.PING and not flags & frames.ACK:
            self._out.append(frames.ping(bytes(payload), ack=True))
        elif kind == frames.GOAWAY:
            self._goaway(frames.parse_long(payload) & frames.MAX_STREAM_ID)

    def _data(self, flags: int, stream: int, size: int) -> None:
        self._received += size
        if self._received >= _WIDE // 2:
            self._out.append(frames.window_update(0, self._received))
            self._received = 0
        if stream in self._calls:
            self._sizes[stream] = self._sizes.get(stream, 0) + size
            if flags & frames.END_STREAM:
                self._end(stream, INTERNAL)  # an answer of gRPC ends with trailers

    def _headers(self, flags: int, stream: int, block: bytes) -> None:
        if flags & frames.END_HEADERS:
            self._fields_came(flags, stream, block)
        else:
            self._block = flags, stream, bytearray(block)

    def _fields_came(self, flags: int, stream: int, block: bytes) -> None:
        """Headers or trailers; every block is decoded, for the table's sake, unless it is known to leave it alone."""
        known = self._statuses
        if block in known:
            status = known[block]
        else:
            status = _status_in(self._decoder.decode(block))
            if self._decoder.generation != self._generation:
                self._generation = self._decoder.generation
                known.clear()
            elif len(known) < 1024:
                known[block] = status
        if flags & frames.END_STREAM:
            if status is None or (status == OK and self._sizes.get(stream, 0) < _MESSAGE_HEAD_BYTES):
                status = INTERNAL
            self._end(stream, status)

    def _settings(self, payload: memoryview) -> None:
        for name, value in frames.parse_settings(payload):
            if name == frames.MAX_CONCURRENT_STREAMS:
                self._most_streams = value
            elif name == frames.MAX_FRAME_SIZE:
                self._frame_bytes = value
            elif name == frames.HEADER_TABLE_SIZE and value < self._fields.table_bytes:
                self._fields.table_bytes = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                for unsent in self._unsent.values():
                    unsent.window += value - self._stream_window
                self._stream_window = value
        self._out.append(frames.SETTINGS_ACK)
        self.greeted = True
        self._pump()

    def _window_update(self, stream: int, increment: int) -> None:
        if stream == 0:
            self._window += increment
        elif stream in self._unsent:
            self._unsent[stream].window += increment
        else:
            return
        if self._unsent:
            self._pump()

    def _goaway(self, last: int) -> None:
        self.closing = True
        for stream in [stream for stream in self._calls if stream > last]:
            self._end(stream, UNAVAILABLE)
        while self._waiting:
            self._ended(self._waiting.popleft().number, UNAVAILABLE)


def _unpadded(payload: memoryview, flags: int) -> bytes:
    start, end = 0, len(payload)
    if flags & frames.PADDED:
        start, end = 1, end - payload[0]
    if flags & frames.PRIORITISED:
        start += 5
    return bytes(payload[start:end])


def _status_in(fields: list[Field]) -> int | None:
    """The gRPC status among these fields; a plain HTTP error counts as UNAVAILABLE."""
    for name, value in fields:
        if name == b"grpc-status":
            return int(value)
        if name == b":status" and value != b"200":
            return UNAVAILABLE
    return None
