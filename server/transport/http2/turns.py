"""Keeps the turns of the event loop short: of calls that come together, only so many begin as can be answered in time.

A loop that has more to do than it can reads ever more at a time, and each call waits for all that was read with it: its
time runs out before its handler begins, and the server works for nobody. Refusing a call as its head arrives costs a
fraction of answering it. So the length of a turn is measured, and while turns go on exceeding the target no more calls
begin in one than would have kept it; the others are told at once to come again. That is only for calls in a hurry: who
has the time of many turns loses nothing by waiting, and is never refused here.

Rule: costs one comparison a call while turns are short, and nothing while there are no calls.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import Final

TARGET_S: Final = 0.008
"""Calls wait for two turns or so; longer batches of them save nothing worth that wait."""
SUSTAINED_S: Final = 0.05
"""Turns in a row must have been too long for this long: one stall of the machine is no overload."""
HURRY: Final = 10.0
"""A call is in a hurry if it has less time than this many turns as long as the last."""
LEAST: Final = 16
"""So many begin however long turns are: some are long for other reasons, such as large messages."""
_GROWTH: Final = 1.25
"""How quickly the allowance is given back."""


class Turns:
    """The allowance of a server whose calls of `path` are the bulk of its work."""

    __slots__ = (
        "_allowed",
        "_armed",
        "_began",
        "_begun",
        "_clock",
        "_over_s",
        "_soon",
        "_told",
        "_took",
        "path",
        "refused",
    )

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
        self._allowed = math.inf
        self._begun = 0
        self._began = 0.0
        self._armed = False
        self._took = 0.0
        self._over_s = 0.0

    def __repr__(self) -> str:
        return f"<Turns [allowed: {self._allowed:.0f} | refused: {self.refused}]>"

    def begin(self, left_s: float | None) -> bool:
        """Whether one more call may begin in this turn, that has so much time; None for as much as it takes."""
        if not self._armed:
            self._arm()
        if self._begun >= self._allowed and left_s is not None and left_s < HURRY * self._took:
            self.refused += 1
            self._told()
            return False
        self._begun += 1
        return True

    def _arm(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon
        self._armed = True
        self._began = self._clock()
        self._soon(self._turned)

    def _turned(self) -> None:
        """A turn has passed since the last one, or since the first call after a pause."""
        now = self._clock()
        took = self._took = now - self._began
        begun = self._begun
        self._over_s = self._over_s + took if took > TARGET_S and begun > LEAST else 0.0
        if self._over_s > 0.0 and (self._allowed < math.inf or self._over_s >= SUSTAINED_S):
            self._allowed = max(LEAST, begun * TARGET_S / took)
        elif self._allowed < math.inf:
            self._allowed = self._allowed * _GROWTH if self._allowed < 1e6 else math.inf
        self._begun = 0
        if begun:
            self._began = now
            assert self._soon is not None
            self._soon(self._turned)
        else:
            self._armed = False
