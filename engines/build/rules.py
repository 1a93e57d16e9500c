"""TensorRT's rules for explicit quantisation, checked node by node on an ONNX graph.

1.  QuantizeLinear and DequantizeLinear work on signed bytes (INT8) with a zero point of 0.
2.  Scales are positive, finite constants.
3.  Activations have one scale; weights one for each output channel.
4.  A value is quantised and widened again with the same scale.
5.  There is no quantised bias: nothing is widened from INT32.
6.  A layer that has one input from DequantizeLinear has all its inputs but the bias from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from engines.build import graphs
from engines.build.quantize import CHANNEL_AXIS, WEIGHTED
from engines.tensor import Array


def violations(model: onnx.ModelProto) -> list[str]:
    """What TensorRT would refuse or run slowly, one line for each; empty for a legal graph."""
    view = _View(
        constants={name: numpy_helper.to_array(tensor) for name, tensor in graphs.initializers(model).items()},
        made=graphs.producers(model),
    )
    found: list[str] = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found.extend(view.pair(node, "QuantizeLinear"))
        elif node.op_type == "DequantizeLinear":
            found.extend(view.pair(node, "DequantizeLinear"))
            found.extend(view.source(node))
        elif node.op_type in (*WEIGHTED, "Add"):
            found.extend(view.layer(node))
    return found


@dataclass(frozen=True, slots=True)
class _View:
    constants: Mapping[str, Array]
    made: Mapping[str, onnx.NodeProto]

    def pair(self, node: onnx.NodeProto, kind: str) -> Iterator[str]:
        """Rules 1 and 2, the same for both operators."""
        where = f"{kind} of '{node.input[0]}'"
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            yield f"{where}: no constant zero point, so the type is unsigned"
        elif zero.dtype != np.int8:
            yield f"{where}: {zero.dtype} instead of int8"
        elif np.any(zero):
            yield f"{where}: the zero point is not 0"
        scale = self.constants.get(node.input[1])
        if scale is None:
            yield f"{where}: the scale is not a constant"
        elif not (np.all(np.isfinite(scale)) and np.all(scale.astype(np.float64) > 0)):
            yield f"{where}: a scale is not positive and finite"

    def source(self, node: onnx.NodeProto) -> Iterator[str]:
        """Rules 3 to 5: what a DequantizeLinear widens."""
        where = f"DequantizeLinear of '{node.input[0]}'"
        constant = self.constants.get(node.input[0])
        if constant is not None:
            if constant.dtype != np.int8:
                yield f"{where}: widens {constant.dtype}, which only a quantised bias or a wrong type can be"
            return
        before = self.made.get(node.input[0])
        if before is None or before.op_type != "QuantizeLinear":
            yield f"{where}: does not follow a QuantizeLinear"
            return
        first, second = (self.constants.get(each.input[1]) for each in (before, node))
        if first is not None and second is not None and not np.array_equal(first, second):
            yield f"{where}: quantised with one scale, widened with another"
        if first is not None and first.size != 1 and before.input[0] not in self.constants:
            yield f"{where}: an activation has {first.size} scales"

    def layer(self, node: onnx.NodeProto) -> Iterator[str]:
        """Rules 3 and 6: what a layer takes."""
        sources = [self.made.get(name) for name in node.input[:2]]
        widened = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
        if not any(widened):
            return
        if not all(widened):
            yield f"{node.op_type} '{node.name}': one input is quantised, another is not"
            return
        if any(
            source is not None and source.op_type == "DequantizeLinear"
            for source in (self.made.get(name) for name in node.input[2:])
        ):
            yield f"{node.op_type} '{node.name}': the bias is quantised"
        weight = sources[1]
        if weight is not None and weight.input[0] in self.constants and node.op_type in CHANNEL_AXIS:
            yield from self.weight(node, weight)

    def weight(self, node: onnx.NodeProto, widen: onnx.NodeProto) -> Iterator[str]:
        """Rule 3 for weights."""
        values, scale = self.constants[widen.input[0]], self.constants.get(widen.input[1])
        axis = next((attribute.i for attribute in widen.attribute if attribute.name == "axis"), 1) % values.ndim
        wanted = channel_axis(node, values.ndim)
        if scale is None or scale.size != values.shape[wanted] or (scale.size > 1 and axis != wanted):
            count = 0 if scale is None else scale.size
            yield (
                f"{node.op_type} '{node.name}': {count} weight scale(s) along axis {axis}, "
                f"not {values.shape[wanted]} along {wanted}"
            )


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Where the weight of a layer has its output channels."""
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return rank - 1 if node.op_type == "MatMul" else CHANNEL_AXIS[node.op_type]
