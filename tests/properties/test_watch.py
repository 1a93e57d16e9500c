"""Sketches, samples and windows, whatever comes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.watch import scores
from server.watch.plan import Column
from server.watch.sketch import ColumnSketch, Sample
from server.watch.windows import Window

RANKS = [0.05, 0.25, 0.5, 0.75, 0.95]
PARTS = st.lists(st.integers(0, 3000), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(sizes=PARTS, seed=st.integers(0, 2**32))
def test_merging_is_order_free_within_bounds(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [random.normal(size=size) for size in sizes]
    everything = np.sort(np.concatenate(parts))
    if len(everything) == 0:
        return
    for way in (parts, parts[::-1]):
        merged = ColumnSketch(Column("x", "x"))
        for part in way:
            sketch = ColumnSketch(Column("x", "x"))
            sketch.update(np.append(part, np.nan))
            merged.merge(sketch)
        assert (merged.present, merged.missing) == (len(everything), len(parts))
        found = np.searchsorted(everything, merged.quantiles(RANKS)) / len(everything)
        assert np.abs(found - RANKS).max() <= 0.03 + 1 / len(everything)


@settings(max_examples=50, deadline=None)
@given(sizes=PARTS, seed=st.integers(0, 2**32), size=st.integers(1, 50))
def test_samples_merge_to_what_one_would_have_kept(sizes: list[int], seed: int, size: int) -> None:
    whole, merged = Sample.empty(1, size), Sample.empty(1, size)
    streams = [np.random.default_rng(seed + index) for index in range(len(sizes))]
    again = [np.random.default_rng(seed + index) for index in range(len(sizes))]
    for index, count in enumerate(sizes):
        rows = np.arange(count, dtype=float).reshape(-1, 1) + index * 10_000
        whole.update(rows, streams[index])
        part = Sample.empty(1, size)
        part.update(rows, again[index])
        merged.merge(part)
    assert np.array_equal(merged.rows, whole.rows)
    assert len(merged.rows) == min(size, sum(sizes))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 20), pushes=st.lists(st.integers(0, 30), max_size=10), age=st.integers(0, 40))
def test_a_window_holds_the_latest_rows(size: int, pushes: list[int], age: int) -> None:
    window, pushed = Window(size, 1, float(age)), 0
    for count in pushes:
        times = np.arange(pushed, pushed + count, dtype=float)
        window.push(times.reshape(-1, 1), times)
        pushed += count
        window.expire(float(pushed - 1))
        least = pushed - 1 - age if age else -1
        wanted = [each for each in range(max(0, pushed - size), pushed) if each > least]
        assert window.rows().ravel().tolist() == wanted
        assert len(window) == len(wanted)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_order_and_never_helps(p_values: list[float]) -> None:
    found = scores.holm(p_values)
    assert all(p <= corrected <= 1 for p, corrected in zip(p_values, found, strict=True))
    assert sorted(range(len(found)), key=lambda i: (p_values[i], i)) == sorted(
        range(len(found)), key=lambda i: (found[i], p_values[i], i)
    )
