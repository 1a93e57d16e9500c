"""What triggers must remember: the state of each rule, and the deliveries that are not done (an outbox).

Promise: the states and the events that they led to are saved in one transaction, before any action starts. A process
that is killed after it finds the event in the outbox; one that is killed before it makes the same event, with the same
id, from the next reading.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

from server.watch.database import Database, reader
from server.watch.triggers import Event, Key, RuleState

FILE: Final = Path("watch") / "triggers.sqlite3"
"""Within the state directory."""
KEPT: Final = 1000
"""Finished deliveries that are kept, for whoever asks what happened."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS origin (id TEXT);
CREATE TABLE IF NOT EXISTS states (
    rule TEXT, model TEXT, version INTEGER, state TEXT, PRIMARY KEY (rule, model, version)
);
CREATE TABLE IF NOT EXISTS deliveries (
    number INTEGER PRIMARY KEY, event TEXT, action TEXT, content TEXT, attempts INTEGER, next_at REAL, status TEXT,
    error TEXT, UNIQUE (event, action)
);
"""


class Status(StrEnum):
    """How a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one action."""

    event: Event
    action: str
    attempts: int = 0
    """So far."""
    next_at: float = 0.0
    """Not before, in seconds since 1970."""
    status: Status = Status.PENDING
    error: str = ""
    """Of the last attempt."""


class TriggerStore:
    """One state directory has one server that acts on its triggers."""

    def __init__(self, state_dir: Path) -> None:
        self._database = Database(state_dir / FILE, SCHEMA)
        self._lock: IO[bytes] | None = None
        self.origin = ""
        """A name of this store that no other has."""
        self.states: dict[Key, RuleState] = {}
        """As they were found."""
        self.pending: list[Delivery] = []
        """As they were found, the oldest first."""

    def open(self) -> None:
        """Read what there is. Blocks. Raises OSError, also when another server has it."""
        path = self._database.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_suffix(".lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise OSError(f"another server acts on the triggers of {path.parent.parent}") from None
        self._database.open()
        self.origin = self._database.submit(_origin).result()
        with closing(reader(path)) as connection:
            self.states = {
                (rule, model, version): RuleState.from_json(json.loads(state))
                for rule, model, version, state in connection.execute("SELECT * FROM states")
            }
            self.pending = _read(connection, "WHERE status = 'pending' ORDER BY number")

    def close(self) -> None:
        """Write what waits. Blocks."""
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def save(self, states: Mapping[Key, RuleState], deliveries: Sequence[Delivery]) -> Future[None]:
        """Keep states, and the deliveries they led to, together. Raises Overloaded."""

        def job(connection: sqlite3.Connection) -> None:
            for key, state in states.items():
                values = (*key, json.dumps(state.as_json()))
                connection.execute("INSERT OR REPLACE INTO states VALUES (?,?,?,?)", values)
            for each in deliveries:
                connection.execute(
                    "INSERT OR IGNORE INTO deliveries (event, action, content, attempts, next_at, status, error)"
                    " VALUES (?,?,?,?,?,?,?)",
                    (each.event.id, each.action, json.dumps(asdict(each.event)), 0, each.next_at, each.status, ""),
                )

        return self._database.submit(job)

    def update(self, delivery: Delivery) -> Future[None]:
        """Keep how a delivery stands now. Raises Overloaded."""
        key = (delivery.event.id, delivery.action)

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE deliveries SET attempts = ?, next_at = ?, status = ?, error = ? WHERE event = ? AND action = ?",
                (delivery.attempts, delivery.next_at, delivery.status, delivery.error, *key),
            )
            connection.execute(
                "DELETE FROM deliveries WHERE status <> 'pending'"
                " AND number <= (SELECT max(number) FROM deliveries) - ?",
                (KEPT,),
            )

        return self._database.submit(job)


def read_deliveries(state_dir: Path) -> list[Delivery]:
    """All that are kept, the latest first, also while a server runs. Raises OSError."""
    with closing(reader(state_dir / FILE)) as connection:
        return _read(connection, "ORDER BY number DESC")


def _read(connection: sqlite3.Connection, which: str) -> list[Delivery]:
    rows: Sequence[Sequence[Any]] = connection.execute(
        f"SELECT content, action, attempts, next_at, status, error FROM deliveries {which}"  # noqa: S608  (ours)
    ).fetchall()
    return [
        Delivery(
            event=Event(**json.loads(content)),
            action=action,
            attempts=attempts,
            next_at=next_at,
            status=Status(status),
            error=error,
        )
        for content, action, attempts, next_at, status, error in rows
    ]


def _origin(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT id FROM origin").fetchone()
    if row is None:
        row = (secrets.token_hex(8),)
        connection.execute("INSERT INTO origin VALUES (?)", row)
    return str(row[0])
