"""Traces of a server process arrive at a collector, and a collector that does not answer is no one's problem."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.collector import collecting
from tests.support.redis_server import redis_server
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server

pytestmark = pytest.mark.integration

MODEL = "identity"
SERVER = "inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    onnx_models.write(tmp_path, MODEL, config=f"max_batch_size: 8\ndynamic_batching {{}}\n{ONE_ENGINE}")
    return tmp_path


def message(identifier: str = "") -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=MODEL, id=identifier)
    asked.inputs.add(name="x0", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    return asked


def call(url: str, metadata: Sequence[tuple[str, str]] = (), times: int = 1) -> None:
    """So many calls at once."""

    async def main() -> None:
        async with grpc.aio.insecure_channel(url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            calls = (stub.ModelInfer(message(str(n)), timeout=30, metadata=metadata) for n in range(times))
            answers = await asyncio.gather(*calls)
            assert all(len(answer.raw_output_contents) == 1 for answer in answers)

    asyncio.run(main())


def set_trace(url: str, **settings: str) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.TraceSettingRequest()
            for name, value in settings.items():
                request.settings[name].value.append(value)
            answer = await stub.TraceSetting(request, timeout=30)
            assert {name: answer.settings[name].value[0] for name in settings} == settings

    asyncio.run(main())


def by_name(spans: Sequence[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.name, []).append(span)
    return found


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_clients_trace_goes_through_the_server_to_the_batch(repository: Path, protocol: str) -> None:
    client = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(client))
    with collecting(protocol) as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }
        with running_server(repository, env=environment) as server:
            with provider.get_tracer("test").start_as_current_span("client"):
                carrier: dict[str, str] = {}
                TraceContextTextMapPropagator().inject(carrier)
                call(server.url, list(carrier.items()), times=8)
            call(server.url, times=50)  # nobody traces these
            answered = urllib.request.Request(server.metrics_url, headers={"Accept": "application/openmetrics-text"})
            with urllib.request.urlopen(answered) as scraped:
                metrics = scraped.read().decode()
        spans = by_name(collector.wait_for(8 * 3 + 1))
    assert collector.services == {"kairos"}
    (origin,) = client.get_finished_spans()
    assert origin.context is not None
    trace_id = f"{origin.context.trace_id:032x}"
    assert {span.trace_id.hex() for each in spans.values() for span in each} == {trace_id}
    servers, queues, executions, batches = (spans[n] for n in (SERVER, "queue", "execute", f"batch {MODEL}"))
    assert len(servers) == len(queues) == len(executions) == 8
    assert {span.parent_span_id.hex() for span in servers} == {f"{origin.context.span_id:016x}"}
    assert {span.parent_span_id for span in queues} == {span.span_id for span in servers}
    linked = sorted(link.span_id for batch in batches for link in batch.links)
    assert linked == sorted(span.span_id for span in servers)
    assert {link.span_id for span in executions for link in span.links} == {span.span_id for span in batches}
    own = {span.span_id: span for span in servers}
    for child in (*queues, *executions, *batches):
        parent = own[child.parent_span_id]
        assert parent.start_time_unix_nano <= child.start_time_unix_nano
        assert child.start_time_unix_nano <= child.end_time_unix_nano
        if child.name != batches[0].name:  # its members are told while it ends
            assert child.end_time_unix_nano <= parent.end_time_unix_nano
    assert re.search(rf'kairos_request_seconds_bucket{{[^}}]*}} \S+ # {{trace_id="{trace_id}"}}', metrics)


def test_requests_of_a_stream_say_so(repository: Path) -> None:
    async def stream(url: str) -> int:
        async with grpc.aio.insecure_channel(url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            answers = stub.ModelStreamInfer(iter([message("1"), message("2")]), timeout=30)
            return len([answer async for answer in answers if not answer.error_message])

    with collecting("grpc") as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with running_server(repository, "--trace-rate", "1", env=environment) as server:
            assert asyncio.run(stream(server.url)) == 2
        spans = by_name(collector.wait_for(2 * 3 + 1))
    assert len(spans["inference.GRPCInferenceService/ModelStreamInfer"]) == 2


def test_the_rate_is_changed_by_a_call(repository: Path) -> None:
    with collecting("grpc") as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with running_server(repository, "--trace-rate", "1000000000", env=environment) as server:
            call(server.url, times=20)
            set_trace(server.url, trace_rate="1")
            call(server.url, times=20)
            set_trace(server.url, trace_level="OFF")
            call(server.url, times=20)
        spans = by_name(collector.wait_for(20 * 3 + 1))
    assert len(spans[SERVER]) == 20


def test_a_collector_that_does_not_answer_costs_nothing_but_spans(repository: Path) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # the port that discards
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_BSP_MAX_QUEUE_SIZE": "64",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
    }
    with running_server(repository, faults=True, env=environment) as server:
        for _ in range(5):
            call(server.url, times=100)
    assert "Traceback" not in server.text


def test_a_lines_trace_is_its_requests(repository: Path) -> None:
    with running_server(repository, "--access-log", "1") as server:
        call(server.url, [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")])
    line = server.wait_for("request in_deadline after").string
    assert f"[{MODEL}:1 request=0 trace=0af7651916cd43dd8448eb211c80319c]" in line


def test_what_a_request_waits_for_at_the_caches_is_in_its_trace(tmp_path: Path) -> None:
    cached = f"max_batch_size: 8\nresponse_cache {{ enable: true }}\n{ONE_ENGINE}"
    onnx_models.write(tmp_path / "models", MODEL, config=cached)
    with collecting("grpc") as collector, redis_server(tmp_path) as redis:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_TRACES_SAMPLER": "always_on",
        }
        flags = ("--redis-url", redis.url, "--redis-budget-ms", "1000")
        with running_server(tmp_path / "models", *flags, env=environment) as server:
            call(server.url)
            call(server.url)
        spans = by_name(collector.wait_for(2 + 2 + 1 + 2 + 1))
    missed, hit = sorted(spans[SERVER], key=lambda span: span.start_time_unix_nano)
    look_ups = {span.parent_span_id: _told(span) for span in spans["cache"]}
    assert look_ups == {missed.span_id: {"kairos.cache.hit": False}, hit.span_id: {"kairos.cache.hit": True}}
    (asked,) = spans["redis MGET"]
    assert asked.parent_span_id == missed.span_id
    assert asked.kind == Span.SPAN_KIND_CLIENT
    assert _told(asked) == {"db.system.name": "redis", "db.operation.name": "MGET", "kairos.cache.hit": False}
    assert {span.parent_span_id for span in (*spans["queue"], *spans["execute"])} == {missed.span_id}


def test_who_is_turned_away_at_the_door_is_traced_with_the_callers_state(repository: Path) -> None:
    async def refused(url: str) -> list[grpc.StatusCode]:
        unknown, wrong = message("1"), message("2")
        unknown.model_name = "nobody"
        wrong.inputs[0].datatype = "INT8"
        metadata = [("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"), ("tracestate", "vendor=1,other=2")]
        codes = []
        async with grpc.aio.insecure_channel(url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            for asked in (unknown, wrong):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.ModelInfer(asked, timeout=30, metadata=metadata)
                codes.append(error.value.code())
        return codes

    with collecting("grpc") as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with running_server(repository, env=environment) as server:
            codes = asyncio.run(refused(server.url))
        spans = by_name(collector.wait_for(2))[SERVER]
    assert codes == [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT]
    told = {str(_told(span)["kairos.request_id"]): span for span in spans}
    assert _told(told["1"])["kairos.model"] == "nobody"
    assert [_told(told[name])["rpc.grpc.status_code"] for name in ("1", "2")] == [5, 3]
    assert {(span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) for span in spans} == {
        ("ab" * 16, "cd" * 8, "vendor=1,other=2")
    }


def _told(span: Span) -> dict[str, object]:
    """Its attributes."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}
