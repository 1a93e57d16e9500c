"""The composition root: with `opener`, the one place that names every class and puts them together."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.core import Metric

from engines.backends.cuda.find import find_cuda
from engines.backends.gpus import Gpus
from engines.errors import InferError, LoadFailed
from engines.inference import Inference
from engines.repository.lifecycle import State
from engines.repository.manager import ModelManager, RepositoryOptions
from engines.repository.model import Steering
from engines.repository.sources.opening import SourceOptions, Sources
from engines.validation import RequestLimits
from engines.watchdog import HungEngines, Patience
from server.cache import replies
from server.cache.store import StoreOptions, open_store
from server.lifecycle import Lifecycle, Phase, stop_signals
from server.loop import spare_collector
from server.opener import ModelOpener
from server.pb import (
    cache_pb2_grpc,
    feedback_pb2_grpc,
    grpc_service_pb2,
    grpc_service_pb2_grpc,
    rollout_pb2_grpc,
    traffic_pb2_grpc,
    watch_pb2_grpc,
)
from server.rollout.rollouts import Rollouts
from server.rollout.store import RolloutStore
from server.telemetry.assembly import NO_TRACING, Telemetry
from server.telemetry.cache import cache_metrics
from server.telemetry.exporter import Source
from server.telemetry.families import gauge
from server.telemetry.feedback import feedback_metrics
from server.telemetry.logs import LogOptions, Logs
from server.telemetry.models import model_metrics, tag_metrics
from server.telemetry.otel import Environment
from server.telemetry.process import server_metrics
from server.telemetry.rollout import rollout_metrics
from server.telemetry.sources import source_metrics
from server.telemetry.traces import TraceOptions
from server.telemetry.transport import inflight_metrics, transport_metrics
from server.telemetry.watch import WatchedVersion, watch_metrics
from server.transport import cache as cache_service
from server.transport import feedback as feedback_service
from server.transport import rollout as rollout_service
from server.transport import traffic
from server.transport import watch as watch_service
from server.transport.device_memory import CudaSharedMemory
from server.transport.doors import AccessOptions, Doors
from server.transport.health import HealthService
from server.transport.inflight import Inflight
from server.transport.listen import ListenOptions
from server.transport.model import ServedModel
from server.transport.recall import Recall, Replacing
from server.transport.reflection import reflection_service
from server.transport.repository import ServedModels
from server.transport.service import InferenceService, ServiceOptions
from server.transport.shared_memory import SystemSharedMemory
from server.watch.feedback import Feedback, Readable
from server.watch.trigger_file import TriggerOptions
from server.watch.watcher import Watcher

log = logging.getLogger(__name__)

VERSION: Final = metadata.version("kairos")
SERVICE: Final = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
RUNTIME: Final = f"onnxruntime {metadata.version('onnxruntime')} on {platform.machine()}"
"""What else may change an answer in its last bits; servers of different kinds share no answers."""
ABANDON_BEFORE_S: Final = 1.0
"""How long before the end of a drain those who still wait are told, so that the word reaches them."""

CLOSING_S: Final = 5.0
"""How long after a drain engines may take to end their last batches, which nobody waits for any more, and looks at
model sources to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Everything that can be said about a server: only each component's own options."""

    repository: RepositoryOptions
    sources: SourceOptions = field(default_factory=SourceOptions)
    """Repositories that are no folders; those that are stand in `repository`."""
    listen: ListenOptions = field(default_factory=ListenOptions)
    requests: RequestLimits = field(default_factory=RequestLimits)
    access: AccessOptions = field(default_factory=AccessOptions)
    service: ServiceOptions = field(default_factory=lambda: ServiceOptions(version=VERSION))
    logs: LogOptions = field(default_factory=LogOptions)
    traces: TraceOptions = field(default_factory=TraceOptions)
    otel: Environment = NO_TRACING
    """What the OTEL_* variables say."""
    cache: StoreOptions = field(default_factory=StoreOptions)
    metrics_port: int | None = 8002
    """Port of /metrics on the same host. 0: any free one. None: no metrics."""
    drain_delay_s: float = 0.0
    """How long a server that drains still takes new calls, so that balancers notice first. 0: none at all."""
    exit_timeout_s: float = 30.0
    """Longest drain. 0: end at once, whoever waits is told so."""
    patience: Patience = field(default_factory=Patience)
    """When engines count as hung, and how many of them the process bears before it drains and ends."""
    exit_on_error: bool = False
    """Whether a model that cannot be loaded at the start ends the server."""
    cache_dir: Path | None = None
    """Folder for optimised graphs. None: optimise at each start."""
    state_dir: Path | None = None
    """Folder for what must outlive the server. None: nothing does."""
    triggers: TriggerOptions | None = None
    """What to do when models change. None: nothing."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a started server listens."""

    host: str
    grpc_port: int
    metrics_port: int | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a server ended."""

    threads_left: bool
    """Whether engines, or looks at model sources, still run: the process must then end without waiting for their
    threads."""
    hopeless: bool
    """Whether it ended by itself, because too many engines hang: whoever started it should do so again."""


class Server:
    """One server process: start, run, drain."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.health = HealthService()
        self.lifecycle = Lifecycle(self._phase_changed)
        self.logs = Logs(options.logs)
        self.telemetry = Telemetry(options.traces, options.logs.access_rate, options.otel, self._code, VERSION)
        self.regions = SystemSharedMemory()
        limit = options.listen.max_inflight_bytes
        self.inflight = None if limit is None else Inflight(limit)
        self.store = open_store(options.cache, RUNTIME)
        self.sources = Sources(options.sources) if options.sources.uris else None
        self.rollouts = Rollouts(RolloutStore(options.state_dir), _dress)
        self.gpus = Gpus(find_cuda, _device_lost)
        self.hopeless = asyncio.Event()
        self.hung = HungEngines(options.patience, self._too_many_hang)
        self.feedback = Feedback(options.state_dir, options.triggers, self._watched)
        self.rollouts.signals = self.feedback
        self.watcher = Watcher((self.feedback.prediction_sink, self.feedback.capture_sink))
        opener = ModelOpener(self.telemetry, self.store, self.watcher, self.hung, options.cache_dir, options.requests)
        opener.gpus = self.gpus
        self.manager = manage(options.repository, opener, self.sources, self.rollouts)
        self.models = ServedModels(self.manager, self.rollouts)
        self._doors: Doors | None = None

    async def start(self) -> Addresses:
        """Load the models, then listen. Raises LoadFailed, OSError, or ValueError for an access policy."""
        options = self.options
        doors = self._doors = Doors(options.listen, options.access, self.inflight, self.telemetry.unrouted.shed)
        service = InferenceService(
            self.models,
            self.lifecycle,
            self.regions,
            self.telemetry,
            self.logs,
            options.service,
            gpu_regions=CudaSharedMemory(self.gpus.devices),
        )
        service.inflight = self.inflight
        self._register(doors.register, service)
        metrics_port = None
        if options.metrics_port is not None:
            metrics_port = self.telemetry.start(options.listen.host, options.metrics_port, self._sources())
        self.store.start()
        self.rollouts.open(self.manager)
        self.feedback.open()
        # Health and metadata answer while models load; inference says that they are not ready.
        await doors.start()
        self.manager.subscribe(self._model_changed)
        self.manager.subscribe(self.rollouts.version_changed)
        self.manager.subscribe(self.telemetry.load_failures)
        failed = await self.manager.start()
        for status in failed:
            log.error("%s:%s could not be loaded: %s", status.name, status.version, status.reason)
        if failed and options.exit_on_error:
            raise LoadFailed(f"{len(failed)} model version(s) could not be loaded")
        self.lifecycle.advance(Phase.SERVING)
        return Addresses(options.listen.host, doors.port, metrics_port)

    async def drain(self) -> bool:
        """Take nothing new, answer what can be answered in time, tell the rest, free everything.

        Returns whether threads still run: the process must then end without waiting for them.
        """
        self.lifecycle.advance(Phase.DRAINING)
        self.health.close()
        if self.sources is not None:
            self.sources.stop()
        if self._doors is not None:
            await asyncio.sleep(self.options.drain_delay_s)
        bound = self.options.exit_timeout_s
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(max(0.0, bound - ABANDON_BEFORE_S), self._abandon)
        if self._doors is not None:
            await self._doors.stop(bound)
        alarm.cancel()
        await self.rollouts.close()
        self._abandon()
        left = self.hung.count > 0
        try:
            async with asyncio.timeout(CLOSING_S):
                await self.manager.close()
        except TimeoutError:
            left = True
            log.critical("engines still run %.0f s after the end of the drain; leaving without them", CLOSING_S)
        if self.sources is not None and not await asyncio.to_thread(self.sources.wait_idle, CLOSING_S):
            left = True
            log.warning("a model source says nothing; leaving without its answer")
        await asyncio.to_thread(self.watcher.close)
        left = await self.feedback.close() or left
        await self.store.close()
        await self.telemetry.stop()
        self.lifecycle.advance(Phase.STOPPED)
        return left

    def _too_many_hang(self) -> None:
        if not self.hopeless.is_set():
            log.critical("%d engines hang: the server drains and ends, to be started anew", self.hung.count)
            self.hopeless.set()

    def _cache_metrics(self) -> Iterable[Metric]:
        models = [
            (model.spec.name, model.spec.version, model.cache.statistics())
            for model in self.models.served()
            if model.cache is not None
        ]
        return cache_metrics(models, self.store.statistics())

    def _watch_metrics(self) -> Iterable[Metric]:
        return watch_metrics(
            WatchedVersion(
                model.spec.name,
                model.spec.version,
                model.watched.tap.statistics(),
                None if model.watched.monitor is None else model.watched.monitor.statistics(),
            )
            for model in self.models.served()
            if model.watched is not None
        )

    def _watched(self) -> list[tuple[str, int, Readable | None]]:
        return [
            (model.spec.name, model.spec.version, None if model.watched is None else model.watched.monitor)
            for model in self.models.served()
        ]

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
            lambda: [gauge("kairos_tasks", "Tasks of the event loop.", [((), len(asyncio.all_tasks()))])],
            lambda: server_metrics(
                VERSION, self.manager.statistics(), self.telemetry.load_failures, serving=self.lifecycle.ready
            ),
            self._cache_metrics,
            lambda: list(rollout_metrics(self.rollouts.status())),
            self._watch_metrics,
            lambda: feedback_metrics(self.feedback.statistics()),
        ]
        if (remote := self.sources) is not None:
            sources.append(lambda: source_metrics(remote.statistics()))
        if (inflight := self.inflight) is not None:
            sources.append(lambda: inflight_metrics(inflight))
        statistics = getattr(self._doors and self._doors.server, "statistics", None)
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
        inference = server
        if memory := self.options.cache.memory.size_bytes:
            recall = Recall(service, self.models, self.telemetry.tracer, int(memory * replies.SHARE))
            inference = Replacing(server, recall.handler())
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, inference)  # type: ignore[no-untyped-call]
        cache_pb2_grpc.add_CacheServicer_to_server(cache_service.CacheService(self.store, self.models), server)  # type: ignore[no-untyped-call]
        arrivals = traffic.TrafficService(self.models, self.lifecycle, self.options.service.status_codes)
        traffic_pb2_grpc.add_TrafficServicer_to_server(arrivals, server)  # type: ignore[no-untyped-call]
        rollouts = rollout_service.RolloutService(self.rollouts, self.options.service.status_codes)
        rollout_pb2_grpc.add_RolloutServicer_to_server(rollouts, server)  # type: ignore[no-untyped-call]
        watch_pb2_grpc.add_WatchServicer_to_server(watch_service.WatchService(self.models), server)  # type: ignore[no-untyped-call]
        feedback_pb2_grpc.add_FeedbackServicer_to_server(feedback_service.FeedbackService(self.feedback), server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        own = [SERVICE, cache_service.SERVICE, traffic.SERVICE, rollout_service.SERVICE, watch_service.SERVICE]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection_service([*own, feedback_service.SERVICE, health, reflection]), server
        )

    def look(self) -> None:
        """See now whether certificates or the access policy have changed."""
        if self._doors is not None:
            self._doors.look()

    def _phase_changed(self, phase: Phase) -> None:
        for service in ("", SERVICE):
            self.health.set(service, phase is Phase.SERVING)
        if phase is not Phase.SERVING:
            for name in {model.spec.name for model in self.models.served()}:
                self.health.set(name, serving=False)

    def _model_changed(self, name: str, version: int, state: State, reason: str) -> None:
        log.debug("%s:%d is %s %s", name, version, state.value, reason)
        self.health.set(name, self.manager.ready(name) and not self.lifecycle.draining)


def manage(
    options: RepositoryOptions, opener: ModelOpener, sources: Sources | None, steering: Steering | None = None
) -> ModelManager[ServedModel]:
    """A manager of folders, and of the folders that copy sources."""
    if sources is None:
        return ModelManager(options, opener, steering=steering)
    roots = (*options.roots, *sources.roots)
    return ModelManager(replace(options, roots=roots), opener, refresh=sources.sync, steering=steering)


def _dress(model: ServedModel, inference: Inference, split_key: str) -> ServedModel:
    """The model with another stack, which has to see each request, for a rollout."""
    return replace(model, inference=inference, recalls=None, split_key=split_key)


def _device_lost(text: str) -> None:
    """Drain and end: CUDA works again in a new process only, which whoever supervises this one starts."""
    log.critical("%s; the server ends, so that a new process can use it", text)
    os.kill(os.getpid(), signal.SIGTERM)


async def run(options: ServerOptions, started: Callable[[Addresses, Server], None]) -> Ending:
    """A whole life: start, call `started`, run until SIGTERM, SIGINT or too many engines hang, drain."""
    server = Server(options)
    server.logs.install()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.look)
    async with stop_signals() as asked:
        starting = asyncio.ensure_future(server.start())
        ends = [asyncio.ensure_future(event.wait()) for event in (asked, server.hopeless)]
        await asyncio.wait((starting, *ends), return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                spare_collector()
                started(starting.result(), server)
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            else:
                starting.cancel()
        finally:
            for end in ends:
                end.cancel()
            left = await server.drain()
    return Ending(left, server.hopeless.is_set())
