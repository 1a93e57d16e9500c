"""Whether two versions gave the same answer to the same request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.request import InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, to_array
from server.rollout.plan import Comparing

FLOATS: Final = frozenset({DType.FP16, DType.BF16, DType.FP32, DType.FP64})
_NAMES: Final = ("logit", "prob", "score")
"""Outputs called so hold a number for each class."""


class Agreement(NamedTuple):
    """Of one request."""

    share: float
    """Of its rows."""
    max_error: float
    """Largest absolute difference in any number of the outputs that were compared; infinite where one is none."""


def compare(stable: InferResponse, candidate: InferResponse, spec: ModelSpec, how: Comparing) -> Agreement:
    """Compare the answers to one request: by the best class where the answers hold scores, else by all values."""
    scores = scores_of(spec, how)
    pairs = list(zip(stable.outputs, candidate.outputs, strict=True))
    if scores in (ours.name for ours, _ in pairs):
        pairs = [pair for pair in pairs if pair[0].name == scores]
    agrees: NDArray[np.bool_] | None = None
    worst = 0.0
    for ours, theirs in pairs:
        if ours.shape != theirs.shape or ours.dtype is not theirs.dtype:
            return Agreement(0.0, float("inf"))
        rows, error = _compare(ours, theirs, how, classes=ours.name == scores, batched=spec.batched)
        agrees = rows if agrees is None else agrees & rows
        worst = max(worst, error)
    return Agreement(1.0 if agrees is None or not agrees.size else float(np.mean(agrees)), worst)


def scores_of(spec: ModelSpec, how: Comparing) -> str:
    """The output with a score for each class; empty where there is none."""
    if how.output:
        return how.output
    fitting = [output for output in spec.outputs if _may_be_scores(output)]
    return next((output.name for output in fitting if output.labels), fitting[0].name if fitting else "")


def unlike(stable: ModelSpec, candidate: ModelSpec) -> str:
    """Why one cannot take the other's requests; empty when it can."""
    for kind, first, second in (
        ("inputs", stable.inputs, candidate.inputs),
        ("outputs", stable.outputs, candidate.outputs),
    ):
        if _contract(first) != _contract(second):
            return f"the candidate has other {kind}: {_words(second)} instead of {_words(first)}"
    if stable.batched != candidate.batched or candidate.max_rows < stable.max_rows:
        return f"the candidate takes {candidate.max_rows} rows at most, the stable version {stable.max_rows}"
    return ""


def _may_be_scores(output: TensorSpec) -> bool:
    named = bool(output.labels) or any(part in output.name.lower() for part in _NAMES)
    return named and output.dtype in FLOATS and len(output.shape) == 1 and output.shape[0] != 1


def _contract(tensors: Sequence[TensorSpec]) -> list[tuple[str, DType, tuple[int, ...], bool]]:
    return [(tensor.name, tensor.dtype, tensor.shape, tensor.optional) for tensor in tensors]


def _words(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype.label}{list(tensor.shape)}" for tensor in tensors)


def _compare(
    ours: Tensor, theirs: Tensor, how: Comparing, *, classes: bool, batched: bool
) -> tuple[NDArray[np.bool_], float]:
    """Which rows agree, and the largest difference."""
    first, second = _rows(ours, batched=batched), _rows(theirs, batched=batched)
    if first.size == 0:
        return np.ones(len(first), np.bool_), 0.0
    if ours.dtype not in FLOATS:
        same = first == second
        return same.all(axis=1), 0.0 if same.all() else 1.0
    first, second = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(first - second)
    finite = np.isfinite(second).all(axis=1)
    error = float(np.where(np.isfinite(difference), difference, np.inf).max())
    if classes:
        return finite & (np.argmax(first, axis=1) == np.argmax(second, axis=1)), error
    equal = (first == second) | (np.isnan(first) & np.isnan(second))
    return (equal | (difference <= how.absolute + how.relative * np.abs(first))).all(axis=1), error


def _rows(tensor: Tensor, *, batched: bool) -> NDArray[Any]:
    array = to_array(tensor)
    rows = array.shape[0] if batched and array.ndim else 1
    return array.reshape(rows, array.size // rows if rows else 0)
