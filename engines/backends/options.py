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
