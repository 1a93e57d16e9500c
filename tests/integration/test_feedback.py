"""Outcomes, capture and triggers in real server processes, which are killed at will."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton

from server.pb import feedback_pb2 as pb
from server.pb.feedback_pb2_grpc import FeedbackStub
from tests.support import digits
from tests.support.repositories import add_examples
from tests.support.servers import RunningServer, running_server, start_server, wait_until
from tests.support.webhooks import Receiver, receiver

pytestmark = pytest.mark.integration

SETTINGS = "\nwatch { sample_rate: 1 }\ncapture { enable: true rotate_seconds: 1 }\n"
TRIGGERS = """
every = "50ms"
[[rule]]
name = "costly"
signal = "outcome.cost"
model = "digits"
above = 1.0
clear = 0.5
actions = ["hook"]
[action.hook]
kind = "webhook"
url = "{url}"
timeout = "30s"
first_wait = "50ms"
secret_env = "HOOK_SECRET"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    add_examples(root)
    with (root / "digits" / "config.pbtxt").open("a") as config:
        config.write(SETTINGS)
    return root


def ask(server: RunningServer, images: np.ndarray, prefix: str = "q") -> list[int]:
    """One request for each image, with ids `prefix` and its number; the predicted classes."""
    found = []
    with triton.InferenceServerClient(server.url) as client:
        for number, image in enumerate(images.astype(np.float32)):
            tensor = triton.InferInput("image", (1, *image.shape), "FP32").set_data_from_numpy(image[None])
            answer = client.infer("digits", [tensor], request_id=f"{prefix}{number}", client_timeout=30.0)
            found.append(int(answer.as_numpy("probabilities").argmax()))
    return found


def report(server: RunningServer, *outcomes: pb.Outcome, stream: bool = False) -> pb.ReportResponse:
    with grpc.insecure_channel(server.url) as channel:
        stub = FeedbackStub(channel)  # type: ignore[no-untyped-call]
        if stream:
            requests = (pb.ReportRequest(outcomes=[outcome]) for outcome in outcomes)
            return stub.ReportStream(requests, timeout=30)  # type: ignore[no-any-return]
        return stub.Report(pb.ReportRequest(outcomes=outcomes), timeout=30)  # type: ignore[no-any-return]


def status(server: RunningServer) -> pb.FeedbackStatusResponse:
    with grpc.insecure_channel(server.url) as channel:
        return FeedbackStub(channel).Status(pb.FeedbackStatusRequest(), timeout=30)  # type: ignore[no-any-return, no-untyped-call]


def kairos(*arguments: str | Path, stdin: str | None = None, code: int = 0) -> str:
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, input=stdin, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def label(number: int, value: int) -> pb.Outcome:
    return pb.Outcome(model="digits", id=f"q{number}", label=str(value))


def cost(number: int, value: float) -> pb.Outcome:
    return pb.Outcome(model="digits", id=f"q{number}", metric="cost", value=value)


@contextmanager
def killed(repository: Path, state: Path, *arguments: str | Path) -> Iterator[RunningServer]:
    """A server that ends by SIGKILL."""
    server = start_server(
        "--model-repository", repository, "--state-dir", state, *arguments, env={"HOOK_SECRET": "s3cret"}
    )
    try:
        server.wait_ready()
        yield server
        server.send(signal.SIGKILL)
        server.wait()
    finally:
        server.end()


def test_from_traffic_to_accuracy_and_to_an_int8_version(repository: Path, tmp_path: Path) -> None:
    held_out = np.load(digits.HELD_OUT)
    images, truth = held_out["images"][:120], held_out["labels"][:120]
    state = tmp_path / "state"
    with running_server(repository, "--state-dir", state) as server:
        predicted = ask(server, images)
        outcomes = tmp_path / "outcomes.csv"
        outcomes.write_text("id,label\n" + "".join(f"q{n},{value}\n" for n, value in enumerate(truth)))
        wait_until(lambda: status(server).predictions == 120, "all predictions")
        told = kairos("feedback", "report", outcomes, "--model", "digits", "--url", server.url)
        assert told == "120 outcomes: 120 accepted, 0 duplicate, 0 unknown, 0 late\n"
        assert report(server, cost(0, 2.0), cost(0, 2.0), cost(777, 1.0), stream=True) == pb.ReportResponse(
            accepted=1, duplicate=1, unknown=1
        )
        right = np.mean(np.array(predicted) == truth)
        (found,) = json.loads(kairos("feedback", "status", "--url", server.url, "--json"))["models"]
        assert found["accuracy"] == pytest.approx(right)
        assert found["labelled"] == "120"
        assert f"{right:.2%}" in kairos("feedback", "status", "--url", server.url)
        with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
            text = page.read().decode()
        assert 'kairos_feedback_reports_total{result="accepted"} 121.0' in text
        assert 'kairos_capture_rows_total{model="digits",result="written",version="2"} 120.0' in text
        assert kairos("feedback", "export", tmp_path / "all.parquet", "--state-dir", state).startswith("121 lines")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.column("label").to_pylist().count(None) == 1
    captured = state / "capture" / "digits"
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in captured.glob("2/*.parquet")) == 120
    built = kairos(
        "build", digits.MODEL, "--name", "small", "--repository", tmp_path / "built", "--precision", "int8",
        "--calibration", captured, "--data", digits.HELD_OUT, "--labels", "labels", "--batch", "1",
    )  # fmt: skip
    assert "published" in built
    compared = kairos("compare", digits.MODEL, tmp_path / "built" / "small" / "1" / "model.onnx", "--data", captured)
    assert "same best class: 100.00%" in compared


def test_a_killed_server_loses_no_acknowledged_outcome_and_no_captured_row(repository: Path, tmp_path: Path) -> None:
    images = np.load(digits.HELD_OUT)["images"][:20]
    state = tmp_path / "state"
    with killed(repository, state) as server:
        ask(server, images)
        wait_until(lambda: status(server).predictions == 20, "all predictions")
        assert report(server, *(label(n, 1) for n in range(10))).accepted == 10
        assert report(server, label(99, 1)).unknown == 1
    with killed(repository, state) as server:
        assert (status(server).predictions, status(server).outcomes, status(server).pending) == (20, 11, 1)
        assert report(server, *(label(n, 1) for n in range(20))) == pb.ReportResponse(accepted=10, duplicate=10)
    with running_server(repository, "--state-dir", state) as server:
        assert report(server, *(label(n, 1) for n in range(20))) == pb.ReportResponse(duplicate=20)
    files = (state / "capture" / "digits" / "2").glob("*.parquet")
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in files) == 20


def raised(server: RunningServer, hook: Receiver, events: int) -> None:
    wait_until(lambda: len(set(hook.ids)) == events, f"{events} event(s)")


def test_a_killed_server_fires_no_second_event(repository: Path, tmp_path: Path) -> None:
    images = np.load(digits.HELD_OUT)["images"][:2]
    state, file = tmp_path / "state", tmp_path / "triggers.toml"
    with receiver(500, 0) as hook:
        file.write_text(TRIGGERS.format(url=hook.url))
        with killed(repository, state, "--triggers", file) as server:
            ask(server, images)
            wait_until(lambda: status(server).predictions == 2, "both predictions")
            report(server, cost(0, 5.0))
            wait_until(lambda: len(hook.requests) == 3, "two failures and a success")
            assert len(set(hook.ids)) == 1
        with killed(repository, state, "--triggers", file) as server:
            report(server, cost(1, 5.0))  # a new reading of the same episode
            wait_until(lambda: metric(server, "kairos_feedback_outcomes", 'metric="cost"') == 2.0, "the new reading")
            report(server, cost(0, 0.0), cost(1, 0.0))  # and its end
            wait_until(
                lambda: metric(server, "kairos_trigger_raised", 'rule="costly",version="2"') == 0.0,
                "the end of the episode",
            )
            assert len(set(hook.ids)) == 1
            hook.silent.set()  # the next event is on its way when the server is killed
            report(server, cost(0, 9.0), cost(1, 9.0))
            raised(server, hook, 2)
        hook.silent.clear()
        with running_server(
            repository, "--state-dir", state, "--triggers", file, env={"HOOK_SECRET": "s3cret"}
        ) as server:
            wait_until(
                lambda: metric(server, "kairos_trigger_deliveries_total", 'result="delivered"') == 1.0, "the delivery"
            )
            assert metric(server, "kairos_trigger_raised", 'rule="costly",version="2"') == 1.0
    assert len(set(hook.ids)) == 2
    assert hook.ids[-1] == hook.ids[-2]
    assert hook.events[-1]["data"]["value"] == 9.0
    log = kairos("triggers", "log", "--state-dir", state)
    assert log.count("delivered") == 2


def metric(server: RunningServer, name: str, having: str) -> float | None:
    """The first series of that name with these labels."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        lines = page.read().decode().splitlines()
    found = [line for line in lines if line.startswith(name + "{") and having in line]
    return float(found[0].rsplit(" ", 1)[1]) if found else None
