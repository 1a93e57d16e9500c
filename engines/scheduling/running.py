"""What the engines of one model are doing, as far as a scheduler knows: what it handed out and what came back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engines.scheduling.report import Pending

_STUCK: Final = 8.0
"""An execution that takes this many times what it should no longer counts as running ..."""
_STUCK_S: Final = 0.25
"""... once it has taken this long."""


@dataclass(slots=True)
class _Execution:
    members: Sequence[Pending]
    ends: float
    """When it is expected to end."""
    stuck: float
    """When it is to be taken for stuck."""
    ended: bool = False
    """Its engine came back before its report did."""


class Running:
    """Batches by number. `engines` is how many can run at a time; it may change."""

    __slots__ = ("_executions", "_number", "_running", "engines")

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self._executions: dict[int, _Execution] = {}
        self._number = 0
        self._running = 0  # those of them that have not ended

    def __len__(self) -> int:
        return self._running

    def start(self, members: Sequence[Pending], now: float, seconds: float) -> int:
        """A batch was handed out that is expected to take so long; its number."""
        self._number += 1
        stuck = now + max(_STUCK_S, _STUCK * seconds)
        self._executions[self._number] = _Execution(members, now + seconds, stuck)
        self._running += 1
        return self._number

    def end(self, number: int) -> Sequence[Pending]:
        """Its report came; its members, none when the number is not known."""
        execution = self._executions.pop(number, None)
        if execution is None:
            return ()
        self._running -= not execution.ended
        return execution.members

    def note_idle_engine(self) -> None:
        """An engine asks for work: at most the others are busy, though a report may still be on its way."""
        if len(self._executions) < self.engines:
            return
        busy = sorted((one for one in self._executions.values() if not one.ended), key=lambda one: one.ends)
        for execution in busy[: max(0, len(busy) - self.engines + 1)]:
            execution.ended = True
            self._running -= 1
        while len(self._executions) > 2 * self.engines + 8:  # reports that never came
            self.end(next(iter(self._executions)))

    def free_at(self, now: float) -> float:
        """When an engine is expected to be idle."""
        if self._running < self.engines:
            return now
        return max(now, min(one.ends for one in self._executions.values() if not one.ended))

    def others_free_at(self, now: float) -> list[float]:
        """The same for all engines but the one that is idle now."""
        busy = [max(now, one.ends) for one in self._executions.values() if not one.ended]
        return busy + [now] * (self.engines - 1 - len(busy))

    def first_end(self, now: float) -> float:
        """When the first of them is expected to end; infinite when none runs."""
        return min((max(now, one.ends) for one in self._executions.values() if not one.ended), default=math.inf)

    def busy(self, now: float) -> int:
        """How many run, those that are stuck left out."""
        return sum(not one.ended and now < one.stuck for one in self._executions.values())

    def next_stuck(self, now: float) -> float:
        """When the next of them is to be taken for stuck; infinite when none runs."""
        return min(
            (one.stuck for one in self._executions.values() if not one.ended and now < one.stuck), default=math.inf
        )
