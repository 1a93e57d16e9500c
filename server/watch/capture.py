"""Keeps sampled requests and answers as Parquet files, in `STATE_DIR/capture/MODEL/VERSION/`.

Rules:
- Rows go to a journal first (an Arrow stream, `*.journal`), which is turned into `*.parquet` when it is full or old.
  A Parquet file has its name only when it is complete and on disk; whoever reads `*.parquet` never sees half of one.
- A process that dies leaves its journal; the next one saves what is whole of it. Journals of living ones are locked.
- All files of a model together stay within a bound; the oldest are deleted.
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from engines.errors import LoadFailed
from engines.spec import ModelSpec
from server.pb.model_config_pb2 import ModelCapture
from server.watch.captured import Redaction, RowSchema, pyarrow
from server.watch.observation import Observation

log = logging.getLogger(__name__)

FOLDER: Final = "capture"
"""Within the state directory."""
_KEY: Final = "redaction.key"
_JOURNAL: Final = ".journal"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """How much is kept of a model, and in what pieces."""

    share: float = 1.0
    """Of the requests that the tap takes."""
    max_bytes: int = 1 << 30
    """Of all files of the model."""
    rotate_rows: int = 10_000
    rotate_bytes: int = 16 << 20
    rotate_s: float = 600.0
    redact: Mapping[str, Redaction] = field(default_factory=dict)


def capture_options_of(config: ModelCapture) -> CaptureOptions | None:
    """The options, or None when nothing is to be captured. Raises LoadFailed."""
    if not config.enable:
        return None
    if not 0.0 <= config.share <= 1.0:
        raise LoadFailed(f"capture.share: {config.share:g} is not between 0 and 1")
    default = CaptureOptions()
    options = CaptureOptions(
        share=config.share or default.share,
        max_bytes=config.max_bytes or default.max_bytes,
        rotate_rows=config.rotate_rows or default.rotate_rows,
        rotate_bytes=config.rotate_bytes or default.rotate_bytes,
        rotate_s=config.rotate_seconds or default.rotate_s,
        redact={
            name: Redaction.HASH if how == ModelCapture.HASH else Redaction.DROP for name, how in config.redact.items()
        },
    )
    if options.rotate_bytes > options.max_bytes:
        raise LoadFailed(f"capture.rotate_bytes: {options.rotate_bytes} is more than max_bytes, {options.max_bytes}")
    return options


@dataclass(frozen=True, slots=True)
class CaptureStatistics:
    """Since the version was loaded."""

    rows: int
    """Written."""
    failed: int
    """Rows that could not be."""
    files: int
    """Closed."""
    recovered: int
    """Rows saved from the journals of processes that died."""
    size_bytes: int
    """Of all files of the model, all versions, when a file was last closed."""


class Capture:
    """A sink of the tap, for one model version. Raises LoadFailed where pyarrow or the folder are missing."""

    def __init__(self, spec: ModelSpec, options: CaptureOptions, state_dir: Path) -> None:
        self._options = options
        self._pa = pyarrow()
        self._folder = state_dir / FOLDER / spec.name / str(spec.version)
        self._rows = self._failed = self._files = self._recovered = self._size_bytes = 0
        self._journal: _Journal | None = None
        self._lock = threading.Lock()
        self.closed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._schema = RowSchema(spec, options.redact, _key(state_dir / FOLDER / _KEY))
            self._recover()
            self._keep_bound()
        except OSError as error:
            raise LoadFailed(f"capture: {error}") from error

    def __repr__(self) -> str:
        return f"<Capture {self._folder} [{self._rows} rows, {self._files} files]>"

    def observe(self, observations: Sequence[Observation]) -> None:
        """Write them to the journal. Raises OSError; they are lost then, and counted."""
        batch = self._schema.batch(observations)
        with self._lock:
            self._rotate(observations[0].at)
            try:
                if self._journal is None:
                    self._journal = self._open_journal(observations[0].at)
                self._journal.write(batch)
            except OSError:
                self._failed += batch.num_rows
                if self._journal is not None:  # what it holds is saved by the next start
                    self._journal.abandon()
                    self._journal = None
                raise
            self._rows += batch.num_rows
            self._rotate(observations[-1].at)

    def rotate(self, now: float) -> None:
        """Close the journal if it is old. For models without traffic; harmless at any time. Raises OSError."""
        with self._lock:
            self._rotate(now)

    def close(self) -> None:
        """Close the journal, whatever its age. Raises OSError."""
        self.closed = True
        with self._lock:
            self._finish()

    def statistics(self) -> CaptureStatistics:
        """A snapshot."""
        return CaptureStatistics(self._rows, self._failed, self._files, self._recovered, self._size_bytes)

    def _open_journal(self, at: float) -> _Journal:
        """Names sort by time, and those of one server at the same time by their order."""
        name = f"{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%S.%f}Z-{self._files:06d}-{secrets.token_hex(4)}"
        return _Journal(self._pa, self._folder / f"{name}{_JOURNAL}", self._schema.schema, at)

    def _rotate(self, now: float) -> None:
        journal, options = self._journal, self._options
        if journal is not None and (
            journal.rows >= options.rotate_rows
            or journal.size_bytes >= options.rotate_bytes
            or now - journal.opened_at >= options.rotate_s
        ):
            self._finish()

    def _finish(self) -> None:
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            journal.end()
            _to_parquet(self._pa, journal.path)
        except OSError:
            journal.abandon()
            raise
        journal.delete()
        self._files += 1
        self._keep_bound()

    def _recover(self) -> None:
        """Save the journals of processes that are gone, and delete files that were never finished."""
        for path in sorted(self._folder.parent.glob(f"*/*{_JOURNAL}")):
            with suppress(FileNotFoundError), path.open("rb") as file:  # another server was quicker
                if not _locked(file):
                    continue  # its process lives, and so may the unfinished file
                path.with_suffix(".parquet.part").unlink(missing_ok=True)
                rows = _to_parquet(self._pa, path)
                self._recovered += rows
                path.unlink(missing_ok=True)
                log.info("saved %d captured rows of a process that died, from %s", rows, path)

    def _keep_bound(self) -> None:
        """Delete the oldest files of the model until the rest is within the bound."""
        found = []
        for path in self._folder.parent.glob("*/*.parquet"):
            with suppress(FileNotFoundError):  # another process deletes, too
                found.append((path.name, path, path.stat().st_size))
        total = sum(size for *_, size in found)
        for _, path, size in sorted(found):
            if total <= self._options.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._size_bytes = total


class _Journal:
    """An Arrow stream that other processes leave alone while it is open."""

    def __init__(self, pa: Any, path: Path, schema: Any, at: float) -> None:  # noqa: ANN401
        self.path = path
        self.opened_at = at
        self.rows = self.size_bytes = 0
        self._file = self.path.open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._writer = pa.ipc.new_stream(self._file, schema)

    def write(self, batch: Any) -> None:  # noqa: ANN401
        self._writer.write_batch(batch)
        self._file.flush()  # to the operating system, which outlives this process
        self.rows += batch.num_rows
        self.size_bytes = self._file.tell()

    def end(self) -> None:
        self._writer.close()
        self._file.flush()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def abandon(self) -> None:
        """Give it up as a dead process would."""
        with suppress(OSError):
            self._file.close()


def _to_parquet(pa: Any, journal: Path) -> int:  # noqa: ANN401
    """Write what is whole of a journal beside it, atomically; the rows. Doing it twice does no harm."""
    parquet = importlib.import_module("pyarrow.parquet")
    target, part = journal.with_suffix(".parquet"), journal.with_suffix(".parquet.part")
    batches, schema = _read_journal(pa, journal)
    rows: int = sum(batch.num_rows for batch in batches)
    if rows == 0:
        return 0
    with part.open("wb") as file:
        parquet.write_table(pa.Table.from_batches(batches, schema), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return rows


def _read_journal(pa: Any, path: Path) -> tuple[list[Any], Any]:  # noqa: ANN401
    """The record batches that are whole, and their schema."""
    batches: list[Any] = []
    schema = None
    with path.open("rb") as file, suppress(OSError, pa.ArrowInvalid):  # the end is torn, or not even the start is there
        stream = pa.ipc.open_stream(file)
        schema = stream.schema
        for batch in stream:
            batch.validate(full=True)
            batches.append(batch)
    return batches, schema


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _key(path: Path) -> bytes:
    """The key of hashes, made at the first start; readable by the server's user alone."""
    with suppress(FileExistsError):
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # unlike a rename, it never replaces the key of another server
        finally:
            part.unlink()
    return path.read_bytes()
