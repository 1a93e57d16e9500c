"""Whatever a client of our HTTP/2 transport sends: through the session and the calls, handlers included."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import grpc
import hpack

from server.transport.http2 import Limits, Options, Server, frames
from server.transport.http2.session import Session
from tests.fuzz.mutate import mutate_frames
from tests.fuzz.target import Target
from tests.support.http2_peer import GRPC, message

_LIMITS: Final = Limits(
    max_concurrent_streams=8, max_frame_size=16_384, stream_window_bytes=65_535, connection_window_bytes=65_535,
    max_header_list_bytes=2000, max_buffered_bytes=1 << 17, control_burst=50, reset_burst=20,
)  # fmt: skip
_OPTIONS: Final = Options(limits=_LIMITS, max_receive_message_bytes=1 << 15, max_send_message_bytes=1 << 15)
_TURNS: Final = 8
"""Turns of the event loop after which an echo has been answered."""
_READ_BYTES: Final = 4096


class _Wire:
    """A socket that takes everything."""

    def __init__(self) -> None:
        self.closing = False

    def write(self, data: bytes) -> None:
        assert data, "an empty write"

    def writelines(self, chunks: list[bytes]) -> None:
        assert chunks, "an empty write"

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


class _Findings(logging.Handler):
    """Errors that the transport logs are findings; a handler's own are not, and here handlers raise none."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _echo_all(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def _count(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return str([len(request) async for request in requests]).encode()


class _Stage:
    """An event loop with a server on it, kept for all inputs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.findings = _Findings()
        self.loop.set_exception_handler(lambda _, context: self.findings.found.append(repr(context)))
        logging.getLogger("server.transport.http2").addHandler(self.findings)
        self.server = Server(_OPTIONS)
        self.server.add_registered_method_handlers(
            "test",
            {
                "echo": grpc.unary_unary_rpc_method_handler(_echo),
                "all": grpc.stream_stream_rpc_method_handler(_echo_all),
                "count": grpc.stream_unary_rpc_method_handler(_count),
            },
        )
        self.loop.run_until_complete(self.server.start())

    async def play(self, data: bytes) -> None:
        wire = _Wire()
        session = Session(self.server, secure=False)
        session.connection_made(cast("asyncio.Transport", wire))
        for at in range(0, len(data), _READ_BYTES):
            piece = data[at : at + _READ_BYTES]
            while piece and not wire.closing:
                buffer = session.get_buffer(len(piece))
                size = min(len(buffer), len(piece))
                assert size, "no room to read into"
                buffer[:size] = piece[:size]
                session.buffer_updated(size)
                piece = piece[size:]
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self.check(session)
        session.connection_lost(None)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        assert not self.server.calls, f"calls outlive their connection: {self.server.calls}"
        assert session.connection.buffered_bytes == 0, "bytes are held for nobody"

    def check(self, session: Session) -> None:
        connection = session.connection
        assert len(connection.streams) + connection.lingering <= _LIMITS.max_concurrent_streams
        assert 0 <= connection.buffered_bytes <= _LIMITS.max_buffered_bytes
        assert connection.sender.queued_bytes <= 2 * _LIMITS.max_unsent_bytes
        assert len(session._tail) <= _LIMITS.max_block_bytes + 9


_STAGE: Final = _Stage()


def run(data: bytes) -> None:
    """One connection, from the preface to its loss."""
    _STAGE.loop.run_until_complete(_STAGE.play(data))
    found, _STAGE.findings.found = _STAGE.findings.found, []
    assert not found, found


def seeds() -> list[bytes]:
    """Calls of each kind, with padding, priority, continuation, trailers, compression and a slow window."""
    encoder = hpack.Encoder()
    preface = frames.PREFACE + frames.settings(())

    def head(path: str, stream_id: int, *extra: tuple[str, str]) -> bytes:
        fields = [(name, path if name == ":path" else value) for name, value in GRPC]
        return frames.headers(stream_id, encoder.encode([*fields, *extra]), end_stream=False, max_frame_size=16_384)

    def body(stream_id: int, payload: bytes, *, end: bool = True) -> bytes:
        return frames.head(len(payload), frames.DATA, int(end), stream_id) + payload

    padded = frames.head(11, frames.DATA, frames.PADDED | 1, 1) + b"\x03" + message(b"xy") + bytes(3)
    block = encoder.encode([*GRPC])
    split = (
        frames.head(5, frames.HEADERS, 0x20, 3) + bytes(5)
        + frames.head(len(block), frames.CONTINUATION, 4, 3) + block
    )  # fmt: skip
    return [
        preface + head("/test/echo", 1) + body(1, message(b"hello")) + frames.ping(bytes(8), ack=False),
        preface + head("/test/all", 1, ("grpc-timeout", "1S")) + body(1, message(b"a") * 3, end=False) + padded,
        preface + split + body(3, message(b"x" * 9000)) + frames.rst_stream(3, 8),
        preface
        + frames.settings([(4, 3)])
        + head("/test/count", 1)
        + body(1, message(b"abc"))
        + frames.window_update(0, 9),
        preface
        + head("/test/echo", 1, ("grpc-encoding", "gzip"), ("content-length", "7"))
        + body(1, message(b"zz", compressed=True)),
        preface + head("/none/such", 1, ("a-bin", "AAE")) + head("/test/echo", 3, ("te", "x")) + frames.goaway(0, 0),
    ]


TARGET: Final = Target(name="wire", run=run, mutate=mutate_frames, seeds=seeds, close=_STAGE.loop.close)
