"""A client whose server is a script and whose clock only moves while everyone waits."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

Script = Callable[[float], tuple[float, int]]
"""From when a call was sent to when it ends, and with which status."""


def steady(delay_s: float) -> Script:
    return lambda sent: (sent + delay_s, 0)


def stalling(delay_s: float, begins: float, ends: float) -> Script:
    """Answers after `delay_s`, but nothing at all leaves it between the two times."""

    def ends_at(sent: float) -> tuple[float, int]:
        done = sent + delay_s
        return (ends if begins <= done < ends else done), 0

    return ends_at


class ScriptedClient:
    """`sleeps_through` makes the client itself, not the server, lose time: from the one time on until the other."""

    def __init__(self, script: Script, sleeps_through: tuple[float, float] = (math.inf, math.inf)) -> None:
        self.time = 0.0
        self.in_flight = 0
        self.most_in_flight = 0
        self.sent: list[float] = []
        self._script = script
        self._nap = sleeps_through
        self._ends: list[tuple[float, int, int]] = []
        self._gone: set[int] = set()

    def now(self) -> float:
        return self.time

    def start(self, call: int, body: int, deadline: float) -> None:
        self.sent.append(self.time)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        at, code = self._script(self.time)
        heapq.heappush(self._ends, (at, call, code) if at <= deadline else (deadline, call, 4))

    def cancel(self, call: int) -> None:
        if any(waiting == call for _, waiting, _ in self._ends) and call not in self._gone:
            self._gone.add(call)
            heapq.heappush(self._ends, (self.time, call, 1))

    def wait(self, until: float) -> Sequence[tuple[int, int, float]]:
        if not self._ends or self._ends[0][0] > until:
            self._pass_until(until)
            return []
        at, call, code = heapq.heappop(self._ends)
        self._pass_until(at)
        if call in self._gone and code != 1:
            return []
        self.in_flight -= 1
        return [(call, code, at)]

    def _pass_until(self, at: float) -> None:
        begins, ends = self._nap
        self.time = max(self.time, ends if begins <= at < ends else at)

    def close(self) -> None: ...
