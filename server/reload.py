"""Looks at regular times, and when asked, whether what the server was told has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)


class Reloads:
    """Calls `looks` every `interval_s` seconds, and at once after `now`; 0: only then."""

    def __init__(self, looks: Sequence[Callable[[], Awaitable[None]]], interval_s: float) -> None:
        self._looks = tuple(looks)
        self._interval_s = interval_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop; nothing is done where there is nothing to look at."""
        if self._looks:
            self._task = asyncio.create_task(self._run())

    def now(self) -> None:
        """Look at once."""
        self._asked.set()

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval_s or None):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            for look in self._looks:
                try:
                    await look()
                except Exception:  # one that fails must not end the others
                    log.exception("a look at changed files failed")
