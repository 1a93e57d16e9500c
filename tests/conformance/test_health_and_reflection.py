"""What orchestrators and people with a shell use: grpc.health.v1, reflection, grpc_health_probe, grpcurl."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server
from tests.support.tools import program

pytestmark = pytest.mark.integration

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.url) as connected:
        yield connected


def health(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", SERVICE, "simple"])
def test_check(channel: grpc.Channel, service: str) -> None:
    assert health_pb2_grpc.HealthStub(channel).Check(health(service)).status == SERVING


def test_check_of_the_unknown(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        health_pb2_grpc.HealthStub(channel).Check(health("nowhere"))
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_watch_follows_a_model_and_the_drain(tmp_path: Path, transport: str) -> None:
    onnx_models.write(tmp_path, "scale", proto=onnx_models.scale(), config=f"max_batch_size: 8\n{ONE_ENGINE}")
    arguments = ("--model-control-mode", "explicit", "--transport", transport)
    with running_server(tmp_path, *arguments) as server, grpc.insecure_channel(server.url) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watchers = [stub.Watch(health("scale"), timeout=60) for _ in range(3)]
        whole = stub.Watch(health(""), timeout=60)
        assert [next(watcher).status for watcher in watchers] == [SERVICE_UNKNOWN] * 3
        assert next(whole).status == SERVING
        with triton.InferenceServerClient(server.url) as client:
            client.load_model("scale")
            assert [next(watcher).status for watcher in watchers[:2]] == [NOT_SERVING] * 2  # while it loads
            assert [next(watcher).status for watcher in watchers[:2]] == [SERVING] * 2
            watchers[0].cancel()
            client.unload_model("scale")
            assert next(watchers[1]).status == NOT_SERVING
        server.send(signal.SIGTERM)
        assert next(whole).status == NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(whole)  # it ends, so that the drain can
        assert whole.code() is grpc.StatusCode.UNAVAILABLE


def reflect(channel: grpc.Channel, **asked: str) -> Any:
    request = reflection_pb2.ServerReflectionRequest(**asked)
    (response,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    return response


def test_reflection_describes_all_services(channel: grpc.Channel) -> None:
    listed = {service.name for service in reflect(channel, list_services="").list_services_response.service}
    ours = {SERVICE, *(f"kairos.v1.{name}" for name in ("Cache", "Feedback", "Rollout", "Traffic", "Watch"))}
    assert listed == ours | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for service in listed:
        files = [
            FileDescriptorProto.FromString(content)
            for content in reflect(
                channel, file_containing_symbol=service
            ).file_descriptor_response.file_descriptor_proto
        ]
        package, _, name = service.rpartition(".")
        assert any(file.package == package and name in {s.name for s in file.service} for file in files)


def test_reflection_of_the_unknown(channel: grpc.Channel) -> None:
    assert reflect(channel, file_containing_symbol="no.such.Thing").error_response.error_code == 5


def grpcurl(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    *options, method = arguments
    command = [program("grpcurl"), "-plaintext", *options, server.url, method]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_grpcurl_learns_the_protocol_from_the_server(server: RunningServer) -> None:
    listed = grpcurl(server, "list")
    assert SERVICE in listed.stdout.splitlines()
    asked = {
        "model_name": "simple",
        "inputs": [
            {"name": name, "datatype": "INT32", "shape": [1, 16], "contents": {"int_contents": [3] * 16}}
            for name in ("INPUT0", "INPUT1")
        ],
    }
    answered = grpcurl(server, "-d", json.dumps(asked), f"{SERVICE}/ModelInfer")
    assert answered.returncode == 0, answered.stderr
    assert [output["name"] for output in json.loads(answered.stdout)["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    refused = grpcurl(server, "-d", '{"name": "nowhere"}', f"{SERVICE}/ModelMetadata")
    assert refused.returncode == 64 + 5  # how grpcurl passes on NOT_FOUND
    assert "Request for unknown model: 'nowhere' is not found" in refused.stderr


@pytest.mark.parametrize(("service", "status"), [("", 0), ("simple", 0), ("nowhere", 3)])
def test_grpc_health_probe(server: RunningServer, service: str, status: int) -> None:
    command = [program("grpc-health-probe"), "-addr", server.url, "-service", service]
    probed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert probed.returncode == status, probed.stderr
