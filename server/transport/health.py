"""grpc.health.v1: Check and Watch, of the server (empty service) and of each model by name.

The library's own asyncio servicer forgets a service's watchers as soon as one of them leaves; here each watcher
waits for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn, Protocol

from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Call(Protocol):
    """What this service uses of a gRPC call."""

    async def abort(self, code: StatusCode, details: str = "") -> NoReturn: ...


class HealthService(HealthServicer):  # type: ignore[misc]  # the library has no types
    """Says who serves. `set` is called from the event loop."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def set(self, service: str, serving: bool | None) -> None:
        """Whether a service takes calls; None when it is no longer known."""
        if serving is None:
            self._serving.pop(service, None)
        else:
            self._serving[service] = serving
        self._wake()

    def close(self) -> None:
        """End all watches, each with its last word: they would hold up a drain."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        # All who wait wake up and look; those who come later wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Call) -> Any:
        """The status of one service; NOT_FOUND when it is unknown."""
        serving = self._serving.get(request.service)
        if serving is None:
            await context.abort(StatusCode.NOT_FOUND, f"unknown service '{request.service}'")
        return health_pb2.HealthCheckResponse(status=SERVING if serving else NOT_SERVING)

    async def Watch(self, request: Any, context: Call) -> AsyncIterator[Any]:
        """The status of one service now, and at each change."""
        last = None
        while True:
            changed = self._changed
            serving = self._serving.get(request.service)
            status = UNKNOWN if serving is None else SERVING if serving else NOT_SERVING
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue  # it may have changed again while that was sent
            if self._closed:
                await context.abort(StatusCode.UNAVAILABLE, "the server is shutting down")
            await changed.wait()
