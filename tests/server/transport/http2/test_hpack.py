from __future__ import annotations

import hpack as reference
import pytest

from server.transport.http2.hpack import STATIC, Decoder, HpackError, encode, encode_integer


def decoder() -> Decoder:
    return Decoder(max_list_bytes=16_384)


def test_the_static_table_is_the_rfcs() -> None:
    assert len(STATIC) == 61
    assert STATIC[0] == (b":authority", b"")
    assert STATIC[7] == (b":status", b"200")
    assert STATIC[30] == (b"content-type", b"")
    assert STATIC[60] == (b"www-authenticate", b"")


def test_the_rfcs_example_of_a_request() -> None:  # RFC 7541, C.4.1 to C.4.3
    ours = decoder()
    blocks = (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    )
    lists = [ours.decode(bytes.fromhex(block)) for block in blocks]
    assert lists[0][3] == (b":authority", b"www.example.com")
    assert lists[1][4] == (b"cache-control", b"no-cache")
    assert lists[2][-1] == (b"custom-key", b"custom-value")
    assert lists[2][3] == (b":authority", b"www.example.com")


def test_what_we_encode_others_decode() -> None:
    fields = [(b"a", b""), (b"b" * 200, b"c" * 20_000)]
    decoded = reference.Decoder(max_header_list_size=100_000).decode(encode(fields), raw=True)
    assert [tuple(field) for field in decoded] == fields


def test_generation_changes_with_the_table_only() -> None:
    ours = decoder()
    ours.decode(b"\x82\x00\x01a\x01b")
    assert (ours.generation, ours.literals) == (0, [1])
    ours.decode(b"\x40\x01a\x01b")
    assert ours.generation == 1
    assert ours.decode(b"\xbe") == [(b"a", b"b")]
    assert (ours.generation, ours.literals) == (1, [])


def test_entries_leave_a_full_table_oldest_first() -> None:
    ours = Decoder(max_list_bytes=10_000, table_bytes=80)
    for name in (b"a", b"b", b"c"):
        ours.decode(b"\x40\x01" + name + b"\x01x")
    assert ours.decode(b"\xbe\xbf") == [(b"c", b"x"), (b"b", b"x")]
    with pytest.raises(HpackError, match="no table"):
        ours.decode(b"\xc0")


def test_a_field_larger_than_the_table_empties_it() -> None:
    ours = Decoder(max_list_bytes=10_000, table_bytes=80)
    ours.decode(b"\x40\x01a\x01x")
    ours.decode(b"\x40\x01b\x60" + b"y" * 96)
    with pytest.raises(HpackError):
        ours.decode(b"\xbe")


def test_fields_beyond_the_limit_are_dropped_but_keep_the_table_in_step() -> None:
    ours = Decoder(max_list_bytes=50)
    assert ours.decode(b"\x40\x01a\x01x\x40\x01b\x01y") == [(b"a", b"x")]
    assert ours.overflowed
    assert ours.decode(b"\xbe") == [(b"b", b"y")]
    assert not ours.overflowed


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xbe",
        b"\xff\xff\xff\xff\xff\x7f",
        b"\xff\x80\x80\x80\x80\x80\x80\x01",
        b"\x40\x05abc",
        b"\x40",
        b"\x00\x01a",
        b"\x82\x20",
        b"\x3f\xe2\x1f",
        b"\x00\x81\x00\x01a",
        b"\x00\x84\xff\xff\xff\xff\x01a",
    ],
)
def test_malformed_blocks(block: bytes) -> None:
    with pytest.raises(HpackError):
        decoder().decode(block)


def test_integers() -> None:
    assert encode_integer(10, 5) == b"\x0a"  # RFC 7541, C.1
    assert encode_integer(1337, 5) == b"\x1f\x9a\x0a"
