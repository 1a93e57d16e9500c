"""What gRPC writes into HTTP/2 header fields: metadata, timeouts, status messages.

Follows the "gRPC over HTTP2" protocol description; reserved names never reach or leave a servicer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from server.transport.http2.hpack import Field, literal


class Metadatum(NamedTuple):
    """One pair of metadata; the value is bytes where the key ends with `-bin`, else str."""

    key: str
    value: str | bytes


Metadata = tuple[Metadatum, ...]


class InvalidMetadata(ValueError):
    """A servicer's own metadata that gRPC does not allow."""


MetadataLike = Iterable[tuple[str, str | bytes]]

_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KEY: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The one reserved name that servicers may send: when one who was turned away may try again (gRPC proposal A6)."""
_UNSAFE: Final = re.compile(rb"[^\x20-\x24\x26-\x7e]")


def parse_timeout_s(value: bytes) -> float | None:
    """Seconds of a grpc-timeout, or None where it is malformed."""
    digits, unit_s = value[:-1], _UNIT_S.get(value[-1:])
    return int(digits) * unit_s if unit_s is not None and digits.isdigit() and len(digits) <= 8 else None


@lru_cache(256)
def percent_encode(text: str) -> bytes:
    """A status message as grpc-message carries it."""
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "replace"))


def decode_pair(name: bytes, value: bytes) -> Metadatum:
    """The metadatum of one received field. ValueError where a `-bin` value is no base64."""
    if not name.endswith(b"-bin"):
        return Metadatum(name.decode("ascii"), value.decode("latin-1"))
    try:
        raw = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"metadata {name.decode('ascii')} is not base64") from error
    return Metadatum(name.decode("ascii"), raw)


_REMEMBERED: Final = 4096
"""Pairs: servers say the same few things again and again, most of all when they have no time to."""


@lru_cache(_REMEMBERED, typed=True)
def _encode_pair(key: str, value: str | bytes) -> bytes:
    return encode_pair(key, value)


def encode_pair(key: str, value: str | bytes) -> bytes:
    """One pair as a header literal. InvalidMetadata where gRPC does not allow the key or the value."""
    if not isinstance(key, str) or not _KEY.fullmatch(key) or (key.startswith("grpc-") and key != _PUSHBACK):
        raise InvalidMetadata(f"key {key!r}")
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            raise InvalidMetadata(f"the value of {key!r} must be bytes")
        return literal(key.encode(), base64.b64encode(value).rstrip(b"="))
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not _VALUE.fullmatch(text):
        raise InvalidMetadata(f"the value of {key!r} is not printable ASCII")
    return literal(key.encode(), text.encode())


def encode_metadata(pairs: MetadataLike) -> bytes:
    """A header block fragment for `pairs`."""
    return b"".join([_encode_pair(key, value) for key, value in pairs])


def fields_to_metadata(fields: Iterable[Field]) -> Metadata:
    """The metadata of received fields, in their order."""
    return tuple([decode_pair(name, value) for name, value in fields])
