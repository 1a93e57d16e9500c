"""When two answers are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from engines.request import InferResponse
from engines.spec import TensorSpec
from engines.tensor import DType, from_array
from server.rollout.agreement import compare, scores_of, unlike
from server.rollout.plan import Comparing
from tests.server.rollout.support import SPEC, response


def values(array: Any, dtype: DType = DType.FP32, name: str = "y") -> InferResponse:
    return InferResponse(model="m", version=1, outputs=(from_array(name, dtype, np.array(array, dtype.numpy)),))


def test_classifiers_agree_by_their_best_class() -> None:
    ours = response(1, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    theirs = response(2, [[0.6, 0.4], [0.9, 0.1], [0.5, 0.3]])
    found = compare(ours, theirs, SPEC, Comparing())
    assert found.share == 2 / 3
    assert np.isclose(found.max_error, 0.7)
    assert compare(ours, response(2, [[np.nan, 0.4]] * 3), SPEC, Comparing()) == (0.0, np.inf)


def test_other_models_agree_within_tolerances() -> None:
    how = Comparing(absolute=0.1, relative=0.0)
    assert compare(values([[1.0, 2.0], [3.0, 4.0]]), values([[1.05, 2.0], [3.0, 4.3]]), SPEC, how).share == 0.5
    assert compare(values([[100.0]]), values([[100.9]]), SPEC, Comparing()).share == 1.0
    assert compare(values([[np.nan]]), values([[np.nan]]), SPEC, how).share == 1.0
    assert compare(values([[1.0]]), values([[np.inf]]), SPEC, how) == (0.0, np.inf)
    assert compare(values([[1]], DType.INT32), values([[2]], DType.INT32), SPEC, how) == (0.0, 1.0)
    assert compare(values([[b"a"]], DType.BYTES), values([[b"a"]], DType.BYTES), SPEC, how) == (1.0, 0.0)
    assert compare(values([[1.0]]), values([[1.0, 2.0]]), SPEC, how).share == 0.0
    assert compare(values(np.zeros((0, 2))), values(np.zeros((0, 2))), SPEC, how).max_error == 0.0
    unbatched = replace(SPEC, max_rows=0)
    assert compare(values(1.0), values(1.05), unbatched, how).share == 1.0


def test_scores_are_recognised_or_named() -> None:
    labelled = TensorSpec("colour", DType.FP32, (3,), labels=("a", "b", "c"))
    assert scores_of(SPEC, Comparing()) == "scores"
    assert scores_of(replace(SPEC, outputs=(*SPEC.outputs, labelled)), Comparing()) == "colour"
    assert scores_of(SPEC, Comparing(output="extra")) == "extra"
    assert scores_of(replace(SPEC, outputs=(TensorSpec("probability", DType.FP32, (1,)),)), Comparing()) == ""


def test_versions_must_take_the_same_requests() -> None:
    other = TensorSpec("x", DType.FP64, (2,))
    assert unlike(SPEC, replace(SPEC, version=2, digest="b", max_rows=16)) == ""
    assert (
        unlike(SPEC, replace(SPEC, inputs=(other,))) == "the candidate has other inputs: x FP64[2] instead of x FP32[2]"
    )
    assert unlike(SPEC, replace(SPEC, max_rows=4)) == "the candidate takes 4 rows at most, the stable version 8"
