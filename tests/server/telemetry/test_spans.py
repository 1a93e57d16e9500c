"""Spans: who is whose parent, what they say, when they begin and end, and that exporters never hurt."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engines.errors import EngineFailed, Overloaded
from engines.request import InferRequest, InferResponse, Origin
from server.telemetry.access import AccessLog
from server.telemetry.metered import MeteredInference
from server.telemetry.spans import SpanMaker
from server.telemetry.traces import TraceOptions, Tracer
from tests.support.telemetry import (
    PARENT,
    PARENT_SPAN,
    PARENT_TRACE,
    UNSAMPLED,
    Clock,
    Scripted,
    meter,
    report,
    request,
    response,
)

OPTIONS = TraceOptions(mode="opentelemetry", level="TIMESTAMPS", rate=1)
CODES = {"shed": 8, "error": 13}


class Bench:
    """A meter over a scripted model, with an exporter in memory."""

    def __init__(self, outcome: InferResponse | BaseException, *, batch: bool = True) -> None:
        self.exporter = InMemorySpanExporter()
        self.maker = SpanMaker(self.exporter, lambda error, outcome: CODES[outcome], {"service.version": "1.2"})
        self.tracer = Tracer(OPTIONS, self.maker)
        self.meter = meter()
        self.clock = Clock()
        bench = self

        class Model(Scripted):
            async def infer(self, request: InferRequest) -> InferResponse:
                try:
                    return await super().infer(request)
                finally:
                    if batch:
                        bench.tracer.observe(report(traces=(request.trace,)))

        self.model = Model(self.clock, 0.02, outcome)

    def send(self, asked: InferRequest) -> dict[str, ReadableSpan]:
        layer = MeteredInference(self.model, self.meter, self.tracer, AccessLog(0), self.clock)

        async def main() -> None:
            await layer.infer(asked)

        if isinstance(self.model.outcome, BaseException):
            with pytest.raises(type(self.model.outcome)):
                asyncio.run(main())
        else:
            asyncio.run(main())
        self.tracer.close()
        return {span.name.split("/")[-1]: span for span in self.exporter.get_finished_spans()}


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def test_a_request_gets_a_span_with_its_phases_below_it() -> None:
    bench = Bench(response())
    spans = bench.send(request(100.05, trace=PARENT, id="r7", rows=2))
    assert spans.keys() == {"ModelInfer", "queue", "execute", "batch fake"}
    server = spans["ModelInfer"]
    assert server.name == "inference.GRPCInferenceService/ModelInfer"
    assert server.kind is SpanKind.SERVER
    assert server.status.status_code is StatusCode.UNSET
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == PARENT_SPAN
    assert server.parent.is_remote
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {PARENT_TRACE}
    for name in ("queue", "execute", "batch fake"):
        assert spans[name].parent == server.context
    assert attributes(server) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "kairos.model": "fake",
        "kairos.version": 1,
        "kairos.rows": 2,
        "kairos.request_id": "r7",
        "kairos.outcome": "in_deadline",
        "kairos.origin": "engine",
        "kairos.batch.rows": 3,
        "kairos.batch.closed_by": "full",
        "kairos.deadline_left_at_arrival_s": pytest.approx(0.05),
        "kairos.deadline_left_s": pytest.approx(0.03),
    }
    assert server.resource.attributes["service.name"] == "kairos"
    assert server.resource.attributes["service.version"] == "1.2"


def test_times_nest_and_are_those_that_were_measured() -> None:
    spans = Bench(response()).send(request(trace=PARENT))
    began, ended = seconds(spans["ModelInfer"])
    assert ended - began == pytest.approx(0.02, abs=1e-6)
    queue, execute = seconds(spans["queue"]), seconds(spans["execute"])
    assert queue == pytest.approx((began, began + 0.003), abs=1e-6)
    assert execute == pytest.approx((began + 0.003, began + 0.0073), abs=1e-6)


def test_a_batch_is_linked_to_its_members_and_they_to_it() -> None:
    bench = Bench(response(), batch=False)
    first, second = (bench.maker.begin(request(trace=PARENT), 100.0) for _ in range(2))
    bench.tracer.observe(report(traces=(first.request.trace, UNSAMPLED, second.request.trace)))
    for member in (first, second):
        member.answered(response(), 100.02)
    bench.tracer.close()
    spans = bench.exporter.get_finished_spans()
    batch = next(span for span in spans if span.name == "batch fake")
    assert [link.context for link in batch.links] == [first.context, second.context]
    executions = [span for span in spans if span.name == "execute"]
    assert [link.context for span in executions for link in span.links] == [batch.context] * 2
    assert attributes(batch)["kairos.batch.padded_rows"] == 4
    assert attributes(batch)["kairos.batch.waited_s"] == 1.0


def test_without_a_parent_a_trace_begins_here() -> None:
    bench = Bench(response())
    server = bench.send(request())["ModelInfer"]
    assert server.parent is None
    assert bench.model.seen[0].trace == f"00-{server.context.trace_id:032x}-{server.context.span_id:016x}-01"


def test_layers_below_get_the_server_span_as_their_parent() -> None:
    bench = Bench(response())
    server = bench.send(request(trace=PARENT))["ModelInfer"]
    assert bench.model.seen[0].trace == f"00-{PARENT_TRACE}-{server.context.span_id:016x}-01"


def test_an_answer_from_memory_has_no_phases() -> None:
    spans = Bench(response(origin=Origin.CACHE), batch=False).send(request(trace=PARENT))
    assert spans.keys() == {"ModelInfer"}
    assert attributes(spans["ModelInfer"])["kairos.origin"] == "cache"


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(Overloaded("full"), 8, StatusCode.UNSET), (EngineFailed("broken"), 13, StatusCode.ERROR)],
)
def test_only_faults_of_the_server_make_its_span_an_error(error: Exception, code: int, status: StatusCode) -> None:
    server = Bench(error, batch=False).send(request(trace=PARENT))["ModelInfer"]
    assert attributes(server)["rpc.grpc.status_code"] == code
    assert attributes(server)["error.type"] == type(error).__name__
    assert server.status.status_code is status


def test_exemplars_point_to_the_trace() -> None:
    bench = Bench(response())
    bench.send(request(trace=PARENT))
    found = [*bench.meter.request.exemplars.values(), *bench.meter.queue.exemplars.values()]
    assert [(each.trace_id, each.value) for each in found] == [
        (PARENT_TRACE, pytest.approx(0.02)),
        (PARENT_TRACE, 0.003),
    ]


def test_unsampled_requests_are_left_as_they_are() -> None:
    bench = Bench(response())
    asked = request(math.inf, trace=UNSAMPLED)
    assert bench.send(asked) == {}
    assert bench.model.seen[0] is asked
    assert bench.meter.request.exemplars == {}


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    for outcome in (response(), EngineFailed("broken")):
        bench = Bench(outcome)
        bench.send(request(trace=PARENT))
        assert repr(bench.maker) == "<SpanMaker [requests: 0 open]>"


@pytest.mark.filterwarnings("ignore")
def test_an_exporter_that_raises_costs_nothing_but_its_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")

    class Broken(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise OSError("no route")

        def shutdown(self) -> None:
            pass

    maker = SpanMaker(Broken(), lambda *_: 0, {})
    for _ in range(100):
        maker.begin(request(trace=PARENT), 100.0).answered(response(), 100.02)
    maker.close()
