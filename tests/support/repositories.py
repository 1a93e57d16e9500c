"""Model repositories for tests of a whole server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from onnx import TensorProto

from tests.support import onnx_models

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples" / "models"

ONE_ENGINE: Final = (
    "instance_group { count: 1 kind: KIND_CPU }\n"
    'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
)
"""Leaves nothing to measure, so that models are up at once."""

ONNX_TYPES: Final[Mapping[str, int]] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def add_types(root: Path) -> None:
    """`identity_<type>` for each type: `x0` [batch, 3] comes out as `y0`, in batches of up to 8."""
    for label, number in ONNX_TYPES.items():
        proto = onnx_models.identity(("batch", 3), number)
        onnx_models.write(root, f"identity_{label.lower()}", proto=proto, config=f"max_batch_size: 8\n{ONE_ENGINE}")


def add_shapes(root: Path) -> None:
    """Models whose shapes are out of the ordinary."""
    shapes: dict[str, tuple[onnx_models.Dims, int]] = {
        "scalar": ((), 0),  # one number, no dimension
        "unbatched": ((None,), 0),  # any length, also none
        "variable": (("batch", None), 8),  # rows of any length
    }
    for name, (dims, max_rows) in shapes.items():
        config = f"max_batch_size: {max_rows}\n{ONE_ENGINE}"
        onnx_models.write(root, name, proto=onnx_models.identity(dims), config=config)
    proto = onnx_models.scale(2.0, optional=True)
    config = f'max_batch_size: 0\ninput {{ name: "factor" optional: true }}\n{ONE_ENGINE}'
    onnx_models.write(root, "optional", proto=proto, config=config)


def add_examples(root: Path) -> None:
    """`simple`, `text` and `digits` (versions 1 and 2, with labels), as they come with the project."""
    for name in ("simple", "text", "digits"):
        folder = shutil.copytree(EXAMPLES / name, root / name)
        with (folder / "config.pbtxt").open("a") as config:
            config.write(f"\n{ONE_ENGINE}")
