"""A real Prometheus scrapes a server under mixed load: every panel and rule has data, and counts are exact."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

from server.pb import feedback_pb2, rollout_pb2
from server.pb import grpc_service_pb2 as pb
from server.pb.feedback_pb2_grpc import FeedbackStub
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.pb.rollout_pb2_grpc import RolloutStub
from tests.support import onnx_models
from tests.support.monitoring import ALERTS, Prometheus, filled_in, names_in, panels, prometheus, rules
from tests.support.redis_server import redis_server
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

EMPTY = {r"kairos_gpu_": "there is no GPU"}
"""Metrics that may have no series here, and why."""

RECORDED = [rule for rule in rules("*.yml") if "record" in rule]
CALLS = 200
ROLLED = 40
TRIGGERS = """
every = "100ms"
[[rule]]
name = "costly"
signal = "outcome.cost"
above = 1.0
actions = ["tell"]
[action.tell]
kind = "log"
"""
TRACE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_SAMPLER": "always_on"}


def may_be_empty(expression: str) -> bool:
    return any(re.match(pattern, name) for name in names_in(expression) for pattern in EMPTY)


def has_data(scene: Scene, expression: str) -> None:
    """Now, or soon: a scrape that a busy machine missed hides a series until the next."""
    if not may_be_empty(expression):
        wait_until(lambda: scene.prometheus.query(expression), expression)


@dataclass
class Load:
    """What the callers saw."""

    url: str
    metrics_url: str
    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    stub: Any = None

    async def call(
        self, model: str, value: Any, left_s: float | None = 30.0, *, patience_us: int = 0, identifier: str = ""
    ) -> None:
        request = pb.ModelInferRequest(model_name=model, id=identifier)
        datatype = "INT64" if model == "fragile" else "FP32"
        request.inputs.add(
            name="x" if model in ("slow", "fragile") else "x0", datatype=datatype, shape=list(value.shape)
        )
        request.raw_input_contents.append(value.tobytes())
        if patience_us:
            request.parameters["timeout"].int64_param = patience_us
        try:
            await self.stub.ModelInfer(request, timeout=left_s)
            self.codes[grpc.StatusCode.OK] += 1
        except grpc.aio.AioRpcError as error:
            self.codes[error.code()] += 1
        except asyncio.CancelledError:
            self.codes[grpc.StatusCode.CANCELLED] += 1

    async def send(self) -> None:
        """Good, late, shed, expired, cancelled, invalid, failing and misdirected requests."""
        row = np.ones((1, 4), np.float32)
        async with grpc.aio.insecure_channel(self.url) as channel:
            self.stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            await asyncio.gather(*(self.call("quick", row) for _ in range(CALLS)))
            for _ in range(20):
                await self.call("cached", row)
            for value in range(120):
                await self.call("watched", np.array([[value % 7, 0, 0, 0]], np.float32), identifier=f"q{value}")
            await report(channel)
            await self.roll(channel, row)
            await asyncio.gather(*(self.call("quick", np.ones((1, 5), np.float32)) for _ in range(20)))
            await asyncio.gather(*(self.call("unknown", row) for _ in range(5)))
            await asyncio.gather(*(self.call("fragile", np.array([[9]])) for _ in range(3)))
            await self.call("slow", row, left_s=None, patience_us=5000)  # which ends while it runs
            first = asyncio.create_task(self.call("slow", row))
            await asyncio.to_thread(wait_until, lambda: self.in_flight("slow") == 1, "a request in work")
            await asyncio.gather(*(self.call("slow", row, left_s=0.1) for _ in range(2)))
            await asyncio.gather(*(self.call("slow", row) for _ in range(10)))
            await first
            left = asyncio.create_task(self.call("slow", row))
            await asyncio.to_thread(wait_until, lambda: self.in_flight("slow") == 1, "a request in work")
            left.cancel()
            await left
        wait_until(lambda: self.in_flight("slow") == 0, "an idle server")

    async def roll(self, channel: grpc.aio.Channel, row: Any) -> None:
        """A rollout that goes on for as long as there is anybody to look."""
        rollouts = RolloutStub(channel)  # type: ignore[no-untyped-call]
        await rollouts.Start(
            rollout_pb2.RolloutStartRequest(
                model="rolled", candidate=2, steps=[0.5], step_seconds=3600,
                shadowing=rollout_pb2.RolloutShadowing(sample=1), limits=rollout_pb2.RolloutLimits(latency_ratio=-1),
            )
        )  # fmt: skip
        for number in range(ROLLED):
            await self.call("rolled", row, identifier=f"caller {number}")

    def in_flight(self, model: str) -> float:
        with urllib.request.urlopen(self.metrics_url) as answer:
            text = answer.read().decode()
        found = re.search(rf'^kairos_requests_in_flight{{model="{model}",version="1"}} (\S+)$', text, re.MULTILINE)
        assert found is not None
        return float(found[1])


async def report(channel: grpc.aio.Channel) -> None:
    """Say of each watched request what was true, and what it cost."""
    feedback = FeedbackStub(channel)  # type: ignore[no-untyped-call]
    outcomes = [
        feedback_pb2.Outcome(model="watched", id=f"q{value}", label="0", metric="cost", value=10 - value % 7)
        for value in range(120)
    ]
    await feedback.Report(feedback_pb2.ReportRequest(outcomes=outcomes), timeout=30)


def bother(url: str) -> None:
    """Say something that is not HTTP/2, and wait until the server has had enough."""
    host, port = url.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: kairos\r\n\r\n" * 4)
        while connection.recv(4096):
            pass


@dataclass
class Scene:
    """A server that has seen its load, and a Prometheus that has seen all of it."""

    server: RunningServer
    load: Load
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    repository, data = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("prometheus")
    batching = "max_batch_size: 8\ndynamic_batching { allowed_batch_size: [4, 8] }\n"
    onnx_models.write(repository, "quick", config=f"{batching}{ONE_ENGINE}")
    cache = "max_batch_size: 8\nresponse_cache { enable: true }\n"
    onnx_models.write(repository, "cached", config=f"{cache}{ONE_ENGINE}")
    queue = "default_queue_policy { max_queue_size: 2 allow_timeout_override: true }"
    watch = 'sample_rate: 1 window_rows: 30 learn_rows: 40 look_milliseconds: 1 tensor { name: "y0" kind: KIND_LOGITS }'
    watch = f"watch {{ enable: true {watch} }}\ncapture {{ enable: true rotate_seconds: 1 }}\n"
    onnx_models.write(repository, "watched", config=f"max_batch_size: 8\n{watch}{ONE_ENGINE}")
    both = "max_batch_size: 8\nversion_policy { all { } }\n"
    onnx_models.write(repository, "rolled", versions=(1, 2), config=f"{both}{ONE_ENGINE}")
    triggers = data / "triggers.toml"
    triggers.write_text(TRIGGERS)
    # First come, first served, so that some expire in the queue: by deadline they would be refused at once.
    config = f"max_batch_size: 1\ndynamic_batching {{ policy: FIFO {queue} }}\n{ONE_ENGINE}"
    onnx_models.write(repository, "slow", config=config, proto=onnx_models.slow())
    onnx_models.write(repository, "fragile", config=f"max_batch_size: 1\n{ONE_ENGINE}", proto=onnx_models.fragile())
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(data))
        flags = ("--redis-url", redis.url, "--state-dir", data / "state", "--triggers", triggers)
        server = stack.enter_context(running_server(repository, *flags, faults=True, env=TRACE))
        seen = stack.enter_context(prometheus(data, urllib.parse.urlsplit(server.metrics_url).netloc))
        wait_until(lambda: seen.query("count_over_time(kairos_serving[1m]) >= 2"), "two scrapes")
        load = Load(server.url, server.metrics_url)
        asyncio.run(load.send())
        bother(server.url)
        total = sum(load.codes.values())
        settled = f"sum(kairos_requests_total) == {total} and sum(min_over_time(kairos_requests_total[1s])) == {total}"
        wait_until(lambda: seen.query(settled), f"all {total} requests of {load.codes} in Prometheus")
        wait_until(lambda: seen.query("count_over_time(kairos_connection_errors_total[1m]) >= 3"), "three scrapes more")
        yield Scene(server, load, seen)


def test_requests_are_counted_to_the_last_one(scene: Scene) -> None:
    outcomes = scene.prometheus.query("sum by (outcome) (kairos_requests_total)")
    found = Counter({labels["outcome"]: value for labels, value in outcomes})
    codes = scene.load.codes
    assert found["in_deadline"] + found["late"] == codes[grpc.StatusCode.OK]
    # Whether a deadline that cannot be met is refused at the door or in the queue is the policy's affair.
    refused = codes[grpc.StatusCode.RESOURCE_EXHAUSTED] + codes[grpc.StatusCode.DEADLINE_EXCEEDED]
    assert found["shed"] + found["expired"] == refused > 2
    assert found["shed"] > 0
    assert found["cancelled"] == codes[grpc.StatusCode.CANCELLED] == 1
    assert found["invalid"] == codes[grpc.StatusCode.INVALID_ARGUMENT] + codes[grpc.StatusCode.NOT_FOUND] == 25
    assert found["error"] == codes[grpc.StatusCode.INTERNAL] == 3


def test_histograms_hold_every_answer(scene: Scene) -> None:
    answered = scene.load.codes[grpc.StatusCode.OK]
    ((_, remembered),) = scene.prometheus.query("sum(kairos_remembered_seconds_count)")
    assert remembered == 19
    ((_, asked),) = scene.prometheus.query("sum(kairos_request_seconds_count)")
    assert asked == answered
    for phase in ("queue", "gather", "execute", "scatter"):  # copies of requests go through engines, too
        ((_, count),) = scene.prometheus.query(f'sum(kairos_{phase}_seconds_count{{model!="rolled"}})')
        assert count == answered - remembered - ROLLED
    ((_, rows),) = scene.prometheus.query('kairos_batch_rows_sum{model="quick"}')
    assert rows == CALLS
    ((_, wasted),) = scene.prometheus.query('kairos_wasted_rows_total{model="slow", reason="abandoned"}')
    assert wasted >= 1  # the caller who left; callers whose time was over may add to it


def test_statistics_and_metrics_agree(scene: Scene) -> None:
    with grpc.insecure_channel(scene.server.url) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=30)
    for model in answer.model_stats:
        for name, duration in (
            ("success", "request"), ("queue", "queue"), ("compute_input", "gather"), ("compute_infer", "execute"),
        ):  # fmt: skip
            told = getattr(model.inference_stats, name)
            version = f'model="{model.name}",version="{model.version}"'
            series = f"kairos_{duration}_seconds_{{part}}{{{{{version}}}}}"
            ((_, count),) = scene.prometheus.query(series.format(part="count"))
            ((_, seconds),) = scene.prometheus.query(series.format(part="sum"))
            assert (told.count, told.ns) == (count, pytest.approx(seconds * 1e9, abs=1))


@pytest.mark.parametrize("panel", [pytest.param(panel, id=f"{board}: {panel['title']}") for board, panel in panels()])
def test_every_expression_of_every_panel_has_data(scene: Scene, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = filled_in(target["expr"])
        has_data(scene, expression)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=f"{rule['record']} {rule.get('labels', '')}")
        for rule in rules("*.yml")
        if "record" in rule
    ],
)
def test_every_recording_rule_has_data(scene: Scene, rule: dict[str, Any]) -> None:
    if not may_be_empty(rule["expr"]):
        has_data(scene, rule["record"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_reads_metrics_that_exist(scene: Scene, alert: dict[str, Any]) -> None:
    scene.prometheus.query(alert["expr"])
    names = names_in(alert["expr"])
    assert names
    for name in names:
        has_data(scene, name)


def test_prometheus_evaluates_all_rules_without_fault(scene: Scene) -> None:
    found = [rule for group in scene.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(found) == len(rules("*.yml"))
    assert {(rule["health"], rule.get("lastError", "")) for rule in found} == {("ok", "")}


def test_the_broken_model_is_about_to_raise_its_alarms(scene: Scene) -> None:
    pending = {row["labels"]["alertname"] for row in scene.prometheus.get("alerts")["alerts"]}
    assert {"KairosModelUnavailable", "KairosModelLoadFails"} <= pending
    assert "KairosNotServing" not in pending


def test_exemplars_lead_to_traces(scene: Scene) -> None:
    found = scene.prometheus.get("query_exemplars", query="kairos_request_seconds_bucket", start="0", end="9999999999")
    traces = {each["labels"]["trace_id"] for series in found for each in series["exemplars"]}
    assert traces
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)


def test_tritons_series_have_tritons_labels(scene: Scene) -> None:
    for name in ("request_success", "queue_duration_us", "pending_request_count"):
        series = scene.prometheus.query(f"nv_inference_{name}")
        assert all({"model", "version"} <= labels.keys() for labels, _ in series)
    reasons = {labels["reason"] for labels, _ in scene.prometheus.query("nv_inference_request_failure")}
    assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
