"""From a folder to a definition: specs, labels, files, digests, warm-up requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engines.errors import LoadFailed
from engines.repository.config import parse_text
from engines.repository.definition import Definition, define, read_config
from engines.repository.layout import look
from engines.repository.warmup import Warmup
from engines.tensor import DType, to_array
from tests.support import onnx_models

SAMPLE = """model_warmup {{ name: 'w' batch_size: 2 count: 3
    inputs {{ key: 'x0' value {{ data_type: TYPE_FP32 dims: [3] {source} }} }} }}"""


def defined(folder: Path, version: int = 1) -> Definition:
    seen = look(folder.name, folder)
    return define(seen, seen.versions[version], read_config(seen))


def refusal(folder: Path) -> str:
    with pytest.raises(LoadFailed) as caught:
        defined(folder)
    return str(caught.value)


def test_all_of_it(tmp_path: Path) -> None:
    config = """
        dynamic_batching { allowed_batch_size: [4, 8] default_deadline_microseconds: 5000 }
        output { name: 'y0' label_filename: 'labels.txt' }
        response_cache { enable: true }
        metric_tags { key: 'team' value: 'vision' }"""
    folder = onnx_models.write(tmp_path, "m", (3,), config=config)
    (folder / "labels.txt").write_text("cat\ndog\n")
    found = defined(folder, 3)
    assert (found.name, found.version, found.folder) == ("m", 3, folder)
    assert found.model_file == folder / "3" / "model.onnx"
    assert (found.spec.name, found.spec.version, found.spec.platform) == ("m", 3, "onnxruntime_onnx")
    assert (found.spec.max_rows, found.spec.allowed_rows) == (8, (4, 8))
    assert [(t.name, t.dtype, t.shape) for t in found.spec.inputs] == [("x0", DType.FP32, (4,))]
    assert [(t.name, t.labels) for t in found.spec.outputs] == [("y0", ("cat", "dog"))]
    assert found.limits.max_rows == 8
    assert found.default_deadline_s == 0.005
    assert found.response_cache
    assert found.metric_tags == {"team": "vision"}
    assert found.config.name == "m"


def test_a_defaulted_input_can_be_optional(tmp_path: Path) -> None:
    config = "max_batch_size: 0 input { name: 'factor' optional: true }"
    folder = onnx_models.write(tmp_path, "m", config=config, proto=onnx_models.scale(optional=True))
    assert [(t.name, t.optional) for t in defined(folder).spec.inputs] == [("factor", True), ("x", False)]


def test_the_model_may_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m" / "1" / "model.onnx").mkdir(parents=True)
    path = onnx_models.with_external_weights(tmp_path / "m" / "1" / "model.onnx")
    assert defined(tmp_path / "m").model_file == path


def test_versions_may_share_a_file_but_not_with_the_world(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")
    (folder / "2").mkdir()
    (folder / "2" / "model.onnx").symlink_to(folder / "1" / "model.onnx")
    assert defined(folder, 2).model_file == folder / "1" / "model.onnx"
    (tmp_path / "outside.onnx").write_bytes((folder / "1" / "model.onnx").read_bytes())
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to(tmp_path / "outside.onnx")
    assert "leads out of the model's folder" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("default_model_filename: 'other.onnx'", "default_model_filename: version 1 has no file 'other.onnx'"),
        ("output { name: 'y0' label_filename: 'none.txt' }", "label_filename: there is no file 'none.txt'"),
        ("output { name: 'y0' label_filename: '../l.txt' }", "label_filename: '../l.txt' is not a relative path"),
        ("output { name: 'y0' label_filename: 'binary' }", "label_filename: 'binary' is not UTF-8 text"),
        ("output { name: 'y0' label_filename: 'link' }", "label_filename: 'link' leads out of the model's folder"),
    ],
)
def test_bad_files_are_refused_by_field(tmp_path: Path, config: str, words: str) -> None:
    folder = onnx_models.write(tmp_path, "m", config=config)
    (folder / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert words in refusal(folder)


def test_a_bad_config_file_is_refused(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")
    (folder / "config.pbtxt").write_bytes(b"\xff")
    assert "config.pbtxt is not UTF-8 text" in refusal(folder)
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").mkdir()
    assert "config.pbtxt is not a file" in refusal(folder)
    (folder / "config.pbtxt").rmdir()
    os.mkfifo(folder / "config.pbtxt")
    assert "config.pbtxt is not a file" in refusal(folder)


def other_weights(folder: Path) -> None:
    path = folder / "1" / "weights.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


CHANGES: dict[str, Callable[[Path], object]] = {
    "model": lambda folder: (folder / "1" / "model.onnx").write_bytes(
        (folder / "1" / "model.onnx").read_bytes() + onnx.ModelProto(doc_string="more").SerializeToString()
    ),
    "weights": other_weights,
    "configuration": lambda folder: (folder / "config.pbtxt").write_text("max_batch_size: 3"),
    "labels": lambda folder: (folder / "labels.txt").write_text("wolf"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_digest_changes_with_every_byte_that_matters(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = tmp_path / "m"
    (folder / "1").mkdir(parents=True)
    onnx_models.with_external_weights(folder / "1")
    (folder / "labels.txt").write_text("dog")
    (folder / "config.pbtxt").write_text("output { name: 'y' label_filename: 'labels.txt' }")
    before = defined(folder).spec.digest
    assert len(before) == 40
    (folder / "1" / "notes.txt").write_text("no part of the model")
    assert defined(folder).spec.digest == before
    change(folder)
    assert defined(folder).spec.digest != before


# Warm-up requests


def warmup(tmp_path: Path, source: str, proto: onnx.ModelProto | None = None, config: str = SAMPLE) -> Warmup:
    folder = onnx_models.write(
        tmp_path, "m", config=config.format(source=source), proto=proto or onnx_models.identity(("n", 3))
    )
    (folder / "warmup").mkdir()
    (folder / "warmup" / "row").write_bytes(np.array([1, 2, 3], "<f4").tobytes())
    return defined(folder).warmups[0]


@pytest.mark.parametrize(
    ("source", "row"),
    [("zero_data: true", [0.0, 0.0, 0.0]), ("input_data_file: 'row'", [1.0, 2.0, 3.0])],
)
def test_warm_up_rows(tmp_path: Path, source: str, row: list[float]) -> None:
    found = warmup(tmp_path, source)
    (tensor,) = found.tensors()
    assert (found.name, found.rows, found.count) == ("w", 2, 3)
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x0", DType.FP32, (2, 3))
    assert to_array(tensor).tolist() == [row, row]


@pytest.mark.parametrize("onnx_type", [TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.BOOL, TensorProto.STRING])
def test_random_data_fits_every_kind_of_type(tmp_path: Path, onnx_type: int) -> None:
    config = SAMPLE.replace("TYPE_FP32", {1: "TYPE_FP32", 16: "TYPE_BF16", 9: "TYPE_BOOL", 8: "TYPE_STRING"}[onnx_type])
    found = warmup(tmp_path, "random_data: true", onnx_models.identity(("n", 3), onnx_type), config)
    assert to_array(found.tensors()[0]).shape == (2, 3)
    assert found.tensors() == found.tensors()


def test_a_model_without_a_batch_dimension_warms_up_without_one(tmp_path: Path) -> None:
    config = SAMPLE.replace("batch_size: 2", "")
    found = warmup(tmp_path, "zero_data: true", onnx_models.identity((3,)), config)
    assert (found.rows, found.tensors()[0].shape) == (0, (3,))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("'w'", "''", "model_warmup.name: an entry has no name"),
        ("batch_size: 2", "batch_size: 33", "batch_size 33 is more than the model takes, 32"),
        ("'x0'", "'z'", "inputs: the model has no input 'z'"),
        ("inputs {{", "#", "inputs: 'x0' is missing"),
        ("TYPE_FP32", "TYPE_INT8", "input 'x0': data_type is not the model's, FP32"),
        ("data_type: TYPE_FP32", "", "input 'x0': data_type is missing"),
        ("[3]", "[4]", "input 'x0': dims [4] do not fit [3]"),
        ("[3]", "[-1]", "input 'x0': dims [-1] do not fit [3]"),
        ("{source}", "", "one of zero_data, random_data and input_data_file is needed"),
        ("{source}", "input_data_file: 'none'", "input_data_file: there is no 'warmup/none'"),
        ("{source}", "input_data_file: '../1/model.onnx'", "is not a relative path"),
    ],
)
def test_bad_warm_ups_are_refused_by_name(tmp_path: Path, old: str, new: str, words: str) -> None:
    config = SAMPLE.replace(old, new)
    if new == "#":
        config = "model_warmup {{ name: 'w' }}"
    with pytest.raises(LoadFailed) as caught:
        warmup(tmp_path, "zero_data: true", config=config)
    assert words in str(caught.value)


def test_a_data_file_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    found = warmup(tmp_path, "input_data_file: 'row'")
    (tmp_path / "m" / "warmup" / "row").write_bytes(b"12345")
    with pytest.raises(LoadFailed, match="input_data_file 'row' has 5 bytes, not 12"):
        found.tensors()


def test_parsing_is_left_to_the_caller(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m", config="max_batch_size: 2")
    seen = look("m", folder)
    assert define(seen, seen.versions[1], parse_text("max_batch_size: 7")).spec.max_rows == 7
