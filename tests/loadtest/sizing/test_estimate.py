from __future__ import annotations

import dataclasses

import pytest

from loadtest.sizing.estimate import Wanted, needs, parse, words, worked
from loadtest.sizing.fits import Coefficients

OF = Coefficients(
    turn_us=320.0, request_us=40.0, in_us_per_kib=1.0, out_us_per_kib=0.5, tls_us=10.0, tls_us_per_kib=2.0,
    base_mib=100.0, model_mib=0.5, model_load_s=0.1, connection_kib=8.0, tls_connection_kib=64.0,
)  # fmt: skip


def test_the_worksheet_is_what_one_would_reckon_by_hand() -> None:
    wanted = Wanted(
        requests_per_s=2000, payload_kib=100, answer_kib=100, engine_ms=2.1, deadline_ms=50, connections=2048,
        models=4, weights_mib=30, cache_mib=64,
    )  # fmt: skip
    found = needs(wanted, OF)
    assert found.request_us == pytest.approx(50 + 100 + 50)
    assert found.processes == 1, "2000 x 200 us is 0.4 of a core, 0.8 of what half a core is for"
    assert found.engine_cores == pytest.approx(2000 * 2.1e-3 / 0.7)
    assert (found.cores_each, found.cores) == (7, 7), "six engines' cores and one for the loop"
    assert found.inflight_mib == pytest.approx(2000 * 0.05 * 200 / 1024)
    assert found.memory_mib == pytest.approx(100 + 2 + 30 + 64 + 16 + 4 * found.inflight_mib)
    assert found.limit_mib >= found.memory_mib * 1.25


def test_more_than_a_loop_can_carry_takes_more_processes_which_share_what_is_shared() -> None:
    wanted = Wanted(requests_per_s=6000, payload_kib=100, answer_kib=100, engine_ms=2.1, connections=3072)
    found = needs(wanted, OF)
    assert found.processes == 3
    assert found.cores_each == 1 + 6
    assert found.inflight_mib == pytest.approx(2000 * 0.1 * 200 / 1024)
    assert found.memory_mib == pytest.approx(100 + 0.5 + 8 + 4 * found.inflight_mib), "a third of the connections each"


def test_encryption_costs_time_by_request_and_by_byte_and_memory_by_connection() -> None:
    plain = Wanted(requests_per_s=100, payload_kib=3, answer_kib=1, connections=1024)
    bare, secret = needs(plain, OF), needs(dataclasses.replace(plain, tls=1), OF)
    assert secret.request_us - bare.request_us == pytest.approx(10 + 2 * 4)
    assert secret.memory_mib - bare.memory_mib == pytest.approx(64 - 8)


def test_a_model_without_engine_time_takes_the_core_of_the_loop() -> None:
    assert needs(Wanted(requests_per_s=1), OF).cores == 1


def test_words_make_a_load_and_a_load_makes_words() -> None:
    given = ["requests_per_s=2000", "payload_kib=600", "tls=1"]
    wanted = parse(given)
    assert wanted == Wanted(requests_per_s=2000, payload_kib=600, tls=1)
    assert words(wanted) == given


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["payload_kib=1"], "requests_per_s= is missing"),
        (["requests=1"], "is none of"),
        (["requests_per_s"], "is none of"),
        (["requests_per_s=many"], "no number"),
        (["requests_per_s=-1"], "0 or more"),
        (["requests_per_s=nan"], "0 or more"),
    ],
)
def test_words_that_mean_nothing_are_named(given: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(given)


def test_the_lines_show_the_sums() -> None:
    lines = worked(Wanted(requests_per_s=6000, payload_kib=100, answer_kib=100, engine_ms=2.1), OF)
    assert [line[:2] for line in lines] == ["1.", "2.", "3.", "4.", "5."]
    assert "50 + 1.00 x 100 + 0.50 x 100 = 200 us" in lines[0]
    assert lines[1].endswith("= 2.40, so 3")
    assert lines[2].endswith("7 cores a process, 21 in all")
