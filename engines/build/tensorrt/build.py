"""A plan as a version in a repository: found in the cache or built, checked in, with known answers beside it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort
from google.protobuf import text_format

from engines.backends.canary import Canary
from engines.backends.cuda.api import DeviceInfo
from engines.backends.processor import PRECISION_KEY, this_processor
from engines.backends.sweep import sample_inputs
from engines.backends.tensorrt.plan import PLAN_FILE, PlanCard, PlanKey, PlanTensor, card_of, key_of, read_card
from engines.build import graphs, manifest
from engines.build.errors import BuildFailed
from engines.build.publish import check_name, publish, workshop
from engines.build.tensorrt import timings
from engines.build.tensorrt.network import Report, precisions
from engines.build.tensorrt.options import PlanJob, PlanOptions, profiles_of
from engines.errors import LoadFailed
from engines.repository.graph import Graph, GraphTensor, read_graph
from engines.repository.layout import CONFIG_FILE
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array
from server.pb import model_config_pb2 as pb

CANARY_ROWS: Final = 4
TOLERANCE: Final = {"": 0.01, "FP16": 0.02, "BF16": 0.05, "INT8": 0.1, "FP8": 0.15}
"""Of the coarsest precision in a file. FP32 may be computed in TF32, whose products have 10 bits; errors of one step
of the others add up over layers. What is broken is off by far more."""

Build = Callable[[PlanJob, Report], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What came of it."""

    published: Path
    key: PlanKey
    size_bytes: int
    cached: bool
    """Whether the plan was there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBuilder:
    """Builds for one device and one version of TensorRT. All methods raise BuildFailed."""

    cache_dir: Path
    device: DeviceInfo
    tensorrt: str
    """All of the library's version."""
    build: Build
    report: Report = lambda *_: None

    def version(self, model: Path, name: str, repository: Path, options: PlanOptions) -> PlanReport:
        """Publish a version that serves the plan."""
        check_name(name)
        try:
            graph = read_graph(model)
        except LoadFailed as error:
            raise BuildFailed(str(error)) from error
        spec = spec_of(graph, name, options)
        plan, card, cached = self.plan(model, graph, options)
        with workshop(repository) as folder:
            version = folder / "staged" / name / "1"
            version.mkdir(parents=True)
            shutil.copy2(plan, version / PLAN_FILE)
            card.write(version / PLAN_FILE)
            known_answers(model, spec).save(version)
            (version.parent / CONFIG_FILE).write_text(text_format.MessageToString(config_of(graph, name, options)))
            manifest.write(version, {"source": {"file": model.name}, "target": "tensorrt_plan", "plan": card.key})
            published = publish(version, repository, name)
        return PlanReport(published=published, key=card.key, size_bytes=plan.stat().st_size, cached=cached)

    def plan(self, model: Path, graph: Graph, options: PlanOptions) -> tuple[Path, PlanCard, bool]:
        """The plan, its card, and whether it was in the cache. One process builds it, others wait for it."""
        profiles = profiles_of(graph, options)
        key = key_of(
            onnx_digest=graphs.file_digest(model, *graph.external),
            calibration_digest=options.calibration_digest,
            tensorrt=self.tensorrt,
            device=self.device,
            profiles=profiles,
            flags=[*precisions(model), *options.names()],
        )
        plan = self.cache_dir / f"{key.digest()}.plan"
        with timings.locked(plan):
            card = _usable(plan, key)
            if card is not None:
                return plan, card, True
            card_of(plan).unlink(missing_ok=True)
            self.build(
                PlanJob(model=model, plan=plan, timing_cache=self._timing_cache(), profiles=profiles, options=options),
                self.report,
            )
            card = PlanCard(
                key=key,
                plan_sha256=graphs.file_digest(plan),
                inputs=tuple(_described(tensor) for tensor in graph.inputs if not tensor.has_default),
                outputs=tuple(_described(tensor) for tensor in graph.outputs),
            )
            card.write(plan)
        return plan, card, False

    def _timing_cache(self) -> Path:
        machine = hashlib.sha256(f"{self.tensorrt} {self.device.name} {self.device.sm}".encode()).hexdigest()
        return self.cache_dir / f"{machine[:16]}.timings"


def _usable(plan: Path, key: PlanKey) -> PlanCard | None:
    """The card of a cached plan that is whole and has this key."""
    if not plan.exists():
        return None
    try:
        card = read_card(plan)
    except LoadFailed:
        return None
    fits = card is not None and card.key.digest() == key.digest() and graphs.file_digest(plan) == card.plan_sha256
    return card if fits else None


def _described(tensor: GraphTensor) -> PlanTensor:
    if tensor.dtype is None or tensor.dims is None:
        raise BuildFailed(f"'{tensor.name}' has a type or rank that no request can carry")
    return PlanTensor(name=tensor.name, dtype=tensor.dtype.label, dims=tensor.dims)


def spec_of(graph: Graph, name: str, options: PlanOptions) -> ModelSpec:
    """What the version will take and give."""
    batched = graph.batchable

    def specs(tensors: tuple[GraphTensor, ...]) -> tuple[TensorSpec, ...]:
        found = []
        for tensor in tensors:
            if not tensor.has_default:
                _described(tensor)
                assert tensor.dtype is not None
                assert tensor.dims is not None
                found.append(TensorSpec(tensor.name, tensor.dtype, tensor.dims[1:] if batched else tensor.dims))
        return tuple(found)

    return ModelSpec(
        name=name,
        version=1,
        platform="tensorrt_plan",
        inputs=specs(graph.inputs),
        outputs=specs(graph.outputs),
        max_rows=max(options.rows) if batched else 0,
        allowed_rows=tuple(sorted(set(options.rows))) if batched and options.fixed_rows else (),
    )


def config_of(graph: Graph, name: str, options: PlanOptions) -> pb.ModelConfig:
    """The configuration: batches of the profiles' sizes, one instance on a GPU."""
    config = pb.ModelConfig(name=name, platform="tensorrt_plan")
    if graph.batchable:
        config.max_batch_size = max(options.rows)
        if options.fixed_rows:
            config.dynamic_batching.allowed_batch_size.extend(sorted(set(options.rows)))
        else:
            config.dynamic_batching.SetInParent()
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=1)
    return config


def known_answers(model: Path, spec: ModelSpec) -> Canary:
    """What ONNX Runtime answers on the processor, with exact 8-bit products, for a few rows of noise."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if not this_processor().exact_int8:
        settings.add_session_config_entry(PRECISION_KEY, "1")
    rows = spec.allowed_rows[0] if spec.allowed_rows else min(CANARY_ROWS, max(1, spec.max_rows))
    inputs = sample_inputs(spec, rows)
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in spec.outputs]
    outputs: Mapping[str, Array] = dict(zip(names, session.run(names, inputs), strict=True))
    found = precisions(model)
    return Canary(inputs, outputs, max(TOLERANCE[name] for name in ("", *found)))
