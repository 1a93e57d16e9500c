"""Small services on ONNX files that every step of a build needs: load, save, open, run, digest."""

from __future__ import annotations

import copy
import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from engines.build.errors import BuildFailed
from engines.repository.graph import DTYPES
from engines.tensor import Array, DType

EXTERNAL_FROM_BYTES: Final = 1536 << 20
"""Weights above this go to a file of their own: one protobuf message cannot hold 2 GB."""
_FATAL_ONLY: Final = 4


def load(path: Path) -> onnx.ModelProto:
    """The model with all its weights, checked. Raises BuildFailed."""
    try:
        onnx.checker.check_model(str(path), full_check=False)
        return onnx.load(path)
    except (onnx.checker.ValidationError, DecodeError, ValueError) as error:
        raise BuildFailed(f"{path} is not a valid ONNX model: {_first_line(error)}") from error
    except OSError as error:
        raise BuildFailed(f"{path} cannot be read: {error.strerror or error}") from error


def weight_bytes(model: onnx.ModelProto) -> int:
    """How many bytes the weights take."""
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in model.graph.initializer)


def save(model: onnx.ModelProto, path: Path, external_from: int = EXTERNAL_FROM_BYTES) -> Path:
    """Write the model, with its weights beside it where they are too large for one message."""
    if weight_bytes(model) >= external_from:
        # Saving strips the weights from what it is given.
        stripped = copy.deepcopy(model)
        weights = path.with_name(f"{path.name}.data")
        onnx.save(stripped, path, save_as_external_data=True, location=weights.name, size_threshold=1024)
        weights.chmod(path.stat().st_mode & 0o777)  # ONNX keeps it from everyone else, servers of other users included
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def infer_shapes(model: onnx.ModelProto, folder: Path, external_from: int = EXTERNAL_FROM_BYTES) -> onnx.ModelProto:
    """A copy with the shapes and types of what flows inside, as far as they can be known."""
    try:
        if weight_bytes(model) < external_from:
            return onnx.shape_inference.infer_shapes(model)
        onnx.shape_inference.infer_shapes_path(str(save(model, folder / "shapes.onnx")), str(folder / "shaped.onnx"))
        return onnx.load(folder / "shaped.onnx")
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise BuildFailed(f"the model's shapes contradict each other: {_first_line(error)}") from error


def open_session(path: Path, settings: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """A session on the CPU. Raises BuildFailed with ONNX Runtime's own words."""
    settings = settings or ort.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base class of their own
        raise BuildFailed(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error


def simplified(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Constants folded, batch normalisation fused, what does nothing removed.

    This is ONNX Runtime's basic level, which keeps to standard operators.
    """
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(folder / "simple.onnx")
    open_session(save(model, folder / "given.onnx"), settings)
    result = onnx.load(folder / "simple.onnx")
    used = {node.domain for node in result.graph.node}
    imports = [entry for entry in result.opset_import if not entry.domain or entry.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(imports)
    result.ir_version = max(model.ir_version, 4)
    return result


def dtype_of(value: onnx.ValueInfoProto) -> DType | None:
    """The element type, or None for what no request can carry."""
    return DTYPES.get(value.type.tensor_type.elem_type)


def dims_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """All dimensions; -1 for any size."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that callers must give: those that no initializer stands in for."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in defaults]


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file. Raises OSError or ValueError."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return dict(file.items())
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"not an .npz file: {error}") from error


def made_up(values: Iterable[onnx.ValueInfoProto], rows: int, *, everywhere: bool = False) -> dict[str, Array]:
    """Inputs of that many rows where the first dimension is free, or `everywhere`.

    Noise for floats, zeros and ones for integers, so that they are legal indices; other free dimensions are 1.
    """
    random = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for value in values:
        dtype = dtype_of(value)
        if dtype is None or dtype is DType.BYTES:
            raise BuildFailed(f"input '{value.name}' is neither a number nor a truth value")
        shape = [abs(size) for size in dims_of(value)]
        if shape and (everywhere or dims_of(value)[0] < 0):
            shape[0] = rows
        floating = dtype in (DType.FP16, DType.BF16, DType.FP32, DType.FP64)
        noise = random.standard_normal(shape) if floating else random.integers(0, 2, shape)
        made[value.name] = np.asarray(noise).astype(dtype.numpy)
    return made


def initializers(model: onnx.ModelProto) -> Mapping[str, TensorProto]:
    """By name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> Mapping[str, onnx.NodeProto]:
    """The node that each value comes from."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: onnx.ModelProto) -> Mapping[str, list[onnx.NodeProto]]:
    """The nodes that each value goes to."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def file_digest(*paths: Path) -> str:
    """Hex SHA-256 over the contents of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def external_files(path: Path) -> Iterator[Path]:
    """The files beside a model that hold its weights, in order of names."""
    model = onnx.load(path, load_external_data=False)
    locations = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    yield from (path.parent / location for location in sorted(locations))


def with_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy for a newer version of the standard operators. Raises BuildFailed where there is no way."""
    if opset_of(model) >= version:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, version)
    except (RuntimeError, ValueError) as error:
        raise BuildFailed(
            f"the model uses opset {opset_of(model)} and cannot be brought to {version}, which this needs; "
            f"export it again with opset {version} or newer ({_first_line(error)})"
        ) from error
    converted.ir_version = max(converted.ir_version, helper.find_min_ir_version_for(list(converted.opset_import)))
    return converted


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
