"""Predictions and how they turned out, in one bounded SQLite file.

Rules of joining, which make the order of arrival irrelevant:
- A prediction is known by model, request id and row. A second one with the same key changes nothing.
- An outcome is known by model, request id, row and metric (the label counts as one). Of two that differ the later by
  its own time holds, of the same time the one that sorts last; so a correction works, and a repeat does nothing.
- Outcomes of no known prediction wait for it for a bounded time. Those of a forgotten one are late, and not kept.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.errors import Overloaded
from server.watch.database import Database

log = logging.getLogger(__name__)

FILE: Final = Path("feedback") / "outcomes.sqlite3"
"""Within the state directory."""

_PRUNED_AT_ONCE: Final = 20_000
"""Most predictions that one transaction forgets: others wait for it."""

LABEL: Final = ""
"""What stands for the name of a metric where the outcome is the true class."""


class Result(enum.StrEnum):
    """What became of a reported outcome."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeOptions:
    """Bounds. What is oldest goes first."""

    max_predictions: int = 1_000_000
    """Most predictions that are kept, with their outcomes: about 200 bytes each."""
    max_age_s: float = 30 * 86400.0
    """How long a prediction is kept after its answer."""
    pending_s: float = 3600.0
    """How long an outcome waits for its prediction."""
    max_pending: int = 100_000
    """Most outcomes that wait."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of one sampled answer."""

    model: str
    id: str
    row: int
    version: int
    at: float
    predicted: int
    """The class with the highest score; -1 for a model without classes."""
    label: str
    """That class's name, or empty."""
    confidence: float
    """Its probability. NaN for a model without classes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was reported of one prediction under one name."""

    model: str
    id: str
    row: int
    metric: str
    """LABEL for the true class, which is then in `label`; else a metric's name, its number in `value`."""
    label: str
    value: float
    at: float


SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS predictions (
    model TEXT, id TEXT, row INTEGER, version INTEGER, at REAL, predicted INTEGER, label TEXT, confidence REAL,
    PRIMARY KEY (model, id, row)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE TABLE IF NOT EXISTS outcomes (
    model TEXT, id TEXT, row INTEGER, metric TEXT, label TEXT, value REAL, at REAL, received REAL, joined INTEGER,
    PRIMARY KEY (model, id, row, metric)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outcomes_pending ON outcomes (received) WHERE joined = 0;
CREATE INDEX IF NOT EXISTS outcomes_received ON outcomes (model, received) WHERE joined = 1;
CREATE TABLE IF NOT EXISTS forgotten (key BLOB PRIMARY KEY, at REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS forgotten_at ON forgotten (at);
CREATE TABLE IF NOT EXISTS drift (model TEXT, version INTEGER, at REAL, value REAL, PRIMARY KEY (model, version, at));
"""


@dataclass(frozen=True, slots=True)
class OutcomeStatistics:
    """Since the store was opened."""

    results: Mapping[str, int]
    """Reported outcomes by what became of them."""
    predictions: int
    """Recorded."""
    repeated: int
    """Predictions whose key was there before."""
    dropped: int
    """Predictions that the disk could not take in time, or at all."""
    without_id: int
    """Rows of answers to requests without an id."""


class OutcomeStore:
    """Takes predictions and outcomes from any thread."""

    def __init__(self, state_dir: Path, options: OutcomeOptions = OutcomeOptions()) -> None:
        self._options = options
        self._database = Database(state_dir / FILE, SCHEMA)
        self._lock = threading.Lock()
        self._results: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    @property
    def path(self) -> Path:
        """The database's file."""
        return self._database.path

    def open(self) -> None:
        """Raises OSError."""
        self._database.open()

    def close(self) -> None:
        """Write what waits. Blocks."""
        self._database.close()

    def record(self, predictions: Sequence[Prediction]) -> None:
        """Keep predictions, soon; without waiting."""
        try:
            future = self._database.submit(lambda connection: _insert(connection, predictions))
        except Overloaded:
            self._count("dropped", len(predictions))
            return
        future.add_done_callback(lambda done: self._recorded(len(predictions), done))

    def report(self, outcomes: Sequence[Outcome], now: float) -> Future[Counter[Result]]:
        """Keep outcomes; when the future is done they are on disk. Raises Overloaded."""

        def job(connection: sqlite3.Connection) -> Counter[Result]:
            return Counter(_report(connection, outcome, now) for outcome in outcomes)

        future = self._database.submit(job)
        future.add_done_callback(self._reported)
        return future

    def note_drift(self, model: str, version: int, at: float, value: float) -> None:
        """Keep a drift score, to be compared with outcomes of the same time. Raises Overloaded."""
        row = (model, version, at, value)
        self._database.submit(
            lambda connection: connection.execute("INSERT OR REPLACE INTO drift VALUES (?,?,?,?)", row)
        )

    def prune(self, now: float) -> Future[None]:
        """Forget what is beyond the bounds. Raises Overloaded."""
        return self._database.submit(lambda connection: _prune(connection, self._options, now))

    def missing_id(self, rows: int) -> None:
        """Count rows that cannot be recorded."""
        self._count("without_id", rows)

    def statistics(self) -> OutcomeStatistics:
        """A snapshot."""
        with self._lock:
            return OutcomeStatistics(
                results={result.value: self._results[result.value] for result in Result},
                predictions=self._counts["recorded"],
                repeated=self._counts["repeated"],
                dropped=self._counts["dropped"],
                without_id=self._counts["without_id"],
            )

    def _recorded(self, given: int, done: Future[int]) -> None:
        if (error := done.exception()) is not None:
            log.error("%d predictions could not be recorded: %s", given, error)
            self._count("dropped", given)
            return
        self._count("recorded", done.result())
        self._count("repeated", given - done.result())

    def _reported(self, done: Future[Counter[Result]]) -> None:
        if done.exception() is None:
            with self._lock:
                self._results.update({result.value: count for result, count in done.result().items()})

    def _count(self, what: str, rows: int) -> None:
        with self._lock:
            self._counts[what] += rows


def _insert(connection: sqlite3.Connection, predictions: Iterable[Prediction]) -> int:
    """How many were new."""
    rows = [
        (
            *(each.model, each.id, each.row, each.version, each.at, each.predicted, each.label),
            None if math.isnan(each.confidence) else each.confidence,  # SQLite knows no NaN
        )
        for each in predictions
    ]
    added = connection.executemany("INSERT OR IGNORE INTO predictions VALUES (?,?,?,?,?,?,?,?)", rows).rowcount
    connection.executemany(
        "UPDATE outcomes SET joined = 1 WHERE model = ? AND id = ? AND row = ? AND joined = 0",
        [row[:3] for row in rows],
    )
    return max(0, added)


def _report(connection: sqlite3.Connection, outcome: Outcome, now: float) -> Result:
    key = (outcome.model, outcome.id, outcome.row)
    known = connection.execute("SELECT 1 FROM predictions WHERE model = ? AND id = ? AND row = ?", key).fetchone()
    if known is None and connection.execute("SELECT 1 FROM forgotten WHERE key = ?", (_mark(*key),)).fetchone():
        return Result.LATE
    before = connection.execute(
        "SELECT at, label, value FROM outcomes WHERE model = ? AND id = ? AND row = ? AND metric = ?",
        (*key, outcome.metric),
    ).fetchone()
    after = (outcome.at, outcome.label, outcome.value)
    if before is None or after > before:
        connection.execute(
            "INSERT OR REPLACE INTO outcomes VALUES (?,?,?,?,?,?,?,?,?)",
            (*key, outcome.metric, outcome.label, outcome.value, outcome.at, now, int(known is not None)),
        )
    if before is not None and (after <= before or after[1:] == before[1:]):
        return Result.DUPLICATE
    return Result.ACCEPTED if known else Result.UNKNOWN


def _prune(connection: sqlite3.Connection, options: OutcomeOptions, now: float) -> None:
    old = connection.execute(
        "SELECT model, id, row, at FROM predictions WHERE at < ? ORDER BY at LIMIT ?",
        (now - options.max_age_s, _PRUNED_AT_ONCE),
    ).fetchall()
    excess = _count_rows(connection, "predictions") - len(old) - options.max_predictions
    if excess > 0:
        old += connection.execute(
            "SELECT model, id, row, at FROM predictions ORDER BY at LIMIT ? OFFSET ?",
            (min(excess, _PRUNED_AT_ONCE), len(old)),
        ).fetchall()
    for *key, at in old:
        connection.execute("DELETE FROM predictions WHERE model = ? AND id = ? AND row = ?", key)
        connection.execute("DELETE FROM outcomes WHERE model = ? AND id = ? AND row = ?", key)
        connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?,?)", (_mark(*key), at))
    connection.execute("DELETE FROM outcomes WHERE joined = 0 AND received < ?", (now - options.pending_s,))
    _drop_oldest(connection, "outcomes", "received", options.max_pending, "WHERE joined = 0")
    _drop_oldest(connection, "forgotten", "at", options.max_predictions)
    connection.execute("DELETE FROM drift WHERE at < ?", (now - options.max_age_s,))


def _drop_oldest(connection: sqlite3.Connection, table: str, by: str, most: int, where: str = "") -> None:
    """Names are ours, so nothing can be injected."""
    excess = _count_rows(connection, table, where) - most
    if excess > 0:
        (bound,) = connection.execute(
            f"SELECT {by} FROM {table} {where} ORDER BY {by} LIMIT 1 OFFSET ?",  # noqa: S608
            (excess - 1,),
        ).fetchone()
        connection.execute(f"DELETE FROM {table} {where or 'WHERE 1'} AND {by} <= ?", (bound,))  # noqa: S608


def _count_rows(connection: sqlite3.Connection, table: str, where: str = "") -> int:
    (count,) = connection.execute(f"SELECT count(*) FROM {table} {where}").fetchone()  # noqa: S608  (as above)
    return int(count)


def _mark(model: str, id_: str, row: int) -> bytes:
    """What is left of a forgotten prediction."""
    return hashlib.blake2b(f"{model}\0{id_}\0{row}".encode(), digest_size=12).digest()
