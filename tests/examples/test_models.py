"""The committed example repository is what its scripts and configurations say it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

from examples import make_models
from server.pb import model_config_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

REPOSITORY = make_models.REPOSITORY
FILES = sorted(REPOSITORY.glob("*/*/model.onnx"))
with np.load(REPOSITORY.parent / "digits" / "held_out.npz") as held_out:
    IMAGES, LABELS = held_out["images"].astype(np.float32), held_out["labels"]


def session(model: str, version: int = 1) -> onnxruntime.InferenceSession:
    path = REPOSITORY / model / str(version) / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def digits(version: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities of all held-out images."""
    logits, probabilities = session("digits", version).run(None, {"image": IMAGES})
    return logits, probabilities


def config(model: str) -> pb.ModelConfig:
    return text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), pb.ModelConfig())


def declared(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    """Name to type and shape without the batch, from the configuration's inputs or outputs."""
    return {tensor.name: (pb.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in tensors}


def found(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    """The same from an ONNX graph, all of whose tensors must have a batch dimension."""
    names = {onnx.TensorProto.FLOAT: "TYPE_FP32"}
    shapes = {tensor.name: tensor.type.tensor_type.shape.dim for tensor in tensors}
    assert all(shape[0].dim_param == "N" for shape in shapes.values())
    return {
        tensor.name: (
            names[tensor.type.tensor_type.elem_type],
            [dimension.dim_value for dimension in shapes[tensor.name][1:]],
        )
        for tensor in tensors
    }


def accuracy(version: int) -> float:
    return float(np.mean(digits(version)[1].argmax(axis=-1) == LABELS))


def test_the_repository_holds_these_models_and_no_other() -> None:
    names = {str(path.parent.relative_to(REPOSITORY)) for path in FILES}
    assert names == {"digits/1", "digits/2", "simple/1", "text/1"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_every_model_is_valid_small_and_loadable_by_old_runtimes(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10  # what the oldest supported ONNX Runtime reads
    assert path.stat().st_size < 200_000


def test_the_second_version_of_digits_is_better_and_good() -> None:
    assert 0.90 <= accuracy(1) < accuracy(2)
    assert accuracy(2) >= 0.97


@pytest.mark.parametrize("version", [1, 2])
def test_probabilities_are_the_softmax_of_the_logits(version: int) -> None:
    logits, probabilities = digits(version)
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_a_row_has_the_same_answer_in_any_batch(version: int) -> None:
    images = IMAGES[:7]
    run = session("digits", version).run
    alone = [run(["logits"], {"image": image[None]})[0] for image in images]
    np.testing.assert_allclose(run(["logits"], {"image": images})[0], np.concatenate(alone), atol=1e-4)


def test_the_digits_configuration_describes_both_graphs() -> None:
    stated = config("digits")
    for version in (1, 2):
        graph = onnx.load(REPOSITORY / "digits" / str(version) / "model.onnx").graph
        assert declared(stated.input) == found(graph.input)
        assert declared(stated.output) == found(graph.output)
    assert stated.name == "digits"
    assert stated.version_policy.latest.num_versions == 2
    labelled = {tensor.name: tensor.label_filename for tensor in stated.output if tensor.label_filename}
    assert labelled == {"probabilities": "labels.txt"}
    assert len((REPOSITORY / "digits" / "labels.txt").read_text().split()) == 10


def test_models_without_training_are_what_their_script_writes() -> None:
    for name, make in make_models.MODELS.items():
        assert onnx.load(REPOSITORY / name / "1" / "model.onnx") == make()


def test_simple_adds_and_subtracts_rows() -> None:
    first, second = np.arange(96, dtype=np.int32).reshape(2, 3, 16)
    total, difference = session("simple").run(["OUTPUT0", "OUTPUT1"], {"INPUT0": first, "INPUT1": second})
    np.testing.assert_array_equal(total, first + second)
    np.testing.assert_array_equal(difference, first - second)
    assert config("simple").max_batch_size == 8


def test_text_lowers_counts_and_recognises_questions() -> None:
    lines = ["Is THIS a question? ", "Zwölf Ärzte", "", "a\0B c"]
    lower, words, is_question = session("text").run(None, {"text": np.array(lines, dtype=object)[:, None]})
    assert lower.ravel().tolist() == ["is this a question? ", "zwölf Ärzte", "", "a\0b c"]
    assert words.ravel().tolist() == [4, 2, 0, 2]
    assert is_question.ravel().tolist() == [True, False, False, False]
    assert words.shape == is_question.shape == (4, 1)
    assert not (REPOSITORY / "text" / "config.pbtxt").exists()
