"""Reads a model's configuration and completes it from the graph, so that nothing is left open.

Rule: what the configuration says is checked against the graph, field by field; it never overrules the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from google.protobuf import json_format, text_format

from engines.errors import LoadFailed
from engines.repository.fields import refuse_unsupported
from engines.repository.graph import Graph, GraphTensor
from engines.repository.layout import check_relative
from engines.tensor import DType
from server.pb import model_config_pb2 as pb

Tensors: TypeAlias = Iterable[pb.ModelInput] | Iterable[pb.ModelOutput]

BACKEND: Final = "onnxruntime"
PLATFORM: Final = "onnxruntime_onnx"
MODEL_FILE: Final = "model.onnx"
PLAN_BACKEND: Final = "tensorrt"
PLAN_PLATFORM: Final = "tensorrt_plan"
PLAN_FILE: Final = "model.plan"

DEFAULT_MAX_BATCH_SIZE: Final = 32
"""For a batchable graph whose configuration names no size. Triton takes 4, because its batcher holds requests back
to reach it; here a batch takes only those who wait already, so a larger bound costs an idle server nothing.
"""

_OPEN: Final = -1
"""Stands for "max_batch_size is not given": proto3 alone cannot tell that from 0."""

_NAMES: Final = {f"TYPE_{'STRING' if dtype is DType.BYTES else dtype.label}": dtype for dtype in DType}
_DTYPES: Final[Mapping[int, DType]] = {pb.DataType.Value(name): dtype for name, dtype in _NAMES.items()}
_WIRE: Final[Mapping[DType, Any]] = {dtype: pb.DataType.Value(name) for name, dtype in _NAMES.items()}


def parse_text(text: str) -> pb.ModelConfig:
    """A configuration in protobuf text format (config.pbtxt); raises LoadFailed. See `complete` for the rest."""
    return _parse(text, text_format.Parse, text_format.Merge)


def parse_json(text: str) -> pb.ModelConfig:
    """The same in protobuf's JSON format."""
    if not text.lstrip().startswith("{"):
        raise LoadFailed("the configuration cannot be read: it is not a JSON object")
    return _parse(text, json_format.Parse, json_format.Parse)


def _parse(
    text: str,
    strictly: Callable[[str, pb.ModelConfig], object],
    over: Callable[[str, pb.ModelConfig], object],
) -> pb.ModelConfig:
    """Read it twice: `strictly` refuses repetitions, `over` shows what is not given by leaving it as it was."""
    plain, config = pb.ModelConfig(), pb.ModelConfig(max_batch_size=_OPEN)
    try:
        strictly(text, plain)
        over(text, config)
    except (text_format.ParseError, json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise LoadFailed(f"the configuration cannot be read: {error}") from error
    if plain.max_batch_size < 0:
        raise LoadFailed(f"max_batch_size: {plain.max_batch_size} is negative")
    return _checked(config)


def dtype_of(data_type: int) -> DType:
    """The element type of a configuration's number; the number must be a valid one."""
    return _DTYPES[data_type]


def model_file_of(config: pb.ModelConfig) -> str:
    """The model's file, relative to the version's folder."""
    return config.default_model_filename or (PLAN_FILE if is_plan(config) else MODEL_FILE)


def model_files_of(config: pb.ModelConfig) -> tuple[str, ...]:
    """Files of which a version must have one; a plan needs no configuration that says what it is."""
    unsaid = not (config.platform or config.backend or config.default_model_filename)
    return (MODEL_FILE, PLAN_FILE) if unsaid else (model_file_of(config),)


def is_plan(config: pb.ModelConfig) -> bool:
    """Whether it says that the model is a TensorRT plan."""
    return config.platform == PLAN_PLATFORM or config.backend == PLAN_BACKEND


def _checked(config: pb.ModelConfig) -> pb.ModelConfig:
    refuse_unsupported(config)
    if config.backend not in ("", BACKEND, PLAN_BACKEND):
        raise LoadFailed(f"backend: '{config.backend}' is not available; there are '{BACKEND}' and '{PLAN_BACKEND}'")
    if config.platform not in ("", PLATFORM, PLAN_PLATFORM):
        raise LoadFailed(f"platform: '{config.platform}' is not available; there are '{PLATFORM}', '{PLAN_PLATFORM}'")
    if is_plan(config) and (config.backend == BACKEND or config.platform == PLATFORM):
        raise LoadFailed(f"backend: '{config.backend}' does not run the platform '{config.platform}'")
    check_relative(model_file_of(config), "default_model_filename")
    return config


def complete(given: pb.ModelConfig, name: str, graph: Graph) -> pb.ModelConfig:
    """A copy in which everything that shapes a request is said; raises LoadFailed where `given` and graph differ."""
    config = pb.ModelConfig()
    config.CopyFrom(given)
    if config.name not in ("", name):
        raise LoadFailed(f"name: '{config.name}' must be the name of the model's folder, '{name}'")
    config.name = name
    config.backend, config.platform = (PLAN_BACKEND, PLAN_PLATFORM) if is_plan(config) else (BACKEND, PLATFORM)
    config.default_model_filename = model_file_of(config)
    if not config.version_policy.WhichOneof("policy_choice"):
        config.version_policy.latest.num_versions = 1
    _unique("input", config.input)
    _unique("output", config.output)
    _add_missing(config, graph)
    _complete_max_batch_size(config, graph)
    for kind, tensors, nodes in (("input", config.input, graph.inputs), ("output", config.output, graph.outputs)):
        by_name = {node.name: node for node in nodes}
        for tensor in tensors:
            _complete_tensor(kind, tensor, by_name, batched=config.max_batch_size > 0)
    for tensor in config.input:
        _check_input(tensor, next(node for node in graph.inputs if node.name == tensor.name))
    if config.max_batch_size > 0 and not config.WhichOneof("scheduling_choice"):
        config.dynamic_batching.SetInParent()
    return config


def _unique(kind: str, tensors: Tensors) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if not tensor.name:
            raise LoadFailed(f"{kind}: an entry has no name")
        if tensor.name in seen:
            raise LoadFailed(f"{kind} '{tensor.name}': is there twice")
        seen.add(tensor.name)


def _add_missing(config: pb.ModelConfig, graph: Graph) -> None:
    """All inputs that must be fed are needed; outputs are all served unless the configuration chooses some."""
    listed = {tensor.name for tensor in config.input}
    for node in graph.inputs:
        if not node.has_default and node.name not in listed:
            config.input.add(name=node.name)
    if not config.output:
        for node in graph.outputs:
            config.output.add(name=node.name)


def _complete_max_batch_size(config: pb.ModelConfig, graph: Graph) -> None:
    if config.max_batch_size != _OPEN:
        return
    ranks = {node.name: len(node.dims) for node in (*graph.inputs, *graph.outputs) if node.dims is not None}
    given = [(t.name, t.dims) for t in config.input] + [(t.name, t.dims) for t in config.output]
    whole = any(0 < len(dims) == ranks.get(name) for name, dims in given)
    # Dims that already count the batch dimension can only have been meant for a model without one.
    config.max_batch_size = DEFAULT_MAX_BATCH_SIZE if graph.batchable and not whole else 0
    preferred = max(config.dynamic_batching.preferred_batch_size, default=0) if _batching(config) else 0
    allowed = max(config.dynamic_batching.allowed_batch_size, default=0) if _batching(config) else 0
    if config.max_batch_size:
        config.max_batch_size = allowed or max(preferred, config.max_batch_size)


def _batching(config: pb.ModelConfig) -> bool:
    return config.HasField("dynamic_batching")


def _complete_tensor(
    kind: str, tensor: pb.ModelInput | pb.ModelOutput, nodes: dict[str, GraphTensor], *, batched: bool
) -> None:
    what = f"{kind} '{tensor.name}'"
    node = nodes.get(tensor.name)
    if node is None:
        raise LoadFailed(f"unexpected {what}: the model's {kind}s are {_names(nodes)}")
    if node.dtype is None:
        hint = "; list the outputs to serve without it" if kind == "output" else ""
        raise LoadFailed(f"{what}: the model's type is none that a request can carry{hint}")
    wire = _WIRE[node.dtype]
    if tensor.data_type == pb.TYPE_INVALID:
        tensor.data_type = wire
    elif tensor.data_type != wire:
        raise LoadFailed(
            f"{what}: data_type {_type_name(tensor.data_type)} does not fit the model's {_type_name(wire)}"
        )
    if any(dim == 0 or dim < -1 for dim in tensor.dims):
        raise LoadFailed(f"{what}: dims {list(tensor.dims)} may hold positive sizes and -1 only")
    if node.dims is None:
        if not tensor.dims:
            raise LoadFailed(f"{what}: dims must be given, as the model does not say its shape")
        return
    own = _own_dims(what, node.dims, batched=batched)
    if not tensor.dims:
        tensor.dims.extend(own)
    elif len(tensor.dims) != len(own) or any(mine not in (-1, given) for mine, given in zip(own, tensor.dims)):  # noqa: B905 - the lengths are equal once zip is reached
        whole = f"{list(node.dims)}, the batch dimension included" if batched else f"{list(node.dims)}"
        raise LoadFailed(f"{what}: dims {list(tensor.dims)} do not fit the model's shape {whole}")


def _own_dims(what: str, dims: tuple[int, ...], *, batched: bool) -> tuple[int, ...]:
    """The dimensions without the batch."""
    if not batched:
        return dims
    if not dims or dims[0] != -1:
        raise LoadFailed(
            f"max_batch_size: the model does not support batching: {what} has the shape {list(dims)}, "
            "whose first dimension is not free"
        )
    return dims[1:]


def _check_input(tensor: pb.ModelInput, node: GraphTensor) -> None:
    if tensor.optional and not node.has_default:
        raise LoadFailed(f"input '{tensor.name}': optional needs a default value in the model, and there is none")
    if tensor.format != pb.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
        raise LoadFailed(
            f"input '{tensor.name}': format {pb.ModelInput.Format.Name(tensor.format)} needs 3 dims, "
            f"not {list(tensor.dims)}"
        )


def _names(nodes: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in nodes)


def _type_name(data_type: int) -> str:
    return pb.DataType.Name(data_type) if data_type in pb.DataType.values() else str(data_type)
