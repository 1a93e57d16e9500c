"""Which fields of a ModelConfig are honoured, which mean nothing here, and which are refused, and why.

Rule: every field of the message is in exactly one of the three tables; a field in none of them is refused too, so
that one added to the message later cannot be ignored in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from google.protobuf.message import Message

from engines.errors import LoadFailed

HONOURED: Final = frozenset(
    {
        "name",
        "platform",
        "backend",
        "version_policy",
        "version_policy.latest",
        "version_policy.latest.num_versions",
        "version_policy.all",
        "version_policy.specific",
        "version_policy.specific.versions",
        "max_batch_size",
        "input",
        "input.name",
        "input.data_type",
        "input.format",
        "input.dims",
        "input.optional",
        "output",
        "output.name",
        "output.data_type",
        "output.dims",
        "output.label_filename",
        "optimization",
        "optimization.graph",
        "optimization.graph.level",
        "optimization.cuda",
        "optimization.cuda.busy_wait_events",
        "optimization.execution_accelerators",
        "optimization.execution_accelerators.cpu_execution_accelerator",
        "optimization.execution_accelerators.cpu_execution_accelerator.name",
        "optimization.execution_accelerators.cpu_execution_accelerator.parameters",
        "dynamic_batching",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "dynamic_batching.default_priority_level",
        "dynamic_batching.default_queue_policy",
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.default_queue_policy.default_timeout_microseconds",
        "dynamic_batching.default_queue_policy.allow_timeout_override",
        "dynamic_batching.default_queue_policy.max_queue_size",
        "dynamic_batching.priority_queue_policy",
        "dynamic_batching.priority_queue_policy.timeout_action",
        "dynamic_batching.priority_queue_policy.default_timeout_microseconds",
        "dynamic_batching.priority_queue_policy.allow_timeout_override",
        "dynamic_batching.priority_queue_policy.max_queue_size",
        "dynamic_batching.allowed_batch_size",
        "dynamic_batching.default_deadline_microseconds",
        "dynamic_batching.policy",
        "dynamic_batching.deadlines",
        "dynamic_batching.deadlines.reply_microseconds",
        "dynamic_batching.deadlines.cost_quantile",
        "dynamic_batching.deadlines.class_floor",
        "dynamic_batching.deadlines.class_microseconds",
        "dynamic_batching.deadlines.patience_microseconds",
        "instance_group",
        "instance_group.name",
        "instance_group.kind",
        "instance_group.count",
        "instance_group.gpus",
        "gpu",
        "gpu.in_flight",
        "gpu.no_graphs",
        "gpu.urgent",
        "gpu.memory_bytes",
        "gpu.devices",
        "gpu.provider",
        "default_model_filename",
        "metric_tags",
        "parameters",
        "parameters.string_value",
        "model_warmup",
        "model_warmup.name",
        "model_warmup.batch_size",
        "model_warmup.inputs",
        "model_warmup.inputs.data_type",
        "model_warmup.inputs.dims",
        "model_warmup.inputs.zero_data",
        "model_warmup.inputs.random_data",
        "model_warmup.inputs.input_data_file",
        "model_warmup.count",
        "model_transaction_policy",
        "response_cache",
        "response_cache.enable",
        "response_cache.time_to_live_seconds",
        "response_cache.jitter_percent",
        "response_cache.max_value_bytes",
        "response_cache.levels",
        "response_cache.execute_each",
        "response_cache.always",
        "response_cache.lease_milliseconds",
        "watch",
        "watch.enable",
        "watch.sample_rate",
        "watch.window_rows",
        "watch.window_seconds",
        "watch.level",
        "watch.looks",
        "watch.least_psi",
        "watch.learn_rows",
        "watch.tensor",
        "watch.tensor.name",
        "watch.tensor.kind",
        "watch.output",
        "watch.look_milliseconds",
        "capture",
        "capture.enable",
        "capture.share",
        "capture.max_bytes",
        "capture.rotate_rows",
        "capture.rotate_bytes",
        "capture.rotate_seconds",
        "capture.redact",
    }
)
"""Paths of fields that have an effect, or that hold those that do."""

INERT: Final[Mapping[str, str]] = {
    "optimization.input_pinned_memory": "engines on a CPU read the request's memory; on a GPU memory is always pinned",
    "optimization.input_pinned_memory.enable": "as above",
    "optimization.output_pinned_memory": "engines on a CPU write the answer's memory; on a GPU memory is always pinned",
    "optimization.output_pinned_memory.enable": "as above",
    "optimization.cuda.graphs": "CUDA graphs are used wherever they can be; gpu.no_graphs turns them off",
    "optimization.cuda.output_copy_stream": "copies always have streams of their own",
    "model_operations": "an empty block asks for nothing; its field is refused",
    "model_repository_agents": "an empty block asks for nothing; its field is refused",
    "model_metrics": "an empty block asks for nothing; its field is refused",
}
"""Accepted without effect, because there is truly nothing that they could change."""

REFUSED: Final[Mapping[str, str]] = {
    "runtime": "the backend's library cannot be chosen",
    "input.reshape": "give the shape that the graph takes",
    "input.is_shape_tensor": "shape tensors exist in TensorRT plans only",
    "input.allow_ragged_batch": "only requests of equal shapes are batched together, without padding",
    "input.is_non_linear_format_io": "ONNX tensors are always linear",
    "output.reshape": "give the shape that the graph gives",
    "output.is_shape_tensor": "shape tensors exist in TensorRT plans only",
    "output.is_non_linear_format_io": "ONNX tensors are always linear",
    "batch_input": "ragged batches are not supported",
    "batch_output": "ragged batches are not supported",
    "optimization.priority": "engines have no priority over each other; use dynamic_batching.priority_levels",
    "optimization.cuda.graph_spec": "graphs are captured for the sizes of batches that come",
    "optimization.execution_accelerators.gpu_execution_accelerator": "build a TensorRT plan with `kairos plan`",
    "optimization.gather_kernel_buffer_threshold": "this needs a GPU",
    "optimization.eager_batching": "batches are always formed once an engine is free, never before",
    "sequence_batching": "sequences of requests are not supported",
    "ensemble_scheduling": "ensembles are not supported",
    "instance_group.rate_limiter": "there is no rate limiter; instance_group.count bounds what runs at once",
    "instance_group.secondary_devices": "there are no secondary devices",
    "instance_group.profile": "optimization profiles exist in TensorRT plans only",
    "instance_group.passive": "every instance takes requests",
    "instance_group.host_policy": "there are no host policies",
    "cc_model_filenames": "there is one model file for all devices; use default_model_filename",
    "model_operations.op_library_filename": "custom operator libraries are not loaded",
    "model_transaction_policy.decoupled": "each request has exactly one answer",
    "model_repository_agents.agents": "there are no repository agents",
    "model_metrics.metric_control": "histogram buckets are the same for all models",
}
"""Refused when set, with the reason that the text of the error gives."""


def refuse_unsupported(message: Message, prefix: str = "") -> None:
    """Raise LoadFailed, naming the field, when the configuration sets one that is not honoured."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if path not in HONOURED and path not in INERT:
            raise LoadFailed(f"{path} is not supported: {REFUSED.get(path, 'it has no meaning here')}")
        if field.message_type is not None:
            for child in _children(value):
                refuse_unsupported(child, f"{path}.")


def _children(value: object) -> Iterator[Message]:
    """The messages in the field: one, a list of them, or the values of a map."""
    if isinstance(value, Message):
        yield value
    elif isinstance(value, Mapping):
        yield from (child for child in value.values() if isinstance(child, Message))
    elif isinstance(value, Iterable):
        yield from (child for child in value if isinstance(child, Message))
