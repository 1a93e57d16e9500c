"""What a scheduler is: the interface that policies implement, and the options they share."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engines.scheduling.report import BatchReport, Pending, QueueStatistics, Refusal, Turn


class TimeoutAction(enum.Enum):
    """What becomes of a request whose queue timeout is over."""

    REJECT = "reject"
    DELAY = "delay"  # it stays, behind all others of its level that are in time


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """Bounds of one priority level (Triton's ModelQueuePolicy)."""

    max_requests: int = 0
    """Most requests that may wait; a further one is refused. 0: no bound."""
    timeout_s: float = math.inf
    """Longest wait of a request that brings no time of its own. Infinite: as long as it takes."""
    may_override: bool = True
    """Whether a request's own `timeout` parameter may shorten `timeout_s`."""
    action: TimeoutAction = TimeoutAction.REJECT

    def timeout_for(self, asked_s: float) -> float:
        """The queue timeout of a request whose `timeout` parameter is `asked_s` (infinite: none)."""
        return min(asked_s, self.timeout_s) if self.may_override else self.timeout_s


class Policy(enum.Enum):
    """Who decides what runs."""

    DEADLINE = "deadline"  # drain.DrainQueue
    FIFO = "fifo"  # queue.DeadlineQueue, in order of arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How batches of one model are formed."""

    max_rows: int = 1
    """Most rows in a batch. 1: each request runs alone."""
    allowed_rows: Sequence[int] = ()
    """Sizes the engine may see, ascending; batches are padded up to the next. Empty: any."""
    preferred_rows: Sequence[int] = ()
    """Sizes worth waiting for, ascending, as long as `max_wait_s` is not over. Empty: only `max_rows` is."""
    max_wait_s: float = 0.0
    """Longest wait for company while an engine is idle. 0: leave as soon as an engine is free."""
    levels: int = 0
    """Priority levels, 1 the most urgent. 0: there is one level, and priorities are ignored."""
    default_level: int = 0
    """Level of a request that names none, or one that does not exist."""
    policy: QueuePolicy = field(default_factory=QueuePolicy)
    """For every level that `level_policies` does not name."""
    level_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    in_order: bool = False
    """Serve and answer strictly in order of arrival, whatever the deadlines."""

    def level(self, priority: int) -> int:
        """The level that a request of this priority belongs to."""
        return priority if 0 < priority <= self.levels else self.default_level

    def policy_of(self, level: int) -> QueuePolicy:
        """The queue policy of a level."""
        return self.level_policies.get(level, self.policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineOptions:
    """How drain.DrainQueue keeps deadlines."""

    reply_s: float = 0.0005
    """Taken off each deadline for serialising and sending the answer. 0: an answer ready at the deadline is in time."""
    quantile: float = 0.9
    """Batches are planned with the time that this share of executions does not exceed."""
    classes_s: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Upper ends of the classes of deadlines, by the time a request has when it arrives; for attainment and floors."""
    floor: float = 0.02
    """What part of the mean service each class gets at least in overload, where deadlines allow it. 0: none."""
    patience_s: float = 1.0
    """After this wait a request without a deadline is given a turn. Infinite: it only takes what is left over."""
    patient_share: float = 0.1
    """Most of the engines' time for such turns."""
    stale_s: float = 1.0
    """When nothing has run for so long, estimates refuse nobody: one request runs, and teaches what it costs."""


class Scheduler(Protocol):
    """Requests wait here. Promise: each one leaves exactly once: in a Batch, a Refusal, or by `withdraw`."""

    def offer(self, pending: Pending, now: float) -> None:
        """Take the request in, or raise Overloaded or DeadlineExceeded at once."""
        ...

    def withdraw(self, pending: Pending) -> bool:
        """The caller left. True when the request was still waiting."""
        ...

    def take(self, now: float) -> Turn:
        """An engine is idle: what should it run?"""
        ...

    def expire(self, now: float) -> Sequence[Refusal]:
        """Who is not worth running any more; asked for while all engines are busy."""
        ...

    def next_expiry(self) -> float:
        """When `expire` will next have something to say; infinite for never. May be early, never late."""
        ...

    def learn(self, report: BatchReport) -> None:
        """An execution has ended."""
        ...

    def clear(self) -> Sequence[Pending]:
        """All who wait leave at once; for the end of the model."""
        ...

    def statistics(self) -> QueueStatistics:
        """How much waits."""
        ...
