"""Metrics of the watch over models, where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.core import Metric

from server.telemetry.families import MODEL, Series, counter, gauge

SIGNAL: Final = (*MODEL, "signal")
_RESULTS: Final = ("sampled", "dropped")


@dataclass(frozen=True, slots=True)
class WatchedVersion:
    """A version, and what its tap and its monitor say; both are read field by field below."""

    model: str
    version: int
    tap: Any
    monitor: Any
    """None where nothing compares."""


def watch_metrics(versions: Iterable[WatchedVersion]) -> Iterator[Metric]:
    """What was found last, and what the tap did."""
    found = [((each.model, str(each.version)), each) for each in versions]
    taken: list[Series] = [
        ((*labels, result), getattr(each.tap, result)) for labels, each in found for result in _RESULTS
    ]
    text = "Requests that were drawn to be looked at, by whether there was room."
    yield counter("kairos_watch_requests", text, taken, (*MODEL, "result"))
    errors = [(labels, each.tap.sink_errors) for labels, each in found]
    yield counter("kairos_watch_sink_errors", "Times that somebody failed who was handed requests.", errors, MODEL)
    waiting = [(labels, each.tap.waiting_bytes) for labels, each in found]
    yield gauge("kairos_watch_waiting_bytes", "Bytes of requests that wait to be looked at.", waiting, MODEL)
    yield from _monitors([(labels, each.monitor) for labels, each in found if each.monitor is not None])


def _monitors(found: list[tuple[tuple[str, str], Any]]) -> Iterator[Metric]:
    readings = [
        ((*labels, reading.signal), reading) for labels, monitor in found for reading in monitor.readings.values()
    ]
    scores = [(labels, reading.value) for labels, reading in readings]
    text = "What each signal says: PSI for drift, mean probability for confidence, requests a second for volume."
    yield gauge("kairos_watch_value", text, scores, SIGNAL)
    tested = [(labels, reading) for labels, reading in readings if reading.p_value == reading.p_value]
    text = "How often chance alone goes as far; corrected for all that is tested."
    yield gauge("kairos_watch_p_value", text, [(labels, reading.p_value) for labels, reading in tested], SIGNAL)
    text = "1 while a signal is beyond what chance explains."
    yield gauge("kairos_watch_alarm", text, [(labels, reading.alarm) for labels, reading in tested], SIGNAL)
    rows = [(labels, monitor.reference_rows) for labels, monitor in found]
    yield gauge("kairos_watch_reference_rows", "Rows of the baseline. 0: there is none.", rows, MODEL)
    looks = [(labels, monitor.looks) for labels, monitor in found]
    yield counter("kairos_watch_looks", "Comparisons of a window with the baseline.", looks, MODEL)
