"""Time that passes only when nothing else is left to do, and engines that answer when they are told to."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from engines.pool import PoolStatistics
from engines.request import InferRequest
from engines.scheduling.assemble import Staging, gather
from engines.spec import ModelSpec
from engines.tensor import Array, DType, Tensor
from engines.worker import Job, Outcome


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Without the time limit of Python 3.12 and later, which would be over at once; it joins real threads."""
        await super().shutdown_default_executor()


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc]  # its base depends on the platform
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self._loop.now += timeout
            timeout = 0
        return super().select(timeout)


def run_virtual(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` in virtual time; no task may be left behind."""

    async def whole() -> None:
        await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(whole())


class ManualPool:
    """Engines without threads: each job waits until `finish` is called. Looks like an EnginePool."""

    def __init__(self, spec: ModelSpec, engines: int = 1) -> None:
        self._spec = spec
        self._idle = engines
        self._engines = engines
        self.running: list[tuple[Job, Callable[[Outcome], None]]] = []
        self.batches: list[list[str]] = []
        """The ids of the requests of each batch, in the order of their start."""
        self.freed: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<ManualPool {self._idle} idle>"

    inline = False

    @property
    def has_idle(self) -> bool:
        return self._idle > 0

    def submit(self, job: Job, done: Callable[[Outcome], None]) -> None:
        assert self._idle, "no engine is idle"
        self._idle -= 1
        self.batches.append([request.id for request in job.requests])
        self.running.append((job, done))

    def finish(
        self, first: str = "", *, error: Exception | None = None, answer: Callable[[Array], Array] = lambda x: x * 2
    ) -> None:
        """End the job whose first request is `first`, or the oldest one: with y = 2 x, or as told."""
        position = [job.requests[0].id for job, _ in self.running].index(first) if first else 0
        job, done = self.running.pop(position)
        self._idle += 1
        if error is not None:
            done(Outcome(None, error, 0.0, 0.0))
            return
        inputs = gather(job.requests, self._spec, job.padded_rows, Staging())
        done(Outcome({"y": answer(inputs["x"])}, None, 0.0, 0.0))

    def statistics(self) -> PoolStatistics:
        busy = len(self.running)
        return PoolStatistics(busy, self._idle, self._engines - busy - self._idle, 0)

    async def close(self) -> None:
        self._idle = 0


def ask(name: str, values: Sequence[float] = (1.0,), **rest: Any) -> InferRequest:
    """A request to a fake model: one row of four equal numbers for each value."""
    data = np.repeat(np.array(values, np.float32), 4).tobytes()
    tensor = Tensor("x", DType.FP32, (len(values), 4), data)
    return InferRequest(model="fake", version=1, inputs=(tensor,), wanted=("y",), rows=len(values), id=name, **rest)
