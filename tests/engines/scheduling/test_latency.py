"""CostModel: shape, quantile, drift, outliers, restart."""

from __future__ import annotations

import json
import random

import pytest

from engines.scheduling.latency import CostModel, isotonic


def seconds(rows: int) -> float:
    return 0.002 + 0.0005 * rows


def seeded(max_rows: int = 32, **options: float) -> CostModel:
    cost = CostModel(max_rows, **options)  # type: ignore[arg-type]
    cost.seed({rows: seconds(rows) for rows in cost.sizes})
    return cost


def run(cost: CostModel, count: int, factor: float = 1.0, jitter: float = 0.0, seed: int = 1) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        rows = rng.randrange(1, cost.max_rows + 1)
        cost.observe(rows, seconds(rows) * factor * (1.0 + abs(rng.gauss(0.0, jitter))))


def test_nothing_is_known_at_first() -> None:
    cost = CostModel(8)
    assert cost.bounds == [0.0] * 9
    cost.observe(4, 0.010)
    assert cost.bounds == pytest.approx([0.0] + [0.010] * 8)


def test_a_sweep_is_read_off_in_between() -> None:
    cost = CostModel(16)
    cost.seed({1: 0.003, 8: 0.010})
    assert cost.means[1] == pytest.approx(0.003)
    assert cost.means[4] == pytest.approx(0.006)
    assert cost.means[16] == pytest.approx(0.018)
    assert cost.means[0] == 0.0


def test_larger_batches_never_look_cheaper() -> None:
    cost = CostModel(16)
    cost.seed({1: 0.003, 2: 0.009, 4: 0.005, 16: 0.010})
    assert cost.bounds == sorted(cost.bounds)
    assert isotonic([3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 2.0, 1.0]) == [2.0, 2.0, 2.0, 5.0]


def test_padding_is_part_of_the_cost() -> None:
    cost = CostModel(8, (2, 8))
    cost.seed({2: 0.004, 8: 0.010})
    assert cost.means[1:] == pytest.approx([0.004, 0.004] + [0.010] * 6)
    assert [cost.padded(rows) for rows in (1, 2, 3, 8)] == [2, 2, 8, 8]


def test_bounds_cover_the_quantile_and_no_more() -> None:
    cost = seeded(quantile=0.95)
    run(cost, 400, jitter=0.2)
    rng = random.Random(9)
    draws = [seconds(20) * (1.0 + abs(rng.gauss(0.0, 0.2))) for _ in range(2000)]
    covered = sum(draw <= cost.bounds[20] for draw in draws) / len(draws)
    assert 0.90 < covered < 0.985
    assert cost.means[20] == pytest.approx(sum(draws) / len(draws), rel=0.06)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 3.0])
def test_a_change_of_speed_is_followed_within_a_few_executions(factor: float) -> None:
    cost = seeded()
    run(cost, 100)
    run(cost, 16, factor=factor)
    assert cost.means[32] == pytest.approx(seconds(32) * factor, rel=0.05)
    assert cost.means[1] == pytest.approx(seconds(1) * factor, rel=0.05)
    assert cost.statistics().error_ratio != pytest.approx(1.0, abs=0.01)
    run(cost, 40, factor=factor)
    assert cost.statistics().error_ratio == pytest.approx(1.0, abs=0.01)


def test_outliers_move_nothing() -> None:
    cost = seeded()
    run(cost, 100)
    before = list(cost.bounds)
    for _ in range(3):
        cost.observe(8, 10.0)
        run(cost, 30)
    assert cost.bounds == pytest.approx(before, rel=0.02)


def test_jitter_is_no_drift() -> None:
    cost = seeded()
    run(cost, 300, jitter=0.2)
    middle = cost.typical[16]
    run(cost, 300, jitter=0.2, seed=2)
    assert cost.typical[16] == pytest.approx(middle, rel=0.07)


def test_a_restart_knows_what_was_learned() -> None:
    cost = seeded()
    run(cost, 200, factor=1.5, jitter=0.1)
    again = CostModel(32)
    again.restore(json.loads(json.dumps(cost.as_dict())))
    assert again.typical == pytest.approx(cost.typical, rel=0.05)
    assert again.bounds[32] == pytest.approx(cost.bounds[32], rel=0.1)


@pytest.mark.parametrize("state", [{}, {"format": 2}, {"format": 1, "seconds": [1], "ratios": []}, {"format": 1}])
def test_a_strange_file_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cost file"):
        CostModel(8).restore(state)


def test_nonsense_teaches_nothing() -> None:
    cost = seeded()
    before = list(cost.bounds)
    for rows, took in ((0, 1.0), (33, 1.0), (4, 0.0), (4, -1.0)):
        cost.observe(rows, took)
    assert cost.bounds == before
    assert cost.statistics().executions == 0


def test_repr_is_a_status_line() -> None:
    cost = CostModel(2)
    cost.seed({1: 0.001, 2: 0.0015})
    assert repr(cost) == "<CostModel [ms: 1:1 2:1.5 | spread: 1.00 | executions: 0]>"


def test_one_stall_in_a_size_that_hardly_ran_is_not_believed() -> None:
    model = CostModel(8)
    model.seed({1: 0.001, 8: 0.002})
    model.observe(6, 3.0)  # the machine stood still
    assert model.bounds[8] < 0.05
    for _ in range(8):
        model.observe(6, 0.0018)
    assert model.bounds[8] < 0.01


def test_a_machine_that_is_ten_times_slower_is_believed_within_a_dozen_executions() -> None:
    model = CostModel(8)
    model.seed({1: 0.001, 8: 0.002})
    for _ in range(12):
        model.observe(8, 0.02)
    assert model.means[8] > 0.015


def test_sizes_that_do_not_run_are_not_carried_away_by_the_jitter_of_those_that_do() -> None:
    cost = CostModel(64)
    cost.seed({rows: 0.001 + 0.0001 * rows for rows in cost.sizes})
    rng = random.Random(1)
    for _ in range(20_000):
        rows = rng.choice((1, 2, 3))
        stall = rng.choice((1.0, 1.0, 1.0, rng.uniform(1.0, 30.0)))
        for _ in range(rng.choice((1, 4)) if stall > 1.0 else 1):  # stalls come together
            cost.observe(rows, (0.001 + 0.0001 * rows) * stall)
    for _ in range(50):
        cost.observe(1, 0.0011)
    assert 0.0074 / 6 < cost.typical[64] < 0.0074 * 6


def test_a_batch_costs_no_more_than_its_rows_in_smaller_ones() -> None:
    cost = CostModel(8)
    cost.seed({1: 0.001, 8: 0.5})
    for _ in range(30):
        cost.observe(1, 0.001)
    assert cost.typical[8] <= 0.008 * 1.01
