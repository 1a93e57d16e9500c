"""Makes the candidates of a build, each of them judged on real rows on the engine that would serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from engines.backends.onnxruntime import offered
from engines.backends.options import Accelerator
from engines.build import graphs
from engines.build.bench import Bench, Trial, answers
from engines.build.calibrate import Collector, Progress, Table, table_of
from engines.build.compare import Comparison, compare, error_of
from engines.build.data import Dataset
from engines.build.errors import BuildFailed
from engines.build.options import BuildOptions, Candidate, Precision, Target
from engines.build.precision import to_bf16, to_fp16
from engines.build.prepare import OLDEST_OPSET, Prepared
from engines.build.quantize import Scheme, emit, layer_precisions, layers, schemes
from engines.build.ranges import Method
from engines.build.rescue import rank, rescue
from engines.build.rules import violations
from engines.tensor import Array

PROBE_ROWS: Final = 64
"""Rows by which methods are compared and layers ranked."""


@dataclass(slots=True)
class Maker:
    """Makes candidates of one prepared model."""

    options: BuildOptions
    progress: Progress
    target: Target
    """CPU or TENSORRT."""
    prepared: Prepared
    bench: Bench
    reference: Trial
    calibration: Dataset | None
    judge: Dataset
    scratch: Path
    configured: bool
    """Whether the published model has a configuration, which then is for all its versions."""
    notes: list[str] = field(default_factory=list)
    _answers: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    _shared_table: Table | None = None
    _ranking: list[str] = field(default_factory=list)

    def make(self) -> list[Candidate]:
        """All that the precision asks for, in order of preference where speed is unknown. Raises BuildFailed."""
        wanted = self.options.precision
        if wanted is not Precision.AUTO:
            return self._made(wanted)
        found: list[Candidate] = []
        for precision in self._worthwhile():
            try:
                found.extend(self._made(precision))
            except BuildFailed as error:
                if precision is Precision.FP32:
                    raise
                self.notes.append(f"{precision.value} left out: {error}")
        return [*found, *self._accelerated(found)]

    def baseline(self) -> Candidate:
        """FP32, which all others are measured against."""
        answers_ = self._reference_answers(self.judge)
        return Candidate(
            label=Precision.FP32.value,
            precision=Precision.FP32,
            trial=self.reference,
            comparison=self._compared(answers_, self.judge),
            layers=dict.fromkeys(layers(self.prepared.model), "fp32"),
        )

    def _worthwhile(self) -> list[Precision]:
        """What `auto` looks at on this target."""
        if self.prepared.quantised:
            self.notes.append("the model is quantised already: only fp32, the model as it is, is looked at")
            return [Precision.FP32]
        int8 = [Precision.INT8]
        if self.target is Target.TENSORRT:
            int8 = [Precision.INT8_FP16, Precision.INT8]
        if self.options.calibration is None:
            self.notes.append("int8 left out: there is no calibration data")
            int8 = []
        elif graphs.opset_of(self.prepared.model) < OLDEST_OPSET:
            self.notes.append("int8 left out: the opset is too old")
            int8 = []
        self.notes.append(
            "bf16 left out: ONNX Runtime's own kernels compute it in FP32, so it can only be smaller, never faster"
        )
        return [*int8, Precision.FP16, Precision.FP32]

    def _accelerated(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Each candidate once more on what the installed ONNX Runtime offers beside its own kernels."""
        if self.target is not Target.CPU:
            return []
        if named := self.reference.accelerator:
            self.notes.append(f"everything runs on {named.value}: config.pbtxt says so")
            return []
        found: list[Candidate] = []
        accelerators = offered(self.bench.processor)
        if not accelerators:
            self.notes.append("openvino left out: the installed ONNX Runtime comes without it")
        elif self.configured:
            self.notes.append("openvino left out: the model has a config.pbtxt, which is kept as it is")
        else:
            for accelerator in accelerators:
                found.extend(self._on(accelerator, candidates))
        return found

    def _on(self, accelerator: Accelerator, candidates: Sequence[Candidate]) -> list[Candidate]:
        found = []
        for candidate in candidates:
            label, trial = f"{candidate.label} on {accelerator.value}", candidate.trial.on(accelerator)
            try:
                comparison = self._judged(trial, self.judge)
            except BuildFailed as error:
                self.notes.append(f"{label} left out: {error}")
            else:
                found.append(replace(candidate, label=label, trial=trial, comparison=comparison))
        return found

    def _made(self, precision: Precision) -> list[Candidate]:
        model = self.prepared.model
        match precision:
            case Precision.FP16:
                return [self._candidate(precision.value, precision, to_fp16(model))]
            case Precision.BF16:
                return [self._candidate(precision.value, precision, to_bf16(model))]
            case Precision.INT8 | Precision.INT8_FP16:
                return self._quantised(precision)
            case _:
                return [self.baseline()]

    def _candidate(self, label: str, precision: Precision, model: onnx.ModelProto) -> Candidate:
        trial = self.bench.stage(model)
        return Candidate(
            label=label,
            precision=precision,
            trial=trial,
            comparison=self._judged(trial, self.judge),
            layers=layer_precisions(model, layers(self.prepared.model)),
        )

    def _quantised(self, precision: Precision) -> list[Candidate]:
        if not layers(self.prepared.model):
            raise BuildFailed(
                "the model has no convolution, product or residual addition in FP32 that INT8 could speed up"
            )
        found = []
        for scheme in schemes(self.target.value, self.bench.processor):
            table = self._table(scheme)
            candidate = self._int8(precision, scheme, table, ())
            if candidate.comparison.drop > self.options.max_drop and self.options.tries:
                candidate = self._rescued(candidate, precision, scheme, table)
            found.append(candidate)
        return found

    def _int8(self, precision: Precision, scheme: Scheme, table: Table, kept: tuple[str, ...]) -> Candidate:
        model = self._emitted(precision, scheme, table, kept)
        label = f"{precision.value} {scheme.name}"
        candidate = self._candidate(label, precision, model)
        return Candidate(
            label=label,
            precision=precision,
            trial=candidate.trial,
            comparison=candidate.comparison,
            scheme=scheme,
            table=table,
            kept=kept,
            layers=candidate.layers,
        )

    def _emitted(self, precision: Precision, scheme: Scheme, table: Table, kept: tuple[str, ...]) -> onnx.ModelProto:
        model = emit(self.prepared.model, table, scheme, kept)
        if precision is Precision.INT8_FP16:
            model = to_fp16(model)
        if scheme.target == Target.TENSORRT.value and (broken := violations(model)):
            raise BuildFailed(f"the graph breaks TensorRT's rules: {broken[0]}")
        return model

    def _table(self, scheme: Scheme) -> Table:
        """The table that was given, or the best of those that the methods make of the data."""
        path = self.options.calibration
        assert path is not None  # checked before anything is built
        if self._shared_table is not None:
            return self._shared_table
        if path.suffix == ".json":
            table = Table.from_json(path.read_text(encoding="utf-8"), str(path))
            if table.model_digest != self.prepared.source_digest:
                raise BuildFailed(f"{path} was learnt with another model")
        else:
            table = self._learnt(scheme)
        self._shared_table = table
        return table

    def _learnt(self, scheme: Scheme) -> Table:
        assert self.calibration is not None
        data = self.calibration.spread(self.options.calibration_rows)
        collector = Collector(
            self.prepared.model,
            self.prepared.source_digest,
            self.scratch,
            self.options.state_dir,
            batched=self.reference.definition.spec.batched,
        )
        histograms = collector.collect(data, self.progress)
        methods = [self.options.method] if self.options.method else list(Method)
        tables = {
            method: table_of(
                histograms,
                method,
                model_digest=self.prepared.source_digest,
                data_digest=data.digest,
                rows=len(data),
            )
            for method in methods
        }
        if len(methods) == 1:
            return tables[methods[0]]
        probe = data.spread(PROBE_ROWS)
        errors: dict[Method, float] = {}
        for count, (method, table) in enumerate(tables.items()):
            self.progress("choosing the method", count, len(tables))
            errors[method] = self._error(emit(self.prepared.model, table, scheme), probe)
        self.progress("choosing the method", len(tables), len(tables))
        best = min(errors, key=lambda method: errors[method])
        said = ", ".join(f"{method.value} {error:.2g}" for method, error in errors.items())
        self.notes.append(f"calibration method {best.value}: least unexplained variance ({said})")
        return tables[best]

    def _rescued(self, failed: Candidate, precision: Precision, scheme: Scheme, table: Table) -> Candidate:
        """The candidate with sensitive layers in higher precision; as it is if that does not help within the tries."""
        ranking = self._sensitivity(scheme, table)
        tries = self.options.tries
        done = 0

        def attempt(kept: tuple[str, ...]) -> Candidate:
            nonlocal done
            self.progress("keeping sensitive layers", done, tries)
            done += 1
            return self._int8(precision, scheme, table, kept)

        rescue_ = rescue(
            ranking,
            layer_weights(self.prepared.model),
            attempt,
            lambda candidate: candidate.comparison.drop <= self.options.max_drop,
            tries,
        )
        self.progress("keeping sensitive layers", tries, tries)
        if rescue_ is None:
            self.notes.append(
                f"{failed.label}: {done} tries at keeping sensitive layers in higher precision did not help; "
                f"most sensitive: {', '.join(ranking[:3])}"
            )
            return failed
        self.notes.append(
            f"{failed.label}: {len(rescue_.kept)} of {len(ranking)} layers stay in higher precision after "
            f"{rescue_.tries} tries ({', '.join(rescue_.kept[:3])}{', ...' if len(rescue_.kept) > 3 else ''})"
        )
        return rescue_.result

    def _sensitivity(self, scheme: Scheme, table: Table) -> list[str]:
        """Layers by the error that each alone brings in."""
        if self._ranking:
            return self._ranking
        names = layers(self.prepared.model)
        probe = (self.calibration or self.judge).spread(PROBE_ROWS)
        if probe.constant():
            probe = self.judge.spread(PROBE_ROWS)
        errors: dict[str, float] = {}
        for count, name in enumerate(names):
            self.progress("ranking layers", count, len(names))
            alone = emit(self.prepared.model, table, scheme, [other for other in names if other != name])
            errors[name] = self._error(alone, probe)
        self.progress("ranking layers", len(names), len(names))
        self._ranking = rank(errors)
        return self._ranking

    def _error(self, model: onnx.ModelProto, rows: Dataset) -> float:
        """How far a model that is not kept is from FP32."""
        trial = self.bench.stage(model)
        try:
            return error_of(self._judged(trial, rows))
        finally:
            self.bench.discard(trial)

    def _judged(self, trial: Trial, rows: Dataset) -> Comparison:
        engine = self.bench.engine(trial)
        return self._compared(answers(engine, rows), rows)

    def _compared(self, given: Mapping[str, Array], rows: Dataset) -> Comparison:
        return compare(self._reference_answers(rows), given, rows.chosen_labels, self.options.output)

    def _reference_answers(self, rows: Dataset) -> Mapping[str, Array]:
        key = f"{rows.digest} {rows.index.tobytes().hex()}"
        if key not in self._answers:
            self._answers[key] = answers(self.bench.engine(self.reference), rows)
        return self._answers[key]


def layer_weights(model: onnx.ModelProto) -> dict[str, int]:
    """How many weights each layer has."""
    sizes = {name: int(np.prod(tensor.dims)) for name, tensor in graphs.initializers(model).items()}
    return {node.name: sum(sizes.get(name, 0) for name in node.input[1:2]) for node in model.graph.node}
