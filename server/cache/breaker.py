"""When to stop trying something that fails, and when to try again.

Rule: nothing here reads a clock, awaits, locks or logs.
Promise: while it is not closed, at most one probe is out at a time, and the pause before the next one doubles up to
    a bound. Outcomes of work that began before it opened change nothing.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class State(enum.Enum):
    """`repr` and metrics speak of these."""

    CLOSED = "closed"  # all is well: go on
    OPEN = "open"  # it fails: do not even try
    PROBING = "probing"  # one attempt is out to see whether it still fails


class Event(enum.Enum):
    """What moves a breaker."""

    TRIPPED = enum.auto()
    PROBE_SENT = enum.auto()
    PROBE_SUCCEEDED = enum.auto()
    PROBE_FAILED = enum.auto()


NEXT: Final[Mapping[State, Mapping[Event, State]]] = {
    State.CLOSED: {Event.TRIPPED: State.OPEN},
    State.OPEN: {Event.PROBE_SENT: State.PROBING},
    State.PROBING: {Event.PROBE_SUCCEEDED: State.CLOSED, Event.PROBE_FAILED: State.OPEN},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions:
    """When to open, and how long to stay open."""

    failures: int = 5
    """Failures within a window that open it, if they are also at least as many as the successes. 1: the first."""
    window_s: float = 1.0
    """Failures and successes are counted anew every so often."""
    min_pause_s: float = 0.25
    """From opening to the first probe."""
    max_pause_s: float = 15.0
    """The pause doubles with each failed probe up to this; each is shortened by up to a quarter at random."""


class Breaker:
    """A circuit breaker."""

    def __init__(self, options: BreakerOptions, rand: random.Random) -> None:
        self._options = options
        self._rand = rand
        self._state = State.CLOSED
        self._window_started = 0.0
        self._failures = 0
        self._successes = 0
        self._pause_s = options.min_pause_s
        self._probe_at = 0.0

    def __repr__(self) -> str:
        return f"<Breaker [{self._state.value}]>"

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether to go on as usual."""
        return self._state is State.CLOSED

    def record(self, *, ok: bool, now: float) -> None:
        """Note how one piece of ordinary work ended."""
        if self._state is not State.CLOSED:
            return
        if now - self._window_started >= self._options.window_s:
            self._window_started = now
            self._failures = self._successes = 0
        if ok:
            self._successes += 1
            return
        self._failures += 1
        if self._failures >= self._options.failures and self._failures >= self._successes:
            self._pause_s = self._options.min_pause_s
            self._open(Event.TRIPPED, now)

    def probe_due(self, now: float) -> bool:
        """Whether `take_probe` would let the caller try."""
        return self._state is State.OPEN and now >= self._probe_at

    def take_probe(self, now: float) -> bool:
        """Whether the caller is to try now, once, and report to `probed`."""
        if not self.probe_due(now):
            return False
        self._move(Event.PROBE_SENT)
        return True

    def probed(self, *, ok: bool, now: float) -> None:
        """How the probe ended."""
        if ok:
            self._move(Event.PROBE_SUCCEEDED)
            self._window_started = now
            self._failures = self._successes = 0
            return
        self._pause_s = min(2 * self._pause_s, self._options.max_pause_s)
        self._open(Event.PROBE_FAILED, now)

    def _open(self, event: Event, now: float) -> None:
        self._move(event)
        self._probe_at = now + self._pause_s * (1.0 - 0.25 * self._rand.random())

    def _move(self, event: Event) -> None:
        self._state = NEXT[self._state][event]
