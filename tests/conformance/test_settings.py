"""Trace and log settings, read and changed by tritonclient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.write(root, "scale", proto=onnx_models.scale(), config=f"max_batch_size: 8\n{ONE_ENGINE}")
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with running_server(repository, "--trace-rate", "500") as running:
        yield running


def infer(client: triton.InferenceServerClient, request_id: str) -> None:
    rows = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    client.infer("scale", [rows], request_id=request_id)


def test_traces_can_be_switched_on_and_off(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "traces" / "trace.json"
    arguments = ("--trace-file", file, "--trace-rate", "500")
    with running_server(repository, *arguments) as server, triton.InferenceServerClient(server.url) as client:
        infer(client, "not traced yet")
        changed = client.update_trace_settings(
            settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "2"}, as_json=True
        )
        assert changed["settings"]["trace_level"]["value"] == ["TIMESTAMPS"]
        for number in range(4):
            infer(client, f"request {number}")
        cleared = client.update_trace_settings(settings={"trace_level": None, "trace_rate": None}, as_json=True)
        assert cleared["settings"]["trace_level"]["value"] == ["OFF"]
        assert cleared["settings"]["trace_rate"]["value"] == ["500"]
        infer(client, "not traced any more")
    traces = json.loads(file.read_text())
    assert [entry["request_id"] for entry in traces if "request_id" in entry] == ["request 0", "request 1"]
    stamps = [entry["timestamps"] for entry in traces if "timestamps" in entry]
    for phases in stamps:
        assert [phases[0]["name"], phases[-1]["name"]] == ["REQUEST_START", "REQUEST_END"]
        assert [phase["ns"] for phase in phases] == sorted(phase["ns"] for phase in phases)


def test_one_model_may_have_its_own(client: triton.InferenceServerClient) -> None:
    client.update_trace_settings("scale", settings={"trace_rate": "7"})
    assert client.get_trace_settings("scale", as_json=True)["settings"]["trace_rate"]["value"] == ["7"]
    assert client.get_trace_settings(as_json=True)["settings"]["trace_rate"]["value"] == ["500"]
    with pytest.raises(InferenceServerException, match="'nowhere' is not found"):
        client.get_trace_settings("nowhere")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trace_level": ["TENSORS"]}, "trace_level must be one of OFF, TIMESTAMPS"),
        ({"trace_rate": "0"}, "trace_rate must be a whole number >= 1"),
        ({"trace_file": "/etc/passwd"}, "trace_file is set when the server starts"),
        ({"unheard_of": "1"}, "unknown or unsupported trace setting 'unheard_of'"),
    ],
)
def test_bad_trace_settings(client: triton.InferenceServerClient, settings: dict[str, object], text: str) -> None:
    with pytest.raises(InferenceServerException, match=text):
        client.update_trace_settings(settings=settings)


def test_log_settings(client: triton.InferenceServerClient) -> None:
    before = client.get_log_settings(as_json=True)["settings"]
    assert before["log_info"] == {"bool_param": True}
    assert before["log_verbose_level"] == {"uint32_param": 0}
    changed = client.update_log_settings({"log_verbose_level": 1, "log_warning": False}, as_json=True)["settings"]
    assert changed["log_verbose_level"] == {"uint32_param": 1}
    assert changed["log_warning"] == {"bool_param": False}
    client.update_log_settings({"log_verbose_level": 0, "log_warning": True})
    assert client.get_log_settings(as_json=True)["settings"] == before


@pytest.mark.parametrize("settings", [{"log_file": "/tmp/elsewhere"}, {"log_format": "json"}, {"unheard_of": True}])
def test_bad_log_settings(client: triton.InferenceServerClient, settings: dict[str, object]) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        client.update_log_settings(settings)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
