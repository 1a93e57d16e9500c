"""The composition root: the one place that names every class and puts them together."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engines.backends.cores import available_cores
from engines.backends.onnxruntime import OnnxRuntimeEngine, SessionSource
from engines.backends.sweep import Layout, choose, layouts
from engines.errors import InferError, LoadFailed
from engines.inference import Inference
from engines.local import LocalInference
from engines.pool import EnginePool
from engines.repository.definition import Definition
from engines.repository.lifecycle import State
from engines.repository.manager import ModelManager, RepositoryOptions
from engines.request import InferRequest
from engines.scheduling.queue import DeadlineQueue
from engines.validation import RequestChecker
from server.lifecycle import Lifecycle, Phase, stop_signals
from server.pb import grpc_service_pb2, grpc_service_pb2_grpc
from server.telemetry.exporter import ModelCollector, start_exporter
from server.telemetry.logs import LogOptions, Logs
from server.telemetry.metered import MeteredInference, ModelMeter
from server.telemetry.traces import TraceOptions, Tracer
from server.transport.health import HealthService
from server.transport.listen import ListenOptions, create_server
from server.transport.model import ServedModel
from server.transport.reflection import reflection_service
from server.transport.repository import ServedModels
from server.transport.service import InferenceService, ServiceOptions
from server.transport.shared_memory import SystemSharedMemory

log = logging.getLogger(__name__)

VERSION: Final = metadata.version("kairos")
SERVICE: Final = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
ABANDON_BEFORE_S: Final = 1.0
"""How long before the end of a drain those who still wait are told, so that the word reaches them."""

CLOSING_S: Final = 5.0
"""How long after a drain engines may take to end their last batches, which nobody waits for any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Everything that can be said about a server: only each component's own options."""

    repository: RepositoryOptions
    listen: ListenOptions = field(default_factory=ListenOptions)
    service: ServiceOptions = field(default_factory=lambda: ServiceOptions(version=VERSION))
    logs: LogOptions = field(default_factory=LogOptions)
    traces: TraceOptions = field(default_factory=TraceOptions)
    metrics_port: int | None = 8002
    """Port of /metrics on the same host. 0: any free one. None: no metrics."""
    exit_timeout_s: float = 30.0
    """Longest drain. 0: end at once, whoever waits is told so."""
    exit_on_error: bool = False
    """Whether a model that cannot be loaded at the start ends the server."""
    cache_dir: Path | None = None
    """Folder for optimised graphs. None: optimise at each start."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a started server listens."""

    host: str
    grpc_port: int
    metrics_port: int | None


class ModelOpener:
    """Brings a version up: session, layout, engines, warm-up, and the stack of layers above them."""

    def __init__(self, tracer: Tracer, cache_dir: Path | None) -> None:
        self._tracer = tracer
        self._cache_dir = cache_dir
        # Models that are measured at the same time would measure each other.
        self._measuring = threading.Lock()

    async def __call__(self, definition: Definition) -> ServedModel:
        """Raises LoadFailed, or whatever the model's own runtime says."""
        spec = definition.spec
        open_engine, layout = await asyncio.to_thread(self._open_session, definition)
        name = f"{spec.name}:{spec.version}"
        pool = EnginePool(open_engine, layout.instances, name, inline=layout.inline)
        await pool.open()
        meter = ModelMeter(spec)
        local = LocalInference(spec, pool, DeadlineQueue(definition.limits), definition.limits, meter.observe)
        try:
            await self._warm_up(definition, local)
        except BaseException:
            await local.close()
            raise
        meter.reset()
        log.info(
            "%s is up: %d engine(s) with %d thread(s)%s, batches of up to %d rows",
            *(name, layout.instances, layout.threads, ", on the event loop" if layout.inline else ""),
            max(1, spec.max_rows),
        )
        return ServedModel(
            spec=spec,
            config=definition.config,
            limits=definition.limits,
            default_deadline_s=definition.default_deadline_s,
            inference=compose(local, meter, self._tracer),
            meter=meter,
            engines=local,
        )

    def _open_session(self, definition: Definition) -> tuple[Callable[[], OnnxRuntimeEngine], Layout]:
        spec, options = definition.spec, definition.engine
        source = SessionSource(definition.model_file, spec, options, self._cache_dir)
        candidates = layouts(available_cores(), options.instances, options.intra_op_threads)
        layout = candidates[0]
        sessions = {layout.threads: source.open(layout.threads)}

        def open_with(threads: int) -> OnnxRuntimeEngine:
            if threads not in sessions:
                sessions[threads] = source.open(threads)
            return OnnxRuntimeEngine(spec, sessions[threads])

        try:
            with self._measuring:
                layout, measured = choose(spec, candidates, open_with)
            log.debug("%s:%d: rows a second by layout: %s", spec.name, spec.version, measured)
        except Exception as error:  # noqa: BLE001  (made-up inputs may be refused; real ones will do)
            log.info("%s:%d cannot be measured with made-up inputs: %s", spec.name, spec.version, error)
        session = sessions[layout.threads]
        return lambda: OnnxRuntimeEngine(spec, session), layout

    async def _warm_up(self, definition: Definition, local: LocalInference) -> None:
        spec = definition.spec
        checker = RequestChecker(spec)
        for warmup in definition.warmups:
            try:
                inputs, rows = checker.inputs(await asyncio.to_thread(warmup.tensors))
                request = InferRequest(
                    model=spec.name, version=spec.version, inputs=inputs, wanted=checker.wanted(()), rows=rows
                )
                for _ in range(warmup.count):
                    await local.infer(request)
            except InferError as error:
                raise LoadFailed(f"model_warmup '{warmup.name}' failed: {error}") from error


def compose(model: Inference, meter: ModelMeter, tracer: Tracer) -> Inference:
    """The layers around a model, innermost first."""
    return MeteredInference(model, meter, tracer)


class Transport(Protocol):
    """A gRPC server, whichever it is."""

    async def start(self) -> None: ...
    async def stop(self, grace: float | None) -> None: ...


class Server:
    """One server process: start, run, drain."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.health = HealthService()
        self.lifecycle = Lifecycle(self._phase_changed)
        self.logs = Logs(options.logs)
        self.tracer = Tracer(options.traces)
        self.regions = SystemSharedMemory()
        self.manager = ModelManager(options.repository, ModelOpener(self.tracer, options.cache_dir))
        self.models = ServedModels(self.manager)
        self._stop_exporter: Callable[[], None] = lambda: None
        self._transport: Transport | None = None

    async def start(self) -> Addresses:
        """Load the models, then listen. Raises LoadFailed or OSError."""
        options = self.options
        server, grpc_port = create_server(options.listen)
        self._transport = server
        service = InferenceService(self.models, self.lifecycle, self.regions, self.tracer, self.logs, options.service)
        self._register(server, service)
        metrics_port = None
        if options.metrics_port is not None:
            collector = ModelCollector(self.models.served)
            metrics_port, self._stop_exporter = start_exporter(options.listen.host, options.metrics_port, collector)
        # Health and metadata answer while models load; inference says that they are not ready.
        await server.start()
        self.manager.subscribe(self._model_changed)
        failed = await self.manager.start()
        for status in failed:
            log.error("%s:%s could not be loaded: %s", status.name, status.version, status.reason)
        if failed and options.exit_on_error:
            raise LoadFailed(f"{len(failed)} model version(s) could not be loaded")
        self.lifecycle.advance(Phase.SERVING)
        return Addresses(options.listen.host, grpc_port, metrics_port)

    async def drain(self) -> None:
        """Take nothing new, answer what can be answered in time, tell the rest, free everything."""
        self.lifecycle.advance(Phase.DRAINING)
        self.health.close()
        bound = self.options.exit_timeout_s
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(max(0.0, bound - ABANDON_BEFORE_S), self._abandon)
        if self._transport is not None:
            await self._transport.stop(bound)
        alarm.cancel()
        self._abandon()
        try:
            async with asyncio.timeout(CLOSING_S):
                await self.manager.close()
        except TimeoutError:
            log.critical("engines still run %.0f s after the end of the drain; leaving without them", CLOSING_S)
        self.tracer.close()
        await asyncio.to_thread(self._stop_exporter)
        self.lifecycle.advance(Phase.STOPPED)

    def _abandon(self) -> None:
        for model in self.models.served():
            model.engines.abandon()

    def _register(self, server: Any, service: InferenceService) -> None:  # noqa: ANN401  (either transport)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection_service([SERVICE, health, reflection]), server
        )

    def _phase_changed(self, phase: Phase) -> None:
        for service in ("", SERVICE):
            self.health.set(service, phase is Phase.SERVING)
        if phase is not Phase.SERVING:
            for name in {model.spec.name for model in self.models.served()}:
                self.health.set(name, serving=False)

    def _model_changed(self, name: str, version: int, state: State, reason: str) -> None:
        log.debug("%s:%d is %s %s", name, version, state.value, reason)
        self.health.set(name, self.manager.ready(name) and not self.lifecycle.draining)


async def run(options: ServerOptions, started: Callable[[Addresses, Server], None]) -> None:
    """A whole life: start, call `started`, run until SIGTERM or SIGINT, drain."""
    server = Server(options)
    server.logs.install()
    async with stop_signals() as asked:
        starting = asyncio.ensure_future(server.start())
        waiting = asyncio.ensure_future(asked.wait())
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                started(starting.result(), server)
                await waiting
            else:
                starting.cancel()
        finally:
            waiting.cancel()
            await server.drain()
