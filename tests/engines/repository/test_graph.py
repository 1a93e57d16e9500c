"""What a graph says about itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from engines.errors import LoadFailed
from engines.repository.graph import DTYPES, Graph, read_graph
from engines.tensor import DType
from tests.support import onnx_models


def read(folder: Path, model: onnx.ModelProto) -> Graph:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return read_graph(folder / "model.onnx")


def test_all_types_have_a_place() -> None:
    assert set(DTYPES.values()) == set(DType)


@pytest.mark.parametrize(("onnx_type", "dtype"), DTYPES.items())
def test_types(tmp_path: Path, onnx_type: int, dtype: DType) -> None:
    assert read(tmp_path, onnx_models.identity(dtype=onnx_type)).inputs[0].dtype is dtype


def test_symbols_and_unknown_sizes_are_free(tmp_path: Path) -> None:
    graph = read(tmp_path, onnx_models.identity(("batch", None, 3)))
    assert graph.inputs[0].dims == (-1, -1, 3)
    assert graph.batchable


@pytest.mark.parametrize("dims", [(1, 4), (), (4,)])
def test_a_fixed_or_missing_first_dimension_is_not_batchable(tmp_path: Path, dims: tuple[int, ...]) -> None:
    assert not read(tmp_path, onnx_models.identity(dims)).batchable


def test_outputs_count_too(tmp_path: Path) -> None:
    assert not read(tmp_path, onnx_models.identity(("batch", 4), output_dims=(1, 4))).batchable


def test_a_missing_output_shape_is_inferred(tmp_path: Path) -> None:
    assert read(tmp_path, onnx_models.identity(("batch", 4), output_dims=None)).outputs[0].dims == (-1, 4)


def test_weights_are_not_inputs_that_must_be_fed(tmp_path: Path) -> None:
    graph = read(tmp_path, onnx_models.scale(optional=True))
    assert [(tensor.name, tensor.has_default) for tensor in graph.inputs] == [("x", False), ("factor", True)]
    assert graph.batchable


def test_sequences_are_no_tensors(tmp_path: Path) -> None:
    assert [tensor.dtype for tensor in read(tmp_path, onnx_models.sequence_output()).outputs] == [DType.FP32, None]


def test_external_weights_are_found(tmp_path: Path) -> None:
    path = onnx_models.with_external_weights(tmp_path)
    assert read_graph(path).external == (tmp_path / "weights.bin",)


def test_external_weights_must_be_whole(tmp_path: Path) -> None:
    path = onnx_models.with_external_weights(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"1")
    with pytest.raises(LoadFailed, match=r"'weights.bin' ends before the weights do"):
        read_graph(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(LoadFailed, match=r"'weights.bin' is not there"):
        read_graph(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd"])
def test_external_weights_must_lie_beside_the_model(tmp_path: Path, location: str) -> None:
    path = onnx_models.with_external_weights(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    with pytest.raises(LoadFailed, match=f"external data: '{location}'"):
        read(tmp_path, model)


@pytest.mark.parametrize("content", [b"", b"not a model", onnx_models.identity().SerializeToString()[:-7]])
def test_half_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(LoadFailed, match=r"'model.onnx' is not a complete ONNX model"):
        read_graph(tmp_path / "model.onnx")


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(onnx_models.identity().SerializeToString())
    assert read_graph(tmp_path / "model.json").batchable


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"'model.onnx' cannot be read"):
        read_graph(tmp_path / "model.onnx")


def test_type_names_cover_what_onnx_may_add(tmp_path: Path) -> None:
    assert read(tmp_path, onnx_models.identity(dtype=TensorProto.COMPLEX64)).inputs[0].dtype is None


def test_graphs_whose_work_depends_on_values_are_told_apart(tmp_path: Path) -> None:
    for name, proto, steady in (
        ("identity", onnx_models.identity(), True),
        ("scale", onnx_models.scale(), True),
        ("counter", onnx_models.counter(), False),
    ):
        (tmp_path / name).write_bytes(proto.SerializeToString())
        assert read_graph(tmp_path / name).steady is steady


def test_texts_of_other_bytes_are_refused(tmp_path: Path) -> None:
    path = onnx_models.with_external_weights(tmp_path)
    for text in (b"weights.bin", b"x"):
        model = path.read_bytes()
        (tmp_path / "other.onnx").write_bytes(model.replace(text, b"\xee" * len(text)))
        with pytest.raises(LoadFailed, match="is not UTF-8"):
            read_graph(tmp_path / "other.onnx")
