"""How far two samples are apart, and how often chance alone would take them as far.

Rule: nothing here knows a model, a window or a clock; rows come in as arrays, and finite: what is missing was taken
out before, and is tested by itself (`missing`).
Promise: each p-value counts the noise of both samples, the reference's as well as the window's, and where it is not
exact it is valid from the stated number of rows on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance

Vector: TypeAlias = NDArray[np.floating[Any]]
Matrix: TypeAlias = NDArray[np.floating[Any]]
Counts: TypeAlias = NDArray[np.int64]

LEAST_EXPECTED: Final = 5.0
"""Cochran's rule: a chi-square test holds where each cell expects as many; rarer categories are put together."""
EXACT_BELOW: Final = 100
"""Smaller samples get the exact Kolmogorov-Smirnov distribution; from here on the asymptotic one is as good."""
FREQUENCIES: Final = 8
"""Of the multivariate test, each with a sine and a cosine. Chwialkowski et al. (2015) find that a handful do."""
LEAST_ROWS_A_DIMENSION: Final = 4
"""Rows of the smaller sample for each dimension of the multivariate test; with fewer it says nothing."""


@dataclass(frozen=True, slots=True)
class Score:
    """A distance, and the probability of one at least as large between two samples of one and the same world."""

    value: float
    p_value: float


NOTHING: Final = Score(0.0, 1.0)
"""What is said where there is too little to say anything."""


def kolmogorov_smirnov(reference: Vector, window: Vector) -> Score:
    """Largest distance between the two cumulative distributions. With ties the p-value errs towards no alarm.

    The same as `scipy.stats.ks_2samp`, whose checks cost several times what the work does: a look takes one for each
    column.
    """
    n, m = len(reference), len(window)
    if not (n and m):
        return NOTHING
    if min(n, m) < EXACT_BELOW:
        found: Any = stats.ks_2samp(reference, window, method="exact")
        return Score(float(found.statistic), float(found.pvalue))
    # Stable sorting takes next to no time for the reference, which comes sorted.
    one, other = np.sort(reference, kind="stable"), np.sort(window)
    before = np.searchsorted(one, other, side="right") / n, np.searchsorted(one, other, side="left") / n
    now = np.searchsorted(other, other, side="right") / m, np.searchsorted(other, other, side="left") / m
    apart = float(max(np.max(now[0] - before[0]), np.max(before[1] - now[1])))
    return Score(apart, float(stats.kstwo.sf(apart, round(n * m / (n + m)))))


def wasserstein(reference: Vector, window: Vector) -> float:
    """Earth mover's distance, in standard deviations of the reference; in plain units where that has none."""
    if not (len(reference) and len(window)):
        return 0.0
    spread = float(reference.std()) or 1.0
    return float(stats.wasserstein_distance(reference, window)) / spread


def lower(reference: Vector, window: Vector) -> Score:
    """How much lower the window's mean is; tested by ranks (Mann-Whitney), one-sided."""
    if not (len(reference) and len(window)):
        return NOTHING
    found: Any = stats.mannwhitneyu(window, reference, alternative="less", method="asymptotic")
    return Score(float(reference.mean() - window.mean()), _sound(found.pvalue))


def chi_square(reference: Counts, window: Counts) -> Score:
    """Pearson's statistic of the two rows of counts, rare categories put together.

    Where these are still rare together, which a category that was never seen before is, Fisher's exact test takes them,
    and the p-value is twice the smaller of the two (Bonferroni).
    """
    table = np.stack([reference, window])
    rows = table.sum(axis=1)
    if not rows.all():
        return NOTHING
    kept, rest = _rare(table)
    if kept.shape[1] + (rest.sum() > 0) < 2:
        return NOTHING
    if _expected_least(table, rest) >= LEAST_EXPECTED:
        kept, rest = np.column_stack([kept, rest]), np.zeros(2, np.int64)
    found: Any = stats.chi2_contingency(kept, correction=False) if kept.shape[1] > 1 else None
    value, p_value = (0.0, 1.0) if found is None else (float(found.statistic), float(found.pvalue))
    if not rest.any():
        return Score(value, p_value)
    odd: Any = stats.fisher_exact(np.column_stack([rest, rows - rest]))
    return Score(value, min(1.0, 2 * min(p_value, float(odd.pvalue))))


def missing(reference: tuple[int, int], window: tuple[int, int]) -> Score:
    """Difference of the shares of missing values, of (missing, rows) each; Fisher's exact test."""
    (gone, rows), (gone_now, rows_now) = reference, window
    if not (rows and rows_now) or gone + gone_now == 0:
        return NOTHING
    found: Any = stats.fisher_exact([[gone, rows - gone], [gone_now, rows_now - gone_now]])
    return Score(abs(gone_now / rows_now - gone / rows), float(found.pvalue))


def stability_index(reference: Counts, window: Counts) -> float:
    """PSI: the symmetric Kullback-Leibler divergence of the two distributions over the same bins, in nats.

    Half a count is added to each bin, so that empty ones stay finite.
    """
    return _symmetric_kl(_shares(reference), _shares(window))


def population_stability(reference: Counts, window: Counts) -> Score:
    """PSI as a test: without drift, PSI / (1/n + 1/m) is chi-square with bins - 1 degrees (Yurdakul 2018)."""
    return _divergence(reference, window, _symmetric_kl, scale=1.0)


def jensen_shannon(reference: Counts, window: Counts) -> Score:
    """Jensen-Shannon divergence over the same bins, in nats, at most ln 2; 8 / (1/n + 1/m) times it is chi-square."""
    return _divergence(reference, window, lambda p, q: float(distance.jensenshannon(p, q)) ** 2, scale=8.0)


def permutation(
    distance_of: Callable[[Vector, Vector], float], reference: Vector, window: Vector, times: int, seed: int = 0
) -> Score:
    """Any distance, with its p-value from as many random ways to divide all rows in two; never below 1/(times + 1)."""
    random = np.random.default_rng(seed)
    found = distance_of(reference, window)
    together = np.concatenate([reference, window])
    as_far = 0
    for _ in range(times):
        random.shuffle(together)
        as_far += distance_of(together[: len(reference)], together[len(reference) :]) >= found
    return Score(found, (1 + as_far) / (1 + times))


@dataclass(frozen=True, slots=True)
class Waves:
    """Random Fourier features of rows: what the multivariate test compares.

    The mean difference of these features is a maximum mean discrepancy with a Gaussian kernel whose width is the
    median distance of the reference's rows (Rahimi and Recht 2007).
    """

    centre: Vector
    scale: Vector
    frequencies: Matrix
    """Columns by frequencies."""

    @classmethod
    def over(cls, reference: Matrix, frequencies: int = FREQUENCIES, seed: int = 0) -> Waves:
        """Features that suit these rows."""
        centre, scale = reference.mean(axis=0), reference.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        some = ((reference - centre) / scale)[:: max(1, len(reference) // 256)]
        width = float(np.median(distance.pdist(some))) if len(some) > 1 else 1.0
        drawn = np.random.default_rng(seed).standard_normal((reference.shape[1], frequencies))
        return cls(centre, scale, drawn / (width or 1.0))

    def of(self, rows: Matrix) -> Matrix:
        """Cosines and sines, rows first."""
        angles = ((rows - self.centre) / self.scale) @ self.frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / math.sqrt(self.frequencies.shape[1])


def mean_discrepancy(reference: Matrix, window: Matrix) -> Score:
    """Squared MMD of two samples of `Waves` features; p-value from Hotelling's T-squared of their means.

    This is the smooth characteristic function test of Chwialkowski et al. (2015): a difference anywhere in the joint
    distribution is a difference of means here, and means of bounded features are normal from a few hundred rows on.
    """
    n, m, width = len(reference), len(window), reference.shape[1]
    if min(n, m) < LEAST_ROWS_A_DIMENSION * width:
        return NOTHING
    apart = reference.mean(axis=0) - window.mean(axis=0)
    pooled = (n * np.cov(reference.T, bias=True) + m * np.cov(window.T, bias=True)) / (n + m - 2)
    # Keeps rows that hardly vary from dividing by nothing; it can only make the statistic smaller.
    ridge = 1e-9 + 1e-6 * np.trace(pooled) / width
    squared = n * m / (n + m) * float(apart @ np.linalg.solve(pooled + ridge * np.eye(width), apart))
    f = (n + m - width - 1) / ((n + m - 2) * width) * squared
    return Score(float(apart @ apart), float(stats.f.sf(f, width, n + m - width - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of many tests made comparable to the level of one (Holm 1979), whatever their dependence."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [1.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def calibration_error(confidences: Vector, correct: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width in (0, 1].

    0 where answers given with confidence c are right in a share c of the cases; NaN without any. Naeini et al. (2015).
    """
    if not len(confidences):
        return math.nan
    at = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.abs(np.bincount(at, weights=confidences - correct, minlength=bins))
    return float(gaps.sum() / len(confidences))


def _sound(p_value: float) -> float:
    """1 for the NaN of a test that has nothing to tell apart: all values are the same."""
    return 1.0 if math.isnan(p_value) else float(p_value)


def _shares(counts: Counts) -> Vector:
    shares: Vector = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return shares


def _symmetric_kl(p: Vector, q: Vector) -> float:
    return float(np.sum((p - q) * np.log(p / q)))


def _divergence(reference: Counts, window: Counts, of: Callable[[Vector, Vector], float], scale: float) -> Score:
    n, m, bins = int(reference.sum()), int(window.sum()), len(reference)
    if bins < 2 or not (n and m):
        return NOTHING
    value = of(_shares(reference), _shares(window))
    merged = _merged(np.stack([reference, window]))
    used = merged.shape[1]
    if used < 2:
        return Score(value, 1.0)
    tested = of(_shares(merged[0]), _shares(merged[1]))
    return Score(value, float(stats.chi2.sf(scale * tested / (1 / n + 1 / m), used - 1)))


def _rare(table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The columns that expect enough in both rows, and the sum of all others.

    Which are rare is read off both rows together, so that the choice does not favour either.
    """
    share = table.sum(axis=1).min() / max(1, table.sum())
    rare = table.sum(axis=0) * share < LEAST_EXPECTED
    return table[:, ~rare], table[:, rare].sum(axis=1)


def _expected_least(table: NDArray[np.int64], column: NDArray[np.int64]) -> float:
    """What the smaller sample is expected to have of this column."""
    return float(column.sum() * table.sum(axis=1).min() / max(1, table.sum()))


def _merged(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """The table with its rare columns put together, and, if they are still rare, with the rarest of the rest."""
    kept, rest = _rare(table)
    if not rest.any():
        return kept
    if _expected_least(table, rest) < LEAST_EXPECTED and kept.shape[1]:
        kept[:, np.argmin(kept.sum(axis=0))] += rest
        return kept
    return np.column_stack([kept, rest])
