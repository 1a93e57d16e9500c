"""Brings a model into the form that the other steps need, and proves on numbers that its answers have stayed.

What changes: an opset too old for per-channel quantisation is raised, a fixed batch dimension is made free where the
graph allows it, names are given to nodes that have none, sums of two become additions, constants are folded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from engines.build import graphs
from engines.build.errors import BuildFailed
from engines.tensor import Array

OLDEST_OPSET: Final = 13
"""The first with a scale for each channel in QuantizeLinear."""
CHOSEN_OPSET: Final = 17
"""What older models are brought to: any runtime of the last years reads it."""
_BATCH: Final = "N"
_QUANTISED: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"})
_PROBE_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be calibrated and converted."""

    model: onnx.ModelProto
    """With shapes inside, all weights in memory, every node named."""
    source_digest: str
    """SHA-256 over the files that it came from."""
    quantised: bool
    """Whether it came with quantised operators."""
    notes: tuple[str, ...]
    """What was changed, or could not be, for the report."""


def prepare(path: Path, folder: Path, *, quantising: bool) -> Prepared:
    """Read, check and normalise the model; `folder` is for temporary files. Raises BuildFailed."""
    given = graphs.load(path)
    quantised = _check(given, quantising=quantising)
    digest = graphs.file_digest(path, *graphs.external_files(path))
    notes: list[str] = []
    model = _modernised(given, notes, needed=quantising)
    model = _batchable(model, folder, notes)
    _plain_additions(model)
    if graphs.weight_bytes(model) < graphs.EXTERNAL_FROM_BYTES:
        model = graphs.simplified(model, folder)
    else:
        notes.append("weights of more than 1.5 GB: the graph is not simplified")
    model = graphs.infer_shapes(model, folder)
    _name_nodes(model)
    _compare(given, model, folder)
    return Prepared(model, digest, quantised, tuple(notes))


def _check(model: onnx.ModelProto, *, quantising: bool) -> bool:
    """Whether the model is quantised already."""
    newest = onnx.defs.onnx_opset_version()
    if (opset := graphs.opset_of(model)) > newest:
        raise BuildFailed(
            f"the model uses opset {opset}; the installed ONNX {onnx.__version__} knows none above {newest}"
        )
    if not graphs.fed_inputs(model):
        raise BuildFailed("the model takes no inputs")
    found = sorted({node.op_type for node in model.graph.node} & _QUANTISED)
    if quantising and found:
        raise BuildFailed(
            f"the model is quantised already: it has {', '.join(found)}; build from the model before quantisation, "
            "or publish this one as it is with --precision fp32"
        )
    return bool(found)


def _modernised(given: onnx.ModelProto, notes: list[str], *, needed: bool) -> onnx.ModelProto:
    model = copy.deepcopy(given)
    if model.ir_version < 4:  # in those days weights had to be listed among the inputs
        fed = graphs.fed_inputs(model)
        del model.graph.input[:]
        model.graph.input.extend(fed)
        model.ir_version = 8
    opset = graphs.opset_of(model)
    if opset >= OLDEST_OPSET:
        return model
    try:
        model = graphs.with_opset(model, CHOSEN_OPSET)
    except BuildFailed as error:
        if needed:
            raise
        notes.append(str(error))
        return model
    notes.append(f"opset {opset} raised to {CHOSEN_OPSET}")
    return model


def _batchable(model: onnx.ModelProto, folder: Path, notes: list[str]) -> onnx.ModelProto:
    """The model with a free batch dimension if that leaves its answers alone, else as it is."""
    fed = graphs.fed_inputs(model)
    sizes = {graphs.dims_of(value)[:1] for value in (*fed, *model.graph.output)}
    if sizes == {(-1,)}:
        return model
    (first, *others) = sizes
    if others or not first or first[0] < 1:
        notes.append("not batchable: inputs and outputs do not share a first dimension")
        return model
    freed = _freed(model, first[0])
    try:
        same = _rows_agree(model, freed, first[0], folder)
    except BuildFailed:
        same = False
    if not same:
        notes.append(f"not batchable: the graph only works with a first dimension of {first[0]}")
        return model
    notes.append(f"the fixed batch dimension of {first[0]} is free now; rows of a batch are answered as alone")
    return freed


def _freed(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    freed = copy.deepcopy(model)
    del freed.graph.value_info[:]
    for value in (*graphs.fed_inputs(freed), *freed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    constants = graphs.initializers(freed)
    made = {
        node.output[0]: attribute.t
        for node in freed.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for node in freed.graph.node:
        if node.op_type != "Reshape":
            continue
        shape = constants.get(node.input[1]) or made.get(node.input[1])
        if shape is None:
            continue
        sizes = numpy_helper.to_array(shape).copy()
        if sizes.size and sizes[0] == size:
            sizes[0] = 0 if -1 in sizes[1:] else -1  # 0 copies the size that comes in
            shape.CopyFrom(numpy_helper.from_array(sizes, shape.name))
    return freed


def _rows_agree(model: onnx.ModelProto, freed: onnx.ModelProto, size: int, folder: Path) -> bool:
    """Whether several batches at once are answered as one after the other."""
    rows = graphs.made_up(graphs.fed_inputs(model), size * _PROBE_ROWS, everywhere=True)
    one = graphs.open_session(graphs.save(model, folder / "fixed.onnx"))
    many = graphs.open_session(graphs.save(freed, folder / "freed.onnx"))
    try:
        together = many.run(None, rows)
        apart = [
            one.run(None, {name: array[start : start + size] for name, array in rows.items()})
            for start in range(0, size * _PROBE_ROWS, size)
        ]
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise BuildFailed(str(error)) from error
    return all(
        _close(np.concatenate([outputs[index] for outputs in apart]), output) for index, output in enumerate(together)
    )


def _plain_additions(model: onnx.ModelProto) -> None:
    """Sum of two is Add, which quantisers and fusions know."""
    for node in model.graph.node:
        if node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"


def _name_nodes(model: onnx.ModelProto) -> None:
    """Reports speak of nodes by name, so each has one of its own."""
    seen: set[str] = set()
    for node in model.graph.node:
        base = node.name or node.output[0]
        name, count = base, 1
        while name in seen:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        seen.add(name)


def _compare(given: onnx.ModelProto, model: onnx.ModelProto, folder: Path) -> None:
    rows = graphs.made_up(graphs.fed_inputs(given), _PROBE_ROWS)
    before = _run(given, folder / "before.onnx", rows)
    after = _run(model, folder / "after.onnx", rows)
    for name, array in before.items():
        if not _close(array, after[name]):
            raise BuildFailed(f"simplifying the graph changes output '{name}'; please report this model")


def _run(model: onnx.ModelProto, path: Path, rows: Mapping[str, Array]) -> dict[str, Array]:
    session = graphs.open_session(graphs.save(model, path))
    names = [value.name for value in model.graph.output]
    try:
        return dict(zip(names, session.run(names, dict(rows)), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise BuildFailed(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from error


def _close(first: Array, second: Array) -> bool:
    if first.shape != second.shape:
        return False
    if not np.issubdtype(first.dtype, np.floating):
        return bool(np.array_equal(first, second))
    scale = float(np.abs(first).max(initial=0.0)) or 1.0
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))
