"""Histograms that cost one bisection an observation, and are made presentable only when somebody asks.

Precedent: the buckets of Prometheus (`le`, upper bounds included), 1-2-5 steps as on an oscilloscope.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Make it with these upper bounds, ascending; one more bucket takes what exceeds the last."""
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        """The last traced observation of each bucket, by its index."""

    @property
    def bounds(self) -> Sequence[float]:
        """Upper bounds, the infinite one left out."""
        return self._bounds

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    def add(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def add_times(self, value: float, times: int) -> None:
        """Count `times` equal observations."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def mark(self, exemplar: Exemplar) -> None:
        """Remember which trace an observation, counted by `add`, belongs to."""
        self.exemplars[bisect_left(self._bounds, exemplar.value)] = exemplar

    def copy(self) -> Histogram:
        """A snapshot."""
        twin = Histogram.__new__(Histogram)
        twin._bounds = self._bounds
        twin.counts = self.counts.copy()
        twin.total = self.total
        twin.exemplars = self.exemplars.copy()
        return twin
