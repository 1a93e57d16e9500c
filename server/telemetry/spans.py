"""OpenTelemetry spans of sampled requests, made after the fact from the times that requests and batches bring home.

A request gets a server span with a queue and an execute span below it; each batch gets one span, in the trace of its
first sampled member, linked to all of them. Requests that are not sampled never come here.
Promise: nothing that happens to the exporter reaches a request; spans that cannot be sent in time are lost.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias, TypedDict, Unpack

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from engines.request import InferRequest, InferResponse, Origin
from engines.scheduling.report import BatchReport
from server.telemetry.context import METHOD, TraceParent, read_traceparent
from server.telemetry.traces import Step

Attributes: TypeAlias = dict[str, str | int | float | bool]

SERVICE: Final = "inference.GRPCInferenceService"
SCOPE: Final = InstrumentationScope("kairos")
SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
FLUSH_S: Final = 2.0
"""How long the end of the server waits for the last spans to leave."""
_SERVER_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})
"""gRPC codes that make a server span an error, by the RPC semantic conventions."""


class Rest(TypedDict, total=False):
    """What not every span has."""

    parent: SpanContext | None
    kind: SpanKind
    links: tuple[Link, ...]
    status: Status


class SpanTrace:
    """One request; see Trace. Its span's id goes with the request, so that layers below can refer to it."""

    def __init__(self, owner: SpanMaker, request: InferRequest, began: float) -> None:
        self._owner = owner
        self._began = began
        self._epoch_s = time.time() - time.monotonic()
        self._parent = read_traceparent(request.trace)
        trace_id = f"{owner.number(128):032x}" if self._parent is None else self._parent.trace_id
        state = "" if self._parent is None else self._parent.state
        self._span = TraceParent(trace_id, f"{owner.number(64):016x}", sampled=True, state=state)
        self.request = replace(request, trace=f"00-{trace_id}-{self._span.span_id}-01")
        self.batch: Attributes = {}
        """What is known of the batch that it runs in."""
        self.batch_context: SpanContext | None = None

    @property
    def trace_id(self) -> str:
        """See Trace.trace_id."""
        return self._span.trace_id

    @property
    def context(self) -> SpanContext:
        """The server span's."""
        return _context(self._span)

    def answered(self, response: InferResponse, now: float) -> None:
        """See Trace.answered."""
        outcome = "in_deadline" if now <= self.request.deadline else "late"
        if response.origin is Origin.ENGINE:
            timings = response.timings
            started = self._began + timings.queue_s
            self._child("queue", self._began, started, {})
            phases: Attributes = {
                "kairos.gather_s": timings.gather_s,
                "kairos.execute_s": timings.execute_s,
                "kairos.scatter_s": timings.scatter_s,
            }
            spent = timings.gather_s + timings.execute_s + timings.scatter_s
            self._child("execute", started, min(started + spent, now), phases)
        self._end(now, 0, {"kairos.outcome": outcome, "kairos.origin": response.origin.value})

    def failed(self, error: BaseException, outcome: str, now: float) -> None:
        """See Trace.failed."""
        code = self._owner.code_of(error, outcome)
        attributes: Attributes = {"kairos.outcome": outcome, "error.type": type(error).__name__}
        self._end(now, code, attributes, str(error))

    def _end(self, now: float, code: int, attributes: Attributes, fault: str = "") -> None:
        self._owner.ended(self)
        request = self.request
        told: Attributes = {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": METHOD.get(),
            "rpc.grpc.status_code": code,
            "kairos.model": request.model,
            "kairos.version": request.version,
            "kairos.rows": request.rows,
            **attributes,
            **self.batch,
        }
        if request.id:
            told["kairos.request_id"] = request.id
        if request.deadline < math.inf:
            told["kairos.deadline_left_at_arrival_s"] = request.deadline - self._began
            told["kairos.deadline_left_s"] = request.deadline - now
        status = Status(StatusCode.ERROR, fault) if code in _SERVER_FAULTS else Status()
        parent = None if self._parent is None else _context(self._parent, is_remote=True)
        self._owner.emit(
            f"{SERVICE}/{told['rpc.method']}",
            self.context,
            self._nanoseconds(self._began, now),
            told,
            parent=parent,
            kind=SpanKind.SERVER,
            status=status,
        )

    def note(self, step: Step) -> None:
        """A layer below has done something; what was asked of another system is a client's span."""
        kind = SpanKind.CLIENT if "db.system.name" in step.attributes else SpanKind.INTERNAL
        self._child(step.name, step.began, step.ended, dict(step.attributes), kind)

    def _child(
        self, name: str, began: float, ended: float, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL
    ) -> None:
        own = _context(self._span._replace(span_id=f"{self._owner.number(64):016x}"))
        links = () if name != "execute" or self.batch_context is None else (Link(self.batch_context),)
        times = self._nanoseconds(began, ended)
        self._owner.emit(name, own, times, attributes, parent=self.context, links=links, kind=kind)

    def _nanoseconds(self, began: float, ended: float) -> tuple[int, int]:
        return round((self._epoch_s + began) * 1e9), round((self._epoch_s + ended) * 1e9)


class SpanMaker:
    """Keeps the requests that are being traced, and hands finished spans to the exporter. See traces.Spans."""

    def __init__(
        self,
        exporter: SpanExporter,
        code_of: Callable[[BaseException, str], int],
        resource: Mapping[str, str],
        bits: Callable[[int], int] = random.getrandbits,
    ) -> None:
        """Make it with `code_of` for the gRPC status of an error and outcome, and `bits` for random identifiers."""
        self.code_of = code_of
        self._bits = bits
        self._open: dict[str, SpanTrace] = {}
        self._exporter = exporter
        self._processor = BatchSpanProcessor(exporter)
        self._resource = _resource(resource)

    def __repr__(self) -> str:
        return f"<SpanMaker [requests: {len(self._open)} open]>"

    def begin(self, request: InferRequest, began: float) -> SpanTrace:
        """Trace a request from now on."""
        trace = SpanTrace(self, request, began)
        self._open[trace.request.trace] = trace
        return trace

    def ended(self, trace: SpanTrace) -> None:
        """The request has its answer."""
        self._open.pop(trace.request.trace, None)

    def note(self, request: InferRequest, step: Step) -> None:
        """See Tracer.note."""
        if (trace := self._open.get(request.trace)) is not None:
            trace.note(step)

    def batch(self, report: BatchReport) -> None:
        """A batch has run, and its members have not been told yet."""
        members = [trace for name in report.traces if (trace := self._open.get(name)) is not None]
        if not members:
            return
        first = members[0].context
        own = SpanContext(first.trace_id, self.number(64), is_remote=False, trace_flags=SAMPLED)
        attributes: Attributes = {"kairos.batch.rows": report.rows, "kairos.batch.closed_by": report.closed_by.value}
        for member in members:
            member.batch = attributes
            member.batch_context = own
        epoch_s = time.time() - time.monotonic()
        self.emit(
            f"batch {report.model}",
            own,
            (round((epoch_s + report.started) * 1e9), round((epoch_s + report.finished) * 1e9)),
            attributes
            | {
                "kairos.model": report.model,
                "kairos.version": report.version,
                "kairos.device": report.device,
                "kairos.batch.padded_rows": report.padded_rows,
                "kairos.batch.waited_s": report.started - report.opened,
            },
            parent=first,
            links=tuple(Link(member.context) for member in members),
            status=Status(StatusCode.ERROR, report.error) if report.error else Status(),
        )

    def emit(
        self, name: str, context: SpanContext, times: tuple[int, int], attributes: Attributes, **rest: Unpack[Rest]
    ) -> None:
        """Hand a finished span over; `times` are nanoseconds since the epoch."""
        began, ended = times
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=context,
                resource=self._resource,
                attributes=attributes,
                start_time=began,
                end_time=max(began, ended),
                instrumentation_scope=SCOPE,
                **rest,
            )
        )

    def number(self, bits: int) -> int:
        """A new identifier of so many bits; never 0, which stands for none."""
        return self._bits(bits) or 1

    def close(self) -> None:
        """Send what is left, for as long as `FLUSH_S` allows."""
        ending = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)
        self._exporter.shutdown()  # ends the attempts at a receiver that does not answer
        ending.join(FLUSH_S)


def _resource(ours: Mapping[str, str]) -> Resource:
    """What the environment says of this process goes before what we say."""
    told = Resource(dict(ours)).merge(Resource.create())
    unnamed = str(told.attributes[SERVICE_NAME]).startswith("unknown_service")
    return told.merge(Resource({SERVICE_NAME: "kairos"})) if unnamed else told


def _context(place: TraceParent, *, is_remote: bool = False) -> SpanContext:
    state = TraceState.from_header([place.state]) if place.state else None
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), is_remote, SAMPLED, state)
