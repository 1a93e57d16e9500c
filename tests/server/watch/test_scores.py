"""Scores against scipy and against their definitions, and their false alarms."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics.pairwise import rbf_kernel

from server.watch import scores


def normal(seed: int, rows: int, shift: float = 0.0) -> scores.Vector:
    return np.random.default_rng(seed).normal(shift, 1, rows)


@pytest.mark.parametrize(("rows", "shift"), [(40, 0.0), (40, 1.0), (500, 0.0), (500, 0.2)])
def test_kolmogorov_smirnov_is_scipys(rows: int, shift: float) -> None:
    a, b = normal(1, 700), normal(2, rows, shift)
    theirs = stats.ks_2samp(a, b, method="exact" if rows < 100 else "asymp")
    assert scores.kolmogorov_smirnov(a, b) == scores.Score(theirs.statistic, theirs.pvalue)


def test_wasserstein_is_scipys_in_standard_deviations() -> None:
    a, b = normal(1, 300) * 5, normal(2, 200) * 5
    assert scores.wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a, b) / a.std())
    assert scores.wasserstein(np.ones(9), np.full(9, 3.0)) == 2.0


def test_chi_square_is_scipys() -> None:
    before, now = np.array([300, 150, 50]), np.array([60, 25, 40])
    theirs = stats.chi2_contingency([before, now], correction=False)
    found = scores.chi_square(before, now)
    assert (found.value, found.p_value) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))


def test_rare_categories_are_put_together() -> None:
    before, now = np.array([500, 440, 23, 12, 12, 13]), np.array([50, 35, 4, 4, 4, 3])
    together = stats.chi2_contingency([[500, 440, 60], [50, 35, 15]], correction=False)
    assert scores.chi_square(before, now).p_value == pytest.approx(together.pvalue)


def test_categories_that_are_rare_even_together_are_tested_exactly() -> None:
    before, now = np.array([500, 500, 0, 0]), np.array([48, 47, 3, 2])
    exact = stats.fisher_exact([[0, 5], [1000, 95]]).pvalue
    assert scores.chi_square(before, now).p_value == pytest.approx(2 * exact)
    alone = scores.chi_square(np.array([1000, 0]), np.array([95, 5]))
    assert alone.p_value == pytest.approx(2 * exact)
    assert scores.chi_square(np.array([1000, 0]), np.array([100, 0])) is scores.NOTHING


def test_missing_is_fishers_exact_test() -> None:
    theirs = stats.fisher_exact([[30, 970], [15, 85]])
    assert scores.missing((30, 1000), (15, 100)).p_value == pytest.approx(theirs.pvalue)
    assert scores.missing((0, 1000), (0, 100)) is scores.NOTHING


def test_psi_and_jensen_shannon_follow_their_definitions() -> None:
    before, now = np.array([200, 300, 500]), np.array([30, 30, 40])
    p, q = (before + 0.5) / 1001.5, (now + 0.5) / 101.5
    assert scores.population_stability(before, now).value == pytest.approx(np.sum((p - q) * np.log(p / q)))
    middle = (p / p.sum() + q / q.sum()) / 2
    mixed = (stats.entropy(p, middle) + stats.entropy(q, middle)) / 2
    assert scores.jensen_shannon(before, now).value == pytest.approx(mixed)


def test_lower_is_mann_whitneys() -> None:
    a, b = normal(1, 400), normal(2, 100, -0.3)
    theirs = stats.mannwhitneyu(b, a, alternative="less")
    assert scores.lower(a, b).p_value == pytest.approx(theirs.pvalue)
    assert scores.lower(b, a).p_value > 0.9
    assert scores.lower(np.ones(200), np.ones(100)).p_value == 1.0


def test_mean_discrepancy_is_the_mmd_with_a_gaussian_kernel() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(size=(800, 3)), random.normal(0.6, 1, size=(400, 3))
    waves = scores.Waves.over(a, frequencies=4000)
    gamma = 0.5 * np.mean(waves.frequencies**2)  # frequencies of deviation 1/width make the kernel's gamma
    scaled = [(rows - waves.centre) / waves.scale for rows in (a, b)]
    mmd = (
        rbf_kernel(scaled[0], gamma=gamma).mean()
        + rbf_kernel(scaled[1], gamma=gamma).mean()
        - 2 * rbf_kernel(*scaled, gamma=gamma).mean()
    )
    apart = waves.of(a).mean(axis=0) - waves.of(b).mean(axis=0)
    assert apart @ apart == pytest.approx(mmd, rel=0.05)


def test_mean_discrepancy_is_hotellings_test() -> None:
    random = np.random.default_rng(4)
    a, b = random.normal(size=(300, 2)), random.normal(0.1, 1, size=(120, 2))
    found = scores.mean_discrepancy(a, b)
    n, m, k = 300, 120, 2
    pooled = ((n - 1) * np.cov(a.T) + (m - 1) * np.cov(b.T)) / (n + m - 2)
    apart = a.mean(axis=0) - b.mean(axis=0)
    t2 = n * m / (n + m) * apart @ np.linalg.inv(pooled) @ apart
    assert found.p_value == pytest.approx(
        stats.f.sf(t2 * (n + m - k - 1) / ((n + m - 2) * k), k, n + m - k - 1), rel=1e-3
    )


def test_mean_discrepancy_sees_what_no_column_shows() -> None:
    random = np.random.default_rng(5)
    a = random.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 2000)
    b = random.normal(size=(500, 2))
    waves = scores.Waves.over(a)
    assert scores.kolmogorov_smirnov(a[:, 0], b[:, 0]).p_value > 0.01
    assert scores.mean_discrepancy(waves.of(a), waves.of(b)).p_value < 1e-6


def test_small_samples_say_nothing() -> None:
    few, many = np.zeros((10, 16)), np.random.default_rng(1).normal(size=(500, 16))
    assert scores.mean_discrepancy(many, few) is scores.NOTHING
    assert scores.kolmogorov_smirnov(normal(1, 5), np.empty(0)) is scores.NOTHING
    assert scores.chi_square(np.array([5, 0]), np.array([0, 0])) is scores.NOTHING


def test_holm_steps_down() -> None:
    assert scores.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert scores.holm([0.5, 0.9]) == [1.0, 1.0]
    assert scores.holm([]) == []


def test_permutation_never_says_never() -> None:
    found = scores.permutation(scores.wasserstein, normal(1, 50), normal(2, 50, 3), times=99)
    assert found.p_value == 0.01
    assert scores.permutation(scores.wasserstein, normal(1, 50), normal(2, 50), times=99).p_value > 0.01


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_calibration_error(scale: float) -> None:
    confidences = np.repeat([0.55, 0.95], 100)
    right = np.concatenate([np.arange(100) < 55, np.arange(100) < 95])
    if scale:
        assert scores.calibration_error(confidences, right) == pytest.approx(0.0, abs=1e-9)
    else:
        assert scores.calibration_error(confidences, ~right) == pytest.approx((0.1 + 0.9) / 2)
    assert np.isnan(scores.calibration_error(np.empty(0), np.empty(0, bool)))


def binned(rows: scores.Vector) -> scores.Counts:
    return np.bincount(np.clip(((rows + 2) * 2.5).astype(int), 0, 9), minlength=10)


def many(rows: scores.Vector) -> scores.Counts:
    return np.bincount(np.clip(np.abs(rows**3).astype(int), 0, 25), minlength=26)


TESTS: dict[str, Callable[[scores.Vector, scores.Vector], scores.Score]] = {
    "ks": scores.kolmogorov_smirnov,
    "lower": scores.lower,
    "chi2": lambda a, b: scores.chi_square(binned(a), binned(b)),
    "chi2, rare": lambda a, b: scores.chi_square(many(a), many(b)),
    "psi": lambda a, b: scores.population_stability(binned(a), binned(b)),
    "js": lambda a, b: scores.jensen_shannon(binned(a), binned(b)),
    "mmd": lambda a, b: scores.mean_discrepancy(
        scores.Waves.over(a.reshape(-1, 2)).of(a.reshape(-1, 2)),
        scores.Waves.over(a.reshape(-1, 2)).of(b.reshape(-1, 2)),
    ),
}


@pytest.mark.parametrize(("name", "rows"), [*itertools.product(TESTS, [(200, 200), (1000, 300)])])
def test_false_alarms_are_as_rare_as_the_level_says(name: str, rows: tuple[int, int]) -> None:
    random = np.random.default_rng(6)
    found = [TESTS[name](random.normal(size=rows[0]), random.normal(size=rows[1])).p_value for _ in range(300)]
    for level in (0.01, 0.1):
        assert np.mean(np.array(found) <= level) * 300 <= stats.binom.ppf(0.999, 300, level)
