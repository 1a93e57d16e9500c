"""Tensors in wire layout: round trips of all types, framing of strings."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.errors import InvalidRequest
from engines.tensor import BY_LABEL, DType, Tensor, check_bytes, elements, from_array, join_bytes, split_bytes, to_array

FIXED = [dtype for dtype in DType if dtype is not DType.BYTES]


@given(
    dtype=st.sampled_from(FIXED), shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), data=st.data()
)
def test_any_bytes_survive_the_round_trip(dtype: DType, shape: tuple[int, ...], data: st.DataObject) -> None:
    size = elements(shape) * dtype.size
    content = data.draw(st.binary(min_size=size, max_size=size))
    array = to_array(Tensor("x", dtype, shape, content))
    assert (array.dtype, array.shape) == (dtype.numpy, shape)
    back = from_array("x", dtype, array)
    assert (bytes(back.data), back.shape) == (content, shape)


def test_sizes_are_those_of_the_protocol() -> None:
    sizes = {label: dtype.size for label, dtype in BY_LABEL.items()}
    assert sizes == {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
        "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
    }  # fmt: skip


def test_a_contiguous_array_is_viewed_and_another_is_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(np.frombuffer(from_array("x", DType.FP32, array).data, np.float32), array)
    turned = from_array("x", DType.FP32, array.T)
    assert bytes(turned.data) == array.T.copy().tobytes()
    assert turned.shape == (3, 2)


def test_reading_copies_nothing() -> None:
    content = bytearray(16)
    array = to_array(Tensor("x", DType.FP32, (4,), memoryview(content)))
    content[:4] = np.float32(7).tobytes()
    assert array[0] == 7


def test_bfloat16_has_its_bits() -> None:
    assert bytes(from_array("x", DType.BF16, np.array([1.0], ml_dtypes.bfloat16)).data) == b"\x80\x3f"


@given(values=st.lists(st.binary(max_size=6), max_size=6))
def test_strings_survive_the_round_trip(values: list[bytes]) -> None:
    framed = join_bytes(values)
    check_bytes(framed, len(values), "x")
    assert split_bytes(framed, len(values), "x") == values
    tensor = Tensor("x", DType.BYTES, (len(values),), framed)
    assert bytes(from_array("x", DType.BYTES, to_array(tensor)).data) == framed


@given(content=st.binary(max_size=40), count=st.integers(0, 5))
def test_any_framing_is_either_right_or_refused_by_name(content: bytes, count: int) -> None:
    try:
        values = split_bytes(content, count, "the name")
    except InvalidRequest:
        with pytest.raises(InvalidRequest, match="'the name'"):
            check_bytes(content, count, "the name")
    else:
        assert join_bytes(values) == content
        assert len(values) == count


def test_text_is_framed_as_utf8() -> None:
    assert join_bytes(["é", b"\xff"]) == b"\x02\0\0\0\xc3\xa9\x01\0\0\0\xff"
