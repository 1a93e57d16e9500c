"""Ranges that the methods choose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from engines.build.histogram import Histogram
from engines.build.ranges import LEVELS, Method, range_of

NORMAL = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
CLIPPING = [Method.ENTROPY, Method.PERCENTILE, Method.MSE]


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.add(values)
    return made


def squared_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / (LEVELS - 1)
    return float(np.mean((values - np.clip(np.round(values / step), 1 - LEVELS, LEVELS - 1) * step) ** 2))


@settings(max_examples=40, deadline=None)
@given(
    nps.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)),
    st.sampled_from(Method),
)
def test_ranges_hold_zero_and_nothing_that_was_not_seen(values: np.ndarray, method: Method) -> None:
    low, high = range_of(histogram(values), method)
    assert low <= 0 <= high
    assert low < high
    assert low >= min(values.min(), 0)
    assert high <= max(values.max(), 0) + 1e-8


def test_min_max_keeps_everything() -> None:
    assert range_of(histogram(np.array([-3.0, 0.5, 7.0])), Method.MIN_MAX) == (-3.0, 7.0)


@pytest.mark.parametrize("method", CLIPPING)
def test_the_others_clip_an_outlier(method: Method) -> None:
    low, high = range_of(histogram(np.append(NORMAL, 100.0)), method)
    assert 2.0 < high < 60.0
    assert -low <= high


@pytest.mark.parametrize("method", list(Method))
def test_what_is_never_negative_gets_no_negative_range(method: Method) -> None:
    low, high = range_of(histogram(np.maximum(NORMAL, 0)), method)
    assert low == 0.0
    assert high > 2.0


def test_mse_chooses_a_threshold_that_no_other_beats_by_much() -> None:
    values = np.random.default_rng(1).standard_t(3, 100_000).astype(np.float32)
    low, high = range_of(histogram(values), Method.MSE)
    chosen = max(-low, high)
    best = min(squared_error(values, threshold) for threshold in np.linspace(1, np.abs(values).max(), 300))
    assert squared_error(values, chosen) <= 1.05 * best
    assert squared_error(values, float(np.abs(values).max())) > 1.4 * best


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_constants_are_covered(method: Method, value: float) -> None:
    low, high = range_of(histogram(np.full(10, value)), method)
    assert low <= value <= high
