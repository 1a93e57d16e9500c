from __future__ import annotations

import json

import pytest

from loadtest.sizing.cli import as_json
from loadtest.sizing.fits import TOGETHER, coefficients, line, shared
from loadtest.sizing.study import Study
from tests.loadtest.sizing import figures


def test_a_line_is_found_again() -> None:
    found = line([(x, 3.0 + 0.5 * x) for x in (0, 1, 10, 1000)])
    assert (found.fixed, found.slope) == pytest.approx((3.0, 0.5))
    assert found.worst == pytest.approx(0.0, abs=1e-9)
    assert found.at(4) == pytest.approx(5.0)


def test_a_line_says_how_far_the_worst_point_is_and_small_points_count_as_much_as_large_ones() -> None:
    found = line([(0, 10.0), (1, 20.0), (1000, 10_500.0)])
    assert found.at(0) == pytest.approx(10.0, rel=0.05)
    assert found.worst == pytest.approx(max(abs(found.at(x) / y - 1) for x, y in ((0, 10), (1, 20), (1000, 10_500))))


def test_no_part_of_a_cost_is_negative() -> None:
    falling = line([(1, 10.0), (2, 8.0)])
    assert falling.slope == 0.0
    assert 8.0 <= falling.fixed <= 10.0
    below = line([(1, 1.0), (2, 4.0)])
    assert below.fixed == 0.0
    assert 1.0 <= below.slope <= 2.0


def test_one_point_makes_no_line() -> None:
    with pytest.raises(ValueError, match="two points"):
        line([(1, 2.0), (1, 3.0)])


def test_what_a_turn_costs_is_shared_by_those_who_are_there() -> None:
    found = shared([*figures.callers(), figures.load("callers", 5, rows_per_batch=None, cpu_us=9.0)])
    assert (found.fixed, found.slope) == pytest.approx((figures.REQUEST_US, figures.TURN_US))


def test_the_coefficients_are_those_that_made_the_figures() -> None:
    found = coefficients(figures.study())
    assert (found.request_us, found.turn_us) == pytest.approx((figures.REQUEST_US, figures.TURN_US))
    assert found.busy_us == pytest.approx(figures.REQUEST_US + figures.TURN_US / TOGETHER)
    assert (found.in_us_per_kib, found.out_us_per_kib) == pytest.approx((figures.US_PER_KIB, figures.OUT_US_PER_KIB))
    assert (found.tls_us, found.tls_us_per_kib) == pytest.approx((40.0, 1.0)), "the median of the turns"
    assert found.base_mib == pytest.approx(figures.BASE_KIB / 1024)
    assert found.model_mib == pytest.approx(figures.MODEL_KIB / 1024), "its file does not count"
    assert found.model_load_s == pytest.approx(0.1)
    assert (found.connection_kib, found.tls_connection_kib) == pytest.approx((figures.CONNECTION_KIB, figures.TLS_KIB))


@pytest.mark.parametrize("part", ["base", "loads", "idles", "models", "prices"])
def test_a_study_that_lacks_a_part_has_none(part: str) -> None:
    with pytest.raises(ValueError, match=r"missing|two points"):
        coefficients(figures.study(**{part: []}))


def test_what_grows_is_in_order_and_rounds_are_medians() -> None:
    loads = [figures.load("callers", x, cpu_us=us, faults=faults) for x, us, faults in (
        (8, 3.0, []), (1, 1.0, []), (8, 1.0, ["slip"]), (8, 2.0, []),
    )]  # fmt: skip
    low, high = figures.study(loads=loads).pick("callers")
    assert (low.x, high.x) == (1, 8)
    assert (high.cpu_us, high.faults, high.rows_per_batch) == (2.0, ["slip"], None)


def test_a_study_survives_json() -> None:
    made = figures.study()
    again = Study.of(json.loads(as_json(made)))
    assert as_json(again) == as_json(made)
    assert again.models == made.models
    assert coefficients(again) == coefficients(made)
