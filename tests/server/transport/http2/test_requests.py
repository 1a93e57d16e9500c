from __future__ import annotations

import hpack
import pytest

from server.transport.http2.hpack import Field, HpackError, literal
from server.transport.http2.metadata import parse_timeout_s
from server.transport.http2.requests import HeadReader, MalformedRequest, parse_head
from tests.support.http2_peer import GRPC

PLAIN = [(name.encode(), value.encode()) for name, value in GRPC]


def reader() -> HeadReader:
    return HeadReader(max_list_bytes=16_384)


def another() -> HeadReader:
    """A reader that has heard of nothing but GRPC."""
    heads = reader()
    heads.read(hpack.Encoder().encode(GRPC))
    return heads


def test_a_repeated_block_gives_the_very_same_head() -> None:
    heads, encoder = reader(), hpack.Encoder()
    first, *repeated = (heads.read(encoder.encode(GRPC)) for _ in range(4))
    assert repeated[0] == first
    assert repeated[2] is repeated[1]


def test_a_remembered_block_is_forgotten_when_the_table_moves_on() -> None:
    heads, encoder = reader(), hpack.Encoder()
    for path in ("/a", "/b"):
        for _ in range(3):
            fields = [(name, path if name == ":path" else value) for name, value in GRPC]
            assert heads.read(encoder.encode(fields)).path == path.encode()


def test_what_is_spelt_out_is_added_to_the_template() -> None:
    heads, encoder = reader(), hpack.Encoder()
    for number in range(5):
        varying = [("grpc-timeout", f"{number + 1}S"), ("x-trace", f"trace {number}")]
        head = heads.read(encoder.encode([*GRPC, *(hpack.NeverIndexedHeaderTuple(*pair) for pair in varying)]))
        assert head.timeout_s == number + 1
        assert head.metadata == (("x-trace", f"trace {number}"),)
        assert head.is_plain
    assert len(heads._templates) <= 2


def test_blocks_that_differ_in_the_timeout_at_their_end_need_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    real = HeadReader._decode
    heads, encoder = reader(), hpack.Encoder()
    prefix = [encoder.encode(GRPC) for _ in range(2)][-1]
    heads.read(hpack.Encoder().encode(GRPC))
    decoded: list[bytes] = []
    decode = heads._decode

    def noted(block: bytes) -> tuple[list[Field], bool]:
        decoded.append(block)
        return decode(block)

    monkeypatch.setattr(HeadReader, "_decode", lambda self, block: noted(block) if self is heads else real(self, block))
    values = [b"1S", b"250000u", b"99999999n", b"7m", b"1H"]
    for value in values:
        head = heads.read(prefix + literal(b"grpc-timeout", value))
        assert head == another().read(prefix + literal(b"grpc-timeout", value))
        assert (head.timeout_s, head.path) == (parse_timeout_s(value), b"/test/echo")
    assert len(decoded) == 1
    for tail in (
        literal(b"grpc-timeout", b"12"), literal(b"grpc-timeout", b"123456789S"), literal(b"grpc-timeout", b"-1S"),
        literal(b"grpc-timeout", b"1S") + literal(b"x-more", b"1"), b"\x00\x0cgrpc-timeout\x82\x08\x87",
    ):  # fmt: skip
        before = len(decoded)
        assert heads.read(prefix + tail) == another().read(prefix + tail)
        assert len(decoded) == before + 1, "whatever is not simply a timeout is decoded"
    with pytest.raises(HpackError):
        heads.read(prefix + b"\x00\x0cgrpc-timeout")


def test_a_block_may_end_with_anything_of_any_length() -> None:
    heads, encoder = reader(), hpack.Encoder()
    prefix = [encoder.encode(GRPC) for _ in range(2)][-1]
    heads.read(hpack.Encoder().encode(GRPC))
    for name in (b"authorization", b"grpc-timeout"):
        for length in (1, 126, 127, 255, 256, 5000):
            tail = literal(name, b"1" * length)
            assert heads.read(prefix + tail) == another().read(prefix + tail)


def test_a_known_timeout_is_forgotten_when_the_table_moves_on() -> None:
    heads, encoder = reader(), hpack.Encoder()
    for path in ("/a", "/b"):
        fields = [(name, path if name == ":path" else value) for name, value in GRPC]
        blocks = [encoder.encode(fields) for _ in range(2)]
        heads.read(blocks[0])
        for value in (b"1S", b"2S"):
            head = heads.read(blocks[1] + literal(b"grpc-timeout", value))
            assert (head.path, head.timeout_s) == (path.encode(), parse_timeout_s(value))


def test_template_and_plain_parsing_agree_where_a_field_comes_early() -> None:
    heads = reader()
    block = hpack.Encoder().encode(GRPC)
    heads.read(block)
    early = b"\x00\x01a\x01b" + block  # a field before the pseudo-headers
    with pytest.raises(MalformedRequest, match="pseudo-header"):
        heads.read(early)


def test_grpc_is_recognised_by_its_content_type() -> None:
    for content_type, expected in (
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=utf-8", True),
        ("application/grpcx", False),
        ("application/json", False),
        ("", False),
    ):
        fields = [(n, content_type.encode() if n == b"content-type" else v) for n, v in PLAIN]
        assert parse_head(fields).is_grpc is expected


def test_te_may_be_missing() -> None:
    assert parse_head([field for field in PLAIN if field[0] != b"te"]).is_plain


def test_wrong_grpc_headers_are_complaints() -> None:
    assert "grpc-timeout" in parse_head([*PLAIN, (b"grpc-timeout", b"soon")]).complaint
    assert "base64" in parse_head([*PLAIN, (b"x-bin", b"!!!")]).complaint
