"""The engines of one model version: which are idle, and a new one for each that dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engines.engine import Engine
from engines.worker import InlineWorker, Job, Outcome, Worker

log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 30.0
INLINE_MAX_S: Final = 0.005
"""A single execution on the event loop's thread that lasts longer shows that the engine is not as quick as it was
measured to be. A busy machine alone seldom stretches one that far."""
"""A replacement that fails is tried again after twice the time, between these bounds."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot: `busy + idle + missing` engines were asked for."""

    busy: int
    idle: int
    missing: int
    replaced: int
    """Engines that died and were replaced since the start."""


class EnginePool:
    """`count` workers with an engine each. Used from the event loop only.

    With `inline`, engines run on the loop's own thread until one of them holds it up for longer than INLINE_MAX_S:
    that worker then gets a thread, as do all that follow.

    `freed` is called whenever an idle engine appears that was not there before.
    """

    def __init__(self, open_engine: Callable[[], Engine], count: int, name: str, *, inline: bool = False) -> None:
        self._open_engine = open_engine
        self._inline = inline
        self._count = count
        self._name = name
        self._idle: list[Worker | InlineWorker] = []
        self._busy: set[Worker | InlineWorker] = set()
        self._replaced = 0
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.freed: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        now = self.statistics()
        missing = f", {now.missing} missing" if now.missing else ""
        return f"<EnginePool {self._name} [engines: {now.busy} busy, {now.idle} idle{missing}]>"

    async def open(self) -> None:
        """Open all engines; when one fails, close the others and raise its error."""
        workers = [self._new_worker() for _ in range(self._count)]
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
        self._idle.extend(opened)

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
        worker = self._idle.pop()
        self._busy.add(worker)
        self._quiet.clear()

        def finished(outcome: Outcome) -> None:
            self._busy.discard(worker)
            if outcome.died:
                log.error("engine of %s died and is replaced: %s", self._name, outcome.error)
                self._start_replacing(worker)
            elif isinstance(worker, InlineWorker) and outcome.execute_s > INLINE_MAX_S:
                log.info("%s took %.1f ms and moves to a thread", self._name, outcome.execute_s * 1e3)
                self._inline = False
                self._start_replacing(worker)
            else:
                self._idle.append(worker)
            if not self._busy:
                self._quiet.set()
            done(outcome)

        worker.submit(job, finished)

    async def close(self) -> None:
        """Wait for running jobs, then close all engines."""
        self._closing = True
        for task in tuple(self._replacing):
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await self._quiet.wait()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(worker.close() for worker in idle))

    def statistics(self) -> PoolStatistics:
        """How many engines do what."""
        busy, idle = len(self._busy), len(self._idle)
        return PoolStatistics(busy, idle, self._count - busy - idle, self._replaced)

    def _new_worker(self) -> Worker | InlineWorker:
        if self._inline:
            return InlineWorker(self._open_engine)
        return Worker(self._open_engine, name=f"engine {self._name}")

    def _start_replacing(self, dead: Worker | InlineWorker) -> None:
        task = asyncio.get_running_loop().create_task(self._replace(dead))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, dead: Worker | InlineWorker) -> None:
        with contextlib.suppress(Exception):
            await dead.close()
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
            self._idle.append(worker)
            self.freed()
            return
