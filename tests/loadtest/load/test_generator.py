"""Is the generator honest? Known delays and stalls, by a clock that we hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from loadtest.load.generator import UNFINISHED, ClosedLoop, OpenLoop, Record, Shot, run
from loadtest.load.scenario import Kind, Scenario
from loadtest.load.schedule import Arrivals
from loadtest.load.summary import summarise
from loadtest.load.workers import Finished
from tests.loadtest.load.scripted import Script, ScriptedClient, stalling, steady


def every(gap_s: float, seconds: float, **more: Any) -> list[Shot]:
    return [Shot(number * gap_s, 0, **more) for number in range(round(seconds / gap_s))]


def result(record: Record, seconds: float, **scenario: Any) -> dict[str, Any]:
    chosen = Scenario(requests=(Kind(model="m"),), seconds=seconds, **scenario)
    return summarise(chosen, [Finished(record, 0.0, seconds)])


def shoot(script: Script, shots: Sequence[Shot], drain_s: float = 5.0, **client: Any) -> Record:
    return run(ScriptedClient(script, **client), OpenLoop(shots), 0.0, drain_s)


def test_a_known_delay_is_what_all_percentiles_say() -> None:
    told = result(shoot(steady(0.02), every(0.01, 10)), 10)
    assert told["valid"]
    assert told["sent"] == 1000
    assert told["latency_ms"] == {
        name: pytest.approx(20.0) for name in ("p50", "p75", "p90", "p95", "p99", "p99.9", "mean", "max")
    }
    assert told["slip_ms"]["max"] == 0.0


def test_percentiles_of_two_known_delays_are_exact() -> None:
    number = iter(range(10_000))
    record = shoot(lambda sent: (sent + (0.5 if next(number) % 100 >= 97 else 0.01), 0), every(0.01, 100))
    latency = result(record, 100)["latency_ms"]
    assert latency["p95"] == pytest.approx(10.0)
    assert latency["p99"] == pytest.approx(500.0)
    assert latency["mean"] == pytest.approx(0.97 * 10 + 0.03 * 500)


def test_a_stall_of_the_server_is_seen_by_all_who_were_due_in_it() -> None:
    """Ten seconds, one of them a stall: a tenth of the requests wait up to a second for it to end."""
    record = shoot(stalling(0.001, 4.0, 5.0), every(0.01, 10))
    waited = np.asarray(record.latency)
    assert np.count_nonzero(waited > 0.0011) == pytest.approx(100, abs=1)
    assert result(record, 10)["latency_ms"]["p95"] == pytest.approx(500.0, abs=15)
    assert result(record, 10)["valid"], "the server stalled, not the generator"


def test_callers_who_wait_would_have_hidden_that_stall() -> None:
    """The same server and rate, by one caller who waits for its answer: the stall is a single slow request."""
    shots = every(0.01, 10)
    record = run(ScriptedClient(stalling(0.01, 4.0, 5.0)), ClosedLoop(shots, 1, 10.0), 0.0, 5.0)
    assert result(record, 10, arrivals=Arrivals(kind="closed"))["latency_ms"]["p99"] == pytest.approx(10.0)


def test_requests_leave_while_the_server_is_silent() -> None:
    client = ScriptedClient(stalling(0.001, 0.0, 9.0))
    run(client, OpenLoop(every(0.01, 1)), 0.0, 10.0)
    assert client.sent == pytest.approx([shot.due for shot in every(0.01, 1)])
    assert client.most_in_flight == 100


def test_time_that_the_generator_loses_counts_and_makes_the_run_invalid() -> None:
    """The client sleeps from 2.0 to 2.5 s of ten: one in twenty requests leaves late, and none is left out."""
    record = shoot(steady(0.001), every(0.01, 10), sleeps_through=(2.0, 2.5))
    told = result(record, 10)
    assert told["sent"] == 1000
    assert max(record.slip) == pytest.approx(0.5, abs=0.01)
    assert told["latency_ms"]["max"] == pytest.approx(501.0, abs=10)
    assert not told["valid"]
    assert "generator was the limit" in told["invalid_because"][0]


def test_a_slip_of_less_than_a_hundredth_of_the_requests_is_forgiven() -> None:
    told = result(shoot(steady(0.001), every(0.01, 10), sleeps_through=(2.0, 2.05)), 10)
    assert told["valid"]
    assert told["slip_ms"]["max"] > 40


def test_the_patient_wait_for_an_answer_that_is_too_late_to_count() -> None:
    told = result(shoot(steady(0.03), every(0.01, 1, deadline_s=0.02, patient=True)), 1)
    assert told["codes"] == {"OK": 100}
    assert told["good_per_s"] == 0.0


def test_deadlines_count_from_when_requests_were_due() -> None:
    record = shoot(steady(0.03), every(0.01, 1, deadline_s=0.02))
    told = result(record, 1)
    assert told["codes"] == {"DEADLINE_EXCEEDED": 100}
    assert told["good_per_s"] == 0.0
    assert list(record.latency) == pytest.approx([0.02] * 100)


def test_a_late_answer_is_an_answer_but_no_goodput() -> None:
    """Some servers answer after the deadline, and some clients take it."""
    record = Record()
    for latency in (0.01, 0.03):
        record.kind.append(0)
        record.due.append(0.0)
        record.slip.append(0.0)
        record.latency.append(latency)
        record.code.append(0)
        record.deadline_s.append(0.02)
    told = result(record, 1)
    assert (told["answers_per_s"], told["good_per_s"]) == (2.0, 1.0)


def test_callers_give_up_when_they_said() -> None:
    record = shoot(steady(0.5), every(0.1, 1, cancel_s=0.05))
    assert set(record.code) == {1}
    assert list(record.latency) == pytest.approx([0.05] * 10)


def test_what_never_ends_is_counted_as_unfinished_with_the_time_it_waited() -> None:
    record = shoot(lambda sent: (math.inf, 0), every(0.1, 1), drain_s=2.0)
    assert set(record.code) == {UNFINISHED}
    assert record.latency[0] == pytest.approx(2.9, abs=0.01)
    told = result(record, 1)
    assert told["latency_ms"] == {}
    assert told["codes"] == {"UNFINISHED": 10}


@pytest.mark.parametrize("callers", [1, 8])
def test_a_closed_loop_keeps_its_callers_busy_and_has_no_more(callers: int) -> None:
    client = ScriptedClient(steady(0.1))
    record = run(client, ClosedLoop([Shot(0.0, 0)], callers, 2.0), 0.0, 5.0)
    assert client.most_in_flight == callers
    assert len(record) == pytest.approx(20 * callers, abs=callers)
    assert set(record.code) == {0}
