"""Keeps the turns of the event loop short: of the calls that are there, only so many start in one as it has time for.

A loop that has more to do than it can reads ever more at a time, and each call waits for all that was read with it: its
time runs out while it is worked on, and the server works for nobody. A call passes through several turns, so they must
be a small part of the tightest deadlines. Hence calls that have arrived wait here, whoever is due first in front, and
each turn starts as many as keep it at its target. Whom so many are ahead of that it cannot be answered in time is told
at once, as its head arrives, to come again: that costs a fraction of an answer.

A line of calls in a hurry that stays long is no burst but more than the server can do. It is kept short then, and any
of them that comes while it is not is refused: else the tightest deadlines, which go first, would leave the others to
expire. Who has more time may wait for most of it.

Rule: costs two comparisons a call while nobody waits, and nothing while there are no calls.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right, insort
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    _Entry = tuple[float, int, "Startable", bool]

PASSES: Final = 4
"""Turns from a call's start to its answer: its handler, the batch, the answer, the socket."""
SHARE: Final = 0.5
"""What all of them together may take of the tightest deadlines of late, ..."""
SHORTEST_S: Final = 0.002
LONGEST_S: Final = 0.010
"""... within these bounds for one of them: shorter ones would be mostly overhead, and longer ones save nothing."""
FIRST: Final = 64
"""How many start in a turn before anything is known; it grows by a quarter in each turn that had time for more."""
LEAST: Final = 8
"""So many start however long turns are: some are long for other reasons, such as large messages."""
HURRY_S: Final = 0.125
"""Calls with less time than this are in a hurry."""
SHORT: Final = 3.0
"""Their line is short if it takes no longer than so many turns."""
WAIT: Final = 0.75
"""What the others may wait of their time: callers count from before their call arrives."""
SUSTAINED_S: Final = 0.1
"""So long it must have been long to be no burst, and short without any refusal to be over."""
PATIENT_S: Final = 1.0
"""Calls without a deadline take their place among the others as if they had so much time; they are never refused."""
_GROWTH: Final = 1.25
_FORGET: Final = 1.01
"""By which the tightest deadline of late grows each turn."""
_MEMORY_S: Final = 0.1
"""The rate at which calls start is that of the last tenth of a second or so."""


class Startable(Protocol):
    """A call whose request is there."""

    deadline: float | None

    def start(self) -> None: ...

    def turn_away(self) -> None: ...

    def done(self) -> bool: ...


class Turns:
    """The line of a server whose calls of `path` are the bulk of its work."""

    __slots__ = (
        "_allowed", "_armed", "_began", "_clock", "_crowded", "_hurried", "_line", "_number", "_ran", "_ran_s",
        "_refused_before", "_since", "_soon", "_started", "_target_s", "_tightest", "_told", "path", "refused",
    )  # fmt: skip

    def __init__(
        self,
        path: bytes,
        told: Callable[[], None] = lambda: None,
        soon: Callable[[Callable[[], None]], object] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Make it with whom to tell of each refusal, and what runs a callback at the start of the next turn.

        The latter is the running loop's `call_soon` unless a test has another.
        """
        self.path = path
        self.refused = 0
        self._told = told
        self._soon = soon
        self._clock = clock
        self._line: list[_Entry] = []  # whoever is due first in front
        self._number = count()
        self._hurried = 0  # of the line, those who came in a hurry
        self._allowed = float(FIRST)
        self._started = 0  # in this turn
        self._began = 0.0
        self._target_s = LONGEST_S
        self._tightest = math.inf
        self._armed = False
        self._ran = self._ran_s = 0.0  # calls started, and seconds, while there was a line; both fade
        self._crowded = False
        self._refused_before = 0
        self._since = math.inf  # since when the line's length has spoken against that

    def __repr__(self) -> str:
        return f"<Turns [waiting: {len(self._line)} | a turn: {self._allowed:.0f} | refused: {self.refused}]>"

    def admits(self, left_s: float | None) -> bool:
        """Whether a call whose head arrives can be answered in the time it has; None for as much as it takes."""
        if left_s is None:
            return True
        self._tightest = min(self._tightest, left_s)
        line = self._line
        if not line or not self._ran:
            return True
        pace_s = self._ran_s / self._ran
        hurries = left_s < HURRY_S
        if hurries and self._crowded and self._hurried * pace_s > SHORT * self._target_s:
            return self._refuse()
        ahead = bisect_right(line, self._began + left_s, key=_due)
        return ahead * pace_s + PASSES * self._target_s <= (left_s if hurries else WAIT * left_s) or self._refuse()

    def _refuse(self) -> bool:
        self.refused += 1
        self._told()
        return False

    def start(self, call: Startable) -> None:
        """Start the call, now or when it is its turn."""
        if not self._armed:
            self._arm()
        if self._started < self._allowed and not self._line:
            self._started += 1
            call.start()
        else:
            due = self._began + PATIENT_S if call.deadline is None else call.deadline
            hurries = due - self._began < HURRY_S
            self._hurried += hurries
            insort(self._line, (due, next(self._number), call, hurries))

    def _arm(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon
        self._armed = True
        self._began = self._clock()
        self._soon(self._turned)

    def _turned(self) -> None:
        """A turn has passed since the last one, or since the first call after a pause."""
        now = self._clock()
        took = now - self._began
        started, line = self._started, self._line
        self._tightest *= _FORGET
        target_s = self._target_s = min(max(SHARE / PASSES * self._tightest, SHORTEST_S), LONGEST_S)
        if took > target_s and started >= LEAST:
            self._allowed = max(LEAST, started * target_s / took)
        elif started >= self._allowed:
            self._allowed *= _GROWTH
        self._began, self._started = now, 0
        if line:
            kept = 0.5 ** (took / _MEMORY_S)
            self._ran, self._ran_s = self._ran * kept + started, self._ran_s * kept + took
            self._start_first(now)
        self._note_length(now)
        if started or line:
            assert self._soon is not None
            self._soon(self._turned)
        else:
            self._armed = False

    def _start_first(self, now: float) -> None:
        """Start whoever is due first, as many as this turn has time for, and turn away for whom it is too late."""
        line, at = self._line, 0
        soonest = now + PASSES * self._target_s
        while at < len(line) and self._started < self._allowed:
            due, _, call, hurries = line[at]
            at += 1
            self._hurried -= hurries
            if call.done():
                continue
            if due < soonest and call.deadline is not None:
                self._refuse()
                call.turn_away()
                continue
            self._started += 1
            call.start()
        del line[:at]

    def _note_length(self, now: float) -> None:
        """Find out whether the line of those in a hurry is a burst, or more than the server can do."""
        refuses, self._refused_before = self.refused > self._refused_before, self.refused
        long = self._hurried * self._ran_s > SHORT * self._target_s * self._ran
        if (long or (self._crowded and refuses)) == self._crowded:
            self._since = math.inf
        elif self._since == math.inf:
            self._since = now
        elif now >= self._since + SUSTAINED_S:
            self._crowded, self._since = not self._crowded, math.inf


def _due(entry: _Entry) -> float:
    return entry[0]
