"""How model versions do by what was reported: accuracy, calibration, business metrics, and what these go along with.

Reads the outcome store's file on a connection of its own, so that reports never wait for it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from server.watch.database import reader
from server.watch.outcomes import LABEL
from server.watch.rank import Correlation, Floats, calibration_error, spearman
from server.watch.readings import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOptions:
    """What is looked at."""

    window_s: float = 86400.0
    """Outcomes that arrived within this time count."""
    max_rows: int = 20_000
    """Most outcomes of a version and metric that are read; the latest."""
    stretch_s: float = 600.0
    """Drift and metrics are compared as means over stretches of this length, by the time of the predictions."""


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """One business metric of one version."""

    samples: int
    mean: float
    confidence: Correlation
    """Of each prediction's confidence with the metric."""
    drift: Correlation
    """Of drift with the metric's mean, over stretches of time."""


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """What the outcomes of one version say."""

    model: str
    version: int
    labelled: int
    accuracy: float
    calibration_error: float
    at: float
    """When the last of these outcomes arrived: while it stays, so do the figures."""
    metrics: Mapping[str, MetricFigures]

    def readings(self) -> Iterator[Reading]:
        """As signals for triggers. None is an alarm by itself but a correlation that is surely not zero."""
        if self.labelled:
            yield Reading("accuracy", self.accuracy, alarm=False, samples=self.labelled, at=self.at)
        if not math.isnan(self.calibration_error):
            yield Reading("calibration", self.calibration_error, alarm=False, samples=self.labelled, at=self.at)
        for name, found in self.metrics.items():
            yield Reading(f"outcome.{name}", found.mean, alarm=False, samples=found.samples, at=self.at)
            for what, correlation in (("confidence", found.confidence), ("drift", found.drift)):
                if not math.isnan(correlation.value):
                    signal = f"outcome_correlation.{what}.{name}"
                    yield Reading(signal, correlation.value, correlation.sure, correlation.samples, self.at)


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """What a store holds."""

    predictions: int
    outcomes: int
    pending: int
    size_bytes: int


def store_figures(path: Path) -> StoreFigures:
    """How much is kept. Raises OSError."""
    with closing(reader(path)) as connection:
        counts: list[int] = [
            connection.execute(query).fetchone()[0]
            for query in (
                "SELECT count(*) FROM predictions",
                "SELECT count(*) FROM outcomes",
                "SELECT count(*) FROM outcomes WHERE joined = 0",
            )
        ]
    return StoreFigures(counts[0], counts[1], counts[2], path.stat().st_size)


_JOINED: Final = """
SELECT p.at, p.predicted, p.label, p.confidence, o.label, o.value, o.received FROM outcomes o
JOIN predictions p ON p.model = o.model AND p.id = o.id AND p.row = o.row
WHERE o.model = ? AND o.joined = 1 AND o.received >= ? AND p.version = ? AND o.metric = ?
ORDER BY o.received DESC LIMIT ?
"""
_PRESENT: Final = """
SELECT DISTINCT o.model, p.version, o.metric FROM outcomes o
JOIN predictions p ON p.model = o.model AND p.id = o.id AND p.row = o.row
WHERE o.joined = 1 AND o.received >= ? AND (? = '' OR o.model = ?) ORDER BY 1, 2, 3
"""


def version_figures(
    path: Path,
    now: float,
    model: str = "",
    options: FigureOptions = FigureOptions(),
) -> list[VersionFigures]:
    """Of all versions with outcomes in the window. Raises OSError."""
    since = now - options.window_s
    found: dict[tuple[str, int], dict[str, Sequence[Sequence[Any]]]] = {}
    with closing(reader(path)) as connection:
        for name, version, metric in connection.execute(_PRESENT, (since, model, model)).fetchall():
            rows = connection.execute(_JOINED, (name, since, version, metric, options.max_rows)).fetchall()
            found.setdefault((name, version), {})[metric] = rows
        return [
            _figures(name, version, by_metric, _drift(connection, name, version, since, options))
            for (name, version), by_metric in found.items()
        ]


def _figures(
    model: str, version: int, rows: Mapping[str, Sequence[Sequence[Any]]], drift: tuple[Mapping[int, float], float]
) -> VersionFigures:
    labelled = [row for row in rows.get(LABEL, ()) if row[1] >= 0]
    correct = np.array([row[4] in (str(row[1]), row[2]) for row in labelled], np.float64)
    confidence = _floats(labelled, 3)
    sure = np.isfinite(confidence)
    return VersionFigures(
        model=model,
        version=version,
        labelled=len(labelled),
        accuracy=float(correct.mean()) if labelled else math.nan,
        calibration_error=calibration_error(confidence[sure], correct[sure]),
        at=max(row[6] for of_metric in rows.values() for row in of_metric),
        metrics={name: _metric(of_metric, *drift) for name, of_metric in rows.items() if name != LABEL},
    )


def _metric(rows: Sequence[Sequence[Any]], drift: Mapping[int, float], stretch_s: float) -> MetricFigures:
    values, confidence = _floats(rows, 5), _floats(rows, 3)
    sure = np.isfinite(confidence)
    stretches = (_floats(rows, 0) // stretch_s).astype(np.int64)
    means = {int(each): float(values[stretches == each].mean()) for each in np.unique(stretches)}
    both = sorted(means.keys() & drift.keys())
    return MetricFigures(
        samples=len(values),
        mean=float(values.mean()),
        confidence=spearman(confidence[sure], values[sure]),
        drift=spearman(np.array([drift[each] for each in both]), np.array([means[each] for each in both])),
    )


def _drift(
    connection: sqlite3.Connection, model: str, version: int, since: float, options: FigureOptions
) -> tuple[dict[int, float], float]:
    """Mean drift by stretch of time, and the stretches' length. Predictions come before outcomes: from earlier on."""
    rows = connection.execute(
        "SELECT CAST(at / ? AS INTEGER), avg(value) FROM drift WHERE model = ? AND version = ? AND at >= ? GROUP BY 1",
        (options.stretch_s, model, version, since - options.window_s),
    )
    return dict(rows.fetchall()), options.stretch_s


def _floats(rows: Sequence[Sequence[Any]], column: int) -> Floats:
    return np.array([math.nan if row[column] is None else row[column] for row in rows], np.float64)
