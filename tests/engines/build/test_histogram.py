"""Histograms that values stream into."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from engines.build.histogram import BINS, Histogram, pack, unpack

VALUES = nps.arrays(
    np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_subnormal=False)
)


def filled(*portions: np.ndarray) -> Histogram:
    histogram = Histogram()
    for portion in portions:
        histogram.add(portion)
    return histogram


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(0, 50))
def test_portions_do_not_matter(values: np.ndarray, cut: int) -> None:
    whole, apart = filled(values), filled(values[cut:], values[:cut])
    assert (whole.limit, whole.low, whole.high) == (apart.limit, apart.low, apart.high)
    np.testing.assert_array_equal(whole.counts, apart.counts)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_every_value_is_counted_within_the_limit(values: np.ndarray) -> None:
    histogram = filled(values)
    assert histogram.counts.sum() == histogram.magnitudes().sum() == values.size
    assert np.abs(values).max() < histogram.limit
    assert (histogram.low, histogram.high) == (values.min(), values.max())


def test_a_value_falls_into_the_bin_that_it_belongs_to() -> None:
    histogram = filled(np.array([0.75, -0.5], np.float32))
    assert histogram.limit == 1.0
    assert np.flatnonzero(histogram.counts).tolist() == [BINS // 4, BINS // 2 + 3 * BINS // 8]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        filled(np.array([1.0, bad], np.float32))


def test_packing_loses_nothing() -> None:
    given_ = {"a": filled(np.arange(9.0)), "b": Histogram()}
    found = unpack(pack(given_))
    assert list(found) == ["a", "b"]
    for name, histogram in given_.items():
        assert (found[name].limit, found[name].low, found[name].high) == (
            histogram.limit,
            histogram.low,
            histogram.high,
        )
        np.testing.assert_array_equal(found[name].counts, histogram.counts)
