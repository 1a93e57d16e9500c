"""Whether looking pays: the cache of a quick model whose requests do not repeat steps aside, and tries now and then.

Rule: nothing here reads a clock. A model is worth looking for while its executions take `SLOW_S` or more, whatever the
hits: a look-up then hardly shows. For a quicker one the first `WINDOW` requests decide, and each `WINDOW` after them.
Aside, `PROBE` requests in a row are looked for out of each `PERIOD`; one hit among them brings the cache back.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 2048
"""Requests between two judgements."""
LEAST_HITS: Final = WINDOW // 200
"""Half a percent: about where it begins to pay for a quick model."""
SLOW_S: Final = 0.0005
"""A miss costs some 15 us in memory and 50 with Redis: 3 and 10 % of an execution this long."""
PERIOD: Final = 1024
PROBE: Final = 48
"""Under a twentieth of the price; what repeats at all repeats among these, or meets what earlier probes have kept."""


class Worth:
    """Judges one model version by what `hit` and `miss` tell it."""

    __slots__ = ("_aside", "_execute_s", "_hits", "_misses", "_turn")

    def __init__(self) -> None:
        self._hits = self._misses = 0
        self._execute_s = 0.0
        self._aside = False
        self._turn = 0

    def __repr__(self) -> str:
        return f"<Worth [{'aside' if self._aside else 'looking'} | hits: {self._hits} | misses: {self._misses}]>"

    def look(self) -> bool:
        """Whether the next request is to be looked for."""
        if not self._aside:
            return True
        self._turn = (self._turn + 1) % PERIOD
        return self._turn < PROBE

    def hit(self) -> None:
        """It was found, or shared another one's execution."""
        self._hits += 1
        if self._aside:
            self._begin(aside=False)

    def miss(self, execute_s: float) -> None:
        """It was executed, its share of its batch took so long."""
        self._misses += 1
        self._execute_s += execute_s
        if self._hits + self._misses >= WINDOW:
            quick = self._execute_s < SLOW_S * self._misses
            self._begin(aside=quick and self._hits < LEAST_HITS)

    def _begin(self, *, aside: bool) -> None:
        self._aside = aside
        self._hits = self._misses = 0
        self._execute_s = 0.0
