"""Exactly one event for each episode, whatever the readings, and wherever the process is killed and started again."""

from __future__ import annotations

import json
import math
from itertools import groupby, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from server.watch.readings import Reading
from server.watch.triggers import Event, Rule, RuleState, evaluate_all

RULES = st.builds(
    Rule,
    name=st.just("r"), signal=st.just("drift"), above=st.sampled_from([0.4, 0.6]),
    clear=st.sampled_from([0.2, 0.4, math.nan]), raise_after=st.integers(1, 3), clear_after=st.integers(1, 3),
    window_s=st.sampled_from([0.0, 2.5]), min_samples=st.sampled_from([1, 10]), cooldown_s=st.sampled_from([0.0, 4.0]),
)  # fmt: skip
VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, math.nan]), max_size=40)
KILLED = st.sampled_from(["", "before saving", "after saving", "after sending"])
VERSION = ("m", 1)


class Process:
    """A server that may be killed: only `saved` and `outbox` survive, and `received` is somebody else's."""

    def __init__(self) -> None:
        self.saved = "{}"
        self.outbox: list[Event] = []
        self.received: list[str] = []

    def look(self, rule: Rule, reading: Reading, killed: str) -> None:
        state = {("r", *VERSION): RuleState.from_json(state) for state in json.loads(self.saved).values()}
        changed, events = evaluate_all([rule], state, "origin", {VERSION: [reading]}, reading.at)
        if killed == "before saving":
            return
        if changed:
            self.saved = json.dumps({"r": changed["r", *VERSION].as_json()})
            self.outbox += events
        if killed != "after saving":
            self.send(killed)

    def send(self, killed: str = "") -> None:
        self.received += [event.id for event in self.outbox]
        if not killed:
            self.outbox.clear()


@settings(max_examples=300, deadline=None)
@given(RULES, VALUES, st.data())
def test_kills_change_nothing(rule: Rule, values: list[float], data: st.DataObject) -> None:
    """The receivers' events, doubles left out by their id, are those of a server that was never killed."""
    steady, killed = Process(), Process()
    for number, value in enumerate(values):
        reading = Reading("drift", value, False, 10, float(number))
        steady.look(rule, reading, "")
        how = data.draw(KILLED)
        killed.look(rule, reading, how)
        if how == "before saving":  # the next process sees the same world
            killed.look(rule, reading, "")
        killed.send()
    assert [id_ for id_, _ in groupby(killed.received)] == steady.received
    assert len(set(steady.received)) == len(steady.received)


@settings(max_examples=300, deadline=None)
@given(RULES, VALUES)
def test_between_two_events_it_was_clear(rule: Rule, values: list[float]) -> None:
    process = Process()
    events: list[int] = []
    cleared: list[bool] = []
    for number, value in enumerate(values):
        before = len(process.received)
        process.look(rule, Reading("drift", value, False, 10, float(number)), "")
        if len(process.received) > before:
            events.append(number)
    for first, second in pairwise(events):
        assert second - first >= rule.cooldown_s
        assert second - first >= rule.clear_after + rule.raise_after
        if not rule.window_s:
            clear = rule.above if math.isnan(rule.clear) else rule.clear
            cleared.append(any(value <= clear for value in values[first:second]))
    assert all(cleared)
    if not rule.window_s and not rule.cooldown_s and events:  # and it did not wait
        said = [value for value in values[: events[0] + 1] if not math.isnan(value)]
        assert all(value > rule.above for value in said[-rule.raise_after :])
