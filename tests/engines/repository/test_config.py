"""Reading configurations, and completing them from the graph."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from engines.errors import LoadFailed
from engines.repository.config import DEFAULT_MAX_BATCH_SIZE, complete, parse_json, parse_text
from engines.repository.graph import Graph, GraphTensor
from engines.tensor import DType
from server.pb import model_config_pb2 as pb


def graph(*inputs: GraphTensor, outputs: tuple[GraphTensor, ...] = (GraphTensor("y", DType.FP32, (-1, 2)),)) -> Graph:
    return Graph(inputs or (GraphTensor("x", DType.FP32, (-1, 4)),), outputs, ())


def completed(text: str, of: Graph | None = None) -> pb.ModelConfig:
    return complete(parse_text(text), "m", of or graph())


def refusal(text: str, of: Graph | None = None) -> str:
    with pytest.raises(LoadFailed) as caught:
        completed(text, of)
    return str(caught.value)


def test_nothing_given_is_all_completed() -> None:
    assert json_format.MessageToDict(completed(""), preserving_proto_field_name=True) == {
        "name": "m",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": DEFAULT_MAX_BATCH_SIZE,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["2"]}],
        "dynamic_batching": {},
        "default_model_filename": "model.onnx",
    }


def test_completing_twice_changes_nothing() -> None:
    once = completed("")
    assert complete(parse_json(json_format.MessageToJson(once)), "m", graph()) == once


def test_an_unbatchable_graph_keeps_all_its_dims() -> None:
    fixed = graph(GraphTensor("x", DType.BYTES, (1, 4)))
    config = completed("", fixed)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 4]
    assert config.input[0].data_type == pb.TYPE_STRING
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size: 0", 0),
        ("max_batch_size: 5", 5),
        ("input { name: 'x' dims: [-1, 4] }", 0),
        ("output { name: 'y' dims: [8, 2] }", 0),
        ("input { name: 'x' dims: 4 }", DEFAULT_MAX_BATCH_SIZE),
        ("dynamic_batching { allowed_batch_size: [1, 6] }", 6),
        ("dynamic_batching { preferred_batch_size: [8, 64] }", 64),
        ("dynamic_batching { preferred_batch_size: 8 }", DEFAULT_MAX_BATCH_SIZE),
    ],
)
def test_the_batch_size_follows_what_is_said(text: str, expected: int) -> None:
    assert completed(text).max_batch_size == expected


def test_an_explicit_zero_is_told_apart_in_json_too() -> None:
    assert complete(parse_json('{"max_batch_size": 0}'), "m", graph()).max_batch_size == 0
    assert complete(parse_json("{}"), "m", graph()).max_batch_size == DEFAULT_MAX_BATCH_SIZE


def test_given_tensors_keep_their_order_and_the_missing_follow() -> None:
    two = graph(GraphTensor("a", DType.FP32, (-1, 1)), GraphTensor("b", DType.INT64, (-1, 3)))
    config = completed("input { name: 'b' }", two)
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [
        ("b", pb.TYPE_INT64, [3]),
        ("a", pb.TYPE_FP32, [1]),
    ]


def test_outputs_may_be_chosen() -> None:
    outputs = (GraphTensor("y", DType.FP32, (-1, 2)), GraphTensor("odd", None, None))
    assert [t.name for t in completed("output { name: 'y' }", graph(outputs=outputs)).output] == ["y"]
    text = refusal("max_batch_size: 0", graph(outputs=outputs))
    assert text == (
        "output 'odd': the model's type is none that a request can carry; list the outputs to serve without it"
    )


def test_a_free_size_may_be_narrowed_but_not_the_other_way_round() -> None:
    free = graph(GraphTensor("x", DType.FP32, (-1, -1)))
    assert list(completed("input { name: 'x' dims: 7 }", free).input[0].dims) == [7]
    assert "input 'x': dims [-1] do not fit the model's shape [-1, 4], the batch dimension included" in refusal(
        "max_batch_size: 2 input { name: 'x' dims: -1 }"
    )


def test_a_shape_that_the_graph_does_not_know_must_be_given() -> None:
    unknown = graph(outputs=(GraphTensor("y", DType.FP32, None),))
    assert refusal("", unknown) == "output 'y': dims must be given, as the model does not say its shape"
    assert list(completed("output { name: 'y' dims: [-1, 9] }", unknown).output[0].dims) == [-1, 9]


def test_defaults_make_inputs_optional_only_when_asked() -> None:
    with_default = graph(GraphTensor("x", DType.FP32, (-1, 4)), GraphTensor("f", DType.FP32, (-1, 1), has_default=True))
    assert [tensor.name for tensor in completed("", with_default).input] == ["x"]
    config = completed("input { name: 'f' optional: true }", with_default)
    assert [(tensor.name, tensor.optional) for tensor in config.input] == [("f", True), ("x", False)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: 'other'", "name: 'other' must be the name of the model's folder, 'm'"),
        ("backend: 'python'", "backend: 'python' is not available"),
        ("platform: 'pytorch_libtorch'", "platform: 'pytorch_libtorch' is not available"),
        (
            "platform: 'tensorrt_plan' backend: 'onnxruntime'",
            "backend: 'onnxruntime' does not run the platform 'tensorrt_plan'",
        ),
        ("max_batch_size: -1", "max_batch_size: -1 is negative"),
        ("input { name: 'z' }", "unexpected input 'z': the model's inputs are 'x'"),
        ("output { name: 'z' }", "unexpected output 'z': the model's outputs are 'y'"),
        ("input { data_type: TYPE_FP32 }", "input: an entry has no name"),
        ("input { name: 'x' } input { name: 'x' }", "input 'x': is there twice"),
        ("input { name: 'x' data_type: TYPE_INT8 }", "input 'x': data_type TYPE_INT8 does not fit the model's TYPE_"),
        ("max_batch_size: 2 input { name: 'x' dims: [4, 4] }", "input 'x': dims [4, 4] do not fit"),
        ("max_batch_size: 0 input { name: 'x' dims: 4 }", "input 'x': dims [4] do not fit the model's shape [-1, 4]"),
        ("input { name: 'x' dims: 0 }", "input 'x': dims [0] may hold positive sizes and -1 only"),
        ("input { name: 'x' dims: -2 }", "input 'x': dims [-2] may hold"),
        ("input { name: 'x' optional: true }", "input 'x': optional needs a default value in the model"),
        ("input { name: 'x' format: FORMAT_NCHW }", "input 'x': format FORMAT_NCHW needs 3 dims, not [4]"),
        ("default_model_filename: '../m.onnx'", "default_model_filename: '../m.onnx' is not a relative path"),
        ("max_batch_size: 1 max_batch_size: 2", "the configuration cannot be read: "),
        ("no_such_field: 1", 'has no field named "no_such_field"'),
    ],
)  # fmt: skip
def test_refusals_name_the_field(text: str, words: str) -> None:
    assert words in refusal(text)


def test_batching_needs_a_free_first_dimension() -> None:
    fixed = graph(GraphTensor("x", DType.FP32, (1, 4)))
    assert refusal("max_batch_size: 4", fixed) == (
        "max_batch_size: the model does not support batching: input 'x' has the shape [1, 4], "
        "whose first dimension is not free"
    )


def test_a_format_is_checked_and_kept() -> None:
    image = graph(GraphTensor("x", DType.FP32, (-1, 3, 8, 8)))
    config = completed("input { name: 'x' format: FORMAT_NCHW }", image)
    assert config.input[0].format == pb.ModelInput.FORMAT_NCHW


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"max_batch_size": "x"}', '{"nope": 1}', '{"input": {}}'])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(LoadFailed, match="the configuration cannot be read"):
        parse_json(text)
