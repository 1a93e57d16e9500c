"""What an engine does in this process: right answers, images a second, what overlap and graphs bring."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.canary import distance
from engines.backends.cuda.api import CudaDevice
from engines.backends.options import StreamOptions
from engines.backends.streamed import StreamedEngine
from engines.backends.sweep import sample_inputs
from engines.tensor import Array

Open = Callable[[CudaDevice, StreamOptions], StreamedEngine]
Answer = Callable[[Mapping[str, Array]], Mapping[str, Array]]

VARIANTS: Mapping[str, StreamOptions] = {
    "overlap and graphs": StreamOptions(),
    "overlap, no graphs": StreamOptions(graphs=False),
    "graphs, no overlap": StreamOptions(slots=1, in_flight=1),
    "neither": StreamOptions(slots=1, in_flight=1, graphs=False),
}


@dataclass(frozen=True)
class Limit:
    """The most that an engine did."""

    rows: int
    rows_a_second: float


def rate(engine: StreamedEngine, rows: int, seconds: float) -> float:
    """Rows a second with as many batches in flight as the engine takes; copies to and from the host included."""
    wanted = [tensor.name for tensor in engine.spec.outputs]
    inputs = sample_inputs(engine.spec, rows)
    flights: deque[Any] = deque()
    done, began, until = 0, 0.0, 0.0
    warm = 4 * engine.slots
    while not began or time.monotonic() < until or flights:
        if not began or time.monotonic() < until:
            staging = engine.staging()
            staged = {}
            for tensor in engine.spec.inputs:
                # Filled once: what is measured is the engine, not the copying of rows into its memory.
                staged[tensor.name] = staging.array(tensor.name, tensor.dtype, inputs[tensor.name].shape)
                if warm > 0:
                    staged[tensor.name][:] = inputs[tensor.name]
            flights.append(engine.start(staged, wanted))
        if len(flights) >= min(engine.in_flight, engine.slots) or time.monotonic() >= until > 0:
            flights.popleft().finish()
            if warm > 0:
                warm -= 1
                if warm == 0:
                    began = time.monotonic()
                    until = began + seconds
            else:
                done += rows
    return done / (time.monotonic() - began)


def variants(
    open_engine: Open, device: CudaDevice, sizes: Sequence[int], seconds: float, repeats: int = 3
) -> dict[str, Any]:
    """Rows a second by variant and size of batch, each variant in turn so many times: the median and the spread."""
    found: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in sizes} for name in VARIANTS}
    for _ in range(repeats):
        for name, options in VARIANTS.items():
            engine = open_engine(device, options)
            for rows in sizes:
                found[name][rows].append(rate(engine, rows, seconds))
            engine.close()
    return {
        name: {rows: (statistics.median(rates), min(rates), max(rates)) for rows, rates in by_rows.items()}
        for name, by_rows in found.items()
    }


def best(measured: Mapping[str, Any], variant: str = "overlap and graphs") -> Limit:
    """The size of batch with the most rows a second."""
    rows, (rate_there, _, _) = max(measured[variant].items(), key=lambda item: item[1][0])
    return Limit(rows, rate_there)


def check(
    engine: StreamedEngine, answer: Callable[[Mapping[str, Array]], Mapping[str, Array]], sizes: Sequence[int]
) -> float:
    """The largest distance of any output from what the processor answers, on fresh noise."""
    noise, worst = np.random.default_rng(), 0.0
    for rows in sizes:
        for _ in range(6):  # enough for warm-up, capture and replay in every slot
            inputs = {
                tensor.name: noise.standard_normal((rows, *tensor.shape)).astype(tensor.dtype.numpy)
                for tensor in engine.spec.inputs
            }
            found = engine.execute(inputs, [tensor.name for tensor in engine.spec.outputs])
            worst = max(worst, *(distance(found[name], known) for name, known in answer(inputs).items()))
    return worst
