"""Buckets, bounds included; exemplars; snapshots."""

from __future__ import annotations

import pytest

from server.telemetry.families import histogram
from server.telemetry.histogram import ROWS, SECONDS, SLACK_S, Exemplar, Histogram
from tests.support.telemetry import exposed


@pytest.mark.parametrize("bounds", [SECONDS, SLACK_S, ROWS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_phases_are_seen_from_a_tenth_of_a_millisecond_to_a_minute() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (1e-4, 60.0)


def test_an_observation_falls_into_the_first_bucket_that_it_does_not_exceed() -> None:
    observed = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        observed.add(value)
    assert observed.counts == [2, 2, 1]
    assert observed.count == 5
    assert observed.total == pytest.approx(8.65)


def test_equal_observations_can_be_added_together() -> None:
    observed = Histogram(ROWS)
    observed.add_times(8.0, 3)
    assert (observed.count, observed.total) == (3, 24.0)


def test_a_snapshot_does_not_move() -> None:
    observed = Histogram(SECONDS)
    observed.add(0.5)
    snapshot = observed.copy()
    observed.add(0.5)
    observed.mark(Exemplar("a" * 32, 0.5, 1.0))
    assert (snapshot.count, snapshot.total, snapshot.exemplars) == (1, 0.5, {})


def test_it_is_exposed_cumulatively_with_exemplars() -> None:
    observed = Histogram((0.1, 1.0))
    for value in (0.05, 0.5, 7.0):
        observed.add(value)
    observed.mark(Exemplar("ab" * 16, 0.5, 12.0))
    samples = exposed([histogram("kairos_h", "Text.", [(("m",), observed)], ("model",))])
    assert samples == {
        'kairos_h_bucket{le="0.1",model="m"}': 1.0,
        'kairos_h_bucket{le="1.0",model="m"}': 2.0,
        'kairos_h_bucket{le="1.0",model="m"} exemplar': 0.5,
        'kairos_h_bucket{le="+Inf",model="m"}': 3.0,
        'kairos_h_count{model="m"}': 3.0,
        'kairos_h_sum{model="m"}': pytest.approx(7.55),
    }


def test_negative_buckets_come_without_sum_and_count() -> None:
    observed = Histogram(SLACK_S)
    observed.add(-0.5)
    samples = exposed([histogram("kairos_slack", "Text.", [((), observed)])])
    assert samples['kairos_slack_bucket{le="-0.1"}'] == 1.0
    assert samples['kairos_slack_bucket{le="-1.0"}'] == 0.0
    assert not any(name.endswith(("_sum", "_count")) for name in samples)
