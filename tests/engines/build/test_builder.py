"""Builds from end to end: what is published, what is refused, and that it can be served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.onnxruntime import OnnxRuntimeEngine
from engines.backends.options import Accelerator
from engines.backends.processor import Processor
from engines.backends.sweep import THRIFTIEST
from engines.build import bench, graphs
from engines.build.bench import open_engine, open_version
from engines.build.builder import build
from engines.build.calibrate import Table
from engines.build.errors import BuildFailed, Refused
from engines.build.options import BuildOptions, BuildReport, Precision, Target
from engines.build.quantize import layer_precisions
from engines.build.ranges import Method
from engines.build.rules import violations
from tests.support import digits, networks
from tests.support.openvino import PretendOpenVino

VNNI, NO_VNNI = Processor("with", exact_int8=True), Processor("without", exact_int8=False)

Build = Callable[..., BuildReport]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds digits version 2 into `repo`; keywords override options."""
    monkeypatch.setattr(bench, "TURN_S", 0.0005)
    monkeypatch.setattr(bench, "ROUNDS", 3)

    def call(processor: Processor = VNNI, **options: Any) -> BuildReport:
        given: dict[str, Any] = {
            "model": digits.MODEL,
            "name": "digits",
            "repository": tmp_path / "repo",
            "precision": Precision.INT8,
            "target": Target.CPU,
            "data": digits.HELD_OUT,
            "labels": "labels",
            "state_dir": tmp_path / "state",
        }
        return build(BuildOptions(**(given | options)), processor=processor, gpu=False)

    return call


def manifest(report: BuildReport) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report.published / "build.json").read_text())
    return found


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("target", [Target.CPU, Target.TENSORRT])
@pytest.mark.parametrize("processor", [VNNI, NO_VNNI], ids=["vnni", "no-vnni"])
def test_int8_digits_keeps_its_accuracy_in_less_than_a_third_of_the_size(
    run: Build, tmp_path: Path, target: Target, processor: Processor
) -> None:
    report = run(processor, target=target, calibration=digits.write_calibration(tmp_path))
    before, after = report.chosen.comparison.accuracy or (0, 0)
    assert before >= 0.97
    assert after >= before - 0.01
    model = report.published / "model.onnx"
    assert model.stat().st_size <= 0.30 * digits.MODEL.stat().st_size
    made = onnx.load(model)
    assert set(layer_precisions(made, ["conv0", "conv1", "logits"]).values()) == {"int8"}
    if target is Target.TENSORRT:
        assert violations(made) == []


def test_the_published_version_answers_as_the_report_says(run: Build, tmp_path: Path) -> None:
    report = run(calibration=digits.write_calibration(tmp_path))
    trial = open_version(report.published)
    with np.load(digits.HELD_OUT) as file:
        images, labels = file["images"].astype(np.float32), file["labels"]
    assert trial.definition.spec.max_rows == 32
    engine = open_engine(trial, THRIFTIEST, VNNI)
    said = np.concatenate(
        [engine.execute({"image": part}, ["logits"])["logits"] for part in np.array_split(images, 12)]
    )
    assert report.chosen.comparison.accuracy is not None
    assert np.mean(said.argmax(axis=1) == labels) == report.chosen.comparison.accuracy[1]


def test_the_manifest_says_where_it_came_from(run: Build, tmp_path: Path) -> None:
    report = run(calibration=digits.write_calibration(tmp_path), method=Method.PERCENTILE)
    found = manifest(report)
    assert found["source"] == {"file": "model.onnx", "sha256": graphs.file_digest(digits.MODEL)}
    for name, facts in found["files"].items():
        assert facts["sha256"] == graphs.file_digest(report.published / name)
    assert found["files"].keys() == {"model.onnx", "calibration.json"}
    assert found["precision"] == "int8"
    assert found["layers"] == {"conv0": "int8", "conv1": "int8", "logits": "int8"}
    assert found["calibration"]["method"] == "percentile"
    assert found["gate"] == found["gate"] | {"max_drop": 0.01, "rows": 355, "labels": True}
    assert found["tools"].keys() >= {"kairos", "onnx", "onnxruntime"}
    assert {candidate["label"] for candidate in found["candidates"]} > {"fp32"}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_other_precisions_need_no_calibration(run: Build, precision: Precision) -> None:
    report = run(precision=precision)
    assert report.chosen.label == precision.value
    assert report.chosen.comparison.drop <= 0.01
    assert set(manifest(report)["layers"].values()) == {precision.value}


def test_int8_with_fp16_for_tensorrt(run: Build, tmp_path: Path) -> None:
    report = run(precision=Precision.INT8_FP16, target=Target.TENSORRT, calibration=digits.write_calibration(tmp_path))
    assert violations(onnx.load(report.published / "model.onnx")) == []


def test_without_data_noise_must_do(run: Build) -> None:
    report = run(precision=Precision.FP16, data=None, labels="")
    assert any("noise" in note for note in report.notes)


def test_a_bad_calibration_is_stopped_by_the_gate(run: Build, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nothing is published.*loss of accuracy"):
        run(calibration=digits.write_constant(tmp_path))
    assert list((tmp_path / "repo").iterdir()) == []


def test_constant_rows_cannot_judge_themselves(run: Build, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="all rows are the same"):
        run(calibration=digits.write_constant(tmp_path), data=None, labels="")


def sensitive(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.npz"
    np.savez(rows, features=np.random.default_rng(1).normal(0, 1, (120, 16)).astype(np.float32))
    model = saved(tmp_path / "sensitive.onnx", networks.sensitive())
    return {"model": model, "name": "sensitive", "calibration": rows, "data": None, "labels": ""}


def test_a_sensitive_layer_is_found_and_kept(run: Build, tmp_path: Path) -> None:
    report = run(target=Target.TENSORRT, **sensitive(tmp_path))
    assert report.chosen.kept == ("values",)
    assert report.chosen.comparison.drop <= 0.01
    assert manifest(report)["kept_in_higher_precision"] == ["values"]
    assert manifest(report)["layers"] == {"d0": "int8", "d1": "int8", "d2": "int8", "values": "fp32"}


def test_without_tries_it_is_refused(run: Build, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="unexplained variance"):
        run(target=Target.TENSORRT, tries=0, **sensitive(tmp_path))


def test_a_table_makes_the_same_graph_without_the_data(run: Build, tmp_path: Path) -> None:
    first = run(calibration=digits.write_calibration(tmp_path))
    second = run(calibration=first.published / "calibration.json")
    assert first.chosen.label.startswith("int8")
    names = ["calibration.json", "model.onnx"] if first.chosen.label == second.chosen.label else ["calibration.json"]
    for name in names:
        assert (first.published / name).read_bytes() == (second.published / name).read_bytes()
    third = run(calibration=first.published / "calibration.json", target=Target.TENSORRT)
    assert violations(onnx.load(third.published / "model.onnx")) == []
    assert sorted(path.name for path in (tmp_path / "repo" / "digits").iterdir()) == ["1", "2", "3", "config.pbtxt"]


def test_a_table_of_another_model_is_refused(run: Build, tmp_path: Path) -> None:
    table = Table(method=Method.MSE, ranges={}, model_digest="other", data_digest="d", rows=1)
    (tmp_path / "table.json").write_text(table.to_json())
    with pytest.raises(BuildFailed, match="another model"):
        run(calibration=tmp_path / "table.json")
    with pytest.raises(BuildFailed, match="no rows to judge by"):
        run(calibration=tmp_path / "table.json", data=None)


@pytest.mark.parametrize("target", [Target.CPU, Target.TENSORRT])
def test_auto_explains_its_choice(run: Build, tmp_path: Path, target: Target) -> None:
    report = run(precision=Precision.AUTO, target=target, calibration=digits.write_calibration(tmp_path))
    assert {candidate.precision for candidate in report.candidates} >= {
        Precision.FP32,
        Precision.FP16,
        Precision.INT8,
    }
    assert report.choice.verdicts.keys() == {candidate.label for candidate in report.candidates}
    assert report.chosen.label in report.choice.reason
    if target is Target.TENSORRT:
        assert report.chosen.label == "int8+fp16 tensorrt"


def test_auto_without_calibration_says_what_is_missing(run: Build) -> None:
    report = run(precision=Precision.AUTO, data=None, labels="")
    assert "int8 left out: there is no calibration data" in report.notes


def test_the_model_that_is_published_already_gives_the_configuration(run: Build, tmp_path: Path) -> None:
    run(precision=Precision.FP32)
    config = tmp_path / "repo" / "digits" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 5"))
    report = run(precision=Precision.FP16)
    assert report.published.name == "2"
    assert list(report.chosen.seconds) == [1, 5]
    config.write_text('input { name: "picture" }')
    with pytest.raises(BuildFailed, match="unexpected input 'picture'"):
        run(precision=Precision.FP16)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"calibration": None}, "int8 needs --calibration"),
        ({"precision": Precision.FP32, "max_drop": 1.5}, "a share between 0 and 1"),
        ({"precision": Precision.FP32, "name": "../x"}, "no model name"),
        ({"precision": Precision.FP32, "batches": (0,)}, "1 or more"),
        ({"precision": Precision.BF16, "target": Target.TENSORRT}, "no BF16 kernels"),
        ({"precision": Precision.FP32, "labels": "nothing"}, "neither an array"),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing(
    run: Build, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BuildFailed, match=complaint):
        run(**options)
    assert not (tmp_path / "repo" / "digits").exists()


def test_models_without_anything_to_quantise_are_refused(run: Build, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Tanh", ["x"], ["y"])]
    model = networks.finished(nodes, {}, [networks.floats("x", "N", 4)], [networks.floats("y", "N", 4)])
    rows = tmp_path / "x.npy"
    np.save(rows, np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    with pytest.raises(BuildFailed, match="no convolution, product"):
        run(model=saved(tmp_path / "t.onnx", model), calibration=rows, data=None, labels="")


def test_a_transformer_is_built_for_both_targets(run: Build, tmp_path: Path) -> None:
    rows = tmp_path / "rows.npz"
    np.savez(rows, ids=np.random.default_rng(2).integers(0, 64, (96, 12)))
    model = saved(tmp_path / "encoder.onnx", networks.encoder(layers=1))
    for target in (Target.CPU, Target.TENSORRT):
        report = run(model=model, name="e", calibration=rows, data=None, labels="", target=target, max_drop=0.1)
        assert report.chosen.comparison.agreement is not None
        assert report.chosen.comparison.agreement >= 0.9


def test_an_interruption_publishes_nothing(run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engines.build.builder.cpu_seconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(calibration=digits.write_calibration(tmp_path))
    assert list((tmp_path / "repo").iterdir()) == []


class TestOpenVino:
    """`auto` on an ONNX Runtime that offers OpenVINO."""

    @pytest.fixture
    def auto(self, run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
        """Builds `auto`; whatever runs on OpenVINO takes `ratio` of the time of the rest."""

        def call(ratio: float, **options: Any) -> BuildReport:
            def timed(engines: dict[str, OnnxRuntimeEngine], *_: object) -> dict[str, dict[int, float]]:
                return {label: {1: ratio if "openvino" in label else 1.0} for label in engines}

            monkeypatch.setattr("engines.build.builder.cpu_seconds", timed)
            return run(precision=Precision.AUTO, calibration=digits.write_calibration(tmp_path), **options)

        return call

    def test_it_is_taken_where_it_is_faster(self, auto: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        PretendOpenVino.install(monkeypatch)
        report = auto(0.5)
        labels = {candidate.label for candidate in report.candidates}
        assert {f"{label} on openvino" for label in labels if "openvino" not in label} < labels
        assert report.chosen.label.endswith(" on openvino")
        assert "2.00 times as fast as fp32 at 1 row" in report.choice.reason
        assert manifest(report)["accelerator"] == "openvino"
        assert open_version(report.published).accelerator is Accelerator.OPENVINO

    @pytest.mark.parametrize(("ratio", "spoils"), [(2.0, False), (0.5, True)])
    def test_it_is_not_taken_where_it_is_slower_or_wrong(
        self, auto: Build, monkeypatch: pytest.MonkeyPatch, ratio: float, spoils: bool
    ) -> None:
        PretendOpenVino.install(monkeypatch, spoils=spoils)
        report = auto(ratio)
        assert report.chosen.label == "fp32"
        verdict = report.choice.verdicts["fp32 on openvino"]
        assert verdict.startswith("refused: loss of accuracy" if spoils else "left out: 0.50 times as fast")
        assert manifest(report)["accelerator"] is None
        assert open_version(report.published).accelerator is None

    def test_a_configuration_that_is_there_decides(self, auto: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        PretendOpenVino.install(monkeypatch)
        config = auto(2.0).published.parent / "config.pbtxt"
        kept = auto(0.5)
        assert kept.chosen.label == "fp32"
        assert "openvino left out: the model has a config.pbtxt, which is kept as it is" in kept.notes
        named = "optimization { execution_accelerators { cpu_execution_accelerator { name: 'openvino' } } }"
        config.write_text(f"{config.read_text()}{named}")
        told = auto(0.5)
        assert told.chosen.trial.accelerator is Accelerator.OPENVINO
        assert "everything runs on openvino: config.pbtxt says so" in told.notes

    def test_it_is_said_when_it_is_not_tried(self, auto: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "openvino left out: the installed ONNX Runtime comes without it" in auto(1.0).notes
        pretended = PretendOpenVino.install(monkeypatch)
        auto(0.5, name="other", target=Target.TENSORRT)
        assert pretended.opened == []


def test_auto_says_which_layout_the_server_would_choose(run: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.build.builder.available_cores", lambda: 1)
    monkeypatch.setattr("engines.backends.sweep.INLINE_S", 1e-9)
    report = run(precision=Precision.AUTO, data=None, labels="")
    said = "instances and threads are the server's choice at each load; here, now, it would choose 1 x 1 thread(s)"
    assert said in report.notes
    assert "instance_group" not in (report.published.parent / "config.pbtxt").read_text()
    assert not any("instances" in note for note in run(precision=Precision.FP16).notes)
