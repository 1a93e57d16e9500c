"""Looks at a request's bytes before protobuf does.

Reading a message costs memory by its fields, not by its bytes: two bytes make an empty input of 80 (44 bytes of memory
for each byte that was sent, by measurement), so that a message within its limit could still ask for gigabytes. What
is left is at most the factor of packed numbers, 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engines.errors import TooLarge

MOST_FIELDS: Final = 4096
"""Inputs, outputs, parameters and raw contents of one request, together. The largest models known have hundreds."""

UNSEEN_BYTES: Final = 64 << 10
"""Shorter messages cannot become large, and are not looked at."""


def bounded(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserialize`, for messages of at most MOST_FIELDS fields."""

    def read(data: bytes) -> Any:  # noqa: ANN401  (whatever the message is)
        if len(data) > UNSEEN_BYTES:
            check_fields(data)
        return deserialize(data)

    return read


def check_fields(data: bytes) -> None:
    """Raise TooLarge for a message with more top-level fields. Bytes that make no sense are left to protobuf."""
    at, end = 0, len(data)
    for _ in range(MOST_FIELDS):
        if at >= end:
            return
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                at += size
            case 5:
                at += 4
            case _:  # groups, which nothing here has
                return
    if at < end:
        raise TooLarge(f"the request has more than {MOST_FIELDS} inputs, outputs, parameters and contents")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and the position behind it; past the end where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    return 0, len(data)
