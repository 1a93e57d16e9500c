"""What a completed configuration means for the scheduler and for the engines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Final

from engines.backends.cores import available_cores
from engines.backends.options import Accelerator, EngineOptions, GpuGroup, GpuOptions, GraphLevel, StreamOptions
from engines.errors import LoadFailed
from engines.repository.config import is_plan
from engines.scheduling.policy import DeadlineOptions, Limits, Policy, QueuePolicy, TimeoutAction
from server.pb import model_config_pb2 as pb

GRAPH_LEVELS: Final[Mapping[int, GraphLevel]] = MappingProxyType(
    {0: GraphLevel.ALL, -1: GraphLevel.BASIC, 1: GraphLevel.EXTENDED, 2: GraphLevel.OFF}
)
"""As the ONNX Runtime backend of Triton reads `optimization.graph.level`, odd as it is."""

PARAMETERS: Final = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
)

SESSION_PARAMETERS: Final = (
    "session.disable_prepacking",
    "session.dynamic_block_base",
    "session.disable_quant_qdq",
    "session.disable_double_qdq_remover",
    "session.enable_quant_qdq_cleanup",
    "session.disable_aot_function_inlining",
    "session.force_spinning_stop",
    "session.inter_op.allow_spinning",
    "session.intra_op.allow_spinning",
    "session.qdqisint8allowed",
    "session.set_denormal_as_zero",
    "session.strict_shape_type_inference",
    "session.use_device_allocator_for_initializers",
    "session.x64quantprecision",
)
"""ONNX Runtime takes any key without complaint, so those that name no file and do something are listed here."""

OPENVINO: Final = "openvino"
PRECISION_MODE: Final = "precision_mode"
PRECISION_MODES: Final[Mapping[str, Accelerator]] = MappingProxyType(
    {"FP32": Accelerator.OPENVINO, "BF16": Accelerator.OPENVINO_BF16}
)
"""As Triton names the parameter of its other accelerator that has precisions."""

_US: Final = 1e-6


def chosen_versions(config: pb.ModelConfig, available: AbstractSet[int]) -> frozenset[int]:
    """The versions that should serve, those that are named but not available included."""
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return frozenset(available)
        case "specific":
            return frozenset(policy.specific.versions)
        case _:
            return frozenset(sorted(available)[-max(1, policy.latest.num_versions) :])


def limits_of(config: pb.ModelConfig) -> Limits:
    """How batches are formed; raises LoadFailed."""
    batching = config.dynamic_batching
    max_rows = max(1, config.max_batch_size)
    allowed = _sizes("dynamic_batching.allowed_batch_size", batching.allowed_batch_size, max_rows)
    if allowed and allowed[-1] != max_rows:
        raise LoadFailed(
            f"dynamic_batching.allowed_batch_size: the largest size, {allowed[-1]}, must be max_batch_size, {max_rows}"
        )
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        raise LoadFailed(f"dynamic_batching.default_priority_level: {default} is not between 1 and {levels}")
    if default and not levels:
        raise LoadFailed("dynamic_batching.default_priority_level: there are no priority_levels")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise LoadFailed(f"dynamic_batching.priority_queue_policy: {level} is not between 1 and {levels}")
    return Limits(
        max_rows=max_rows,
        allowed_rows=allowed,
        preferred_rows=_sizes("dynamic_batching.preferred_batch_size", batching.preferred_batch_size, max_rows),
        max_wait_s=batching.max_queue_delay_microseconds * _US,
        levels=levels,
        default_level=default,
        policy=(
            _queue_policy(batching.default_queue_policy) if batching.HasField("default_queue_policy") else QueuePolicy()
        ),
        level_policies=MappingProxyType(
            {level: _queue_policy(policy) for level, policy in sorted(batching.priority_queue_policy.items())}
        ),
        in_order=batching.preserve_ordering,
    )


def policy_of(config: pb.ModelConfig) -> Policy:
    """Who decides what runs; strict order of arrival leaves nothing to decide."""
    batching = config.dynamic_batching
    fifo = batching.policy == pb.ModelDynamicBatching.FIFO or batching.preserve_ordering
    return Policy.FIFO if fifo else Policy.DEADLINE


def deadline_options_of(config: pb.ModelConfig) -> DeadlineOptions:
    """How deadlines are kept; raises LoadFailed."""
    given, default = config.dynamic_batching.deadlines, DeadlineOptions()
    if not 0.0 <= given.cost_quantile < 1.0:
        raise LoadFailed(f"dynamic_batching.deadlines.cost_quantile: {given.cost_quantile:g} is not between 0 and 1")
    if given.class_floor > 1.0:
        raise LoadFailed(f"dynamic_batching.deadlines.class_floor: {given.class_floor:g} is above 1")
    return DeadlineOptions(
        reply_s=given.reply_microseconds * _US or default.reply_s,
        quantile=given.cost_quantile or default.quantile,
        floor=max(0.0, given.class_floor or default.floor),
        classes_s=tuple(sorted({end * _US for end in given.class_microseconds if end})) or default.classes_s,
        patience_s=given.patience_microseconds * _US or default.patience_s,
    )


def default_deadline_s(config: pb.ModelConfig) -> float:
    """Seconds that a call without a deadline has; infinite for none."""
    return config.dynamic_batching.default_deadline_microseconds * _US or math.inf


def _sizes(field: str, sizes: Sequence[int], max_rows: int) -> tuple[int, ...]:
    for size in sizes:
        if not 1 <= size <= max_rows:
            raise LoadFailed(f"{field}: {size} is not between 1 and max_batch_size, {max_rows}")
    return tuple(sorted(set(sizes)))


def _queue_policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    delay = policy.timeout_action == pb.ModelQueuePolicy.DELAY
    return QueuePolicy(
        max_requests=policy.max_queue_size,
        timeout_s=policy.default_timeout_microseconds * _US or math.inf,
        may_override=policy.allow_timeout_override,
        action=TimeoutAction.DELAY if delay else TimeoutAction.REJECT,
    )


def engine_options_of(config: pb.ModelConfig) -> EngineOptions:
    """How engines are set up; raises LoadFailed."""
    parameters = {key: value.string_value for key, value in sorted(config.parameters.items())}
    for key in parameters:
        if key not in PARAMETERS and key not in SESSION_PARAMETERS:
            raise LoadFailed(
                f"parameters: '{key}' is not known; known are {', '.join(PARAMETERS + SESSION_PARAMETERS)}"
            )
    level = config.optimization.graph.level
    if level not in GRAPH_LEVELS:
        raise LoadFailed(f"optimization.graph.level: {level} is none of {', '.join(map(str, GRAPH_LEVELS))}")
    return EngineOptions(
        instances=_instances(config),
        intra_op_threads=_count(parameters, "intra_op_thread_count"),
        inter_op_threads=_inter_op_threads(parameters),
        graph_level=GRAPH_LEVELS[level],
        memory_arena=_switch(parameters, "enable_mem_arena", default=True),
        memory_pattern=_switch(parameters, "enable_mem_pattern", default=True),
        session_config=MappingProxyType({key: parameters[key] for key in SESSION_PARAMETERS if key in parameters}),
        gpu=gpu_options_of(config),
        accelerator=_accelerator(config, parameters),
    )


def gpu_options_of(config: pb.ModelConfig) -> GpuOptions | None:
    """How the model uses GPUs; None for one that runs on the processor. Raises LoadFailed."""
    kinds = pb.ModelInstanceGroup
    plan = is_plan(config)
    on_gpu = [
        group.kind == kinds.KIND_GPU or (plan and group.kind == kinds.KIND_AUTO) for group in config.instance_group
    ]
    if not any(on_gpu) and not plan:
        if any(group.gpus for group in config.instance_group) or config.HasField("gpu"):
            raise LoadFailed("instance_group.gpus and gpu are about instance groups with kind: KIND_GPU")
        return None
    if not all(on_gpu):
        raise LoadFailed("instance_group.kind: the instances of a model run on GPUs or on the processor, not on both")
    given = config.gpu
    if not 0 <= given.in_flight <= 3:
        raise LoadFailed(f"gpu.in_flight: {given.in_flight} is not between 1 and 3")
    named = tuple(given.devices)
    groups = tuple(
        GpuGroup(max(1, group.count), tuple(map(str, group.gpus)) or named) for group in config.instance_group
    )
    return GpuOptions(
        groups=groups or (GpuGroup(1, named),),
        stream=StreamOptions(
            graphs=not given.no_graphs,
            spin=config.optimization.cuda.busy_wait_events,
            urgent=given.urgent,
            in_flight=given.in_flight or 2,
        ),
        memory_bytes=given.memory_bytes,
        provider=MappingProxyType(dict(given.provider)),
    )


def name_accelerator(config: pb.ModelConfig, accelerator: Accelerator | None) -> None:
    """Have a configuration name the accelerator, and no other."""
    if accelerator is None and not config.optimization.HasField("execution_accelerators"):
        return
    named = config.optimization.execution_accelerators.cpu_execution_accelerator
    del named[:]
    if accelerator is not None:
        in_bf16 = accelerator is Accelerator.OPENVINO_BF16
        named.add(name=OPENVINO, parameters={PRECISION_MODE: "BF16"} if in_bf16 else {})


def _accelerator(config: pb.ModelConfig, parameters: Mapping[str, str]) -> Accelerator | None:
    """What is asked for; whether this machine has it shows when the model is opened."""
    given = config.optimization.execution_accelerators.cpu_execution_accelerator
    if not given:
        return None
    what = "optimization.execution_accelerators.cpu_execution_accelerator"
    if gpu_options_of(config) is not None:
        raise LoadFailed(f"{what}: the model runs on GPUs")
    if len(given) > 1:
        raise LoadFailed(f"{what}: there can be one, not {len(given)}")
    if given[0].name != OPENVINO:
        raise LoadFailed(f"{what}.name: '{given[0].name}' is not known; known is {OPENVINO}")
    if config.optimization.graph.level or parameters.get("execution_mode", "0") == "1":
        raise LoadFailed(f"{what}: optimization.graph.level and execution_mode have no effect on {OPENVINO}")
    options = dict(given[0].parameters)
    precision = options.pop(PRECISION_MODE, "FP32")
    if options or precision not in PRECISION_MODES:
        raise LoadFailed(f"{what}.parameters: there is {PRECISION_MODE} alone, {' or '.join(PRECISION_MODES)}")
    return PRECISION_MODES[precision]


def _instances(config: pb.ModelConfig) -> int:
    """Instances of all groups together; 0 leaves the number open."""
    group_kind = pb.ModelInstanceGroup
    counts = [group.count for group in config.instance_group]
    for group in config.instance_group:
        if group.kind not in group_kind.Kind.values():
            raise LoadFailed(f"instance_group.kind: {group.kind} is not known")
        if group.count < 0:
            raise LoadFailed(f"instance_group.count: {group.count} is negative")
    if len(counts) > 1 and 0 in counts:
        raise LoadFailed("instance_group.count: with several groups each must have one")
    return sum(counts)


def _inter_op_threads(parameters: Mapping[str, str]) -> int:
    """Threads that run operators side by side; 0 for one operator after the other."""
    threads = _count(parameters, "inter_op_thread_count")
    if _switch(parameters, "execution_mode", default=False):
        return threads or available_cores()
    if threads > 1:
        raise LoadFailed("parameters: 'inter_op_thread_count' above 1 has an effect only with 'execution_mode' 1")
    return 0


def _count(parameters: Mapping[str, str], key: str) -> int:
    text = parameters.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise LoadFailed(f"parameters: '{key}' must be a number of threads, or 0, not {text!r}")
    return int(text)


def _switch(parameters: Mapping[str, str], key: str, *, default: bool) -> bool:
    text = parameters.get(key, str(int(default)))
    if text not in ("0", "1"):
        raise LoadFailed(f"parameters: '{key}' must be 0 or 1, not {text!r}")
    return text == "1"
