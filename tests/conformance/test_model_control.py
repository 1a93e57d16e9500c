"""Loading and unloading by call: tritonclient's, and KServe's, whose message has the name in another field."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["http2", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """In mode explicit, with `scale` (versions 1 and 2) loaded, `other` not, and `broken` impossible to load."""
    root = tmp_path_factory.mktemp("controlled")
    config = f"max_batch_size: 8\nversion_policy {{ all {{}} }}\n{ONE_ENGINE}"
    for name in ("scale", "other"):
        onnx_models.write(root, name, (1, 2), proto=onnx_models.scale(2.0), config=config)
    broken = onnx_models.write(root, "broken", config=config)
    (broken / "1" / "model.onnx").write_bytes(b"this is no model")
    arguments = ("--model-control-mode", "explicit", "--load-model", "scale", "--transport", request.param)
    with running_server(root, *arguments) as running:
        yield running


def doubled(client: triton.InferenceServerClient, model: str, version: str = "") -> float:
    rows = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    return float(client.infer(model, [rows], model_version=version).as_numpy("y")[0, 0])


def states(client: triton.InferenceServerClient, model: str) -> dict[str, tuple[str, str]]:
    rows = client.get_model_repository_index(as_json=True)["models"]
    return {
        row.get("version", ""): (row.get("state", ""), row.get("reason", "")) for row in rows if row["name"] == model
    }


def test_load_answer_unload(client: triton.InferenceServerClient) -> None:
    assert not client.is_model_ready("other")
    assert states(client, "other") == {"": ("UNKNOWN", "")}
    client.load_model("other")
    assert client.is_model_ready("other", "2")
    assert doubled(client, "other", "1") == 2.0
    client.unload_model("other", unload_dependents=True)
    assert not client.is_model_ready("other")
    assert states(client, "other") == {"1": ("UNAVAILABLE", "unloaded"), "2": ("UNAVAILABLE", "unloaded")}
    with pytest.raises(InferenceServerException, match="is not at ready state") as refusal:
        doubled(client, "other")
    assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_a_configuration_in_the_call_takes_the_place_of_the_files(client: triton.InferenceServerClient) -> None:
    client.load_model("other", config=json.dumps({"maxBatchSize": 3, "versionPolicy": {"specific": {"versions": [1]}}}))
    assert client.get_model_config("other", as_json=True)["config"]["max_batch_size"] == 3
    assert client.is_model_ready("other", "1")
    assert not client.is_model_ready("other", "2")
    client.load_model("other")
    assert client.get_model_config("other", as_json=True)["config"]["max_batch_size"] == 8
    assert client.is_model_ready("other", "2")
    client.unload_model("other")


def test_files_in_the_call_take_the_place_of_the_folder(client: triton.InferenceServerClient) -> None:
    content = onnx_models.scale(5.0).SerializeToString()
    client.load_model("sent", config='{"maxBatchSize": 4}', files={"file:7/model.onnx": content})
    assert doubled(client, "sent", "7") == 5.0
    client.unload_model("sent")
    assert not client.is_model_ready("sent")


def test_a_reload_of_what_cannot_be_loaded_leaves_what_serves(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="failed to load 'scale'") as failure:
        client.load_model("scale", config='{"maxBatchSize": -4}')
    assert failure.value.status() == "StatusCode.INTERNAL"
    assert doubled(client, "scale") == 2.0
    client.load_model("scale")
    assert doubled(client, "scale") == 2.0


def test_a_broken_model_says_why(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="failed to load 'broken'") as failure:
        client.load_model("broken")
    assert failure.value.status() == "StatusCode.INTERNAL"
    ((state, reason),) = states(client, "broken").values()
    assert state == "UNAVAILABLE"
    assert reason
    assert not client.is_model_ready("broken")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"config": "{nonsense"}, "load parameter 'config' is not JSON"),
        ({"files": {"file:1/model.onnx": b"x"}}, "'config' must be given along with 'file:'"),
        ({"config": '{"unheardOf": 1}'}, "unheardOf"),
        ({"config": "{}", "files": {"file:../escape/model.onnx": b"x"}}, "escape"),
    ],
)
def test_overrides_that_make_no_sense(
    client: triton.InferenceServerClient, arguments: dict[str, object], text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text):
        client.load_model("other", **arguments)
    assert not client.is_model_ready("other")


def test_unknown_models(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="failed to load 'nowhere'"):
        client.load_model("nowhere")
    with pytest.raises(InferenceServerException, match="'nowhere' is not found") as refusal:
        client.unload_model("nowhere")
    assert refusal.value.status() == "StatusCode.NOT_FOUND"


def test_kserves_client_puts_the_name_in_the_first_field(server: RunningServer) -> None:
    with grpc.insecure_channel(server.url) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="other"))
        assert stub.ModelReady(pb.ModelReadyRequest(name="other")).ready
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(repository_name="other"))
        assert not stub.ModelReady(pb.ModelReadyRequest(name="other")).ready
        with pytest.raises(grpc.RpcError) as refusal:
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest())
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
