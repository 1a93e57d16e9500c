"""The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B), decoding only.

The code is canonical, so that the lengths alone define it: among symbols of equal length, codes rise with the
symbol. Decoding walks a table by whole bytes; a row of the table is made when its state is first met.
"""

from __future__ import annotations

from typing import Final

_LENGTHS: Final = (
    (13, 23) + (28,) * 7 + (24, 30, 28, 28, 30) + (28,) * 8 + (30,) + (28,) * 9
    + (6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5) + (6,) * 7 + (7, 8, 15, 6, 12, 10)
    + (13, 6) + (7,) * 22 + (8, 7, 8, 13, 19, 13, 14, 6)
    + (15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6) + (7,) * 5 + (15, 11, 14, 13, 28)
    + (20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21)
    + (22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21)
    + (23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26)
    + (24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23)
    + (22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30)
)  # fmt: skip
_END_OF_STRING: Final = 256

_Step = tuple[int, bytes]
_DEAD: Final = -1


def _tree() -> list[tuple[int, int]]:
    """The code as a binary tree: for each inner node its two children, >= 0 a node, < 0 the symbol ~child."""
    nodes = [[0, 0]]
    code = 0
    previous = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - previous
        previous = length
        at = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[at][bit]:
                nodes.append([0, 0])
                nodes[at][bit] = len(nodes) - 1
            at = nodes[at][bit]
        nodes[at][code & 1] = ~symbol
        code += 1
    return [(zero, one) for zero, one in nodes]


def _padding(tree: list[tuple[int, int]]) -> frozenset[int]:
    """The nodes where a string may stop: fewer than eight bits, all ones, into the end-of-string code."""
    at = 0
    allowed = [0]
    for _ in range(7):
        at = tree[at][1]
        allowed.append(at)
    return frozenset(allowed)


class Huffman:
    """Decodes strings; shared by all connections of a process.

    Promise: the table never exceeds 256 rows of 256 steps, whatever is decoded.
    """

    def __init__(self) -> None:
        self._tree = _tree()
        self._accepting = _padding(self._tree)
        self._rows: list[list[_Step] | None] = [None] * len(self._tree)

    def _row(self, state: int) -> list[_Step]:
        row = [self._walk(state, octet) for octet in range(256)]
        self._rows[state] = row
        return row

    def _walk(self, state: int, octet: int) -> _Step:
        symbols = bytearray()
        for shift in range(7, -1, -1):
            state = self._tree[state][octet >> shift & 1]
            if state < 0:
                if ~state == _END_OF_STRING:
                    return _DEAD, b""
                symbols.append(~state)
                state = 0
        return state, bytes(symbols)

    def decode(self, data: bytes) -> bytes:
        """The string that `data` encodes. ValueError where it is no legal encoding."""
        rows = self._rows
        state = 0
        parts = []
        for octet in data:
            state, symbols = (rows[state] or self._row(state))[octet]
            if state == _DEAD:
                raise ValueError("end-of-string symbol in a Huffman string")
            parts.append(symbols)
        if state not in self._accepting:
            raise ValueError("Huffman string ends inside a symbol")
        return b"".join(parts)
