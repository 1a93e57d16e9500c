"""When requests are due: times drawn before the first one is sent, so that no server can slow them down.

Rule: pure; the same seed gives the same times. Times are seconds from the start of the run, in order.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engines.scheduling.arrivals import Bursts, bursty, poisson


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests arrive."""

    kind: str = "poisson"
    """poisson, uniform, bursty, ramp, step, trace, or closed (so many callers, each waits for its answer)."""
    rate: float = 100.0
    """Requests a second, on the mean; where a ramp begins."""
    to_rate: float = 0.0
    """Where a ramp ends."""
    steps: tuple[float, ...] = ()
    """The rates of the steps, each for an equal part of the run."""
    bursts: Bursts = field(default_factory=Bursts)
    trace: str = ""
    """A file of JSON lines, as the simulator reads them."""
    speed: float = 1.0
    """How many times as fast the trace is played."""
    callers: int = 1
    """Of a closed loop."""


KINDS = ("poisson", "uniform", "bursty", "ramp", "step", "trace", "closed")


def times(arrivals: Arrivals, seconds: float, rng: random.Random) -> Iterator[float]:
    """The times of a run of `seconds`, for all kinds but trace and closed."""
    return itertools.takewhile(lambda at: at < seconds, _endless(arrivals, seconds, rng))


def _endless(arrivals: Arrivals, seconds: float, rng: random.Random) -> Iterator[float]:
    forever = 2**62
    match arrivals.kind:
        case "poisson":
            return poisson(arrivals.rate, forever, rng)
        case "bursty":
            return bursty(arrivals.rate, forever, rng, arrivals.bursts)
        case "uniform":
            return (number / arrivals.rate for number in itertools.count())
        case "ramp":
            return ramp(arrivals.rate, arrivals.to_rate, seconds, rng)
        case "step":
            return steps(arrivals.steps, seconds, rng)
    raise ValueError(f"no times are drawn for arrivals of kind {arrivals.kind!r}")


def ramp(rate: float, to_rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Poisson arrivals whose rate goes evenly from `rate` to `to_rate`: a process of rate 1, its time bent.

    The bend inverts the expected number of arrivals, rate * t + slope * t^2 / 2.
    """
    slope = (to_rate - rate) / seconds
    total = (rate + to_rate) / 2 * seconds
    for expected in poisson(1.0, 2**62, rng):
        if expected >= total:
            return
        if abs(slope) < 1e-9 * max(rate, to_rate):
            yield expected / rate
        else:
            yield (math.sqrt(rate * rate + 2 * slope * expected) - rate) / slope


def steps(rates: Sequence[float], seconds: float, rng: random.Random) -> Iterator[float]:
    """Poisson arrivals at each of the rates in turn, for equal parts of the time."""
    length = seconds / len(rates)
    for number, rate in enumerate(rates):
        begins = number * length
        if rate > 0.0:
            within: Iterable[float] = itertools.takewhile(lambda at: at < length, poisson(rate, 2**62, rng))
            yield from (begins + at for at in within)


def offered(arrivals: Arrivals, seconds: float) -> float:
    """The mean rate that is asked of the server, before any draw."""
    if arrivals.kind == "ramp":
        return (arrivals.rate + arrivals.to_rate) / 2
    if arrivals.kind == "step":
        return sum(arrivals.steps) / len(arrivals.steps)
    return arrivals.rate if seconds else 0.0
