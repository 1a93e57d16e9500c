"""One thread that makes, uses and closes one engine.

Rule: the thread touches the engine and the job, nothing else; all that follows happens on the event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from engines.engine import Engine
from engines.errors import EngineDied
from engines.record import record
from engines.request import InferRequest
from engines.scheduling.assemble import Staging, gather
from engines.tensor import Array


@record
class Job:
    """What a worker runs: the requests of one batch."""

    requests: Sequence[InferRequest]
    padded_rows: int
    wanted: Collection[str]


@record
class Outcome:
    """What came of a job: `outputs`, or the `error` that the engine raised."""

    outputs: Mapping[str, Array] | None
    error: Exception | None
    gather_s: float
    execute_s: float
    placed: Collection[str] = ()
    """Outputs that are where requests asked for them on the device, whether or not they are in `outputs`."""

    @property
    def died(self) -> bool:
        """Whether the engine can never run again."""
        return isinstance(self.error, EngineDied)


class Worker:
    """Runs jobs one at a time. `done` is called on the event loop, once a job."""

    def __init__(self, open_engine: Callable[[], Engine], name: str) -> None:
        self._open_engine = open_engine
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Job, Callable[[Outcome], None]] | None] = queue.SimpleQueue()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    async def open(self) -> None:
        """Start the thread and its engine; raise what the engine raised."""
        self._thread.start()
        await asyncio.shield(self._opened)

    def submit(self, job: Job, done: Callable[[Outcome], None]) -> None:
        """Queue a job; callers keep at most one in a worker."""
        self._jobs.put((job, done))

    def retire(self) -> None:
        """Close the engine and end the thread once it is open and its job is done; waits for nothing."""
        self._jobs.put(None)

    async def close(self) -> None:
        """Let the current job end, then close the engine and wait for the thread."""
        self.retire()
        await asyncio.shield(self._ended)

    def _run(self) -> None:
        try:
            engine = self._open_engine()
        except BaseException as error:  # noqa: BLE001  (whatever stops an engine from opening goes to who asked)
            self._post(fail, self._opened, error)
            self._post(finish, self._ended)
            return
        self._post(finish, self._opened)
        staging = Staging()
        while (item := self._jobs.get()) is not None:
            job, done = item
            outcome = _execute(engine, job, staging)
            self._post(done, outcome)
            # Nothing of a batch may stay alive while the thread waits for the next one.
            del item, job, done, outcome
        try:
            engine.close()
        finally:
            self._post(finish, self._ended)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop was closed first: nobody is left to be told
            return


class InlineWorker:
    """Runs jobs on the event loop itself: for engines so quick that a thread would cost more than they do.

    `cpu_s` is what the last job took of a processor. Unlike its duration, that does not grow while others have it.
    """

    def __init__(self, open_engine: Callable[[], Engine]) -> None:
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._staging = Staging()
        self.cpu_s = 0.0

    async def open(self) -> None:
        """Make the engine; raise what it raises."""
        self._engine = self._open_engine()

    def submit(self, job: Job, done: Callable[[Outcome], None]) -> None:
        """Run a job at once; `done` is called before this returns."""
        assert self._engine is not None
        began = time.thread_time()
        outcome = _execute(self._engine, job, self._staging)
        self.cpu_s = time.thread_time() - began
        done(outcome)

    def retire(self) -> None:
        """Close the engine."""
        if self._engine is not None:
            self._engine.close()

    async def close(self) -> None:
        """Close the engine."""
        self.retire()


def _execute(engine: Engine, job: Job, staging: Staging) -> Outcome:
    began = gathered = time.monotonic()
    try:
        inputs = gather(job.requests, engine.spec, job.padded_rows, staging)
        gathered = time.monotonic()
        outputs = engine.execute(inputs, job.wanted)
    except Exception as error:  # noqa: BLE001  (an engine may raise anything; it fails this batch, not the server)
        return Outcome(None, error, gathered - began, time.monotonic() - gathered)
    return Outcome(outputs, None, gathered - began, time.monotonic() - gathered)


def finish(future: asyncio.Future[None]) -> None:
    """Settle a future whose waiter may have left."""
    if not future.done():
        future.set_result(None)


def fail(future: asyncio.Future[None], error: BaseException) -> None:
    """The same with an error."""
    if not future.done():
        future.set_exception(error)
