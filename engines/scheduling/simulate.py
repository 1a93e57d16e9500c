"""Virtual time for schedulers: the very objects that serve, driven by made-up arrivals and executions.

Rule: pure and deterministic; the same arrivals, seeds and schedulers give the same outcome.
The driver here does what `engines.local` does: offer, then `take` while an engine is idle, `expire` when the
scheduler's alarm rings, `learn` when an execution ends.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from engines.errors import InferError
from engines.scheduling.arrivals import Arrival
from engines.scheduling.policy import Scheduler
from engines.scheduling.report import Batch, BatchReport, Pending, Turn

Seconds: TypeAlias = Callable[[int, float], float]
"""Execution time by padded rows and the time it starts."""

_ROUNDING: Final = 1e-9


@dataclass(slots=True, eq=False)
class Station:
    """One scheduler with its engines. Models that share it are told apart by their requests' key."""

    scheduler: Scheduler
    seconds: Seconds
    engines: int = 1
    idle: int = field(init=False)
    alarm: float = field(init=False, default=math.inf)

    def __post_init__(self) -> None:
        self.idle = self.engines


@dataclass(slots=True)
class ClassOutcome:
    """What became of the requests with one time to their deadline."""

    offered: int = 0
    met: int = 0
    late: int = 0
    latencies: list[float] = field(default_factory=list)
    """Of those met, in seconds."""

    @property
    def attainment(self) -> float:
        """Share that was met in time."""
        return self.met / self.offered if self.offered else 1.0


@dataclass(slots=True)
class Outcome:
    """One simulation. Without a deadline every answer is in time."""

    classes: dict[float, ClassOutcome] = field(default_factory=dict)
    """By seconds from arrival to deadline."""
    tenants: dict[str, ClassOutcome] = field(default_factory=dict)
    batch_rows: Counter[int] = field(default_factory=Counter)
    """Batches by rows."""
    rows: int = 0
    """Executed, padding not counted."""
    rows_in_vain: int = 0
    """Executed for answers that came too late."""
    rows_met: int = 0
    busy_s: float = 0.0
    ended: float = 0.0

    @property
    def offered(self) -> int:
        """Requests that came."""
        return sum(one.offered for one in self.classes.values())

    @property
    def met(self) -> int:
        """Requests answered in time."""
        return sum(one.met for one in self.classes.values())

    @property
    def goodput(self) -> float:
        """Share of all requests that was answered in time."""
        return self.met / max(1, self.offered)

    @property
    def waste(self) -> float:
        """Share of the executed rows that was executed in vain."""
        return self.rows_in_vain / max(1, self.rows)

    @property
    def mean_rows(self) -> float:
        """Rows in an average batch."""
        return self.rows / max(1, sum(self.batch_rows.values()))

    def latency(self, share: float) -> float:
        """Quantile of the seconds that those met in time took; not a number when there are none."""
        values = sorted(value for one in self.classes.values() for value in one.latencies)
        return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


class Simulation:
    """One run. Make it, `run` it once."""

    def __init__(
        self, stations: Sequence[Station], *, jitter: float = 0.0, seed: int = 0, station_of: Sequence[int] = ()
    ) -> None:
        """Stations in the order of the models; `jitter`: executions take (1 + |normal(0, jitter)|) times as long.

        `station_of` maps models to stations where that is not one to one.
        """
        self._stations = stations
        self._station_of = station_of or range(len(stations))
        self._jitter = jitter
        self._rng = random.Random(seed)  # noqa: S311  (a simulation must be repeatable)
        self._events: list[tuple[float, int, Station, Any]] = []
        self._serial = 0
        self._now = 0.0
        self._to_pump: list[Station] = []
        self.outcome = Outcome()

    def wake(self, station: Station) -> None:
        """Have the station asked again at this very time; what an arbiter calls."""
        if station not in self._to_pump:
            self._to_pump.append(station)

    def run(self, arrivals: Iterable[Arrival], progress: Callable[[int], None] = lambda _: None) -> Outcome:
        """Play all arrivals, which must be in order of time, and let the queues run dry."""
        events = self._events
        for number, arrival in enumerate(arrivals):
            while events and events[0][0] <= arrival.at:
                self._step()
            self._now = arrival.at
            self._arrive(arrival)
            if number % 1000 == 999:
                progress(1000)
        while events:
            self._step()
        self.outcome.ended = self._now
        return self.outcome

    def _arrive(self, arrival: Arrival) -> None:
        station = self._stations[self._station_of[arrival.model]]
        deadline = self._now + arrival.left_s
        pending = Pending(
            rows=arrival.rows,
            arrived=self._now,
            deadline=deadline,
            due=deadline,
            level=arrival.level,
            key=arrival.model,
            tenant=arrival.tenant,
            waiter=arrival,
        )
        for one in self._accounts(arrival):
            one.offered += 1
        try:
            station.scheduler.offer(pending, self._now)
        except InferError:
            return
        if station.idle:
            self.wake(station)
            self._pump()
        else:
            self._ring(station, station.scheduler.next_expiry())

    def _step(self) -> None:
        self._now, _, station, ended = heapq.heappop(self._events)
        if ended is None:
            if self._now == station.alarm:
                station.alarm = math.inf
                station.scheduler.expire(self._now) if not station.idle else self.wake(station)
                self._ring(station, station.scheduler.next_expiry())
        else:
            self._finish(station, *ended)
        self._pump()

    def _pump(self) -> None:
        while self._to_pump:
            station = self._to_pump.pop(0)
            turn = Turn()
            while station.idle and (turn := station.scheduler.take(self._now)).batch is not None:
                self._start(station, turn.batch)
            self._ring(station, min(turn.wake_at, station.scheduler.next_expiry()))

    def _ring(self, station: Station, when: float) -> None:
        if when < station.alarm:
            station.alarm = max(when, self._now)
            self._push(station.alarm, station, None)

    def _start(self, station: Station, batch: Batch) -> None:
        station.idle -= 1
        seconds = station.seconds(batch.padded_rows, self._now)
        if self._jitter:
            seconds *= 1.0 + abs(self._rng.gauss(0.0, self._jitter))
        self.outcome.busy_s += seconds
        self._push(self._now + seconds, station, (batch, self._now))

    def _push(self, when: float, station: Station, ended: tuple[Batch, float] | None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, station, ended))

    def _finish(self, station: Station, batch: Batch, started: float) -> None:
        station.idle += 1
        outcome = self.outcome
        outcome.batch_rows[batch.rows] += 1
        outcome.rows += batch.rows
        for member in batch.members:
            in_time = self._now <= member.deadline + _ROUNDING
            if in_time:
                outcome.rows_met += member.rows
            else:
                outcome.rows_in_vain += member.rows
            for one in self._accounts(member.waiter):
                if in_time:
                    one.met += 1
                    one.latencies.append(self._now - member.arrived)
                else:
                    one.late += 1
        station.scheduler.learn(_report(batch, started, self._now))
        self.wake(station)

    def _accounts(self, arrival: Arrival) -> Iterable[ClassOutcome]:
        outcome = self.outcome
        yield outcome.classes.setdefault(arrival.left_s, ClassOutcome())
        if arrival.tenant:
            yield outcome.tenants.setdefault(arrival.tenant, ClassOutcome())


def _report(batch: Batch, started: float, finished: float) -> BatchReport:
    return BatchReport(
        model="simulated",
        version=1,
        device="simulated",
        rows=batch.rows,
        padded_rows=batch.padded_rows,
        closed_by=batch.closed_by,
        opened=min(member.arrived for member in batch.members),
        started=started,
        finished=finished,
        gather_s=0.0,
        execute_s=finished - started,
        scatter_s=0.0,
        number=batch.number,
    )
