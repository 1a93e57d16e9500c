"""From tensors to columns."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engines.tensor import Array, array_of_bytes
from server.watch.kinds import Kind
from server.watch.plan import MAX_CATEGORIES, OTHER, PROJECTIONS, Plan, guess, guess_answer, plan_of

RANDOM = np.random.default_rng(0)


def texts(values: list[bytes]) -> Array:
    return array_of_bytes(values, (len(values), 1))


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (np.zeros((9, 5)), Kind.NUMBERS),
        (np.zeros(9), Kind.NUMBERS),
        (np.zeros((9, 768)), Kind.EMBEDDING),
        (np.zeros((9, 3, 8, 8)), Kind.IMAGE),
        (np.zeros((9, 8, 8), np.uint8), Kind.IMAGE),
        (texts([b"a", b"b"] * 100), Kind.CATEGORIES),
        (texts([b"%d" % i for i in range(100)]), Kind.TEXT),
    ],
)
def test_kinds_are_guessed(rows: Array, kind: Kind) -> None:
    assert guess(rows) is kind


def test_answers_are_guessed() -> None:
    scores = RANDOM.normal(size=(50, 4))
    shares = np.abs(scores) / np.abs(scores).sum(axis=1, keepdims=True)
    assert guess_answer("y", shares, labelled=False) is Kind.PROBABILITIES
    assert guess_answer("y", scores, labelled=True) is Kind.LOGITS
    assert guess_answer("class_logits", scores, labelled=False) is Kind.LOGITS
    assert guess_answer("y", scores, labelled=False) is Kind.NUMBERS


def test_few_whole_numbers_are_categories_and_new_ones_are_others() -> None:
    rows = np.column_stack([RANDOM.normal(size=200), RANDOM.choice([3.0, 7.0], 200)])
    plan = plan_of("x", rows)
    assert [column.categories for column in plan.columns] == [(), ("3", "7", OTHER)]
    found = plan.extract(np.array([[0.5, 7.0], [np.nan, 8.0], [np.inf, 3.0]]))
    assert np.array_equal(found, [[0.5, 1.0], [np.nan, 2.0], [np.nan, 0.0]], equal_nan=True)


def test_a_short_reference_makes_no_number_a_category() -> None:
    assert plan_of("x", np.arange(10.0).reshape(-1, 1)).columns[0].categories == ()


def test_texts_are_categories_with_a_bound() -> None:
    plan = plan_of("x", texts([b"%d" % (i % 99) for i in range(5000)]), Kind.CATEGORIES)
    known = plan.columns[0].categories
    assert len(known) == MAX_CATEGORIES + 1
    assert plan.extract(texts([known[5].encode(), b"new", b"\xff"])).ravel().tolist() == [5, 63, 63]


def test_an_image_is_told_by_its_looks() -> None:
    images = RANDOM.random((20, 1, 8, 8)).astype(np.float32)
    plan = plan_of("i", images)
    found = plan.extract(images)
    assert found.shape == (20, 3 + PROJECTIONS)
    assert found[:, 0] == pytest.approx(images.mean(axis=(1, 2, 3)), rel=1e-5)
    assert found[:, 1] == pytest.approx(images.std(axis=(1, 2, 3)), rel=1e-5)
    assert found[:, 2] == pytest.approx(np.abs(np.diff(images, axis=3)).mean(axis=(1, 2, 3)), rel=1e-5)
    assert plan.extract(images * 2) == pytest.approx(found * 2, rel=1e-4)


def test_projections_keep_distances() -> None:
    rows = RANDOM.normal(size=(60, 500))
    found = plan_of("e", rows).extract(rows)[:, 2:]
    ratio = np.linalg.norm(found[:30] - found[30:], axis=1) / np.linalg.norm(rows[:30] - rows[30:], axis=1)
    assert np.mean(ratio) == pytest.approx(np.sqrt(PROJECTIONS / 500), rel=0.15)


def test_a_damaged_row_is_missing_and_its_neighbours_are_not() -> None:
    rows = RANDOM.normal(size=(4, 100))
    plan = plan_of("e", rows)
    rows[2, 7] = np.nan
    with np.errstate(invalid="ignore"):
        missing = np.isnan(plan.extract(rows))
    assert missing[2].any()
    assert not missing[[0, 1, 3]].any()


def test_text_is_measured() -> None:
    rows = texts([f"text {i}".encode() for i in range(100)])
    plan = plan_of("t", rows)
    assert plan.extract(texts(["Ab 12é".encode(), b""])).tolist() == [[6, 2, 3 / 6, 2 / 6, 1 / 6], [0, 0, 0, 0, 0]]


def test_scores_of_classes_give_class_and_confidence() -> None:
    plan = plan_of("p", np.ones((2, 3)), Kind.PROBABILITIES)
    found = plan.extract(np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0], [np.nan, 1, 1]]))
    entropy = -sum(p * np.log(p) for p in (0.7, 0.2, 0.1))
    assert found[0] == pytest.approx([0, 0.7, 0.5, entropy])
    assert found[1] == pytest.approx([2, 1, 1, 0])
    assert np.isnan(found[2]).all()


def test_logits_are_made_probabilities() -> None:
    plan = plan_of("l", np.ones((2, 3)), Kind.LOGITS)
    shares = np.array([[0.7, 0.2, 0.1]])
    same = plan_of("l", shares, Kind.PROBABILITIES).extract(shares)
    assert plan.extract(np.log(shares) + 500) == pytest.approx(same)


def test_rare_types_are_read() -> None:
    rows = np.array([[1.5, 2.5]], ml_dtypes.bfloat16)
    assert plan_of("x", rows).extract(rows).tolist() == [[1.5, 2.5]]
    assert plan_of("x", np.array([[True], [False]])).extract(np.array([[True]])).tolist() == [[1.0]]


def test_other_shapes_than_planned_are_missing() -> None:
    plan = plan_of("x", RANDOM.normal(size=(50, 3)))
    assert np.isnan(plan.extract(np.zeros((2, 5)))).all()


@pytest.mark.parametrize("rows", [RANDOM.normal(size=(60, 2)), RANDOM.normal(size=(60, 1, 9, 9)), texts([b"a"] * 60)])
def test_plans_survive_json(rows: Array) -> None:
    plan = plan_of("x", rows)
    back = Plan.from_json(plan.as_json(), plan.positions, plan.signs)
    assert np.array_equal(back.extract(rows), plan.extract(rows))
    assert back.columns == plan.columns
