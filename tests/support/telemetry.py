"""Requests, answers, batches and a hand-wound clock for tests of telemetry."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from engines.backends.fake import fake_spec
from engines.request import InferRequest, InferResponse, Origin, Timings
from engines.scheduling.report import BatchReport, ClosedBy
from engines.tensor import DType, Tensor
from server.telemetry.meter import ModelMeter

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
PARENT_TRACE, PARENT_SPAN = PARENT.split("-")[1:3]


class Clock:
    """Shows what it is set to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """An Inference that takes its time on the clock, then answers or raises."""

    def __init__(self, clock: Clock, seconds: float, outcome: InferResponse | BaseException) -> None:
        self.clock, self.seconds, self.outcome = clock, seconds, outcome
        self.seen: list[InferRequest] = []

    async def infer(self, request: InferRequest) -> InferResponse:
        self.seen.append(request)
        self.clock.now += self.seconds
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def request(deadline: float = math.inf, **rest: Any) -> InferRequest:
    inputs = (Tensor("x", DType.FP32, (1, 4), bytes(16)),)
    return InferRequest(model="fake", version=1, inputs=inputs, wanted=("y",), deadline=deadline, **rest)


def response(origin: Origin = Origin.ENGINE) -> InferResponse:
    timings = Timings(queue_s=0.003, gather_s=0.0002, execute_s=0.004, scatter_s=0.0001)
    return InferResponse(model="fake", version=1, outputs=(), timings=timings, origin=origin)


def report(rows: int = 3, padded_rows: int = 4, **rest: Any) -> BatchReport:
    times = {"opened": 99.0, "started": 100.0, "finished": 100.01, "gather_s": 0.001, "execute_s": 0.008}
    told: dict[str, Any] = {"closed_by": ClosedBy.FULL, "scatter_s": 0.0005, "device": "cpu", **times, **rest}
    return BatchReport(model="fake", version=1, rows=rows, padded_rows=padded_rows, **told)


def meter() -> ModelMeter:
    return ModelMeter(fake_spec())


class _Once(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def exposed(metrics: Iterable[Metric]) -> dict[str, float]:
    """Samples by name and labels, as a strict OpenMetrics parser reads them."""
    registry = CollectorRegistry()
    registry.register(_Once(metrics))
    text = generate_latest(registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
            if sample.exemplar is not None:
                found[f"{sample.name}{{{labels}}} exemplar"] = sample.exemplar.value
    return found
