"""What is recorded of an answer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engines.spec import TensorSpec
from engines.tensor import DType
from server.watch.outcomes import Prediction
from server.watch.predictions import PredictionSink, confidence_of, scores_of
from tests.server.watch.support import SPEC, images, observation, scores


class Store:
    def __init__(self) -> None:
        self.recorded: list[Prediction] = []
        self.without_id = 0

    def record(self, predictions: list[Prediction]) -> None:
        self.recorded += predictions

    def missing_id(self, rows: int) -> None:
        self.without_id += rows


def test_each_row_is_recorded_with_its_class_and_confidence() -> None:
    store = Store()
    sink = PredictionSink(SPEC, store)  # type: ignore[arg-type]  # all of the store that is used
    sink.observe([observation(images(2), scores(2, best=2), at=5.0, id_="q")])
    sink.close()
    assert [(each.id, each.row, each.predicted, each.label) for each in store.recorded] == [
        ("q", 0, 2, "c"),
        ("q", 1, 2, "c"),
    ]
    assert store.recorded[0].confidence == pytest.approx(0.7)
    assert store.recorded[0].at == 5.0


def test_without_an_id_nothing_is_recorded_but_counted() -> None:
    store = Store()
    PredictionSink(SPEC, store).observe([observation(images(3), scores(3), id_="")])  # type: ignore[arg-type]
    assert (store.recorded, store.without_id) == ([], 3)


def test_without_scores_the_id_alone_is_recorded() -> None:
    store = Store()
    PredictionSink(SPEC, store).observe([observation(images(1), {})])  # type: ignore[arg-type]
    assert store.recorded[0].predicted == -1
    assert math.isnan(store.recorded[0].confidence)


def test_which_output_has_the_scores() -> None:
    plain = TensorSpec("plain", DType.FP32, (4,))
    text = TensorSpec("text", DType.BYTES, (4,))
    assert scores_of(SPEC) is SPEC.outputs[0]
    assert scores_of(replace(SPEC, outputs=(plain, *SPEC.outputs, text))) is SPEC.outputs[0]
    assert scores_of(replace(SPEC, outputs=(plain, *SPEC.outputs)), "plain") is plain
    assert scores_of(replace(SPEC, outputs=(plain, replace(plain, name="other")))) is None
    assert scores_of(replace(SPEC, outputs=(text,))) is None


def test_confidence_of_probabilities_logits_and_nonsense() -> None:
    found = confidence_of(np.array([[0.25, 0.75], [0.0, math.log(3)], [math.nan, 1.0], [math.inf, 1.0], [0.2, 0.805]]))
    np.testing.assert_allclose(found, [0.75, 0.75, math.nan, math.nan, 0.805])
