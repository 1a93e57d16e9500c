"""A client's end of the protocol core, without sockets: writes frames in, reads frames out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hpack

from server.transport.http2 import frames
from server.transport.http2.connection import Connection
from server.transport.http2.limits import Limits
from server.transport.http2.requests import RequestHead
from server.transport.http2.streams import Stream

GRPC = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test/echo"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: int
    flags: int
    stream_id: int
    payload: bytes


def parse(data: bytes) -> list[Frame]:
    """All frames of `data`, which must be whole."""
    found = []
    while data:
        high, low, kind, flags, stream_id = frames.HEAD.unpack_from(data)
        end = 9 + (high << 8 | low)
        assert len(data) >= end, "a frame was cut short"
        found.append(Frame(kind, flags, stream_id, data[9:end]))
        data = data[end:]
    return found


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """`payload` as a gRPC message."""
    return bytes([compressed]) + len(payload).to_bytes(4, "big") + payload


@dataclass
class Body:
    """Remembers what a stream received."""

    stream: Stream
    head: RequestHead
    ended: bool
    data: bytearray = field(default_factory=bytearray)
    reset_code: int | None = None
    room: bytearray | None = None
    sent_calls: int = 0

    def data_received(self, view: memoryview, ended: bool) -> None:
        assert not self.ended, "data after the end"
        self.data += view
        self.ended = ended

    def landing(self, limit: int) -> memoryview | None:
        return None if self.room is None else memoryview(self.room)[: min(limit, len(self.room))]

    def landed(self, size: int, ended: bool) -> None:
        assert self.room is not None
        self.data_received(memoryview(self.room)[:size], ended)

    def reset(self, code: int) -> None:
        assert self.reset_code is None, "reset twice"
        self.reset_code = code

    def sent(self) -> None:
        self.sent_calls += 1


class Peer:
    """A client, and the owner of the server's connection that it talks to."""

    def __init__(self, limits: Limits | None = None, *, greet: bool = True) -> None:
        self.now = 0.0
        self.bodies: dict[int, Body] = {}
        self.was_emptied = False
        self.acked_pings = 0
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._pending = b""
        self.connection = Connection(self, limits or Limits())
        self.connection.open()
        if greet:
            self.write(frames.PREFACE + frames.settings(()))
            self.read()

    # the owner's part
    def accept(self, stream: Stream, head: RequestHead, ended: bool) -> Body:
        body = self.bodies[stream.id] = Body(stream, head, ended)
        return body

    def output_ready(self) -> None: ...

    def emptied(self) -> None:
        self.was_emptied = True

    def ping_acked(self) -> None:
        self.acked_pings += 1

    # the client's part
    def write(self, data: bytes) -> None:
        """Deliver `data`; what the connection does not use up yet is kept for the next time."""
        self._pending += data
        used = self.connection.receive(memoryview(self._pending), self.now)
        self._pending = self._pending[used:]

    def read(self) -> list[Frame]:
        """What the server sent since the last time."""
        return parse(b"".join(self.connection.sender.take()))

    def block(self, fields: Any = GRPC, *extra: tuple[str, str]) -> bytes:
        return self.encoder.encode([*fields, *extra])

    def request(self, stream_id: int, *extra: tuple[str, str], end_stream: bool = False) -> None:
        """Open a stream."""
        block = self.block(GRPC, *extra)
        self.write(frames.headers(stream_id, block, end_stream=end_stream, max_frame_size=16_384))

    def data(self, stream_id: int, payload: bytes, *, end_stream: bool = False) -> None:
        self.write(frames.head(len(payload), frames.DATA, int(end_stream), stream_id) + payload)

    def frame(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> None:
        self.write(frames.head(len(payload), kind, flags, stream_id) + payload)

    def goaway_code(self) -> int | None:
        """The error code of a GOAWAY among what the server sent, if there is one."""
        codes = [int.from_bytes(f.payload[4:8], "big") for f in self.read() if f.kind == frames.GOAWAY]
        return codes[-1] if codes else None
