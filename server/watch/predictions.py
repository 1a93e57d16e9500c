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
        known = [seen for seen in observations if seen.request.id]
        if len(known) < len(observations):
            self._store.missing_id(sum(seen.request.rows for seen in observations if not seen.request.id))
        if known:
            self._store.record(list(self._predictions(known)))

    def close(self) -> None:
        """Nothing is held here."""

    def _predictions(self, observations: Sequence[Observation]) -> Iterator[Prediction]:
        """Scores of all of them are looked at together: numpy takes as long for one row as for many."""
        scores = [self._scores(seen.response.outputs) for seen in observations]
        given = [each for each in scores if each is not None]
        answers = iter(_answers(np.concatenate(given))) if given else iter(())
        labels = () if self._output is None else self._output.labels
        for seen, found in zip(observations, scores, strict=True):
            request = seen.request
            for row in range(request.rows):
                predicted, confidence = (-1, math.nan) if found is None else next(answers)
                label = labels[predicted] if 0 <= predicted < len(labels) else ""
                yield Prediction(request.model, request.id, row, request.version, seen.at, predicted, label, confidence)

    def _scores(self, outputs: Sequence[Tensor]) -> NDArray[np.float64] | None:
        """One line of scores for each row, if the caller asked for that output."""
        if self._output is None:
            return None
        found = next((tensor for tensor in outputs if tensor.name == self._output.name), None)
        return None if found is None else to_array(found).astype(np.float64).reshape(-1, self._output.shape[-1])


def _answers(scores: NDArray[np.float64]) -> list[tuple[int, float]]:
    """For each line the class with the highest score, and how sure that is."""
    return list(zip(scores.argmax(axis=1).tolist(), confidence_of(scores).tolist(), strict=True))


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


def confidence_of(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each line's highest probability: of scores that are probabilities already, else of their softmax.

    NaN where they are not finite.
    """
    best = scores.max(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        probabilities = (scores.min(axis=1) >= 0.0) & (np.abs(scores.sum(axis=1) - 1.0) < 1e-2)
        softmax = 1.0 / np.exp(scores - best[:, None]).sum(axis=1)
    found = np.where(probabilities, np.minimum(1.0, best), softmax)
    return np.where(np.isfinite(scores).all(axis=1), found, np.nan)
