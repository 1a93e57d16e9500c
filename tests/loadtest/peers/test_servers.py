from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from loadtest.load.plan import infer_request
from loadtest.load.scenario import Kind
from loadtest.peers import models
from loadtest.peers.cells import Options, WrongAnswer, check_answer, deadlines_ms, measure
from loadtest.peers.models import MODELS
from loadtest.peers.servers import PEERS, Kairos, MLServer, Setting, TorchServe, Triton, free_port, running
from server.pb.model_config_pb2 import ModelConfig
from tests.support import networks


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models.write(tmp_path_factory.mktemp("models"), ["mlp", "encoder"])


def setting(folder: Path, files: dict[str, Path]) -> Setting:
    return Setting(folder=folder, models=[MODELS[name] for name in files], files=files, threads=1, port=free_port())


def test_the_models_are_what_they_say(files: dict[str, Path]) -> None:
    for name, file in files.items():
        session = onnxruntime.InferenceSession(str(file))
        (told,), (output,) = session.get_inputs(), session.get_outputs()
        model = MODELS[name]
        assert (told.name, told.shape[1:], output.name) == (model.input, list(model.shape), model.output)


def test_the_batch_of_resnet_is_free(tmp_path: Path) -> None:
    (file,) = models.write(tmp_path, ["resnet50"]).values()
    session = onnxruntime.InferenceSession(str(file))
    rows = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
    (together,) = session.run(None, {MODELS["resnet50"].input: rows})
    (alone,) = session.run(None, {MODELS["resnet50"].input: rows[1:]})
    assert together.shape == (2, 1000)
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_torchserve_is_asked_in_its_own_words() -> None:
    peer = TorchServe()
    request = infer_request(Kind(model="m"), MODELS["mlp"].metadata(), 1, np.inf, np.random.default_rng(0))
    raw = request.raw_input_contents[0]
    message = peer.body(Kind(model="m"), request).message
    assert message == b"\x0a\x01m\x1a\x48\x0a\x04data\x12\x40" + raw
    assert peer.outputs(b"\x0a\xc8\x01" + b"x" * 200) == b"x" * 200


def test_every_server_gets_the_same_threads_and_batches(tmp_path: Path, files: dict[str, Path]) -> None:
    kairos, triton = ModelConfig(), ModelConfig()
    (tmp_path / "kairos").mkdir()
    Kairos().prepare(setting(tmp_path / "kairos", files))
    text_format.Parse((tmp_path / "kairos/mlp/config.pbtxt").read_text(), kairos)
    text_format.Parse(Triton()._config(MODELS["mlp"], 1), triton)
    assert kairos.max_batch_size == triton.max_batch_size == MODELS["mlp"].max_rows
    assert triton.parameters["threads"].string_value == "1"
    (tmp_path / "mlserver").mkdir()
    MLServer().prepare(setting(tmp_path / "mlserver", files))
    settings = json.loads((tmp_path / "mlserver/mlp/model-settings.json").read_text())
    assert settings["max_batch_size"] == MODELS["mlp"].max_rows
    assert settings["parameters"]["extra"]["threads"] == 1
    (tmp_path / "torchserve").mkdir()
    TorchServe().prepare(setting(tmp_path / "torchserve", files))
    snapshot = (tmp_path / "torchserve/config.properties").read_text().partition("model_snapshot=")[2]
    assert json.loads(snapshot)["models"]["mlp"]["1.0"]["batchSize"] == MODELS["mlp"].max_rows


def test_deadlines_leave_room_for_a_full_batch() -> None:
    fast, slow = {64: (1e6, 1.0)}, {64: (640.0, 1.0)}
    assert list(deadlines_ms(MODELS["mlp"], fast)) == ["25", "50", "100"]
    assert list(deadlines_ms(MODELS["mlp"], slow)) == ["150", "300", "600"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["kairos", "bare"])
def test_a_peer_is_started_checked_and_measured(name: str, tmp_path: Path, files: dict[str, Path]) -> None:
    told = []
    options = Options(models=["mlp"], callers=(4,), loads=(0.2,), closed_s=0.3, open_s=0.3)
    measure(PEERS[name], {"mlp": files["mlp"]}, {"mlp": {"1000": 1.0}}, options, 0, told.append)
    closed, opened = told
    assert closed.codes == {"OK": pytest.approx(closed.answers_per_s * 0.3, abs=8)}
    assert closed.cpu_us > 0
    assert opened.capacity == closed.answers_per_s
    assert sum(opened.codes.values()) > 0


@pytest.mark.integration
def test_a_server_of_another_model_is_found_out(tmp_path: Path, files: dict[str, Path]) -> None:
    other = tmp_path / "other.onnx"
    random = np.random.default_rng(9)
    layers = [(networks.weight(random, 16, 8), np.zeros(8, np.float32))]
    other.write_bytes(networks.perceptron(layers).SerializeToString())
    folder = tmp_path / "bare"
    folder.mkdir()
    with running(PEERS["bare"], setting(folder, {"mlp": other})) as server, pytest.raises(WrongAnswer, match="mlp"):
        check_answer(PEERS["bare"], server, MODELS["mlp"], files["mlp"])
