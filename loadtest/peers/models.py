"""The models that all servers serve: the same three ONNX files, with seeded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from server.pb import grpc_service_pb2 as pb
from tests.support import networks


@dataclass(frozen=True, slots=True)
class Model:
    """A model and how it is served."""

    name: str
    about: str
    input: str
    datatype: str
    shape: tuple[int, ...]
    """Of one row."""
    output: str
    classes: int
    max_rows: int
    """Largest batch, the same for every server that batches."""

    def metadata(self) -> pb.ModelMetadataResponse:
        """As the KServe protocol tells it."""
        told = pb.ModelMetadataResponse(name=self.name)
        told.inputs.add(name=self.input, datatype=self.datatype, shape=[-1, *self.shape])
        return told


MODELS: Final = {
    model.name: model
    for model in (
        Model("mlp", "perceptron, 16-32-8: what is measured is the server", "features", "FP32", (16,), "values", 8, 64),
        Model("resnet50", "ResNet-50, 224 x 224", "gpu_0/data_0", "FP32", (3, 224, 224), "gpu_0/softmax_1", 1000, 4),
        Model("encoder", "transformer encoder, 4 layers, 128 wide, 32 words", "ids", "INT64", (32,), "logits", 6, 16),
    )
}


def write(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The ONNX files of these models."""
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "mlp": _mlp,
        "resnet50": _resnet50,
        "encoder": lambda: networks.encoder(layers=4, width=128, heads=4, length=32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.onnx" for name in names}
    for name, file in files.items():
        onnx.save(makers[name](), file)
    return files


def _mlp() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    sizes = ((16, 32), (32, 8))
    return networks.perceptron([(networks.weight(random, *size), np.zeros(size[1], np.float32)) for size in sizes])


def _resnet50() -> onnx.ModelProto:
    """The graph of the onnx wheel, its batch of one row made free."""
    made = networks.resnet50()
    graph = made.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    reshapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for constant in graph.initializer:
        if constant.name in reshapes:
            shape = numpy_helper.to_array(constant).copy()
            shape[0] = -1
            constant.CopyFrom(numpy_helper.from_array(shape, constant.name))
    del graph.value_info[:]
    made.ir_version = max(made.ir_version, 4)  # from here on weights need not be among the inputs
    onnx.checker.check_model(made)
    return made
