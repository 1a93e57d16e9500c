"""Tensors of requests as tables, and references made of them."""

from __future__ import annotations

import numpy as np
import pytest

from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType, Tensor, array_of_bytes, from_array
from server.watch.baseline import make_reference
from server.watch.kinds import Kind
from server.watch.learn import Lessons
from server.watch.observation import Observation
from server.watch.settings import Hints, WatchOptions
from server.watch.table import MAX_TABLE_COLUMNS, answer_plan, input_plans

SPEC = ModelSpec(
    name="m", version=1, platform="", max_rows=8,
    inputs=(
        TensorSpec("age", DType.FP32, (1,)),
        TensorSpec("town", DType.BYTES, (1,)),
        TensorSpec("history", DType.INT64, (-1,)),
        TensorSpec("hint", DType.FP32, (2,), optional=True),
    ),
    outputs=(TensorSpec("embedding", DType.FP32, (300,)), TensorSpec("risk", DType.FP32, (2,), labels=("low", "high"))),
)  # fmt: skip
RANDOM = np.random.default_rng(0)
ROWS = 200


def texts(values: list[bytes]) -> Array:
    return array_of_bytes(values, (len(values), 1))


def columns() -> dict[str, Array]:
    return {
        "age": RANDOM.normal(size=(ROWS, 1)).astype(np.float32),
        "town": texts([b"Ulm", b"Wien"] * (ROWS // 2)),
        "history": RANDOM.integers(0, 1000, (ROWS, 5)),
        "hint": RANDOM.normal(size=(ROWS, 2)).astype(np.float32),
    }


def answers(arrays: dict[str, Array]) -> dict[str, Array]:
    rows = len(arrays["age"])
    return {"embedding": np.zeros((rows, 300), np.float32), "risk": np.column_stack([arrays["age"], -arrays["age"]])}


def observation(rows: dict[str, Array], at: float = 0.0) -> Observation:
    types = {tensor.name: tensor.dtype for tensor in (*SPEC.inputs, *SPEC.outputs)}
    inputs = tuple(from_array(name, types[name], array) for name, array in rows.items())
    outputs = tuple(from_array(name, types[name], array) for name, array in answers(rows).items())
    return Observation(
        InferRequest(model="m", version=1, inputs=inputs, wanted=("risk",), rows=len(rows["age"])),
        InferResponse(model="m", version=1, outputs=outputs),
        at,
    )


class Memory:
    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays, self.source, self.digest = arrays, "memory", "d1"

    def __len__(self) -> int:
        return ROWS

    def spread(self, most: int) -> Memory:
        return self

    def take(self, start: int, stop: int) -> dict[str, Array]:
        return {name: array[start:stop] for name, array in self.arrays.items()}


def test_a_reference_of_data_and_answers() -> None:
    steps: list[int] = []
    data = Memory(columns())
    found = make_reference(
        SPEC, Hints(), data, lambda arrays: answers(dict(arrays)), lambda _, done, total: steps.append(done),
        model_digest="m1",
    )  # fmt: skip
    assert [(plan.tensor, plan.kind) for plan in found.inputs.plans] == [
        ("age", Kind.NUMBERS), ("town", Kind.CATEGORIES), ("history", Kind.SIZES), ("hint", Kind.NUMBERS),
    ]  # fmt: skip
    assert found.inputs.rows == ROWS == steps[-1]
    assert found.answers is not None
    assert [(plan.tensor, plan.kind) for plan in found.answers.plans] == [("risk", Kind.LOGITS)]
    assert (found.model_digest, found.data_digest) == ("m1", "d1")


@pytest.mark.parametrize("each", [1, 8])
def test_requests_become_the_rows_that_arrays_become(each: int) -> None:
    arrays = columns()
    whole = make_reference(
        SPEC, Hints(), Memory(arrays), lambda given: answers(dict(given)), lambda *_: None, model_digest=""
    ).inputs
    parts = [{name: array[at : at + each] for name, array in arrays.items()} for at in range(0, ROWS, each)]
    requests = [observation(part).request for part in parts]
    found = whole.of_requests([each.inputs for each in requests], [each.rows for each in requests], batched=True)
    assert found == pytest.approx(whole.of_arrays(arrays, ROWS))


def test_what_a_request_leaves_out_is_missing_and_shapes_may_vary() -> None:
    arrays = columns()
    table = make_reference(
        SPEC, Hints(), Memory(arrays), lambda given: answers(dict(given)), lambda *_: None, model_digest=""
    ).inputs
    short = {name: array[:2] for name, array in arrays.items() if name != "hint"}
    long = {name: array[:3] for name, array in arrays.items()} | {"history": np.ones((3, 9), np.int64)}
    requests = [observation(short).request, observation(long).request]
    found = table.of_requests([each.inputs for each in requests], [2, 3], batched=True)
    names = [column.name for column in table.columns]
    assert np.isnan(found[:, names.index("hint[0]")]).tolist() == [True, True, False, False, False]
    assert found[:, names.index("history.size")].tolist() == [5, 5, 9, 9, 9]


def test_requests_teach_the_same() -> None:
    lessons = Lessons(SPEC, WatchOptions(learn_rows=ROWS))
    arrays = columns()
    learnt = None
    for at in range(0, ROWS, 4):
        assert learnt is None
        learnt = lessons.take(observation({name: array[at : at + 4] for name, array in arrays.items()}, float(at)))
    assert learnt is not None
    assert (learnt.inputs.rows, learnt.made) == (ROWS, ROWS - 4)
    assert learnt.inputs.sketches[0].quantiles([0, 1]) == [arrays["age"].min(), arrays["age"].max()]
    assert learnt.answers is not None
    assert learnt.answers.plans[0].tensor == "risk"


def test_a_model_without_batches_has_a_row_a_request() -> None:
    spec = ModelSpec(name="m", version=1, platform="", inputs=(TensorSpec("x", DType.FP32, (2,)),), outputs=())
    lessons = Lessons(spec, WatchOptions(learn_rows=30))
    row = Tensor("x", DType.FP32, (2,), np.array([1, 2], np.float32).tobytes())
    request = InferRequest(model="m", version=1, inputs=(row,), wanted=())
    seen = Observation(request, InferResponse(model="m", version=1, outputs=()), 0.0)
    learnt = [lessons.take(seen) for _ in range(30)][-1]
    assert learnt is not None
    assert (learnt.inputs.rows, len(learnt.inputs.columns), learnt.answers) == (30, 2, None)


def test_hints_win_over_guesses() -> None:
    arrays = columns()
    hints = Hints(kinds={"town": Kind.TEXT, "age": Kind.IGNORED, "risk": Kind.NUMBERS}, answer="embedding")
    assert next((plan.tensor, plan.kind) for plan in input_plans(SPEC, arrays, hints)) == ("town", Kind.TEXT)
    plan = answer_plan(SPEC, answers(arrays), hints)
    assert plan is not None
    assert (plan.tensor, plan.kind) == ("embedding", Kind.EMBEDDING)
    assert answer_plan(SPEC, answers(arrays), Hints(kinds={"risk": Kind.IGNORED, "embedding": Kind.IGNORED})) is None


def test_columns_are_bounded() -> None:
    inputs = tuple(TensorSpec(f"x{i}", DType.FP32, (60,)) for i in range(9))
    spec = ModelSpec(name="m", version=1, platform="", inputs=inputs, outputs=(), max_rows=8)
    plans = input_plans(spec, {each.name: np.zeros((5, 60)) for each in inputs}, Hints())
    assert sum(len(plan.columns) for plan in plans) == 240 <= MAX_TABLE_COLUMNS
