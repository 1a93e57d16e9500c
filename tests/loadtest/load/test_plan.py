from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.load.plan import INFER, Plan, _values, make
from loadtest.load.scenario import Cancellations, Kind, Scenario, ScenarioError
from loadtest.load.schedule import Arrivals
from server.pb import grpc_service_pb2 as pb


def metadata(kind: Kind) -> pb.ModelMetadataResponse:
    told = pb.ModelMetadataResponse(name=kind.model)
    told.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
    if kind.model == "open":
        told.inputs.add(name="words", datatype="BYTES", shape=[-1, -1])
    return told


def plan(*kinds: Kind, **more: Any) -> Plan:
    return make(Scenario(requests=kinds, **more), metadata)


def read(made: Plan, body: int) -> pb.ModelInferRequest:
    return pb.ModelInferRequest.FromString(made.bodies[body].message)


def test_requests_are_what_the_scenario_says() -> None:
    kind = Kind(model="m", version="2", priority=7, deadline_ms={"50": 1.0}, send_timeout=True, metadata={"a": "b"})
    made = plan(kind)
    request = read(made, made.shots[0].body)
    assert made.bodies[0].path == INFER
    assert made.bodies[0].metadata == (("a", "b"),)
    assert (request.model_name, request.model_version) == ("m", "2")
    assert request.parameters["priority"].uint64_param == 7
    assert request.parameters["timeout"].int64_param == 50_000
    assert list(request.inputs[0].shape) == [1, 3]
    assert len(request.raw_input_contents[0]) == 12
    assert {shot.deadline_s for shot in made.shots} == {0.05}


def test_shares_of_models_rows_and_deadlines_are_kept() -> None:
    rows = {"1": 3.0, "4": 1.0}
    made = plan(Kind(model="a", share=3, rows=rows), Kind(model="b", deadline_ms={"10": 1, "20": 1}), seconds=60)
    count = len(made.shots)
    kinds = Counter(shot.kind for shot in made.shots)
    assert kinds[0] / count == pytest.approx(0.75, abs=0.03)
    sizes = Counter(int(read(made, shot.body).inputs[0].shape[0]) for shot in made.shots if shot.kind == 0)
    assert sizes[4] / kinds[0] == pytest.approx(0.25, abs=0.03)
    left = Counter(shot.deadline_s for shot in made.shots if shot.kind == 1)
    assert left[0.01] / kinds[1] == pytest.approx(0.5, abs=0.05)
    assert all(shot.deadline_s == math.inf for shot in made.shots if shot.kind == 0)


def test_popular_inputs_follow_zipf() -> None:
    made = plan(Kind(model="m", inputs=100, zipf=1.0), seconds=100)
    counts = [count for _, count in Counter(shot.body for shot in made.shots).most_common()]
    assert counts[0] / len(made.shots) == pytest.approx(1 / sum(1 / n for n in range(1, 101)), rel=0.15)
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.2)


def test_some_callers_give_up() -> None:
    made = plan(Kind(model="m", cancel=Cancellations(share=0.25, after_ms=3)), seconds=30)
    given_up = [shot for shot in made.shots if shot.cancel_s < math.inf]
    assert len(given_up) / len(made.shots) == pytest.approx(0.25, abs=0.03)
    assert {shot.cancel_s for shot in given_up} == {0.003}


def test_the_parts_of_processes_make_up_the_whole() -> None:
    made = plan(Kind(model="m"))
    parts = [made.part(number, 3) for number in range(3)]
    assert sorted(shot for part in parts for shot in part.shots) == list(made.shots)
    closed = plan(Kind(model="m"), arrivals=Arrivals(kind="closed", callers=5))
    assert [closed.part(number, 3).callers for number in range(3)] == [2, 2, 1]


def test_an_open_shape_must_be_given() -> None:
    with pytest.raises(ScenarioError, match=r"'open' leaves the shape of 'words' open: \[-1, -1\]"):
        plan(Kind(model="open"))
    made = plan(Kind(model="open", shapes={"words": [2]}))
    assert list(read(made, 0).inputs[1].shape) == [1, 2]


def test_bodies_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.load.plan.MOST_BYTES", 100)
    with pytest.raises(ScenarioError, match="ask for fewer `inputs`"):
        plan(Kind(model="m", rows={"64": 1.0}))


def test_a_trace_is_replayed_with_its_times_rows_and_deadlines(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"t": 5.0, "rows": 2, "deadline": 0.1}\n{"t": 6.0}\n{"t": 99.0}\n')
    made = plan(Kind(model="m"), arrivals=Arrivals(kind="trace", trace=str(path), speed=2.0))
    assert [(shot.due, shot.deadline_s) for shot in made.shots] == [(0.0, 0.1), (0.5, math.inf)]
    assert list(read(made, made.shots[0].body).inputs[0].shape) == [2, 3]
    path.write_text("nonsense\n")
    with pytest.raises(ScenarioError, match="line 1 of the trace"):
        plan(Kind(model="m"), arrivals=Arrivals(kind="trace", trace=str(path)))


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL"])
def test_contents_have_the_size_of_their_type(datatype: str) -> None:
    widths = {"FP16": 2, "BF16": 2, "FP64": 8, "INT64": 8, "INT8": 1, "UINT8": 1, "BOOL": 1}
    assert len(_values(datatype, [2, 3], np.random.default_rng(0))) == 6 * widths.get(datatype, 4)
