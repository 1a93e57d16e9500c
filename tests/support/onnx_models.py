"""Tiny ONNX graphs for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]


def identity(
    dims: Dims | None = ("batch", 4),
    dtype: int = TensorProto.FLOAT,
    *,
    count: int = 1,
    output_dims: Dims | str | None = "same",
) -> onnx.ModelProto:
    """`count` inputs `x0`, `x1`, ... that come out as `y0`, `y1`, ..."""
    given = dims if output_dims == "same" else output_dims
    inputs = [helper.make_tensor_value_info(f"x{i}", dtype, dims) for i in range(count)]
    outputs = [helper.make_tensor_value_info(f"y{i}", dtype, given) for i in range(count)]  # type: ignore[arg-type]  # "same" is gone
    nodes = [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(count)]
    return model(helper.make_graph(nodes, "identity", inputs, outputs))


def scale(factor: float = 2.0, *, optional: bool = False) -> onnx.ModelProto:
    """`y = x * factor` on rows of 4; with `optional` the factor is an input with a default value."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    if optional:
        inputs.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, ["n"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    weights = [numpy_helper.from_array(np.array([factor], np.float32), "factor")]
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    return model(helper.make_graph(nodes, "scale", inputs, outputs, weights))


def with_external_weights(folder: Path, name: str = "model.onnx") -> Path:
    """`scale`, its weights in the file `weights.bin` beside the model."""
    path = folder / name
    onnx.save_model(scale(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def sequence_output() -> onnx.ModelProto:
    """An output `list` that is a sequence, beside a plain output `y`."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
    ]
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("SequenceConstruct", ["x"], ["list"])]
    return model(helper.make_graph(nodes, "sequence", inputs, outputs))


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """The graph as a model that ONNX Runtime takes."""
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def write(
    root: Path, name: str, versions: Sequence[int] = (1,), *, config: str = "", proto: onnx.ModelProto | None = None
) -> Path:
    """A model's folder in the repository `root`; `identity` unless another model is given."""
    folder = root / name
    content = (proto or identity()).SerializeToString()
    for number in versions:
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        (folder / str(number) / "model.onnx").write_bytes(content)
    if config:
        (folder / "config.pbtxt").write_text(config)
    return folder


def slow(turns: int = 400) -> onnx.ModelProto:
    """`y = x`, after so many products of matrices that it takes some tenths of a millisecond each."""
    size = 256
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["state", "weights"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [size, size]),
        ],
    )
    constants = {
        "turns": np.array(turns, np.int64),
        "true": np.array(True),
        "weights": np.eye(size, dtype=np.float32),
        "zero": np.array(0.0, np.float32),
    }
    nodes = [
        helper.make_node("Loop", ["turns", "true", "weights"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return model(helper.make_graph(nodes, "slow", inputs, outputs, weights))


def fragile() -> onnx.ModelProto:
    """Arranges four numbers in `x` columns: the execution fails unless `x` is 1, 2 or 4."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "columns"])]
    constants = {"numbers": np.arange(4, dtype=np.float32), "rest": np.array([-1]), "flat": np.array([1])}
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["columns"]),
        helper.make_node("Concat", ["rest", "columns"], ["shape"], axis=0),
        helper.make_node("Reshape", ["numbers", "shape"], ["y"]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return model(helper.make_graph(nodes, "fragile", inputs, outputs, weights))


def counter() -> onnx.ModelProto:
    """`y` [1] counts up to `n` [1], one multiplication of 256 x 256 matrices for each step: as slow as one asks."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["matrix", "matrix"], ["square"]),
            helper.make_node("ReduceMax", ["square"], ["least"], keepdims=0),
            helper.make_node("Mul", ["least", "zero"], ["nothing"]),
            helper.make_node("Add", ["sum", "one"], ["more"]),
            helper.make_node("Add", ["more", "nothing"], ["sum_out"]),
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, [1]),
        ],
    )
    constants = {
        "matrix": np.ones((256, 256), np.float32),
        "zero": np.zeros((), np.float32),
        "one": np.ones(1, np.float32),
        "start": np.zeros(1, np.float32),
        "scalar": np.zeros(0, np.int64),
        "true": np.array(True),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["n", "scalar"], ["steps"]),
            helper.make_node("Loop", ["steps", "true", "start"], ["y"], body=body),
        ],
        "counter",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return model(graph)


def hungry() -> onnx.ModelProto:
    """`y` is the integer `x` [batch, 1], after a tensor of the largest `x` floats has been made."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "one"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Cast", ["x"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["number", "nothing"], ["y"]),
    ]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    return model(helper.make_graph(nodes, "hungry", inputs, outputs, [one]))


def padded(size: int) -> onnx.ModelProto:
    """`y = x` on rows of 4, with weights of `size` bytes that no optimiser can do without."""
    constants = {"weights": np.zeros(size // 4, np.float32), "zero": np.array(0.0, np.float32)}
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["none"]),
        helper.make_node("Cast", ["none"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["weights", "index"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return model(helper.make_graph(nodes, "padded", [x], [y], weights))
