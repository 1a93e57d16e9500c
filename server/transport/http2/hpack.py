"""Header compression (RFC 7541): a decoder with its dynamic table, and an encoder without one.

The encoder writes literals that touch no table, so that a block can be built once and sent on any connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from server.transport.http2.huffman import Huffman

if TYPE_CHECKING:
    from collections.abc import Iterable

Field = tuple[bytes, bytes]

_STATIC_TEXT: Final = """:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https
:status 200|:status 204|:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset
accept-encoding gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|allow
authorization|cache-control|content-disposition|content-encoding|content-language|content-length
content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match
if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards
proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie
strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"""

STATIC: Final[tuple[Field, ...]] = tuple(
    (name, value)
    for name, _, value in (entry.partition(b" ") for entry in _STATIC_TEXT.replace("\n", "|").encode().split(b"|"))
)
_DYNAMIC_FROM: Final = len(STATIC) + 1
_ENTRY_OVERHEAD: Final = 32  # RFC 7541, section 4.1
_LARGEST_INTEGER: Final = 2**28

DEFAULT_TABLE_BYTES: Final = 4096

_HUFFMAN: Final = Huffman()


class HpackError(ValueError):
    """A header block that cannot be decoded; the connection's compression state is lost with it."""


def encode_integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """`value` in HPACK's prefix form; `first` holds the bits of the first octet before the prefix."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """One field as a literal without indexing and without Huffman coding."""
    return b"".join((b"\x00", encode_integer(len(name), 7), name, encode_integer(len(value), 7), value))


def encode(fields: Iterable[Field]) -> bytes:
    """A header block of literals."""
    return b"".join([literal(name, value) for name, value in fields])


def _integer(block: bytes, pos: int, prefix_bits: int) -> tuple[int, int]:
    """The integer at `pos` and the position after it."""
    limit = (1 << prefix_bits) - 1
    value = block[pos] & limit
    pos += 1
    if value < limit:
        return value, pos
    shift = 0
    while True:
        octet = block[pos]
        pos += 1
        value += (octet & 0x7F) << shift
        if value > _LARGEST_INTEGER:
            raise HpackError("integer too large")
        if octet < 0x80:
            return value, pos
        shift += 7
        if shift > 28:
            raise HpackError("integer too long")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """The string at `pos` and the position after it."""
    first = block[pos]
    length = first & 0x7F
    if length < 0x7F:
        pos += 1
    else:
        length, pos = _integer(block, pos, 7)
    end = pos + length
    if end > len(block):
        raise HpackError("string runs past the block")
    data = block[pos:end]
    return (_HUFFMAN.decode(data) if first & 0x80 else data), end


class Decoder:
    """Decodes the header blocks of one connection, in order.

    `generation` changes whenever a block changed the dynamic table: equal bytes decoded in one generation mean
    equal fields.
    """

    __slots__ = ("_capacity", "_ceiling", "_dynamic", "_size", "generation", "literals", "max_list_bytes", "overflowed")

    def __init__(self, *, max_list_bytes: int, table_bytes: int = DEFAULT_TABLE_BYTES) -> None:
        self._ceiling = table_bytes
        self._capacity = table_bytes
        self._dynamic: list[Field] = []  # oldest first
        self._size = 0
        self.generation = 0
        self.max_list_bytes = max_list_bytes
        self.literals: list[int] = []
        """Where in the last block's fields those stand that were spelt out, not taken from a table."""
        self.overflowed = False
        """Whether the last block held more than `max_list_bytes`; the fields beyond were dropped."""

    def decode(self, block: bytes) -> list[Field]:
        """The fields of one complete block. HpackError where it is malformed."""
        try:
            return self._decode(block)
        except HpackError:
            raise
        except IndexError:
            raise HpackError("block ends inside a field") from None
        except ValueError as error:
            raise HpackError(str(error)) from None

    def _decode(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        self.literals = literals = []
        dynamic = self._dynamic
        room = self.max_list_bytes
        pos = 0
        while pos < len(block):
            first = block[pos]
            if first > 0x80:
                if first < 0xFF:
                    index = first & 0x7F
                    pos += 1
                else:
                    index, pos = _integer(block, pos, 7)
                back = index - _DYNAMIC_FROM + 1
                field = dynamic[-back] if 0 < back <= len(dynamic) else self._entry(index)
            elif first == 0x80:
                raise HpackError("index 0 is in no table")
            elif first >= 0x40:
                field, pos = self._literal(block, pos, 6)
                self._insert(field)
                literals.append(len(fields))
            elif first >= 0x20:
                pos = self._resize(block, pos, allowed=not fields)
                continue
            else:
                field, pos = self._literal(block, pos, 4)
                literals.append(len(fields))
            room -= len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if room >= 0:
                fields.append(field)
        self.overflowed = room < 0
        return fields

    def _entry(self, index: int) -> Field:
        if 0 < index < _DYNAMIC_FROM:
            return STATIC[index - 1]
        back = index - _DYNAMIC_FROM + 1
        if not 0 < back <= len(self._dynamic):
            raise HpackError(f"index {index} is in no table")
        return self._dynamic[-back]

    def _literal(self, block: bytes, pos: int, prefix_bits: int) -> tuple[Field, int]:
        index, pos = _integer(block, pos, prefix_bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, pos = _string(block, pos)
        value, pos = _string(block, pos)
        return (name, value), pos

    def _resize(self, block: bytes, pos: int, *, allowed: bool) -> int:
        if not allowed:
            raise HpackError("table size update after a field")
        capacity, pos = _integer(block, pos, 5)
        if capacity > self._ceiling:
            raise HpackError("table size update beyond the announced size")
        self._capacity = capacity
        self._evict(0)
        self.generation += 1
        return pos

    def _insert(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
        self.generation += 1
        self._evict(size)
        if size <= self._capacity:
            self._dynamic.append(field)
            self._size += size

    def _evict(self, wanted: int) -> None:
        """Drop the oldest entries until `wanted` bytes fit, or none are left."""
        gone = 0
        while self._size + wanted > self._capacity and gone < len(self._dynamic):
            name, value = self._dynamic[gone]
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD
            gone += 1
        del self._dynamic[:gone]
