"""Records what a model version predicted, so that outcomes can be joined to it by the request's id.

An answer without an id is not recorded: an id that the server made up would be known to nobody who could report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Tensor, to_array
from server.watch.observation import Observation
from server.watch.outcomes import OutcomeStore, Prediction


class PredictionSink:
    """A sink of the tap, for one model version."""

    def __init__(self, spec: ModelSpec, store: OutcomeStore, output: str = "") -> None:
        """`output`: the one with a score for each class, where that is not clear."""
        self._spec = spec
        self._store = store
        self._output = scores_of(spec, output)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Record those that outcomes can be reported of."""
        self._store.record([each for seen in observations for each in self._predictions(seen)])

    def close(self) -> None:
        """Nothing is held here."""

    def _predictions(self, seen: Observation) -> Iterator[Prediction]:
        request = seen.request
        if not request.id:
            self._store.missing_id(request.rows)
            return
        scores = self._scores(seen.response.outputs)
        for row in range(request.rows):
            predicted, label, confidence = -1, "", math.nan
            if scores is not None and self._output is not None:
                predicted = int(scores[row].argmax())
                labels = self._output.labels
                label = labels[predicted] if predicted < len(labels) else ""
                confidence = confidence_of(scores[row])
            yield Prediction(request.model, request.id, row, request.version, seen.at, predicted, label, confidence)

    def _scores(self, outputs: Sequence[Tensor]) -> NDArray[np.float64] | None:
        """One line of scores for each row, if the caller asked for that output."""
        if self._output is None:
            return None
        found = next((tensor for tensor in outputs if tensor.name == self._output.name), None)
        return None if found is None else to_array(found).astype(np.float64).reshape(-1, self._output.shape[-1])


def scores_of(spec: ModelSpec, output: str = "") -> TensorSpec | None:
    """The output with a score for each class: the one named, else the one with labels, else the only one it can be."""
    fitting = [
        tensor
        for tensor in spec.outputs
        if len(tensor.shape) >= 1
        and math.prod(tensor.shape) == tensor.shape[-1] >= 2
        and np.issubdtype(tensor.dtype.numpy, np.floating)
    ]
    named = [tensor for tensor in fitting if tensor.name == output]
    labelled = [tensor for tensor in fitting if tensor.labels]
    found = named if output else labelled or fitting
    return found[0] if len(found) == 1 else None


def confidence_of(scores: NDArray[np.float64]) -> float:
    """The highest probability: of scores that are probabilities already, else of their softmax. NaN if not finite."""
    if not np.isfinite(scores).all():
        return math.nan
    if scores.min() >= 0.0 and abs(scores.sum() - 1.0) < 1e-2:
        return float(min(1.0, scores.max()))
    return float(1.0 / np.exp(scores - scores.max()).sum())
