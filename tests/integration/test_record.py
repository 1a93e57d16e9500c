"""`kairos record` against a real server: its trace says what was asked, and `kairos simulate` plays it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from server.pb import traffic_pb2 as pb
from server.pb.traffic_pb2_grpc import TrafficStub
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server

pytestmark = pytest.mark.integration

LEVELS = "dynamic_batching { priority_levels: 3 default_priority_level: 2 }"
CONFIG = f"max_batch_size: 8\nresponse_cache {{ enable: true }}\n{LEVELS}\n{ONE_ENGINE}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    onnx_models.write(root, "scale", proto=onnx_models.scale(2.0), config=CONFIG)
    return root


def infer(url: str, rows: int, timeout_s: float | None = None, priority: int = 0) -> None:
    values = np.full((rows, 4), rows, np.float32)
    tensor = triton.InferInput("x", values.shape, "FP32").set_data_from_numpy(values)
    with triton.InferenceServerClient(url) as client:
        client.infer("scale", [tensor], client_timeout=timeout_s, priority=priority, headers={"team": "blue"})


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_what_reaches_the_scheduler_is_recorded(repository: Path, transport: str) -> None:
    with (
        running_server(repository, "--transport", transport, "--tenant-key", "team") as server,
        grpc.insecure_channel(server.url) as channel,
    ):
        stream = TrafficStub(channel).Arrivals(pb.ArrivalsRequest(model="scale"), timeout=60)  # type: ignore[no-untyped-call]
        assert not next(stream).arrivals, "recording has begun"
        infer(server.url, 1)
        infer(server.url, 1)  # the cache answers
        infer(server.url, 3, timeout_s=30.0, priority=1)
        heard: list[pb.RecordedArrival] = []
        while len(heard) < 2:
            heard.extend(next(stream).arrivals)
        stream.cancel()
    first, second = heard
    assert (first.rows, first.deadline_seconds, first.priority, first.tenant) == (1, float("inf"), 0, "blue")
    assert (second.rows, second.priority) == (3, 1)
    assert 20.0 < second.deadline_seconds < 31.0  # gRPC rounds up
    assert 0.0 < first.seconds < second.seconds


def test_a_trace_is_written_until_ctrl_c_and_simulated(repository: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    with running_server(repository) as server:
        command = [sys.executable, "-m", "server", "record", "--url", server.url, "--model", "scale"]
        with subprocess.Popen(
            [*command, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "recording scale" in process.stderr.readline()
            for rows in (1, 2, 3):
                infer(server.url, rows, timeout_s=20.0)
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, told = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, told
    trace.write_text(line + rest)
    records = [json.loads(text) for text in trace.read_text().splitlines()]
    assert all(10.0 < record["deadline"] < 21.0 for record in records)  # gRPC rounds up
    assert f"{len(records)} requests of scale" in told
    command = [sys.executable, "-m", "server", "simulate", "--trace", str(trace), "--cost", "2ms+1ms", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert found[0]["requests"] == len(records)


def test_an_unknown_model_is_named(repository: Path) -> None:
    with running_server(repository) as server:
        command = [sys.executable, "-m", "server", "record", "--url", server.url, "--model", "nobody", "-o", "-"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "'nobody' is not found" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_recording_does_not_hold_up_the_drain(repository: Path) -> None:
    with running_server(repository) as server, grpc.insecure_channel(server.url) as channel:
        stream = TrafficStub(channel).Arrivals(pb.ArrivalsRequest(model="scale"), timeout=60)  # type: ignore[no-untyped-call]
        next(stream)
        server.send(signal.SIGTERM)
        left = list(stream)
        assert sum(len(message.arrivals) for message in left) == 0
        assert stream.code() is grpc.StatusCode.OK
