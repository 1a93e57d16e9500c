"""Latencies: counted in the right bucket."""

from __future__ import annotations

from server.cache.latency import Latencies


def test_a_summary_of_nothing_and_of_something() -> None:
    latencies = Latencies()
    assert latencies.summary().percentile_s(0.99) == 0.0
    for seconds in (0.0001, 0.0002, 0.0002, 0.9):
        latencies.observe(seconds)
    summary = latencies.summary()
    assert summary.count == 4
    assert summary.buckets[:2] == (1, 2)
    assert summary.buckets[-1] == 1
    assert summary.percentile_s(0.25) == 0.0001
    assert summary.percentile_s(0.5) == 0.00025
    assert summary.percentile_s(1.0) == float("inf")
