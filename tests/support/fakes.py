"""The service over FakeEngines, inside the test's own event loop: what engines do is the test's to say."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from engines.backends.fake import FakeEngine
from engines.errors import ModelNotFound, NotAllowed, VersionNotFound
from engines.local import LocalInference
from engines.pool import EnginePool
from engines.scheduling.policy import Limits
from engines.scheduling.queue import DeadlineQueue
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType
from server.lifecycle import Lifecycle, Phase
from server.pb import model_config_pb2
from server.pb.grpc_service_pb2_grpc import (
    GRPCInferenceServiceStub,
    add_GRPCInferenceServiceServicer_to_server,
)
from server.telemetry.assembly import NO_TRACING, Telemetry
from server.telemetry.logs import LogOptions, Logs
from server.telemetry.meter import ModelMeter
from server.telemetry.traces import TraceOptions
from server.transport.inflight import Inflight
from server.transport.listen import ListenOptions, TransportKind, create_server
from server.transport.model import ServedModel
from server.transport.repository import IndexLine
from server.transport.service import InferenceService, ServiceOptions
from server.transport.shared_memory import SystemSharedMemory
from server.transport.status import StatusCodes

PATIENCE_S: Final = 30.0
"""Longest wait for another thread; only ever reached by a failing test."""

SIMPLE: Final = ModelSpec(
    name="simple",
    version=1,
    platform="fake",
    inputs=(TensorSpec("INPUT0", DType.INT32, (4,)), TensorSpec("INPUT1", DType.INT32, (4,))),
    outputs=(TensorSpec("OUTPUT0", DType.INT32, (4,)), TensorSpec("OUTPUT1", DType.INT32, (4,))),
    max_rows=8,
)


def add_and_subtract(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """What SIMPLE answers."""
    first, second = inputs["INPUT0"], inputs["INPUT1"]
    return {"OUTPUT0": first + second, "OUTPUT1": first - second}


class Gate:
    """Holds engines up before they run, and notes how many rows they were given."""

    def __init__(self, *, shut: bool = False) -> None:
        self.rows: list[int] = []
        self._passes = 0 if shut else math.inf
        self._changed = threading.Condition()
        self._arrived = threading.Semaphore(0)

    def __call__(self, inputs: Mapping[str, Array]) -> None:
        """For `before` of a FakeEngine."""
        self.rows.append(next(iter(inputs.values())).shape[0])
        self._arrived.release()
        with self._changed:
            assert self._changed.wait_for(lambda: self._passes > 0, PATIENCE_S), "nobody opened the gate"
            self._passes -= 1

    def shut(self) -> None:
        """Whoever comes now waits."""
        self._passes = 0

    def open(self, executions: float = math.inf) -> None:
        """Let so many go on, those who wait already included."""
        with self._changed:
            self._passes = executions
            self._changed.notify_all()

    async def wait_arrival(self) -> None:
        """Wait until one more execution has come to the gate."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=PATIENCE_S), "no engine came to the gate"


async def until(condition: Callable[[], object]) -> None:
    """Give the loop turns until the condition holds, for what offers nothing to wait on."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@dataclass
class FakeModels:
    """The repository as the service sees it."""

    models: dict[tuple[str, str], ServedModel] = field(default_factory=dict)

    @contextlib.contextmanager
    def borrow(self, name: str, version: str = "") -> Iterator[ServedModel]:
        if name not in {known for known, _ in self.models}:
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        model = self.models.get((name, version or "1"))
        if model is None:
            raise VersionNotFound(f"Request for unknown model: '{name}' version {version} is not found")
        yield model

    def ready(self, name: str, version: str = "") -> bool:
        return (name, version or "1") in self.models

    def versions(self, name: str) -> Sequence[str]:
        return [version for known, version in self.models if known == name]

    def served(self) -> Sequence[ServedModel]:
        return list(self.models.values())

    async def index(self, *, ready_only: bool = False) -> Sequence[IndexLine]:
        return [IndexLine(name, version, "READY", "") for name, version in self.models]

    async def load(self, name: str, config_json: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        raise NotAllowed("explicit model load / unload is not allowed if polling is enabled")

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        raise NotAllowed("explicit model load / unload is not allowed if polling is enabled")


def quiet_telemetry() -> Telemetry:
    """Counts, and does nothing else."""
    return Telemetry(TraceOptions(), 0, NO_TRACING, lambda error, outcome: 0, "test")


async def serve_model(
    spec: ModelSpec,
    open_engine: Callable[[], FakeEngine],
    *,
    limits: Limits | None = None,
    default_deadline_s: float = math.inf,
    engines: int = 1,
) -> ServedModel:
    """A model over FakeEngines, each in a thread of its own."""
    limits = limits or Limits(max_rows=max(1, spec.max_rows))
    pool = EnginePool(open_engine, engines, spec.name)
    await pool.open()
    meter = ModelMeter(spec)
    local = LocalInference(spec, pool, DeadlineQueue(limits), limits, meter.observe)
    return ServedModel(
        spec=spec,
        config=model_config_pb2.ModelConfig(name=spec.name),
        limits=limits,
        default_deadline_s=default_deadline_s,
        inference=quiet_telemetry().around(local, meter),
        meter=meter,
        engines=local,
    )


@dataclass
class FakeServer:
    """A service that listens, and what a test wants to reach of it."""

    models: FakeModels
    lifecycle: Lifecycle
    regions: SystemSharedMemory
    transport: Any
    url: str
    stub: Any
    """Of our own generated code, on asyncio."""


@contextlib.asynccontextmanager
async def fake_server(
    *models: ServedModel,
    transport: TransportKind = TransportKind.HTTP2,
    status_codes: StatusCodes = StatusCodes.KAIROS,
    inflight: Inflight | None = None,
) -> AsyncIterator[FakeServer]:
    """Serve these models; at the end the server stops, the models are closed, and no task may be left."""
    listener, port = create_server(ListenOptions(port=0, transport=transport), inflight=inflight)
    found = FakeModels({(model.spec.name, str(model.spec.version)): model for model in models})
    lifecycle, regions = Lifecycle(), SystemSharedMemory()
    telemetry, logs = quiet_telemetry(), Logs(LogOptions())
    options = ServiceOptions(version="test", status_codes=status_codes)
    service = InferenceService(found, lifecycle, regions, telemetry, logs, options)
    service.inflight = inflight
    add_GRPCInferenceServiceServicer_to_server(service, listener)  # type: ignore[no-untyped-call]
    await listener.start()
    lifecycle.advance(Phase.SERVING)
    url = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            yield FakeServer(found, lifecycle, regions, listener, url, stub)
    finally:
        await listener.stop(0)
        for model in models:
            await model.close()
        await telemetry.stop()
