"""When rules raise, clear and keep quiet."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from server.watch.readings import Reading
from server.watch.triggers import Aggregate, Phase, Rule, RuleState, evaluate, evaluate_all


def reading(at: float, value: float, *, alarm: bool = False, samples: int = 100, signal: str = "drift") -> Reading:
    return Reading(signal, value, alarm, samples, at)


def fired(rule: Rule, values: list[Any], *, step: float = 1.0) -> list[int]:
    """Which of these readings were followed by an event."""
    state = RuleState()
    found = []
    for number, value in enumerate(values):
        alarm = isinstance(value, bool) and value
        at = number * step
        state, event = evaluate(rule, state, reading(at, float(value), alarm=alarm), at)
        if event is not None:
            found.append(number)
    return found


def rule(**options: Any) -> Rule:
    return Rule(name="r", signal="drift", **options)


def test_one_event_an_episode_with_hysteresis() -> None:
    above = rule(above=0.5, clear=0.2)
    assert fired(above, [0.1, 0.6, 0.9, 0.3, 0.6, 0.2, 0.6, 0.6]) == [1, 6]
    below = rule(below=0.9, clear=0.95)
    assert fired(below, [0.97, 0.8, 0.92, 0.8, 0.95, 0.8]) == [1, 5]
    assert fired(rule(above=0.5), [0.5, 0.51, 0.5, 0.51]) == [1, 3]


def test_alarms_of_the_reading_itself() -> None:
    assert fired(rule(alarm=True), [False, True, True, False, True]) == [1, 4]


def test_several_in_a_row() -> None:
    patient = rule(above=0.5, raise_after=3, clear_after=2)
    assert fired(patient, [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1]) == [5, 14]


def test_a_window_is_judged_as_one() -> None:
    assert fired(rule(above=0.5, window_s=3.0), [0, 0, 0.9, 0.9, 0.9]) == [3]
    assert fired(rule(above=0.5, window_s=3.0, aggregate=Aggregate.MIN), [0, 0.9, 0.9, 0.9, 0.9]) == [3]
    assert fired(rule(above=0.5, window_s=3.0, aggregate=Aggregate.MAX), [0.9, 0, 0, 0, 0.9]) == [0, 4]


def test_an_event_in_the_cool_down_comes_after_it_if_it_still_holds() -> None:
    cool = rule(above=0.5, cooldown_s=4.0)
    assert fired(cool, [1, 0, 1, 1, 1, 1, 1]) == [0, 4]
    assert fired(cool, [1, 0, 1, 0, 0, 0, 0, 1]) == [0, 7]


def test_readings_that_say_nothing_change_nothing() -> None:
    careful = rule(above=0.5, min_samples=50)
    state, event = evaluate(careful, RuleState(), reading(1.0, 0.9, samples=49), 1.0)
    assert (state, event) == (RuleState(), None)
    state, event = evaluate(careful, RuleState(), reading(1.0, math.nan), 1.0)
    assert (state, event) == (RuleState(), None)
    twice = rule(above=0.5, raise_after=2)
    state, _ = evaluate(twice, RuleState(), reading(1.0, 0.9), 1.0)
    assert evaluate(twice, state, reading(1.0, 0.9), 2.0) == (state, None)  # the same reading, looked at again


def test_numbers_of_numpy_become_plain_data() -> None:
    odd: Any = (np.float32(0.75), np.bool_(1), np.int64(9), np.float64(1.0), np.float32(0.5))
    told = {("m", 1): [Reading("drift", *odd)]}
    state, events = evaluate_all([rule(above=0.5, window_s=9.0)], {}, "o", told, 1.0)
    json.dumps([state["r", "m", 1].as_json(), asdict(events[0])])


def test_rules_look_at_their_signal_and_each_model_version_by_itself() -> None:
    told = {
        ("a", 1): [reading(1.0, 0.9), reading(1.0, 0.1, signal="accuracy")],
        ("b", 1): [reading(1.0, 0.1)],
        ("b", 2): [reading(1.0, 0.9)],
    }
    rules = [
        rule(above=0.5),
        Rule(name="bad", signal="accuracy", below=0.5, model="b"),
        Rule(name="low", signal="accuracy", below=0.5),
    ]
    changed, events = evaluate_all(rules, {}, "o", told, 5.0)
    assert [(event.rule, event.model, event.version) for event in events] == [
        ("r", "a", 1),
        ("r", "b", 2),
        ("low", "a", 1),
    ]
    assert {key: state.phase for key, state in changed.items()} == {
        ("r", "a", 1): Phase.RAISED,
        ("r", "b", 1): Phase.QUIET,
        ("r", "b", 2): Phase.RAISED,
        ("low", "a", 1): Phase.RAISED,
    }
    assert len({event.id for event in events}) == 3
    assert evaluate_all(rules, {}, "o", told, 9.0)[1][0].id == events[0].id
    assert evaluate_all(rules, {}, "other", told, 5.0)[1][0].id != events[0].id
    assert evaluate_all(rules, changed, "o", told, 6.0) == ({}, [])


@pytest.mark.parametrize("state", [RuleState(), RuleState(phase=Phase.RAISED, recent=((1.0, 0.5),), episode=3)])
def test_the_state_is_plain_data(state: RuleState) -> None:
    assert RuleState.from_json(state.as_json()) == state
