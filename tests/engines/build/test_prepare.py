"""Models are checked, modernised and made batchable, and their answers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.build import graphs
from engines.build.errors import BuildFailed
from engines.build.prepare import Prepared, prepare
from tests.support import networks

ROWS = np.random.default_rng(0).normal(0, 1, (6, 3, 8, 8)).astype(np.float32)


def prepared(model: onnx.ModelProto, folder: Path, *, quantising: bool = True) -> Prepared:
    path = folder / "source.onnx"
    path.write_bytes(model.SerializeToString())
    return prepare(path, folder, quantising=quantising)


def run(model: onnx.ModelProto, folder: Path, rows: np.ndarray) -> np.ndarray:
    session = graphs.open_session(graphs.save(model, folder / "run.onnx"))
    return np.asarray(session.run(None, {session.get_inputs()[0].name: rows})[0])


@pytest.mark.parametrize("size", [1, 2])
def test_a_fixed_batch_becomes_free_where_rows_stay_apart(tmp_path: Path, size: int) -> None:
    fixed = networks.residual_cnn(batch=size)
    made = prepared(fixed, tmp_path)
    assert graphs.dims_of(made.model.graph.input[0]) == (-1, 3, 8, 8)
    apart = [run(fixed, tmp_path, ROWS[start : start + size]) for start in range(0, 6, size)]
    np.testing.assert_allclose(run(made.model, tmp_path, ROWS), np.concatenate(apart), atol=1e-5)
    assert any("is free now" in note for note in made.notes)


def test_a_graph_that_mixes_rows_keeps_its_batch(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    mixing = networks.finished(nodes, {}, [networks.floats("x", 2, 4)], [networks.floats("y", 2, 4)])
    made = prepared(mixing, tmp_path)
    assert graphs.dims_of(made.model.graph.input[0]) == (2, 4)
    assert any("not batchable" in note for note in made.notes)


def test_inputs_and_outputs_of_different_sizes_are_left_alone(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    odd = networks.finished(nodes, {}, [networks.floats("x", 2, 4)], [networks.floats("y")])
    assert graphs.dims_of(prepared(odd, tmp_path).model.graph.input[0]) == (2, 4)


def old_model() -> onnx.ModelProto:
    """Opset 9 with weights among the inputs, as in the days of IR version 3."""
    constants = {"w": networks.weight(np.random.default_rng(0), 4, 3, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Sum", ["c", "c"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    inputs = [networks.floats("x", "N", 3, 8, 8), networks.floats("w", 4, 3, 3, 3)]
    made = networks.finished(nodes, constants, inputs, [networks.floats("y", "N", 4, 6, 6)], opset=9)
    made.ir_version = 3
    return made


def test_old_models_are_modernised(tmp_path: Path) -> None:
    old = old_model()
    made = prepared(old, tmp_path)
    assert graphs.opset_of(made.model) == 17
    assert [value.name for value in made.model.graph.input] == ["x"]
    assert "Add" in {node.op_type for node in made.model.graph.node}
    np.testing.assert_allclose(run(made.model, tmp_path, ROWS), run(old, tmp_path, ROWS), atol=1e-5)


def test_every_node_has_a_name_of_its_own(tmp_path: Path) -> None:
    model = networks.residual_cnn()
    model.graph.node[2].name = "c0"  # what the first one, which has no name, would be called
    names = [node.name for node in prepared(model, tmp_path).model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_weights_beside_the_file_are_read_and_part_of_the_digest(tmp_path: Path) -> None:
    model = networks.residual_cnn()
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    first = prepare(tmp_path / "big.onnx", tmp_path, quantising=True)
    np.testing.assert_allclose(
        run(first.model, tmp_path, ROWS), run(networks.residual_cnn(), tmp_path, ROWS), atol=1e-5
    )
    weights = bytearray((tmp_path / "big.bin").read_bytes())
    weights[1] ^= 1
    (tmp_path / "big.bin").write_bytes(weights)
    assert prepare(tmp_path / "big.onnx", tmp_path, quantising=True).source_digest != first.source_digest


def test_large_weights_are_written_beside_the_file_and_stay_in_the_model(tmp_path: Path) -> None:
    model = networks.sensitive()
    path = graphs.save(model, tmp_path / "model.onnx", external_from=1000)
    assert (tmp_path / "model.onnx.data").stat().st_size > 100 * path.stat().st_size
    assert graphs.external_files(path).__next__() == tmp_path / "model.onnx.data"
    assert (tmp_path / "model.onnx.data").stat().st_mode == path.stat().st_mode
    assert model == networks.sensitive()
    shaped = graphs.infer_shapes(model, tmp_path, external_from=1000)
    assert {value.name for value in shaped.graph.value_info} >= {"d0", "r0"}


def newest() -> onnx.ModelProto:
    model = networks.residual_cnn()
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    return model


def quantised() -> onnx.ModelProto:
    constants = {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return networks.finished(nodes, constants, [networks.floats("x", "N", 4)], [networks.floats("y", "N", 4)])


def unknown_operator() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="some.where")],
        "g",
        [networks.floats("x", "N", 4)],
        [networks.floats("y", "N", 4)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("some.where", 1)])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (newest, "knows none above|is not a valid ONNX model"),
        (quantised, "quantised already"),
        (unknown_operator, "ONNX Runtime cannot run the model"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, make: object, complaint: str) -> None:
    with pytest.raises(BuildFailed, match=complaint):
        prepared(make(), tmp_path)  # type: ignore[operator]  # one of the functions above


def test_a_quantised_model_may_pass_as_it_is(tmp_path: Path) -> None:
    assert prepared(quantised(), tmp_path, quantising=False).quantised


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("not a model")
    with pytest.raises(BuildFailed, match="not a valid ONNX model"):
        prepare(path, tmp_path, quantising=False)
