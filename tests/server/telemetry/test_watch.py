"""Metrics of the watch."""

from __future__ import annotations

from prometheus_client.core import Metric

from server.telemetry.watch import WatchedVersion, watch_metrics
from server.watch.monitor import Monitor
from server.watch.settings import WatchOptions
from server.watch.tap import TapStatistics
from tests.support.watching import SPEC, observation, reference, world

TAP = TapStatistics(answered=1000, sampled=90, dropped=3, waiting=1, waiting_bytes=64, sink_errors=2)


def values(metrics: list[Metric]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("signal") or sample.labels.get("result", "")): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_every_signal_has_its_series() -> None:
    monitor = Monitor(SPEC, WatchOptions(rate=1.0, window_rows=100, look_s=0.0), reference(world(1, 500)))
    monitor.observe([observation(world(2, 100) + 3)])
    found = values(list(watch_metrics([WatchedVersion("m", 1, TAP, monitor.statistics())])))
    assert found["kairos_watch_requests_total", "sampled"] == 90
    assert found["kairos_watch_requests_total", "dropped"] == 3
    assert found["kairos_watch_sink_errors_total", ""] == 2
    assert found["kairos_watch_waiting_bytes", ""] == 64
    assert found["kairos_watch_alarm", "drift"] == found["kairos_watch_alarm", "drift.x"] == 1
    assert found["kairos_watch_value", "drift"] > 1
    assert 0 < found["kairos_watch_value", "confidence"] <= 1
    assert found["kairos_watch_reference_rows", ""] == 500
    assert found["kairos_watch_looks_total", ""] == 1
    assert ("kairos_watch_alarm", "volume") not in found  # which is not tested


def test_a_tap_without_a_monitor_has_only_its_own() -> None:
    found = values(list(watch_metrics([WatchedVersion("m", 1, TAP, None)])))
    assert found["kairos_watch_requests_total", "sampled"] == 90
    assert not any(name == "kairos_watch_value" for name, _ in found)
