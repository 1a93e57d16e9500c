"""Networks of several kinds with seeded weights, for tests and benchmarks of what is built from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]

LIGHT_RESNET50 = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
"""The graph as the onnx wheel carries it: all weights are made up by ConstantOfShape."""


def weight(random: np.random.Generator, *shape: int) -> Floats:
    """He's initialisation for [out, in, ...]; a matrix is [in, out]."""
    fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    return random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def finished(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int = 17,
) -> onnx.ModelProto:
    """The parts as a model, checked."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "network", list(inputs), list(outputs), tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def floats(name: str, *dims: int | str) -> onnx.ValueInfoProto:
    """An FP32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def residual_cnn(seed: int = 0, *, width: int = 8, size: int = 8, batch: int | str = "N") -> onnx.ModelProto:
    """`x` [N,3,size,size] to `probabilities` [N,5]: convolutions, a residual addition, pooling, a dense layer.

    With a number as `batch` the size of the batch is fixed, and written into a Reshape as exporters do.
    """
    random = np.random.default_rng(seed)
    constants: dict[str, NDArray] = {
        "w0": weight(random, width, 3, 3, 3),
        "w1": weight(random, width, width, 3, 3),
        "b1": random.normal(0, 0.1, width).astype(np.float32),
        "flat": np.array([batch if isinstance(batch, int) else -1, width], np.int64),
        "w2": weight(random, width, 5),
    }
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], **same),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], **same),
        helper.make_node("Add", ["c1", "r0"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["p1"]),
        helper.make_node("Reshape", ["p1", "flat"], ["f1"]),
        helper.make_node("MatMul", ["f1", "w2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    return finished(nodes, constants, [floats("x", batch, 3, size, size)], [floats("probabilities", batch, 5)])


def encoder(seed: int = 0, *, layers: int = 2, width: int = 32, heads: int = 4, length: int = 12) -> onnx.ModelProto:
    """A transformer encoder: `ids` INT64 [N,length] of 64 words to `logits` [N,6]."""
    random = np.random.default_rng(seed)
    constants: dict[str, NDArray] = {
        "words": random.normal(0, 1, (64, width)).astype(np.float32),
        "split": np.array([0, length, heads, width // heads], np.int64),
        "joined": np.array([0, length, width], np.int64),
        "scale": np.array(1 / np.sqrt(width / heads), np.float32),
        "one": np.ones(width, np.float32),
        "zero": np.zeros(width, np.float32),
        "wc": weight(random, width, 6),
    }
    nodes = [helper.make_node("Gather", ["words", "ids"], ["h0"])]
    for index in range(layers):
        nodes += _encoder_layer(index, constants, random, width)
    nodes += [
        helper.make_node("ReduceMean", [f"h{layers}"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "wc"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", length])
    return finished(nodes, constants, [ids], [floats("logits", "N", 6)])


def _encoder_layer(
    index: int, constants: dict[str, NDArray], random: np.random.Generator, width: int
) -> list[onnx.NodeProto]:
    def name(part: str) -> str:
        return f"{part}{index}"

    nodes = []
    for part in ("q", "k", "v"):
        constants[name(f"w{part}")] = weight(random, width, width) / np.float32(np.sqrt(2))
        order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", [name("h"), name(f"w{part}")], [name(part)]),
            helper.make_node("Reshape", [name(part), "split"], [name(f"{part}s")]),
            helper.make_node("Transpose", [name(f"{part}s")], [name(f"{part}t")], perm=order),
        ]
    constants[name("wo")] = weight(random, width, width) / np.float32(np.sqrt(2))
    constants[name("wu")] = weight(random, width, 2 * width)
    constants[name("bu")] = random.normal(0, 0.1, 2 * width).astype(np.float32)
    constants[name("wd")] = weight(random, 2 * width, width)
    return [
        *nodes,
        helper.make_node("MatMul", [name("qt"), name("kt")], [name("qk")]),
        helper.make_node("Mul", [name("qk"), "scale"], [name("scaled")]),
        helper.make_node("Softmax", [name("scaled")], [name("attention")], axis=-1),
        helper.make_node("MatMul", [name("attention"), name("vt")], [name("mixed")]),
        helper.make_node("Transpose", [name("mixed")], [name("back")], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [name("back"), "joined"], [name("heads")]),
        helper.make_node("MatMul", [name("heads"), name("wo")], [name("out")]),
        helper.make_node("Add", [name("h"), name("out")], [name("sum")]),
        helper.make_node("LayerNormalization", [name("sum"), "one", "zero"], [name("normal")]),
        helper.make_node("MatMul", [name("normal"), name("wu")], [name("up")]),
        helper.make_node("Add", [name("up"), name("bu")], [name("biased")]),
        helper.make_node("Relu", [name("biased")], [name("active")]),
        helper.make_node("MatMul", [name("active"), name("wd")], [name("down")]),
        helper.make_node("Add", [name("normal"), name("down")], [name("sum2")]),
        helper.make_node("LayerNormalization", [name("sum2"), "one", "zero"], [f"h{index + 1}"]),
    ]


def perceptron(layers: Sequence[tuple[Floats, Floats]], *, softmax: bool = False) -> onnx.ModelProto:
    """`features` [N,F] through dense layers, given as (weight [in,out], bias), with ReLUs between them.

    The output is `probabilities` [N,C] with `softmax`, else `values` [N,C].
    """
    constants: dict[str, NDArray] = {}
    nodes = []
    signal = "features"
    for index, (matrix, bias) in enumerate(layers):
        constants |= {f"w{index}": matrix.astype(np.float32), f"b{index}": bias.astype(np.float32)}
        last = index == len(layers) - 1
        made = "values" if last and not softmax else f"d{index}"
        nodes.append(helper.make_node("Gemm", [signal, f"w{index}", f"b{index}"], [made]))
        signal = made
        if not last:
            nodes.append(helper.make_node("Relu", [signal], [f"r{index}"]))
            signal = f"r{index}"
    output = "probabilities" if softmax else "values"
    if softmax:
        nodes.append(helper.make_node("Softmax", [signal], [output], axis=-1))
    return finished(
        nodes,
        constants,
        [floats("features", "N", len(layers[0][0]))],
        [floats(output, "N", layers[-1][0].shape[1])],
    )


def sensitive(seed: int = 0, width: int = 64) -> onnx.ModelProto:
    """A perceptron whose layer `values` goes wrong in INT8, and only that one.

    One of the values that go into it is ten thousand times as large as the others and weighs as much less, so that a
    scale that covers it rounds all others to zero.
    """
    random = np.random.default_rng(seed)
    parts = [weight(random, 16, 256), weight(random, 256, 256), weight(random, 256, width), weight(random, width, 4)]
    parts[2][:, 0] *= 1e4
    parts[3][0] *= 1e-4
    layers = [(matrix, np.zeros(matrix.shape[1], np.float32)) for matrix in parts]
    return perceptron(layers)


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """The ResNet-50 of the onnx wheel, [1,3,224,224] to softmax [1,1000], with seeded weights.

    Opset 9, weights among the inputs and a fixed batch of 1, as it comes.
    The last normalisation of each block is scaled down, as in training, so that the sum of sixteen blocks stays tame.
    """
    made = onnx.load(LIGHT_RESNET50)
    graph, random = made.graph, np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept, filled = [], {}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            filled[node.output[0]] = tuple(int(size) for size in shapes[node.input[0]])
        else:
            kept.append(node)
    values = {name: weight(random, *shape) for name, shape in filled.items() if len(shape) > 1}
    for node in kept:
        if node.op_type == "BatchNormalization":
            gain = 0.3 if "branch2c" in node.input[1] else 1.0
            for name, low, high in zip(
                node.input[1:], (0.8 * gain, -0.1, -0.1, 0.8), (1.2 * gain, 0.1, 0.1, 1.2), strict=True
            ):
                size = filled.get(name) or shapes[name].shape
                values[name] = random.uniform(low, high, size).astype(np.float32)
    values |= {name: np.zeros(shape, np.float32) for name, shape in filled.items() if name not in values}
    used = {name for node in kept for name in node.input} - values.keys()
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    tensors += [numpy_helper.from_array(array, name) for name, array in values.items()]
    listed = {value.name: value for value in graph.input}
    listed |= {name: floats(name, *array.shape) for name, array in values.items()}
    fed = [value for name, value in listed.items() if name == "gpu_0/data_0" or name in {t.name for t in tensors}]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    graph.input.extend(fed)
    return made
