"""What a run showed: exact percentiles over all calls, rates, and whether the figures may be believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from loadtest.load.generator import UNFINISHED
from loadtest.load.scenario import Scenario
from loadtest.load.workers import Finished

Floats = NDArray[np.float64]
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
NAMES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode} | {UNFINISHED: "UNFINISHED"}
BUSIEST = 0.9
"""Share of a core above which a generator's process counts as the limit of a closed loop."""
_BUCKETS = 60
_CDF_POINTS = 200


@dataclass(frozen=True, slots=True)
class Calls:
    """All calls of a run, as arrays."""

    kind: NDArray[np.uint16]
    due: Floats
    slip: Floats
    latency: Floats
    code: NDArray[np.uint8]
    deadline_s: Floats

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which got an OK."""
        okay: NDArray[np.bool_] = self.code == 0
        return okay

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which got it in time."""
        in_time: NDArray[np.bool_] = self.answered & (self.latency <= self.deadline_s)
        return in_time

    def where(self, mask: NDArray[np.bool_]) -> Calls:
        """Those for which `mask` is true."""
        return Calls(*(getattr(self, each.name)[mask] for each in dataclasses.fields(self)))


def gather(finished: Sequence[Finished]) -> Calls:
    """The calls of all processes, in the order in which they were due."""
    records = [each.record for each in finished]
    types = {"kind": np.uint16, "code": np.uint8}
    columns: dict[str, NDArray[Any]] = {
        each.name: np.concatenate(
            [np.asarray(getattr(record, each.name), types.get(each.name, np.float64)) for record in records]
        )
        for each in dataclasses.fields(Calls)
    }
    order = np.argsort(columns["due"], kind="stable")
    return Calls(**{name: column[order] for name, column in columns.items()})


def summarise(
    scenario: Scenario, finished: Sequence[Finished], server: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The result of a run, ready for JSON. Latencies are of answers with status OK, from when they were due."""
    calls = gather(finished)
    seconds = _length(scenario, calls)
    in_window = calls.due + calls.latency <= seconds
    faults = invalid_because(scenario, finished, calls)
    result = {
        "scenario": dataclasses.asdict(scenario),
        "valid": not faults,
        "invalid_because": faults,
        "seconds": seconds,
        "sent": len(calls.due),
        "offered_per_s": len(calls.due) / seconds,
        "answers_per_s": float(np.count_nonzero(calls.answered & in_window)) / seconds,
        "good_per_s": float(np.count_nonzero(calls.good)) / seconds,
        "good_share": float(calls.good.mean()) if len(calls.due) else 0.0,
        "codes": codes(calls),
        "latency_ms": percentiles_ms(calls.latency[calls.answered]),
        "slip_ms": percentiles_ms(calls.slip),
        "cdf": cdf(calls),
        "series": series(calls, seconds),
        "kinds": [_kind(calls, number, each.model) for number, each in enumerate(scenario.requests)],
        "generator": {
            "cpu_us_per_call": sum(each.cpu_s for each in finished) / max(1, len(calls.due)) * 1e6,
            "busiest_process": max(each.cpu_s / each.wall_s for each in finished),
        },
    }
    if server is not None:
        ended = int(np.count_nonzero(calls.code != UNFINISHED))
        result["server"] = {**server, "cpu_us_per_call": server["cpu_s"] / max(1, ended) * 1e6}
    return result


def _length(scenario: Scenario, calls: Calls) -> float:
    """Seconds of the schedule: a trace may be shorter than the run."""
    if scenario.arrivals.kind == "trace" and len(calls.due):
        return max(1e-3, min(scenario.seconds, float(calls.due[-1])))
    return scenario.seconds


def invalid_because(scenario: Scenario, finished: Sequence[Finished], calls: Calls) -> list[str]:
    """Why the generator, not the server, made these figures; empty if they may be believed."""
    faults = []
    if not len(calls.due):
        faults.append("nothing was sent")
    elif scenario.arrivals.kind == "closed":
        busiest = max(each.cpu_s / each.wall_s for each in finished)
        if busiest > BUSIEST:
            faults.append(
                f"a process of the generator used {busiest:.0%} of a core: it was the limit; take more processes"
            )
    else:
        slip_ms = float(np.percentile(calls.slip, 99.0, method="higher")) * 1e3
        if slip_ms > scenario.max_slip_ms:
            faults.append(
                f"1 % of the requests left {slip_ms:.1f} ms or more after they were due (bound: "
                f"{scenario.max_slip_ms:g} ms): the generator was the limit; take more processes or a smaller rate"
            )
    return faults


def codes(calls: Calls) -> dict[str, int]:
    """How many calls ended with each status, by its name."""
    numbers, counts = np.unique(calls.code, return_counts=True)
    return {NAMES.get(int(number), str(number)): int(count) for number, count in zip(numbers, counts, strict=True)}


def percentiles_ms(seconds: Floats) -> dict[str, float]:
    """Percentiles that occurred, mean and maximum, in milliseconds; empty of nothing."""
    if not len(seconds):
        return {}
    found = np.percentile(seconds, PERCENTILES, method="higher") * 1e3
    named = {f"p{percentile:g}": float(value) for percentile, value in zip(PERCENTILES, found, strict=True)}
    return named | {"mean": float(seconds.mean()) * 1e3, "max": float(seconds.max()) * 1e3}


def cdf(calls: Calls) -> list[tuple[float, float]]:
    """(milliseconds, share of ALL calls answered by then): what was not answered keeps it below 1."""
    answered = np.sort(calls.latency[calls.answered])
    if not len(answered):
        return []
    # even steps up to the last per cent, then finer and finer towards the slowest
    tail = 1.0 - np.geomspace(1.0, 1.0 / len(answered), _CDF_POINTS)
    places = np.unique(
        (np.concatenate([np.linspace(0, 1, _CDF_POINTS), tail]) * (len(answered) - 1)).round().astype(int)
    )
    return [(float(answered[place]) * 1e3, float(place + 1) / len(calls.due)) for place in places]


def series(calls: Calls, seconds: float) -> dict[str, list[float | None]]:
    """Rates and percentiles over time, by when calls were due."""
    width = max(0.25, seconds / _BUCKETS)
    buckets = (calls.due / width).astype(int)
    columns: dict[str, list[float | None]] = {name: [] for name in ("t", "offered", "answers", "good", "p50", "p99")}
    for number in range(max(1, round(seconds / width))):
        chosen = buckets == number
        answered = calls.latency[chosen & calls.answered] * 1e3
        columns["t"].append((number + 0.5) * width)
        columns["offered"].append(float(np.count_nonzero(chosen)) / width)
        columns["answers"].append(len(answered) / width)
        columns["good"].append(float(np.count_nonzero(chosen & calls.good)) / width)
        columns["p50"].append(float(np.percentile(answered, 50)) if len(answered) else None)
        columns["p99"].append(float(np.percentile(answered, 99)) if len(answered) else None)
    return columns


def _kind(calls: Calls, number: int, model: str) -> dict[str, Any]:
    mine = calls.where(calls.kind == number)
    return {
        "model": model,
        "sent": len(mine.due),
        "good_share": float(mine.good.mean()) if len(mine.due) else 0.0,
        "codes": codes(mine),
        "latency_ms": percentiles_ms(mine.latency[mine.answered]),
    }
