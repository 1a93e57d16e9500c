"""Neighbours of an input: of bytes, of protobuf messages, and of HTTP/2 frames. All chance comes from the argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from server.transport.http2 import frames

_EDGES: Final = (0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)
_MOST_BYTES: Final = 1 << 16


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite, a few times over."""
    mutated = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(mutated))
        size = min(len(mutated) - at, 1 << random.randint(0, 6))
        match random.randrange(6):
            case 0 if at < len(mutated):
                mutated[at] ^= 1 << random.randrange(8)
            case 1:
                del mutated[at : at + size]
            case 2:
                mutated[at:at] = mutated[at : at + size]
            case 3:
                mutated[at:at] = random.randbytes(random.randint(1, 8))
            case 4:
                number = random.choice(_EDGES) % 2**32
                mutated[at : at + 4] = number.to_bytes(4, random.choice(("big", "little")))
            case _:
                source = random.randint(0, len(mutated))
                mutated[at : at + size] = mutated[source : source + size]
    return bytes(mutated[:_MOST_BYTES])


def mutate_message(kind: type[Message], words: Sequence[str]) -> Callable[[bytes, Random], bytes]:
    """Changes fields of a message of this kind, now and then its bytes; `words` are texts that mean something."""

    def mutate(data: bytes, random: Random) -> bytes:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return mutate_bytes(data, random)
        if random.random() < 0.2:
            return mutate_bytes(data, random)
        for _ in range(random.randint(1, 3)):
            change(message, random, words)
        return message.SerializeToString()[:_MOST_BYTES]

    return mutate


def change(message: Any, random: Random, words: Sequence[str], depth: int = 0) -> None:
    """Change one field, somewhere in the message."""
    if not message.DESCRIPTOR.fields:
        return
    field = random.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(message, field, random, words, depth)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, random, words, depth)
    elif random.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if depth < 6:
            change(inner, random, words, depth + 1)
    else:
        setattr(message, field.name, _value(field, random, words))


def _change_map(message: Any, field: FieldDescriptor, random: Random, words: Sequence[str], depth: int) -> None:
    entries = getattr(message, field.name)
    key_field, value_field = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    known = sorted(entries)
    if known and random.random() < 0.2:
        del entries[random.choice(known)]
        return
    key = random.choice(known) if known and random.random() < 0.5 else _value(key_field, random, words)
    if value_field.message_type is None:
        entries[key] = _value(value_field, random, words)
    elif depth < 6:
        change(entries[key], random, words, depth + 1)


def _change_list(values: Any, field: FieldDescriptor, random: Random, words: Sequence[str], depth: int) -> None:
    if len(values) and random.random() < 0.3:
        del values[random.randrange(len(values))]
    elif field.message_type is None:
        for _ in range(random.choice((1, 1, 2, 9))):
            values.append(_value(field, random, words))
    elif len(values) and random.random() < 0.7:
        change(random.choice(values), random, words, depth + 1)
    elif depth < 6:
        change(values.add(), random, words, depth + 1)


def _value(field: FieldDescriptor, random: Random, words: Sequence[str]) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_STRING:
            text = random.choice(words) if random.random() < 0.8 else "".join(random.choices("a/.\\\0é-1", k=5))
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_ENUM:
            return random.choice([value.number for value in field.enum_type.values])
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return random.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), random.random()))
        case _:
            return _whole(field.cpp_type, random)


def _whole(kind: int, random: Random) -> int:
    unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    value = random.choice(_EDGES) if random.random() < 0.7 else random.randint(-9, 99)
    wrapped = value % 2**bits
    return wrapped if unsigned or wrapped < 2 ** (bits - 1) else wrapped - 2**bits


def split_frames(data: bytes) -> tuple[bytes, list[bytes]]:
    """What precedes the first frame, and the frames; the last one may be cut short."""
    start = len(frames.PREFACE) if data.startswith(frames.PREFACE) else 0
    found = []
    at = start
    while at < len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        found.append(data[at : at + 9 + length])
        at += 9 + length
    return data[:start], found


def mutate_frames(data: bytes, random: Random) -> bytes:
    """Repeat, drop, swap or alter whole frames; lengths are put right again most of the time."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    preface, found = split_frames(data)
    for _ in range(random.randint(1, 3)):
        if not found:
            return mutate_bytes(data, random)
        at = random.randrange(len(found))
        match random.randrange(5):
            case 0:
                del found[at]
            case 1:
                found[at:at] = [found[at]] * random.choice((1, 2, 40))
            case 2:
                other = random.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case _:
                found[at] = _altered(found[at], random)
    return (preface + b"".join(found))[:_MOST_BYTES]


def _altered(frame: bytes, random: Random) -> bytes:
    if len(frame) < 9:
        return frame
    kind, flags, stream_id, payload = frame[3], frame[4], int.from_bytes(frame[5:9], "big"), frame[9:]
    match random.randrange(4):
        case 0:
            kind = random.randrange(12)
        case 1:
            flags ^= random.choice((1, 4, 8, 0x20))
        case 2:
            stream_id = random.choice((0, 1, 2, 3, stream_id + 2, stream_id - 2, 2**31 - 1)) % 2**31
        case _:
            payload = mutate_bytes(payload, random)
    return frames.head(len(payload), kind, flags, stream_id) + payload
