"""What a TensorRT plan takes and gives, read without a GPU: from the card beside it, or from the configuration."""

from __future__ import annotations

from pathlib import Path

from engines.backends.tensorrt.plan import PlanTensor, read_card
from engines.errors import LoadFailed
from engines.repository.config import MODEL_FILE, PLAN_FILE, PLAN_PLATFORM, dtype_of, is_plan
from engines.repository.graph import Graph, GraphTensor
from engines.tensor import BY_LABEL
from server.pb import model_config_pb2 as pb


def with_plan(given: pb.ModelConfig, version: Path) -> pb.ModelConfig:
    """The configuration, with all that only the version's own plan says; the same one for other models."""
    unsaid = not (given.platform or given.backend or given.default_model_filename)
    if unsaid and (version / PLAN_FILE).is_file() and not (version / MODEL_FILE).exists():
        config = pb.ModelConfig()
        config.CopyFrom(given)
        config.platform = PLAN_PLATFORM
    elif is_plan(given):
        config = given
    else:
        return given
    card = read_card(version / (config.default_model_filename or PLAN_FILE))
    if card is not None and config.max_batch_size < 0 and all(tensor.dims[:1] == (-1,) for tensor in card.inputs):
        copied = pb.ModelConfig()
        copied.CopyFrom(config)
        sizes = sorted({shapes[2][0] for profile in card.key.profiles for shapes in profile.values()})
        copied.max_batch_size = sizes[-1]
        exact = all(shapes[0] == shapes[2] for profile in card.key.profiles for shapes in profile.values())
        if exact and not copied.dynamic_batching.allowed_batch_size:
            copied.dynamic_batching.allowed_batch_size.extend(sizes)
        return copied
    return config


def plan_graph(model_file: Path, given: pb.ModelConfig) -> Graph:
    """The plan's inputs and outputs. Raises LoadFailed where nothing says what they are."""
    card = read_card(model_file)
    if card is not None:
        return Graph(
            tuple(map(_from_card, card.inputs)), tuple(map(_from_card, card.outputs)), external=(), steady=True
        )
    if not given.input or not given.output:
        raise LoadFailed(
            f"'{model_file.name}' has no card beside it ('{model_file.name}.json', as `kairos plan` writes): "
            "the configuration must list its inputs and outputs"
        )
    batched = given.max_batch_size > 0
    inputs = tuple(_from_config(tensor, batched=batched) for tensor in given.input)
    return Graph(inputs, tuple(_from_config(tensor, batched=batched) for tensor in given.output), (), steady=True)


def _from_card(tensor: PlanTensor) -> GraphTensor:
    dtype = BY_LABEL.get(tensor.dtype)
    if dtype is None:
        raise LoadFailed(f"'{tensor.name}' of the plan has the unknown type {tensor.dtype}")
    return GraphTensor(tensor.name, dtype, tensor.dims)


def _from_config(tensor: pb.ModelInput | pb.ModelOutput, *, batched: bool) -> GraphTensor:
    if tensor.data_type == pb.TYPE_INVALID or not tensor.dims:
        raise LoadFailed(f"'{tensor.name}': a plan without a card needs its data_type and dims said")
    lead = (-1,) if batched else ()
    return GraphTensor(tensor.name, dtype_of(tensor.data_type), (*lead, *tensor.dims))
