"""Sweeps how a model can be run, and finds what serves most rows within a bound on latency.

Each point runs as the server would run it: `instances` threads, each with an execution of `rows` rows after the other,
on one session with `threads` threads inside operators, with or without an accelerator.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf import text_format

from engines.backends.cores import available_cores
from engines.backends.onnxruntime import OnnxRuntimeEngine
from engines.backends.options import Accelerator
from engines.backends.processor import this_processor
from engines.backends.sweep import Layout, layouts, sample_inputs
from engines.build.bench import Trial, engine_of, open_version, sessions_of
from engines.build.calibrate import Progress
from engines.build.errors import BuildFailed
from engines.errors import LoadFailed
from engines.repository.config import parse_text
from engines.repository.layout import CONFIG_FILE
from engines.repository.settings import name_accelerator
from server.pb import model_config_pb2 as pb

FEWEST: Final = 20
"""Executions by each instance, at least, so that there is a 99th percentile to speak of."""
POWERS: Final = tuple(2**power for power in range(11))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way to run one version."""

    version: int
    rows: int
    """In an execution."""
    instances: int
    threads: int
    rows_per_second: float
    p50_ms: float
    p99_ms: float
    """Of an execution, without any wait before it."""
    accelerator: Accelerator | None = None

    def ran_as(self) -> tuple[int, int, Accelerator | None]:
        """What the configuration of a model says of how its versions run."""
        return self.instances, self.threads, self.accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a sweep found."""

    model: str
    points: tuple[Point, ...]
    best: Point | None
    """Most rows a second within the bound. None: nothing keeps it."""
    knee: Point
    """Where more throughput begins to cost more latency than it is worth."""
    slo_ms: float | None
    costs: Mapping[int, Mapping[int, float]]
    """Version to rows to seconds of an execution, median, in the layout of the best point (else of the knee): what a
    scheduler can start from before it has seen any batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What to sweep."""

    slo_ms: float | None = None
    batches: tuple[int, ...] = ()
    """Rows. Empty: powers of two up to the model's largest batch."""
    seconds: float = 0.3
    """Length of each measurement."""
    cores: int = 0
    """Most cores to use. 0: those that this process may."""
    accelerators: tuple[Accelerator | None, ...] = (None,)
    """What to run on, whatever the configuration says. None: ONNX Runtime's own kernels."""


def profile(versions: Sequence[Path], options: ProfileOptions, progress: Progress = lambda *_: None) -> Profile:
    """Sweep versions of one model, given as their folders. Raises BuildFailed."""
    trials = [open_version(folder).on(accelerator) for folder in versions for accelerator in options.accelerators]
    cores = options.cores or available_cores()
    plan = [
        (trial, layout, rows)
        for trial in trials
        for layout in layouts(cores, 0, 0)
        for rows in _batches(trial, options.batches)
    ]
    points: list[Point] = []
    sessions = {id(trial): sessions_of(trial, this_processor()) for trial in trials}
    for count, (trial, layout, rows) in enumerate(plan):
        progress("sweeping", count, len(plan))
        engine = engine_of(sessions[id(trial)], layout)
        points.append(replace(_measured(engine, layout, rows, options.seconds), accelerator=trial.accelerator))
    progress("sweeping", len(plan), len(plan))
    return summary(trials[0].definition.name, points, options.slo_ms)


def summary(model: str, points: Sequence[Point], slo_ms: float | None) -> Profile:
    """The best point, the knee and the costs."""
    within = [point for point in points if slo_ms is None or point.p99_ms <= slo_ms]
    best = max(within, key=lambda point: point.rows_per_second, default=None)
    knee = knee_of(points)
    chosen = best or knee
    costs: dict[int, dict[int, float]] = {}
    for point in points:
        if point.ran_as() == chosen.ran_as():
            costs.setdefault(point.version, {})[point.rows] = point.p50_ms / 1e3
    return Profile(model=model, points=tuple(points), best=best, knee=knee, slo_ms=slo_ms, costs=costs)


def knee_of(points: Sequence[Point]) -> Point:
    """The point furthest above the line from the quickest to the most productive, both axes scaled to 1.

    After Satopaa and others, "Finding a 'Kneedle' in a haystack" (ICDCSW 2011), on the points that no other dominates.
    """
    frontier = frontier_of(points)
    first, last = frontier[0], frontier[-1]
    width = last.p99_ms - first.p99_ms or 1.0
    height = last.rows_per_second - first.rows_per_second or 1.0
    return max(
        frontier,
        key=lambda point: (
            (point.rows_per_second - first.rows_per_second) / height - (point.p99_ms - first.p99_ms) / width
        ),
    )


def frontier_of(points: Sequence[Point]) -> list[Point]:
    """The points that are quicker than all that serve more rows, quickest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.p99_ms, -point.rows_per_second)):
        if not kept or point.rows_per_second > kept[-1].rows_per_second:
            kept.append(point)
    return kept


def apply(best: Point, folder: Path) -> Path:
    """Write the best configuration into the model's config.pbtxt; comments in it are lost. Raises BuildFailed.

    The largest batch stays what it is, since clients may send that many rows; the best number becomes preferred.
    """
    path = folder / CONFIG_FILE
    try:
        config = parse_text(path.read_text(encoding="utf-8") if path.exists() else "")
    except (LoadFailed, OSError, UnicodeDecodeError) as error:
        raise BuildFailed(f"{path} cannot be read: {error}") from error
    unbatched, config.max_batch_size = config.max_batch_size == 0, max(0, config.max_batch_size)
    if not unbatched:
        del config.dynamic_batching.preferred_batch_size[:]
        config.dynamic_batching.preferred_batch_size.append(best.rows)
    del config.instance_group[:]
    config.instance_group.add(count=best.instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    name_accelerator(config, best.accelerator)
    config.parameters["intra_op_thread_count"].string_value = str(best.threads)
    text = text_format.MessageToString(config)
    if unbatched:  # the text format leaves zeros out, but this one does not mean the same as none
        text += "max_batch_size: 0\n"
    fresh = folder / f".{CONFIG_FILE}"
    fresh.write_text(text, encoding="utf-8")
    return fresh.replace(path)


def _batches(trial: Trial, wanted: Sequence[int]) -> list[int]:
    most = max(1, trial.definition.spec.max_rows)
    return sorted({min(rows, most) for rows in (wanted or (*(p for p in POWERS if p < most), most))})


def _measured(engine: OnnxRuntimeEngine, layout: Layout, rows: int, seconds: float) -> Point:
    spec = engine.spec
    inputs = sample_inputs(spec, rows)
    wanted = [tensor.name for tensor in spec.outputs]
    engine.execute(inputs, wanted)

    def run() -> list[float]:
        spent: list[float] = []
        while (now := time.perf_counter()) < until or len(spent) < FEWEST:
            engine.execute(inputs, wanted)
            spent.append(time.perf_counter() - now)
        return spent

    with ThreadPoolExecutor(layout.instances) as threads:
        began = time.perf_counter()
        until = began + seconds
        times = [future.result() for future in [threads.submit(run) for _ in range(layout.instances)]]
        elapsed = time.perf_counter() - began
    latencies = np.concatenate(times) * 1e3
    return Point(
        version=spec.version,
        rows=rows,
        instances=layout.instances,
        threads=layout.threads,
        rows_per_second=len(latencies) * rows / elapsed,
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
    )


def curves_of(points: Sequence[Point]) -> dict[str, list[tuple[float, float]]]:
    """For a plot: (latency, throughput) by rows, for each version and layout."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(points, key=lambda point: point.rows):
        name = f"version {point.version}, {point.instances} x {point.threads}"
        if point.accelerator is not None:
            name += f" on {point.accelerator.value}"
        curves.setdefault(name, []).append((point.p99_ms, point.rows_per_second))
    return curves
