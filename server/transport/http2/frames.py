"""The frame layer of HTTP/2 (RFC 9113, sections 4 and 6): constants and serialisers.

Rule: bytes out of plain values; no state, no judgement about what a frame means.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HEAD_BYTES: Final = 9
HEAD: Final = Struct(">HBBBL")
"""A frame's head: length (high 16 bits, low 8 bits), type, flags, stream id (with the reserved bit)."""

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

MAX_STREAM_ID: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = 2**24 - 1

_SETTING: Final = Struct(">HL")
LONG: Final = Struct(">L")
_FRAME_WITH_LONG: Final = Struct(">HBBBLL")
_GOAWAY: Final = Struct(">LL")


def head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes that open a frame of `length` bytes of payload."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame that announces `values`."""
    payload = b"".join(_SETTING.pack(name, value) for name, value in values)
    return head(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = head(0, SETTINGS, ACK, 0)


def parse_settings(payload: memoryview) -> list[tuple[int, int]]:
    """The (identifier, value) pairs of a SETTINGS payload; its length must be a multiple of six."""
    return [(name, value) for name, value in _SETTING.iter_unpack(payload)]


def parse_long(payload: memoryview) -> int:
    """The one 32-bit number of a RST_STREAM or WINDOW_UPDATE payload, or a PRIORITY dependency."""
    number: int = LONG.unpack_from(payload)[0]
    return number


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return _FRAME_WITH_LONG.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _FRAME_WITH_LONG.pack(0, 4, RST_STREAM, 0, stream_id, code)


def ping(payload: bytes, *, ack: bool) -> bytes:
    """A PING frame; `payload` is exactly eight bytes."""
    return head(8, PING, ACK if ack else 0, 0) + payload


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY frame; `debug` is text for whoever reads the peer's log."""
    return head(8 + len(debug), GOAWAY, 0, 0) + _GOAWAY.pack(last_stream_id, code) + debug


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_frame_size: int) -> bytes:
    """A HEADERS frame, followed by CONTINUATION frames where `block` exceeds the peer's frame size."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return head(len(block), HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [head(max_frame_size, HEADERS, flags, stream_id), block[:max_frame_size]]
    for start in range(max_frame_size, len(block), max_frame_size):
        piece = block[start : start + max_frame_size]
        last = start + max_frame_size >= len(block)
        parts += (head(len(piece), CONTINUATION, END_HEADERS if last else 0, stream_id), piece)
    return b"".join(parts)
