"""An SQLite database on a thread of its own: nobody waits for a disk on the event loop.

Promise: a job's future is settled after its transaction is on disk, not before; a job that raises leaves no trace.
Jobs that wait together share one transaction, so that many small reports cost one write to disk.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from engines.errors import Overloaded

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_Job: TypeAlias = "tuple[Callable[[sqlite3.Connection], Any], Future[Any]]"

MAX_WAITING: Final = 1024
"""Most jobs that wait for the disk; further ones are refused."""
_GROUP: Final = 128
"""Most jobs of one transaction."""
_BUSY_S: Final = 10.0
"""Longest wait for another process that writes."""
_RETRY_S: Final = 0.5


class Database:
    """Runs jobs in their order. `schema` is run when it opens, and must not mind being run again."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def open(self) -> None:
        """Make the file and start the thread. Raises OSError when there can be no such file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            try:
                connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
                undo.callback(connection.close)
                connection.execute("PRAGMA journal_mode = WAL")
                # Each commit reaches the disk: a report that was acknowledged survives a loss of power, too.
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(self._schema)
            except sqlite3.Error as error:
                raise OSError(f"{self._path} cannot be opened: {error}") from error
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, args=(connection,), name=self._path.stem, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[sqlite3.Connection], Result]) -> Future[Result]:
        """Have a job run in a transaction. Raises Overloaded when too many wait already."""
        if self._jobs.qsize() >= MAX_WAITING:
            raise Overloaded(f"{self._path.name}: {MAX_WAITING} writes wait for the disk", retry_after_s=_RETRY_S)
        future: Future[Result] = Future()
        self._jobs.put((job, future))
        return future

    def close(self) -> None:
        """Do what waits, and end. Blocks until it is done."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self, connection: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            jobs, ended = self._take()
            _settle(connection, jobs)
        connection.close()

    def _take(self) -> tuple[list[_Job], bool]:
        """All that waits, at least one; and whether it is the end."""
        jobs: list[_Job] = []
        block = True
        while len(jobs) < _GROUP:
            try:
                job = self._jobs.get(block)
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            block = False
        return jobs, False


def reader(path: Path) -> sqlite3.Connection:
    """A connection of the caller's own that cannot write. Raises OSError when there is no such database."""
    with contextlib.ExitStack() as undo:
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=_BUSY_S, uri=True)
            undo.callback(connection.close)
            connection.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be read: {error}") from error
        undo.pop_all()
    return connection


def _settle(connection: sqlite3.Connection, jobs: list[_Job]) -> None:
    """Run the jobs in one transaction; each that raises is undone alone."""
    # From here on nobody can call them back, and settling them cannot fail.
    jobs = [(job, future) for job, future in jobs if future.set_running_or_notify_cancel()]
    done: list[tuple[Future[Any], Any]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job, future in jobs:
            connection.execute("SAVEPOINT job")
            try:
                done.append((future, job(connection)))
            except Exception as error:  # noqa: BLE001  (it belongs to whoever gave the job)
                connection.execute("ROLLBACK TO job")
                future.set_exception(error)
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        log.exception("writing failed, nothing of it is kept")
        for _, future in jobs:
            if not future.done():
                future.set_exception(error)
        return
    for future, result in done:
        future.set_result(result)
