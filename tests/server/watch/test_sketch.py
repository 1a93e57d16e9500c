"""What is kept of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from server.watch.plan import Column
from server.watch.sketch import ColumnSketch, Sample

NUMBER, CATEGORY = Column("x", "x"), Column("c", "c", ("a", "b", "(other)"))


def test_numbers_and_what_is_missing() -> None:
    sketch = ColumnSketch(NUMBER)
    sketch.update(np.array([1.0, np.nan, 3.0, 2.0]))
    assert (sketch.present, sketch.missing) == (3, 1)
    assert sketch.quantiles([0, 0.5, 1]) == [1, 2, 3]
    assert ColumnSketch(NUMBER).quantiles([0.5]) == []


def test_categories_are_counted() -> None:
    sketch = ColumnSketch(CATEGORY)
    sketch.update(np.array([0, 0, 2, np.nan]))
    sketch.update(np.array([1.0]))
    assert (sketch.counts.tolist(), sketch.present, sketch.missing) == ([2, 1, 1], 4, 1)


@pytest.mark.parametrize("column", [NUMBER, CATEGORY])
def test_sketches_survive_bytes(column: Column) -> None:
    sketch = ColumnSketch(column)
    sketch.update(np.random.default_rng(0).integers(0, 3, 1000).astype(float))
    back = ColumnSketch.from_bytes(column, sketch.to_bytes(), sketch.missing, sketch.counts.tolist())
    assert back.quantiles([0.1, 0.9]) == sketch.quantiles([0.1, 0.9])
    assert back.counts.tolist() == sketch.counts.tolist()


def test_damaged_sketches_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        ColumnSketch.from_bytes(NUMBER, b"\x07rubbish", 0, [])
    with pytest.raises(ValueError, match="3 categories, not 1"):
        ColumnSketch.from_bytes(CATEGORY, ColumnSketch(CATEGORY).to_bytes(), 0, [1])


def test_a_sample_is_uniform_and_bounded() -> None:
    random, seen = np.random.default_rng(1), np.zeros(100)
    for _ in range(400):
        sample = Sample.empty(1, size=10)
        for start in range(0, 100, 7):
            sample.update(np.arange(start, min(100, start + 7), dtype=float).reshape(-1, 1), random)
        assert len(sample.rows) == 10
        seen[sample.rows.ravel().astype(int)] += 1
    assert seen.mean() == 40
    assert abs(seen - 40).max() < 5 * 6  # five standard deviations of a binomial


def test_a_small_stream_is_kept_whole() -> None:
    sample = Sample.empty(2, size=10)
    sample.update(np.ones((3, 2)), np.random.default_rng(0))
    assert sample.rows.shape == (3, 2)
