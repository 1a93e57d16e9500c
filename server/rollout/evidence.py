"""What is known of the two versions on one step of a rollout.

Rule: nothing here reads a clock; a request is counted once, by the version that was asked first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server.rollout.bounds import lower

_BINS: Final = 1.0 / math.log(1.1)
"""Bins of latency grow by a tenth: that is the error of a quantile."""
_SHORTEST_S: Final = 1e-6


@dataclass(slots=True)
class Arm:
    """One version's own requests."""

    requests: int = 0
    failures: int = 0
    """Requests that it did not answer, or too late."""
    faults: int = 0
    """Of these, those that no load can excuse: it raised, or was gone."""
    bins: dict[int, int] = field(default_factory=dict)
    """Answered requests by the logarithm of their seconds."""

    def answered(self, seconds: float) -> None:
        """It answered a request after so long."""
        self.requests += 1
        place = _bin(seconds)
        self.bins[place] = self.bins.get(place, 0) + 1

    def failed(self, *, fault: bool) -> None:
        """It did not answer a request, or too late; `fault`: and no load can excuse that."""
        self.requests += 1
        self.failures += 1
        self.faults += fault

    @property
    def answers(self) -> int:
        """Requests that were not failed."""
        return self.requests - self.failures

    @property
    def failure_rate(self) -> float:
        """Share of requests that failed; 0 without any."""
        return self.failures / self.requests if self.requests else 0.0

    @property
    def fault_rate(self) -> float:
        """Share of requests that ended with a fault; 0 without any."""
        return self.faults / self.requests if self.requests else 0.0

    def quantile_s(self, quantile: float, level: float = 0.0) -> float:
        """Upper end of the quantile's bin; NaN without a sample.

        With a `level`: what the true quantile exceeds with a probability of at most that; infinite when the sample is
        too small to say.
        """
        below = 0
        for place in sorted(self.bins):
            below += self.bins[place]
            share = below / self.answers
            if (lower(share, self.answers, level) if level else share) >= quantile:
                return _seconds(place + 1)
        return math.inf if self.bins or level else math.nan

    def share_above(self, seconds: float) -> float:
        """Share of answers that certainly took longer; 0 without any."""
        if not self.bins or seconds == math.inf:
            return 0.0
        return sum(count for place, count in self.bins.items() if _seconds(place) >= seconds) / self.answers

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "requests": self.requests,
            "failures": self.failures,
            "faults": self.faults,
            "bins": sorted(self.bins.items()),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Arm:
        """The inverse."""
        return cls(
            int(data["requests"]), int(data["failures"]), int(data["faults"]), {int(b): int(n) for b, n in data["bins"]}
        )


def _bin(seconds: float) -> int:
    return math.floor(math.log(max(seconds, _SHORTEST_S)) * _BINS)


def _seconds(place: int) -> float:
    """Where a bin begins."""
    return math.exp(place / _BINS)


@dataclass(slots=True)
class Evidence:
    """Of one step."""

    stable: Arm = field(default_factory=Arm)
    candidate: Arm = field(default_factory=Arm)
    compared: int = 0
    agreed: float = 0.0
    """Sum over compared requests of the share of their rows on which the two agreed."""
    max_error: float = 0.0
    """Largest absolute difference that was seen."""

    @property
    def agreement(self) -> float:
        """Mean over the compared requests; NaN without any."""
        return self.agreed / self.compared if self.compared else math.nan

    def compare(self, agreement: float, max_error: float) -> None:
        """Two answers have been compared."""
        self.compared += 1
        self.agreed += agreement
        self.max_error = max(self.max_error, max_error)
