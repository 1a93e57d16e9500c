"""The engines of one model version: which are idle, and a new one for each that dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, cast

from engines.engine import Engine, PipelinedEngine
from engines.errors import EngineHung
from engines.pipeline import PipelinedWorker
from engines.record import record
from engines.watchdog import HungEngines, Watch
from engines.worker import InlineWorker, Job, Outcome, Worker

log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 30.0
"""A replacement that fails is tried again after twice the time, between these bounds."""

CLOSING_S: Final = 5.0
"""How long the last words of a dead engine may hold up its successor."""

INLINE_MAX_S: Final = 0.005
"""A single execution that takes more CPU of the event loop's thread shows that the engine is not as quick as it was
measured to be. Its duration would not: a busy machine stretches that as far as it likes."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot: `busy + idle + missing` engines were asked for."""

    busy: int
    idle: int
    missing: int
    replaced: int
    """Engines that died or hung and were replaced since the start."""
    hung: int = 0
    """Engines that were given up, and whose threads have not come back. They are not among those asked for."""


@record
class _Running:
    """A job that an engine works on."""

    job: Job
    done: Callable[[Outcome], None]
    started: float


AnyWorker: TypeAlias = Worker | InlineWorker | PipelinedWorker


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Room for one job in a worker."""

    worker: AnyWorker


class EnginePool:
    """`count` workers with an engine each. Used from the event loop only.

    With `inline`, engines run on the loop's own thread until one of them holds it up for longer than INLINE_MAX_S:
    that worker then gets a thread, as do all that follow.

    An execution that takes longer than `watch` allows is given up: it is `done` with EngineHung, a new engine takes
    the place of its own, and what it may still return is dropped. An engine on the loop's own thread cannot be watched.

    With `depth` above 1 they are PipelinedEngines that take so many batches at a time; one that dies or hangs takes all
    of its batches with it.

    `freed` is called whenever an idle engine appears that was not there before.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        count: int,
        name: str,
        *,
        inline: bool = False,
        watch: Watch | None = None,
        depth: int = 1,
    ) -> None:
        self._open_engine = open_engine
        self._inline = inline
        self._watch = watch or Watch(HungEngines())
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._hung = self._owed = 0
        self._depth = depth
        self._count = count * depth
        self._name = name
        self._idle: list[_Place] = []
        self._busy: dict[_Place, _Running] = {}
        self._dead: set[AnyWorker] = set()
        """Those that died and have other jobs that did not come back yet."""
        self._lost: set[AnyWorker] = set()
        """Those that were given up and did not come back yet."""
        self._replaced = 0
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.freed: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        now = self.statistics()
        missing = f", {now.missing} missing" if now.missing else ""
        hung = f" | {now.hung} hung" if now.hung else ""
        return f"<EnginePool {self._name} [engines: {now.busy} busy, {now.idle} idle{missing}{hung}]>"

    async def open(self) -> None:
        """Open all engines; when one fails, close the others and raise its error."""
        workers = [self._new_worker() for _ in range(self._count // self._depth)]
        try:
            results = await asyncio.gather(*(worker.open() for worker in workers), return_exceptions=True)
        except asyncio.CancelledError:
            for worker in workers:
                worker.retire()
            raise
        failed = [result for result in results if result is not None]
        opened = [worker for worker, result in zip(workers, results, strict=True) if result is None]
        if failed:
            await asyncio.gather(*(worker.close() for worker in opened))
            raise failed[0]
        self._idle.extend(_Place(worker) for _ in range(self._depth) for worker in opened)

    @property
    def inline(self) -> bool:
        """Whether engines run on the event loop's own thread, and so hold up whatever comes after them."""
        return self._inline

    @property
    def has_idle(self) -> bool:
        """Whether `submit` may be called."""
        return bool(self._idle)

    def submit(self, job: Job, done: Callable[[Outcome], None]) -> None:
        """Run the job on an idle engine; there must be one. `done` is called on the loop, the engine idle again."""
        place = self._take()
        self._busy[place] = _Running(job, done, self._loop.time())
        self._quiet.clear()
        if self._alarm is None and self._watch.on:
            self._alarm = self._loop.call_later(self._watch.floor_s, self._look)
        place.worker.submit(job, partial(self._finished, place))

    def _take(self) -> _Place:
        """An idle place, of the engine with the fewest jobs."""
        if self._depth == 1:
            return self._idle.pop()
        jobs = Counter(place.worker for place in self._busy)
        place = min(self._idle, key=lambda one: jobs[one.worker])
        self._idle.remove(place)
        return place

    def _finished(self, place: _Place, outcome: Outcome) -> None:
        worker = place.worker
        running = self._busy.pop(place, None)
        if running is None:
            if worker in self._lost:
                self._lost.discard(worker)
                self._came_back()
            return
        if worker in self._dead:
            pass
        elif outcome.died:
            log.error("engine of %s died and is replaced: %s", self._name, outcome.error)
            self._idle = [other for other in self._idle if other.worker is not worker]
            self._dead.add(worker)
            self._start_replacing(worker)
        elif isinstance(worker, InlineWorker) and worker.cpu_s > INLINE_MAX_S:
            log.info("%s took %.1f ms and moves to a thread", self._name, worker.cpu_s * 1e3)
            self._inline = False
            self._start_replacing(worker)
        else:
            self._idle.append(place)
        if not self._busy:
            self._quiet.set()
        running.done(outcome)

    def _look(self) -> None:
        """Give up what has run for too long. One timer serves all engines; an idle pool soon has none."""
        self._alarm = None
        now, nearest = self._loop.time(), math.inf
        for place, running in tuple(self._busy.items()):
            if place not in self._busy:  # given up with another of its engine
                continue
            due = running.started + self._watch.bound_s(running.job.padded_rows)
            if due <= now:
                self._give_up(place, running, now - running.started)
            else:
                nearest = min(nearest, due)
        if nearest < math.inf:
            self._alarm = self._loop.call_at(nearest, self._look)

    def _give_up(self, place: _Place, running: _Running, ran_s: float) -> None:
        worker = place.worker
        stuck = [(each, self._busy.pop(each)) for each in tuple(self._busy) if each.worker is worker]
        self._idle = [other for other in self._idle if other.worker is not worker]
        text = f"an execution of {running.job.padded_rows} row(s) had not ended after {ran_s:.1f} s"
        if worker not in self._dead:  # else it is being replaced
            self._lose(worker, text)
        if not self._busy:
            self._quiet.set()
        for _, each in stuck:
            each.done(Outcome(None, EngineHung(text), 0.0, self._loop.time() - each.started))

    def _lose(self, worker: AnyWorker, text: str) -> None:
        self._lost.add(worker)
        worker.retire()  # its thread ends should it ever come back
        self._hung += 1
        self._watch.hung.gave_up()
        log.error("%s: %s; its engine is given up (%d in this process)", self._name, text, self._watch.hung.count)
        if self._watch.hung.bearable:
            self._start_replacing(None)
        else:
            self._owed += 1

    def _came_back(self) -> None:
        """An engine that was given up was only slow; its thread closes it."""
        self._hung -= 1
        self._watch.hung.came_back()
        log.warning("%s: an execution that was given up has ended", self._name)
        if self._owed and self._watch.hung.bearable:
            self._owed -= 1
            self._start_replacing(None)

    async def close(self) -> None:
        """Wait for running jobs, then close all engines."""
        self._closing = True
        for task in tuple(self._replacing):
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await self._quiet.wait()
        if self._alarm is not None:
            self._alarm.cancel()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(worker.close() for worker in dict.fromkeys(place.worker for place in idle)))

    def statistics(self) -> PoolStatistics:
        """How many engines do what."""
        busy, idle = len(self._busy), len(self._idle)
        return PoolStatistics(busy, idle, self._count - busy - idle, self._replaced, self._hung)

    def _new_worker(self) -> AnyWorker:
        if self._inline:
            return InlineWorker(self._open_engine)
        if self._depth > 1:
            return PipelinedWorker(cast(Callable[[], PipelinedEngine], self._open_engine), f"engine {self._name}")
        return Worker(self._open_engine, name=f"engine {self._name}")

    def _start_replacing(self, dead: AnyWorker | None) -> None:
        if self._closing:
            if dead is not None:
                dead.retire()
            return
        task = self._loop.create_task(self._replace(dead))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, dead: AnyWorker | None) -> None:
        if dead is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(dead.close(), CLOSING_S)
            self._dead.discard(dead)
        delay = FIRST_RETRY_S
        while not self._closing:
            worker = self._new_worker()
            try:
                await worker.open()
            except Exception as error:  # noqa: BLE001  (an engine may fail to open in any way; it is tried again)
                log.error("no new engine for %s yet: %s", self._name, error)  # noqa: TRY400  (the reason suffices)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_S)
                continue
            except asyncio.CancelledError:
                worker.retire()
                raise
            self._replaced += 1
            self._idle.extend(_Place(worker) for _ in range(self._depth))
            self.freed()
            return
