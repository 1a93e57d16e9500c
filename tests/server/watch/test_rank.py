"""Rank correlation against scipy, and calibration by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from server.watch.rank import calibration_error, mean_ranks, spearman


@pytest.mark.parametrize("seed", range(5))
def test_the_same_as_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    first = random.integers(0, 20, 200).astype(float)  # with ties
    second = first + random.normal(0, 10, 200)
    found = spearman(first, second)
    np.testing.assert_allclose(mean_ranks(first), stats.rankdata(first))
    assert found.value == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert found.low < found.value < found.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's rho of a bivariate normal distribution with r = 0.6
    held = 0
    for _ in range(1000):
        pairs = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 60)
        found = spearman(pairs[:, 0], pairs[:, 1])
        held += found.low <= truth <= found.high
    assert 930 <= held <= 970


def test_too_little_says_nothing() -> None:
    assert math.isnan(spearman(np.arange(4.0), np.arange(4.0)).value)
    constant = spearman(np.ones(9), np.arange(9.0))
    assert math.isnan(constant.value)
    assert not constant.sure
    assert spearman(np.arange(9.0), -np.arange(9.0)).value == -1.0


def test_calibration_error() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([1, 1, 1, 0, 1, 0])
    assert calibration_error(confidence, correct) == pytest.approx((4 * 0.20 + 2 * 0.05) / 6)
    assert calibration_error(np.array([1.0]), np.array([1])) == 0.0
    assert math.isnan(calibration_error(np.array([]), np.array([])))
