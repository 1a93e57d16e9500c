"""Joining outcomes does not depend on the order in which anything arrives."""

from __future__ import annotations

import sqlite3

from hypothesis import given, settings
from hypothesis import strategies as st

from server.watch import outcomes as room
from server.watch.outcomes import LABEL, SCHEMA, Outcome, Prediction, Result

IDS = st.sampled_from(["a", "b"])
TIMES = st.integers(1, 4).map(float)
PREDICTIONS = st.builds(
    Prediction,
    model=st.just("m"), id=IDS, row=st.integers(0, 1), version=st.just(1), at=st.just(0.0), predicted=st.just(1),
    label=st.just(""), confidence=st.just(0.5),
)  # fmt: skip
LABELS = st.builds(
    Outcome,
    model=st.just("m"), id=IDS, row=st.integers(0, 1), metric=st.just(LABEL), label=st.sampled_from("12"),
    value=st.just(0.0), at=TIMES,
)  # fmt: skip
METRICS = st.builds(
    Outcome,
    model=st.just("m"), id=IDS, row=st.integers(0, 1), metric=st.sampled_from(["x", "y"]), label=st.just(""),
    value=st.sampled_from([0.0, 1.0]), at=TIMES,
)  # fmt: skip
EVENTS = st.lists(PREDICTIONS | LABELS | METRICS, max_size=12)


def joined(events: list[Prediction | Outcome]) -> tuple[list[tuple[object, ...]], list[Result]]:
    """What is known in the end, whatever was acknowledged on the way."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    results = []
    for now, event in enumerate(events):
        if isinstance(event, Prediction):
            room._insert(connection, [event])
        else:
            results.append(room._report(connection, event, float(now)))
    rows = connection.execute(
        "SELECT model, id, row, metric, label, value, at, joined FROM outcomes ORDER BY model, id, row, metric"
    ).fetchall()
    connection.close()
    return rows, results


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.randoms())
def test_the_order_of_arrival_is_irrelevant(events: list[Prediction | Outcome], random: object) -> None:
    known, _ = joined(events)
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert joined(shuffled)[0] == known
    assert joined([*shuffled, *events])[0] == known  # whatever is sent twice


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_each_report_is_kept_or_known(events: list[Prediction | Outcome]) -> None:
    known, results = joined(events)
    keys = {(row[1], row[2]) for row in known}
    predicted = {(event.id, event.row) for event in events if isinstance(event, Prediction)}
    assert {(row[1], row[2]) for row in known if row[-1]} == keys & predicted
    assert Result.LATE not in results
