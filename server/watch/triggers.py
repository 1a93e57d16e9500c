"""Decides when something has happened to a model that somebody must be told of.

Rules: nothing here reads a clock, awaits, locks, logs or touches a file; time comes as `now`.
Promises: an episode, from the reading that raises a rule to the one that clears it, gives exactly one event; the same
reading told twice counts once; the state is plain data, so that it can outlive the process at any step; an event of the
same episode always has the same id.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

from server.watch.readings import Reading

MAX_RECENT: Final = 1000
"""Most readings of a window; older ones leave early."""


class Phase(enum.StrEnum):
    """Where a rule is with a model version."""

    QUIET = "quiet"
    RAISED = "raised"


class Verdict(enum.Enum):
    """What the readings of a window say."""

    RAISE = enum.auto()
    CLEAR = enum.auto()
    BETWEEN = enum.auto()  # beyond the one threshold, not beyond the other: nothing changes


class Aggregate(enum.StrEnum):
    """What stands for all readings of a window."""

    MEAN = "mean"
    MIN = "min"
    MAX = "max"


_AGGREGATE: Final[Mapping[Aggregate, Callable[[Sequence[float]], float]]] = {
    Aggregate.MEAN: lambda values: math.fsum(values) / len(values),
    Aggregate.MIN: min,
    Aggregate.MAX: max,
}

LEAVING: Final[Mapping[Phase, Verdict]] = {Phase.QUIET: Verdict.RAISE, Phase.RAISED: Verdict.CLEAR}
"""What a phase ends by, told often enough in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When to raise, when to clear, and what to do. Of `above`, `below` and `alarm` exactly one is set."""

    name: str
    signal: str
    """Of the readings that it looks at: `drift`, `accuracy`, `outcome.revenue`, ..."""
    model: str = ""
    """Empty: each model by itself."""
    above: float = math.nan
    """Raise when the value is greater."""
    below: float = math.nan
    """Raise when the value is less."""
    alarm: bool = False
    """Raise when the reading says itself that it is an alarm."""
    clear: float = math.nan
    """Clear when the value is back at this, on the other side of the threshold. NaN: at the threshold itself."""
    raise_after: int = 1
    """How many readings in a row must say so."""
    clear_after: int = 1
    window_s: float = 0.0
    """Judge the readings of this time together. 0: each by itself."""
    aggregate: Aggregate = Aggregate.MEAN
    min_samples: int = 1
    """Readings of fewer rows are not looked at."""
    cooldown_s: float = 0.0
    """After an event no other one for this long; if it is still raised then, it comes then."""
    actions: tuple[str, ...] = ()

    @property
    def threshold(self) -> float:
        """The value beyond which it raises; NaN for an alarm."""
        return self.below if math.isnan(self.above) else self.above

    def judge(self, value: float, *, alarm: bool) -> Verdict:
        """One value against both thresholds."""
        if self.alarm:
            return Verdict.RAISE if alarm else Verdict.CLEAR
        sign = 1.0 if math.isnan(self.below) else -1.0
        clear = self.threshold if math.isnan(self.clear) else self.clear
        if sign * value > sign * self.threshold:
            return Verdict.RAISE
        return Verdict.CLEAR if sign * value <= sign * clear else Verdict.BETWEEN


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleState:
    """All that is known of a rule and a model version from one reading to the next."""

    phase: Phase = Phase.QUIET
    streak: int = 0
    """Readings in a row that say to leave the phase."""
    episode: int = 0
    """How many there have been."""
    fired_at: float = -1.0
    """When the last event was. Below 0: never."""
    read_at: float = -1.0
    """Time of the last reading."""
    recent: tuple[tuple[float, float], ...] = ()
    """Time and value of the readings in the window."""

    def as_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> RuleState:
        """Raises KeyError, TypeError or ValueError for anything else."""
        recent = tuple((float(at), float(value)) for at, value in given["recent"])
        return cls(**{**given, "phase": Phase(given["phase"]), "recent": recent})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What somebody must be told, once."""

    id: str
    """The same whenever this episode's event is made or sent again."""
    rule: str
    model: str
    version: int
    episode: int
    signal: str
    value: float
    """Of the window, when it raised."""
    threshold: float
    """NaN: the reading was an alarm by its own test."""
    samples: int
    p_value: float
    at: float
    """Of the reading that raised it, in seconds since 1970."""


Key: TypeAlias = tuple[str, str, int]
"""Rule, model and version."""
States: TypeAlias = Mapping[Key, RuleState]


def evaluate(rule: Rule, state: RuleState, reading: Reading, now: float) -> tuple[RuleState, float | None]:
    """The next state, and the value of the window if this is the moment of an event."""
    if reading.at <= state.read_at or reading.samples < rule.min_samples or math.isnan(reading.value):
        return state, None
    told = (float(reading.at), float(reading.value))  # numpy's numbers are not plain data
    recent = (*state.recent, told) if rule.window_s else (told,)
    recent = tuple(each for each in recent if each[0] > reading.at - rule.window_s or each[0] == reading.at)
    value = _AGGREGATE[rule.aggregate]([each for _, each in recent])
    leaves = rule.judge(value, alarm=reading.alarm) is LEAVING[state.phase]
    state = replace(
        state,
        read_at=told[0],
        recent=recent[-MAX_RECENT:] if rule.window_s else (),
        streak=state.streak + 1 if leaves else 0,
    )
    if state.phase is Phase.RAISED:
        ended = state.streak >= rule.clear_after
        return (replace(state, phase=Phase.QUIET, streak=0) if ended else state), None
    cooling = state.fired_at >= 0.0 and now - state.fired_at < rule.cooldown_s
    if state.streak < rule.raise_after or cooling:
        return state, None
    return replace(state, phase=Phase.RAISED, streak=0, episode=state.episode + 1, fired_at=now), value


def evaluate_all(
    rules: Iterable[Rule], states: States, origin: str, told: Mapping[tuple[str, int], Sequence[Reading]], now: float
) -> tuple[dict[Key, RuleState], list[Event]]:
    """The states that changed and the events, by the readings of each model version. `origin` makes ids unique."""
    changed: dict[Key, RuleState] = {}
    events: list[Event] = []
    for rule in rules:
        for (model, version), readings in told.items():
            if rule.model not in ("", model):
                continue
            key = (rule.name, model, version)
            before = states.get(key, RuleState())
            after = before
            for reading in readings:
                if reading.signal == rule.signal:
                    after, value = evaluate(rule, after, reading, now)
                    if value is not None:
                        events.append(_event(rule, key, after.episode, reading, value, origin))
            if after != before:
                changed[key] = after
    return changed, events


def _event(rule: Rule, key: Key, episode: int, reading: Reading, value: float, origin: str) -> Event:
    _, model, version = key
    words = "\0".join((origin, rule.name, model, str(version), str(episode)))
    return Event(
        id=hashlib.blake2b(words.encode(), digest_size=16).hexdigest(),
        rule=rule.name, model=model, version=version, episode=episode,
        signal=rule.signal, value=value, threshold=rule.threshold,
        samples=int(reading.samples), p_value=float(reading.p_value), at=float(reading.at),
    )  # fmt: skip
