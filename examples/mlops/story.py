"""What happened during the loop, second by second: the picture and the verdict are made of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answer:
    """One call."""

    at: float
    """Seconds since 1970, like all times here."""
    version: str
    right: bool


@dataclass(frozen=True, slots=True)
class Sight:
    """What the server said of itself at one time."""

    at: float
    drift: dict[str, float]
    """By version: the largest PSI of the inputs."""
    alarms: dict[str, frozenset[str]]
    """By version: signals in alarm."""
    share: float
    """Of the callers, those that get the candidate."""


@dataclass(slots=True)
class Story:
    """See the module. Threads append to it, and never change what is there."""

    answers: list[Answer] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    """When a step began, and its name."""

    @property
    def began(self) -> float:
        """When the first caller was answered."""
        return self.answers[0].at

    def mark(self, name: str) -> None:
        """A step begins."""
        self.marks.append((time.time(), name))

    def accuracy(self, since: float, until: float = float("inf")) -> float:
        """Share of right answers within that time; NaN without any."""
        found = [answer.right for answer in self.answers if since <= answer.at < until]
        return sum(found) / len(found) if found else float("nan")
