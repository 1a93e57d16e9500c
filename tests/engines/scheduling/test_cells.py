"""A few cells of docs/batching.md, small: the deadline policy holds its bars against all rivals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.scheduling.cases import CASES, DEADLINE, POLICIES


@pytest.mark.parametrize(
    ("name", "load", "bursts", "jitter", "count"),
    [
        ("small", 1.0, False, 0.0, 40_000),
        ("small", 2.5, False, 0.2, 30_000),
        ("small", 0.8, True, 0.0, 30_000),
        ("large", 0.8, False, 0.0, 10_000),
        ("large", 1.1, False, 0.0, 10_000),
        ("large", 1.5, True, 0.2, 10_000),
        ("shared", 1.1, False, 0.0, 12_000),
    ],
)
def test_a_cell_holds_its_bars(name: str, load: float, bursts: bool, jitter: float, count: int) -> None:
    case = replace(CASES[name], jitter=jitter)
    arrivals = case.arrivals(load, count, bursts=bursts, seed=11)
    outcomes = {policy: case.play(policy, arrivals, seed=12) for policy in POLICIES}
    mine = outcomes.pop(DEADLINE)
    assert mine.goodput >= max(outcome.goodput for outcome in outcomes.values()) - 0.005
    assert bursts or mine.goodput >= 0.90 * min(1.0, 1.0 / load)
    assert mine.waste <= (0.02 if jitter else 0.0)
    assert mine.offered == count
    assert mine.met + sum(one.late for one in mine.classes.values()) <= count


def test_a_fifo_collapses_where_deadlines_are_kept() -> None:
    case = CASES["large"]
    arrivals = case.arrivals(1.5, 5_000, seed=11)
    assert case.play("fifo", arrivals).goodput < 0.1
    assert case.play(DEADLINE, arrivals).goodput > 0.62


@pytest.mark.parametrize("error", [0.8, 1.2])
def test_wrong_costs_are_unlearned(error: float) -> None:
    case = CASES["large"]
    arrivals = case.arrivals(1.1, 10_000, seed=11)
    exact = case.play(DEADLINE, arrivals)
    wrong = replace(case, seed_error=error).play(DEADLINE, arrivals)
    assert wrong.goodput == pytest.approx(exact.goodput, abs=0.01)
    assert wrong.waste < 0.01


def test_models_that_share_a_device_get_alike() -> None:
    case = CASES["shared"]
    arrivals = [arrival._replace(tenant=f"model {arrival.model}") for arrival in case.arrivals(1.5, 12_000, seed=1)]
    outcome = case.play(DEADLINE, arrivals)
    attained = [one.attainment for one in outcome.tenants.values()]
    assert len(attained) == 4
    assert max(attained) - min(attained) < 0.08
