"""Which range of a tensor's values INT8 should cover: four answers from one histogram.

Promise: zero lies in every range, no range is wider than the values seen, and none is empty.
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.build.histogram import Histogram

LEVELS: Final = 128
"""Steps of a signed byte on one side of zero."""
PERCENTILE: Final = 99.99
"""Share of the values, in per cent, that the percentile method keeps."""
CANDIDATES: Final = 128
"""Thresholds that the entropy and MSE methods try."""
_TINY: Final = 1e-8


class Method(enum.Enum):
    """How a range is chosen."""

    MIN_MAX = "minmax"
    """All that was seen: nothing is clipped, outliers cost resolution."""
    ENTROPY = "entropy"
    """The threshold that loses the least information: Kullback-Leibler divergence, as in TensorRT's calibrator
    (Migacz, "8-bit inference with TensorRT", GTC 2017)."""
    PERCENTILE = "percentile"
    """All but the outermost PERCENTILE remainder."""
    MSE = "mse"
    """The threshold with the least mean squared error of rounding and clipping together."""


def range_of(histogram: Histogram, method: Method) -> tuple[float, float]:
    """The lowest and the highest value that INT8 should still tell apart from its neighbours."""
    if method is Method.MIN_MAX or histogram.low == histogram.high:
        threshold = max(-histogram.low, histogram.high)
    elif method is Method.PERCENTILE:
        threshold = _percentile(histogram)
    elif method is Method.ENTROPY:
        threshold = _entropy(histogram)
    else:
        threshold = _mse(histogram)
    low, high = max(histogram.low, -threshold), min(histogram.high, threshold)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high - low > _TINY else (low, low + _TINY)


def _percentile(histogram: Histogram) -> float:
    counts = histogram.magnitudes()
    reached = np.cumsum(counts) >= counts.sum() * (PERCENTILE / 100)
    return float(np.argmax(reached) + 1) * histogram.limit / len(counts)


def _thresholds(histogram: Histogram) -> NDArray[np.int64]:
    """Candidates as numbers of magnitude bins, from LEVELS bins to the last that holds anything."""
    used = int(np.flatnonzero(histogram.magnitudes())[-1]) + 1
    return np.unique(np.linspace(min(LEVELS, used), used, CANDIDATES).astype(np.int64))


def _entropy(histogram: Histogram) -> float:
    counts = histogram.magnitudes().astype(np.float64)
    counts[0] = counts[1]  # exact zeros, which are plenty after a ReLU and cost nothing, would drown the rest
    if not counts.any():
        return max(-histogram.low, histogram.high)
    best = min(_thresholds(histogram), key=lambda bins: _divergence(counts, int(bins)))
    return float(best) * histogram.limit / len(counts)


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """KL divergence of the first `bins` bins, the rest clipped into the last, from their LEVELS-level version."""
    inside = counts[:bins]
    reference = inside.copy()
    reference[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    filled = inside > 0
    totals = np.bincount(level, weights=inside, minlength=LEVELS)
    places = np.bincount(level, weights=filled, minlength=LEVELS)
    levels = np.divide(totals, places, out=np.zeros_like(totals), where=places > 0)
    coarse = np.where(filled, levels[level], 0.0)
    if not coarse.any():
        return np.inf
    p, q = reference / reference.sum(), coarse / coarse.sum()
    held = p > 0
    # What the coarse version rules out altogether is charged as if it held a sliver of its mass.
    return float(np.sum(p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))))


def _mse(histogram: Histogram) -> float:
    counts = histogram.magnitudes().astype(np.float64)
    width = histogram.limit / len(counts)
    centres = (np.arange(len(counts)) + 0.5) * width

    def error(bins: np.int64) -> float:
        step = float(bins) * width / (LEVELS - 1)
        rounded = np.minimum(np.round(centres / step), LEVELS - 1) * step
        return float(np.sum(counts * (centres - rounded) ** 2))

    return float(min(_thresholds(histogram), key=error)) * width
