"""Metrics of the process around the models: the server's state, its repository, its event loop, its machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client.core import Metric

from engines.repository.lifecycle import State
from engines.repository.manager import RepositoryStatistics
from engines.repository.model import UNLOADED
from server.telemetry.families import MODEL, Series, counter, counts, gauge, histogram
from server.telemetry.histogram import SECONDS, Histogram

LAG_INTERVAL_S: Final = 0.1
"""Ten looks a second see every stall that a caller would notice, and cost nothing to speak of."""
MOST_NAMES: Final = 1000
"""Models whose failures are counted each for itself; a repository does not have more."""


class LoopLag:
    """How late the event loop runs what is due. Used from that loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._observed = Histogram(SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at the clock in regular intervals from now on."""
        self._wait(asyncio.get_running_loop())

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def metrics(self) -> Iterator[Metric]:
        """A source for the exporter."""
        observed = self._observed.copy()
        text = "Seconds that the event loop ran something later than it was due."
        return iter([histogram("kairos_event_loop_lag_seconds", text, [((), observed)])])

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(LAG_INTERVAL_S, self._look, loop, self._clock() + LAG_INTERVAL_S)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._observed.add(max(0.0, self._clock() - due))
        self._wait(loop)


class LoadFailures:
    """Counts versions that could not be brought up. A listener of the model manager."""

    def __init__(self) -> None:
        self.by_model: dict[str, int] = {}
        self.failing: dict[tuple[str, int], bool] = {}
        """Whether the last that was heard of a version is that it failed. Version 0 is the model as a whole."""

    def __call__(self, name: str, version: int, state: State, reason: str) -> None:
        """See engines.repository.model.Listener."""
        failed = bool(reason) and reason != UNLOADED and state is not State.UNLOADING
        if name in self.by_model or len(self.by_model) < MOST_NAMES:
            self.by_model[name] = self.by_model.get(name, 0) + failed
            self.failing[name, version] = failed


def server_metrics(
    version: str, repository: RepositoryStatistics, failures: LoadFailures, *, serving: bool
) -> Iterator[Metric]:
    """Whether the server wants traffic, and the state of every version that is known."""
    known = {(row.name, row.version) for row in repository.versions}
    failed = counts(failures.by_model)
    failing: list[Series] = [
        ((name, str(number)), float(bad))
        for (name, number), bad in failures.failing.items()
        if number == 0 or (name, number) in known
    ]
    return _server_families(version, repository, failed, failing, serving=serving)


def _server_families(
    version: str, repository: RepositoryStatistics, failed: list[Series], failing: list[Series], *, serving: bool
) -> Iterator[Metric]:
    yield counter("kairos_model_load_failures", "Loads that failed.", failed, ("model",))
    yield gauge("kairos_model_failed", "1 for versions whose last load failed.", failing, MODEL)
    yield gauge("kairos_info", "Always 1; the version is a label.", [((version,), 1.0)], ("release",))
    yield gauge("kairos_serving", "1 while the server wants traffic, 0 while it starts or drains.", [((), serving)])
    versions = repository.versions
    states = [
        ((row.name, str(row.version), state.value), float(row.state is state)) for row in versions for state in State
    ]
    yield gauge("kairos_model_state", "1 for the state that a version is in.", states, (*MODEL, "state"))
    loads = [((row.name, str(row.version)), row.load_s) for row in versions if row.load_s > 0.0]
    yield gauge("kairos_model_load_seconds", "Seconds that the last successful load took.", loads, MODEL)
    borrowers = [((row.name, str(row.version)), row.borrowers) for row in versions]
    yield gauge("kairos_model_borrowers", "Calls that keep a version alive.", borrowers, MODEL)
    draining = repository.draining
    yield gauge("kairos_versions_draining", "Replaced or unloaded versions not closed yet.", [((), draining)])


def host_metrics(proc: Path = Path("/proc")) -> Iterator[Metric]:
    """CPU time and memory of the whole machine, from /proc; nothing where there is none."""
    try:
        cpu = [int(field) for field in (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        memory = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        total, available = (int(memory[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError, IndexError):
        return
    ticks = os.sysconf("SC_CLK_TCK")
    idle = cpu[3] + cpu[4]  # idle, and waiting for disks
    yield counter("kairos_host_cpu_seconds", "CPU seconds that the machine had.", [((), sum(cpu) / ticks)])
    yield counter("kairos_host_cpu_busy_seconds", "Of these, seconds in use.", [((), (sum(cpu) - idle) / ticks)])
    yield gauge("kairos_host_memory_total_bytes", "Memory of the machine.", [((), total)])
    yield gauge("kairos_host_memory_used_bytes", "Of this, memory in use.", [((), total - available)])
