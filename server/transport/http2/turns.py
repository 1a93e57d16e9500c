"""Keeps the turns of the event loop short: of calls that come together, only so many begin as can be answered in time.

A loop that has more to do than it can reads ever more at a time, and each call waits for all that was read with it: its
time runs out before its handler begins, and the server works for nobody. Refusing a call as its head arrives costs a
fraction of answering it. So the length of a turn is measured, and while it exceeds the target no more calls begin in
one than would have kept it; the others are told at once to come again.

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
LEAST: Final = 16
"""So many begin however long turns are: some are long for other reasons, such as large messages."""
_GROWTH: Final = 1.25
"""How quickly the allowance is given back."""


class Turns:
    """The allowance of a server whose calls of `path` are the bulk of its work."""

    __slots__ = ("_allowed", "_armed", "_began", "_begun", "_clock", "_soon", "_told", "path", "refused")

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

    def __repr__(self) -> str:
        return f"<Turns [allowed: {self._allowed:.0f} | refused: {self.refused}]>"

    def begin(self) -> bool:
        """Whether one more call may begin in this turn."""
        if not self._armed:
            self._arm()
        if self._begun >= self._allowed:
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
        took, begun = now - self._began, self._begun
        if took > TARGET_S and begun > LEAST:
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
