"""Metrics of rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from prometheus_client.core import Metric

from server.telemetry.families import counter, counts, gauge

STAGES: Final = ("waiting", "running", "promoted", "rolled back", "aborted")
_ARMS: Final = ("stable", "candidate")
_LABELS: Final = ("model", "stable", "candidate")


class RolloutStatistics(Protocol):
    """A snapshot of one model's rollout."""

    @property
    def rollout(self) -> Any: ...  # noqa: ANN401  (read field by field below)
    @property
    def in_flight(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def fates(self) -> Mapping[Any, int]: ...


def rollout_metrics(found: Iterable[RolloutStatistics]) -> Iterator[Metric]:
    """State, share and evidence of each model's rollout, present or last."""
    rows = [((each.rollout.model, *map(str, _versions(each.rollout.plan))), each) for each in found]
    states = [
        ((*labels, stage.replace(" ", "_")), float(each.rollout.stage == stage))
        for labels, each in rows
        for stage in STAGES
    ]
    yield gauge("kairos_rollout_stage", "1 for the stage that the rollout is in.", states, (*_LABELS, "stage"))
    shares = [(labels, each.rollout.share) for labels, each in rows]
    yield gauge("kairos_rollout_share_ratio", "Of the default traffic that the candidate answers.", shares, _LABELS)
    steps = [(labels, each.rollout.step + 1) for labels, each in rows]
    yield gauge("kairos_rollout_step", "The step, counted from 1.", steps, _LABELS)
    yield from _evidence(rows)
    retries = [(labels, each.retries) for labels, each in rows]
    text = "Requests that the stable version was asked for after the candidate had failed them."
    yield counter("kairos_rollout_retries", text, retries, _LABELS)
    copies = [series for labels, each in rows for series in counts(each.fates, labels)]
    yield counter("kairos_rollout_copies", "Copies of requests by what became of them.", copies, (*_LABELS, "result"))
    flying = [(labels, each.in_flight) for labels, each in rows]
    yield gauge("kairos_rollout_copies_in_flight", "Copies under way.", flying, _LABELS)


def _evidence(rows: list[tuple[tuple[str, ...], RolloutStatistics]]) -> Iterator[Metric]:
    """What the present step has seen; gauges, since each step begins anew."""
    arms = [((*of, name), getattr(each.rollout.evidence, name)) for of, each in rows for name in _ARMS]
    labels = (*_LABELS, "arm")
    asked = [(each, arm.requests) for each, arm in arms]
    yield gauge("kairos_rollout_step_requests", "Requests of each version on this step.", asked, labels)
    failed = [(each, arm.failures) for each, arm in arms]
    yield gauge("kairos_rollout_step_failures", "Of these, requests that the version failed.", failed, labels)
    medians = [(each, arm.quantile_s(0.5)) for each, arm in arms]
    yield gauge("kairos_rollout_step_median_seconds", "Median time to the answer on this step.", medians, labels)
    compared = [(each, found.rollout.evidence.compared) for each, found in rows]
    yield gauge("kairos_rollout_step_compared", "Answers compared on this step.", compared, _LABELS)
    agreement = [(each, found.rollout.evidence.agreement) for each, found in rows]
    yield gauge("kairos_rollout_step_agreement_ratio", "Mean agreement of these; NaN for none.", agreement, _LABELS)


def _versions(plan: Any) -> tuple[int, int]:  # noqa: ANN401
    return plan.stable, plan.candidate
