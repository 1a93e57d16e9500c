"""The loop that sends: calls leave when they are due, whatever became of those before them.

Rule: all time is the client's clock. A call's latency is counted from when it was due, so a late start, of which
`slip` keeps the size, is part of it (no coordinated omission). A closed loop has no schedule: there a call is due
when its caller is free.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from loadtest.load.client import Client

UNFINISHED = 99
"""In place of a gRPC status: no end was seen."""


class Shot(NamedTuple):
    """A call to come."""

    due: float
    """Seconds from the start."""
    body: int
    kind: int = 0
    """Which kind of request of the scenario."""
    deadline_s: float = math.inf
    """From `due`."""
    cancel_s: float = math.inf
    """From `due`: when the caller gives up."""
    patient: bool = False
    """The deadline only judges the answer: the call has none and is waited for, as a server is told in other ways."""


@dataclass(slots=True)
class Record:
    """What became of each call, by number; times are seconds from the start."""

    kind: array[int] = field(default_factory=lambda: array("H"))
    due: array[float] = field(default_factory=lambda: array("d"))
    slip: array[float] = field(default_factory=lambda: array("d"))
    """How much later than due it was started."""
    latency: array[float] = field(default_factory=lambda: array("d"))
    """From due to its end. Of an unfinished call: how long it had waited when the run was over."""
    code: array[int] = field(default_factory=lambda: array("B"))
    deadline_s: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.due)


class Source(Protocol):
    """Where calls come from."""

    def next_due(self) -> float:
        """When the next one is due, infinite if none is known."""
        ...

    def take(self) -> Shot: ...

    def over(self, now: float) -> bool:
        """No more will be due."""
        ...

    def freed(self, now: float) -> None:
        """A call has ended."""


class OpenLoop:
    """A fixed schedule."""

    def __init__(self, shots: Sequence[Shot]) -> None:
        self._shots = shots
        self._next = 0

    def next_due(self) -> float:
        return self._shots[self._next].due if self._next < len(self._shots) else math.inf

    def take(self) -> Shot:
        shot = self._shots[self._next]
        self._next += 1
        return shot

    def over(self, now: float) -> bool:  # noqa: ARG002 - a schedule is over when all has been sent
        return self._next == len(self._shots)

    def freed(self, now: float) -> None:
        """Nobody waits for answers here."""


class ClosedLoop:
    """So many callers; each sends again when it has its answer. `shots` say what they ask for, over and over."""

    def __init__(self, shots: Sequence[Shot], callers: int, seconds: float) -> None:
        self._shots, self._seconds = shots, seconds
        self._free = [0.0] * callers
        self._next = 0

    def next_due(self) -> float:
        return self._free[0] if self._free else math.inf

    def take(self) -> Shot:
        shot = self._shots[self._next % len(self._shots)]
        self._next += 1
        return shot._replace(due=heapq.heappop(self._free))

    def over(self, now: float) -> bool:
        return now >= self._seconds and not self._free

    def freed(self, now: float) -> None:
        if now < self._seconds:
            heapq.heappush(self._free, now)


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    sent: int = 0
    ended: int = 0
    good: int = 0
    slip_s: float = 0.0
    """The largest slip since the last report."""


def run(
    client: Client,
    source: Source,
    began: float,
    drain_s: float,
    report: Callable[[float, Progress], None] | None = None,
) -> Record:
    """Send everything, then wait `drain_s` for what is still out. `began` is the start, by the client's clock."""
    return _Run(client, source, began, report).all(drain_s)


class _Run:
    def __init__(
        self, client: Client, source: Source, began: float, report: Callable[[float, Progress], None] | None
    ) -> None:
        self._client, self._source, self._began, self._report = client, source, began, report
        self._record = Record()
        self._out = 0
        self._cancels: list[tuple[float, int]] = []
        self._progress = Progress()
        self._next_report = 0.0

    def all(self, drain_s: float) -> Record:
        ends = math.inf
        while True:
            now = self._client.now() - self._began
            self._start_what_is_due(now)
            if ends == math.inf and self._source.over(now):
                ends = now + drain_s
            if now >= ends or (ends < math.inf and not self._out):
                break
            cancel = self._cancels[0][0] if self._cancels else math.inf
            until = min(self._source.next_due(), ends, cancel, self._next_report)
            for call, code, at in self._client.wait(self._began + until):
                self._ended(call, code, at - self._began)
        self._abandon()
        return self._record

    def _start_what_is_due(self, now: float) -> None:
        source, record, client = self._source, self._record, self._client
        while source.next_due() <= now:
            shot = source.take()
            call = len(record.due)
            record.kind.append(shot.kind)
            record.due.append(shot.due)
            record.slip.append(now - shot.due)
            record.latency.append(math.nan)
            record.code.append(UNFINISHED)
            record.deadline_s.append(shot.deadline_s)
            self._out += 1
            self._progress.slip_s = max(self._progress.slip_s, now - shot.due)
            patience_s = math.inf if shot.patient else shot.deadline_s
            client.start(call, shot.body, self._began + shot.due + patience_s)
            if shot.cancel_s < math.inf:
                heapq.heappush(self._cancels, (shot.due + shot.cancel_s, call))
            now = client.now() - self._began
        while self._cancels and self._cancels[0][0] <= now:
            client.cancel(heapq.heappop(self._cancels)[1])
        if self._report is not None and now >= self._next_report:
            self._progress.sent = len(record)
            self._report(now, self._progress)
            self._progress.slip_s = 0.0
        self._next_report = max(self._next_report, math.floor(now * 4 + 1) / 4)

    def _ended(self, call: int, code: int, at: float) -> None:
        record = self._record
        record.code[call] = code
        record.latency[call] = took = at - record.due[call]
        self._out -= 1
        self._progress.ended += 1
        if code == 0 and took <= record.deadline_s[call]:
            self._progress.good += 1
        self._source.freed(at)

    def _abandon(self) -> None:
        now = self._client.now() - self._began
        for call, latency in enumerate(self._record.latency):
            if math.isnan(latency):
                self._record.latency[call] = now - self._record.due[call]
