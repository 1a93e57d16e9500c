"""A window against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engines.tensor import Array
from server.watch import scores
from server.watch.compare import Comparer, Comparison
from server.watch.plan import plan_of
from server.watch.table import Table
from tests.support.watching import table, world

REFERENCE = world(1, 3000)


def compared(rows: Array, window: Array) -> Comparison:
    whole = table("x", rows)
    return Comparer(whole).compare(whole.of_arrays({"x": window}, len(window)))


def test_the_p_values_are_holms_over_all_tests() -> None:
    window = world(2, 400)
    window[:, 0] += 0.25
    whole = table("x", REFERENCE)
    found = Comparer(whole).compare(window)
    waves = scores.Waves.over(whole.sample.rows[:, :2])
    joint = scores.mean_discrepancy(waves.of(whole.sample.rows[:, :2]), waves.of(window[:, :2]))
    counts = [np.bincount(rows[:, 2].astype(int)) for rows in (REFERENCE, window)]
    wanted = scores.holm(
        [
            *(stats.ks_2samp(REFERENCE[:, at], window[:, at], method="asymp").pvalue for at in (0, 1)),
            stats.chi2_contingency(counts, correction=False).pvalue,
            joint.p_value,
        ]
    )
    assert [*(column.p_value for column in found.columns), found.joint["x"].p_value] == pytest.approx(wanted)
    assert found.p_value() == found.p_value("x") == min(wanted) < 0.05


def test_missing_values_are_tested_where_there_are_any() -> None:
    window = world(2, 400)
    window[:40, 1] = np.nan
    found = compared(REFERENCE, window)
    assert [column.missing for column in found.columns] == [0, 0.1, 0]
    assert found.columns[1].p_value < 1e-6
    assert found.columns[1].psi > 0.5
    assert found.columns[0].p_value > 0.05


def test_a_category_never_seen_before_is_found() -> None:
    window = world(2, 400)
    window[::20, 2] = 9
    found = compared(REFERENCE, window)
    assert found.columns[2].p_value < 1e-6
    assert found.columns[2].distance == pytest.approx(0.05, abs=0.03)


def test_single_columns_are_tested_together() -> None:
    random = np.random.default_rng(5)
    together = random.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 2000)
    whole = Table([plan_of("a", together[:, :1]), plan_of("b", together[:, 1:])])
    whole.add(together)
    found = Comparer(whole).compare(random.normal(size=(500, 2)))
    assert found.p_value("a") > 0.01
    assert found.joint[""].p_value < 1e-6
    assert found.p_value() == found.joint[""].p_value


def test_an_empty_column_and_a_constant_one_say_nothing() -> None:
    rows = np.column_stack([np.full(500, np.nan), np.ones(500), np.random.default_rng(1).normal(size=500)])
    found = compared(rows, rows[:200])
    assert found.p_value() > 0.5
    assert [column.psi for column in found.columns][:2] == [0, 0]


def test_distributions_have_shares_of_all_rows() -> None:
    window = world(2, 200)
    window[:50, 0] = np.nan
    window[50, 1] = 1e9  # must not squeeze the rest into one bin
    first, second, third = Comparer(table("x", REFERENCE)).distributions(window)
    assert sum(first.window) == pytest.approx(0.75)
    assert sum(first.reference) == pytest.approx(1)
    assert second.edges[-1] < 10
    assert (third.edges, len(third.window)) == ((), 4)
    assert first.wasserstein == pytest.approx(scores.wasserstein(REFERENCE[:, 0], window[50:, 0]))
