"""The RPC of kairos.v1.Traffic: what reaches the schedulers, as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

from engines.errors import InferError
from engines.request import InferRequest
from server.pb import traffic_pb2 as pb
from server.pb.traffic_pb2_grpc import TrafficServicer
from server.transport.model import ServedModel
from server.transport.status import StatusCodes, text_of

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Traffic"].full_name
INTERVAL_S: Final = 0.1
"""How long arrivals are gathered before they are sent together."""
KEPT: Final = 65_536
"""Most arrivals that wait for a slow reader; the oldest are dropped, and counted."""


class Models(Protocol):
    """The loaded versions."""

    def borrow(self, name: str, version: str = "") -> contextlib.AbstractContextManager[ServedModel]: ...
    def served(self) -> Sequence[ServedModel]: ...


class Lifecycle(Protocol):
    """Whether the server still runs on."""

    async def wait_draining(self) -> None: ...


class TrafficService(TrafficServicer):
    """Answers for one server process."""

    def __init__(self, models: Models, lifecycle: Lifecycle, codes: StatusCodes) -> None:
        self._models = models
        self._lifecycle = lifecycle
        self._codes = codes

    async def Arrivals(self, request: pb.ArrivalsRequest, context: Any) -> AsyncIterator[pb.ArrivalsResponse]:
        """See the protocol file."""
        try:
            with self._models.borrow(request.model, request.version):
                found = [
                    model
                    for model in self._models.served()
                    if model.spec.name == request.model and request.version in ("", str(model.spec.version))
                ]
        except InferError as error:
            await context.abort(self._codes.code(error), text_of(error, ""))
        with contextlib.ExitStack() as stack:
            recorder = Recorder(asyncio.get_running_loop().time())
            for model in found:
                stack.callback(model.engines.listen(recorder.note))
            draining = asyncio.ensure_future(self._lifecycle.wait_draining())
            stack.callback(draining.cancel)
            draining.add_done_callback(lambda _: recorder.some.set())
            yield pb.ArrivalsResponse()
            while not draining.done():
                await recorder.some.wait()
                await asyncio.sleep(INTERVAL_S)
                yield recorder.take()


class Recorder:
    """Gathers arrivals between two messages."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._noted: deque[pb.RecordedArrival] = deque(maxlen=KEPT)
        self._dropped = 0
        self.some = asyncio.Event()
        """Set while there is something to take."""

    def note(self, request: InferRequest, now: float) -> None:
        """A request has come."""
        if len(self._noted) == KEPT:
            self._dropped += 1
        self._noted.append(
            pb.RecordedArrival(
                seconds=now - self._began,
                rows=request.rows,
                deadline_seconds=request.deadline - now,
                priority=request.priority,
                tenant=request.tenant,
            )
        )
        self.some.set()

    def take(self) -> pb.ArrivalsResponse:
        """All that was noted since the last time."""
        message = pb.ArrivalsResponse(arrivals=self._noted, dropped=self._dropped)
        self._noted.clear()
        self._dropped = 0
        self.some.clear()
        return message
