"""Metrics of the process and its helpers: loop lag, repository, machine, transport, cache, GPUs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.repository.lifecycle import State
from engines.repository.manager import RepositoryStatistics, VersionStatistics
from engines.repository.model import UNLOADED
from server.cache.breaker import State as BreakerState
from server.cache.cached import CacheStatistics
from server.cache.latency import Latencies
from server.cache.lookups import LookupStatistics
from server.cache.memory import MemoryStatistics
from server.cache.redis import RedisStatistics
from server.cache.store import StoreStatistics
from server.cache.writes import WriteStatistics
from server.telemetry.cache import cache_metrics
from server.telemetry.gpu import Gpus
from server.telemetry.process import LAG_INTERVAL_S, LoadFailures, LoopLag, host_metrics, server_metrics
from server.telemetry.transport import transport_metrics
from server.transport.http2.statistics import Statistics
from tests.support.telemetry import Clock, exposed


def test_lag_is_what_the_loop_runs_late_and_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    due: list[partial[None]] = []

    def call_later(delay: float, callback: Any, *arguments: Any) -> SimpleNamespace:
        assert delay == LAG_INTERVAL_S
        due.append(partial(callback, *arguments))
        return SimpleNamespace(cancel=due.clear)

    monkeypatch.setattr(
        "server.telemetry.process.asyncio.get_running_loop", lambda: SimpleNamespace(call_later=call_later)
    )
    lag = LoopLag(clock)
    lag.start()
    for advance in (LAG_INTERVAL_S + 0.03, LAG_INTERVAL_S - 0.001):
        clock.now += advance
        due.pop()()
    found = exposed(lag.metrics())
    lag.stop()
    assert not due
    assert found["kairos_event_loop_lag_seconds_count"] == 2
    assert found["kairos_event_loop_lag_seconds_sum"] == pytest.approx(0.03)


def repository(*versions: tuple[int, State]) -> RepositoryStatistics:
    return RepositoryStatistics(
        tuple(VersionStatistics("m", number, state, borrowers=1, load_s=2.5) for number, state in versions), draining=1
    )


def test_the_state_of_every_version() -> None:
    known = repository((1, State.READY), (2, State.LOADING))
    found = exposed(server_metrics("1.2", known, LoadFailures(), serving=True))
    assert found['kairos_info{release="1.2"}'] == 1
    assert found["kairos_serving"] == 1
    assert found['kairos_model_state{model="m",state="READY",version="1"}'] == 1
    assert found['kairos_model_state{model="m",state="READY",version="2"}'] == 0
    assert found['kairos_model_state{model="m",state="LOADING",version="2"}'] == 1
    assert found['kairos_model_load_seconds{model="m",version="1"}'] == 2.5
    assert found["kairos_versions_draining"] == 1


def test_failed_loads_are_counted_and_remembered_until_they_succeed() -> None:
    failures = LoadFailures()
    known = repository((1, State.READY), (2, State.UNAVAILABLE))

    def found() -> tuple[float, float]:
        metrics = exposed(server_metrics("1", known, failures, serving=False))
        failed = metrics.get('kairos_model_failed{model="m",version="2"}', -1.0)
        return metrics.get('kairos_model_load_failures_total{model="m"}', -1.0), failed

    assert found() == (-1, -1)
    failures("m", 2, State.LOADING, "")
    assert found() == (0, 0)
    failures("m", 2, State.UNAVAILABLE, "no such file")
    failures("m", 3, State.UNAVAILABLE, "gone since")
    assert found() == (2, 1)
    failures("m", 2, State.READY, "the new form is broken")
    assert found() == (3, 1)
    failures("m", 2, State.READY, "")
    failures("m", 2, State.UNAVAILABLE, UNLOADED)
    assert found() == (3, 0)


def test_versions_that_are_gone_are_not_reported_as_failed() -> None:
    failures = LoadFailures()
    failures("m", 9, State.UNAVAILABLE, "no such file")
    failures("n", 0, State.UNAVAILABLE, "no configuration")
    metrics = exposed(server_metrics("1", repository(), failures, serving=True))
    assert [name for name in metrics if name.startswith("kairos_model_failed")] == [
        'kairos_model_failed{model="n",version="0"}'
    ]


def test_the_machine_is_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\nHugePages_Total: 0\n")
    found = exposed(host_metrics(tmp_path))
    assert found["kairos_host_cpu_busy_seconds_total"] / found["kairos_host_cpu_seconds_total"] == pytest.approx(0.15)
    assert found["kairos_host_memory_total_bytes"] == 1024_000
    assert found["kairos_host_memory_used_bytes"] == 600 * 1024


def test_a_machine_without_proc_has_no_figures(tmp_path: Path) -> None:
    assert exposed(host_metrics(tmp_path)) == {}


def test_the_transport_is_read_field_by_field() -> None:
    numbers = dict.fromkeys(("connections", "streams", "calls", "queued_bytes", "buffered_bytes"), 3)
    counts = dict.fromkeys(
        ("connections_accepted", "calls_started", "calls_expired", "received_bytes", "sent_bytes"), 7
    )
    found = exposed(transport_metrics(Statistics(**numbers, **counts, resets={"CANCEL": 2}, connection_errors={})))
    assert found["kairos_connections"] == found["kairos_transport_queued_bytes"] == 3
    assert found["kairos_received_bytes_total"] == found["kairos_calls_expired_total"] == 7
    assert found['kairos_stream_resets_total{code="CANCEL"}'] == 2


def test_a_cache_is_read_level_by_level() -> None:
    model = CacheStatistics(
        memory_hits=5, redis_hits=4, misses=3, shared=2, bypassed=1, aside=0, failed=0, too_large=6, in_flight=0,
        hit_s=0.5, miss_s=0.25,
    )  # fmt: skip
    latencies = Latencies()
    for seconds in (0.0002, 0.0002, 0.9):
        latencies.observe(seconds)
    redis = RedisStatistics(
        lookups=LookupStatistics(
            found=1, absent=2, late=3, failed=4, skipped=5, trips=6, breaker=BreakerState.PROBING,
            latency=latencies.summary(),
        ),
        writes=WriteStatistics(written=1, failed=2, dropped=3, queued=4, queued_bytes=64, breaker=BreakerState.CLOSED),
        corrupted=1, expired=0, leases_awaited=0,
    )  # fmt: skip
    memory = MemoryStatistics(entries=2, size_bytes=100, limit_bytes=1000, evictions=1, expirations=0)
    found = exposed(cache_metrics([("m", 1, model)], StoreStatistics(memory=memory, redis=redis)))
    assert found['kairos_cache_requests_total{model="m",result="redis_hits",version="1"}'] == 4
    assert found['kairos_cache_hit_seconds_total{model="m",version="1"}'] == 0.5
    assert found['kairos_cache_too_large_total{model="m",version="1"}'] == 6
    assert found["kairos_cache_limit_bytes"] == 1000
    assert found['kairos_redis_lookups_total{result="late"}'] == 3
    assert found['kairos_redis_writes_total{result="dropped"}'] == 3
    assert found['kairos_redis_breaker_open{side="lookups"}'] == 1
    assert found['kairos_redis_breaker_open{side="writes"}'] == 0
    assert found['kairos_redis_lookup_seconds_bucket{le="0.00025"}'] == 2
    assert found['kairos_redis_lookup_seconds_bucket{le="+Inf"}'] == 3
    assert found["kairos_redis_lookup_seconds_sum"] == pytest.approx(0.9004)
    alone = exposed(cache_metrics([("m", 1, model)], StoreStatistics(memory=None, redis=None)))
    assert not any(name.startswith(("kairos_redis", "kairos_cache_bytes")) for name in alone)


class Nvml:
    """Two GPUs, of which the second does not count its energy."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=75)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=10, total=40)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 250_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:
        assert (kind, counter) == (1, 0)
        return 3

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, int, int]:
        return (1, 0, handle, 0)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if handle == 1:
            raise self.NVMLError("not supported")
        return 5_000


def test_gpus_are_read_in_base_units() -> None:
    found = exposed(Gpus(Nvml()).metrics())
    labels = 'gpu="0",gpu_uuid="GPU-0"'
    assert found[f"kairos_gpu_utilization_ratio{{{labels}}}"] == 0.75
    assert found[f"kairos_gpu_memory_used_bytes{{{labels}}}"] == 10
    assert found[f"kairos_gpu_power_watts{{{labels}}}"] == 250
    assert found[f"kairos_gpu_uncorrected_ecc_errors{{{labels}}}"] == 3
    assert found[f"kairos_gpu_needs_reset{{{labels}}}"] == 0
    assert found['kairos_gpu_needs_reset{gpu="1",gpu_uuid="GPU-1"}'] == 1
    assert found[f"kairos_gpu_energy_joules_total{{{labels}}}"] == 5
    assert 'kairos_gpu_energy_joules_total{gpu="1",gpu_uuid="GPU-1"}' not in found


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("server.telemetry.gpu.importlib.import_module", missing)
    assert Gpus.found() is None
