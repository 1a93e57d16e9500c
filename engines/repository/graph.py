"""What an ONNX file says about itself: inputs, outputs, and the files that hold its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from engines.errors import LoadFailed
from engines.repository.layout import resolve_inside
from engines.tensor import DType

DTYPES: Final[Mapping[int, DType]] = {
    TensorProto.BOOL: DType.BOOL,
    TensorProto.UINT8: DType.UINT8,
    TensorProto.UINT16: DType.UINT16,
    TensorProto.UINT32: DType.UINT32,
    TensorProto.UINT64: DType.UINT64,
    TensorProto.INT8: DType.INT8,
    TensorProto.INT16: DType.INT16,
    TensorProto.INT32: DType.INT32,
    TensorProto.INT64: DType.INT64,
    TensorProto.FLOAT16: DType.FP16,
    TensorProto.BFLOAT16: DType.BF16,
    TensorProto.FLOAT: DType.FP32,
    TensorProto.DOUBLE: DType.FP64,
    TensorProto.STRING: DType.BYTES,
}


UNSTEADY: Final = frozenset(
    {
        *("If", "Loop", "Scan", "SequenceMap"),
        *("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"),
    }
)
"""Operators whose work depends on the values that come in, and not on shapes alone: a few bytes may ask for hours."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output of the graph."""

    name: str
    dtype: DType | None
    """None: something that no protocol tensor can hold, such as a sequence, a map or a 4-bit number."""
    dims: tuple[int, ...] | None
    """All dimensions, the batch included; -1 is any size. None: the graph does not say how many there are."""
    has_default: bool = False
    """Inputs only: an initializer of the same name stands in when nothing is fed."""


@dataclass(frozen=True, slots=True)
class Graph:
    """What there is to know without running it."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    external: tuple[Path, ...]
    """Files beside the model that hold weights, in order of names."""
    steady: bool = True
    """Whether equal shapes mean equal work."""

    @property
    def batchable(self) -> bool:
        """Whether the first dimension of everything that must be fed and everything that comes out is free."""
        fed = [tensor for tensor in self.inputs if not tensor.has_default]
        return bool(fed) and all(tensor.dims and tensor.dims[0] == -1 for tensor in (*fed, *self.outputs))


def read_graph(path: Path) -> Graph:
    """Read the model file; the weights beside it are only looked for. Raises LoadFailed."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)  # whatever the name ends in
    except OSError as error:
        raise LoadFailed(f"the model file '{path.name}' cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError) as error:
        raise LoadFailed(f"the model file '{path.name}' is not a complete ONNX model: {error}") from error
    if not model.graph.output:
        raise LoadFailed(f"the model file '{path.name}' is not a complete ONNX model: it has no outputs")
    if any(not value.type.tensor_type.HasField("shape") for value in model.graph.output):
        model = _with_inferred_shapes(model)
    graph = model.graph
    defaults = {tensor.name for tensor in graph.initializer} | {
        tensor.values.name for tensor in graph.sparse_initializer
    }
    return Graph(
        tuple(_tensor(value, has_default=value.name in defaults) for value in graph.input),
        tuple(_tensor(value) for value in graph.output),
        tuple(_external(model, path.parent)),
        steady=UNSTEADY.isdisjoint(node.op_type for node in _nodes(model)),
    )


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of the graph and of all functions. Those in sub-graphs are left out: what has one is UNSTEADY."""
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _with_inferred_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return model  # the configuration must then say what the graph does not


def _tensor(value: onnx.ValueInfoProto, *, has_default: bool = False) -> GraphTensor:
    _text(value.name)
    if not value.type.HasField("tensor_type"):
        return GraphTensor(value.name, None, None, has_default)
    kind = value.type.tensor_type
    dims = None
    if kind.HasField("shape"):
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in kind.shape.dim
        )
    return GraphTensor(value.name, DTYPES.get(kind.elem_type), dims, has_default)


def _text(value: object) -> str:
    """ONNX is of protobuf's older form, where a text may hold any bytes, and is then not a text here."""
    if not isinstance(value, str):
        raise LoadFailed(f"the model file is not a complete ONNX model: {value!r} is not UTF-8")
    return value


def _external(model: onnx.ModelProto, folder: Path) -> Iterator[Path]:
    """The files with weights. Raises LoadFailed when one is missing, too short, or somewhere else."""
    needs: dict[str, int] = {}
    for tensor in _weights(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        except ValueError as error:
            raise LoadFailed(f"tensor '{tensor.name}': its place in the external data is not a number") from error
        location = _text(entries.get("location", ""))
        needs[location] = max(needs.get(location, 0), end)
    for location, size in sorted(needs.items()):
        path = resolve_inside(folder, location, "external data")
        if not path.is_file():
            raise LoadFailed(f"external data: the file '{location}' is not there")
        if path.stat().st_size < size:
            raise LoadFailed(f"external data: the file '{location}' ends before the weights do")
        yield path


def _weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor whose bytes lie in another file, those in sub-graphs and functions included."""
    pending: list[onnx.GraphProto] = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while pending or nodes:
        if pending:
            graph = pending.pop()
            tensors = list(graph.initializer)
            nodes.extend(graph.node)
        else:
            node = nodes.pop()
            tensors = []
            for attribute in node.attribute:
                tensors.extend([attribute.t, *attribute.tensors])
                pending.extend(attribute.graphs)
                if attribute.HasField("g"):
                    pending.append(attribute.g)
        yield from (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
