"""Counts what becomes of each request of a model version. ModelStatistics and metrics read the same numbers."""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from engines.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    InferError,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    Unsupported,
)
from engines.request import InferRequest, InferResponse, Origin
from engines.scheduling.report import BatchReport, ClosedBy
from engines.spec import ModelSpec
from server.pb import grpc_service_pb2 as pb
from server.telemetry.histogram import SECONDS, SLACK_S, Exemplar, Histogram


class Outcome(enum.StrEnum):
    """How a request ended. Goodput is in_deadline over all."""

    IN_DEADLINE = "in_deadline"
    LATE = "late"
    SHED = "shed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    ERROR = "error"


_OUTCOMES: Final = (
    ((InvalidRequest, ModelNotFound, Unsupported), Outcome.INVALID),
    ((Overloaded, Draining, ModelNotReady), Outcome.SHED),
    ((DeadlineExceeded,), Outcome.EXPIRED),
    ((Cancelled, asyncio.CancelledError), Outcome.CANCELLED),
)
_IN_DEADLINE: Final = Outcome.IN_DEADLINE
_LATE: Final = Outcome.LATE
_ENGINE: Final = Origin.ENGINE
_NEVER: Final = math.inf


NOTED: Final = 4096
"""Requests whose times wait to be counted: together that costs a tenth of counting each by itself."""


def outcome_of(error: BaseException) -> Outcome:
    """The outcome that an error stands for."""
    return next((outcome for kinds, outcome in _OUTCOMES if isinstance(error, kinds)), Outcome.ERROR)


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one event."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class BatchCount:
    """Executions of one size."""

    gather: Duration = field(default_factory=Duration)
    execute: Duration = field(default_factory=Duration)
    scatter: Duration = field(default_factory=Duration)


@dataclass(slots=True, kw_only=True)
class Counters:
    """The plain numbers of one model version."""

    failures: Duration = field(default_factory=Duration)
    inferences: int = 0
    """Rows answered by engines."""
    executions: int = 0
    failed_executions: int = 0
    executed_rows: int = 0
    """Rows that engines ran, padding included."""
    padding_rows: int = 0
    """Of these, rows added to reach an allowed batch size."""
    abandoned_rows: int = 0
    """Of these, rows whose callers had left before the answer came."""
    last_inference_ms: int = 0
    """Since the epoch; 0 for never."""

    def copy(self) -> Counters:
        """A snapshot."""
        return replace(self, failures=replace(self.failures))


class UnroutedMeter:
    """Counts requests that reached no model version: unknown names, versions that are not ready, a drain."""

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = {Outcome.INVALID: 0, Outcome.SHED: 0}

    def refused(self, error: InferError) -> None:
        """A request was refused before it was known whose it is."""
        outcome = outcome_of(error)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def shed(self) -> None:
        """A request was refused before anybody looked at it."""
        self.outcomes[Outcome.SHED] += 1


class ModelMeter:
    """All counters of one model version since it was loaded. Used from the event loop only."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.in_flight = 0
        self.cache_misses: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
        """How many requests a cache in the stack knew no answer to, and the seconds that it cost them."""
        self.reset()

    def reset(self) -> None:
        """Start counting anew; for after the warm-up."""
        self.counters = Counters()
        self._noted = 0
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.origins: dict[Origin, int] = dict.fromkeys(Origin, 0)
        self.closed_by: dict[ClosedBy, int] = dict.fromkeys(ClosedBy, 0)
        self.batches: dict[int, BatchCount] = {}
        """By rows, padding left out."""
        self.request = Histogram(SECONDS)
        self.remembered = Histogram(SECONDS)
        """Requests that no engine was asked for: answered from a cache, or by another's execution."""
        self.queue = Histogram(SECONDS)
        self.gather = Histogram(SECONDS)
        self.execute = Histogram(SECONDS)
        self.scatter = Histogram(SECONDS)
        self.slack_at_dispatch = Histogram(SLACK_S)
        self.slack_at_reply = Histogram(SLACK_S)
        self.batch = Histogram(SECONDS)
        """Seconds that a batch occupied its engine."""

    def invalid(self) -> None:
        """A request was refused before it reached the stack."""
        self.outcomes[Outcome.INVALID] += 1
        self.counters.failures.add(0.0)

    def answered(self, request: InferRequest, response: InferResponse, seconds: float, now: float) -> None:
        """A request was answered after `seconds`."""
        deadline, origin = request.deadline, response.origin
        if origin is not _ENGINE:
            self.remembered_answer(deadline, origin, seconds, now)
            return
        self._answered(deadline, origin, seconds, now)
        queue_s = response.timings.queue_s
        self.queue.note(queue_s)
        if deadline < _NEVER:
            self.slack_at_dispatch.note(deadline - now + seconds - queue_s)
        self.counters.inferences += request.rows

    def remembered_answer(self, deadline: float, origin: Origin, seconds: float, now: float) -> None:
        """A request was answered after `seconds` without an engine."""
        self._answered(deadline, origin, seconds, now)
        self.remembered.note(seconds)

    def _answered(self, deadline: float, origin: Origin, seconds: float, now: float) -> None:
        self.outcomes[_IN_DEADLINE if now <= deadline else _LATE] += 1
        self.request.note(seconds)
        if deadline < _NEVER:
            self.slack_at_reply.note(deadline - now)
        self.origins[origin] += 1
        self._noted += 1
        if self._noted >= NOTED:
            self._noted = 0
            for histogram in (self.request, self.remembered, self.queue, self.slack_at_dispatch, self.slack_at_reply):
                histogram.settle()

    def exemplify(self, response: InferResponse, trace_id: str, seconds: float) -> None:
        """Let the histograms point to the trace of a request that `answered` has counted."""
        at = time.time()
        timings = response.timings
        self.request.mark(Exemplar(trace_id, seconds, at))
        if response.origin is _ENGINE:
            self.queue.mark(Exemplar(trace_id, timings.queue_s, at))
            self.execute.mark(Exemplar(trace_id, timings.execute_s, at))

    def failed(self, outcome: Outcome, seconds: float) -> None:
        """A request ended in an error after `seconds`."""
        self.outcomes[outcome] += 1
        self.counters.failures.add(seconds)

    def observe(self, report: BatchReport) -> None:
        """A batch has run. What its members share is counted here for all of them, which is cheaper."""
        counters = self.counters
        if report.error:
            counters.failed_executions += 1
            return
        counters.executions += 1
        counters.executed_rows += report.padded_rows
        counters.padding_rows += report.padded_rows - report.rows
        counters.abandoned_rows += report.abandoned_rows
        counters.last_inference_ms = time.time_ns() // 1_000_000
        self.closed_by[report.closed_by] += 1
        self.gather.add_times(report.gather_s, report.answered)
        self.execute.add_times(report.execute_s, report.answered)
        self.scatter.add_times(report.scatter_s, report.answered)
        self.batch.add(report.gather_s + report.execute_s)
        count = self.batches.get(report.rows)
        if count is None:
            count = self.batches[report.rows] = BatchCount()
        count.gather.add(report.gather_s)
        count.execute.add(report.execute_s)
        count.scatter.add(report.scatter_s)

    def statistics(self) -> pb.ModelStatistics:
        """The counters as the protocol has them: inferences are rows, durations nanoseconds."""
        counters = self.counters
        return pb.ModelStatistics(
            name=self.spec.name,
            version=str(self.spec.version),
            last_inference=counters.last_inference_ms,
            inference_count=counters.inferences,
            execution_count=counters.executions,
            inference_stats=pb.InferStatistics(
                success=_message(self.request.count, self.request.total),
                fail=_message(counters.failures.count, counters.failures.seconds),
                queue=_message(self.queue.count, self.queue.total),
                compute_input=_message(self.gather.count, self.gather.total),
                compute_infer=_message(self.execute.count, self.execute.total),
                compute_output=_message(self.scatter.count, self.scatter.total),
                cache_hit=_message(self.remembered.count, self.remembered.total),
                cache_miss=_message(*self.cache_misses()),
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=_message(count.gather.count, count.gather.seconds),
                    compute_infer=_message(count.execute.count, count.execute.seconds),
                    compute_output=_message(count.scatter.count, count.scatter.seconds),
                )
                for rows, count in sorted(self.batches.items())
            ],
        )


def _message(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))
