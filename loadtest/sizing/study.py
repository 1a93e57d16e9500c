"""What was measured, as plain figures that JSON keeps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TLS: Final = "TLS, small requests"
TLS_LARGE: Final = "TLS, large requests"
LARGE_KIB: Final = 600
"""Size of the large ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One run of the generator against one server or several."""

    part: str
    """Which question it belongs to."""
    name: str = ""
    """Which variation."""
    x: float
    """What grows: callers, KiB, share of capacity, connections, models, instances or processes."""
    answers_per_s: float
    cpu_us: float
    """CPU of the servers for each request sent: user and system, all threads."""
    loop_us: float
    """The part of it that their event loops used."""
    rows_per_batch: float | None = None
    """None: not known."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    refused: float = 0.0
    """Share of the requests that ended otherwise than by an answer."""
    least_share: float = 1.0
    """Of several servers: the smallest share of the CPU that one of them used, times their number."""
    faults: Sequence[str] = ()
    """Why the generator, not the server, was the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """So many connections without calls."""

    connections: int
    tls: bool
    rss_kib: float
    """Of the whole server."""
    opening_us: float = 0.0
    """Server CPU to open one."""
    cores: float = 0.0
    """Cores that the server used while nobody called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """So many models loaded."""

    models: int
    rss_kib: float
    file_kib: float
    """Of one model's file."""
    ready_s: float
    """From the start of the process until it served, nothing in the cache of graphs."""
    threads: int
    scrape_ms: float
    """One look at /metrics."""
    scrape_kib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a feature costs: CPU for each request as a multiple of the same without it, turn by turn."""

    name: str
    without_us: float
    ratios: Sequence[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def extra_us(self) -> float:
        """CPU that it adds to a request; what would be less than nothing is noise."""
        return max(0.0, (self.ratio - 1) * self.without_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Memory of a server with one tiny model after its first calls."""

    rss_kib: float
    pss_kib: float
    """What it shares with other processes counts by halves, thirds and so on."""


Found = Base | Load | Idle | Models | Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that one run found."""

    machine: str
    command: str
    at: str
    minutes: float
    base: Sequence[Base] = field(default_factory=list)
    loads: Sequence[Load] = field(default_factory=list)
    idles: Sequence[Idle] = field(default_factory=list)
    models: Sequence[Models] = field(default_factory=list)
    prices: Sequence[Price] = field(default_factory=list)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Study:
        """As it was written to JSON."""
        kinds = {"base": Base, "loads": Load, "idles": Idle, "models": Models, "prices": Price}
        rows = {name: [kind(**row) for row in data[name]] for name, kind in kinds.items()}
        return cls(**{**data, **rows})

    def price(self, name: str) -> Price:
        """The price of that name. ValueError where it was not measured."""
        for price in self.prices:
            if price.name == name:
                return price
        raise ValueError(f"the price of {name} is missing")

    def pick(self, part: str, name: str = "") -> list[Load]:
        """The runs of one question and variation; of several rounds, the medians, by what grows."""
        found = [load for load in self.loads if load.part == part and load.name == name]
        return [middle([load for load in found if load.x == x]) for x in sorted({load.x for load in found})]


def middle(rounds: Sequence[Load]) -> Load:
    """The median of each figure; what was at fault in any of the rounds."""

    def of(get: Callable[[Load], float | None]) -> float | None:
        return median_of(get(load) for load in rounds)

    first = rounds[0]
    return Load(
        part=first.part, name=first.name, x=first.x,
        answers_per_s=of(lambda load: load.answers_per_s) or 0.0, cpu_us=of(lambda load: load.cpu_us) or 0.0,
        loop_us=of(lambda load: load.loop_us) or 0.0, rows_per_batch=of(lambda load: load.rows_per_batch),
        p50_ms=of(lambda load: load.p50_ms), p99_ms=of(lambda load: load.p99_ms),
        refused=of(lambda load: load.refused) or 0.0, least_share=of(lambda load: load.least_share) or 0.0,
        faults=[fault for load in rounds for fault in load.faults],
    )  # fmt: skip


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
