"""`kairos plan` as people type it, with a fake GPU and TensorRT."""

from __future__ import annotations

import importlib
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from engines.backends.cuda.fake import FakeCuda, FakeDevice
from engines.backends.tensorrt.plan import read_card
from engines.build.tensorrt import timings
from engines.build.tensorrt.network import Report, build_plan
from engines.build.tensorrt.options import PlanJob
from server.cli import cli
from tests.support.fake_tensorrt import FakeTensorRT

command = importlib.import_module("server.cli.plan")  # its package has the command of the same name


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ONNX file with a free length, on a machine with a GPU."""

    def build(job: PlanJob, report: Report, gpu: int) -> None:
        timings.replace(job.plan, build_plan(FakeTensorRT("11.4", FakeDevice()), job, b"", report)[0])

    monkeypatch.setattr(command, "find_cuda", lambda _: FakeCuda())
    monkeypatch.setattr(command, "load", lambda: FakeTensorRT("11.4"))
    monkeypatch.setattr(command, "build_apart", build)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "length"])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def kairos(model: Path, *arguments: str) -> Result:
    repository = str(model.parent / "models")
    common = ["--name", "net", "--repository", repository, "--cache-dir", str(model.parent / "plans")]
    return CliRunner().invoke(cli, ["plan", str(model), *common, *arguments])


def test_a_plan_is_built_published_and_then_found(model: Path) -> None:
    first = kairos(model, "--shape", "x=1:16:64", "--rows", "1", "--rows", "4")
    assert first.exit_code == 0, first.output
    assert "built, for Fake GPU (SM 9.0) with TensorRT 11.4.0.106" in first.stderr
    card = read_card(model.parent / "models" / "net" / "1" / "model.plan")
    assert card is not None
    assert card.key.profiles[1] == {"x": [[4, 1], [4, 16], [4, 64]]}
    again = kairos(model, "--shape", "x=1:16:64", "--rows", "1", "--rows", "4")
    assert "found in the cache" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --shape x=LEAST:BEST:MOST"),
        (["--shape", "x=1:2"], "is not INPUT=LEAST:BEST:MOST"),
        (["--shape", "x=1:two:3"], "is not INPUT=LEAST:BEST:MOST"),
    ],
)
def test_what_cannot_be_built_is_said(model: Path, arguments: list[str], text: str) -> None:
    result = kairos(model, *arguments)
    assert result.exit_code == 1
    assert text in result.stderr


def test_without_a_gpu_it_says_what_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = kairos(model, "--shape", "x=1:2:3")
    assert result.exit_code == 1
    assert "docs/gpu.md" in result.stderr or "NVIDIA" in result.stderr
