"""One HTTP/2 connection, server side (RFC 9113): bytes in, receivers called, frames out.

Rule: no socket, no event loop, no clock; time comes in as an argument.
Promise: what a peer can make this object hold is bounded by `Limits`, whatever it sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from server.transport.http2 import frames
from server.transport.http2.calm import Budget, PingGuard
from server.transport.http2.errors import ConnectionFault, ErrorCode, StreamFault
from server.transport.http2.hpack import HpackError
from server.transport.http2.ids import StreamIds
from server.transport.http2.limits import Limits
from server.transport.http2.requests import HeadReader, MalformedRequest, RequestHead
from server.transport.http2.sender import Sender
from server.transport.http2.streams import (
    AFTER_PEER_ENDED,
    CLOSED,
    HALF_CLOSED_LOCAL,
    HALF_CLOSED_REMOTE,
    OPEN,
    UNEXPECTED,
    Receiver,
    Stream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_EMPTY: Final = memoryview(b"")
_SHORTEST_S: Final = 0.01
"""Calls with less time than this are not given up for their deadline, as far as resets are counted."""
_DRAIN_PING: Final = b"kdrain\x00\x01"


class Owner(Protocol):
    """Who a connection belongs to."""

    def accept(self, stream: Stream, head: RequestHead, ended: bool) -> Receiver:
        """A request began; `ended` when it has no body."""

    def output_ready(self) -> None:
        """There is something in `sender` to take; called once until it is taken."""

    def emptied(self) -> None:
        """A draining connection has no stream left: it can be closed."""

    def ping_acked(self) -> None:
        """The peer answered a ping of `ping()`."""


class Connection:
    """The protocol state of one connection. `receive` and its kin never raise: they answer the peer."""

    def __init__(self, owner: Owner, limits: Limits) -> None:
        self._owner = owner
        self._limits = limits
        self._reader = HeadReader(max_list_bytes=limits.max_header_list_bytes)
        self._pings = PingGuard(limits.pings)
        self._control = Budget("frames without use", burst=limits.control_burst, per_s=limits.control_per_s)
        self._resets = Budget("resets", burst=limits.reset_burst, per_s=limits.reset_per_s)
        self._now = 0.0
        self._frames_credited = 0
        self._frames_at_ping = 0

        self.sender = Sender(owner.output_ready, self._we_ended)
        self.streams: dict[int, Stream] = {}
        self.ids = StreamIds()
        self.lingering = 0
        """Calls whose stream is gone while their handler still runs; they count as streams."""
        self.buffered_bytes = 0
        """Request bytes that receivers hold; they keep the count."""
        self.closed = False
        """Whether the connection ended in an error: send what is left, then close the socket."""
        self.draining = False
        self.greeted = False
        """Whether the peer's preface and its SETTINGS have come."""
        self.fault: ConnectionFault | None = None
        self.resets: dict[ErrorCode | int, int] = {}
        """Streams that ended by RST_STREAM, either way, by code."""

        self._preface_left = frames.PREFACE
        self._receive_window = limits.connection_window_bytes
        self._low_window = limits.connection_window_bytes // 2
        self._body_left = 0  # payload of the DATA frame being received
        self._body_padding = 0
        self._body_stream: Stream | None = None
        self._body_ends = False
        self._block: bytearray | None = None  # header block that waits for CONTINUATION
        self._block_stream = 0
        self._block_ends = False
        self._block_self_dependent = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "draining" if self.draining else "open"
        return f"<Connection [{state} | {len(self.streams)} streams | {self.sender.queued_bytes} bytes queued]>"

    @property
    def inside_block(self) -> bool:
        """Whether a header block waits for its CONTINUATION."""
        return self._block is not None

    # What the owner does ------------------------------------------------------------

    def open(self) -> None:
        """Send our SETTINGS and open the connection's window; first thing on a new connection."""
        limits = self._limits
        announced = (
            (frames.MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
            (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
            (frames.MAX_FRAME_SIZE, limits.max_frame_size),
            (frames.MAX_HEADER_LIST_SIZE, limits.max_header_list_bytes),
        )
        greeting = frames.settings(announced)
        extra = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        if extra > 0:
            greeting += frames.window_update(0, extra)
        self.sender.control(greeting)

    def receive(self, view: memoryview, now: float) -> int:
        """Take in what arrived; how much of it is used up. The rest must come again, with more behind it."""
        if self.closed:
            return len(view)
        self._now = now
        sent = self.sender.frames
        self._control.earn(2 * (sent - self._frames_credited))  # what we send, a peer may well answer
        self._frames_credited = sent
        try:
            return self._receive(view)
        except ConnectionFault as fault:
            self.fail(fault)
            return len(view)

    def landing(self) -> memoryview | None:
        """Where the next bytes from the socket can go without a detour, while a large message is under way."""
        left = self._body_left - self._body_padding
        stream = self._body_stream
        if left <= 0 or stream is None or stream.receiver is None or stream.state == CLOSED:
            return None
        return stream.receiver.landing(left)

    def landed(self, size: int) -> None:
        """`size` bytes were stored at the start of the last `landing`."""
        stream = self._body_stream
        self._body_left -= size
        ended = self._body_left == 0 and self._body_ends
        if stream is not None and stream.receiver is not None:
            if ended:
                self._peer_ended(stream)
            stream.receiver.landed(size, ended)

    def fail(self, fault: ConnectionFault) -> None:
        """End the connection: GOAWAY with the fault's code, all calls cancelled."""
        if self.closed:
            return
        self.fault = fault
        self.sender.control(frames.goaway(self.ids.last, fault.code, fault.reason.encode()))
        self.lost()

    def lost(self) -> None:
        """The socket is gone, or is about to be: every call learns it."""
        self.closed = True
        for stream in list(self.streams.values()):
            self._forget(stream)
            if stream.receiver is not None:
                stream.receiver.reset(ErrorCode.CANCEL)

    def drain(self) -> None:
        """First step of a graceful end: announce it, and find out with a ping when the peer knows."""
        if self.draining or self.closed:
            return
        self.draining = True
        farewell = frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR)
        self.sender.control(farewell + frames.ping(_DRAIN_PING, ack=False))

    def finish_drain(self) -> None:
        """Second step: name the last stream that will be served. `emptied` follows when none is left."""
        if not self.draining or self.closed or self.ids.accept_up_to != frames.MAX_STREAM_ID:
            return
        self.ids.accept_up_to = self.ids.last
        self.sender.control(frames.goaway(self.ids.last, ErrorCode.NO_ERROR))
        if not self.streams:
            self._owner.emptied()

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; `payload` is eight bytes."""
        self.sender.control(frames.ping(payload, ack=False))

    # What receivers do ------------------------------------------------------------

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream from our side at once; what the peer still sends on it is ignored."""
        if stream.state == CLOSED:
            return
        self._forget(stream)
        self._note_reset(stream.id, code)

    def grant(self, stream: Stream, increment: int) -> None:
        """Let the peer send `increment` more bytes on `stream`."""
        stream.receive_window += increment
        self.sender.control(frames.window_update(stream.id, increment))

    # Frames ------------------------------------------------------------

    def _receive(self, view: memoryview) -> int:
        end = len(view)
        pos = self._read_preface(view) if self._preface_left else 0
        streams = self.streams
        unpack = frames.HEAD.unpack_from
        longest = self._limits.max_frame_size
        while True:
            if self._body_left:
                pos = self._continue_body(view, pos)
                if self._body_left:
                    return pos
            start = pos + 9
            if start > end:
                return pos
            high, low, kind, flags, stream_id = unpack(view, pos)
            length = high << 8 | low
            if length > longest:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame longer than announced")
            stop = start + length
            if kind == 0 and stop <= end and length and not flags & 8 and self._block is None:
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and stream.state <= (HALF_CLOSED_LOCAL if flags & 1 else OPEN)
                    and length <= stream.receive_window
                    and stream.content_left is None
                    and length <= self._receive_window
                ):
                    self._receive_window -= length
                    if self._receive_window < self._low_window:
                        self._replenish()
                    stream.receive_window -= length
                    self._control.left += 1
                    ended = flags & 1 != 0
                    if ended:
                        self._peer_ended(stream)
                    stream.receiver.data_received(view[start:stop], ended)  # type: ignore[union-attr] # a live stream has its receiver
                    pos = stop
                    continue
            elif (
                kind == 8 and length == 4 and stop <= end and self._block is None
                and self._window_opened(stream_id, view, start)
            ):  # fmt: skip
                pos = stop
                continue
            used = self._frame(view, pos, kind, flags, stream_id & frames.MAX_STREAM_ID, length)
            if used < 0:
                return pos
            pos = used

    def _window_opened(self, stream_id: int, view: memoryview, start: int) -> bool:
        """Take in a WINDOW_UPDATE; clients send one or two for each reply.

        False, and nothing done, where `_on_window_update` must look at it.
        """
        control = self._control
        if control.left < 1 or not self.greeted:
            return False
        increment = frames.LONG.unpack_from(view, start)[0]
        sender = self.sender
        if stream_id == 0:
            if not 0 < increment <= frames.MAX_WINDOW - sender.window:
                return False
            control.left -= 1
            sender.window += increment
            if sender.queued_bytes:
                sender.pump()
            return True
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.ids.is_idle(stream_id):
                return False
            control.left -= 1
            return True
        if stream.queue or not 0 < increment <= frames.MAX_WINDOW - stream.send_window:
            return False
        control.left -= 1
        stream.send_window += increment
        return True

    def _read_preface(self, view: memoryview) -> int:
        expected = self._preface_left
        got = bytes(view[: len(expected)])
        if not expected.startswith(got):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this is not an HTTP/2 client")
        self._preface_left = expected[len(got) :]
        return len(got)

    def _frame(self, view: memoryview, pos: int, kind: int, flags: int, stream_id: int, length: int) -> int:
        """Handle the frame at `pos`; the position after what was used, or -1 to wait for the rest of it."""
        if not self.greeted and kind != frames.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        start = pos + frames.HEAD_BYTES
        try:
            if kind == frames.DATA:
                return self._open_body(view, start, flags, stream_id, length)
            if length > self._limits.max_block_bytes:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "control frame too long")
            if start + length > len(view):
                return -1
            handler = _HANDLERS.get(kind)
            if handler is None:  # an extension we do not know: to be ignored
                self._charge(1)
            else:
                handler(self, flags, stream_id, view[start : start + length])
        except StreamFault as fault:
            self._stream_fault(fault)
        return start + length

    # DATA

    def _open_body(self, view: memoryview, start: int, flags: int, stream_id: int, length: int) -> int:
        """Check a DATA frame and set out to receive its payload; the position where that begins, or -1."""
        padding = 0
        if flags & frames.PADDED:
            if length == 0:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padding without a length")
            if start >= len(view):
                return -1
            padding = view[start]
            if padding >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
            start += 1
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        if length > self._receive_window:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self._receive_window -= length
        if self._receive_window < self._low_window:
            self._replenish()
        self._body_left = length - (1 if flags & frames.PADDED else 0)
        self._body_padding = padding
        self._body_ends = bool(flags & frames.END_STREAM)
        self._body_stream = None
        try:
            stream = self._stream_for_data(stream_id, length, length - padding - (1 if flags & frames.PADDED else 0))
        except StreamFault as fault:
            self._stream_fault(fault)
            return start
        self._body_stream = stream
        if stream is not None and self._body_left == 0:
            self._finish_body(stream, _EMPTY)
        return start

    def _stream_for_data(self, stream_id: int, length: int, content: int) -> Stream | None:
        """The stream a DATA frame is for, its window charged; None where it is to be ignored."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.ids.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
            if self.ids.is_ignored(stream_id):
                return None
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA on a closed stream")
        if code := UNEXPECTED[stream.state].get(frames.DATA):
            raise StreamFault(stream_id, code, "DATA after END_STREAM")
        if length > stream.receive_window:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        stream.receive_window -= length
        if stream.state == HALF_CLOSED_LOCAL and not self._body_ends and not stream.patient:
            self.reset(stream, ErrorCode.NO_ERROR)
            return None
        if content:
            self._control.left += 1
        elif not self._body_ends:
            self._charge(1)
        if stream.content_left is not None:
            stream.content_left -= content
            if stream.content_left < 0 or (self._body_ends and stream.content_left):
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "content-length does not match")
        return stream

    def _continue_body(self, view: memoryview, pos: int) -> int:
        """Hand on as much of a DATA frame's payload as is there; the position after it."""
        got = min(self._body_left, len(view) - pos)
        content = min(got, max(0, self._body_left - self._body_padding))
        self._body_left -= got
        stream = self._body_stream
        if stream is not None and stream.state != CLOSED:
            piece = view[pos : pos + content]
            if self._body_left == 0:
                self._finish_body(stream, piece)
            elif content and stream.receiver is not None:
                stream.receiver.data_received(piece, False)
        return pos + got

    def _finish_body(self, stream: Stream, piece: memoryview) -> None:
        """Hand on the last of a DATA frame."""
        ended = self._body_ends
        self._body_stream = None
        if ended:
            self._peer_ended(stream)
        if stream.receiver is not None and (ended or piece):
            stream.receiver.data_received(piece, ended)

    def _replenish(self) -> None:
        """Give the connection's window back; done once half of it is used."""
        full = self._limits.connection_window_bytes
        self.sender.control(frames.window_update(0, full - self._receive_window))
        self._receive_window = full

    # Header blocks ------------------------------------------------------------

    def _on_headers(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        self_dependent = False
        if flags & (frames.PADDED | frames.PRIORITISED):
            payload, self_dependent = _strip(flags, stream_id, payload)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._block_complete(stream_id, payload.tobytes(), ends, self_dependent)
            return
        self._block = bytearray(payload)
        self._block_stream = stream_id
        self._block_ends = ends
        self._block_self_dependent = self_dependent

    def _on_continuation(self, flags: int, stream_id: int, payload: memoryview) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._charge(16)
        if len(block) + len(payload) > self._limits.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too long")
        block += payload
        if flags & frames.END_HEADERS:
            self._block = None
            self._block_complete(stream_id, bytes(block), self._block_ends, self._block_self_dependent)

    def _block_complete(self, stream_id: int, block: bytes, ends: bool, self_dependent: bool) -> None:
        try:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._trailers(stream, block, ends)
            elif not self.ids.is_idle(stream_id) or not stream_id & 1:
                self._reader.skip(block)
                self._reused(stream_id)
            else:
                self._request(stream_id, block, ends, self_dependent)
        except HpackError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        except MalformedRequest as error:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from None

    def _reused(self, stream_id: int) -> None:
        """HEADERS on an id that can open no stream any more."""
        if self.ids.is_ignored(stream_id):
            return
        if self.ids.is_idle(stream_id) or self.ids.was_skipped(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream id out of order")
        raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")

    def _trailers(self, stream: Stream, block: bytes, ends: bool) -> None:
        """The second header block of a request: it ends the body."""
        code = UNEXPECTED[stream.state].get(frames.HEADERS)
        if code or not ends:
            self._reader.skip(block)
            raise StreamFault(stream.id, code or ErrorCode.PROTOCOL_ERROR, "HEADERS inside a request")
        self._reader.read_trailers(block)
        if stream.content_left:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "content-length does not match")
        self._peer_ended(stream)
        if stream.receiver is not None:
            stream.receiver.data_received(_EMPTY, True)

    def _request(self, stream_id: int, block: bytes, ends: bool, self_dependent: bool) -> None:
        """A new stream."""
        self.ids.use(stream_id)
        if self_dependent:
            self._reader.skip(block)
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream cannot depend on itself")
        if stream_id > self.ids.accept_up_to:
            self._reader.skip(block)
            return
        limits = self._limits
        if (
            len(self.streams) + self.lingering >= limits.max_concurrent_streams
            or self.sender.queued_bytes > limits.max_unsent_bytes
        ):
            self._reader.skip(block)
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        head = self._reader.read(block)
        stream = Stream(stream_id, limits.stream_window_bytes, self.sender.initial_window)
        if ends:
            if head.content_length:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "content-length does not match")
            stream.state = HALF_CLOSED_REMOTE
        else:
            stream.content_left = head.content_length
        timeout_s = head.timeout_s
        if timeout_s is not None and timeout_s >= _SHORTEST_S:
            stream.forgiven_from = self._now + timeout_s / 2
        self.streams[stream_id] = stream
        self._control.left += 2
        stream.receiver = self._owner.accept(stream, head, ends)

    # The other frames ------------------------------------------------------------

    def _on_priority(self, _flags: int, stream_id: int, payload: memoryview) -> None:
        self._charge(1)
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is five bytes")
        if frames.parse_long(payload) & frames.MAX_STREAM_ID == stream_id:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream cannot depend on itself")

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is four bytes")
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.ids.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
            self._charge(1)
            return
        self._forget(stream)
        code = frames.parse_long(payload)
        self._count_reset(code)
        if stream.receiver is not None:
            stream.receiver.reset(code)
        if self._now < stream.forgiven_from:
            self._resets.spend(1, self._now)

    def _on_settings(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & frames.ACK and payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        if flags & frames.ACK:
            if not self.greeted:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._charge(1)
            return
        values = frames.parse_settings(payload)
        self._charge(2 + len(values))
        self.greeted = True
        for name, value in values:
            self._apply_setting(name, value)
        self.sender.control(frames.SETTINGS_ACK)
        self.sender.pump()

    def _apply_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
            change = value - self.sender.initial_window
            self.sender.initial_window = value
            self._charge(len(self.streams) // 16)
            for stream in list(self.streams.values()):
                if not self.sender.enlarge_stream(stream, change):
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window too large")
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame size out of range")
            self.sender.max_frame_size = value
        elif name == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: memoryview) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _on_ping(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is eight bytes")
        self._charge(1)
        data = payload.tobytes()
        if flags & frames.ACK:
            if data == _DRAIN_PING:
                self.finish_drain()
            self._owner.ping_acked()
            return
        if self._frames_at_ping != self.sender.frames:
            self._frames_at_ping = self.sender.frames
            self._pings.forgive()
        self._pings.pinged(self._now, idle=not self.streams)
        self.sender.control(frames.ping(data, ack=True))

    def _on_goaway(self, _flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is at least eight bytes")
        self._charge(1)

    def _on_window_update(self, _flags: int, stream_id: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is four bytes")
        self._charge(1)
        increment = frames.parse_long(payload) & frames.MAX_WINDOW
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "window increment of 0")
            if not self.sender.enlarge(increment):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window too large")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.ids.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        elif increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "window increment of 0")
        elif not self.sender.enlarge_stream(stream, increment):
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window too large")
        else:
            self.sender.pump()

    # Ends ------------------------------------------------------------

    def _charge(self, cost: int) -> None:
        """The peer sent something that carries no request."""
        self._control.spend(cost, self._now)

    def _peer_ended(self, stream: Stream) -> None:
        stream.state = AFTER_PEER_ENDED[stream.state]
        if stream.state == CLOSED:
            self._remove(stream)

    def _we_ended(self, stream: Stream) -> None:
        """Our END_STREAM went out: the stream is over, or it is once its peer has ended, too.

        A peer that goes on sending is told to stop, but not sooner: a reset that comes with the answer makes grpcio's
        client, now and then, report INTERNAL in place of the status that it was sent.
        """
        if stream.state == CLOSED:
            self._resets.earn(1)
            self._remove(stream)

    def _remove(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        if self.draining and not self.streams and self.ids.accept_up_to != frames.MAX_STREAM_ID:
            self._owner.emptied()

    def _forget(self, stream: Stream) -> None:
        stream.state = CLOSED
        self.sender.discard(stream)
        self._remove(stream)

    def _note_reset(self, stream_id: int, code: ErrorCode) -> None:
        """Send RST_STREAM and remember that we did."""
        self.ids.note_reset(stream_id)
        self._count_reset(code)
        self.sender.control(frames.rst_stream(stream_id, code))

    def _count_reset(self, code: int) -> None:
        self.resets[code] = self.resets.get(code, 0) + 1

    def _stream_fault(self, fault: StreamFault) -> None:
        """The peer broke a rule on one stream: end that stream, and count it as a reset the peer caused."""
        if self.ids.is_idle(fault.stream_id) and fault.stream_id not in self.streams:
            raise ConnectionFault(fault.code, fault.reason)
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self._forget(stream)
        self._note_reset(fault.stream_id, fault.code)
        if stream is not None and stream.receiver is not None:
            stream.receiver.reset(fault.code)
        self._resets.spend(1, self._now)


_HANDLERS: Final[dict[int, Callable[[Connection, int, int, memoryview], None]]] = {
    frames.HEADERS: Connection._on_headers,
    frames.PRIORITY: Connection._on_priority,
    frames.RST_STREAM: Connection._on_rst_stream,
    frames.SETTINGS: Connection._on_settings,
    frames.PUSH_PROMISE: Connection._on_push_promise,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
    frames.WINDOW_UPDATE: Connection._on_window_update,
    frames.CONTINUATION: Connection._on_continuation,
}


def _strip(flags: int, stream_id: int, payload: memoryview) -> tuple[memoryview, bool]:
    """A HEADERS payload without padding and priority, and whether the stream depends on itself."""
    padding = 0
    if flags & frames.PADDED:
        if not payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padding without a length")
        padding = payload[0]
        payload = payload[1:]
    self_dependent = False
    if flags & frames.PRIORITISED:
        if len(payload) < 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "priority without its five bytes")
        self_dependent = frames.parse_long(payload) & frames.MAX_STREAM_ID == stream_id
        payload = payload[5:]
    if padding > len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[: len(payload) - padding], self_dependent
