"""Whatever a message holds, the codec reads it or refuses it with an InferError; and what fits survives the journey."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InferError, InvalidRequest
from engines.request import InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, elements, from_array, join_bytes, split_bytes, to_array
from engines.validation import RequestChecker
from server.pb import grpc_service_pb2 as pb
from server.transport.codec import CONTENTS, OutputPlan, classify, read_inputs, read_outputs, read_parameters
from server.transport.codec import write_response as write
from server.transport.shared_memory import SystemSharedMemory

NONE = SystemSharedMemory()
CHECKER = RequestChecker(
    ModelSpec(
        "m",
        1,
        "fake",
        (TensorSpec("a", DType.FP32, (2,)), TensorSpec("b", DType.BYTES, (-1,), optional=True)),
        (TensorSpec("p", DType.FP32, (2,)), TensorSpec("q", DType.BYTES, (1,))),
        max_rows=4,
    )
)

names = st.sampled_from(["a", "b", "p", "q", "", "classification", "shared_memory_region", "é\0"])
labels = st.sampled_from([*(dtype.label for dtype in DType), "", "FLOAT"])
dims = st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**63), 2**63 - 1)), max_size=4)
wholes = st.integers(-(2**31), 2**31 - 1)


@st.composite
def parameters(draw: st.DrawFn) -> pb.InferParameter:
    field, values = draw(
        st.sampled_from([
            ("bool_param", st.booleans()), ("int64_param", wholes), ("string_param", names),
            ("double_param", st.floats()), ("uint64_param", st.integers(0, 2**64 - 1)), (None, st.none()),
        ])
    )  # fmt: skip
    return pb.InferParameter(**({field: draw(values)} if field else {}))


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Messages that a client could send, most of them wrong in several ways."""
    message = pb.ModelInferRequest(
        model_name="m", raw_input_contents=draw(st.lists(st.binary(max_size=20), max_size=3))
    )
    for name in draw(st.lists(names, max_size=3)):
        given = message.inputs.add(name=name, datatype=draw(labels), shape=draw(dims))
        for key in draw(st.lists(names, max_size=2)):
            given.parameters[key].CopyFrom(draw(parameters()))
        for field in draw(st.lists(st.sampled_from(sorted(set(CONTENTS.values()))), max_size=2)):
            values: Any = {
                "bool_contents": st.booleans(), "bytes_contents": st.binary(max_size=4),
                "fp32_contents": st.floats(width=32), "fp64_contents": st.floats(), "int64_contents": wholes,
            }.get(field, st.integers(0, 2**31 - 1))  # fmt: skip
            getattr(given.contents, field).extend(draw(st.lists(values, max_size=4)))
    for name in draw(st.lists(names, max_size=2)):
        wanted = message.outputs.add(name=name)
        for key in draw(st.lists(names, max_size=2)):
            wanted.parameters[key].CopyFrom(draw(parameters()))
    for key in draw(st.lists(names, max_size=2)):
        message.parameters[key].CopyFrom(draw(parameters()))
    return message


def read(message: pb.ModelInferRequest) -> tuple[Tensor, ...] | None:
    """What the service does with a request before it meets others; None when it is refused."""
    try:
        read_parameters(message.parameters)
        inputs, _ = CHECKER.inputs(read_inputs(message, NONE))
        wanted, _ = read_outputs(message, NONE)
        CHECKER.wanted(wanted)
    except InferError:
        return None
    for tensor in inputs:
        assert to_array(tensor).shape == tensor.shape  # what is let through can be made an array of
    return inputs


@settings(max_examples=200, deadline=None)
@given(message=requests())
def test_any_message_is_read_or_refused(message: pb.ModelInferRequest) -> None:
    read(message)


GOOD = pb.ModelInferRequest(
    model_name="m",
    inputs=[
        pb.ModelInferRequest.InferInputTensor(name="a", datatype="FP32", shape=[1, 2]),
        pb.ModelInferRequest.InferInputTensor(name="b", datatype="BYTES", shape=[1, 2]),
    ],
    raw_input_contents=[bytes(8), join_bytes([b"x", b""])],
).SerializeToString()


@settings(max_examples=300, deadline=None)
@given(cuts=st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 3), st.binary(max_size=3)), max_size=4))
def test_mutated_bytes_are_no_message_or_are_read_or_refused(cuts: list[tuple[int, int, bytes]]) -> None:
    mutated = bytearray(GOOD)
    for start, length, replacement in cuts:
        mutated[start : start + length] = replacement
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(bytes(mutated))
    except DecodeError:
        return
    inputs = read(message)
    if not cuts:
        assert inputs is not None


@st.composite
def tensors(draw: st.DrawFn, dtypes: Iterable[DType] = DType) -> Tensor:
    dtype = draw(st.sampled_from(list(dtypes)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    if dtype is DType.BYTES:
        values = draw(st.lists(st.binary(max_size=3), min_size=elements(shape), max_size=elements(shape)))
        return Tensor("x", dtype, shape, join_bytes(values))
    size = elements(shape) * dtype.size
    content = draw(st.binary(min_size=size, max_size=size))
    return Tensor("x", dtype, shape, bytes(bit & 1 for bit in content) if dtype is DType.BOOL else content)


@given(tensor=tensors())
def test_raw_tensors_survive_the_journey(tensor: Tensor) -> None:
    message = pb.ModelInferRequest(raw_input_contents=[bytes(tensor.data)])
    message.inputs.add(name="x", datatype=tensor.dtype.label, shape=tensor.shape)
    (back,) = read_inputs(message, NONE)
    assert back == tensor
    response = write(InferResponse(model="m", version=3, outputs=(back,), id="i"), (), {}, batched=False)
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "i")
    assert list(response.raw_output_contents) == [bytes(tensor.data)]
    assert tuple(response.outputs[0].shape) == tensor.shape
    assert response.outputs[0].datatype == tensor.dtype.label


@given(tensor=tensors(CONTENTS))
def test_typed_tensors_are_read_as_raw_ones(tensor: Tensor) -> None:
    message = pb.ModelInferRequest()
    given_input = message.inputs.add(name="x", datatype=tensor.dtype.label, shape=tensor.shape)
    if tensor.dtype is DType.BYTES:
        values: list[Any] = split_bytes(tensor.data, elements(tensor.shape), "x")
    else:
        values = to_array(tensor).ravel().tolist()
    getattr(given_input.contents, CONTENTS[tensor.dtype]).extend(values)
    (back,) = read_inputs(message, NONE)
    first, second = to_array(back), to_array(tensor)
    if tensor.dtype in (DType.FP32, DType.FP64):  # a signalling NaN may come back as a quiet one
        np.testing.assert_array_equal(first, second)
    else:
        assert bytes(back.data) == bytes(tensor.data)


@pytest.mark.parametrize("batched", [True, False])
@given(data=st.data())
def test_classes_are_the_best_ones_in_order(data: st.DataObject, *, batched: bool) -> None:
    rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    shape = (rows, width) if batched else (width,)
    count = elements(shape)
    scores = data.draw(st.lists(st.integers(-100, 100), min_size=count, max_size=count))
    table = np.array(scores, np.float32).reshape(-1, width)
    tensor = from_array("y", DType.FP32, table.reshape(shape))
    top = data.draw(st.integers(1, 8))
    answer = classify(tensor, top, ["zero", "one"], batched=batched)
    kept = min(top, width)
    assert answer.shape == ((rows, kept) if batched else (kept,))
    lines = np.array(split_bytes(answer.data, elements(answer.shape), "y")).reshape(-1, kept)
    for row, given_row in zip(lines, table, strict=True):
        indices = []
        for line in row:
            score, index, *label = line.decode().split(":")
            indices.append(int(index))
            assert float(score) == given_row[int(index)]
            assert label == (["zero", "one"][int(index) :][:1] if int(index) < 2 else [])
        assert indices == sorted(range(width), key=lambda index: -given_row[index])[:kept]


def test_classes_of_whole_numbers_are_ordered_exactly() -> None:
    tensor = from_array("y", DType.UINT8, np.array([[3, 250, 0]], np.uint8))
    assert split_bytes(classify(tensor, 3, (), batched=True).data, 3, "y") == [b"250:1", b"3:0", b"0:2"]
    huge = from_array("y", DType.INT64, np.array([[2**62, 2**62 + 1]], np.int64))
    assert split_bytes(classify(huge, 2, (), batched=True).data, 2, "y")[0] == b"%d:1" % (2**62 + 1)


def test_strings_have_no_classes() -> None:
    with pytest.raises(InvalidRequest, match="class result not available for output 'y'"):
        classify(from_array("y", DType.BYTES, np.array([[b"a"]], object)), 1, (), batched=True)


def test_a_plan_for_one_output_leaves_the_other_as_it_is() -> None:
    plain, ranked = (from_array(name, DType.FP32, np.ones((1, 2), np.float32)) for name in "xy")
    specs = {name: TensorSpec(name, DType.FP32, (2,)) for name in "xy"}
    response = write(
        InferResponse(model="m", version=1, outputs=(plain, ranked)),
        [OutputPlan("x"), OutputPlan("y", classes=1)],
        specs,
        batched=True,
    )
    assert [output.datatype for output in response.outputs] == ["FP32", "BYTES"]
