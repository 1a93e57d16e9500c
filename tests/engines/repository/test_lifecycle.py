"""The table of states."""

from __future__ import annotations

import pytest

from engines.repository.lifecycle import NEXT, Event, Life, State


def test_a_whole_life() -> None:
    life = Life()
    for event, state in (
        (Event.LOAD, State.LOADING),
        (Event.FAILED, State.UNAVAILABLE),
        (Event.LOAD, State.LOADING),
        (Event.OPENED, State.READY),
        (Event.RETIRED, State.UNLOADING),
        (Event.EMPTIED, State.UNAVAILABLE),
    ):
        life.take(event, event.value)
        assert (life.state, life.reason) == (state, event.value)


def test_a_reload_never_takes_a_serving_version_away() -> None:
    for event in (Event.LOAD, Event.FAILED, Event.OPENED):
        assert NEXT[State.READY][event] is State.READY


@pytest.mark.parametrize("state", State)
def test_what_the_table_does_not_know_cannot_happen(state: State) -> None:
    for event in set(Event) - set(NEXT[state]):
        with pytest.raises(ValueError, match=f"a version that is {state.value} cannot be {event.value}"):
            Life(state).take(event)
