"""Comparisons of answers."""

from __future__ import annotations

import numpy as np
import pytest

from engines.build.compare import compare, error_of
from engines.build.errors import BuildFailed

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 4], [2, 1, 0]], np.float32)


def test_equal_answers_are_perfect() -> None:
    found = compare({"logits": LOGITS}, {"logits": LOGITS.copy()}, np.array([0, 1, 2, 1]))
    assert (found.agreement, found.top_k_agreement, found.drop, found.divergence) == (1.0, 1.0, 0.0, 0.0)
    assert found.accuracy == (0.75, 0.75)
    assert found.outputs[0].cosine == 1.0
    assert error_of(found) == 0.0


def test_a_changed_row_shows_everywhere() -> None:
    changed = LOGITS.copy()
    changed[1] = [5, 2, 1]
    found = compare({"logits": LOGITS}, {"logits": changed}, np.array([0, 1, 2, 0]))
    assert found.agreement == 0.75
    assert found.accuracy == (1.0, 0.75)
    assert (found.drop, found.judged_by) == (0.25, "loss of accuracy")
    assert found.outputs[0].max_error == 5.0
    worst = found.worst[0]
    assert (worst.row, worst.reference, worst.candidate, worst.label) == (1, 1, 0, 1)
    p, q = (np.exp(row) / np.exp(row).sum() for row in (LOGITS[1].astype(float), changed[1].astype(float)))
    assert worst.distance == pytest.approx(float(np.sum(p * np.log(p / q))))
    assert found.divergence == pytest.approx(worst.distance / 4)


def test_without_labels_agreement_decides() -> None:
    changed = LOGITS.copy()
    changed[1] = [5, 2, 1]
    assert compare({"logits": LOGITS}, {"logits": changed}).drop == 0.25


def test_a_better_candidate_has_no_drop() -> None:
    found = compare({"logits": LOGITS}, {"logits": LOGITS[:, ::-1].copy()}, np.array([2, 1, 0, 2]))
    assert found.drop == 0.0


def test_probabilities_are_recognised_among_other_outputs() -> None:
    table = {"embedding": np.ones((2, 4), np.float32), "p": np.array([[0.5, 0.5], [0.1, 0.9]], np.float32)}
    assert compare(table, table).scores == "p"
    assert compare(table, table, output="embedding").scores == "embedding"
    with pytest.raises(BuildFailed, match="outputs are"):
        compare(table, table, output="q")


def test_values_are_judged_by_what_is_not_explained() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    noisy = values + np.array([[0.0], [0.0], [3.0], [0.0]], np.float32)
    found = compare({"y": values}, {"y": noisy})
    assert found.scores is None
    assert found.drop == pytest.approx(9 / 4 / np.mean((values - values.mean(axis=0)) ** 2))
    assert found.worst[0].row == 2
    assert found.worst[0].distance == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_lose_everything(bad: float) -> None:
    broken = LOGITS.copy()
    broken[0, 0] = bad
    found = compare({"logits": LOGITS}, {"logits": broken}, np.array([0, 1, 2, 0]))
    assert found.drop == 1.0
    assert compare({"logits": LOGITS}, {"logits": broken}).drop == 1.0
    values = compare({"y": LOGITS}, {"y": broken})
    assert not values.drop <= 0.01


def test_integers_are_equal_or_not() -> None:
    first = {"label": np.array([1, 2, 3, 4])}
    assert compare(first, {"label": np.array([1, 2, 3, 5])}).drop == 0.25


@pytest.mark.parametrize(
    ("candidate", "complaint"),
    [({"other": LOGITS}, "no output 'logits'"), ({"logits": LOGITS[:2]}, "do not compare")],
)
def test_answers_of_other_shapes_do_not_compare(candidate: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(BuildFailed, match=complaint):
        compare({"logits": LOGITS}, candidate)


def test_labels_need_scores() -> None:
    with pytest.raises(BuildFailed, match="no output has a row of scores"):
        compare({"y": np.ones((4, 1))}, {"y": np.ones((4, 1))}, np.zeros(4, int))
