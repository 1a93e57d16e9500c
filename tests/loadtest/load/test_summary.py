from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from loadtest.load.generator import Record
from loadtest.load.scenario import Kind, Scenario
from loadtest.load.schedule import Arrivals
from loadtest.load.summary import cdf, gather, percentiles_ms, summarise
from loadtest.load.workers import Finished


def record(latencies: Sequence[float], codes: Sequence[int] = (), slip: float = 0.0, kind: int = 0) -> Record:
    count = len(latencies)
    return Record(
        kind=array("H", [kind] * count),
        due=array("d", np.linspace(0, 9, count)),
        slip=array("d", [slip] * count),
        latency=array("d", latencies),
        code=array("B", codes or [0] * count),
        deadline_s=array("d", [0.1] * count),
    )


def summary(*records: Record, cpu_s: float = 0.1, **more: Any) -> dict[str, Any]:
    scenario = Scenario(requests=(Kind(model="a"), Kind(model="b")), **more)
    return summarise(scenario, [Finished(each, cpu_s, 10.0) for each in records])


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles_ms(np.arange(1, 1001) / 1e3)
    assert (found["p50"], found["p99"], found["p99.9"], found["max"]) == (501.0, 991.0, 1000.0, 1000.0)


def test_processes_are_put_together() -> None:
    told = summary(record([0.01] * 50), record([0.03] * 50, kind=1))
    assert told["sent"] == 100
    assert told["latency_ms"]["mean"] == pytest.approx(20.0)
    assert [(each["model"], each["sent"], each["latency_ms"]["p50"]) for each in told["kinds"]] == [
        ("a", 50, 10.0),
        ("b", 50, 30.0),
    ]
    assert told["generator"]["cpu_us_per_call"] == pytest.approx(2000.0)


def test_failures_and_late_answers_are_no_goodput() -> None:
    told = summary(record([0.01, 0.2, 0.01, 0.01], [0, 0, 8, 4]))
    assert told["codes"] == {"OK": 2, "DEADLINE_EXCEEDED": 1, "RESOURCE_EXHAUSTED": 1}
    assert told["good_share"] == 0.25
    assert told["answers_per_s"] == pytest.approx(0.2)


def test_answers_after_the_end_are_no_throughput() -> None:
    assert summary(record([0.01, 5.0]))["answers_per_s"] == pytest.approx(0.1)


def test_the_distribution_ends_at_the_share_that_was_answered() -> None:
    calls = gather([Finished(record([0.01] * 60 + [0.5] * 20 + [0.1] * 20, [0] * 80 + [4] * 20), 0.0, 1.0)])
    points = cdf(calls)
    assert points[-1] == (500.0, 0.8)
    assert points == sorted(points)


def test_a_busy_generator_spoils_a_closed_loop_and_slip_an_open_one() -> None:
    closed = Arrivals(kind="closed")
    assert summary(record([0.01]), arrivals=closed, cpu_s=5.0)["valid"]
    assert "95% of a core" in summary(record([0.01]), arrivals=closed, cpu_s=9.5)["invalid_because"][0]
    assert summary(record([0.01], slip=0.004))["valid"]
    assert "left 6.0 ms" in summary(record([0.01], slip=0.006))["invalid_because"][0]
    assert summary(record([0.01], slip=0.006), max_slip_ms=10.0)["valid"]


def test_nothing_sent_is_nothing_shown() -> None:
    told = summary(record([]))
    assert told["invalid_because"] == ["nothing was sent"]
    assert told["latency_ms"] == told["slip_ms"] == {}


def test_time_series_have_the_rates_of_their_time() -> None:
    series = summary(record([0.01] * 1000))["series"]
    assert sum(series["offered"]) / len(series["offered"]) == pytest.approx(100.0, rel=0.02)
    assert series["p50"][0] == pytest.approx(10.0)
    assert series["p50"][-1] is None, "the last request was due at 9 s"
