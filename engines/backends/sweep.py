"""Chooses, by a quick measurement, how many engines run side by side and how many threads each of them uses."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from engines.engine import Engine
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType

MEASURE_S: Final = 0.06
"""How long one layout is measured, after one execution to warm it up."""
SLOW_S: Final = 0.25
"""Models that take longer for a full batch are measured with smaller ones."""
GAIN: Final = 1.1
"""A layout that uses more threads must be this much better: the event loop wants a core, too."""


COSTS_S: Final = 0.5
"""How long the sweep over batch sizes may take; sizes that it does not reach are extrapolated, then learned."""
COSTS_RUNS: Final = 3
"""Executions of each size in the sweep, after one to warm up."""
QUICK_S: Final = 0.001
"""Executions shorter than this gain nothing from company: handing them over costs a good part of it, and a second
engine halves the batches that form by themselves."""


INLINE_S: Final = 0.0001
"""Executions of full batches that are shorter than this run on the event loop's own thread: waking another one, and
being woken by it, would take longer. Only for models whose rows all have one size, so that none takes longer."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`instances` engines with `threads` threads inside an operator each: never more than there are cores."""

    instances: int
    threads: int
    inline: bool = False
    """Whether the one engine is so quick that it had better run on the event loop's own thread."""


THRIFTIEST: Final = Layout(1, 1)


def layouts(cores: int, instances: int, threads: int) -> Sequence[Layout]:
    """Those worth measuring, thriftiest first. Non-zero `instances` or `threads` are kept as they are."""
    powers = [2**power for power in range(int(math.log2(cores)) + 1)]
    sizes = sorted({*powers, cores})
    found = [
        Layout(instances or count, threads or size)
        for count in ([1] if instances else sizes)
        for size in ([1] if threads else sizes)
        if (instances or count) * (threads or size) <= cores
    ]
    # What was asked for is obeyed even where it is more than the machine has.
    return sorted(set(found), key=lambda layout: (layout.instances * layout.threads, layout.instances)) or [
        Layout(instances or 1, threads or max(1, cores // max(1, instances)))
    ]


def choose(
    spec: ModelSpec, candidates: Sequence[Layout], open_engine: Callable[[Layout], Engine]
) -> tuple[Layout, dict[Layout, float]]:
    """The best layout by rows a second, and what was measured. Engines of different layouts may share what they run.

    Raises what the engine raises for made-up inputs; the caller then does without a measurement.
    """
    if len(candidates) == 1 and candidates[0] != THRIFTIEST:
        return candidates[0], {}
    engines = {layout: open_engine(layout) for layout in candidates}
    best = candidates[0]
    rows = _affordable_rows(engines[best], spec)
    inputs = sample_inputs(spec, rows)
    alone = _executions_per_second(engines[best], inputs, best.instances)
    measured = {best: rows * alone}
    if alone > best.instances / QUICK_S:
        steady = spec.one_signature and all(tensor.dtype is not DType.BYTES for tensor in spec.inputs)
        inline = steady and best.instances == 1 and alone > 1 / INLINE_S
        return replace(best, inline=inline), measured
    for layout in candidates[1:]:
        measured[layout] = rows * _executions_per_second(engines[layout], inputs, layout.instances)
        more = layout.instances * layout.threads > best.instances * best.threads
        if measured[layout] > measured[best] * (GAIN if more else 1.0):
            best = layout
    return best, measured


def measure_costs(engine: Engine, spec: ModelSpec, sizes: Sequence[int]) -> dict[int, float]:
    """Seconds by rows: the median of a few executions of each size, from the smallest up, until COSTS_S are spent."""
    wanted = [tensor.name for tensor in spec.outputs]
    began = time.monotonic()
    seconds: dict[int, float] = {}
    for rows in sizes:
        inputs = sample_inputs(spec, rows)
        taken: list[float] = []
        for _ in range(1 + COSTS_RUNS):
            started = time.monotonic()
            engine.execute(inputs, wanted)
            taken.append(time.monotonic() - started)
            if time.monotonic() - began > COSTS_S:
                break
        seconds[rows] = statistics.median(taken[1:] or taken)
        if time.monotonic() - began > COSTS_S:
            break
    return seconds


def sample_inputs(spec: ModelSpec, rows: int) -> dict[str, Array]:
    """Made-up inputs of that many rows: seeded noise for floats, zeros and empty strings else; -1 becomes 1."""
    noise = np.random.default_rng(0)
    return {tensor.name: _sample(tensor, rows if spec.batched else 0, noise) for tensor in spec.inputs}


def _sample(tensor: TensorSpec, rows: int, noise: np.random.Generator) -> Array:
    shape = [max(1, size) if size < 0 else size for size in tensor.shape]
    if rows:
        shape.insert(0, rows)
    if tensor.dtype is DType.BYTES:
        return np.full(shape, b"", object)
    if tensor.dtype in (DType.FP16, DType.BF16, DType.FP32, DType.FP64):
        return noise.standard_normal(shape).astype(tensor.dtype.numpy)
    return np.zeros(shape, tensor.dtype.numpy)


def _affordable_rows(engine: Engine, spec: ModelSpec) -> int:
    rows = max(1, spec.max_rows)
    wanted = [tensor.name for tensor in spec.outputs]
    while True:
        inputs = sample_inputs(spec, rows)
        began = time.monotonic()
        engine.execute(inputs, wanted)
        if rows == 1 or time.monotonic() - began < SLOW_S:
            return rows
        rows = max(1, rows // 4)


def _executions_per_second(engine: Engine, inputs: dict[str, Array], callers: int) -> float:
    wanted = [tensor.name for tensor in engine.spec.outputs]
    engine.execute(inputs, wanted)

    def run() -> int:
        done = 0
        while time.monotonic() - began < MEASURE_S:
            engine.execute(inputs, wanted)
            done += 1
        return done

    with ThreadPoolExecutor(callers) as threads:
        began = time.monotonic()
        futures = [threads.submit(run) for _ in range(callers)]
        done = sum(future.result() for future in futures)
        return done / (time.monotonic() - began)
