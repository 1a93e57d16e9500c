"""INT8 graphs: TensorRT's rules node by node, and what processors without VNNI need."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.backends.processor import Processor
from engines.build import graphs
from engines.build.calibrate import Collector, Table, table_of
from engines.build.data import Dataset, dataset_of
from engines.build.errors import BuildFailed
from engines.build.precision import to_bf16, to_fp16
from engines.build.prepare import Prepared, prepare
from engines.build.quantize import TENSORRT, emit, layer_precisions, layers, residual_additions, schemes
from engines.build.ranges import Method
from engines.build.rules import violations
from tests.support import networks

VNNI, NO_VNNI = Processor("with", exact_int8=True), Processor("without", exact_int8=False)
RANDOM = np.random.default_rng(5)
DIGITS = Path(__file__).resolve().parents[3] / "examples"


def convolution_transpose() -> onnx.ModelProto:
    """Up and down again: a ConvTranspose, whose channels lie elsewhere, and a Gemm with a transposed weight."""
    constants = {
        "w0": networks.weight(RANDOM, 3, 6, 2, 2),
        "w1": networks.weight(RANDOM, 4, 6),
        "b1": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w0"], ["up"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["up"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["y"], transB=1),
    ]
    return networks.finished(nodes, constants, [networks.floats("x", "N", 3, 8, 8)], [networks.floats("y", "N", 4)])


MODELS = {
    "residual": networks.residual_cnn,
    "encoder": networks.encoder,
    "perceptron": networks.sensitive,
    "transpose": convolution_transpose,
    "digits": lambda: onnx.load(DIGITS / "models/digits/2/model.onnx"),
}


@functools.cache
def case(name: str) -> tuple[Prepared, Table, Dataset]:
    """A network, its table, and rows for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(MODELS[name]().SerializeToString())
        prepared = prepare(path, Path(folder), quantising=True)
        rows = dataset_of(graphs.made_up(graphs.fed_inputs(prepared.model), 32), source="noise")
        found = Collector(prepared.model, "m", Path(folder), Path(folder) / "state").collect(rows, lambda *_: None)
        return prepared, table_of(found, Method.MIN_MAX, model_digest="m", data_digest="d", rows=32), rows


def run(model: onnx.ModelProto, rows: Dataset, folder: Path) -> np.ndarray:
    session = graphs.open_session(graphs.save(model, folder / "run.onnx"))
    return np.asarray(session.run(None, rows.take(0, len(rows)))[0])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.data(), st.booleans())
def test_tensorrt_graphs_keep_its_rules_whatever_stays_in_higher_precision(
    name: str, data: st.DataObject, half: bool
) -> None:
    prepared, table, _ = case(name)
    names = layers(prepared.model)
    keep = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    made = emit(prepared.model, table, TENSORRT, keep)
    if half:
        made = to_fp16(made)
    assert violations(made) == []
    found = layer_precisions(made, names)
    assert {layer for layer in names if found[layer] == "int8"} == set(names) - keep


def digits_for_tensorrt() -> onnx.ModelProto:
    prepared, table, _ = case("digits")
    return emit(prepared.model, table, TENSORRT)


def node_of(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def change(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    graphs.initializers(model)[name].CopyFrom(numpy_helper.from_array(array, name))


def break_zero_point(model: onnx.ModelProto) -> None:
    change(model, node_of(model, "QuantizeLinear").input[2], np.array(3, np.int8))


def break_type(model: onnx.ModelProto) -> None:
    change(model, node_of(model, "QuantizeLinear").input[2], np.array(0, np.uint8))


def break_scale(model: onnx.ModelProto) -> None:
    change(model, node_of(model, "QuantizeLinear").input[1], np.array(0, np.float32))


def break_pair(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "other"))
    node_of(model, "QuantizeLinear").input[1] = "other"


def break_channels(model: onnx.ModelProto) -> None:
    made = graphs.producers(model)
    widen = made[node_of(model, "Conv").input[1]]
    change(model, widen.input[1], np.array(0.1, np.float32))
    change(model, widen.input[2], np.array(0, np.int8))


def break_layer(model: onnx.ModelProto) -> None:
    made = graphs.producers(model)
    conv = node_of(model, "Conv")
    conv.input[0] = made[made[conv.input[0]].input[0]].input[0]


def break_bias(model: onnx.ModelProto) -> None:
    conv = node_of(model, "Conv")
    bias = conv.input[2]
    change(model, bias, np.ones(24, np.int32))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(24, np.float32), "bias_scale"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", [bias, "bias_scale"], ["wide_bias"], axis=0))
    conv.input[2] = "wide_bias"


@pytest.mark.parametrize(
    ("breaks", "complaint"),
    [
        (break_zero_point, "the zero point is not 0"),
        (break_type, "uint8 instead of int8"),
        (break_scale, "not positive and finite"),
        (break_pair, "quantised with one scale, widened with another"),
        (break_channels, "weight scale"),
        (break_layer, "one input is quantised, another is not"),
        (break_bias, "the bias is quantised"),
    ],
)
def test_each_rule_is_noticed_when_broken(breaks: object, complaint: str) -> None:
    model = digits_for_tensorrt()
    assert violations(model) == []
    breaks(model)  # type: ignore[operator]  # one of the functions above
    assert any(complaint in line for line in violations(model)), violations(model)


def saturates(model: onnx.ModelProto) -> bool:
    """Whether two products of an unsigned byte and a weight can exceed 16 bits."""
    weights = [
        numpy_helper.to_array(tensor).astype(int)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert weights
    return max(2 * 255 * int(np.abs(array).max()) for array in weights) > np.iinfo(np.int16).max


def test_without_vnni_weights_for_the_cpu_cannot_saturate() -> None:
    prepared, table, _ = case("digits")
    for scheme in schemes("cpu", NO_VNNI):
        assert not saturates(emit(prepared.model, table, scheme))
    assert all(saturates(emit(prepared.model, table, scheme)) for scheme in schemes("cpu", VNNI))


def saturating_product(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N,K] unsigned by [K,M] signed bytes as x86 without VNNI multiplies them: pairs of products in 16 bits."""
    odd = activations.shape[1] % 2
    a, w = np.pad(activations, ((0, 0), (0, odd))).astype(int), np.pad(weights, ((0, odd), (0, 0))).astype(int)
    pairs = np.einsum("nkp,kpm->nkm", a.reshape(len(a), -1, 2), w.reshape(-1, 2, w.shape[1]))
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1))


def dense_operands(model: onnx.ModelProto, images: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the dense layer of digits multiplies: activations as unsigned bytes, and weights."""
    made = graphs.producers(model)
    layer = next(node for node in model.graph.node if node.op_type == "Gemm")
    quantised = made[layer.input[0]].input[0]
    probed = copy.deepcopy(model)
    probed.graph.output.append(onnx.ValueInfoProto(name=quantised))
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = graphs.open_session(graphs.save(probed, folder / "probed.onnx"), settings)
    (activations,) = session.run([quantised], {"image": images})
    if activations.dtype == np.int8:  # ONNX Runtime shifts signed activations, as the instruction takes unsigned ones
        activations = (activations.astype(int) + 128).astype(np.uint8)
    weights = numpy_helper.to_array(graphs.initializers(model)[made[layer.input[1]].input[0]])
    return activations, weights


def test_the_saturating_instruction_is_exact_for_7_bits_and_wrong_for_8(tmp_path: Path) -> None:
    prepared, table, _ = case("digits")
    with np.load(DIGITS / "digits/held_out.npz") as file:
        images = file["images"].astype(np.float32)
    for scheme in schemes("cpu", NO_VNNI):
        activations, weights = dense_operands(emit(prepared.model, table, scheme), images, tmp_path)
        exact = activations.astype(int) @ weights.astype(int)
        np.testing.assert_array_equal(saturating_product(activations, weights), exact)
    activations, weights = dense_operands(emit(prepared.model, table, TENSORRT), images, tmp_path)
    exact = activations.astype(int) @ weights.astype(int)
    wrong = np.abs(saturating_product(activations, weights) - exact)
    logits = exact - 128 * weights.astype(int).sum(axis=0)
    assert np.mean(wrong.max(axis=1) > 0) > 0.9  # nearly every image is hit
    assert wrong.max() > 0.2 * logits.std()


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("processor", [VNNI, NO_VNNI], ids=["vnni", "no-vnni"])
def test_every_scheme_runs_and_stays_close(name: str, processor: Processor, tmp_path: Path) -> None:
    prepared, table, rows = case(name)
    exact = run(prepared.model, rows, tmp_path)
    for scheme in (*schemes("cpu", processor), *schemes("tensorrt", processor)):
        keep = ["values", "d2"] if name == "perceptron" else []  # what networks.sensitive spoils on purpose
        quantised = emit(prepared.model, table, scheme, keep)
        onnx.checker.check_model(quantised)
        blurred = run(quantised, rows, tmp_path)
        assert np.mean((exact - blurred) ** 2) < 0.05 * np.var(exact), scheme.name


def test_residual_additions_are_those_beside_convolutions() -> None:
    assert len(residual_additions(case("residual")[0].model)) == 1
    assert residual_additions(case("encoder")[0].model) == frozenset()


def test_values_that_stay_in_fp32_are_read_before_they_are_blurred() -> None:
    prepared, table, _ = case("encoder")
    for scheme in (TENSORRT, *schemes("cpu", VNNI)):
        nodes = emit(prepared.model, table, scheme).graph.node
        # h1 comes from a layer normalisation; products read it through Q/DQ, the residual addition as it is.
        readers = {node.op_type for node in nodes if "h1" in node.input}
        assert readers == {"Add", "QuantizeLinear"}, scheme.name


def test_precisions_are_told_layer_by_layer() -> None:
    prepared, table, _ = case("encoder")
    names = layers(prepared.model)
    half = to_fp16(emit(prepared.model, table, TENSORRT, names[1:]))
    found = layer_precisions(half, names)
    assert found.pop(names[0]) == "int8"
    assert set(found.values()) == {"fp16"}
    assert "fp32" in set(layer_precisions(prepared.model, names).values())
    weighted = set(layer_precisions(to_bf16(prepared.model), ["q0", "logits"]).values())
    assert weighted == {"bf16"}


def test_names_never_clash_and_the_file_is_small() -> None:
    prepared, table, _ = case("encoder")  # has values that are called q0, q1
    made = emit(prepared.model, table, TENSORRT)
    names = [name for node in made.graph.node for name in node.output] + [t.name for t in made.graph.initializer]
    assert len(set(names)) == len(names)
    digits, digits_table, _ = case("digits")
    full = (DIGITS / "models/digits/2/model.onnx").stat().st_size
    for scheme in (TENSORRT, *schemes("cpu", VNNI)):
        assert len(emit(digits.model, digits_table, scheme).SerializeToString()) <= 0.30 * full


def test_nothing_left_to_quantise_is_an_error() -> None:
    prepared, table, _ = case("digits")
    with pytest.raises(BuildFailed, match="no layer is left"):
        emit(prepared.model, table, TENSORRT, layers(prepared.model))


@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_half_precision_halves_the_weights_and_keeps_the_interface(convert: object, tmp_path: Path) -> None:
    prepared, _, rows = case("digits")
    before = copy.deepcopy(prepared.model)
    made = convert(prepared.model)  # type: ignore[operator]  # one of the two
    assert prepared.model == before
    assert [value.type for value in made.graph.input] == [value.type for value in before.graph.input]
    assert {graphs.dtype_of(value) for value in made.graph.output} == {graphs.dtype_of(before.graph.output[0])}
    assert graphs.weight_bytes(made) < 0.52 * graphs.weight_bytes(before)
    np.testing.assert_allclose(run(made, rows, tmp_path), run(before, rows, tmp_path), atol=0.1)
