"""Ready worlds for the simulator: policies by name, and cases with all that they need."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from engines.scheduling.arbiter import Arbiter
from engines.scheduling.arrivals import Arrival, Bursts, Mix, bursty, poisson
from engines.scheduling.drain import DrainQueue
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import DeadlineOptions, Limits, Scheduler
from engines.scheduling.rivals import Clockwork, EdfSlack, Fifo, FifoReject, Nexus, Rival
from engines.scheduling.simulate import Outcome, Simulation, Station

DEADLINE: Final = "deadline"
RIVALS: Final[Mapping[str, Callable[[Limits, CostModel], Rival]]] = {
    "fifo": Fifo,
    "fifo-reject": FifoReject,
    "edf-slack": EdfSlack,
    "clockwork": Clockwork,
    "nexus": Nexus,
}
POLICIES: Final = (DEADLINE, *RIVALS)

_MEAN_OF_NORMAL: Final = math.sqrt(2.0 / math.pi)
"""Mean of |normal(0, 1)|."""
_BURST: Final = 10.0
"""Full executions in a mean burst; in between it is three times as long."""
_FIFO_WAIT_S: Final = 0.001
"""What FIFO servers are usually told to wait for company."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Execution time `start_s + row_s * rows`."""

    start_s: float
    row_s: float

    def __call__(self, rows: int) -> float:
        return self.start_s + self.row_s * rows


@dataclass(frozen=True, slots=True)
class Measured:
    """Execution time by rows as measured, linear in between and beyond."""

    points: Sequence[tuple[int, float]]
    """At least one pair of rows and seconds, by rows."""

    def __call__(self, rows: int) -> float:
        points = self.points
        if len(points) == 1:
            return points[0][1]
        at = min(max(1, bisect_left(points, (rows,))), len(points) - 1)
        (low, fast), (high, slow) = points[at - 1], points[at]
        return max(fast + (slow - fast) * (rows - low) / (high - low), min(fast, slow) * min(1.0, rows / low))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A device with one or more alike models, their costs, and what their callers ask."""

    seconds: Callable[[int], float]
    """True execution time by padded rows, before jitter."""
    limits: Limits
    mix: Mix
    engines: int = 1
    """Of each model, or of all models together when several share the device."""
    jitter: float = 0.0
    seed_error: float = 1.0
    """The cost models start from the true times multiplied by this."""
    options: DeadlineOptions = field(default_factory=lambda: DeadlineOptions(reply_s=0.0))

    @property
    def capacity(self) -> float:
        """Rows a second that the engines can do at the best batch size, jitter included."""
        sizes = self.limits.allowed_rows or range(1, self.limits.max_rows + 1)
        best = max(rows / self.seconds(rows) for rows in sizes)
        return self.engines * best / (1.0 + self.jitter * _MEAN_OF_NORMAL)

    def cost(self) -> CostModel:
        """A freshly seeded cost model."""
        cost = CostModel(self.limits.max_rows, self.limits.allowed_rows, quantile=self.options.quantile)
        cost.seed({rows: self.seconds(rows) * self.seed_error for rows in cost.sizes})
        return cost

    def arrivals(self, load: float, count: int, *, bursts: bool = False, seed: int = 0) -> list[Arrival]:
        """`count` requests at `load` times the capacity."""
        rng = random.Random(seed)  # noqa: S311  (a simulation must be repeatable)
        shares = self.mix.rows
        mean = sum(rows * share for rows, share in shares.items()) / sum(shares.values())
        rate = load * self.capacity / mean
        high_s = _BURST * self.seconds(self.limits.max_rows)
        shape = Bursts(high_s=high_s, low_s=3.0 * high_s)
        times = bursty(rate, count, rng, shape) if bursts else poisson(rate, count, rng)
        return list(self.mix.draw(times, rng))

    def play(
        self,
        policy: str,
        arrivals: Sequence[Arrival],
        *,
        seed: int = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Outcome:
        """What a policy makes of these requests."""
        if policy == DEADLINE and self.mix.models > 1:
            return self._play_shared(arrivals, seed, progress)
        station = Station(self._scheduler(policy), lambda rows, _: self.seconds(rows), self.engines)
        return Simulation(
            [station], jitter=self.jitter, seed=seed, station_of=[0] * self.mix.models
        ).run(arrivals, progress)  # fmt: skip

    def _scheduler(self, policy: str) -> Scheduler:
        if policy == DEADLINE:
            return DrainQueue(self.limits, self.cost(), self.options, engines=self.engines)
        limits = replace(self.limits, max_wait_s=_FIFO_WAIT_S) if policy.startswith("fifo") else self.limits
        return RIVALS[policy](limits, self.cost())

    def _play_shared(self, arrivals: Sequence[Arrival], seed: int, progress: Callable[[int], None]) -> Outcome:
        """Each model has its own queue; an arbiter says whose turn it is."""
        arbiter = Arbiter(capacity=self.engines)
        queues = [
            DrainQueue(self.limits, self.cost(), self.options, engines=self.engines) for _ in range(self.mix.models)
        ]
        stations = [Station(queue, lambda rows, _: self.seconds(rows), self.engines) for queue in queues]
        simulation = Simulation(stations, jitter=self.jitter, seed=seed)
        for queue, station in zip(queues, stations, strict=True):
            arbiter.join(queue, lambda station=station: simulation.wake(station))  # type: ignore[misc]
        return simulation.run(arrivals, progress)


def _case(start_ms: float, row_ms: float, max_rows: int, slos_ms: Sequence[float], models: int = 1) -> Case:
    mix = Mix(slos=dict.fromkeys((slo / 1e3 for slo in slos_ms), 1.0), rows={1: 1.0}, models=models)
    return Case(seconds=Affine(start_ms / 1e3, row_ms / 1e3), limits=Limits(max_rows=max_rows), mix=mix)


CASES: Final[Mapping[str, Case]] = {
    "small": _case(0.6, 0.0103, 256, (5, 15, 50)),
    "large": _case(2.0, 1.5, 16, (20, 50, 100)),
    "alike": _case(2.0, 1.5, 16, (50,)),
    "shared": _case(2.0, 0.05, 64, (20, 50, 100), models=4),
}
"""A light model on a GPU; a heavy one, where large batches bring little; the same when all callers have the same time;
four models on one device."""
