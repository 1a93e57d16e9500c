from __future__ import annotations

import gzip
import zlib

import grpc
import pytest

from server.transport.http2 import messages
from server.transport.http2.messages import Assembler, MessageFault, compress, decompress
from tests.support.http2_peer import message


def assemble(pieces: list[bytes], *, limit: int = 1000, encoding: bytes = b"") -> list[bytes]:
    assembler = Assembler(limit, encoding)
    return [found for piece in pieces for found in assembler.feed(memoryview(piece))]


def test_messages_are_found_however_they_are_cut() -> None:
    body = message(b"one") + message(b"") + message(b"three" * 20)
    for size in (1, 2, 3, 7, 50, len(body)):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        assert assemble(pieces) == [b"one", b"", b"three" * 20]


def test_a_message_that_lands_in_place() -> None:
    assembler = Assembler(1000, b"")
    assert list(assembler.feed(memoryview(message(b"0123456789")[:8]))) == []
    assert (assembler.held_bytes, assembler.filled_bytes, assembler.missing_bytes) == (10, 3, 7)
    target = assembler.landing(100)
    assert target is not None
    target[:] = b"3456789"
    assert list(assembler.landed(7)) == [b"0123456789"]
    assert not assembler.inside
    assert assembler.landing(100) is None


def test_a_body_cut_short_is_noticed() -> None:
    for cut in (1, 5, 7):
        assembler = Assembler(1000, b"")
        assert list(assembler.feed(memoryview(message(b"hello")[:cut]))) == []
        assert assembler.inside


def test_a_message_beyond_the_limit_is_refused_by_its_prefix_alone() -> None:
    with pytest.raises(MessageFault, match=r"larger than max \(1001 vs. 1000\)") as caught:
        assemble([message(bytes(1001))[:5]])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(MessageFault, match="flags"):
        assemble([b"\x02\x00\x00\x00\x00"])


@pytest.mark.parametrize(
    ("encoding", "packed"), [(b"gzip", gzip.compress(b"x" * 500)), (b"deflate", zlib.compress(b"x" * 500))]
)
def test_compressed_messages(encoding: bytes, packed: bytes) -> None:
    assert assemble([message(packed, compressed=True)], encoding=encoding) == [b"x" * 500]
    assert decompress(encoding, compress(encoding, b"back"), 100) == b"back"


def test_a_decompression_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(MessageFault, match="larger than max"):
        decompress(b"gzip", bomb, 1000)


@pytest.mark.parametrize("packed", [b"not gzip", gzip.compress(b"hello")[:-1], b""])
def test_broken_compression_is_internal(packed: bytes) -> None:
    with pytest.raises(MessageFault) as caught:
        decompress(b"gzip", packed, 1000)
    assert caught.value.code is grpc.StatusCode.INTERNAL


def test_a_compressed_flag_without_an_encoding_is_internal() -> None:
    with pytest.raises(MessageFault) as caught:
        assemble([message(b"x", compressed=True)])
    assert caught.value.code is grpc.StatusCode.INTERNAL


def test_a_message_that_there_is_no_memory_for_fails_its_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(messages, "bytearray", full, raising=False)
    with pytest.raises(MessageFault, match="no memory for a message of 9 bytes") as caught:
        assemble([message(b"123456789")[:7]])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
