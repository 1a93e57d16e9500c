"""Two scrapes, and what they say about the time between."""

from __future__ import annotations

import math

import pytest

from server.telemetry.scrape import Interval, fetch, read_scrape

BEFORE = """
# TYPE calls_total counter
calls_total{model="a",outcome="ok"} 10
calls_total{model="a",outcome="late"} 1
calls_total{model="b",outcome="ok"} 5
# TYPE t_seconds histogram
t_seconds_bucket{model="a",le="0.1"} 0
t_seconds_bucket{model="a",le="0.2"} 0
t_seconds_bucket{model="a",le="+Inf"} 0
"""
AFTER = """
calls_total{model="a",outcome="ok"} 30
calls_total{model="a",outcome="late"} 1
calls_total{model="b",outcome="ok"} 2
t_seconds_bucket{model="a",le="+Inf"} 10
t_seconds_bucket{model="a",le="0.1"} 5
t_seconds_bucket{model="a",le="0.2"} 9
"""
INTERVAL = Interval(read_scrape(BEFORE, 100.0), read_scrape(AFTER, 104.0))


def test_series_are_summed_by_the_labels_that_are_asked_for() -> None:
    assert INTERVAL.before.total("calls_total") == 16
    assert INTERVAL.before.total("calls_total", model="a") == 11
    assert INTERVAL.before.total("calls_total", model="c") == INTERVAL.before.total("nothing") == 0
    assert INTERVAL.before.values("calls_total", "outcome", model="a") == ["ok", "late"]


def test_counters_grow_and_may_start_anew() -> None:
    assert INTERVAL.rate("calls_total", model="a") == 5
    assert INTERVAL.growth("calls_total", model="b") == 2


@pytest.mark.parametrize(("share", "seconds"), [(0.25, 0.05), (0.5, 0.1), (0.7, 0.15), (0.9, 0.2), (0.99, 0.2)])
def test_percentiles_are_linear_within_a_bucket_and_end_at_the_last_bound(share: float, seconds: float) -> None:
    assert INTERVAL.quantile(share, "t_seconds", model="a") == pytest.approx(seconds)


def test_nothing_has_no_percentile_and_no_ratio() -> None:
    assert math.isnan(INTERVAL.quantile(0.5, "t_seconds", model="b"))
    assert math.isnan(INTERVAL.ratio(0, 0))


def test_only_the_web_is_asked() -> None:
    with pytest.raises(OSError, match="not a http URL"):
        fetch("file:///etc/passwd", 1.0)
