from __future__ import annotations

import pytest

from server.transport.http2.metadata import (
    InvalidMetadata,
    decode_pair,
    encode_metadata,
    parse_timeout_s,
    percent_encode,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99999999),
        (b"0S", 0), (b"123456789S", None), (b"S", None), (b"1", None), (b"-1S", None), (b"1.5S", None), (b"1S ", None),
    ],
)  # fmt: skip
def test_timeouts(text: bytes, seconds: float | None) -> None:
    assert parse_timeout_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_status_messages_are_percent_encoded() -> None:
    assert percent_encode("100% \té\n") == b"100%25 %09%C3%A9%0A"
    assert percent_encode("\ud800") == b"?"


def test_binary_values_travel_as_base64_with_or_without_padding() -> None:
    assert decode_pair(b"a-bin", b"AP8") == ("a-bin", b"\x00\xff")
    assert decode_pair(b"a-bin", b"AP8=") == ("a-bin", b"\x00\xff")
    assert encode_metadata([("a-bin", b"\x00\xff")]) == b"\x00\x05a-bin\x03AP8"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Upper", "x"), ("", "x"), ("a b", "x"), ("grpc-status", "0"), ("a", "é"), ("a", "x\n"), ("a-bin", "text"),
        (b"a", "x"),
    ],
)  # fmt: skip
def test_metadata_that_grpc_does_not_allow(key: str, value: str | bytes) -> None:
    with pytest.raises(InvalidMetadata):
        encode_metadata([(key, value)])


def test_servicers_may_say_when_to_try_again() -> None:
    assert encode_metadata([("grpc-retry-pushback-ms", "20")]) == b"\x00\x16grpc-retry-pushback-ms\x0220"
