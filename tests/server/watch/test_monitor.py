"""Windows, looks and alarms of one model version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from engines.tensor import Array
from server.watch.monitor import HISTORY, Monitor, State
from server.watch.settings import WatchOptions
from tests.support.watching import SPEC, logits, observation, reference, world

OPTIONS = WatchOptions(rate=1.0, window_rows=200, look_s=0.0)
REFERENCE = reference(world(1, 2000))


def monitor(**changes: float) -> Monitor:
    return Monitor(SPEC, replace(OPTIONS, **changes), REFERENCE, clock=lambda: 0.0)


def send(watching: Monitor, rows: Array, *, each: int = 1, start: float = 0.0) -> None:
    """Requests of `each` rows, one a second."""
    parts = [rows[at : at + each] for at in range(0, len(rows), each)]
    watching.observe([observation(part, start + index) for index, part in enumerate(parts)])


def alarms(watching: Monitor) -> set[str]:
    return {name for name, reading in watching.readings().items() if reading.alarm}


def shifted(rows: Array) -> Array:
    rows[:, 0] += 1
    return rows


def swapped(rows: Array) -> Array:
    rows[:, 2] = np.array([2, 1, 0])[rows[:, 2].astype(int)]
    return rows


def dead(rows: Array) -> Array:
    rows[:, 1] = 0.25
    return rows


def missing(rows: Array) -> Array:
    rows[::5, 1] = np.nan
    return rows


def test_an_unchanged_world_raises_no_alarm() -> None:
    watching = monitor()
    send(watching, world(2, 600))
    found = watching.statistics()
    assert alarms(watching) == set()
    assert set(found.readings) == {"drift", "drift.x", "prediction_drift", "confidence", "volume"}
    assert found.state is State.WATCHING
    assert found.looks == 1 + 400 // 50  # the first when the window is full, then every quarter
    assert found.readings["drift"].samples == 200
    assert repr(watching) == "<Monitor m:1 [watching | window: 200 rows | looks: 9 | alarms: none]>"


@pytest.mark.parametrize("change", [shifted, swapped, dead, missing])
def test_a_changed_world_does_and_a_restored_one_ends_it(change: Callable[[Array], Array]) -> None:
    watching = monitor()
    send(watching, world(2, 300))
    send(watching, change(world(3, 200)))
    assert {"drift", "drift.x"} <= alarms(watching)
    reading = watching.readings()["drift"]
    assert reading.value > 0.1
    assert reading.p_value <= OPTIONS.alarm_p_value
    send(watching, world(4, 250))
    assert alarms(watching) == set()


def test_answers_of_another_kind_are_prediction_drift() -> None:
    watching = monitor()
    rows = world(2, 400)
    watching.observe(
        [observation(rows[i : i + 1], i, {"logits": logits(rows[i : i + 1])[:, ::-1]}) for i in range(400)]
    )
    assert alarms(watching) == {"prediction_drift"}


def test_less_sure_answers_lower_the_confidence_and_surer_ones_do_not() -> None:
    for factor, alarm in ((0.5, True), (2.0, False)):
        watching = monitor()
        rows = world(2, 400)
        watching.observe([observation(row[None], 0, {"logits": logits(row[None]) * factor}) for row in rows])
        assert watching.readings()["confidence"].alarm is alarm
        assert "prediction_drift" in alarms(watching)


def test_false_alarms_while_a_window_passes_are_within_the_level() -> None:
    random, raised, windows = np.random.default_rng(8), 0, 60
    for _ in range(windows):
        watching = Monitor(SPEC, OPTIONS, reference(world(int(random.integers(1 << 30)), 1000)), clock=lambda: 0.0)
        send(watching, world(int(random.integers(1 << 30)), 400), each=40)
        raised += any(reading.alarm for _, readings in watching.statistics().history for reading in readings.values())
    # Three signals, each at the level, over two window lengths.
    assert raised <= stats.binom.ppf(0.999, windows, 6 * OPTIONS.level)


def test_nothing_is_said_before_the_window_is_full() -> None:
    watching = monitor()
    send(watching, world(2, 199))
    assert set(watching.readings()) == {"volume"}
    assert watching.statistics().state is State.GATHERING
    send(watching, world(3, 1))
    assert watching.statistics().looks == 1


@pytest.mark.parametrize("each", [1, 7, 64])
def test_how_rows_come_makes_no_difference(each: int) -> None:
    single, grouped = monitor(), monitor()
    rows = world(2, 640)
    send(single, rows)
    send(grouped, rows, each=each)
    assert grouped.statistics().looks == single.statistics().looks
    assert grouped.readings()["drift"].p_value == single.readings()["drift"].p_value


def test_looks_are_no_closer_than_asked() -> None:
    watching = monitor(look_s=100.0)
    send(watching, world(2, 1000))  # a row a second
    times = [at for at, _ in watching.statistics().history]
    assert len(times) > 3
    assert min(np.diff(times)) >= 100


def test_a_clock_set_back_does_not_end_the_looks() -> None:
    watching = monitor(look_s=5.0)
    send(watching, world(2, 250), start=1_000_000)
    before = watching.statistics().looks
    send(watching, world(3, 60))
    assert watching.statistics().looks == before + 1


def test_old_rows_leave_the_window() -> None:
    watching = monitor(window_s=60.0)
    send(watching, world(2, 300))
    assert watching.readings()["drift"].samples == 60
    send(watching, world(3, 10), start=10_000)
    assert watching.statistics().window_rows <= 70


def test_small_differences_may_be_let_pass() -> None:
    watching = monitor(least_psi=50.0)
    send(watching, shifted(world(3, 300)))
    reading = watching.readings()["drift"]
    assert reading.p_value < 1e-6
    assert not reading.alarm


def test_rows_whose_answer_was_not_asked_for_still_count_as_inputs() -> None:
    watching = monitor()
    rows = world(2, 300)
    watching.observe([observation(row[None], 0, {"other": np.zeros((1, 1))}) for row in rows])
    assert set(watching.readings()) == {"drift", "drift.x", "volume"}


def test_without_a_baseline_it_is_blind_and_says_so() -> None:
    watching = Monitor(SPEC, OPTIONS, None, clock=lambda: 0.0)
    send(watching, world(2, 300))
    found = watching.statistics()
    assert found.state is State.BLIND
    assert "kairos baseline" in found.note
    assert watching.distributions() == ([], [])


def test_a_baseline_is_learned_if_asked_for() -> None:
    watching = Monitor(SPEC, replace(OPTIONS, learn_rows=1000), None, clock=lambda: 0.0)
    send(watching, world(2, 600))
    assert watching.statistics().state is State.LEARNING
    assert watching.statistics().note == "600 of 1000 rows learned"
    send(watching, world(3, 450))
    assert watching.statistics().reference_rows == 1000
    assert watching.statistics().window_rows == 50  # what came after the lessons
    assert watching.statistics().note == "learned from the first 1000 rows sampled"
    send(watching, world(4, 300))
    assert alarms(watching) == set()
    send(watching, shifted(world(5, 300)))
    assert {"drift", "drift.x"} <= alarms(watching)


def test_volume_is_requests_a_second_reckoned_from_the_sample() -> None:
    now = 30.0
    watching = Monitor(SPEC, replace(OPTIONS, rate=0.5), REFERENCE, clock=lambda: now)
    for second in range(30):
        send(watching, world(2, 2), each=2, start=second)
    assert watching.readings()["volume"].value == 30 / 0.5 / 60
    now = 85.0
    assert watching.readings()["volume"].samples == 4
    now = 200.0
    assert watching.readings()["volume"].value == 0


def test_history_and_distributions_are_bounded_and_shown() -> None:
    watching = monitor(window_rows=30)
    send(watching, world(2, 8000), each=64)
    found = watching.statistics()
    assert found.looks > HISTORY == len(found.history)
    inputs, answers = watching.distributions()
    assert [each.column.name for each in inputs] == ["x[0]", "x[1]", "x[2]"]
    assert [each.column.name for each in answers] == ["class", "confidence", "margin", "entropy"]
    for each in (*inputs, *answers):
        assert len(each.reference) == len(each.window)
        assert sum(each.reference) == pytest.approx(1)
        assert sum(each.window) > 0.9
