"""Spearman's rank correlation, how sure it is, and the expected calibration error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Z95: Final = 1.959963984540054
"""The normal distribution's 97.5 % point."""
MIN_PAIRS: Final = 5
"""Fewer say nothing: the interval of four pairs is the whole scale."""
BINS: Final = 15
"""Of equal width, as in Guo et al., On Calibration of Modern Neural Networks (2017)."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rho and its 95 % confidence interval; NaN where there is too little to say."""

    value: float
    low: float
    high: float
    samples: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0


def spearman(first: Floats, second: Floats) -> Correlation:
    """Of pairs; ties share their mean rank. The interval is Fisher's with the variance of Bonett and Wright (2000)."""
    n = len(first)
    if n < MIN_PAIRS:
        return Correlation(math.nan, math.nan, math.nan, n)
    one, other = (ranks - (n + 1) / 2 for ranks in (mean_ranks(first), mean_ranks(second)))
    spread = math.sqrt(float(one @ one) * float(other @ other))
    if spread == 0.0:  # one of them is constant
        return Correlation(math.nan, math.nan, math.nan, n)
    rho = max(-1.0, min(1.0, float(one @ other) / spread))
    if abs(rho) == 1.0:
        return Correlation(rho, rho, rho, n)
    half = _Z95 * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return Correlation(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), n)


def mean_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def calibration_error(confidence: Floats, correct: NDArray[Any]) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their counts; NaN of nothing."""
    if not len(confidence):
        return math.nan
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.abs(np.bincount(bins, correct, BINS) - np.bincount(bins, confidence, BINS))
    return float(gap.sum() / len(confidence))
