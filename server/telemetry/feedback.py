"""Metrics of outcomes, captured requests and triggers, where there are any."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.core import Metric

from server.telemetry.families import MODEL, Series, counter, counts, gauge

METRIC: Final = (*MODEL, "metric")
RULE: Final = ("rule", *MODEL)
_CAPTURED: Final = (("written", "rows"), ("failed", "failed"), ("recovered", "recovered"))


def feedback_metrics(now: Any) -> Iterator[Metric]:  # noqa: ANN401  (read field by field below)
    """Of a snapshot of the server's feedback."""
    if now.outcomes is not None:
        yield from _outcomes(now.outcomes)
        yield from _figures(now.figures)
    if now.captures:
        yield from _captures(now.captures)
    if now.triggers is not None:
        yield from _triggers(now.triggers)


def _outcomes(now: Any) -> Iterator[Metric]:  # noqa: ANN401
    yield counter(
        "kairos_feedback_reports", "Reported outcomes by what became of them.", counts(now.results), ("result",)
    )
    recorded = {
        "recorded": now.predictions, "repeated_id": now.repeated, "without_id": now.without_id, "dropped": now.dropped,
    }  # fmt: skip
    yield counter("kairos_feedback_predictions", "Sampled rows by what became of them.", counts(recorded), ("result",))


def _figures(found: Any) -> Iterator[Metric]:  # noqa: ANN401
    labelled = [((each.model, str(each.version)), each) for each in found if each.labelled]
    yield gauge(
        "kairos_feedback_accuracy", "Share of labelled predictions of the last day that were right.",
        [(labels, each.accuracy) for labels, each in labelled], MODEL,
    )  # fmt: skip
    yield gauge(
        "kairos_feedback_calibration_error", "Expected calibration error of the same, 0 to 1.",
        [(labels, each.calibration_error) for labels, each in labelled if each.calibration_error >= 0.0], MODEL,
    )  # fmt: skip
    yield gauge(
        "kairos_feedback_labelled", "How many these are.",
        [(labels, each.labelled) for labels, each in labelled], MODEL,
    )  # fmt: skip
    metrics = [
        ((each.model, str(each.version), name), metric) for each in found for name, metric in each.metrics.items()
    ]
    yield gauge(
        "kairos_feedback_outcome_mean", "Mean of a business metric over the last day's outcomes.",
        [(labels, metric.mean) for labels, metric in metrics], METRIC,
    )  # fmt: skip
    yield gauge(
        "kairos_feedback_outcomes", "How many these are.",
        [(labels, metric.samples) for labels, metric in metrics], METRIC,
    )  # fmt: skip
    correlations: list[Series] = [
        ((*labels, what), correlation.value)
        for labels, metric in metrics
        for what, correlation in (("confidence", metric.confidence), ("drift", metric.drift))
        if not math.isnan(correlation.value)
    ]
    text = "Spearman's rank correlation of a business metric with confidence or drift."
    yield gauge("kairos_feedback_outcome_correlation", text, correlations, (*METRIC, "with"))


def _captures(found: Any) -> Iterator[Metric]:  # noqa: ANN401
    rows = [((name, str(version)), each) for (name, version), each in found.items()]
    written: list[Series] = [((*labels, what), getattr(each, key)) for labels, each in rows for what, key in _CAPTURED]
    yield counter("kairos_capture_rows", "Captured rows by what became of them.", written, (*MODEL, "result"))
    yield counter("kairos_capture_files", "Files closed.", [(labels, each.files) for labels, each in rows], MODEL)
    sizes: dict[str, int] = {}
    for (name, _), each in sorted(found.items()):
        sizes[name] = each.size_bytes
    series: list[Series] = [((name,), size) for name, size in sizes.items()]
    yield gauge("kairos_capture_bytes", "Size of a model's files, when one was last closed.", series, ("model",))


def _triggers(now: Any) -> Iterator[Metric]:  # noqa: ANN401
    events: list[Series] = [((rule, model, str(version)), n) for (rule, model, version), n in now.events.items()]
    yield counter("kairos_trigger_events", "Events, one for each episode.", events, RULE)
    raised: list[Series] = [((rule, model, str(version)), on) for (rule, model, version), on in now.raised.items()]
    yield gauge("kairos_trigger_raised", "1 while a rule is raised.", raised, RULE)
    attempts: list[Series] = [(key, n) for key, n in now.attempts.items()]
    text = "Attempts at actions by their end; failed ones are tried again."
    yield counter("kairos_trigger_deliveries", text, attempts, ("action", "result"))
    yield gauge("kairos_trigger_pending", "Deliveries that are not done.", [((), now.pending)])
    yield counter("kairos_trigger_failures", "Times that rules could not be looked at or saved.", [((), now.failures)])
