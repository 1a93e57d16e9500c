"""Observations made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, from_array
from server.watch.observation import Observation

SPEC = ModelSpec(
    name="m",
    version=2,
    platform="onnxruntime_onnx",
    inputs=(TensorSpec("x", DType.FP32, (2, 3)),),
    outputs=(TensorSpec("p", DType.FP32, (4,), labels=("a", "b", "c", "d")),),
    max_rows=8,
    digest="d1",
)


def observation(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], spec: ModelSpec = SPEC, *, at: float = 1e9, id_: str = "r"
) -> Observation:
    """One answered request; arrays have the types of the spec."""
    rows = len(next(iter(inputs.values()))) if spec.batched else 1
    return Observation(
        InferRequest(
            model=spec.name, version=spec.version, inputs=_tensors(inputs, spec.inputs), wanted=tuple(outputs),
            rows=rows, id=id_,
        ),
        InferResponse(model=spec.name, version=spec.version, outputs=_tensors(outputs, spec.outputs), id=id_),
        at,
    )  # fmt: skip


def _tensors(values: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    types = {spec.name: spec.dtype for spec in specs}
    return tuple(from_array(name, types[name], np.asarray(value, types[name].numpy)) for name, value in values.items())


def images(rows: int, start: int = 0) -> dict[str, Any]:
    """Rows for SPEC's input, all different."""
    return {"x": np.arange(start * 6, (start + rows) * 6, dtype=np.float32).reshape(rows, 2, 3)}


def scores(rows: int, best: int = 1, height: float = 0.7) -> dict[str, Any]:
    """Probabilities for SPEC's output."""
    values = np.full((rows, 4), (1 - height) / 3, np.float32)
    values[:, best] = height
    return {"p": values}
