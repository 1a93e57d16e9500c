"""Joining outcomes to predictions, in bounds, on disk."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import Overloaded
from server.watch import database
from server.watch.database import Database, reader
from server.watch.figures import FigureOptions, store_figures, version_figures
from server.watch.outcomes import LABEL, Outcome, OutcomeOptions, OutcomeStore, Prediction, Result

NOW = 1_000_000.0


def prediction(id_: str = "a", row: int = 0, at: float = NOW, predicted: int = 3, **more: Any) -> Prediction:
    values: dict[str, Any] = {"model": "m", "version": 1, "label": "", "confidence": 0.9} | more
    return Prediction(id=id_, row=row, at=at, predicted=predicted, **values)


def label(id_: str = "a", value: str = "3", at: float = NOW + 1, row: int = 0) -> Outcome:
    return Outcome("m", id_, row, LABEL, value, 0.0, at)


def metric(id_: str = "a", value: float = 1.0, at: float = NOW + 1, name: str = "revenue") -> Outcome:
    return Outcome("m", id_, 0, name, "", value, at)


def opened(folder: Path, **options: Any) -> OutcomeStore:
    store = OutcomeStore(folder, OutcomeOptions(**options))
    store.open()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OutcomeStore]:
    store = opened(tmp_path)
    yield store
    store.close()


def told(store: OutcomeStore, *outcomes: Outcome, now: float = NOW + 2) -> Counter[Result]:
    return store.report(outcomes, now).result(10)


def test_an_outcome_is_joined_once(store: OutcomeStore) -> None:
    store.record([prediction()])
    assert told(store, label()) == {Result.ACCEPTED: 1}
    assert told(store, label(), metric()) == {Result.DUPLICATE: 1, Result.ACCEPTED: 1}
    (found,) = version_figures(store.path, NOW + 3)
    assert (found.model, found.version, found.labelled, found.accuracy) == ("m", 1, 1, 1.0)
    assert found.metrics["revenue"].mean == 1.0


def test_an_outcome_waits_for_its_prediction(store: OutcomeStore) -> None:
    assert told(store, label()) == {Result.UNKNOWN: 1}
    assert told(store, label()) == {Result.DUPLICATE: 1}
    assert store_figures(store.path).pending == 1
    store.record([prediction()])
    assert told(store, label()) == {Result.DUPLICATE: 1}
    assert store_figures(store.path).pending == 0
    assert version_figures(store.path, NOW + 3)[0].labelled == 1


def test_a_later_report_corrects_an_earlier_one_and_not_the_other_way_round(store: OutcomeStore) -> None:
    store.record([prediction()])
    assert told(store, label(value="7", at=NOW + 5)) == {Result.ACCEPTED: 1}
    assert told(store, label(value="3", at=NOW + 1)) == {Result.DUPLICATE: 1}
    assert version_figures(store.path, NOW + 9)[0].accuracy == 0.0
    assert told(store, label(value="3", at=NOW + 6)) == {Result.ACCEPTED: 1}
    assert version_figures(store.path, NOW + 9)[0].accuracy == 1.0


def test_labels_go_by_number_or_name_and_rows_are_apart(store: OutcomeStore) -> None:
    store.record([prediction(row=0, label="three"), prediction(row=1, label="three"), prediction(row=2)])
    told(store, label(value="three"), label(value="3", row=1), label(value="three", row=2))
    assert version_figures(store.path, NOW + 3)[0].accuracy == pytest.approx(2 / 3)


def test_a_repeated_id_changes_nothing_and_is_counted(store: OutcomeStore) -> None:
    store.record([prediction(predicted=3)])
    store.record([prediction(predicted=4)])
    told(store, label(value="3"))
    assert version_figures(store.path, NOW + 3)[0].accuracy == 1.0
    assert store.statistics().repeated == 1
    assert store.statistics().predictions == 1


def test_the_outcome_of_a_forgotten_prediction_is_late(tmp_path: Path) -> None:
    store = opened(tmp_path, max_age_s=100.0)
    store.record([prediction("old", at=NOW - 200), prediction("new")])
    store.prune(NOW).result(10)
    assert told(store, label("old"), label("new")) == {Result.LATE: 1, Result.ACCEPTED: 1}
    assert store_figures(store.path).outcomes == 1
    assert store.statistics().results == {"accepted": 1, "duplicate": 0, "unknown": 0, "late": 1}
    store.close()


def test_all_tables_are_bounded(tmp_path: Path) -> None:
    store = opened(tmp_path, max_predictions=5, max_pending=3, pending_s=50.0)
    store.record([prediction(f"p{n}", at=NOW + n) for n in range(20)])
    told(store, *(label(f"p{n}") for n in range(20)), *(label(f"unknown{n}") for n in range(9)))
    store.note_drift("m", 1, NOW - 1e9, 0.5)
    store.prune(NOW).result(10)
    with closing(reader(store.path)) as connection:
        kept = [id_ for (id_,) in connection.execute("SELECT id FROM predictions ORDER BY at")]
        assert kept == ["p15", "p16", "p17", "p18", "p19"]
        assert connection.execute("SELECT count(*) FROM forgotten").fetchone() == (5,)
        assert connection.execute("SELECT count(*) FROM drift").fetchone() == (0,)
    assert store_figures(store.path).outcomes <= 5 + 3
    store.prune(NOW + 100).result(10)
    assert store_figures(store.path).pending == 0
    store.close()


def test_what_was_acknowledged_is_there_after_a_new_start(tmp_path: Path) -> None:
    store = opened(tmp_path)
    told(store, label())
    store.close()
    again = opened(tmp_path)
    again.record([prediction()])
    assert told(again, label()) == {Result.DUPLICATE: 1}
    again.close()


def test_figures(store: OutcomeStore) -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1.0, 400)
    right = random.uniform(size=400) < confidence
    store.record(
        [prediction(f"r{n}", at=NOW + 10 * n, confidence=float(confidence[n])) for n in range(400)]
        + [prediction("classless", predicted=-1, confidence=math.nan)]
    )
    told(store, *(label(f"r{n}", "3" if right[n] else "4") for n in range(400)))
    told(store, *(metric(f"r{n}", float(confidence[n] - n / 400)) for n in range(400)), metric("classless", 0.0))
    for n in range(40):
        store.note_drift("m", 1, NOW + 100 * n, float(n))
    store.prune(NOW).result(10)
    (found,) = version_figures(store.path, NOW + 3, options=FigureOptions(stretch_s=100.0))
    assert found.accuracy == pytest.approx(right.mean())
    assert found.calibration_error < 0.08
    revenue = found.metrics["revenue"]
    assert revenue.samples == 401
    assert revenue.confidence.low > 0.0
    assert revenue.drift.high < -0.9
    readings = {reading.signal: reading for reading in found.readings()}
    assert readings["accuracy"].samples == 400
    assert readings["outcome_correlation.drift.revenue"].alarm
    assert set(readings) == {
        *("accuracy", "calibration", "outcome.revenue"),
        *("outcome_correlation.confidence.revenue", "outcome_correlation.drift.revenue"),
    }
    assert version_figures(store.path, NOW + 1e6) == []
    assert version_figures(store.path, NOW + 3, "other") == []


# ---- the thread below


def test_a_job_that_fails_fails_alone(tmp_path: Path) -> None:
    base = Database(tmp_path / "x.sqlite3", "CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY)")
    base.open()

    def bad(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("INSERT INTO t VALUES (1)")

    good = base.submit(lambda connection: connection.execute("INSERT INTO t VALUES (1)").rowcount)
    failed = base.submit(bad)
    assert good.result(10) == 1
    assert isinstance(failed.exception(10), sqlite3.IntegrityError)
    base.close()
    with closing(reader(tmp_path / "x.sqlite3")) as connection:
        assert connection.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_too_many_waiting_jobs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_WAITING", 1)
    store = OutcomeStore(tmp_path)  # not opened: nothing is taken out
    store.record([prediction()])
    store.record([prediction("b"), prediction("c")])
    assert store.statistics().dropped == 2
    with pytest.raises(Overloaded):
        store.report([label()], NOW)


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "feedback" / "outcomes.sqlite3"
    path.parent.mkdir()
    path.write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(OSError, match=r"outcomes\.sqlite3 cannot be opened"):
        OutcomeStore(tmp_path).open()
    with pytest.raises(OSError, match="cannot be read"):
        reader(tmp_path / "none.sqlite3")
