"""Breaker: when it opens, what it lets through, how long it waits."""

from __future__ import annotations

import random

import pytest

from server.cache.breaker import NEXT, Breaker, BreakerOptions, Event, State

OPTIONS = BreakerOptions(failures=3, window_s=1.0, min_pause_s=1.0, max_pause_s=3.0)


class Longest(random.Random):
    def random(self) -> float:
        return 0.0


def tripped(now: float = 0.0) -> Breaker:
    breaker = Breaker(OPTIONS, Longest())
    for _ in range(3):
        breaker.record(ok=False, now=now)
    return breaker


def test_a_few_failures_do_not_matter() -> None:
    breaker = Breaker(OPTIONS, Longest())
    for _ in range(2):
        breaker.record(ok=False, now=0.0)
    assert breaker.closed
    breaker.record(ok=False, now=1.0)  # the next window
    assert breaker.closed
    assert not breaker.take_probe(now=100.0)


def test_failures_outnumbered_by_successes_do_not_matter() -> None:
    breaker = Breaker(OPTIONS, Longest())
    for _ in range(4):
        breaker.record(ok=True, now=0.0)
    for _ in range(3):
        breaker.record(ok=False, now=0.0)
    assert breaker.closed
    breaker.record(ok=False, now=0.0)
    assert repr(breaker) == "<Breaker [open]>"


def test_one_probe_at_a_time_after_a_pause() -> None:
    breaker = tripped()
    assert not breaker.probe_due(now=0.9)
    assert not breaker.take_probe(now=0.9)
    assert breaker.take_probe(now=1.0)
    assert breaker.state is State.PROBING
    assert not breaker.take_probe(now=9.0)
    breaker.probed(ok=True, now=9.0)
    assert breaker.closed


def test_pauses_double_up_to_the_bound_and_start_small_again() -> None:
    breaker = tripped()
    now = 0.0
    for pause in (1.0, 2.0, 3.0, 3.0):
        assert not breaker.take_probe(now + pause - 0.01)
        now += pause
        assert breaker.take_probe(now)
        breaker.probed(ok=False, now=now)
    now += 3.0
    assert breaker.take_probe(now)
    breaker.probed(ok=True, now=now)
    for _ in range(3):
        breaker.record(ok=False, now=now)
    assert breaker.take_probe(now + 1.0)


def test_pauses_are_spread_at_random() -> None:
    due = set()
    for seed in range(20):
        breaker = Breaker(OPTIONS, random.Random(seed))
        for _ in range(3):
            breaker.record(ok=False, now=0.0)
        assert not breaker.probe_due(now=0.74)
        assert breaker.probe_due(now=1.0)
        due.add(breaker.probe_due(now=0.87))
    assert due == {True, False}


def test_late_news_of_older_work_changes_nothing() -> None:
    breaker = tripped()
    breaker.record(ok=True, now=0.5)
    assert breaker.state is State.OPEN
    breaker.take_probe(now=1.0)
    breaker.record(ok=False, now=1.0)
    breaker.record(ok=True, now=1.0)
    assert breaker.state is State.PROBING


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_left_and_only_as_the_table_says(state: State) -> None:
    assert NEXT[state]
    assert set(NEXT[state]) <= set(Event)
    assert state not in NEXT[state].values()
