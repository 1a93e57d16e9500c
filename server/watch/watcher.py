"""Sets up the watch over model versions, and ends it.

The heavy libraries (scipy, datasketches) are imported for the first model that is watched, and not before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engines.errors import LoadFailed
from engines.repository.definition import Definition
from server.watch.observation import Sink
from server.watch.settings import WatchOptions, watch_options_of
from server.watch.tap import Tap, TapOptions, TapThread

if TYPE_CHECKING:
    from server.watch.monitor import Monitor

log = logging.getLogger(__name__)

MISSING: Final = "watch: watching models needs more libraries: pip install 'kairos[watch]'"
CLOSING_S: Final = 2.0
"""How long sinks may take to end at the end of a drain."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What watches one model version."""

    tap: Tap
    monitor: Monitor | None
    """None where only others listen."""


class Watcher:
    """One server's watch: a thread, and a tap for each version that somebody wants to see."""

    def __init__(self, others: Sequence[Callable[[Definition], Sink | None]] = ()) -> None:
        """`others` are asked, for each version, for sinks beside the monitor."""
        self._others = tuple(others)
        self._thread = TapThread()

    def open(self, definition: Definition) -> Watched | None:
        """Start to watch a version; None where nobody wants to. Reads files. Raises LoadFailed."""
        config = definition.config.watch
        options = watch_options_of(config, definition.spec)
        sinks = [sink for other in self._others if (sink := other(definition)) is not None]
        monitor = None
        if options is not None:
            monitor = _monitor(definition, options)
            sinks.insert(0, monitor)
        if not sinks:
            return None
        rate = config.sample_rate or WatchOptions().rate
        return Watched(Tap(sinks, TapOptions(rate=rate), self._thread), monitor)

    def release(self, watched: Watched) -> None:
        """The version is gone. Blocks until its sinks have what was taken."""
        self._thread.release(watched.tap)

    def close(self) -> None:
        """End everything. Blocks, for a bounded time."""
        if not self._thread.close(CLOSING_S):
            log.warning("the watch did not end within %.0f s; what it held is lost", CLOSING_S)


def _monitor(definition: Definition, options: WatchOptions) -> Monitor:
    try:
        from server.watch.monitor import Monitor  # noqa: PLC0415  (see the module)
        from server.watch.reference import BadReference, load  # noqa: PLC0415
    except ImportError as error:
        raise LoadFailed(MISSING) from error
    spec = definition.spec
    reference, problem = None, ""
    try:
        reference = load(definition.folder / str(spec.version))
    except BadReference as error:
        problem = str(error)
    if reference is not None and reference.model_digest != definition.files_digest:
        reference, problem = None, "the baseline is of another model file: make it again with `kairos baseline`"
    if problem:  # the model itself is as good as ever
        log.warning("%s:%d: %s", spec.name, spec.version, problem)
    return Monitor(spec, options, reference, problem)
