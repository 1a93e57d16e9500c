"""Watches one model version: gathers windows of rows, compares them with the reference, and says what it found.

Rule: everything is computed on the tap's thread; readers get what was found last.
Promise: without drift, no signal raises an alarm more often than the level says while one whole window passes: each of
the looks at a window has its share of the level, as Bonferroni has it, which overlapping windows make cautious.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from engines.spec import ModelSpec
from engines.tensor import Tensor
from server.watch import scores
from server.watch.compare import Comparer, Comparison, Distribution
from server.watch.kinds import ANSWERS_ONLY
from server.watch.learn import Lessons
from server.watch.observation import Observation
from server.watch.plan import Matrix
from server.watch.readings import VOLUME, Reading
from server.watch.reference import Reference
from server.watch.settings import LEAST_WINDOW, WatchOptions
from server.watch.table import Table
from server.watch.windows import Window

HISTORY: Final = 720
"""Looks that are remembered: two hours of one every ten seconds."""
MAX_SIGNALS: Final = 32
"""Inputs that have a signal of their own; metrics have a series for each. The others still count in `drift`."""
VOLUME_S: Final = 60.0
"""Over how long the volume is taken."""
CONFIDENCE: Final = "confidence"


class State(enum.StrEnum):
    """What a monitor is doing."""

    BLIND = "blind"
    """There is no reference, and none will be learned."""
    LEARNING = "learning"
    GATHERING = "gathering"
    """Until the first window is full."""
    WATCHING = "watching"


@dataclass(frozen=True, slots=True)
class Look:
    """What one comparison found."""

    at: float
    readings: Mapping[str, Reading]
    inputs: Comparison
    answers: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorStatistics:
    """A snapshot."""

    state: State
    note: str
    """Where the reference comes from, or why there is none."""
    reference_rows: int
    window_rows: int
    """Rows in the window now."""
    looks: int
    alarm_p_value: float
    readings: Mapping[str, Reading]
    last: Look | None
    history: tuple[tuple[float, Mapping[str, Reading]], ...]
    """Times and readings, oldest first."""


class _Side:
    """Inputs or answers: the reference's table, and the window that is compared with it."""

    def __init__(self, table: Table, options: WatchOptions) -> None:
        self.table = table
        self.comparer = Comparer(table)
        self.window = Window(options.window_rows, len(table.columns), options.window_s)

    def ready(self, options: WatchOptions) -> bool:
        return self.window.full or (options.window_s > 0 and len(self.window) >= LEAST_WINDOW)


class Monitor:
    """See the module. A Sink of the tap."""

    def __init__(
        self,
        spec: ModelSpec,
        options: WatchOptions,
        reference: Reference | None,
        problem: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`problem` says why there is no reference where there should be one."""
        self.spec = spec
        self.options = options
        self._clock = clock
        self._problem = problem
        self._lock = threading.Lock()
        self._inputs: _Side | None = None
        self._answers: _Side | None = None
        self._reference: Reference | None = None
        self._lessons: Lessons | None = None
        self._since_look = 0
        self._looked_at = float("-inf")
        self._looks = 0
        self._last: Look | None = None
        self._history: deque[tuple[float, Mapping[str, Reading]]] = deque(maxlen=HISTORY)
        self._volume: deque[tuple[float, int]] = deque()
        self._volume_lock = threading.Lock()  # its own: whoever reads must not wait for a comparison
        if reference is not None:
            self._take_on(reference)
        elif options.learn_rows:
            self._lessons = Lessons(spec, options)

    def __repr__(self) -> str:
        now = self.statistics()
        alarms = ", ".join(name for name, reading in now.readings.items() if reading.alarm) or "none"
        return (
            f"<Monitor {self.spec.name}:{self.spec.version} "
            f"[{now.state.value} | window: {now.window_rows} rows | looks: {now.looks} | alarms: {alarms}]>"
        )

    def observe(self, observations: Sequence[Observation]) -> None:
        """See Sink.observe."""
        with self._lock:
            self._count(observations)
            if self._lessons is not None:
                observations = self._learn(self._lessons, observations)
            if self._inputs is not None and observations:
                self._push(observations)

    def close(self) -> None:
        """See Sink.close. Nothing is left to write."""

    def readings(self) -> Mapping[str, Reading]:
        """The latest of each signal, by name; empty before the first look, but for the volume."""
        found = dict(self._last.readings) if self._last is not None else {}
        return MappingProxyType(found | {VOLUME: self._volume_now()})

    def statistics(self) -> MonitorStatistics:
        """A snapshot."""
        reference, inputs, last = self._reference, self._inputs, self._last
        if reference is None:
            state = State.LEARNING if self._lessons is not None else State.BLIND
        else:
            state = State.GATHERING if last is None else State.WATCHING
        return MonitorStatistics(
            state=state,
            note=self._note(),
            reference_rows=0 if reference is None else reference.inputs.rows,
            window_rows=0 if inputs is None else len(inputs.window),
            looks=self._looks,
            alarm_p_value=self.options.alarm_p_value,
            readings=self.readings(),
            last=last,
            history=tuple(self._history),
        )

    def distributions(self) -> tuple[list[Distribution], list[Distribution]]:
        """Reference and current window side by side: of the inputs, and of the answers. Takes milliseconds."""
        with self._lock:
            sides = [
                (side.comparer, side.window.rows()) if side is not None and len(side.window) else None
                for side in (self._inputs, self._answers)
            ]
        inputs, answers = ([] if side is None else side[0].distributions(side[1]) for side in sides)
        return inputs, answers

    def _note(self) -> str:
        if self._reference is not None:
            return self._reference.source
        if self._lessons is not None:
            return f"{self._lessons.rows} of {self.options.learn_rows} rows learned"
        return self._problem or "there is no baseline: make one with `kairos baseline`, or set watch.learn_rows"

    def _take_on(self, reference: Reference) -> None:
        self._reference = reference
        self._inputs = _Side(reference.inputs, self.options)
        self._answers = None if reference.answers is None else _Side(reference.answers, self.options)

    def _learn(self, lessons: Lessons, observations: Sequence[Observation]) -> Sequence[Observation]:
        """Learn from these; returns those that come after the last lesson."""
        for index, observation in enumerate(observations):
            if (learnt := lessons.take(observation)) is not None:
                self._lessons = None
                self._take_on(learnt)
                return observations[index + 1 :]
        return ()

    def _push(self, observations: Sequence[Observation]) -> None:
        """Move rows into the windows, no more at a time than lie between two looks."""
        assert self._inputs is not None
        rows = [each.request.rows for each in observations]
        times = np.repeat([each.at for each in observations], rows)
        batched = self.spec.batched
        inputs = self._inputs.table.of_requests([each.request.inputs for each in observations], rows, batched=batched)
        answers, told = self._of_answers(observations, rows)
        stride = self.options.stride
        start = 0
        while start < len(times):
            stop = start + stride - self._since_look % stride
            part = slice(start, stop)
            self._inputs.window.push(inputs[part], times[part])
            if self._answers is not None and answers is not None:
                here = told[part]
                self._answers.window.push(answers[part][here], times[part][here])
            self._since_look += len(times[part])
            self._look_if_due(float(times[part][-1]))
            start = stop

    def _of_answers(
        self, observations: Sequence[Observation], rows: Sequence[int]
    ) -> tuple[Matrix | None, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        """Columns of the answers, and which rows have any: callers need not ask for the output that is watched."""
        if self._answers is None:
            return None, np.zeros(0, np.bool_)
        outputs: list[tuple[Tensor, ...]] = [each.response.outputs for each in observations]
        found = self._answers.table.of_requests(outputs, rows, batched=self.spec.batched)
        asked = {plan.tensor for plan in self._answers.table.plans}
        told = [any(tensor.name in asked for tensor in tensors) for tensors in outputs]
        return found, np.repeat(told, rows)

    def _look_if_due(self, now: float) -> None:
        if self._since_look < self.options.stride or 0 <= now - self._looked_at < self.options.look_s:
            return  # a clock that was set back must not end the looks
        assert self._inputs is not None
        self._inputs.window.expire(now)
        if not self._inputs.ready(self.options):
            return
        self._since_look, self._looked_at = 0, now
        self._looks += 1
        inputs = self._inputs.comparer.compare(self._inputs.window.rows())
        found = self._drift(inputs, now)
        answers = None
        if self._answers is not None:
            self._answers.window.expire(now)
            if self._answers.ready(self.options):
                window = self._answers.window.rows()
                answers = self._answers.comparer.compare(window)
                found["prediction_drift"] = self._reading("prediction_drift", answers, None, now)
                found |= self._confidence(self._answers.table, window, now)
        self._last = Look(now, MappingProxyType(found), inputs, answers)
        self._history.append((now, self._last.readings))

    def _drift(self, inputs: Comparison, now: float) -> dict[str, Reading]:
        assert self._inputs is not None
        found = {"drift": self._reading("drift", inputs, None, now)}
        for plan in self._inputs.table.plans[:MAX_SIGNALS]:
            signal = f"drift.{plan.tensor}"
            found[signal] = self._reading(signal, inputs, plan.tensor, now)
        return found

    def _reading(self, signal: str, compared: Comparison, tensor: str | None, now: float) -> Reading:
        p_value, psi = compared.p_value(tensor), compared.psi(tensor)
        alarm = p_value <= self.options.alarm_p_value and psi >= self.options.least_psi
        return Reading(signal, psi, alarm, compared.rows, now, p_value)

    def _confidence(self, table: Table, window: Matrix, now: float) -> dict[str, Reading]:
        """Mean confidence; an alarm when it is lower than the reference's."""
        if table.plans[0].kind not in ANSWERS_ONLY:
            return {}
        at = [column.name for column in table.columns].index(CONFIDENCE)
        before, here = table.sample.rows[:, at], window[:, at]
        before, here = before[~np.isnan(before)], here[~np.isnan(here)]
        if not len(here):
            return {}
        test = scores.lower(before, here)
        alarm = test.p_value <= self.options.alarm_p_value
        return {CONFIDENCE: Reading(CONFIDENCE, float(here.mean()), alarm, len(here), now, test.p_value)}

    def _count(self, observations: Sequence[Observation]) -> None:
        with self._volume_lock:
            self._volume.append((observations[-1].at, len(observations)))
            self._forget(self._volume[-1][0])

    def _forget(self, now: float) -> None:
        while self._volume and self._volume[0][0] <= now - VOLUME_S:
            self._volume.popleft()

    def _volume_now(self) -> Reading:
        """Requests a second over the last minute, reckoned from the sampled ones."""
        now = self._clock()
        with self._volume_lock:
            self._forget(now)
            seen = sum(count for _, count in self._volume)
        return Reading(VOLUME, seen / self.options.rate / VOLUME_S, alarm=False, samples=seen, at=now)
