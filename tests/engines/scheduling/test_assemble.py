"""Rows joined into a batch, and a batch cut into answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import EngineFailed
from engines.request import InferRequest
from engines.scheduling.assemble import Scatter, Staging, gather, signature
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType, Tensor, from_array, join_bytes, split_bytes, to_array

WIDTH = 3


def spec(dtype: DType, max_rows: int = 16) -> ModelSpec:
    return ModelSpec("m", 1, "fake", (TensorSpec("x", dtype, (WIDTH,)),), (TensorSpec("y", dtype, (WIDTH,)),), max_rows)


def request(array: Array, dtype: DType) -> InferRequest:
    return InferRequest(
        model="m", version=1, inputs=(from_array("x", dtype, array),), wanted=("y",), rows=array.shape[0]
    )


def rows_of(dtype: DType, count: int, first: int) -> Array:
    if dtype is DType.BYTES:
        return np.array([[b"%d" % (first + n)] * WIDTH for n in range(count)], object).reshape(count, WIDTH)
    return (np.arange(count * WIDTH).reshape(count, WIDTH) + first).astype(dtype.numpy)


@given(
    dtype=st.sampled_from(list(DType)),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    padding=st.integers(0, 3),
)
def test_what_is_gathered_and_scattered_comes_back_to_its_owner(dtype: DType, sizes: list[int], padding: int) -> None:
    parts = [rows_of(dtype, size, 10 * position) for position, size in enumerate(sizes)]
    whole = np.concatenate(parts)
    padded_rows = len(whole) + padding
    batch = gather([request(part, dtype) for part in parts], spec(dtype), padded_rows, Staging())["x"]
    assert batch.shape == (padded_rows, WIDTH)
    assert (batch[: len(whole)] == whole).all()
    assert (batch[len(whole) :] == whole[-1]).all()
    scatter = Scatter({"y": batch.copy()}, spec(dtype), padded_rows)
    start = 0
    for part in parts:
        (answer,) = scatter.rows(start, len(part), ("y",))
        assert answer.shape == part.shape
        assert (to_array(answer) == part).all()
        start += len(part)


def test_staging_memory_is_used_again_and_grows() -> None:
    staging = Staging()
    large = staging.array("x", DType.FP32, (4, 4))
    assert np.shares_memory(large, staging.array("x", DType.FP32, (2, 4)))
    assert not np.shares_memory(large, staging.array("x", DType.FP32, (5, 4)))
    assert not np.shares_memory(large, staging.array("z", DType.FP32, (1,)))


def test_a_lone_request_is_not_copied_unless_its_memory_is_crooked() -> None:
    content = bytearray(4 * WIDTH + 1)
    straight = Tensor("x", DType.FP32, (1, WIDTH), memoryview(content)[:-1])
    crooked = Tensor("x", DType.FP32, (1, WIDTH), memoryview(content)[1:])
    for tensor, shared in ((straight, True), (crooked, False)):
        asked = InferRequest(model="m", version=1, inputs=(tensor,), wanted=("y",))
        array = gather([asked], spec(DType.FP32), 1, Staging())["x"]
        assert array.flags.aligned
        assert np.shares_memory(array, np.frombuffer(content, np.uint8)) is shared


def test_signatures_tell_shapes_and_presence_apart() -> None:
    def asked(*tensors: Tensor) -> InferRequest:
        return InferRequest(model="m", version=1, inputs=tensors, wanted=("y",))

    def x(*shape: int) -> Tensor:
        return Tensor("x", DType.INT8, shape, b"")

    assert signature(asked(x(1, 2))) == signature(asked(x(3, 2)))
    assert signature(asked(x(1, 2))) != signature(asked(x(1, 3)))
    assert signature(asked(x(1, 2))) != signature(asked(x(1, 2), Tensor("more", DType.INT8, (1,), b"")))


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({}, "the engine returned no output 'y'"),
        ({"y": np.zeros((3, WIDTH), np.float32)}, r"output 'y' of shape \(3, 3\) for 2 rows"),
        ({"y": np.float32(1).reshape(())}, r"output 'y' of shape \(\) for 2 rows"),
        ({"y": np.zeros((2, WIDTH), np.int64)}, "output 'y' as int64, not FP32"),
    ],
)
def test_engines_that_return_something_else(outputs: dict[str, Array], text: str) -> None:
    with pytest.raises(EngineFailed, match=text):
        Scatter(outputs, spec(DType.FP32), 2).rows(0, 1, ("y",))


def test_without_batches_the_whole_output_is_the_answer() -> None:
    array = np.arange(5, dtype=np.float32)
    (answer,) = Scatter({"y": array}, spec(DType.FP32, max_rows=0), 1).rows(0, 1, ("y",))
    assert answer.shape == (5,)
    assert bytes(answer.data) == array.tobytes()


def test_text_from_an_engine_is_framed() -> None:
    array = np.array([["a", "é", ""]], object)
    (answer,) = Scatter({"y": array}, spec(DType.BYTES), 1).rows(0, 1, ("y",))
    assert split_bytes(answer.data, WIDTH, "y") == [b"a", "é".encode(), b""]
    assert bytes(answer.data) == join_bytes(["a", "é", ""])
