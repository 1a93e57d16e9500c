"""Histograms that cost one bisection an observation, or less, and are made presentable only when somebody asks.

Precedent: the buckets of Prometheus (`le`, upper bounds included), 1-2-5 steps as on an oscilloscope.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

SECONDS: Final = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
"""From a tenth of a millisecond, which a small model takes, to a minute, which no caller waits."""
SLACK_S: Final = (
    *(-10.0, -1.0, -0.1, -0.01, -0.001, 0.0),
    *(1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0),
)
"""Time left until a deadline; negative when it has passed."""
ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation of a bucket that has a trace."""

    trace_id: str
    value: float
    at: float
    """Seconds since the epoch."""


class Histogram:
    """Observations by bucket, and their sum. One thread adds and reads."""

    __slots__ = ("_bounds", "_counts", "_noted", "_total", "exemplars", "note")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Make it with these upper bounds, ascending; one more bucket takes what exceeds the last."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._noted: list[float] = []
        self.note: Callable[[float], None] = self._noted.append
        """Count one observation later, at a fraction of what `add` costs. Whoever calls it calls `settle` in time."""
        self.exemplars: dict[int, Exemplar] = {}
        """The last traced observation of each bucket, by its index."""

    @property
    def bounds(self) -> Sequence[float]:
        """Upper bounds, the infinite one left out."""
        return self._bounds

    @property
    def counts(self) -> Sequence[int]:
        """Observations by bucket."""
        self.settle()
        return self._counts

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    @property
    def total(self) -> float:
        """Their sum."""
        self.settle()
        return self._total

    def settle(self) -> None:
        """Count what was noted."""
        noted = self._noted
        if not noted:
            return
        places = np.searchsorted(self._bounds, noted)
        for place, count in enumerate(np.bincount(places).tolist()):
            self._counts[place] += count
        self._total += sum(noted)
        noted.clear()

    def add(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def add_times(self, value: float, times: int) -> None:
        """Count `times` equal observations."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def mark(self, exemplar: Exemplar) -> None:
        """Remember which trace an observation, counted by `add`, belongs to."""
        self.exemplars[bisect_left(self._bounds, exemplar.value)] = exemplar

    def copy(self) -> Histogram:
        """A snapshot."""
        self.settle()
        twin = Histogram(self._bounds)
        twin._counts = self._counts.copy()
        twin._total = self._total
        twin.exemplars = self.exemplars.copy()
        return twin
