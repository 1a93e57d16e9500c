"""Puts copies of answered requests to the other version, and compares the answers.

Promises: nobody waits for a copy, and nothing that becomes of one reaches a caller, a caller's metrics or its cache. A
copy starts after its request was answered, with the lowest priority, only where an engine is idle. Copies are bounded
in number, bytes and time, and dropped with a count beyond that.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from engines.errors import Cancelled, DeadlineExceeded, Draining, ModelNotReady, Overloaded
from engines.request import InferRequest, InferResponse, Parameters
from server.rollout.plan import Shadowing
from server.rollout.versions import Lender

log = logging.getLogger(__name__)

LOWEST: Final = 2**31 - 1
"""Priority of a copy: beyond any level, and cut down to the model's last one."""
_REFUSALS: Final = (Overloaded, DeadlineExceeded, Cancelled, Draining, ModelNotReady)
_SCHEDULING: Final = frozenset({"timeout", "priority"})


class Fate(enum.StrEnum):
    """What became of a copy."""

    COMPARED = "compared"
    FAILED = "failed"
    """The version raised."""
    REFUSED = "refused"
    """The version was too busy for it, or gone."""
    DROPPED = "dropped"
    """There were too many already, or no engine was idle."""


class Shadow:
    """Copies of one model's requests. Belongs to one event loop."""

    def __init__(
        self,
        options: Shadowing,
        compared: Callable[[InferResponse, InferResponse | None], None],
        drawn: Callable[[], float] = random.random,
    ) -> None:
        """`compared` gets a caller's answer and its copy's, or None where the other version failed."""
        self._options = options
        self._compared = compared
        self._drawn = drawn
        self._tasks: set[asyncio.Task[None]] = set()
        self.bytes_in_flight = 0
        self.fates: dict[Fate, int] = dict.fromkeys(Fate, 0)

    def __repr__(self) -> str:
        return f"<Shadow [{len(self._tasks)} in flight, {self.bytes_in_flight} bytes]>"

    @property
    def in_flight(self) -> int:
        """Copies under way."""
        return len(self._tasks)

    def offer(self, request: InferRequest, response: InferResponse, other: Lender) -> None:
        """Copy an answered request to another version, or not. Never raises, never waits."""
        options = self._options
        if self._drawn() >= options.sample or not _lasting(request):
            return
        size = sum(len(tensor.data) for tensor in (*request.inputs, *response.outputs))
        if len(self._tasks) >= options.in_flight or self.bytes_in_flight + size > options.bytes_in_flight:
            self.fates[Fate.DROPPED] += 1
            return
        self.bytes_in_flight += size
        # In a context of its own: what is logged and traced of a copy is not the caller's.
        work = self._copy(request, response, other)
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, size))

    async def close(self) -> None:
        """Withdraw what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self.bytes_in_flight -= size

    async def _copy(self, request: InferRequest, response: InferResponse, other: Lender) -> None:
        deadline = asyncio.get_running_loop().time() + self._options.deadline_s
        answer: InferResponse | None = None
        try:
            async with asyncio.timeout_at(deadline):
                with other as version:
                    if not version.engines.idle:
                        self.fates[Fate.DROPPED] += 1
                        return
                    copied = replace(
                        request, version=version.spec.version, deadline=deadline, priority=LOWEST,
                        tenant="", id="", trace="", parameters=_without_scheduling(request.parameters),
                    )  # fmt: skip
                    answer = await version.engines.infer(copied)
        except (*_REFUSALS, TimeoutError):
            self.fates[Fate.REFUSED] += 1
            return
        except Exception as error:  # noqa: BLE001  (whatever it raises is what is to be found out)
            log.debug("a copy failed: %s", error)
            self.fates[Fate.FAILED] += 1
        else:
            self.fates[Fate.COMPARED] += 1
        self._compared(response, answer)


def _lasting(request: InferRequest) -> bool:
    """Whether the inputs stay as they are: only memory that is shared with the client comes as writable views.

    Memory of a GPU is the client's, too, and a copy would write its answer there.
    """
    return not request.on_device and all(
        isinstance(tensor.data, bytes) or tensor.data.readonly for tensor in request.inputs
    )


def _without_scheduling(parameters: Parameters) -> Parameters:
    if not parameters:
        return parameters
    return {name: value for name, value in parameters.items() if name not in _SCHEDULING}
