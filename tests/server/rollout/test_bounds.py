"""Bounds hold as often as they say, and repeated looks keep one level."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.rollout.bounds import Looks, divergence, lower, upper


def test_known_values() -> None:
    assert divergence(0.5, 0.5) == 0.0
    assert divergence(1.0, 0.25) == pytest.approx(math.log(4))
    assert divergence(0.3, 0.0) == math.inf
    # With no failure in n, the bound solves (1 - p)^n = level.
    assert upper(0.0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-9)
    assert lower(1.0, 100, 0.05) == pytest.approx(0.05 ** (1 / 100), abs=1e-9)
    assert (lower(0.0, 0, 0.05), upper(0.0, 0, 0.05)) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.95])
def test_bounds_enclose_the_mean_and_tighten(share: float) -> None:
    widths = [upper(share, n, 0.01) - lower(share, n, 0.01) for n in (10, 100, 1000, 10_000)]
    assert all(lower(share, n, 0.01) <= share <= upper(share, n, 0.01) for n in (10, 100, 1000))
    assert widths == sorted(widths, reverse=True)


def test_a_bound_is_broken_no_more_often_than_its_level() -> None:
    random = np.random.default_rng(1)
    means = random.binomial(60, 0.2, 4000) / 60
    broken = np.mean([lower(float(mean), 60, 0.05) > 0.2 for mean in means])
    assert broken <= 0.05


def test_looks_come_ever_later_and_share_one_level() -> None:
    looks = Looks(0.01, due=10)
    assert looks.take(9) is None
    sizes, levels = [], []
    for count in range(10, 100_000):
        if (level := looks.take(count)) is not None:
            sizes.append(count)
            levels.append(level)
    assert sizes[:4] == [10, 13, 17, 22]
    assert len(sizes) < 45
    assert sum(levels) < 0.01
    assert levels == sorted(levels, reverse=True)
