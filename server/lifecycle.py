"""The life of the server process: start, run, drain."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


NEXT: Final[Mapping[Phase, Phase]] = {
    Phase.STARTING: Phase.SERVING,
    Phase.SERVING: Phase.DRAINING,
    Phase.DRAINING: Phase.STOPPED,
}


class Lifecycle:
    """Says whether the server is alive and wants traffic; `changed` is called with each new phase."""

    def __init__(self, changed: Callable[[Phase], None] = lambda _: None) -> None:
        self.phase = Phase.STARTING
        self._changed = changed
        self._draining = asyncio.Event()

    def advance(self, phase: Phase) -> None:
        """Go on to the next phase. Raises ValueError for any other; a start that fails may go on to the end."""
        if NEXT.get(self.phase) is not phase and not (self.phase is Phase.STARTING and phase is Phase.DRAINING):
            raise ValueError(f"a server that is {self.phase.value} cannot go on to {phase.value}")
        self.phase = phase
        if phase is Phase.DRAINING:
            self._draining.set()
        self._changed(phase)

    @property
    def live(self) -> bool:
        """Whether the process answers."""
        return self.phase is not Phase.STOPPED

    @property
    def ready(self) -> bool:
        """Whether it wants traffic."""
        return self.phase is Phase.SERVING

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new."""
        return self._draining.is_set()

    async def wait_draining(self) -> None:
        """Return once nothing new is taken."""
        await self._draining.wait()


@contextlib.asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set. A second signal ends the process at once, with the signal's status."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask(number: signal.Signals) -> None:
        if asked.is_set():
            log.warning("%s again: stopping at once", number.name)
            for each in _SIGNALS:
                loop.remove_signal_handler(each)
            signal.raise_signal(number)
            return
        log.info("%s: draining", number.name)
        asked.set()

    for each in _SIGNALS:
        loop.add_signal_handler(each, ask, each)
    try:
        yield asked
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
