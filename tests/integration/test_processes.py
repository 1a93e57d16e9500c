"""Several server processes on one port: each counts its own, and together they have counted everything."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server

pytestmark = pytest.mark.integration

MODEL = "identity"
CALLS = 64


def ask(url: str) -> None:
    """One call on a connection of its own, which the kernel gives to either process."""
    asked = pb.ModelInferRequest(model_name=MODEL)
    asked.inputs.add(name="x0", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    with grpc.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.ModelInfer(asked, timeout=30)


def counted(server: RunningServer) -> tuple[float, float]:
    """Requests by the counter, and by the histogram."""
    with urllib.request.urlopen(server.metrics_url) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return (
        sum(sample.value for sample in samples if sample.name == "kairos_requests_total"),
        sum(sample.value for sample in samples if sample.name == "kairos_request_seconds_count"),
    )


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_processes_that_share_a_port_count_every_request_once(tmp_path: Path, transport: str) -> None:
    onnx_models.write(tmp_path, MODEL, config=f"max_batch_size: 8\n{ONE_ENGINE}")
    flags = ("--reuse-port", "--transport", transport)
    with running_server(tmp_path, *flags) as one:
        port = one.url.rpartition(":")[2]
        with running_server(tmp_path, *flags, "--grpc-port", port) as other:
            for _ in range(CALLS):
                ask(one.url)
            by_process = [counted(server) for server in (one, other)]
            assert one.metrics_url != other.metrics_url
    assert [sum(counts) for counts in zip(*by_process, strict=True)] == [CALLS, CALLS]
    assert all(0 < count < CALLS for counts in by_process for count in counts), "both have had some"
