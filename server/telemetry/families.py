"""Shorthand for families of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from server.telemetry.histogram import Histogram

Series: TypeAlias = tuple[Sequence[str], float]
"""Label values, and the value."""

MODEL: Final = ("model", "version")


def counter(name: str, text: str, series: Iterable[Series], labels: Sequence[str] = ()) -> Metric:
    """Something that only grows; `_total` is added to the name."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def gauge(name: str, text: str, series: Iterable[Series], labels: Sequence[str] = ()) -> Metric:
    """Something that goes up and down."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def histogram(
    name: str, text: str, series: Iterable[tuple[Sequence[str], Histogram]], labels: Sequence[str] = ()
) -> Metric:
    """Observations by bucket; without sum and count where buckets are negative, as OpenMetrics has it."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, observed in series:
        family.add_metric(values, _buckets(observed), sum_value=observed.total)
    return family


def counts(by: Mapping[str, int], labels: Sequence[str] = ()) -> list[Series]:
    """Series of a mapping, its keys as the last label."""
    return [((*labels, key), value) for key, value in by.items()]


def _buckets(observed: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    below = 0
    bounds = [*map(floatToGoString, observed.bounds), "+Inf"]
    for index, (bound, count) in enumerate(zip(bounds, observed.counts, strict=True)):
        below += count
        found = observed.exemplars.get(index)
        if found is None:
            buckets.append((bound, below))
        else:
            buckets.append((bound, below, Exemplar({"trace_id": found.trace_id}, found.value, found.at)))
    return buckets
