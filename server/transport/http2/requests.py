"""Reads request heads: header blocks in, one frozen `RequestHead` out (RFC 9113, section 8; gRPC over HTTP2).

A block that leaves the dynamic table alone means the same until the table changes, so its head is remembered by
its bytes: on a warm connection most requests cost one dictionary look-up. Where a client spells out what differs
from call to call (a timeout, a trace id), the head of all the rest is remembered instead, as a template.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from server.transport.http2.hpack import Decoder, Field
from server.transport.http2.metadata import Metadata, Metadatum, decode_pair, parse_timeout_s

_REMEMBERED: Final = 64
_LONGEST_REMEMBERED: Final = 1024

_NAME: Final = re.compile(rb"[0-9a-z!#$%&'*+.^_`|~-]+")
_VALUE: Final = re.compile(rb"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?")

_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_REQUIRED: Final = (b":method", b":scheme", b":path")
_SINGLE: Final = frozenset((b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"))
_NOT_METADATA: Final = _SINGLE | {b"te", b"content-length", b"host"}


class MalformedRequest(ValueError):
    """A header list that HTTP/2 does not allow: a stream error of type PROTOCOL_ERROR."""


class RequestHead(NamedTuple):
    """What a request's HEADERS said, as a gRPC server needs it."""

    timeout_s: float | None
    metadata: Metadata
    method: bytes
    path: bytes
    authority: bytes
    encoding: bytes
    """Compression of the request's messages; empty: identity."""
    accepted_encodings: frozenset[bytes]
    content_length: int | None
    complaint: str
    """Why no servicer may see this request though HTTP/2 allows it: answered with status INTERNAL."""
    oversized: bool
    """Whether fields were dropped because the list exceeds the announced size."""

    is_grpc: bool
    """Whether the content type is application/grpc, alone or with a suffix or parameters."""
    is_plain: bool
    """Whether this is a gRPC call with nothing special about it: the common case, in one look."""


def _is_grpc(content_type: bytes) -> bool:
    return content_type == b"application/grpc" or content_type.startswith((b"application/grpc+", b"application/grpc;"))


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise MalformedRequest(f"field name {name!r}")
    if name in _CONNECTION_SPECIFIC:
        raise MalformedRequest(f"connection-specific field {name!r}")
    if not _VALUE.fullmatch(value):
        raise MalformedRequest(f"value of field {name!r}")
    if name == b"te" and value != b"trailers":
        raise MalformedRequest("te other than trailers")


def _split(fields: list[Field]) -> tuple[dict[bytes, bytes], list[Field]]:
    """Pseudo and known fields by name, and the fields that are metadata."""
    known: dict[bytes, bytes] = {}
    rest: list[Field] = []
    regular = False
    for field in fields:
        name, value = field
        if name.startswith(b":"):
            if regular or name not in _PSEUDO or name in known:
                raise MalformedRequest(f"pseudo-header {name!r}")
            known[name] = value
            continue
        regular = True
        _check_field(name, value)
        if name not in _NOT_METADATA:
            rest.append(field)
        elif name == b"content-length" and known.get(name, value) != value:
            raise MalformedRequest("contradicting content-length")
        else:
            known[name] = value
    return known, rest


def _content_length(known: dict[bytes, bytes]) -> int | None:
    value = known.get(b"content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:
        raise MalformedRequest("content-length")
    return int(value)


def parse_head(fields: list[Field], *, oversized: bool = False) -> RequestHead:
    """The head of a request. MalformedRequest where HTTP/2 forbids it."""
    known, rest = _split(fields)
    if not oversized and any(not known.get(name) for name in _REQUIRED):
        raise MalformedRequest("a required pseudo-header is missing")
    complaint = ""
    metadata: Metadata = ()
    try:
        metadata = tuple([decode_pair(name, value) for name, value in rest])
    except ValueError as error:
        complaint = str(error)
    timeout_s = None
    if (timeout := known.get(b"grpc-timeout")) is not None:
        timeout_s = parse_timeout_s(timeout)
        if timeout_s is None:
            complaint = f"malformed grpc-timeout: {timeout.decode('latin-1')}"
    method = known.get(b":method", b"")
    encoding = known.get(b"grpc-encoding", b"")
    is_grpc = _is_grpc(known.get(b"content-type", b""))
    return RequestHead(
        method=method,
        path=known.get(b":path", b""),
        authority=known.get(b":authority", known.get(b"host", b"")),
        timeout_s=timeout_s,
        encoding=encoding,
        accepted_encodings=frozenset(item.strip() for item in known.get(b"grpc-accept-encoding", b"").split(b",")),
        content_length=_content_length(known),
        metadata=metadata,
        complaint=complaint,
        oversized=oversized,
        is_grpc=is_grpc,
        is_plain=is_grpc and method == b"POST" and encoding in (b"", b"identity") and not complaint and not oversized,
    )


def check_trailers(fields: list[Field]) -> None:
    """Request trailers carry nothing that gRPC uses; they only have to be legal."""
    for name, value in fields:
        if name.startswith(b":"):
            raise MalformedRequest("pseudo-header in trailers")
        _check_field(name, value)


def fill_in(template: RequestHead, fields: list[Field]) -> RequestHead | None:
    """`template` with `fields` added; None where they are not simply a timeout and further metadata.

    MalformedRequest where HTTP/2 forbids one of them.
    """
    timeout_s = template.timeout_s
    added: list[Metadatum] = []
    for name, value in fields:
        if name == b"grpc-timeout":
            timeout_s = parse_timeout_s(value)
            if timeout_s is None:
                return None
        elif name in _NOT_METADATA or name.startswith(b":") or name.endswith(b"-bin"):
            return None
        else:
            _check_field(name, value)
            added.append(decode_pair(name, value))
    return RequestHead(timeout_s, (*template.metadata, *added), *template[2:])


def _in_order(spelt: list[Field], literals: list[int], rest: list[Field]) -> bool:
    """Whether adding `spelt` after `rest` keeps the order that counts.

    It does not where a pseudo-header, or metadata of `rest`, stood behind what is added.
    """
    first = literals[0]
    if first < len(rest) and rest[first][0].startswith(b":"):
        return False
    for count, (name, _) in enumerate(spelt):
        if name != b"grpc-timeout":
            return all(behind in _NOT_METADATA for behind, _ in rest[literals[count] - count :])
    return True


class HeadReader:
    """Decodes the header blocks of one connection, remembering what it can of their heads."""

    __slots__ = ("_decoder", "_known", "_templates", "_timed", "_timed_prefix")

    def __init__(self, *, max_list_bytes: int) -> None:
        self._decoder = Decoder(max_list_bytes=max_list_bytes)
        self._known: dict[bytes, RequestHead] = {}
        self._templates: dict[tuple[Field, ...], RequestHead | None] = {}
        self._timed_prefix = b""  # a block up to the value of its grpc-timeout, which ends it
        self._timed: RequestHead | None = None  # what such a block says, whatever the timeout

    def read(self, block: bytes) -> RequestHead:
        """The head that `block` encodes. HpackError or MalformedRequest where there is none."""
        head = self._known.get(block)
        if head is not None:
            return head
        if (head := self._read_timed(block)) is not None:
            return head
        decoder = self._decoder
        fields, changed = self._decode(block)
        if decoder.literals and not decoder.overflowed:
            head = self._from_template(fields, decoder.literals) or parse_head(fields)
            if not changed and len(decoder.literals) == 1:
                self._remember_timed(block, head, fields)
            return head
        head = parse_head(fields, oversized=decoder.overflowed)
        if not changed and len(block) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[block] = head
        return head

    def _read_timed(self, block: bytes) -> RequestHead | None:
        """The head of a block that differs from one before in nothing but the timeout at its end."""
        timed, prefix = self._timed, self._timed_prefix
        if timed is None or not block.startswith(prefix):
            return None
        start = len(prefix) + 1
        if len(block) <= start or block[start - 1] != len(block) - start:  # Huffman's code sets the length's first bit
            return None
        timeout_s = parse_timeout_s(block[start:])
        return None if timeout_s is None else RequestHead(timeout_s, *timed[1:])

    def _remember_timed(self, block: bytes, head: RequestHead, fields: list[Field]) -> None:
        """Keep what a block says that left the table alone and ends with a timeout in plain letters."""
        name, value = fields[-1]
        if name != b"grpc-timeout" or not head.is_plain or len(block) > _LONGEST_REMEMBERED:
            return
        if block.endswith(b"\x0cgrpc-timeout" + bytes((len(value),)) + value):  # a plain head's value is short
            self._timed, self._timed_prefix = head, block[: -len(value) - 1]

    def read_trailers(self, block: bytes) -> None:
        """Decode a block of trailers, keeping the table in step. HpackError or MalformedRequest as `read`."""
        check_trailers(self._decode(block)[0])

    def skip(self, block: bytes) -> None:
        """Decode a block nobody will see, only to keep the table in step. HpackError as `read`."""
        self._decode(block)

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        """The fields of a block, and whether it changed the dynamic table, which voids what was remembered."""
        before = self._decoder.generation
        fields = self._decoder.decode(block)
        if self._decoder.generation == before:
            return fields, False
        self._known.clear()
        self._timed = None
        return fields, True

    def _from_template(self, fields: list[Field], literals: list[int]) -> RequestHead | None:
        """The head of `fields` by way of the template for all that were not spelt out; None where there is none."""
        spelt = [fields[at] for at in literals]
        rest = fields.copy()
        for at in reversed(literals):
            del rest[at]
        if not _in_order(spelt, literals, rest):
            return None
        key = tuple(rest)
        template = self._templates.get(key)
        if template is None and key not in self._templates:
            template = self._make_template(key)
        if template is None or template.complaint:
            return None
        return fill_in(template, spelt)

    def _make_template(self, key: tuple[Field, ...]) -> RequestHead | None:
        """Remember what `key` is the head of, if it is one by itself."""
        if len(self._templates) >= _REMEMBERED:
            self._templates.clear()
        try:
            head = parse_head(list(key))
        except MalformedRequest:
            head = None
        self._templates[key] = head
        return head
