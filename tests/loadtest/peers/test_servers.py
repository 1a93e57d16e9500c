from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from loadtest.load.plan import infer_request
from loadtest.load.scenario import Kind
from loadtest.peers import models
from loadtest.peers.cells import Listener, Options, WrongAnswer, check_answer, deadlines_ms, measure
from loadtest.peers.models import MODELS
from loadtest.peers.page import COLOURS
from loadtest.peers.servers import (
    HOME,
    PEERS,
    Bare,
    Command,
    Kairos,
    MLServer,
    Setting,
    TorchServe,
    Triton,
    TritonPython,
    free_port,
    running,
)
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
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
    kairos = ModelConfig()
    (tmp_path / "kairos").mkdir()
    Kairos().prepare(setting(tmp_path / "kairos", files))
    text_format.Parse((tmp_path / "kairos/mlp/config.pbtxt").read_text(), kairos)
    assert kairos.max_batch_size == MODELS["mlp"].max_rows
    for peer, backend in ((Triton(), "onnxruntime"), (TritonPython(), "python")):
        triton = text_format.Parse(peer._config(MODELS["mlp"], 1), ModelConfig())
        assert (triton.backend, triton.max_batch_size) == (backend, MODELS["mlp"].max_rows)
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


def test_every_server_has_a_name_and_a_colour_of_its_own() -> None:
    names = [peer.name for peer in PEERS.values()]
    assert sorted(COLOURS) == sorted(names) == sorted(set(names))
    assert len(set(COLOURS.values())) == len(names)


@pytest.mark.parametrize(("program", "told"), [("c++", "a C[+][+] compiler"), ("go", "Go")])
def test_what_compiles_tritons_backend_is_asked_for(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name.replace("g++", "c++") == program else name)
    with pytest.raises(RuntimeError, match=f"^{told}.* is missing"):
        Triton().build(tmp_path)


def test_a_backend_newer_than_its_source_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    built = Triton()._built(tmp_path)
    built.parent.mkdir(parents=True)
    built.write_bytes(b"")
    Triton().build(tmp_path)


def test_deadlines_leave_room_for_a_full_batch() -> None:
    fast, slow = {64: (1e6, 1.0)}, {64: (640.0, 1.0)}
    assert list(deadlines_ms(MODELS["mlp"], fast)) == ["25", "50", "100"]
    assert list(deadlines_ms(MODELS["mlp"], slow)) == ["150", "300", "600"]


def installed(name: str) -> str:
    """The peer's name, if it is there: 1.5 GB of other people's servers are not installed for tests."""
    peer = PEERS[name]
    there = HOME / peer.home / ".installed" if name != "triton" else Triton()._built(HOME / peer.home)
    if peer.home and not there.exists():
        pytest.skip(f"not installed: python -m loadtest.peers --peers {name} --only-install")
    return name


@pytest.mark.integration
@pytest.mark.parametrize("name", ["kairos", "bare", "triton", "triton-python"])
def test_a_peer_is_started_checked_and_measured(name: str, tmp_path: Path, files: dict[str, Path]) -> None:
    told = []
    installed(name)
    options = Options(models=["mlp"], callers=(4,), loads=(0.2,), closed_s=0.3, open_s=0.3)
    failures: list[tuple[str, Exception]] = []
    measure(
        PEERS[name],
        {"mlp": files["mlp"]},
        {"mlp": {"1000": 1.0}},
        options,
        0,
        Listener(told.append, lambda model, error: failures.append((model, error))),
    )
    assert failures == []
    closed, opened = told
    assert closed.codes == {"OK": pytest.approx(closed.answers_per_s * 0.3, abs=8)}
    assert closed.cpu_us > 0
    assert opened.capacity == closed.answers_per_s
    assert sum(opened.codes.values()) > 0


class Dying(Bare):
    """Listens, and is gone as soon as somebody connects a second time."""

    name = "dying"

    def prepare(self, setting: Setting) -> Command:
        script = (
            "import os, signal, socket, sys\n"
            "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
            "listener.accept()\n"
            "listener.accept()\n"
            "os.kill(os.getpid(), signal.SIGSEGV)\n"
        )
        return Command([sys.executable, "-c", script, str(setting.port)])


@pytest.mark.integration
def test_a_server_that_dies_is_told_of_by_model(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.peers.cells._PATIENCE_S", 1.0)
    failures: list[tuple[str, str]] = []
    measure(
        Dying(),
        files,
        {},
        Options(models=list(files)),
        0,
        Listener(
            lambda _: pytest.fail("it answers nothing"), lambda model, error: failures.append((model, str(error)))
        ),
    )
    assert failures == [(name, "the server ended by itself with SIGSEGV") for name in files]


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


def ids(rows: int, of: int) -> pb.ModelInferRequest:
    """A request to the encoder whose words are no other request's."""
    words = np.random.default_rng(of).integers(0, 64, (rows, *MODELS["encoder"].shape))
    request = pb.ModelInferRequest(model_name="encoder", raw_input_contents=[words.tobytes()])
    request.inputs.add(name="ids", datatype="INT64", shape=words.shape)
    return request


@pytest.mark.integration
def test_tritons_backend_gives_everyone_in_a_batch_their_own_rows(tmp_path: Path, files: dict[str, Path]) -> None:
    with running(PEERS[installed("triton")], setting(tmp_path, files)) as server:
        check_answer(PEERS["triton"], server, MODELS["encoder"], files["encoder"])
        requests = [ids(1 + of % 5, of) for of in range(60)]
        with grpc.insecure_channel(server.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            answers = [call.result(30.0) for call in [stub.ModelInfer.future(request) for request in requests]]
            told = stub.ModelStatistics(pb.ModelStatisticsRequest(name="encoder")).model_stats[0]
    session = onnxruntime.InferenceSession(str(files["encoder"]))
    for request, answer in zip(requests, answers, strict=True):
        words = np.frombuffer(request.raw_input_contents[0], np.int64).reshape(request.inputs[0].shape)
        assert list(answer.outputs[0].shape) == [len(words), MODELS["encoder"].classes]
        (wanted,) = session.run(None, {"ids": words})
        np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], np.float32), wanted.ravel(), atol=1e-4)
    assert told.execution_count < told.inference_stats.success.count, "no batch was formed"
    assert told.inference_count == 1 + sum(request.inputs[0].shape[0] for request in requests)


@pytest.mark.integration
def test_what_onnx_runtime_refuses_is_an_error_and_no_more(tmp_path: Path, files: dict[str, Path]) -> None:
    with running(PEERS[installed("triton")], setting(tmp_path, files)) as server:
        check_answer(PEERS["triton"], server, MODELS["encoder"], files["encoder"])
        unknown = ids(1, 0)
        unknown.raw_input_contents[0] = np.full((1, *MODELS["encoder"].shape), 10**9).tobytes()
        with grpc.insecure_channel(server.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for _ in range(3):
                with pytest.raises(grpc.RpcError, match="ONNX Runtime: Non-zero status") as refused:
                    stub.ModelInfer(unknown, timeout=30.0)
                assert refused.value.code() is grpc.StatusCode.INTERNAL
        check_answer(PEERS["triton"], server, MODELS["encoder"], files["encoder"])


@pytest.mark.integration
@pytest.mark.parametrize("name", ["triton", "triton-python"])
def test_triton_refuses_what_its_timeout_has_passed_for(name: str, tmp_path: Path, files: dict[str, Path]) -> None:
    with running(PEERS[installed(name)], setting(tmp_path, files)) as server:
        check_answer(PEERS[name], server, MODELS["encoder"], files["encoder"])
        hurried = ids(16, 0)
        hurried.parameters["timeout"].int64_param = 1  # a microsecond
        with grpc.insecure_channel(server.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            calls = [stub.ModelInfer.future(hurried) for _ in range(8)]
            codes = {call.code() for call in calls}
    assert grpc.StatusCode.UNAVAILABLE in codes
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
