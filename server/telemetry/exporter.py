"""Prometheus metrics, read from the counters at scrape time: the hot path pays nothing for them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.local import LocalStatistics
from server.telemetry.metered import Duration, ModelMeter

LABELS: Final = ("model", "version")
SCRAPE_S: Final = 5.0
"""How long a scrape waits for a busy event loop: half of Prometheus's default."""


class HasStatistics(Protocol):
    """What runs a model version."""

    def statistics(self) -> LocalStatistics: ...


class Observed(Protocol):
    """One loaded model version."""

    @property
    def meter(self) -> ModelMeter: ...
    @property
    def engines(self) -> HasStatistics: ...


class ModelCollector(Collector):
    """All figures of all loaded versions, read on the event loop that changes them."""

    def __init__(self, served: Callable[[], Iterable[Observed]]) -> None:
        self._served = served
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: which series exist depends on the models that are loaded."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See Collector.collect. Called by scrapes, in threads of their own."""
        found: concurrent.futures.Future[list[Metric]] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._read, found)
        return found.result(SCRAPE_S)

    def _read(self, found: concurrent.futures.Future[list[Metric]]) -> None:
        try:
            models = list(self._served())
            found.set_result(
                [*_requests(models), *_phases(models), *_batches(models), *_gauges(models, self._loop.time())]
            )
        except Exception as error:  # noqa: BLE001  (it belongs to the scrape that asked)
            found.set_exception(error)


def start_exporter(host: str, port: int, collector: Collector) -> tuple[int, Callable[[], None]]:
    """Serve /metrics from a thread; the port it got, and how to stop it. Raises OSError when it is taken."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    server, thread = start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop


def _labels(model: Observed) -> list[str]:
    return [model.meter.spec.name, str(model.meter.spec.version)]


def _requests(models: list[Observed]) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "kairos_requests", "Requests by how they ended; goodput is in_deadline over all.", labels=(*LABELS, "outcome")
    )
    origins = CounterMetricFamily("kairos_answers", "Answers by where they came from.", labels=(*LABELS, "origin"))
    for model in models:
        for outcome, count in model.meter.by_outcome().items():
            outcomes.add_metric([*_labels(model), outcome], count)
        for origin, count in dict(model.meter.origins).items():
            origins.add_metric([*_labels(model), origin.value], count)
    yield outcomes
    yield origins


def _phases(models: list[Observed]) -> Iterator[Metric]:
    phases: dict[str, Callable[[ModelMeter], Duration]] = {
        "request": lambda meter: meter.success,
        "queue": lambda meter: meter.queue,
        "gather": lambda meter: meter.gather,
        "execute": lambda meter: meter.execute,
        "scatter": lambda meter: meter.scatter,
    }
    for phase, duration_of in phases.items():
        total = CounterMetricFamily(
            f"kairos_{phase}_seconds", f"Seconds that answered requests spent in phase {phase}.", labels=LABELS
        )
        for model in models:
            total.add_metric(_labels(model), duration_of(model.meter).seconds)
        yield total


def _batches(models: list[Observed]) -> Iterator[Metric]:
    counters: dict[str, tuple[str, Callable[[ModelMeter], float]]] = {
        "kairos_inference_rows": ("Rows answered by engines.", lambda meter: meter.inferences),
        "kairos_executions": ("Batches executed.", lambda meter: meter.executions),
        "kairos_failed_executions": ("Batches that an engine failed.", lambda meter: meter.failed_executions),
        "kairos_padded_rows": ("Rows added to reach an allowed batch size.", lambda meter: meter.padded_rows),
    }
    for name, (text, value_of) in counters.items():
        family = CounterMetricFamily(name, text, labels=LABELS)
        for model in models:
            family.add_metric(_labels(model), value_of(model.meter))
        yield family
    closed = CounterMetricFamily(
        "kairos_batches", "Batches by why they left with the rows they had.", labels=(*LABELS, "closed_by")
    )
    sizes = CounterMetricFamily("kairos_batch_rows", "Batches by their rows.", labels=(*LABELS, "rows"))
    for model in models:
        for reason, count in dict(model.meter.closed_by).items():
            closed.add_metric([*_labels(model), reason.value], count)
        for rows, batch in dict(model.meter.batches).items():
            sizes.add_metric([*_labels(model), str(rows)], batch.execute.count)
    yield closed
    yield sizes


def _gauges(models: list[Observed], now: float) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[LocalStatistics, ModelMeter], float]]] = {
        "kairos_queue_requests": ("Requests that wait.", lambda now, _: now.queue.requests),
        "kairos_queue_rows": ("Rows that wait.", lambda now, _: now.queue.rows),
        "kairos_engines_busy": ("Engines that run a batch.", lambda now, _: now.engines.busy),
        "kairos_engines_idle": ("Engines that wait for one.", lambda now, _: now.engines.idle),
        "kairos_engines_missing": ("Engines that died and are not back yet.", lambda now, _: now.engines.missing),
        "kairos_requests_in_flight": ("Requests taken in and not yet answered.", lambda _, meter: meter.in_flight),
    }
    statistics: list[tuple[Observed, LocalStatistics]] = [(model, model.engines.statistics()) for model in models]
    for name, (text, value_of) in gauges.items():
        family = GaugeMetricFamily(name, text, labels=LABELS)
        for model, snapshot in statistics:
            family.add_metric(_labels(model), value_of(snapshot, model.meter))
        yield family
    age = GaugeMetricFamily("kairos_queue_oldest_seconds", "How long the oldest waiting request waits.", labels=LABELS)
    for model, snapshot in statistics:
        arrival: Any = snapshot.queue.oldest_arrival
        age.add_metric(_labels(model), 0.0 if arrival == math.inf else max(0.0, now - arrival))
    yield age
