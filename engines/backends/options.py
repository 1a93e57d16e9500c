"""How a model is run, whatever runs it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class GraphLevel(enum.Enum):
    """How far ONNX Runtime rewrites the graph before it runs it."""

    OFF = "off"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


class Accelerator(enum.Enum):
    """What takes over, within ONNX Runtime, the parts of a graph that it can run."""

    OPENVINO = "openvino"
    """Intel's kernels for processors, in builds of ONNX Runtime that have them."""
    OPENVINO_BF16 = "openvino-bf16"
    """The same, told to compute in BF16 what the graph has in FP32: for processors that multiply BF16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How an instance uses its GPU."""

    slots: int = 2
    """Batches whose buffers exist side by side. 1: nothing overlaps."""
    graphs: bool = True
    """Whether to capture CUDA graphs where the device and the model allow it."""
    spin: bool = False
    """Whether waiting threads keep a processor busy: some microseconds quicker, at a core for each instance."""
    urgent: bool = False
    """Whether this model's streams have the device's highest priority."""
    in_flight: int = 2
    """Batches that an instance has taken and not yet answered; at most one more than slots."""


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """Instances that run on certain GPUs."""

    count: int
    """On each of the GPUs that are named, else altogether."""
    devices: tuple[str, ...] = ()
    """Indices, or UUIDs of GPUs or MIG slices, or their beginnings. Empty: wherever most memory is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """Options of a model version that runs on GPUs."""

    groups: tuple[GpuGroup, ...] = (GpuGroup(1),)
    stream: StreamOptions = field(default_factory=StreamOptions)
    memory_bytes: int = 0
    """Device memory that an instance needs. 0: estimated from the size of its files."""
    provider: Mapping[str, str] = field(default_factory=dict)
    """Options of ONNX Runtime's CUDA provider (`gpu_mem_limit`, `cudnn_conv_algo_search`, ...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of the engines of one model version."""

    instances: int = 0
    """Engines that run side by side. 0: chosen by measuring."""
    intra_op_threads: int = 0
    """Threads inside one operator. 0: chosen by measuring; 1: none but the engine's own."""
    inter_op_threads: int = 0
    """Threads for independent operators; above 1 they run side by side. 0: one after the other."""
    graph_level: GraphLevel = GraphLevel.ALL
    memory_arena: bool = True
    """Keep freed memory for the next execution: quick, but it never shrinks."""
    memory_pattern: bool = True
    """Plan memory once for each input shape."""
    session_config: Mapping[str, str] = field(default_factory=dict)
    """ONNX Runtime's own session configuration entries (`session.*`, `ep.*`, ...)."""
    gpu: GpuOptions | None = None
    """None: it runs on the processor."""
    accelerator: Accelerator | None = None
    """None: ONNX Runtime's own kernels."""
