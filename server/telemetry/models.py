"""Metrics of the loaded model versions, from their meters and the statistics of their engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client.core import Metric

from engines.local import LocalStatistics
from server.telemetry.families import MODEL, counter, counts, gauge, histogram
from server.telemetry.histogram import ROWS, Histogram
from server.telemetry.meter import Counters, ModelMeter, UnroutedMeter


class HasStatistics(Protocol):
    """What runs a model version."""

    def statistics(self) -> LocalStatistics: ...


class Observed(Protocol):
    """One loaded model version."""

    @property
    def meter(self) -> ModelMeter: ...
    @property
    def engines(self) -> HasStatistics: ...


HISTOGRAMS: Final = {
    "request": "Seconds from a request's arrival at its model to its answer; requests that were answered.",
    "queue": "Seconds that a request waited for an engine; requests that an engine answered.",
    "gather": "Seconds that putting a request's batch together took.",
    "execute": "Seconds that the engine ran a request's batch.",
    "scatter": "Seconds that cutting a request's batch apart took.",
    "remembered": "Seconds to the answer of a request that no engine was asked for.",
    "batch": "Seconds that a batch occupied its engine; its rate is the number of busy engines.",
    "slack_at_dispatch": "Seconds left until a request's deadline when its batch started; negative when it had passed.",
    "slack_at_reply": "Seconds left until a request's deadline when it was answered; negative when it had passed.",
}
"""Histograms of a meter, by their attribute."""

COUNTERS: Final[dict[str, tuple[str, Callable[[Counters], float]]]] = {
    "kairos_failed_request_seconds": ("Seconds spent on requests that failed.", lambda of: of.failures.seconds),
    "kairos_inference_rows": ("Rows answered by engines.", lambda of: of.inferences),
    "kairos_executed_rows": ("Rows that engines ran, padding included.", lambda of: of.executed_rows),
    "kairos_failed_batches": ("Batches that an engine failed.", lambda of: of.failed_executions),
}

GAUGES: Final[dict[str, tuple[str, Callable[[LocalStatistics], float]]]] = {
    "kairos_queue_requests": ("Requests that wait.", lambda now: now.queue.requests),
    "kairos_queue_rows": ("Rows that wait.", lambda now: now.queue.rows),
}


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One version, frozen."""

    labels: tuple[str, str]
    counters: Counters
    in_flight: int
    outcomes: dict[str, int]
    origins: dict[str, int]
    closed_by: dict[str, int]
    histograms: dict[str, Histogram]
    statistics: LocalStatistics


def model_metrics(served: Iterable[Observed], unrouted: UnroutedMeter, now: float) -> Iterator[Metric]:
    """All figures of all loaded versions. The snapshot is taken at once, everything else while it is iterated."""
    snapshots = [_snapshot(model) for model in served]
    return _families(snapshots, {outcome.value: count for outcome, count in unrouted.outcomes.items()}, now)


def tag_metrics(tags: Iterable[tuple[str, int, Mapping[str, str]]]) -> Metric:
    """The tags that configurations give to models: (model, version, tags by name)."""
    series = [((name, str(version), tag, value), 1.0) for name, version, by in tags for tag, value in by.items()]
    return gauge(
        "kairos_model_tag",
        "Always 1: a tag of a model's configuration, to join other series with by model and version.",
        series,
        (*MODEL, "tag", "value"),
    )


def _snapshot(model: Observed) -> _Snapshot:
    meter = model.meter
    rows = Histogram(ROWS)
    for size, count in meter.batches.items():
        rows.add_times(size, count.execute.count)
    histograms = {name: getattr(meter, name).copy() for name in HISTOGRAMS}
    return _Snapshot(
        labels=(meter.spec.name, str(meter.spec.version)),
        counters=meter.counters.copy(),
        in_flight=meter.in_flight,
        outcomes={outcome.value: count for outcome, count in meter.outcomes.items()},
        origins={origin.value: count for origin, count in meter.origins.items()},
        closed_by={reason.value: count for reason, count in meter.closed_by.items()},
        histograms=histograms | {"batch_rows": rows},
        statistics=model.engines.statistics(),
    )


def _families(models: list[_Snapshot], unrouted: dict[str, int], now: float) -> Iterator[Metric]:
    yield from _requests(models, unrouted)
    for name, text in HISTOGRAMS.items():
        series = [(model.labels, model.histograms[name]) for model in models]
        yield histogram(f"kairos_{name}_seconds", text, series, MODEL)
    yield from _batches(models)
    yield from _gauges(models, now)
    yield from _estimates(models)


def _requests(models: list[_Snapshot], unrouted: dict[str, int]) -> Iterator[Metric]:
    yield counter(
        "kairos_requests",
        "Requests by how they ended; goodput is in_deadline over all. Without a model: those that reached none.",
        [s for model in models for s in counts(model.outcomes, model.labels)] + counts(unrouted, ("", "")),
        (*MODEL, "outcome"),
    )
    yield counter(
        "kairos_answers",
        "Answers by where they came from.",
        [s for model in models for s in counts(model.origins, model.labels)],
        (*MODEL, "origin"),
    )
    yield gauge(
        "kairos_requests_in_flight",
        "Requests taken in and not yet answered.",
        [(model.labels, model.in_flight) for model in models],
        MODEL,
    )


def _batches(models: list[_Snapshot]) -> Iterator[Metric]:
    series = [(model.labels, model.histograms["batch_rows"]) for model in models]
    yield histogram("kairos_batch_rows", "Rows of executed batches, padding left out.", series, MODEL)
    yield counter(
        "kairos_batches",
        "Executed batches by why they left with the rows they had.",
        [s for model in models for s in counts(model.closed_by, model.labels)],
        (*MODEL, "closed_by"),
    )
    for name, (text, value_of) in COUNTERS.items():
        yield counter(name, text, [(model.labels, value_of(model.counters)) for model in models], MODEL)
    wasted = [
        ((*model.labels, reason), rows)
        for model in models
        for reason, rows in (
            ("padding", model.counters.padding_rows),
            ("abandoned", model.counters.abandoned_rows),
        )
    ]
    yield counter("kairos_wasted_rows", "Rows that engines ran for nobody.", wasted, (*MODEL, "reason"))


def _gauges(models: list[_Snapshot], now: float) -> Iterator[Metric]:
    for name, (text, value_of) in GAUGES.items():
        yield gauge(name, text, [(model.labels, value_of(model.statistics)) for model in models], MODEL)
    ages = [(model.labels, _age(model.statistics.queue.oldest_arrival, now)) for model in models]
    yield gauge("kairos_queue_oldest_seconds", "How long the oldest waiting request waits.", ages, MODEL)
    pools = [(model.labels, model.statistics.engines) for model in models]
    states = [
        ((*labels, state), value)
        for labels, pool in pools
        for state, value in (("busy", pool.busy), ("idle", pool.idle), ("missing", pool.missing))
    ]
    yield gauge("kairos_engines", "Engines by what they do; missing ones died.", states, (*MODEL, "state"))
    hung = [(labels, pool.hung) for labels, pool in pools]
    yield gauge("kairos_engines_hung", "Engines that were given up, and whose threads still run.", hung, MODEL)
    replaced = [(labels, pool.replaced) for labels, pool in pools]
    yield counter("kairos_engines_replaced", "Engines that died or hung and were replaced.", replaced, MODEL)


def _estimates(models: list[_Snapshot]) -> Iterator[Metric]:
    """What a policy with a cost model and classes of deadlines knows; others keep no such account."""
    costs = [(model.labels, cost) for model in models if (cost := model.statistics.queue.cost) is not None]
    yield gauge(
        "kairos_estimate_error_ratio",
        "Median of measured over expected seconds of the last executions; 1 is exact.",
        [(labels, cost.error_ratio) for labels, cost in costs],
        MODEL,
    )
    yield gauge(
        "kairos_estimate_spread_ratio",
        "Seconds that batches are planned with over typical seconds.",
        [(labels, cost.spread) for labels, cost in costs],
        MODEL,
    )
    classes = [
        ((*model.labels, name, result), getattr(account, result))
        for model in models
        for name, account in model.statistics.queue.classes.items()
        for result in ("met", "late", "refused", "left")
    ]
    yield counter(
        "kairos_deadline_class_requests",
        "Requests by class of deadline, and what became of them.",
        classes,
        (*MODEL, "class", "result"),
    )


def _age(arrival: float, now: float) -> float:
    return 0.0 if arrival == math.inf else max(0.0, now - arrival)
