"""The models whose cost is the server's: tiny ones, and some that only carry bytes in or out."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper, save

from loadtest.support import write_matmul_model

TINY: Final = "tiny"
WIDTH: Final = 16
_OUT: Final = 4
"""Values that the models with large inputs answer with."""


def write_tiny(folder: Path, name: str = TINY, more: str = "") -> None:
    """A perceptron of two layers, 16 to 16: what is measured is the server."""
    write_matmul_model(folder / name, width=WIDTH, layers=2, config=f"max_batch_size: 64 {more}")


def write_slice(folder: Path, name: str, width: int) -> None:
    """`y` is the first values of `x`, which has `width`: large requests, small answers, next to no work."""
    ends = [numpy_helper.from_array(np.array([end]), key) for key, end in (("from", 0), ("to", _OUT), ("axis", 1))]
    _write(folder / name, helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"]), ends, (width, _OUT))


def write_tile(folder: Path, name: str, width: int) -> None:
    """`y` repeats `x` up to `width` values: a small request, a large answer."""
    times = [numpy_helper.from_array(np.array([1, width // _OUT]), "times")]
    _write(folder / name, helper.make_node("Tile", ["x", "times"], ["y"]), times, (_OUT, width))


def _write(folder: Path, node: NodeProto, constants: list[TensorProto], widths: tuple[int, int]) -> None:
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in zip("xy", widths, strict=True)
    ]
    graph = helper.make_graph([node], folder.name, tensors[:1], tensors[1:], constants)
    (folder / "1").mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "1/model.onnx")
    (folder / "config.pbtxt").write_text("max_batch_size: 8")
