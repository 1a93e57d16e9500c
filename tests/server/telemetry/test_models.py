"""Metrics of models, as Prometheus reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from engines.local import LocalStatistics
from engines.pool import PoolStatistics
from engines.scheduling.latency import CostStatistics
from engines.scheduling.report import ClassStatistics, QueueStatistics
from server.telemetry.meter import ModelMeter, UnroutedMeter
from server.telemetry.models import model_metrics
from tests.support.telemetry import exposed, meter, report, request, response

LABELS = 'model="fake",version="1"'


@dataclass
class Engines:
    queue: QueueStatistics
    pool: PoolStatistics = field(default_factory=lambda: PoolStatistics(busy=2, idle=1, missing=1, replaced=3, hung=2))

    def statistics(self) -> LocalStatistics:
        return LocalStatistics(self.queue, self.pool)


@dataclass
class Model:
    meter: ModelMeter
    engines: Engines


def samples(queue: QueueStatistics, counted: ModelMeter | None = None, now: float = 50.0) -> dict[str, float]:
    model = Model(counted or meter(), Engines(queue))
    return exposed(model_metrics([model], UnroutedMeter(), now))


def test_everything_that_was_counted_is_exposed() -> None:
    counted = meter()
    counted.answered(request(100.0), response(), 0.02, now=99.0)
    counted.exemplify(response(), "ab" * 16, 0.02)
    counted.in_flight = 4
    counted.observe(report(rows=3, padded_rows=8, abandoned_rows=2))
    found = samples(QueueStatistics(5, 7, 48.0), counted)
    expected = {
        'kairos_requests_total{model="fake",outcome="in_deadline",version="1"}': 1,
        'kairos_requests_total{model="",outcome="shed",version=""}': 0,
        'kairos_answers_total{model="fake",origin="engine",version="1"}': 1,
        f"kairos_request_seconds_count{{{LABELS}}}": 1,
        f"kairos_request_seconds_sum{{{LABELS}}}": 0.02,
        f'kairos_request_seconds_bucket{{le="0.02",{LABELS}}} exemplar': 0.02,
        f'kairos_execute_seconds_bucket{{le="0.005",{LABELS}}} exemplar': 0.004,
        f'kairos_slack_at_reply_seconds_bucket{{le="0.5",{LABELS}}}': 0,
        f'kairos_slack_at_reply_seconds_bucket{{le="1.0",{LABELS}}}': 1,
        f'kairos_batch_rows_bucket{{le="4.0",{LABELS}}}': 1,
        f"kairos_batch_rows_sum{{{LABELS}}}": 3,
        f'kairos_batches_total{{closed_by="full",{LABELS}}}': 1,
        f"kairos_executed_rows_total{{{LABELS}}}": 8,
        'kairos_wasted_rows_total{model="fake",reason="padding",version="1"}': 5,
        'kairos_wasted_rows_total{model="fake",reason="abandoned",version="1"}': 2,
        f"kairos_requests_in_flight{{{LABELS}}}": 4,
        f"kairos_queue_requests{{{LABELS}}}": 5,
        f"kairos_queue_rows{{{LABELS}}}": 7,
        f"kairos_queue_oldest_seconds{{{LABELS}}}": 2,
        'kairos_engines{model="fake",state="busy",version="1"}': 2,
        'kairos_engines{model="fake",state="missing",version="1"}': 1,
        f"kairos_engines_hung{{{LABELS}}}": 2,
        f"kairos_engines_replaced_total{{{LABELS}}}": 3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_an_empty_queue_has_no_age() -> None:
    assert samples(QueueStatistics(0, 0, math.inf))[f"kairos_queue_oldest_seconds{{{LABELS}}}"] == 0


def test_a_policy_without_accounts_has_no_series_of_them() -> None:
    found = samples(QueueStatistics(0, 0, math.inf))
    assert not any(name.startswith(("kairos_estimate", "kairos_deadline_class")) for name in found)


def test_a_policy_that_keeps_accounts_is_read() -> None:
    account = ClassStatistics(offered=10, met=6, late=2, refused=1, left=1)
    cost = CostStatistics(executions=9, error_ratio=1.25, spread=1.5, seconds={})
    found = samples(QueueStatistics(0, 0, math.inf, classes={"up to 10 ms": account}, cost=cost))
    assert found[f"kairos_estimate_error_ratio{{{LABELS}}}"] == 1.25
    assert found[f"kairos_estimate_spread_ratio{{{LABELS}}}"] == 1.5
    name = 'kairos_deadline_class_requests_total{class="up to 10 ms",model="fake",result="met",version="1"}'
    assert found[name] == 6


def test_the_snapshot_is_taken_at_once() -> None:
    counted = meter()
    metrics = model_metrics([Model(counted, Engines(QueueStatistics(0, 0, math.inf)))], UnroutedMeter(), 0.0)
    counted.answered(request(), response(), 0.02, now=1.0)
    assert exposed(metrics)[f"kairos_request_seconds_count{{{LABELS}}}"] == 0
