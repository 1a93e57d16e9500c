"""The life of a model version, as a table.

Rule: nothing here reads a clock, awaits, locks or logs.
Promise: a version is only ever in a state that the table leads to.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class State(enum.Enum):
    """Where a version stands. The values are the words of Triton's repository index."""

    UNKNOWN = "UNKNOWN"
    """On disk, but nobody has asked for it yet."""
    LOADING = "LOADING"
    """Being read, opened and warmed up; nothing of it serves yet."""
    READY = "READY"
    UNLOADING = "UNLOADING"
    """Serves those who have borrowed it already, and nobody else."""
    UNAVAILABLE = "UNAVAILABLE"
    """Broken or unloaded; the reason says which."""


class Event(enum.Enum):
    """What happens to a version."""

    LOAD = "load"
    OPENED = "opened"
    FAILED = "failed"
    RETIRED = "retired"
    EMPTIED = "emptied"


NEXT: Final[Mapping[State, Mapping[Event, State]]] = {
    State.UNKNOWN: {Event.LOAD: State.LOADING},
    State.LOADING: {Event.OPENED: State.READY, Event.FAILED: State.UNAVAILABLE},
    # A version that serves is reloaded behind its own back: it stays ready whether that works out or not.
    State.READY: {
        Event.LOAD: State.READY,
        Event.OPENED: State.READY,
        Event.FAILED: State.READY,
        Event.RETIRED: State.UNLOADING,
    },
    State.UNLOADING: {Event.EMPTIED: State.UNAVAILABLE, Event.LOAD: State.LOADING},
    State.UNAVAILABLE: {Event.LOAD: State.LOADING},
}


@dataclass(slots=True)
class Life:
    """One version's state and why it is in it."""

    state: State = State.UNKNOWN
    reason: str = ""

    def take(self, event: Event, reason: str = "") -> None:
        """Go where the event leads. Raises ValueError for an event that the state does not know."""
        following = NEXT[self.state].get(event)
        if following is None:
            raise ValueError(f"a version that is {self.state.value} cannot be {event.value}")
        self.state = following
        self.reason = reason


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One row of the index."""

    name: str
    version: int
    """0 when the model as a whole is meant: no version of it has been looked at."""
    state: State
    reason: str = ""
