"""`kairos build`, `compare` and `profile` as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner, Result

from engines.backends.options import Accelerator
from engines.build import bench
from engines.build.bench import open_version
from engines.costs import costs_file, load_costs
from engines.scheduling.latency import CostModel
from server.cli import cli
from server.cli.demo import serving
from server.cli.profile import accelerators_of
from tests.support import digits
from tests.support.openvino import PretendOpenVino


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TURN_S", 0.0005)
    monkeypatch.setattr(bench, "ROUNDS", 3)


def kairos(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)


def build(tmp_path: Path, *arguments: object) -> Result:
    common = ("--name", "digits", "--repository", tmp_path / "repo", "--state-dir", tmp_path / "state")
    return kairos("build", digits.MODEL, *common, *arguments)


def test_build_then_compare_then_profile(tmp_path: Path) -> None:
    calibration = digits.write_calibration(tmp_path)
    judged = ("--calibration", calibration, "--data", digits.HELD_OUT, "--labels", "labels")
    built = build(tmp_path, "--precision", "int8", "--target", "cpu", *judged)
    assert built.exit_code == 0, built.stderr
    assert "chosen" in built.stdout
    assert "calibration method" in built.stdout
    version = tmp_path / "repo" / "digits" / "1"
    assert (version / "build.json").exists()

    drawn, written = tmp_path / "c.png", tmp_path / "c.json"
    compared = kairos(
        *("compare", digits.MODEL, version, "--data", digits.HELD_OUT, "--labels", "labels"),
        *("--plot", drawn, "--json", written, "--batch", 4),
    )
    assert compared.exit_code == 0, compared.stderr
    assert "passes" in compared.stdout
    assert drawn.read_bytes().startswith(b"\x89PNG")
    figures = json.loads(written.read_text())
    assert figures["comparison"]["agreement"] >= 0.98
    assert figures["b"]["size_bytes"] < 0.3 * figures["a"]["size_bytes"]
    assert figures["a"]["memory_bytes"] > 0

    profiled = kairos(
        *("profile", tmp_path / "repo" / "digits", "--batch", 4, "--seconds", 0.01, "--apply"),
        *("--json", tmp_path / "p.json", "--plot", tmp_path / "p.png", "--cache-dir", tmp_path / "cache"),
    )
    assert profiled.exit_code == 0, profiled.stderr
    assert "best: version 1" in profiled.stdout
    assert json.loads((tmp_path / "p.json").read_text())["costs"]["1"].keys() == {"4"}
    definition = open_version(version).definition
    file = costs_file(
        tmp_path / "cache", definition.spec, definition.engine.instances, definition.engine.intra_op_threads
    )
    assert load_costs(file, cost := CostModel(definition.limits.max_rows))
    assert cost.statistics().seconds.keys() == {4}
    assert "intra_op_thread_count" in (tmp_path / "repo" / "digits" / "config.pbtxt").read_text()


def test_what_the_gate_refuses_ends_with_status_2(tmp_path: Path) -> None:
    constant = digits.write_constant(tmp_path)
    refused = build(
        tmp_path, *("--precision", "int8", "--calibration", constant, "--data", digits.HELD_OUT, "--labels", "labels")
    )
    assert refused.exit_code == 2
    assert "Not good enough" in refused.stderr


def test_nonsense_ends_with_status_1_and_a_reason(tmp_path: Path) -> None:
    refused = build(tmp_path, "--precision", "int8")
    assert refused.exit_code == 1
    assert "int8 needs --calibration" in refused.stderr


def test_compare_ends_with_status_2_when_b_loses_too_much(tmp_path: Path) -> None:
    models = digits.EXAMPLES / "models" / "digits"
    compared = kairos(
        "compare", models / "2", models / "1", "--data", digits.HELD_OUT, "--labels", "labels", "--batch", 1
    )
    assert compared.exit_code == 2
    assert "fails" in compared.stdout


def test_json_for_scripts(tmp_path: Path) -> None:
    built = build(tmp_path, "--precision", "fp16", "--json", "--data", digits.HELD_OUT, "--labels", "labels")
    assert built.exit_code == 0, built.stderr
    assert json.loads(built.stdout)["precision"] == "fp16"


@pytest.mark.integration
def test_a_built_version_is_served(tmp_path: Path) -> None:
    calibration = digits.write_calibration(tmp_path)
    judged = ("--calibration", calibration, "--data", digits.HELD_OUT, "--labels", "labels")
    assert build(tmp_path, "--precision", "int8", "--target", "cpu", *judged).exit_code == 0
    with np.load(digits.HELD_OUT) as file:
        images, labels = file["images"][:32].astype(np.float32), file["labels"][:32]
    with serving(tmp_path / "repo", verbose=False) as url, triton.InferenceServerClient(url) as client:
        given = triton.InferInput("image", images.shape, "FP32")
        given.set_data_from_numpy(images)
        answer = client.infer("digits", [given]).as_numpy("logits")
    assert np.mean(answer.argmax(axis=1) == labels) >= 0.95


def test_an_accelerator_that_is_not_there_is_refused_by_name() -> None:
    models = digits.EXAMPLES / "models" / "digits"
    compared = kairos("compare", models, models, "--data", digits.HELD_OUT, "--accelerator", "openvino")
    assert compared.exit_code == 1
    assert "Cannot compare: optimization.execution_accelerators" in compared.stderr
    profiled = kairos("profile", models, "--accelerator", "openvino")
    assert profiled.exit_code == 1
    assert "install onnxruntime-openvino" in profiled.stderr


def test_profile_sweeps_all_that_the_runtime_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerators_of(()) == (None,)
    assert accelerators_of(("openvino", "none", "none")) == (Accelerator.OPENVINO, None)
    PretendOpenVino.install(monkeypatch)
    assert accelerators_of(())[:2] == (None, Accelerator.OPENVINO)
