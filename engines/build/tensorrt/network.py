"""From an ONNX file to the bytes of a plan, with whatever major version of TensorRT is installed.

All that differs between versions is here, asked by name: TensorRT 11 has strongly typed networks only, 10 has both
kinds, 8 has none and wants the precisions as flags.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto

from engines.backends.tensorrt.library import make_logger
from engines.backends.tensorrt.plan import Profile
from engines.build.errors import BuildFailed
from engines.build.tensorrt.options import PlanJob, PlanOptions, Portability

Report = Callable[[str, int, int], None]
"""Told of each step: what, how many are done, of how many."""

PRECISIONS: Final = {
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
}


def build_plan(trt: Any, job: PlanJob, timings: bytes, report: Report) -> tuple[bytes, bytes]:  # noqa: ANN401
    """The plan, and the timing cache with what was measured. A device must be there. Raises BuildFailed."""
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    strongly = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = builder.create_network(_network_flags(trt))
    parse(trt, network, logger, job.model)
    config = builder.create_builder_config()
    _configure(trt, config, job.options)
    if not strongly:
        for name in precisions(job.model):
            _set_flag(trt, config, name, "the file's precision")
    for shapes in job.profiles:
        config.add_optimization_profile(_profile(builder, shapes))
    cache = config.create_timing_cache(timings)
    # A cache of another GPU or version is of no use, and no harm either.
    config.set_timing_cache(cache, True)
    if hasattr(config, "progress_monitor") and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed(f"TensorRT {trt.__version__} could not build {job.model.name}; its messages above say why")
    measured = config.get_timing_cache()
    return bytes(plan), bytes(measured.serialize()) if measured is not None else timings


def parse(trt: Any, network: Any, logger: Any, model: Path) -> None:  # noqa: ANN401  (no types)
    """Read the file into the network. Raises BuildFailed, naming each node that is refused, and why."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):
        return
    nodes = onnx.load(model, load_external_data=False).graph.node
    lines = [_refusal(parser.get_error(index), nodes) for index in range(parser.num_errors)]
    raise BuildFailed(
        f"TensorRT {trt.__version__} refuses {model.name}: " + "; ".join(lines or ["it does not say why"])
    )


def _refusal(error: Any, nodes: Any) -> str:  # noqa: ANN401  (no types)
    index = error.node()
    node = nodes[index] if 0 <= index < len(nodes) else None
    # TensorRT 8 gives the number only.
    name = error.node_name() if hasattr(error, "node_name") else node.name if node is not None else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else node.op_type if node is not None else ""
    where = f"node {index} '{name}' ({operator})" if index >= 0 and operator else "the graph"
    return f"{where}: {error.desc()} [{error.code().name}]"


def precisions(model: Path) -> list[str]:
    """Names of the precisions below FP32 that a file uses, so that a builder without strong types may use them."""
    loaded = onnx.load(model, load_external_data=False)
    kinds = {tensor.data_type for tensor in loaded.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*loaded.graph.input, *loaded.graph.value_info)}
    kinds |= {attribute.i for node in loaded.graph.node if node.op_type == "Cast" for attribute in node.attribute}
    if any(node.op_type == "QuantizeLinear" for node in loaded.graph.node):
        kinds.add(TensorProto.INT8)
    return [name for kind, name in PRECISIONS.items() if kind in kinds]


def _network_flags(trt: Any) -> int:  # noqa: ANN401  (no types)
    kinds = trt.NetworkDefinitionCreationFlag
    wanted = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(kinds, name)]
    return sum(1 << int(getattr(kinds, name)) for name in wanted)


def _configure(trt: Any, config: Any, options: PlanOptions) -> None:  # noqa: ANN401  (no types)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if hasattr(config, "max_aux_streams"):  # instances overlap whole batches; streams inside one only cost memory
        config.max_aux_streams = 0
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = options.optimization_level
    if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # Without it each profile of a plan of TensorRT 8 serves one context, and so one instance.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    for asked, name in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.weight_streaming, "WEIGHT_STREAMING"),
        (options.refit, "REFIT"),
    ):
        if asked:
            _set_flag(trt, config, name, f"the option {name.lower()}")
    if options.portability is not Portability.NONE:
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        if not hasattr(levels, options.portability.name) or not hasattr(config, "hardware_compatibility_level"):
            raise BuildFailed(f"TensorRT {trt.__version__} does not know '{options.portability.value}'")
        config.hardware_compatibility_level = getattr(levels, options.portability.name)


def _set_flag(trt: Any, config: Any, name: str, why: str) -> None:  # noqa: ANN401  (no types)
    if not hasattr(trt.BuilderFlag, name):
        raise BuildFailed(f"TensorRT {trt.__version__} has no flag {name}, which {why} needs")
    config.set_flag(getattr(trt.BuilderFlag, name))


def _profile(builder: Any, shapes: Profile) -> Any:  # noqa: ANN401  (no types)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape.least, shape.best, shape.most)
    return profile


def _monitor(trt: Any, report: Report) -> Any:  # noqa: ANN401  (no types)
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a base without types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(f"{parent_phase}: {phase_name}" if parent_phase else phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 1)
            report(phase_name, steps, steps)

    return Monitor()
