"""How long look-ups take: a histogram that costs one bisection per observation."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Final

BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
"""Upper bounds of the buckets in seconds, around the 2 ms that a look-up may take; the last bucket has none."""


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """A snapshot: `buckets` are counts, not cumulated, one more than there are bounds."""

    count: int
    total_s: float
    buckets: tuple[int, ...]
    bounds_s: tuple[float, ...] = BOUNDS_S

    def percentile_s(self, share: float) -> float:
        """Upper bound of the bucket in which this share of the observations ends; 0 when there are none."""
        rest = share * self.count
        for bound, count in zip((*BOUNDS_S, float("inf")), self.buckets, strict=True):
            rest -= count
            if count and rest <= 0:
                return bound
        return 0.0


class Latencies:
    """Collects them."""

    def __init__(self) -> None:
        self._total_s = 0.0
        self._buckets = [0] * (len(BOUNDS_S) + 1)

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._total_s += seconds
        self._buckets[bisect.bisect_left(BOUNDS_S, seconds)] += 1

    def summary(self) -> LatencySummary:
        """A snapshot."""
        return LatencySummary(sum(self._buckets), self._total_s, tuple(self._buckets))
