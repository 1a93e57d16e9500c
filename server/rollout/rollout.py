"""One model's way from its stable version to a candidate: stages as a table, steps as a list of shares.

Rules: `now` is an argument (any monotonic seconds); nothing here awaits or writes. `changed` is called after each
change that must outlive the process.
Promises: a stage is only ever left as the table says; nothing leads out of an end. Evidence counts for the step that it
was gathered on, and for the files that it was gathered with: a candidate with other files begins again.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.rollout.evidence import Arm, Evidence
from server.rollout.judge import Alarms, Finding, Judge, Verdict
from server.rollout.plan import SHADOW_STEP, Plan, read_plan

HISTORY: Final = 50
"""Entries that are kept of what happened."""


class Stage(enum.StrEnum):
    """Where a rollout stands."""

    WAITING = "waiting"
    """The candidate is not up; the stable version answers."""
    RUNNING = "running"
    """The candidate has the share of the present step."""
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"


class Event(enum.Enum):
    """What happens to a rollout."""

    ARRIVED = "arrived"
    LEFT = "left"
    PASSED = "passed"
    FINISHED = "finished"
    FAILED = "failed"
    PROMOTE = "promote"
    ABORT = "abort"


NEXT: Final[Mapping[Stage, Mapping[Event, Stage]]] = {
    Stage.WAITING: {Event.ARRIVED: Stage.RUNNING, Event.FAILED: Stage.ROLLED_BACK, Event.ABORT: Stage.ABORTED},
    Stage.RUNNING: {
        Event.LEFT: Stage.WAITING,
        Event.PASSED: Stage.RUNNING,
        Event.FINISHED: Stage.PROMOTED,
        Event.FAILED: Stage.ROLLED_BACK,
        Event.PROMOTE: Stage.PROMOTED,
        Event.ABORT: Stage.ABORTED,
    },
    Stage.PROMOTED: {},
    Stage.ROLLED_BACK: {},
    Stage.ABORTED: {},
}

_WORDS: Final[Mapping[Event, str]] = {
    Event.ARRIVED: "the candidate is up",
    Event.LEFT: "the candidate is gone; the stable version answers alone",
    Event.PASSED: "passed",
    Event.FINISHED: "promoted",
    Event.FAILED: "rolled back",
    Event.PROMOTE: "promoted by an operator",
    Event.ABORT: "aborted by an operator",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened."""

    at: float
    """Seconds since 1970."""
    text: str


class Rollout:
    """See the module."""

    def __init__(
        self,
        model: str,
        plan: Plan,
        changed: Callable[[Rollout], None] = lambda _: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self.plan = plan
        self.stage = Stage.WAITING
        self.step = 0
        self.reason = ""
        """Why it came to its end; while it runs, what it waits for."""
        self.digest = ""
        """Of the candidate's files; empty until it was there."""
        self.evidence = Evidence()
        self.history: deque[Entry] = deque(maxlen=HISTORY)
        self._changed = changed
        self._wall = wall
        self._judge = Judge(plan, plan.steps[0])
        self._since: float | None = None

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<Rollout {self.model} {plan.stable} -> {plan.candidate} [{self.stage.value}, step {self.step + 1} of "
            f"{len(plan.steps)}, share {self.share:g}]>"
        )

    # ---- what follows from it

    @property
    def active(self) -> bool:
        """Whether it has not come to its end."""
        return bool(NEXT[self.stage])

    @property
    def shadowing(self) -> bool:
        """Whether the candidate only sees copies."""
        return self.stage is Stage.RUNNING and self.share == SHADOW_STEP

    @property
    def share(self) -> float:
        """Of the default traffic that the candidate answers."""
        if self.stage is Stage.RUNNING:
            return self.plan.steps[self.step]
        return 1.0 if self.stage is Stage.PROMOTED else 0.0

    @property
    def default(self) -> int:
        """The version that answers whoever the candidate does not."""
        return self.plan.candidate if self.stage is Stage.PROMOTED else self.plan.stable

    @property
    def kept(self) -> frozenset[int]:
        """Versions that must stay up, whatever the model's version policy says."""
        return frozenset((self.plan.stable, self.plan.candidate)) if self.active else frozenset((self.default,))

    def stayed_s(self, now: float) -> float:
        """How long it has been on this step."""
        return 0.0 if self._since is None else now - self._since

    def describe(self, version: int) -> str:
        """What the index says of a version; empty for one that has no part in this."""
        candidate, stable = self.plan.candidate, self.plan.stable
        if version == self.default and not self.active:
            return f"rollout: {self.stage.value}; the default version until another rollout, or `abort --forget`"
        if version == stable:
            return f"rollout: the stable version, on the way to {candidate}" if self.active else ""
        if version != candidate:
            return ""
        match self.stage:
            case Stage.RUNNING if self.shadowing:
                return f"rollout: shadow, sees copies (step {self.step + 1} of {len(self.plan.steps)})"
            case Stage.RUNNING:
                where = f"step {self.step + 1} of {len(self.plan.steps)}"
                return f"rollout: canary with {self.share * 100:g} % of the default traffic ({where})"
            case Stage.WAITING:
                return "rollout: awaited"
            case _:
                return f"rollout: {self.stage.value}: {self.reason}"

    # ---- what happens to it

    def arrive(self, digest: str, now: float) -> None:
        """The candidate is up, or has been replaced; with other files than before it begins again."""
        other = self.digest not in ("", digest)
        if self.stage is Stage.RUNNING and not other:
            return
        self.digest = digest
        if other:
            self.step = 0
        self._begin_step(now)
        if self.stage is Stage.RUNNING:
            self._note("the candidate was replaced: from the beginning")
            self._changed(self)
        else:
            self._take(Event.ARRIVED)

    def leave(self) -> None:
        """The candidate is not up any more."""
        if self.stage is Stage.RUNNING:
            self._take(Event.LEFT)

    def fail(self, reason: str) -> None:
        """Something that no evidence is needed for."""
        if self.active:
            self._take(Event.FAILED, reason)

    def answered(self, arm: Arm, seconds: float) -> None:
        """One version answered; `arm` is the evidence's."""
        arm.answered(seconds)
        self._prove()

    def failed(self, arm: Arm, *, fault: bool = True) -> None:
        """One version failed a request; `fault`: in a way that no load can excuse."""
        arm.failed(fault=fault)
        self._prove()

    def compared(self, agreement: float, max_error: float) -> None:
        """The answers to one request have been compared."""
        self.evidence.compare(agreement, max_error)
        self._prove()

    def tick(self, now: float, alarms: Alarms) -> Finding | None:
        """Look at what there is; None where there is nothing to look at."""
        if self.stage is not Stage.RUNNING:
            return None
        found = self._judge.judge(self.evidence, self.stayed_s(now), alarms)
        match found.verdict:
            case Verdict.ROLL_BACK:
                self._take(Event.FAILED, found.reason)
            case Verdict.WAIT:
                self.reason = f"waits for {found.reason}"
            case Verdict.ADVANCE if self.step + 1 == len(self.plan.steps):
                self._take(Event.FINISHED, found.reason)
            case Verdict.ADVANCE:
                self.step += 1
                self._begin_step(now)
                self._take(Event.PASSED, f"{found.reason}; now {self.share * 100:g} % of the traffic")
        return found

    def promote(self) -> None:
        """An operator has seen enough. Raises ValueError when there is nothing to promote."""
        self._take(Event.PROMOTE)

    def abort(self) -> None:
        """An operator wants the stable version. Raises ValueError at an end."""
        self._take(Event.ABORT)

    def _prove(self) -> None:
        if self.stage is Stage.RUNNING and (proof := self._judge.prove(self.evidence)):
            self._take(Event.FAILED, proof)

    def _begin_step(self, now: float) -> None:
        """Forget what was seen; only the faults of a candidate with all the traffic are compared with those before."""
        share = self.plan.steps[self.step]
        before = self.evidence.stable if share == 1.0 else Arm()
        self.evidence = Evidence(stable=before)
        self._judge = Judge(self.plan, share)
        self._since = now

    def _take(self, event: Event, reason: str = "") -> None:
        following = NEXT[self.stage].get(event)
        if following is None:
            raise ValueError(f"the rollout of '{self.model}' is {self.stage.value}: it cannot be {event.value}")
        self.stage = following
        self.reason = reason if following is not Stage.WAITING else ""
        self._note(f"{_WORDS[event]}{': ' if reason else ''}{reason}")
        self._changed(self)

    def _note(self, text: str) -> None:
        self.history.append(Entry(self._wall(), text))

    # ---- from one process to the next

    def as_json(self) -> dict[str, Any]:
        """What must outlive the process: of the evidence only what a candidate with all traffic is compared with."""
        return {
            "model": self.model, "plan": self.plan.as_json(), "stage": self.stage.value, "step": self.step,
            "reason": self.reason, "digest": self.digest,
            "stable": self.evidence.stable.as_json() if self.plan.steps[self.step] == 1.0 else None,
            "history": [[entry.at, entry.text] for entry in self.history],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any], changed: Callable[[Rollout], None] = lambda _: None) -> Rollout:
        """The inverse. One that ran waits for its candidate, on its step. Raises ValueError, TypeError or KeyError."""
        found = cls(data["model"], read_plan(data["plan"]), changed)
        stage = Stage(data["stage"])
        found.stage = Stage.WAITING if stage is Stage.RUNNING else stage
        found.step = int(data["step"])
        if not 0 <= found.step < len(found.plan.steps):
            raise ValueError(f"there is no step {found.step}")
        found.reason, found.digest = str(data["reason"]), str(data["digest"])
        if data["stable"] is not None:
            found.evidence.stable = Arm.from_json(data["stable"])
        found.history.extend(Entry(float(at), str(text)) for at, text in data["history"])
        return found
