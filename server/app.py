"""The composition root: the one place that names every class and puts them together."""

from __future__ import annotations

import asyncio
import functools
import logging
import platform
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.core import Metric

from engines.backends.cores import available_cores
from engines.backends.onnxruntime import OnnxRuntimeEngine, SessionSource
from engines.backends.sweep import Layout, choose, layouts, measure_costs
from engines.costs import costs_file, load_costs, save_costs
from engines.errors import InferError, LoadFailed
from engines.inference import Inference
from engines.local import LocalInference
from engines.pool import EnginePool
from engines.repository.definition import Definition
from engines.repository.lifecycle import State
from engines.repository.manager import ModelManager, RepositoryOptions
from engines.request import InferRequest
from engines.scheduling.factory import make_scheduler
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import Policy
from engines.validation import RequestChecker
from server.cache.cached import CachedInference
from server.cache.settings import cache_options_of
from server.cache.store import Store, StoreOptions, open_store
from server.lifecycle import Lifecycle, Phase, stop_signals
from server.pb import cache_pb2_grpc, grpc_service_pb2, grpc_service_pb2_grpc
from server.telemetry.assembly import NO_TRACING, Telemetry
from server.telemetry.cache import cache_metrics
from server.telemetry.exporter import Source
from server.telemetry.logs import LogOptions, Logs
from server.telemetry.meter import ModelMeter
from server.telemetry.models import model_metrics, tag_metrics
from server.telemetry.otel import Environment
from server.telemetry.process import server_metrics
from server.telemetry.traces import TraceOptions
from server.telemetry.transport import transport_metrics
from server.transport import cache as cache_service
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
RUNTIME: Final = f"onnxruntime {metadata.version('onnxruntime')} on {platform.machine()}"
"""What else may change an answer in its last bits; servers of different kinds share no answers."""
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
    otel: Environment = NO_TRACING
    """What the OTEL_* variables say."""
    cache: StoreOptions = field(default_factory=StoreOptions)
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

    def __init__(self, telemetry: Telemetry, store: Store, cache_dir: Path | None) -> None:
        self._telemetry = telemetry
        self._store = store
        self._cache_dir = cache_dir
        # Models that are measured at the same time would measure each other.
        self._measuring = threading.Lock()

    async def __call__(self, definition: Definition) -> ServedModel:
        """Raises LoadFailed, or whatever the model's own runtime says."""
        spec = definition.spec
        cache_options = cache_options_of(definition.config.response_cache)
        open_engine, layout = await asyncio.to_thread(self._open_session, definition)
        cost, costs_file = await asyncio.to_thread(self._costs, definition, open_engine, layout)
        name = f"{spec.name}:{spec.version}"
        pool = EnginePool(open_engine, layout.instances, name, inline=layout.inline)
        await pool.open()
        meter = ModelMeter(spec)
        observe = self._telemetry.observer(meter)
        scheduler = make_scheduler(definition.policy, definition.limits, definition.deadlines, cost, layout.instances)
        local = LocalInference(spec, pool, scheduler, definition.limits, observe)
        if costs_file is not None:
            local.closed = lambda: save_costs(costs_file, cost)
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
        cache = None
        if cache_options is not None and self._store.serves(cache_options):
            cache = CachedInference(local, spec, self._store, cache_options)
            meter.cache_misses = functools.partial(_misses, cache)
        return ServedModel(
            spec=spec,
            config=definition.config,
            limits=definition.limits,
            default_deadline_s=definition.default_deadline_s,
            inference=compose(local, cache, meter, self._telemetry),
            meter=meter,
            engines=local,
            cache=cache,
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
        if not definition.steady:  # what was measured says nothing of the next request
            layout = replace(layout, inline=False)
        session = sessions[layout.threads]
        return lambda: OnnxRuntimeEngine(spec, session), layout

    def _costs(
        self, definition: Definition, open_engine: Callable[[], OnnxRuntimeEngine], layout: Layout
    ) -> tuple[CostModel, Path | None]:
        """What executions cost in this layout, from the last time or measured now, and the file to keep it in."""
        spec = definition.spec
        cost = CostModel(
            definition.limits.max_rows, definition.limits.allowed_rows, quantile=definition.deadlines.quantile
        )
        if definition.policy is Policy.FIFO:
            return cost, None
        path = None
        if self._cache_dir is not None:
            path = costs_file(self._cache_dir, spec, layout.instances, layout.threads)
            if load_costs(path, cost):
                return cost, path
        try:
            with self._measuring:
                engine = open_engine()
                try:
                    cost.seed(measure_costs(engine, spec, cost.sizes))
                finally:
                    engine.close()
        except Exception as error:  # noqa: BLE001  (as above: it is then learned from real requests)
            log.info("%s:%d: costs cannot be measured with made-up inputs: %s", spec.name, spec.version, error)
        else:
            if path is not None:
                save_costs(path, cost)
        return cost, path

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


def compose(model: Inference, cache: CachedInference | None, meter: ModelMeter, telemetry: Telemetry) -> Inference:
    """The layers around a model, innermost first; the cache, where there is one, is around the model already."""
    return telemetry.around(model if cache is None else cache, meter)


def _misses(cache: CachedInference) -> tuple[int, float]:
    counted = cache.statistics()
    return counted.misses, counted.miss_s


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
        self.telemetry = Telemetry(options.traces, options.logs.access_rate, options.otel, self._code, VERSION)
        self.regions = SystemSharedMemory()
        self.store = open_store(options.cache, RUNTIME)
        self.manager = ModelManager(options.repository, ModelOpener(self.telemetry, self.store, options.cache_dir))
        self.models = ServedModels(self.manager)
        self._transport: Transport | None = None

    async def start(self) -> Addresses:
        """Load the models, then listen. Raises LoadFailed or OSError."""
        options = self.options
        server, grpc_port = create_server(options.listen)
        self._transport = server
        service = InferenceService(
            self.models, self.lifecycle, self.regions, self.telemetry, self.logs, options.service
        )
        self._register(server, service)
        metrics_port = None
        if options.metrics_port is not None:
            metrics_port = self.telemetry.start(options.listen.host, options.metrics_port, self._sources())
        self.store.start()
        # Health and metadata answer while models load; inference says that they are not ready.
        await server.start()
        self.manager.subscribe(self._model_changed)
        self.manager.subscribe(self.telemetry.load_failures)
        failed = await self.manager.start()
        for status in failed:
            log.error("%s:%s could not be loaded: %s", status.name, status.version, status.reason)
        if failed and options.exit_on_error:
            raise LoadFailed(f"{len(failed)} model version(s) could not be loaded")
        self.lifecycle.advance(Phase.SERVING)
        return Addresses(options.listen.host, grpc_port, metrics_port)

    async def drain(self) -> bool:
        """Take nothing new, answer what can be answered in time, tell the rest, free everything.

        Returns whether engines still run: the process must then end without waiting for their threads.
        """
        self.lifecycle.advance(Phase.DRAINING)
        self.health.close()
        bound = self.options.exit_timeout_s
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(max(0.0, bound - ABANDON_BEFORE_S), self._abandon)
        if self._transport is not None:
            await self._transport.stop(bound)
        alarm.cancel()
        self._abandon()
        left = False
        try:
            async with asyncio.timeout(CLOSING_S):
                await self.manager.close()
        except TimeoutError:
            left = True
            log.critical("engines still run %.0f s after the end of the drain; leaving without them", CLOSING_S)
        await self.store.close()
        await self.telemetry.stop()
        self.lifecycle.advance(Phase.STOPPED)
        return left

    def _cache_metrics(self) -> Iterable[Metric]:
        models = [
            (model.spec.name, model.spec.version, model.cache.statistics())
            for model in self.models.served()
            if model.cache is not None
        ]
        return cache_metrics(models, self.store.statistics())

    def _abandon(self) -> None:
        for model in self.models.served():
            model.engines.abandon()

    def _sources(self) -> list[Source]:
        """What the exporter reads, on the event loop."""
        time = asyncio.get_running_loop().time
        sources: list[Source] = [
            lambda: [
                tag_metrics(
                    (model.spec.name, model.spec.version, model.config.metric_tags) for model in self.models.served()
                )
            ],
            lambda: model_metrics(self.models.served(), self.telemetry.unrouted, time()),
            lambda: server_metrics(
                VERSION, self.manager.statistics(), self.telemetry.load_failures, serving=self.lifecycle.ready
            ),
            self._cache_metrics,
        ]
        statistics = getattr(self._transport, "statistics", None)
        if statistics is not None:  # grpcio's server keeps none
            sources.append(lambda: transport_metrics(statistics()))
        return sources

    def _code(self, error: BaseException, outcome: str) -> int:
        """The number of the gRPC status that a caller gets."""
        if isinstance(error, InferError):
            status = self.options.service.status_codes.code(error)
        else:
            gone = {"expired": StatusCode.DEADLINE_EXCEEDED, "cancelled": StatusCode.CANCELLED}
            status = gone.get(outcome, StatusCode.INTERNAL)
        return int(status.value[0])

    def _register(self, server: Any, service: InferenceService) -> None:  # noqa: ANN401  (either transport)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        cache_pb2_grpc.add_CacheServicer_to_server(cache_service.CacheService(self.store, self.models), server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection_service([SERVICE, cache_service.SERVICE, health, reflection]), server
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


async def run(options: ServerOptions, started: Callable[[Addresses, Server], None]) -> bool:
    """A whole life: start, call `started`, run until SIGTERM or SIGINT, drain. Returns what `Server.drain` does."""
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
            left = await server.drain()
    return left
