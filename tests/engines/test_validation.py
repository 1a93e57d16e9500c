"""RequestChecker: what it lets through, and in which order. The texts of refusals are held in tests/conformance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from engines.errors import InvalidRequest, TooLarge
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, join_bytes
from engines.validation import RequestChecker, RequestLimits


def spec(*inputs: TensorSpec, max_rows: int = 4) -> ModelSpec:
    outputs = (TensorSpec("p", DType.FP32, (1,)), TensorSpec("q", DType.FP32, (1,)))
    return ModelSpec("m", 1, "fake", inputs, outputs, max_rows)


A = TensorSpec("a", DType.INT8, (2,))
B = TensorSpec("b", DType.INT8, (-1, 3))
MAYBE = TensorSpec("maybe", DType.INT8, (1,), optional=True)


def tensor(name: str, *shape: int, size: int | None = None) -> Tensor:
    total = 1
    for side in shape:
        total *= side
    return Tensor(name, DType.INT8, shape, bytes(max(0, total) if size is None else size))


def test_inputs_come_in_the_order_of_the_spec() -> None:
    given = [tensor("maybe", 2, 1), tensor("b", 2, 5, 3), tensor("a", 2, 2)]
    inputs, rows = RequestChecker(spec(A, B, MAYBE)).inputs(given)
    assert [one.name for one in inputs] == ["a", "b", "maybe"]
    assert rows == 2


def test_optional_inputs_may_be_absent_and_others_may_not() -> None:
    checker = RequestChecker(spec(A, MAYBE))
    assert [one.name for one in checker.inputs([tensor("a", 1, 2)])[0]] == ["a"]
    with pytest.raises(InvalidRequest, match=r"missing required input\(s\) \['a'\]"):
        checker.inputs([tensor("maybe", 1, 1)])


@pytest.mark.parametrize("shape", [(1, 0, 3), (4, 7, 3)])
def test_free_dimensions_take_any_size(shape: tuple[int, ...]) -> None:
    assert RequestChecker(spec(B)).inputs([tensor("b", *shape)])[1] == shape[0]


@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 2), (1, -1, 3), (1, 2**31, 3), (0, 1, 3), (-1, 1, 3), (1, 1, 3, 1), (1, 3, 1)]
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match=r"unexpected shape for input 'b' for model 'm'. Expected \[-1,-1,3\]"):
        RequestChecker(spec(B)).inputs([tensor("b", *shape, size=0)])


def test_minus_one_in_a_request_is_no_free_dimension() -> None:
    """Two of them have a product of 1, so that the size of the data alone would not show them."""
    free = TensorSpec("b", DType.INT8, (-1, -1))
    with pytest.raises(InvalidRequest, match=r"Expected \[-1,-1,-1\], got \[1,-1,-1\]"):
        RequestChecker(spec(free)).inputs([tensor("b", 1, -1, -1, size=1)])
    with pytest.raises(InvalidRequest, match=r"Expected \[-1,-1\], got \[-1,-1\]"):
        RequestChecker(spec(free, max_rows=0)).inputs([tensor("b", -1, -1, size=1)])


def test_more_rows_than_the_model_takes() -> None:
    with pytest.raises(TooLarge, match="batch-size must be <= 4 for 'm'"):
        RequestChecker(spec(A)).inputs([tensor("a", 5, 2)])


def test_a_model_without_batches_takes_shapes_as_they_are() -> None:
    scalar = TensorSpec("s", DType.INT8, ())
    checker = RequestChecker(spec(scalar, B, max_rows=0))
    inputs, rows = checker.inputs([tensor("s"), tensor("b", 9, 3)])
    assert (len(inputs), rows) == (2, 1)
    with pytest.raises(InvalidRequest, match=r"Expected \[\], got \[1\]"):
        checker.inputs([tensor("s", 1), tensor("b", 9, 3)])


def test_a_batched_scalar_has_the_batch_dimension_only() -> None:
    checker = RequestChecker(spec(TensorSpec("s", DType.INT8, ())))
    assert checker.inputs([tensor("s", 3)])[1] == 3
    with pytest.raises(InvalidRequest, match=r"Expected \[-1\], got \[\]"):
        checker.inputs([tensor("s")])


@pytest.mark.parametrize("name", ["a", "b"])
def test_bytes_must_be_as_many_as_the_shape_says(name: str) -> None:
    shape = (2, 2) if name == "a" else (2, 1, 3)
    with pytest.raises(InvalidRequest, match=f"input byte size mismatch for input '{name}'.*got 1"):
        RequestChecker(spec(A if name == "a" else B)).inputs([tensor(name, *shape, size=1)])


def test_all_outputs_or_those_asked_for_in_that_order() -> None:
    checker = RequestChecker(spec(A))
    assert checker.wanted(()) == ("p", "q")
    assert checker.wanted(("q", "p")) == ("q", "p")
    assert checker.wanted(("q",)) == ("q",)


def test_what_the_server_takes_at_most_is_checked_before_any_work() -> None:
    free = spec(TensorSpec("f", DType.FP32, (-1, -1)), TensorSpec("t", DType.BYTES, (-1,)))
    limits = RequestLimits(max_elements=100, max_bytes_elements=3, max_bytes_length=5)
    checker = RequestChecker(free, limits)

    def check(*, floats: tuple[int, ...] = (1, 1, 1), texts: Sequence[bytes] = (b"x",)) -> None:
        numbers = Tensor("f", DType.FP32, floats, bytes(4 * min(1000, math.prod(floats))))
        checker.inputs([numbers, Tensor("t", DType.BYTES, (1, len(texts)), join_bytes(texts))])

    check(floats=(1, 10, 10), texts=[b"12345"] * 3)
    with pytest.raises(TooLarge, match="'f' for model 'm' has 110 elements, more than the 100"):
        check(floats=(1, 10, 11))
    with pytest.raises(TooLarge, match=f"has {(2**31 - 1) ** 2} elements"):  # no product wraps around
        check(floats=(1, 2**31 - 1, 2**31 - 1))
    with pytest.raises(TooLarge, match="'t' for model 'm' has 4 elements, more than the 3"):
        check(texts=[b""] * 4)
    with pytest.raises(TooLarge, match="an element of inference input 't' has 6 bytes, more than the 5"):
        check(texts=[b"123456"])


def test_a_tensor_of_far_too_many_strings_is_not_counted_to_its_end() -> None:
    checker = RequestChecker(spec(TensorSpec("t", DType.BYTES, (1,))))
    with pytest.raises(InvalidRequest, match="unexpected number of string elements 1002"):
        checker.inputs([Tensor("t", DType.BYTES, (1, 1), bytes(4 * 1_000_000))])
