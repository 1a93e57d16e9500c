"""Counters advance by exactly what was done; /metrics tells the same story."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["http2", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With one model, which has warmed up: that must not count."""
    root = tmp_path_factory.mktemp("counted")
    warmup = 'model_warmup { name: "w" batch_size: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }'  # noqa: E501
    tags = 'metric_tags { key: "team" value: "search" }'
    config = f"max_batch_size: 8\n{warmup}\n{tags}\n{ONE_ENGINE}"
    onnx_models.write(root, "scale", proto=onnx_models.scale(), config=config)
    with running_server(root, "--transport", request.param) as running:
        yield running


def infer(client: triton.InferenceServerClient, rows: int = 1, width: int = 4) -> None:
    values = np.ones((rows, width), np.float32)
    client.infer("scale", [triton.InferInput("x", values.shape, "FP32").set_data_from_numpy(values)])


def statistics(client: triton.InferenceServerClient) -> service_pb2.ModelStatistics:
    (found,) = client.get_inference_statistics("scale").model_stats
    return found


def metrics(server: RunningServer) -> dict[tuple[str, str], float]:
    """Samples of `scale` by name and the one label that is not the model's; the whole page must parse."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    assert any(family.name == "process_cpu_seconds" for family in families)
    samples = (sample for family in families for sample in family.samples if sample.labels.get("model") == "scale")
    return {
        (sample.name, next((v for k, v in sample.labels.items() if k not in ("model", "version")), "")): sample.value
        for sample in samples
    }


def test_everything_starts_at_zero_and_advances_exactly(
    client: triton.InferenceServerClient, server: RunningServer
) -> None:
    before = statistics(client)
    assert (before.inference_count, before.execution_count, before.inference_stats.success.count) == (0, 0, 0)
    assert before.version == "1"

    for rows in (1, 1, 3):
        infer(client, rows)
    with pytest.raises(InferenceServerException):
        infer(client, width=5)

    after = statistics(client)
    stats = after.inference_stats
    assert (after.inference_count, after.execution_count) == (5, 3)
    assert (stats.success.count, stats.fail.count) == (3, 1)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in after.batch_stats] == [(1, 2), (3, 1)]
    for phase in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output):
        assert phase.count == 3
    parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    assert 0 < stats.compute_infer.ns < parts <= stats.success.ns
    assert after.last_inference > 1_600_000_000_000  # milliseconds since 1970
    assert sum(batch.compute_infer.ns for batch in after.batch_stats) == pytest.approx(stats.compute_infer.ns, abs=5)

    seen = metrics(server)
    assert seen["kairos_inference_rows_total", ""] == 5
    assert seen["kairos_batch_rows_count", ""] == 3
    assert seen["kairos_requests_total", "in_deadline"] == 3
    assert seen["kairos_requests_total", "invalid"] == 1
    assert seen["kairos_batches_total", "drained"] == 3
    assert seen["kairos_execute_seconds_sum", ""] == pytest.approx(stats.compute_infer.ns / 1e9, abs=1e-8)
    assert seen["kairos_requests_in_flight", ""] == 0
    assert seen["kairos_model_tag", "team"] == 1


def test_unknown_models_are_an_error(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="'nowhere' is not found"):
        client.get_inference_statistics("nowhere")
    assert [model.name for model in client.get_inference_statistics().model_stats] == ["scale"]
