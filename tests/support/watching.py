"""Rows, observations and references for tests of the watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType, from_array
from server.watch.kinds import Kind
from server.watch.observation import Observation
from server.watch.plan import plan_of
from server.watch.reference import Reference
from server.watch.table import Table

SPEC = ModelSpec(
    name="m", version=1, platform="", max_rows=64,
    inputs=(TensorSpec("x", DType.FP64, (3,)),), outputs=(TensorSpec("logits", DType.FP64, (4,)),),
)  # fmt: skip


def world(seed: int, rows: int) -> Array:
    """Three features: two normal ones, and a category."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(rows, 3))
    found[:, 2] = random.choice(3, rows, p=[0.6, 0.3, 0.1])
    return found


def logits(rows: Array) -> Array:
    """A model of four classes."""
    weights = np.random.default_rng(0).normal(size=(rows.shape[1], 4))
    scores: Array = np.nan_to_num(rows) @ weights * 2
    return scores


def table(name: str, rows: Array, **options: Any) -> Table:
    """A table that has seen these rows."""
    found = Table([plan_of(name, rows, **options)])
    found.add(found.of_arrays({name: rows}, len(rows)))
    return found


def reference(rows: Array) -> Reference:
    """Of these rows, and of the answers to them."""
    return Reference(inputs=table("x", rows), answers=table("logits", logits(rows), kind=Kind.LOGITS), source="test")


def observation(rows: Array, at: float = 0.0, outputs: Mapping[str, Array] | None = None) -> Observation:
    """One request for all of these rows, answered."""
    told = {"logits": logits(rows)} if outputs is None else outputs
    request = InferRequest(
        model="m", version=1, inputs=(from_array("x", DType.FP64, rows),), wanted=tuple(told), rows=len(rows)
    )
    response = InferResponse(
        model="m", version=1, outputs=tuple(from_array(name, DType.FP64, array) for name, array in told.items())
    )
    return Observation(request, response, at)
