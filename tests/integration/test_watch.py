"""From a baseline to an alarm: the command line and a whole server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines.tensor import Array
from server.cli import cli
from server.pb import grpc_service_pb2 as pb
from server.pb import watch_pb2
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.pb.watch_pb2_grpc import WatchStub
from tests.support.repositories import EXAMPLES, ONE_ENGINE
from tests.support.servers import running_server, wait_until

pytestmark = pytest.mark.integration

HELD_OUT = EXAMPLES.parent / "digits" / "held_out.npz"
WATCH = "watch { enable: true sample_rate: 1 window_rows: 200 look_milliseconds: 1 }\n"
CACHE = "response_cache { enable: true }\n"


def images() -> Array:
    with np.load(HELD_OUT) as file:
        found: Array = file["images"].astype(np.float32)
    return found


def send(url: str, rows: Array) -> None:
    """One request a row."""
    with grpc.insecure_channel(url) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for row in rows:
            request = pb.ModelInferRequest(model_name="digits")
            request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
            request.raw_input_contents.append(np.ascontiguousarray(row).tobytes())
            stub.ModelInfer(request, timeout=30)


def status(url: str) -> watch_pb2.WatchedModel:
    with grpc.insecure_channel(url) as channel:
        stub = WatchStub(channel)  # type: ignore[no-untyped-call]
        (model,) = stub.Status(watch_pb2.WatchStatusRequest(details=True), timeout=30).models
    assert isinstance(model, watch_pb2.WatchedModel)
    return model


def kairos(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_rotated_digits_are_found_and_drawn(tmp_path: Path) -> None:
    model = tmp_path / "models" / "digits"
    shutil.copytree(EXAMPLES / "digits", model)
    shutil.rmtree(model / "1")
    config = model / "config.pbtxt"
    config.write_text(config.read_text() + WATCH + CACHE + ONE_ENGINE)
    made = kairos("baseline", "digits", "--repository", tmp_path / "models", "--data", HELD_OUT)
    assert made.exit_code == 0, made.output
    assert "written" in made.output

    order = np.random.default_rng(1).permutation(len(images()))[:240]
    with running_server(tmp_path / "models") as server:
        send(server.url, images()[order])
        wait_until(lambda: status(server.url).looks >= 1, "a look")
        found = status(server.url)
        assert (found.state, found.note) == ("watching", str(HELD_OUT))
        assert (found.sampled, found.dropped, found.reference_rows) == (240, 0, 355)
        assert not any(reading.alarm for reading in found.readings)
        assert kairos("watch", "status", "--url", server.url, "--exit-code").exit_code == 0

        turned = np.rot90(images()[order[:200]], axes=(2, 3))
        send(server.url, turned)
        send(server.url, turned[:100])  # which the cache answers, and which count as well
        wait_until(lambda: status(server.url).sampled == 540, "all of them")
        wait_until(lambda: len([each for each in status(server.url).readings if each.alarm]) == 4, "alarms")
        shown = kairos("watch", "status", "--url", server.url, "--exit-code")
        assert shown.exit_code == 2
        assert "ALARM" in shown.output
        assert "moved" in shown.output
        told = json.loads(kairos("watch", "status", "--url", server.url, "--json").output)
        assert {each["signal"] for each in told["models"][0]["readings"] if each["alarm"]} == {
            "drift", "drift.image", "prediction_drift", "confidence",
        }  # fmt: skip
        for name in ("report.html", "report.png"):
            drawn = kairos("watch", "report", "--url", server.url, "--output", tmp_path / name)
            assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert '<td class="alarm">alarm</td>' in page


def test_a_baseline_of_another_model_is_not_used(tmp_path: Path) -> None:
    model = tmp_path / "models" / "digits"
    shutil.copytree(EXAMPLES / "digits", model)
    config = model / "config.pbtxt"
    config.write_text(config.read_text() + WATCH + ONE_ENGINE)
    made = kairos("baseline", "digits", "--repository", tmp_path / "models", "--version", "1", "--data", HELD_OUT)
    assert made.exit_code == 0, made.output
    for file in ("baseline.json", "baseline.npz"):
        shutil.move(model / "1" / file, model / "2" / file)
    shutil.rmtree(model / "1")
    with running_server(tmp_path / "models") as server:
        found = status(server.url)
        assert found.state == "blind"
        assert "of another model file" in found.note


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing", "--data", HELD_OUT), "has no model 'nothing'"),
        (("digits", "--version", "9", "--data", HELD_OUT), "has no version 9"),
        (("digits", "--data", EXAMPLES / "digits" / "labels.txt"), "data comes from .npz"),
    ],
)
def test_what_cannot_be_profiled_is_told(arguments: tuple[str | Path, ...], complaint: str) -> None:
    found = kairos("baseline", *arguments, "--repository", EXAMPLES)
    assert found.exit_code == 1
    assert complaint in " ".join(found.output.split())
