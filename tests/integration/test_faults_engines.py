"""Engines that hang, fail or run out of memory in a server process: what callers get, and that the rest goes on."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest

from tests.support import onnx_models
from tests.support.calls import blocking_stub, failure, floats, row, steps
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server, start_server

pytestmark = pytest.mark.integration

NEVER = 10**9
"""Steps of `counter` that outlast any test."""
TRANSPORTS = pytest.mark.parametrize("transport", ["http2", "grpcio"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    onnx_models.write(root, "counter", proto=onnx_models.counter(), config=f"max_batch_size: 0\n{ONE_ENGINE}")
    onnx_models.write(root, "scale", proto=onnx_models.scale(), config=f"max_batch_size: 4\n{ONE_ENGINE}")
    return root


def figure(server: RunningServer, name: str) -> float:
    """One series of /metrics."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        return next(float(line.split()[-1]) for line in page.read().decode().splitlines() if line.startswith(name))


@TRANSPORTS
def test_a_hung_engine_is_replaced_and_its_caller_may_try_again(repository: Path, transport: str) -> None:
    arguments = ("--transport", transport, "--engine-timeout-secs", "1", "--exit-timeout-secs", "3")
    with running_server(repository, *arguments, faults=True) as server, blocking_stub(server.url) as stub:
        hung, waiting = stub.ModelInfer.future(steps(NEVER)), stub.ModelInfer.future(steps(7))
        assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]  # a neighbour, meanwhile
        code, text, trailers = failure(hung)
        assert code == "INTERNAL"
        assert text.startswith("model 'counter' version 1 failed: an execution of 1 row(s) had not ended after")
        assert trailers["retryable"] == "true"
        assert floats(waiting.result(timeout=60)) == [7]
        assert floats(stub.ModelInfer(steps(9), timeout=60)) == [9]
        assert figure(server, 'kairos_engines_hung{model="counter"') == 1
        assert figure(server, 'kairos_engines{model="counter",state="idle"') == 1
        assert server.process.poll() is None
        server.send(signal.SIGTERM)
        assert server.wait() == 0  # though a thread still runs inside the engine


@TRANSPORTS
def test_with_too_many_hung_engines_the_server_drains_and_asks_to_be_started_anew(
    repository: Path, transport: str
) -> None:
    arguments = ("--transport", transport, "--engine-timeout-secs", "0.5", "--max-hung-engines", "1")
    server = start_server("--model-repository", repository, *arguments, "--exit-timeout-secs", "2")
    try:
        server.wait_ready()
        with blocking_stub(server.url) as stub:
            calls = [stub.ModelInfer.future(steps(NEVER)) for _ in range(2)]
            assert [failure(call)[0] for call in calls] == ["INTERNAL", "INTERNAL"]
        server.wait_for("2 engines hang: the server drains and ends")
        assert server.wait() == 3
        assert "Traceback" not in server.text
    finally:
        server.end()
