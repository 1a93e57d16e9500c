"""What the engines of one model are doing, as far as a scheduler knows: what it handed out and what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.scheduling.report import Pending


@dataclass(slots=True)
class _Execution:
    members: Sequence[Pending]
    ends: float
    """When it is expected to end."""
    ended: bool = False
    """Its engine came back before its report did."""


class Running:
    """Batches by number. `engines` is how many can run at a time; it may change."""

    __slots__ = ("_executions", "_number", "engines")

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self._executions: dict[int, _Execution] = {}
        self._number = 0

    def __len__(self) -> int:
        return sum(not execution.ended for execution in self._executions.values())

    def start(self, members: Sequence[Pending], ends: float) -> int:
        """A batch was handed out; its number."""
        self._number += 1
        self._executions[self._number] = _Execution(members, ends)
        return self._number

    def end(self, number: int) -> Sequence[Pending]:
        """Its report came; its members, none when the number is not known."""
        execution = self._executions.pop(number, None)
        return () if execution is None else execution.members

    def note_idle_engine(self) -> None:
        """An engine asks for work: at most the others are busy, though a report may still be on its way."""
        busy = sorted((one for one in self._executions.values() if not one.ended), key=lambda one: one.ends)
        for execution in busy[: max(0, len(busy) - self.engines + 1)]:
            execution.ended = True
        while len(self._executions) > 2 * self.engines + 8:  # reports that never came
            del self._executions[next(iter(self._executions))]

    def free_at(self, now: float) -> float:
        """When an engine is expected to be idle."""
        if len(self) < self.engines:
            return now
        return max(now, min(one.ends for one in self._executions.values() if not one.ended))

    def others_free_at(self, now: float) -> list[float]:
        """The same for all engines but the one that is idle now."""
        busy = [max(now, one.ends) for one in self._executions.values() if not one.ended]
        return busy + [now] * (self.engines - 1 - len(busy))
