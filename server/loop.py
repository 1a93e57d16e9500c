"""The event loop that a server runs on."""

from __future__ import annotations

import asyncio
import gc
import time

try:
    from uvloop import Loop as _Loop  # halves the loop's share of each request
except ImportError:  # it has no wheels for some platforms
    from asyncio import SelectorEventLoop as _Loop  # type: ignore[assignment]  # does the same, only slower


class ServerLoop(_Loop):
    """Has a clock that is worth reading.

    uvloop's own counts milliseconds and stands still within a turn of the loop: most phases of a request would seem
    to take no time, and deadlines would be a millisecond off.
    """

    def time(self) -> float:
        """Seconds, as `time.monotonic` has them; uvloop's timers go by the same clock."""
        return time.monotonic()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for one server."""
    return ServerLoop()


def spare_collector() -> None:
    """Have the garbage collector leave alone all that is there now: modules, settings, models.

    It would walk them all in each full collection: 50 to 100 ms, about once a second under load, without an answer.
    What becomes garbage of it is freed by its reference counts as ever, or stays, where it refers to itself.
    """
    gc.collect()
    gc.freeze()
