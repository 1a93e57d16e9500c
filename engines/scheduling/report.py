"""What the scheduler says (`Turn`) and what it is told (`BatchReport`)."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engines.errors import InferError
from engines.record import record
from engines.scheduling.latency import CostStatistics


class ClosedBy(enum.StrEnum):
    """Why a batch left with the rows it had."""

    FULL = "full"  # not one row more fits
    PREFERRED = "preferred"  # a preferred size was reached
    DEADLINE = "deadline"  # one row more and a member would have been late, or others lost
    DRAINED = "drained"  # nobody else was waiting, or nobody else fits
    ENOUGH = "enough"  # the others would only have kept these waiting: company saves nothing
    WAITED = "waited"  # the longest wait for company was over
    ALONE = "alone"  # the model takes no batches, or the request must run by itself


@dataclass(slots=True, eq=False)
class Pending:
    """A request as the scheduler sees it; `waiter` is the driver's own and opaque here."""

    rows: int
    arrived: float
    deadline: float
    """When nobody waits for the answer any more; infinite for never."""
    due: float
    """What the order goes by: the deadline, or an earlier queue timeout that only moves the request back."""
    start_by: float = math.inf
    """When the queue timeout is over that rejects; infinite for none."""
    level: int = 0
    """Priority level, lower first."""
    key: object = ()
    """Only requests with equal keys share a batch."""
    tenant: str = ""
    waiter: Any = None
    seq: int = 0
    """Kept by the scheduler: order of arrival."""
    order: float = math.inf
    """Kept by the scheduler: `due`, or when the execution must have ended for the answer to be in time."""
    waiting: bool = False
    """Kept by the scheduler: True from `offer` until the request leaves."""


class Refusal(NamedTuple):
    """A request that leaves without running, and what its caller is told."""

    pending: Pending
    error: InferError


@record
class Batch:
    """Requests that run together, in this order."""

    members: Sequence[Pending]
    rows: int
    padded_rows: int
    """What the engine executes: `rows`, or the next allowed size above."""
    closed_by: ClosedBy
    number: int = 0
    """Given by the scheduler; the report of this batch's execution carries it back."""


@record
class Turn:
    """The answer to "an engine is idle": at most one of `batch` and a reason to ask again at `wake_at`."""

    batch: Batch | None = None
    refusals: Sequence[Refusal] = ()
    wake_at: float = math.inf
    """Ask again at this time even if nothing arrives, seconds on the driver's clock; infinite for never."""


@record
class BatchReport:
    """One execution, as all observers see it. Times are seconds on the event loop's clock."""

    model: str
    version: int
    device: str
    rows: int
    padded_rows: int
    closed_by: ClosedBy
    opened: float
    """Arrival of the oldest member."""
    started: float
    finished: float
    gather_s: float
    execute_s: float
    scatter_s: float
    traces: tuple[str, ...] = ()
    error: str = ""
    """Empty when the engine answered."""
    answered: int = 1
    """Members who were still waiting when the engine was done."""
    abandoned_rows: int = 0
    """Of `rows`, those whose callers had left when the engine was done."""
    number: int = 0
    """The batch's own."""


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """What became of the requests of one class of deadlines since the start. Requests, not rows."""

    offered: int = 0
    refused: int = 0
    """Told no, at the door or while they waited."""
    left: int = 0
    """Their callers went away while they waited."""
    met: int = 0
    """Executed, and the answer was ready in time."""
    late: int = 0
    """Executed in vain: the answer came after the deadline, or the engine failed."""

    @property
    def attainment(self) -> float:
        """Share of those that ended which met their deadline; 1 when none has ended."""
        ended = self.refused + self.met + self.late
        return self.met / ended if ended else 1.0


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A snapshot."""

    requests: int
    rows: int
    oldest_arrival: float
    """infinite when the queue is empty."""
    classes: Mapping[str, ClassStatistics] = field(default_factory=dict)
    """By class of deadlines; empty where the policy keeps no account."""
    cost: CostStatistics | None = None
    """None where the policy has no cost model."""
