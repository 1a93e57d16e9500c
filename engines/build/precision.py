"""Half precision, on ONNX: FP16 for what computes, BF16 for what is stored.

Inputs and outputs keep their types, so that clients and configurations fit every version of a model.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Final

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.build import graphs
from engines.build.errors import BuildFailed
from engines.build.quantize import WEIGHTED

HALF_SCALES_OPSET: Final = 19
"""The first in which QuantizeLinear takes FP16."""


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """All that is FP32 inside becomes FP16, weights too; values that FP16 cannot hold are clipped."""
    has_qdq = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    source = graphs.with_opset(model, HALF_SCALES_OPSET) if has_qdq else copy.deepcopy(model)
    large = graphs.weight_bytes(model) >= graphs.EXTERNAL_FROM_BYTES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each tensor with a value near zero; the gate judges the sum of them
        # Imported here, as it is slow and most commands do without it.
        converter = importlib.import_module("onnxruntime.transformers.float16")
        converted: onnx.ModelProto = converter.convert_float_to_float16(
            source, keep_io_types=True, disable_shape_infer=large, op_block_list=[]
        )
    del converted.graph.value_info[:]
    return converted


def to_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of layers are stored as BF16 and widened when the model is loaded; what computes stays FP32.

    ONNX Runtime has no BF16 kernels for processors, so half the size is all there is to gain. Raises BuildFailed when
    there is nothing to convert.
    """
    converted = copy.deepcopy(model)
    del converted.graph.value_info[:]
    weights = graphs.initializers(converted)
    names = {
        name
        for node in converted.graph.node
        if node.op_type in WEIGHTED
        for name in node.input[1:2]
        if name in weights and weights[name].data_type == TensorProto.FLOAT
    }
    if not names:
        raise BuildFailed("no layer has weights that could be stored as BF16")
    casts = []
    for name in sorted(names):
        values = numpy_helper.to_array(weights[name]).astype(ml_dtypes.bfloat16)
        stored = helper.make_tensor(
            f"{name}_bf16", TensorProto.BFLOAT16, values.shape, values.view(np.uint16).tobytes(), raw=True
        )
        weights[name].CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    nodes = list(converted.graph.node)
    del converted.graph.node[:]
    converted.graph.node.extend([*casts, *nodes])
    return converted
