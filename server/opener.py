"""Brings a model version up: session, layout, engines, warm-up, and the stack of layers above them."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engines.backends.cores import available_cores
from engines.backends.cuda.find import find_cuda
from engines.backends.gpus import Gpus
from engines.backends.onnxruntime import OnnxRuntimeEngine, Sessions, SessionSource
from engines.backends.sweep import Layout, choose, layouts, measure_costs
from engines.costs import costs_file, load_costs, save_costs
from engines.engine import Engine
from engines.errors import InferError, LoadFailed
from engines.inference import Inference
from engines.local import LocalInference
from engines.pool import EnginePool
from engines.repository.definition import Definition
from engines.request import InferRequest
from engines.scheduling.arbiter import Arbiter
from engines.scheduling.factory import make_scheduler
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import Policy
from engines.validation import RequestChecker, RequestLimits
from engines.watchdog import HungEngines, Watch
from server.cache.cached import CachedInference
from server.cache.settings import cache_options_of
from server.cache.store import Store
from server.seats import seats_of
from server.telemetry.assembly import Telemetry
from server.telemetry.meter import ModelMeter
from server.transport.model import ServedModel
from server.watch.settings import watch_options_of
from server.watch.tap import TappedInference
from server.watch.watcher import Watched, Watcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What runs a model: its engines, how many, how many batches each takes at a time, and where."""

    open_engine: Callable[[], Engine]
    layout: Layout
    depth: int = 1
    device: str = "cpu"
    rehearsed: Callable[[], Mapping[int, float]] = dict
    """Seconds by rows of what its engines ran before they were given out, once they are open."""


class ModelOpener:
    """Brings a version up: session, layout, engines, warm-up, and the stack of layers above them."""

    def __init__(
        self,
        telemetry: Telemetry,
        store: Store,
        watcher: Watcher,
        hung: HungEngines,
        cache_dir: Path | None,
        request_limits: RequestLimits,
    ) -> None:
        self._hung = hung
        self._request_limits = request_limits
        self.gpus = Gpus(find_cuda)
        """Those that models may run on."""
        self._telemetry = telemetry
        self._store = store
        self._watcher = watcher
        self._cache_dir = cache_dir
        # Models that are measured at the same time would measure each other.
        self._measuring = threading.Lock()
        self._processor = Arbiter(available_cores())

    async def __call__(self, definition: Definition) -> ServedModel:
        """Raises LoadFailed, or whatever the model's own runtime says."""
        spec = definition.spec
        cache_options = cache_options_of(definition.config.response_cache)
        watch_options_of(definition.config.watch, spec)  # raises before anything is brought up
        opened = await asyncio.to_thread(self._open, definition)
        open_engine, layout, depth = opened.open_engine, opened.layout, opened.depth
        cost, costs_file = await asyncio.to_thread(self._costs, definition, opened)
        name = f"{spec.name}:{spec.version}"
        watch = Watch(self._hung, lambda rows: cost.typical[min(rows, cost.max_rows)])
        pool = EnginePool(open_engine, layout.instances, name, inline=layout.inline, watch=watch, depth=depth)
        await pool.open()
        if seconds := opened.rehearsed():
            cost.seed(seconds)
        meter = ModelMeter(spec)
        observe = self._telemetry.observer(meter)
        scheduler = make_scheduler(
            definition.policy, definition.limits, definition.deadlines, cost, layout.instances * depth
        )
        local = LocalInference(spec, pool, scheduler, definition.limits, observe)
        local.device = opened.device
        if not layout.inline and opened.device == "cpu":  # those on the loop take turns by themselves
            local.share(self._processor, layout.threads)
        if costs_file is not None:
            local.closed = lambda: save_costs(costs_file, cost)
        try:
            await self._warm_up(definition, local)
        except BaseException:
            await local.close()
            raise
        meter.reset()
        where = "on the event loop" if layout.inline else f"with {layout.threads} thread(s)"
        log.info(
            "%s is up: %d engine(s) %s, batches of up to %d rows",
            *(name, layout.instances, where if opened.device == "cpu" else f"on {opened.device}"),
            max(1, spec.max_rows),
        )
        cache = None
        if cache_options is not None and self._store.serves(cache_options):
            cache = CachedInference(local, spec, self._store, cache_options, self._telemetry.tracer.note)
            meter.cache_misses = functools.partial(_misses, cache)
        try:
            watched = await asyncio.to_thread(self._watcher.open, definition)
        except BaseException:
            await local.close()
            raise
        return ServedModel(
            spec=spec,
            config=definition.config,
            limits=definition.limits,
            default_deadline_s=definition.default_deadline_s,
            inference=compose(local, cache, watched, meter, self._telemetry),
            meter=meter,
            engines=local,
            request_limits=self._request_limits,
            cache=cache,
            recalls=None if self._telemetry.sees_each or watched is not None else cache,
            watched=watched,
            unwatch=functools.partial(self._unwatch, watched),
        )

    async def _unwatch(self, watched: Watched | None) -> None:
        if watched is not None:
            await asyncio.to_thread(self._watcher.release, watched)

    def _open(self, definition: Definition) -> _Opened:
        gpu = definition.engine.gpu
        if gpu is None:
            open_engine, layout = self._open_session(definition)
            return _Opened(open_engine, layout)
        seats = seats_of(definition, gpu, self.gpus)
        return _Opened(seats, Layout(len(seats), 1), gpu.stream.in_flight, ",".join(seats.devices), seats.rehearsed)

    def _open_session(self, definition: Definition) -> tuple[Callable[[], OnnxRuntimeEngine], Layout]:
        spec, options = definition.spec, definition.engine
        sessions = Sessions(SessionSource(definition.model_file, spec, options, self._cache_dir))
        candidates = layouts(available_cores(), options.instances, options.intra_op_threads)
        layout = candidates[0]
        sessions.get(layout)  # a model that cannot be opened fails here
        try:
            with self._measuring:
                layout, measured = choose(spec, candidates, sessions.engine)
            log.debug("%s:%d: rows a second by layout: %s", spec.name, spec.version, measured)
        except Exception as error:  # noqa: BLE001  (made-up inputs may be refused; real ones will do)
            log.info("%s:%d cannot be measured with made-up inputs: %s", spec.name, spec.version, error)
        if not definition.steady:  # what was measured says nothing of the next request
            layout = replace(layout, inline=False)
        session = sessions.get(layout)
        return lambda: OnnxRuntimeEngine(spec, session), layout

    def _costs(self, definition: Definition, opened: _Opened) -> tuple[CostModel, Path | None]:
        """What executions cost in this layout, from the last time or measured now, and the file to keep it in."""
        spec = definition.spec
        cost = CostModel(
            definition.limits.max_rows, definition.limits.allowed_rows, quantile=definition.deadlines.quantile
        )
        if definition.policy is Policy.FIFO or opened.device != "cpu":
            return cost, None
        path = None
        if self._cache_dir is not None:
            path = costs_file(self._cache_dir, spec, opened.layout.instances, opened.layout.threads)
            if load_costs(path, cost):
                return cost, path
        try:
            with self._measuring:
                engine = opened.open_engine()
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


def compose(
    model: Inference,
    cache: CachedInference | None,
    watched: Watched | None,
    meter: ModelMeter,
    telemetry: Telemetry,
) -> Inference:
    """The layers around a model, innermost first; the cache, where there is one, is around the model already."""
    if cache is not None:
        model = cache
    if watched is not None:  # above the cache: what is remembered is asked, too
        model = TappedInference(model, watched.tap)
    return telemetry.around(model, meter)


def _misses(cache: CachedInference) -> tuple[int, float]:
    counted = cache.statistics()
    return counted.misses, counted.miss_s
