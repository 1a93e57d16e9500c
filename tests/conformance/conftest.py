"""A server process for stock clients, once on each transport."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton

from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support.repositories import add_examples, add_shapes, add_types
from tests.support.servers import RunningServer, running_server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    add_types(root)
    add_shapes(root)
    add_examples(root)
    return root


@pytest.fixture(scope="session", params=["http2", "grpcio"])
def server(request: pytest.FixtureRequest, repository: Path) -> Iterator[RunningServer]:
    """A server with all models loaded; at the end it must drain without a fault in its log."""
    with running_server(repository, "--transport", request.param, "--model-control-mode", "none") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    """tritonclient, as it comes."""
    with triton.InferenceServerClient(server.url) as connected:
        yield connected


@pytest.fixture
def stub(server: RunningServer) -> Iterator[GRPCInferenceServiceStub]:
    """Our own generated stub, for what tritonclient cannot be brought to send."""
    with grpc.insecure_channel(server.url) as channel:
        yield GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
