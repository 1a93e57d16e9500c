"""Values: what is written can be read, and nothing else."""

from __future__ import annotations

import pickle
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.tensor import DType, Tensor
from server.cache.key import Key
from server.cache.value import Corrupted, Values

KEY = Key(b"k" * 32)
VALUES = Values(b"secret", max_bytes=1 << 20)
OUTPUTS = (
    Tensor("SCORES", DType.FP32, (2, 2), struct.pack("<4f", 1.0, -2.0, 3.5, float("inf"))),
    Tensor("Ä", DType.BYTES, (1,), b"\x03\0\0\0a\0b"),
    Tensor("EMPTY", DType.INT64, (0, 3), b""),
    Tensor("SCALAR", DType.BOOL, (), memoryview(b"\1")),
)


def plain(outputs: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(tensor.name, tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in outputs]


def test_what_was_written_is_read() -> None:
    outputs, expires = VALUES.decode(KEY, VALUES.encode(KEY, OUTPUTS, 1234.5))
    assert plain(outputs) == plain(OUTPUTS)
    assert expires == 1234.5


@pytest.mark.parametrize("dtype", DType)
def test_every_type_travels(dtype: DType) -> None:
    tensor = Tensor("T", dtype, (3,), bytes(3 * dtype.size))
    assert plain(VALUES.decode(KEY, VALUES.encode(KEY, (tensor,), 0.0))[0]) == plain((tensor,))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=3), st.booleans())
def test_any_bytes_travel(blobs: list[bytes], repeat: bool) -> None:
    outputs = tuple(
        Tensor(str(n), DType.UINT8, (len(blob) * (50 if repeat else 1),), blob * (50 if repeat else 1))
        for n, blob in enumerate(blobs)
    )
    assert plain(VALUES.decode(KEY, VALUES.encode(KEY, outputs, 0.0))[0]) == plain(outputs)


def test_large_values_are_compressed_when_that_pays() -> None:
    dull = (Tensor("MASK", DType.INT64, (4096,), bytes(8 * 4096)),)
    lively = (Tensor("NOISE", DType.UINT8, (4096,), random.Random(1).randbytes(4096)),)
    assert len(VALUES.encode(KEY, dull, 0.0)) < 500
    assert 4096 < len(VALUES.encode(KEY, lively, 0.0)) < 4200


@settings(deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    value = bytearray(VALUES.encode(KEY, OUTPUTS, 1234.5))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupted):
        VALUES.decode(KEY, bytes(value))


def test_truncated_and_padded_values_are_noticed() -> None:
    value = VALUES.encode(KEY, OUTPUTS, 0.0)
    for size in range(len(value)):
        with pytest.raises(Corrupted):
            VALUES.decode(KEY, value[:size])
    with pytest.raises(Corrupted):
        VALUES.decode(KEY, value + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_noticed(value: bytes) -> None:
    with pytest.raises(Corrupted):
        VALUES.decode(KEY, value)


def test_nothing_is_unpickled() -> None:
    with pytest.raises(Corrupted):
        VALUES.decode(KEY, pickle.dumps(OUTPUTS[0].name))


def test_an_answer_to_another_question_is_noticed() -> None:
    with pytest.raises(Corrupted, match="seal"):
        VALUES.decode(Key(b"K" * 32), VALUES.encode(KEY, OUTPUTS, 0.0))


def test_a_forger_without_the_secret_is_noticed() -> None:
    with pytest.raises(Corrupted, match="seal"):
        VALUES.decode(KEY, Values(b"guess", max_bytes=1 << 20).encode(KEY, OUTPUTS, 0.0))


def test_a_value_that_would_unpack_to_too_much_is_not_unpacked() -> None:
    bomb = VALUES.encode(KEY, (Tensor("BOMB", DType.UINT8, (1 << 19,), bytes(1 << 19)),), 0.0)
    assert len(bomb) < 4096
    with pytest.raises(Corrupted, match="more than the 1000 allowed"):
        Values(b"secret", max_bytes=1000).decode(KEY, bomb)


def test_what_a_broken_writer_has_sealed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"", b"\1\0", b"\1\0\1\0X\4\0FP99", b"\0\0\0", b"\1\0\1\0\xff"):
        monkeypatch.setattr("server.cache.value._join", lambda _, body=body: body)
        with pytest.raises(Corrupted, match="cannot be read"):
            VALUES.decode(KEY, VALUES.encode(KEY, OUTPUTS, 0.0))
