"""Where simulated requests come from: Poisson, bursts, a recorded trace."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Arrival(NamedTuple):
    """One request to come."""

    at: float
    left_s: float = math.inf
    """Seconds from the arrival to the deadline; infinite for none."""
    rows: int = 1
    model: int = 0
    tenant: str = ""
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What requests are like; each is drawn by itself."""

    slos: Mapping[float, float]
    """Share of the requests by the seconds they have to their deadline (infinite: none); shares need not add to 1."""
    rows: Mapping[int, float]
    """The same by rows."""
    models: int = 1
    """Models that share the device, all asked alike."""

    def draw(self, times: Iterable[float], rng: random.Random) -> Iterator[Arrival]:
        """Requests at these times."""
        slos, slo_shares = list(self.slos), list(self.slos.values())
        sizes, size_shares = list(self.rows), list(self.rows.values())
        for at in times:
            left = rng.choices(slos, slo_shares)[0]
            rows = rng.choices(sizes, size_shares)[0] if len(sizes) > 1 else sizes[0]
            yield Arrival(at, left, rows, rng.randrange(self.models) if self.models > 1 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """On/off modulation of a Poisson process; the mean rate stays what it was when the shares balance."""

    high: float = 2.5
    """Times the mean rate while a burst lasts."""
    low: float = 0.5
    """Times the mean rate in between."""
    high_s: float = 0.25
    """Mean length of a burst; lengths are exponential."""
    low_s: float = 0.75


def poisson(rate: float, count: int, rng: random.Random) -> Iterator[float]:
    """`count` arrival times at `rate` a second."""
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(rate)
        yield at


def bursty(rate: float, count: int, rng: random.Random, bursts: Bursts | None = None) -> Iterator[float]:
    """`count` arrival times whose mean rate is `rate`, in bursts."""
    shape = bursts or Bursts()
    at, high = 0.0, False
    phase_ends = rng.expovariate(1.0 / shape.low_s)
    while count > 0:
        gap = rng.expovariate(rate * (shape.high if high else shape.low))
        if at + gap < phase_ends:
            at += gap
            count -= 1
            yield at
        else:  # the exponential law has no memory: begin anew in the next phase
            at = phase_ends
            high = not high
            phase_ends = at + rng.expovariate(1.0 / (shape.high_s if high else shape.low_s))


def recorded(lines: Iterable[str], *, speed: float = 1.0) -> list[Arrival]:
    """Requests from JSON lines `{"t": seconds, "rows": 1, "deadline": seconds after t or null}`, played `speed` fast.

    Optional keys: tenant, priority. Raises ValueError, naming the line, when one cannot be read.
    """
    arrivals = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            left = record.get("deadline")
            arrivals.append(
                Arrival(
                    at=float(record["t"]) / speed,
                    left_s=math.inf if left is None else float(left),
                    rows=int(record.get("rows", 1)),
                    tenant=str(record.get("tenant", "")),
                    level=int(record.get("priority", 0)),
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} of the trace cannot be read: {error!r}") from error
    arrivals.sort()
    first = arrivals[0].at if arrivals else 0.0
    return [arrival._replace(at=arrival.at - first) for arrival in arrivals]


def mean_rows(arrivals: Sequence[Arrival]) -> float:
    """Rows in an average request."""
    return sum(arrival.rows for arrival in arrivals) / max(1, len(arrivals))
