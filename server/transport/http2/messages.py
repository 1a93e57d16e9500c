"""gRPC messages inside a request body: cutting them out, and compression (gRPC over HTTP2, "Length-Prefixed-Message").

Rule: no socket, no stream; bytes and views only. A large message is stored once, where it arrives.
"""

from __future__ import annotations

import gzip
import zlib
from struct import Struct
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFIX: Final = Struct(">BL")
PREFIX_BYTES: Final = 5

_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}
ENCODINGS: Final = frozenset(_WINDOW_BITS)
"""Compressions we understand, beside identity."""

ENCODING_NAMES: Final = {grpc.Compression.Gzip: b"gzip", grpc.Compression.Deflate: b"deflate"}

_COMPRESS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"gzip": lambda data: gzip.compress(data, compresslevel=6, mtime=0),
    b"deflate": zlib.compress,
}


class MessageFault(Exception):
    """A message that cannot be handed to a servicer; `code` is the status the call gets."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def too_large(size: int, limit: int) -> MessageFault:
    """The fault of a message of `size` bytes, in the words clients know."""
    return MessageFault(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"SERVER: Received message larger than max ({size} vs. {limit})"
    )


def no_memory(size: int) -> MessageFault:
    """The fault of a message of `size` bytes that the process has no memory for."""
    return MessageFault(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server has no memory for a message of {size} bytes")


def compress(encoding: bytes, data: bytes) -> bytes:
    """The message `data` as it travels under `encoding`, one of `ENCODINGS`."""
    return _COMPRESS[encoding](data)


def decompress(encoding: bytes, data: bytes, limit: int) -> bytes:
    """The message inside `data`; at most `limit` bytes are ever produced."""
    if encoding not in _WINDOW_BITS:
        raise MessageFault(grpc.StatusCode.INTERNAL, "compressed message without a known grpc-encoding")
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        message = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise MessageFault(grpc.StatusCode.INTERNAL, f"cannot decompress message: {error}") from None
    if len(message) > limit:
        raise MessageFault(grpc.StatusCode.RESOURCE_EXHAUSTED, "Decompressed message larger than max")
    if not inflater.eof:
        raise MessageFault(grpc.StatusCode.INTERNAL, "compressed message is cut short")
    return message


class Assembler:
    """Cuts messages out of the pieces of a body, for bodies that do not arrive one whole message at a time."""

    __slots__ = ("_compressed", "_encoding", "_filled", "_limit", "_message", "_prefix")

    def __init__(self, limit: int, encoding: bytes) -> None:
        self._limit = limit
        self._encoding = encoding
        self._prefix = b""
        self._message: bytearray | None = None
        self._filled = 0
        self._compressed = False

    @property
    def held_bytes(self) -> int:
        """Memory that the unfinished message takes, or will take."""
        return len(self._message) if self._message is not None else 0

    @property
    def filled_bytes(self) -> int:
        """How much of the unfinished message is there."""
        return self._filled

    @property
    def missing_bytes(self) -> int:
        """How much of the unfinished message is still to come."""
        return len(self._message) - self._filled if self._message is not None else 0

    @property
    def inside(self) -> bool:
        """Whether the body would be cut short if it ended here."""
        return self._message is not None or bool(self._prefix)

    def feed(self, view: memoryview) -> Iterator[bytes]:
        """The messages that `view` completes, in order. MessageFault where one is not acceptable."""
        pos = 0
        while pos < len(view):
            if self._message is None:
                used = PREFIX_BYTES - len(self._prefix)
                self._prefix += view[pos : pos + used].tobytes()
                pos += used
                if len(self._prefix) < PREFIX_BYTES:
                    return
                self._begin()
            message = self._message
            if message is not None:
                size = min(len(message) - self._filled, len(view) - pos)
                message[self._filled : self._filled + size] = view[pos : pos + size]
                pos += size
                self._filled += size
                if self._filled == len(message):
                    yield self._finish(message)

    def landing(self, limit: int) -> memoryview | None:
        """Where up to `limit` more bytes of the message go."""
        message = self._message
        if message is None or self._filled == len(message):
            return None
        return memoryview(message)[self._filled : self._filled + limit]

    def landed(self, size: int) -> Iterator[bytes]:
        """`size` bytes were stored in the last `landing`; the message, if that completed it."""
        self._filled += size
        if self._message is not None and self._filled == len(self._message):
            yield self._finish(self._message)

    def _begin(self) -> None:
        flag, size = PREFIX.unpack(self._prefix)
        self._prefix = b""
        if flag > 1:
            raise MessageFault(grpc.StatusCode.INTERNAL, f"message flags {flag} mean nothing")
        if size > self._limit:
            raise too_large(size, self._limit)
        self._compressed = flag == 1
        try:
            self._message = bytearray(size)
        except MemoryError:
            raise no_memory(size) from None
        self._filled = 0

    def _finish(self, message: bytearray) -> bytes:
        self._message = None
        self._filled = 0
        try:
            data = bytes(message)
            return decompress(self._encoding, data, self._limit) if self._compressed else data
        except MemoryError:
            raise no_memory(len(message)) from None
