"""How the values of one tensor are distributed, kept in constant memory while they stream by.

Rule: the bins span [-limit, limit) and `limit` is a power of two, so that a histogram over the same values is the same
in whatever portions they came, and two limits differ by whole bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.tensor import Array

BINS: Final = 8192
"""At least 2048 bins on each side of zero hold the values, since `limit` is less than twice the largest: 16 for each
of the 128 steps of an INT8 number."""
_SMALLEST: Final = 2.0**-100


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(BINS, np.int64)


@dataclass(slots=True)
class Histogram:
    """Empty until the first `add`."""

    limit: float = _SMALLEST
    low: float = math.inf
    high: float = -math.inf
    counts: NDArray[np.int64] = field(default_factory=_no_counts)

    def add(self, values: Array) -> None:
        """Count the values. Raises ValueError for NaN and infinity."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("it has values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        while max(-low, high) >= self.limit:
            self._double()
        # The floor comes before the shift, which would round what is barely negative up to zero.
        bins = np.floor(values.astype(np.float64).ravel() * (BINS / 2 / self.limit)).astype(np.int64) + BINS // 2
        self.counts += np.bincount(bins, minlength=BINS)

    def _double(self) -> None:
        quarter = BINS // 4
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = _no_counts()
        self.counts[quarter:-quarter] = merged
        self.limit *= 2

    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of the absolute values, in BINS / 2 bins over [0, limit)."""
        half = BINS // 2
        return self.counts[half:] + self.counts[:half][::-1]


def pack(histograms: Mapping[str, Histogram]) -> dict[str, Array]:
    """As arrays, for one .npz file."""
    return {
        "names": np.array(list(histograms)),
        "bounds": np.array([(h.limit, h.low, h.high) for h in histograms.values()], np.float64).reshape(-1, 3),
        "counts": np.array([h.counts for h in histograms.values()], np.int64).reshape(-1, BINS),
    }


def unpack(arrays: Mapping[str, Array]) -> dict[str, Histogram]:
    """The inverse of `pack`."""
    return {
        str(name): Histogram(float(limit), float(low), float(high), counts.copy())
        for name, (limit, low, high), counts in zip(arrays["names"], arrays["bounds"], arrays["counts"], strict=True)
    }
