"""What happens after the answers: predictions recorded, requests captured, outcomes judged, triggers looked at.

Nothing is opened, and no file is made, before a model or the operator asks for it. Everything here runs on threads of
its own or between requests; what fails is logged, and reaches no request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from engines.errors import LoadFailed, Overloaded
from engines.repository.definition import Definition
from server.watch.capture import Capture, CaptureStatistics, capture_options_of
from server.watch.figures import VersionFigures, version_figures
from server.watch.observation import Sink
from server.watch.outcomes import FILE, OutcomeStatistics, OutcomeStore
from server.watch.predictions import PredictionSink
from server.watch.readings import VOLUME, Reading
from server.watch.sampled import SampledSink
from server.watch.trigger_file import TriggerOptions
from server.watch.trigger_runner import Triggers, TriggerStatistics

log = logging.getLogger(__name__)

EVERY_S: Final = 10.0
"""How often everything is looked at, unless the triggers say otherwise."""
STALE_S: Final = 60.0
"""Figures are made anew this often, since outcomes leave their window, or when there are new ones."""
CLOSING_S: Final = 5.0
"""How long running actions may take to end at the end of a drain."""


class Readable(Protocol):
    """A monitor, as it is used here."""

    def readings(self) -> Mapping[str, Reading]:
        """The latest of each signal."""
        ...


Watched = Callable[[], Iterable[tuple[str, int, Readable | None]]]
"""The served versions: name, version, monitor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackStatistics:
    """A snapshot."""

    outcomes: OutcomeStatistics | None
    """None while nothing is recorded."""
    figures: Sequence[VersionFigures]
    captures: Mapping[tuple[str, int], CaptureStatistics]
    triggers: TriggerStatistics | None


class Feedback:
    """One server's."""

    def __init__(self, state_dir: Path | None, triggers: TriggerOptions | None, watched: Watched) -> None:
        """Raises BadTriggers for secrets and templates that are not there."""
        if triggers is not None and state_dir is None:
            raise LoadFailed("triggers need a state directory to remember their events in")
        self._state_dir = state_dir
        self._watched = watched
        self._every_s = EVERY_S if triggers is None else triggers.every_s
        self._triggers = None if triggers is None or state_dir is None else Triggers(triggers, state_dir)
        self._store: OutcomeStore | None = None
        self._opening = threading.Lock()
        self._captures: dict[tuple[str, int], Capture] = {}
        self._figures: Sequence[VersionFigures] = ()
        self._figured_at = -math.inf
        self._figured: OutcomeStatistics | None = None
        self._drift_at: dict[tuple[str, int], float] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def store(self) -> OutcomeStore | None:
        """None while no model's predictions are recorded."""
        return self._store

    def open(self) -> None:
        """Take up what a former process left. On the event loop; blocks for a moment. Raises OSError."""
        if self._state_dir is not None and (self._state_dir / FILE).exists():
            self._open_store(self._state_dir)
        if self._triggers is not None:
            self._triggers.open()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> bool:
        """End everything; what waits is written, or left to the next process. No sink is told anything any more.

        Returns whether threads still wait for somebody's answer: the process must then end without them.
        """
        left = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._triggers is not None:
            left = await self._triggers.close(CLOSING_S)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
        return left

    def prediction_sink(self, definition: Definition) -> Sink | None:
        """For the tap of a version that is watched or captured; None for others. Opens the store."""
        config = definition.config
        if self._state_dir is None or not (config.watch.enable or config.capture.enable):
            return None
        try:
            store = self._open_store(self._state_dir)
        except OSError as error:  # the model itself is as good as ever
            log.error("outcomes of %s cannot be recorded: %s", definition.spec.name, error)  # noqa: TRY400
            return None
        return PredictionSink(definition.spec, store, config.watch.output)

    def capture_sink(self, definition: Definition) -> Sink | None:
        """For a version with `capture { enable: true }`. Raises LoadFailed."""
        options = capture_options_of(definition.config.capture)
        if options is None:
            return None
        if self._state_dir is None:
            raise LoadFailed("capture needs a state directory to write to")
        spec = definition.spec
        capture = Capture(spec, options, self._state_dir)
        self._captures[spec.name, spec.version] = capture
        return capture if options.share >= 1.0 else SampledSink(capture, options.share)

    def statistics(self) -> FeedbackStatistics:
        """A snapshot."""
        return FeedbackStatistics(
            outcomes=None if self._store is None else self._store.statistics(),
            figures=self._figures,
            captures={key: capture.statistics() for key, capture in self._captures.items()},
            triggers=None if self._triggers is None else self._triggers.statistics(),
        )

    def readings(self, model: str, version: int) -> Mapping[str, Reading]:
        """What may speak for or against a version: its monitor's signals, and `rule.<name>` for each raised rule.

        Figures of outcomes are in there by rules alone, since only an operator knows how good is good enough. Rules
        on the volume are left out: how many callers a version has is no merit of its own.
        """
        monitors = (each for name, number, each in self._watched() if (name, number) == (model, version))
        monitor = next(monitors, None)
        found = {} if monitor is None else dict(monitor.readings())
        for rule in () if self._triggers is None else self._triggers.raised(model, version):
            if rule.signal != VOLUME:
                signal = f"rule.{rule.name}"
                found[signal] = Reading(signal, math.nan, alarm=True, samples=0, at=time.time())
        return found

    async def look(self, now: float) -> None:
        """Look at everything once."""
        told = {
            (name, version): [] if monitor is None else list(monitor.readings().values())
            for name, version, monitor in self._watched()
        }
        await self._rotate(now)
        if self._store is not None:
            self._note_drift(self._store, told)
            await self._judge(self._store, now)
        for found in self._figures:
            if (key := (found.model, found.version)) in told:
                told[key] += found.readings()
        if self._triggers is not None:
            await self._triggers.evaluate(told)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look(time.time())
            except Exception:  # whatever it is, the next look may go well
                log.exception("looking at outcomes and captures failed")

    def _open_store(self, state_dir: Path) -> OutcomeStore:
        with self._opening:  # models are loaded side by side
            if self._store is None:
                store = OutcomeStore(state_dir)
                store.open()
                self._store = store
            return self._store

    async def _rotate(self, now: float) -> None:
        """Close old files, and let go of the captures of versions that are gone."""
        for key, capture in list(self._captures.items()):
            if capture.closed:
                if self._captures[key] is capture:
                    del self._captures[key]
                continue
            try:
                await asyncio.to_thread(capture.rotate, now)
            except OSError as error:  # its rows are in the journal still, and saved by the next start
                log.error("%r cannot close its file: %s", capture, error)  # noqa: TRY400

    def _note_drift(self, store: OutcomeStore, told: Mapping[tuple[str, int], Sequence[Reading]]) -> None:
        """Keep each drift score once, to be compared with outcomes of the same time."""
        for key, readings in told.items():
            for reading in readings:
                if (
                    reading.signal == "drift"
                    and self._drift_at.get(key) != reading.at
                    and not math.isnan(reading.value)
                ):
                    try:
                        store.note_drift(*key, reading.at, reading.value)
                    except Overloaded:
                        return
                    self._drift_at[key] = reading.at

    async def _judge(self, store: OutcomeStore, now: float) -> None:
        """Make the figures anew if they may have changed, and forget what is old."""
        counted = store.statistics()
        if counted == self._figured and now - self._figured_at < STALE_S:
            return
        if now - self._figured_at >= STALE_S:
            await asyncio.wrap_future(store.prune(now))
            self._figured_at = now
        self._figured = counted
        self._figures = await asyncio.to_thread(version_figures, store.path, now)
