"""The Feedback service, on both transports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.pb import feedback_pb2 as pb
from server.pb.feedback_pb2_grpc import FeedbackStub
from server.transport.listen import TransportKind
from server.watch.outcomes import OutcomeStore, Prediction
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import serving

GOOD = pb.Outcome(model="m", id="a", label="1")


def call(tmp_path: Path, method: str, request: Any, *, kind: TransportKind = TransportKind.HTTP2) -> Any:
    """One call to a server that keeps its state in tmp_path; a list is a stream."""

    async def main() -> Any:
        async with (
            serving(tmp_path / "models", transport=kind, state_dir=tmp_path) as (_, url),
            grpc.aio.insecure_channel(url) as channel,
        ):
            stub = FeedbackStub(channel)  # type: ignore[no-untyped-call]
            return await getattr(stub, method)(request, timeout=30)

    onnx_models.write(
        tmp_path / "models", "scale", proto=onnx_models.scale(), config=f"max_batch_size: 8\n{ONE_ENGINE}"
    )
    return asyncio.run(main())


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A state directory in which another server recorded one prediction."""
    store = OutcomeStore(tmp_path)
    store.open()
    store.record([Prediction("m", "a", 0, 1, 1e9, 1, "one", 0.9)])
    store.close()
    return tmp_path


@pytest.mark.parametrize("kind", TransportKind)
def test_outcomes_one_by_one_and_as_a_stream(recorded: Path, kind: TransportKind) -> None:
    request = pb.ReportRequest(outcomes=[GOOD, pb.Outcome(model="m", id="a", metric="x", value=2.0, label="1")])
    assert call(recorded, "Report", request, kind=kind) == pb.ReportResponse(accepted=2, duplicate=1)
    assert call(recorded, "ReportStream", [request, pb.ReportRequest(), request], kind=kind) == pb.ReportResponse(
        duplicate=6
    )
    status = call(recorded, "Status", pb.FeedbackStatusRequest(model="m"), kind=kind)
    assert (status.predictions, status.outcomes, status.pending) == (1, 2, 0)
    (model,) = status.models
    assert (model.model, model.version, model.labelled, model.accuracy) == ("m", "1", 1, 1.0)
    assert [(metric.name, metric.mean) for metric in model.metrics] == [("x", 2.0)]


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (pb.Outcome(id="a", label="1"), "outcome 1: needs a model"),
        (pb.Outcome(model="m", label="1"), "needs a model, and the id"),
        (pb.Outcome(model="m", id="a"), "neither a label nor a metric"),
        (pb.Outcome(model="m", id="a", label="x" * 257), "at most 256 characters"),
        (pb.Outcome(model="m", id="a", metric="x", value=float("nan")), "must be finite"),
        (pb.Outcome(model="m", id="a", label="1", time=-1.0), "no time is before 1970"),
    ],
)
def test_a_bad_outcome_is_refused_with_all_others_of_its_message(
    recorded: Path, outcome: pb.Outcome, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=reason) as error:
        call(recorded, "Report", pb.ReportRequest(outcomes=[GOOD, outcome]))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert call(recorded, "Report", pb.ReportRequest(outcomes=[GOOD])).accepted == 1


def test_too_many_at_once(recorded: Path) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="4001 outcomes in a message; at most 4000"):
        call(recorded, "Report", pb.ReportRequest(outcomes=[GOOD] * 4_001))


def test_where_nothing_is_recorded(tmp_path: Path) -> None:
    for method, request in (
        ("Report", pb.ReportRequest()),
        ("ReportStream", []),
        ("Status", pb.FeedbackStatusRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="none is watched or captured") as error:
            call(tmp_path, method, request)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
