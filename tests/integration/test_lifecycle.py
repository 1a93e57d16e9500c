"""The life of a server process: signals while it loads, works, and drains."""

from __future__ import annotations

import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server, start_server, wait_until

pytestmark = pytest.mark.integration

SOON, NEVER = 2_000, 10**9
"""Steps of `counter`: a good second's work, and more than any test waits for."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.write(root, "counter", proto=onnx_models.counter(), config=f"max_batch_size: 0\n{ONE_ENGINE}")
    return root


@pytest.fixture(params=["http2", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def steps(number: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="counter", raw_input_contents=[np.int64(number).tobytes()])
    request.inputs.add(name="n", datatype="INT64", shape=[1])
    return request


def listens(url: str) -> bool:
    """Whether a connection is taken."""
    host, port = url.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=30).close()
    except ConnectionError:
        return False
    return True


class Caller:
    """Calls `counter`, and knows from /metrics when the server has begun with it."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._channel = grpc.insecure_channel(server.url)
        self.stub = GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def start(self, number: int) -> grpc.Future:
        """Start a call and wait until its work runs or waits on the server."""
        before = self.in_flight()
        call: grpc.Future = self.stub.ModelInfer.future(steps(number))
        wait_until(lambda: self.in_flight() > before or call.done(), "the call has arrived")
        return call

    def in_flight(self) -> float:
        with urllib.request.urlopen(self._server.metrics_url, timeout=30) as page:
            for line in page.read().decode().splitlines():
                if line.startswith("kairos_requests_in_flight{"):
                    return float(line.split()[-1])
        raise AssertionError("no kairos_requests_in_flight in /metrics")

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def ended() -> Iterator[list[Caller]]:
    callers: list[Caller] = []
    yield callers
    for caller in callers:
        caller.close()


def test_a_drain_lets_work_finish_and_refuses_the_new(repository: Path, transport: str, ended: list[Caller]) -> None:
    with running_server(repository, "--transport", transport) as server:
        ended.append(caller := Caller(server))
        call = caller.start(SOON)
        server.send(signal.SIGTERM)
        server.wait_for("SIGTERM: draining")
        wait_until(lambda: not listens(server.url), "nobody listens")  # who came before that is answered
        with pytest.raises(grpc.RpcError) as refusal, grpc.insecure_channel(server.url) as late:
            GRPCInferenceServiceStub(late).ModelInfer(steps(1), timeout=30)  # type: ignore[no-untyped-call]
        # grpcio's server cancels a call that comes in the very moment in which it closes its port.
        allowed = {"http2": ["UNAVAILABLE"], "grpcio": ["UNAVAILABLE", "CANCELLED"]}
        assert refusal.value.code().name in allowed[transport]
        assert np.frombuffer(call.result(timeout=60).raw_output_contents[0], np.float32)[0] == SOON


def test_a_drain_has_an_end(repository: Path, transport: str, ended: list[Caller]) -> None:
    arguments = ("--transport", transport, "--exit-timeout-secs", "2")
    with running_server(repository, *arguments, faults=True) as server:
        ended.append(caller := Caller(server))
        running, waiting = caller.start(NEVER), caller.start(1)
        server.send(signal.SIGTERM)
        for call in (running, waiting):
            error = call.exception(timeout=60)
            assert isinstance(error, grpc.RpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert error.details() == "model 'counter' is shutting down"
        assert server.wait() == 0


def test_a_second_signal_ends_it_at_once(repository: Path, transport: str, ended: list[Caller]) -> None:
    server = start_server("--model-repository", repository, "--transport", transport)
    try:
        server.wait_ready()
        ended.append(caller := Caller(server))
        call = caller.start(NEVER)
        server.send(signal.SIGINT)
        server.wait_for("SIGINT: draining")
        server.send(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
        assert "SIGTERM again: stopping at once" in server.text
        assert isinstance(call.exception(timeout=60), grpc.RpcError)
    finally:
        server.end()


def test_a_signal_while_models_load(tmp_path: Path) -> None:
    warmup = (
        'model_warmup { name: "long" count: 1000000 inputs { key: "n" value { data_type: TYPE_INT64 dims: 1 '
        'input_data_file: "steps" } } }'
    )
    folder = onnx_models.write(
        tmp_path, "counter", proto=onnx_models.counter(), config=f"max_batch_size: 0\n{warmup}\n{ONE_ENGINE}"
    )
    (folder / "warmup").mkdir()
    (folder / "warmup" / "steps").write_bytes(np.int64(100).tobytes())
    server = start_server("--model-repository", tmp_path, "--log-verbose", "1")
    try:
        server.wait_for("counter:1 is LOADING")
        server.send(signal.SIGTERM)
        assert server.wait() == 0, server.text
        assert "Traceback" not in server.text
        assert "kairos is ready" not in server.text
    finally:
        server.end()


def test_a_taken_port_is_said_plainly(repository: Path) -> None:
    with running_server(repository) as server:
        port = server.url.rpartition(":")[2]
        second = start_server("--model-repository", repository, "--grpc-port", port)
        try:
            assert second.wait() == 1
            assert "kairos cannot start: cannot listen on" in " ".join(second.text.split())
            assert "Traceback" not in second.text
        finally:
            second.end()


def test_a_broken_model_stops_only_a_server_that_is_told_so(repository: Path, tmp_path: Path) -> None:
    broken = onnx_models.write(tmp_path, "broken")
    (broken / "1" / "model.onnx").write_bytes(b"no model")
    with running_server(tmp_path, "--model-repository", repository, faults=True) as server:
        assert "broken:1 could not be loaded" in server.text
    strict = start_server("--model-repository", tmp_path, "--exit-on-error")
    try:
        assert strict.wait() == 1
        assert "kairos cannot start: 1 model version(s) could not be loaded" in " ".join(strict.text.split())
    finally:
        strict.end()
