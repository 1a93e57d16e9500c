"""Counts what becomes of each request of a model version. ModelStatistics and metrics read the same numbers."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.errors import Cancelled, DeadlineExceeded, Draining, InvalidRequest, Overloaded
from engines.inference import Inference
from engines.request import InferRequest, InferResponse, Origin
from engines.scheduling.report import BatchReport, ClosedBy
from engines.spec import ModelSpec
from server.pb import grpc_service_pb2 as pb
from server.telemetry.traces import Tracer


class Outcome(enum.Enum):
    """How a request ended. Goodput is in_deadline over all."""

    IN_DEADLINE = "in_deadline"
    LATE = "late"
    SHED = "shed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    ERROR = "error"


_OUTCOMES = (
    (InvalidRequest, Outcome.INVALID),
    (Overloaded, Outcome.SHED),
    (Draining, Outcome.SHED),
    (DeadlineExceeded, Outcome.EXPIRED),
    (Cancelled, Outcome.CANCELLED),
    (asyncio.CancelledError, Outcome.CANCELLED),
)


def outcome_of(error: BaseException) -> Outcome:
    """The outcome that an error stands for."""
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), Outcome.ERROR)


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count `times` events of `seconds` each."""
        self.count += times
        self.seconds += seconds * times

    def message(self) -> pb.StatisticDuration:
        """As ModelStatistics has it."""
        return pb.StatisticDuration(count=self.count, ns=round(self.seconds * 1e9))


@dataclass(slots=True)
class BatchCount:
    """Executions of one size."""

    gather: Duration = field(default_factory=Duration)
    execute: Duration = field(default_factory=Duration)
    scatter: Duration = field(default_factory=Duration)


class ModelMeter:
    """All counters of one model version since it was loaded. Used from the event loop only."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.reset()

    def reset(self) -> None:
        """Start counting anew; for after the warm-up."""
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.origins: dict[Origin, int] = dict.fromkeys(Origin, 0)
        self.success = Duration()
        self.failure = Duration()
        self.queue = Duration()
        self.gather = Duration()
        self.execute = Duration()
        self.scatter = Duration()
        self.cache_hit = Duration()
        self.inferences = 0
        """Rows answered by engines."""
        self.executions = 0
        self.failed_executions = 0
        self.padded_rows = 0
        self.closed_by: dict[ClosedBy, int] = dict.fromkeys(ClosedBy, 0)
        self.batches: dict[int, BatchCount] = {}
        self.in_flight = 0
        self.last_inference_ms = 0

    def invalid(self) -> None:
        """A request was refused before it reached the stack."""
        self.outcomes[Outcome.INVALID] += 1
        self.failure.add(0.0)

    def answered(self, request: InferRequest, response: InferResponse, seconds: float, now: float) -> None:
        """A request was answered after `seconds`."""
        self.outcomes[Outcome.IN_DEADLINE if now <= request.deadline else Outcome.LATE] += 1
        self.origins[response.origin] += 1
        self.success.add(seconds)
        if response.origin is not Origin.ENGINE:
            self.cache_hit.add(seconds)
            return
        timings = response.timings
        self.queue.add(timings.queue_s)
        self.gather.add(timings.gather_s)
        self.execute.add(timings.execute_s)
        self.scatter.add(timings.scatter_s)
        self.inferences += request.rows

    def failed(self, request: InferRequest, error: BaseException, seconds: float, now: float) -> None:
        """A request ended in an error after `seconds`."""
        outcome = outcome_of(error)
        if outcome is Outcome.CANCELLED and now >= request.deadline:
            outcome = Outcome.EXPIRED  # the transport withdraws calls whose time is over
        self.outcomes[outcome] += 1
        self.failure.add(seconds)

    def observe(self, report: BatchReport) -> None:
        """A batch has run."""
        if report.error:
            self.failed_executions += 1
            return
        self.executions += 1
        self.closed_by[report.closed_by] += 1
        self.padded_rows += report.padded_rows - report.rows
        self.last_inference_ms = time.time_ns() // 1_000_000
        count = self.batches.get(report.rows)
        if count is None:
            count = self.batches[report.rows] = BatchCount()
        count.gather.add(report.gather_s)
        count.execute.add(report.execute_s)
        count.scatter.add(report.scatter_s)

    def statistics(self) -> pb.ModelStatistics:
        """The counters as the protocol has them: inferences are rows, durations nanoseconds."""
        return pb.ModelStatistics(
            name=self.spec.name,
            version=str(self.spec.version),
            last_inference=self.last_inference_ms,
            inference_count=self.inferences,
            execution_count=self.executions,
            inference_stats=pb.InferStatistics(
                success=self.success.message(),
                fail=self.failure.message(),
                queue=self.queue.message(),
                compute_input=self.gather.message(),
                compute_infer=self.execute.message(),
                compute_output=self.scatter.message(),
                cache_hit=self.cache_hit.message(),
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=count.gather.message(),
                    compute_infer=count.execute.message(),
                    compute_output=count.scatter.message(),
                )
                for rows, count in sorted(self.batches.items())
            ],
        )

    def by_outcome(self) -> Mapping[str, int]:
        """Requests by how they ended."""
        return {outcome.value: count for outcome, count in self.outcomes.items()}


class MeteredInference:
    """The outermost layer: sees every request that reached the stack, and how it ended."""

    def __init__(self, inner: Inference, meter: ModelMeter, tracer: Tracer) -> None:
        self._inner = inner
        self._meter = meter
        self._tracer = tracer
        self._loop = asyncio.get_running_loop()

    async def infer(self, request: InferRequest) -> InferResponse:
        """See Inference.infer."""
        meter = self._meter
        began = self._loop.time()
        meter.in_flight += 1
        try:
            response = await self._inner.infer(request)
        except BaseException as error:
            now = self._loop.time()
            meter.failed(request, error, now - began, now)
            raise
        finally:
            meter.in_flight -= 1
        now = self._loop.time()
        meter.answered(request, response, now - began, now)
        if self._tracer.sampling:
            self._tracer.record(request, response, began, now)
        return response
