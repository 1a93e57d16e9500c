"""The RPCs of kairos.v1.Feedback: how predictions turned out."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, NoReturn, Protocol

from grpc import StatusCode

from engines.errors import InferError, InvalidRequest
from server.pb import feedback_pb2 as pb
from server.pb.feedback_pb2_grpc import FeedbackServicer
from server.transport.service import Call
from server.transport.status import STATUS, text_of, trailers_of
from server.watch.figures import MetricFigures, VersionFigures, store_figures, version_figures
from server.watch.outcomes import LABEL, Outcome, OutcomeStore, Result
from server.watch.rank import Correlation

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Feedback"].full_name

MAX_OUTCOMES: Final = 4_000
"""Most of one message: more would keep others from the disk for too long."""
MAX_TEXT: Final = 256
"""Longest id, label and name of a metric, in characters."""


class Recording(Protocol):
    """Where outcomes go."""

    @property
    def store(self) -> OutcomeStore | None:
        """None while no model's predictions are recorded."""
        ...


class FeedbackService(FeedbackServicer):
    """Answers for one server process."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    async def Report(self, request: pb.ReportRequest, context: Call) -> pb.ReportResponse:
        """Some outcomes; on disk when this returns."""
        store = await self._opened(context)
        try:
            return _response(await _take(store, request))
        except Exception as error:  # noqa: BLE001  (whatever it is, the caller gets a status)
            await _abort(context, error)

    async def ReportStream(self, request_iterator: AsyncIterator[pb.ReportRequest], context: Call) -> pb.ReportResponse:
        """Many outcomes, message by message."""
        store = await self._opened(context)
        results: Counter[Result] = Counter()
        try:
            async for request in request_iterator:
                results += await _take(store, request)
        except Exception as error:  # noqa: BLE001  (as above)
            await _abort(context, error)
        return _response(results)

    async def Status(self, request: pb.FeedbackStatusRequest, context: Call) -> pb.FeedbackStatusResponse:
        """What is kept, and how the models do."""
        store = await self._opened(context)
        try:
            kept, versions = await asyncio.to_thread(
                lambda: (store_figures(store.path), version_figures(store.path, time.time(), request.model))
            )
        except OSError as error:
            await _abort(context, error)
        counted = store.statistics()
        return pb.FeedbackStatusResponse(
            predictions=kept.predictions, outcomes=kept.outcomes, pending=kept.pending, size_bytes=kept.size_bytes,
            models=map(_model, versions),
            without_id=counted.without_id, repeated_ids=counted.repeated, dropped=counted.dropped,
        )  # fmt: skip

    async def _opened(self, context: Call) -> OutcomeStore:
        store = self._recording.store
        if store is None:
            text = "no model's predictions are recorded: none is watched or captured, or there is no state directory"
            await context.abort(StatusCode.FAILED_PRECONDITION, text)
        return store


async def _take(store: OutcomeStore, request: pb.ReportRequest) -> Counter[Result]:
    if len(request.outcomes) > MAX_OUTCOMES:
        raise InvalidRequest(f"{len(request.outcomes)} outcomes in a message; at most {MAX_OUTCOMES}")
    now = time.time()
    outcomes = list(read_outcomes(request.outcomes, now))
    if not outcomes:
        return Counter()
    # Shielded: a caller who leaves does not take back what it reported.
    return await asyncio.shield(asyncio.wrap_future(store.report(outcomes, now)))


def read_outcomes(messages: Iterable[pb.Outcome], now: float) -> Iterator[Outcome]:
    """One for each label and metric. Raises InvalidRequest, naming the first that is wrong."""
    for number, each in enumerate(messages):
        if reason := _fault(each):
            raise InvalidRequest(f"outcome {number}: {reason}")
        key = (each.model, each.id, each.row)
        at = each.time or now
        if each.label:
            yield Outcome(*key, LABEL, each.label, 0.0, at)
        if each.metric:
            yield Outcome(*key, each.metric, "", each.value, at)


def _fault(each: pb.Outcome) -> str:
    if not each.model or not each.id:
        return "needs a model, and the id of a request"
    if not each.label and not each.metric:
        return "says neither a label nor a metric"
    if max(len(each.model), len(each.id), len(each.label), len(each.metric)) > MAX_TEXT:
        return f"model, id, label and metric have at most {MAX_TEXT} characters"
    if not math.isfinite(each.value) or not math.isfinite(each.time) or each.time < 0.0:
        return "value and time must be finite, and no time is before 1970"
    return ""


async def _abort(context: Call, error: Exception) -> NoReturn:
    if isinstance(error, InferError):
        code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), StatusCode.INTERNAL)
        await context.abort(code, text_of(error), trailers_of(error))
    await context.abort(StatusCode.INTERNAL, f"outcomes cannot be stored or read: {error}")


def _response(results: Counter[Result]) -> pb.ReportResponse:
    return pb.ReportResponse(**{result.value: results[result] for result in Result})


def _model(found: VersionFigures) -> pb.ModelOutcomes:
    return pb.ModelOutcomes(
        model=found.model, version=str(found.version), labelled=found.labelled, accuracy=found.accuracy,
        calibration_error=found.calibration_error,
        metrics=[_metric(name, metric) for name, metric in found.metrics.items()],
    )  # fmt: skip


def _metric(name: str, found: MetricFigures) -> pb.MetricOutcomes:
    return pb.MetricOutcomes(
        name=name, samples=found.samples, mean=found.mean,
        confidence=_correlation(found.confidence), drift=_correlation(found.drift),
    )  # fmt: skip


def _correlation(found: Correlation) -> pb.Correlation:
    return pb.Correlation(value=found.value, low=found.low, high=found.high, samples=found.samples)
