"""From a load to cores, processes and memory, by the cost model. Pure; the worksheet of docs/sizing.md in code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.sizing.fits import Coefficients

LOOP_SHARE: Final = 0.5
"""Of what a process could answer, how much it is given: at more, latency grows first."""
ENGINE_SHARE: Final = 0.7
"""Of the time, how long engines are busy: what the chart scales by, too."""
HELD: Final = 4
"""Memory over the bytes in flight: a request is there as it came, parsed and gathered (docs/reliability.md)."""
SPARE: Final = 1.25
"""The limit over what is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A load. Each field can be given by its name."""

    requests_per_s: float
    """At the peak, of all callers."""
    payload_kib: float = 1.0
    """Of a request."""
    answer_kib: float = 1.0
    engine_ms: float = 0.0
    """CPU milliseconds of the engine for a request, all its threads, in batches as they form: `kairos profile`."""
    deadline_ms: float = 100.0
    """How long a request may take; it is in memory for no longer."""
    connections: float = 100.0
    tls: float = 0.0
    """1: encrypted."""
    models: float = 1.0
    weights_mib: float = 0.0
    """Of all models, times their instances."""
    cache_mib: float = 0.0
    """What the response cache may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What it takes."""

    request_us: float
    """CPU of the server for a request, without the engine."""
    processes: int
    """Each with an event loop, and a core for it."""
    engine_cores: float
    """Of all processes together."""
    cores_each: int
    inflight_mib: float
    """Of each process: what --max-inflight-mb must at least be."""
    memory_mib: float
    """Of each process, as expected."""

    @property
    def limit_mib(self) -> int:
        """The memory limit of each process."""
        return math.ceil(self.memory_mib * SPARE)

    @property
    def cores(self) -> int:
        return self.processes * self.cores_each


def needs(wanted: Wanted, of: Coefficients) -> Needs:
    """The worksheet."""
    us = of.busy_us + of.in_us_per_kib * wanted.payload_kib + of.out_us_per_kib * wanted.answer_kib
    if wanted.tls:
        us += of.tls_us + of.tls_us_per_kib * (wanted.payload_kib + wanted.answer_kib)
    processes = max(1, math.ceil(wanted.requests_per_s * us / 1e6 / LOOP_SHARE))
    engine_cores = wanted.requests_per_s * wanted.engine_ms / 1e3 / ENGINE_SHARE
    rate = wanted.requests_per_s / processes
    inflight_mib = rate * wanted.deadline_ms / 1e3 * (wanted.payload_kib + wanted.answer_kib) / 1024
    connection_kib = of.tls_connection_kib if wanted.tls else of.connection_kib
    memory_mib = (
        of.base_mib + of.model_mib * wanted.models + wanted.weights_mib + wanted.cache_mib + HELD * inflight_mib
        + connection_kib * wanted.connections / processes / 1024
    )  # fmt: skip
    return Needs(
        request_us=us, processes=processes, engine_cores=engine_cores,
        cores_each=1 + math.ceil(engine_cores / processes - 1e-9), inflight_mib=inflight_mib, memory_mib=memory_mib,
    )  # fmt: skip


def parse(given: Sequence[str]) -> Wanted:
    """A load from words such as `requests_per_s=2000`. ValueError for what is no such word."""
    names = {each.name for each in dataclasses.fields(Wanted)}
    values: dict[str, float] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or name not in names:
            raise ValueError(f"{word!r} is none of {', '.join(f'{each}=' for each in sorted(names))}")
        try:
            values[name] = float(text)
        except ValueError:
            raise ValueError(f"{word!r}: {text!r} is no number") from None
        if not 0 <= values[name] < math.inf:
            raise ValueError(f"{word!r}: must be 0 or more")
    if "requests_per_s" not in values:
        raise ValueError("requests_per_s= is missing")
    return Wanted(**values)


def words(wanted: Wanted) -> list[str]:
    """The words that `parse` takes, without what is as by default."""
    return [
        f"{each.name}={getattr(wanted, each.name):g}"
        for each in dataclasses.fields(Wanted)
        if getattr(wanted, each.name) != each.default
    ]


def worked(wanted: Wanted, of: Coefficients) -> list[str]:
    """The five lines of the worksheet with numbers."""
    found, rate = needs(wanted, of), wanted.requests_per_s
    kib, seconds = wanted.payload_kib + wanted.answer_kib, wanted.deadline_ms / 1e3
    encrypted = f" + {of.tls_us:.0f} + {of.tls_us_per_kib:.2f} x {kib:g}" if wanted.tls else ""
    connection_kib = of.tls_connection_kib if wanted.tls else of.connection_kib
    request = (
        f"CPU of a request: {of.busy_us:.0f} + {of.in_us_per_kib:.2f} x {wanted.payload_kib:g} + "
        f"{of.out_us_per_kib:.2f} x {wanted.answer_kib:g}{encrypted} = {found.request_us:.0f} us"
    )
    processes = (
        f"processes: {rate:g} x {found.request_us:.0f} us / {LOOP_SHARE:g} = "
        f"{rate * found.request_us / 1e6 / LOOP_SHARE:.2f}, so {found.processes}"
    )
    cores = (
        f"engine cores: {rate:g} x {wanted.engine_ms:g} ms / {ENGINE_SHARE:g} = {found.engine_cores:.1f}; with one for "
        f"each event loop {found.cores_each} cores a process, {found.cores} in all"
    )
    inflight = (
        f"in flight: {rate:g} / {found.processes} x {seconds:g} s x {kib:g} KiB = {found.inflight_mib:.1f} MiB: "
        f"`--max-inflight-mb {max(1, math.ceil(found.inflight_mib))}`"
    )
    memory = (
        f"memory of a process: {of.base_mib:.0f} + {wanted.models:g} x {of.model_mib:.2f} + {wanted.weights_mib:g} + "
        f"{wanted.connections:g} / {found.processes} x {connection_kib:.0f} KiB + {HELD} x {found.inflight_mib:.1f} + "
        f"{wanted.cache_mib:g} = {found.memory_mib:.0f} MiB; limit {found.limit_mib} MiB"
    )
    return [f"{place}. {line}" for place, line in enumerate((request, processes, cores, inflight, memory), 1)]
