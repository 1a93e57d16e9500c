"""Emits INT8 graphs with explicit QuantizeLinear and DequantizeLinear (Q/DQ) from one calibration table.

No single INT8 graph suits every target. TensorRT wants symmetric INT8 activations, a plain FP32 bias and Q/DQ only in
front of the operators that it runs in INT8. A CPU is quickest when values stay in 8 bits from one operator to the next,
and which operators should take part depends on the network and the processor: so there are several schemes for it, and
the build measures them.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from engines.backends.processor import Processor
from engines.build import graphs
from engines.build.calibrate import Table
from engines.build.errors import BuildFailed

WEIGHTED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Where the work is. They, and residual additions, are what reports call layers."""
PASSING: Final = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Concat", "Flatten", "Reshape", "Transpose"),
    *("Squeeze", "Unsqueeze", "Pad", "Resize", "Split", "Slice", "Gather"),
)
"""What can hand 8-bit values on, so that they need not be widened between two layers."""
CHANNEL_AXIS: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""Where a weight has its output channels; a transposed Gemm has them first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to place Q/DQ."""

    name: str
    target: str
    summary: str
    op_types: tuple[str, ...]
    symmetric: bool
    """Whether activations are signed bytes around zero; else unsigned bytes with a zero point."""
    reduce_range: bool = False
    """Whether weights have 7 bits, so that sums cannot saturate on processors without VNNI."""
    inputs_only: bool = False
    """Whether outputs are left alone."""


TENSORRT: Final = Scheme(
    name="tensorrt",
    target="tensorrt",
    summary="signed activations, per-channel weights, Q/DQ in front of convolutions, products and residual additions",
    op_types=(*WEIGHTED, "Add"),
    symmetric=True,
    inputs_only=True,
)


def schemes(target: str, processor: Processor) -> tuple[Scheme, ...]:
    """The ways worth measuring for `cpu`, or the one for `tensorrt`."""
    if target == "tensorrt":
        return (TENSORRT,)
    exact = processor.exact_int8
    bits = "" if exact else ", weights of 7 bits as the processor lacks VNNI"
    chain = (*WEIGHTED, "Add", *PASSING)
    unsigned = [
        ("u8-chain", "unsigned activations from end to end", chain),
        ("u8-layers", "unsigned activations around layers", (*WEIGHTED, "Add")),
    ]
    found = [
        Scheme(name=name, target="cpu", summary=text + bits, op_types=types, symmetric=False, reduce_range=not exact)
        for name, text, types in unsigned
    ]
    if exact:
        text = "signed activations from end to end"
        found.append(Scheme(name="s8-chain", target="cpu", summary=text, op_types=chain, symmetric=True))
    return tuple(found)


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that INT8 pays for, in order: those with weights, products and residual additions."""
    residual = residual_additions(model)
    floats = _float_values(model)
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in WEIGHTED and node.input[0] in floats) or node.name in residual
    ]


def residual_additions(model: onnx.ModelProto) -> frozenset[str]:
    """Additions of two values that flow, one of them from a convolution: those that runtimes fuse into it.

    Other additions, such as those before a transformer's layer normalisation, keep a range that 8 bits blur.
    """
    made = graphs.producers(model)

    def convolved(name: str) -> bool:
        node = made.get(name)
        while node is not None and node.op_type in ("Relu", "Clip", "BatchNormalization"):
            node = made.get(node.input[0])
        return node is not None and (node.op_type in ("Conv", "ConvTranspose"))

    flowing = set(made) | {value.name for value in model.graph.input}
    return frozenset(
        node.name
        for node in model.graph.node
        if node.op_type == "Add" and all(name in flowing for name in node.input) and any(map(convolved, node.input))
    )


def emit(model: onnx.ModelProto, table: Table, scheme: Scheme, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The INT8 graph; layers in `keep` stay in FP32. Raises BuildFailed when nothing is left to quantise."""
    wanted = set(layers(model)) - set(keep)
    if not wanted:
        raise BuildFailed("no layer is left to quantise")
    excluded = [node.name for node in model.graph.node if _stays(node, wanted, scheme)]
    result = _quantized(model, table, scheme, excluded)
    _sharpen(result, excluded, scheme)
    _compact(result, set(graphs.initializers(model)) | set(_values(model)))
    # The quantiser appends what it adds; ONNX Runtime does not mind, but the file would not be valid ONNX.
    importlib.import_module("onnxruntime.quantization.onnx_model").ONNXModel(result).topological_sort()
    return result


def _quantized(model: onnx.ModelProto, table: Table, scheme: Scheme, excluded: list[str]) -> onnx.ModelProto:
    """What ONNX Runtime's quantiser makes of a copy."""
    # Imported here, since every start of the command line would pay a fifth of a second for it.
    tools = importlib.import_module("onnxruntime.quantization")
    ranges = importlib.import_module("onnxruntime.quantization.calibrate").TensorsData(
        tools.CalibrationMethod.MinMax,
        {name: (np.float32(low), np.float32(high)) for name, (low, high) in table.ranges.items()},
    )
    logging.getLogger().addFilter(_quiet)
    try:
        quantizer = tools.QDQQuantizer(
            copy.deepcopy(model),
            True,  # per channel
            scheme.reduce_range,
            tools.QuantType.QInt8,
            tools.QuantType.QInt8 if scheme.symmetric else tools.QuantType.QUInt8,
            ranges,
            [],
            excluded,
            list(scheme.op_types),
            _options(scheme),
        )
        quantizer.quantize_model()
    except (ValueError, KeyError, RuntimeError) as error:
        raise BuildFailed(f"the model cannot be quantised ({scheme.name}): {error}") from error
    finally:
        logging.getLogger().removeFilter(_quiet)
    result: onnx.ModelProto = quantizer.model.model
    return result


def _stays(node: onnx.NodeProto, wanted: Collection[str], scheme: Scheme) -> bool:
    """Whether a node that the scheme would take is left in FP32."""
    return node.op_type in (*WEIGHTED, "Add") and node.op_type in scheme.op_types and node.name not in wanted


def _options(scheme: Scheme) -> dict[str, object]:
    return {
        "ActivationSymmetric": scheme.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": False,  # ONNX Runtime does so itself when it fuses a layer, and the file stays smaller
        "QDQKeepRemovableActivations": scheme.inputs_only,
        "OpTypesToExcludeOutputQuantization": list(scheme.op_types) if scheme.inputs_only else [],
        "QDQOpTypePerChannelSupportToAxis": CHANNEL_AXIS,
    }


def _sharpen(model: onnx.ModelProto, excluded: Collection[str], scheme: Scheme) -> None:
    """Let nodes that stay in FP32 read values as they were before Q/DQ, where those exist in FP32 anyway.

    The quantiser hands the blurred value to every reader, such as the additions that carry a transformer's residual.
    """
    made = graphs.producers(model)

    def stays(node: onnx.NodeProto | None) -> bool:
        return node is None or node.op_type not in scheme.op_types or node.name in excluded

    def sharp(name: str) -> str:
        widen = made.get(name)
        if widen is None or widen.op_type != "DequantizeLinear":
            return name
        narrow = made.get(widen.input[0])
        if narrow is None or not (scheme.inputs_only or stays(made.get(narrow.input[0]))):
            return name
        return str(narrow.input[0])

    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and stays(node):
            node.input[:] = [sharp(name) for name in node.input]


def _quiet(record: logging.LogRecord) -> bool:
    """The quantiser advises, on the root logger, to prepare the model; it is prepared."""
    return "pre-processing" not in record.getMessage()


def _float_values(model: onnx.ModelProto) -> frozenset[str]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return frozenset(value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _values(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output]


def _compact(model: onnx.ModelProto, original: Collection[str]) -> None:
    """Short names for what the quantiser added, and no shapes inside: a third of the file in small networks."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    outputs = {value.name for value in model.graph.output}
    short: dict[str, str] = {}
    fresh = (name for name in map("q{}".format, itertools.count()) if name not in original)

    def rename(name: str) -> str:
        if not name or name in original or name in outputs:
            return name
        if name not in short:
            short[name] = next(fresh)
        return short[name]

    for tensor in model.graph.initializer:
        tensor.name = rename(tensor.name)
        tensor.ClearField("doc_string")
    for node in model.graph.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        node.ClearField("doc_string")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.ClearField("name")
    used = {node.domain for node in model.graph.node} | {""}
    imports = [helper.make_opsetid(entry.domain, entry.version) for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def layer_precisions(model: onnx.ModelProto, names: Collection[str]) -> dict[str, str]:
    """These layers to `int8`, `fp16`, `bf16` or `fp32`: what their inputs have been brought to."""
    made = graphs.producers(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    words: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    # What flows is FP16 everywhere or nowhere; BF16 is only ever stored.
    flowing = "fp16" if TensorProto.FLOAT16 in kinds.values() else "fp32"

    def precision(node: onnx.NodeProto) -> str:
        sources = [made.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            return "int8"
        weight, source = node.input[1], sources[1]
        if source is not None and source.op_type == "Cast":
            weight = source.input[0]
        return words.get(kinds.get(weight, TensorProto.UNDEFINED), flowing)

    return {node.name: precision(node) for node in model.graph.node if node.name in names}
