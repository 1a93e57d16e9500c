"""The RPC of kairos.v1.Watch: what the watch sees of each model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from server.pb import watch_pb2 as pb
from server.pb.watch_pb2_grpc import WatchServicer
from server.transport.model import ServedModel
from server.watch.readings import Reading

if TYPE_CHECKING:  # which would import scipy, for servers that watch nothing, too
    from server.watch.compare import Comparison, Distribution
    from server.watch.monitor import Monitor
    from server.watch.tap import Tap

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Watch"].full_name
SHOWN_LOOKS: Final = 240
"""Most looks in an answer, evenly from all that are remembered."""


class Served(Protocol):
    """The loaded versions."""

    def served(self) -> Sequence[ServedModel]: ...


class WatchService(WatchServicer):
    """Answers for one server process."""

    def __init__(self, models: Served) -> None:
        self._models = models

    async def Status(self, request: pb.WatchStatusRequest, context: Any) -> pb.WatchStatusResponse:
        """Readings of each watched version; with details, distributions and history."""
        models = []
        for model in self._models.served():
            watched = model.watched
            if watched is None or watched.monitor is None or request.model not in ("", model.spec.name):
                continue
            told = _told(model, watched.monitor, watched.tap)
            if request.details:
                await asyncio.to_thread(_add_details, told, watched.monitor)
            models.append(told)
        return pb.WatchStatusResponse(models=models)


def _told(model: ServedModel, monitor: Monitor, tap: Tap) -> pb.WatchedModel:
    now, taken = monitor.statistics(), tap.statistics()
    return pb.WatchedModel(
        name=model.spec.name, version=str(model.spec.version), state=now.state.value, note=now.note,
        reference_rows=now.reference_rows, window_rows=now.window_rows, looks=now.looks,
        alarm_p_value=now.alarm_p_value, answered=taken.answered, sampled=taken.sampled, dropped=taken.dropped,
        readings=_readings(now.readings),
    )  # fmt: skip


def _add_details(told: pb.WatchedModel, monitor: Monitor) -> None:
    now = monitor.statistics()
    inputs, answers = monitor.distributions()
    last = now.last
    told.columns.extend(_columns(inputs, None if last is None else last.inputs, answer=False))
    told.columns.extend(_columns(answers, None if last is None else last.answers, answer=True))
    step = -(-len(now.history) // SHOWN_LOOKS) or 1
    for at, readings in now.history[::-1][::step][::-1]:
        told.history.append(pb.WatchLook(at=at, readings=_readings(readings)))


def _columns(
    distributions: Sequence[Distribution], compared: Comparison | None, *, answer: bool
) -> Iterator[pb.WatchedColumn]:
    for index, shown in enumerate(distributions):
        column = pb.WatchedColumn(
            name=shown.column.name, tensor=shown.column.tensor, answer=answer, categories=shown.column.categories,
            edges=shown.edges, reference=shown.reference, window=shown.window, wasserstein=shown.wasserstein,
            p_value=1.0,
        )  # fmt: skip
        if compared is not None:
            score = compared.columns[index]
            column.psi, column.distance = score.psi, score.distance
            column.missing, column.p_value = score.missing, score.p_value
        yield column


def _readings(readings: Mapping[str, Reading]) -> list[pb.WatchReading]:
    return [
        pb.WatchReading(
            signal=each.signal, value=each.value, alarm=each.alarm, samples=each.samples, at=each.at,
            p_value=each.p_value,
        )
        for each in readings.values()
    ]  # fmt: skip
