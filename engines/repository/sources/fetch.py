"""Brings one remote file to the disk, going on where an earlier try broke off.

Rule: the name of the unfinished file has the remote's mark in it, so that pieces of two contents are never joined.
Promise: a byte that has reached the disk is not asked for again, if the source can begin in the middle.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from engines.repository.sources.files import Remote, RemoteFile, SourceError

log = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told a file's name, the bytes of it that are here, and its size; from several threads."""


@dataclass(slots=True, kw_only=True)
class Patience:
    """How hard to try, and when to stop."""

    attempts: int = 4
    """Tries without progress before a source is taken to be gone."""
    pause_s: float = 0.5
    """Before the second try; doubles with each."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when the server leaves: nothing waits or fetches any more."""

    def check(self) -> None:
        """Raise SourceError once stopped."""
        if self.stopped.is_set():
            raise SourceError("stopped")

    def pause(self, attempt: int) -> None:
        """Wait before try number `attempt`, from 1 on."""
        self.stopped.wait(self.pause_s * 2 ** (attempt - 1))
        self.check()


@dataclass(slots=True)
class Fetched:
    """What came."""

    sha256: str
    transferred: int
    """Bytes that the source sent this time."""


def part_of(file: RemoteFile, folder: Path) -> Path:
    """Where a file grows."""
    identity = repr((file.path, file.key, file.size, file.mark)).encode()
    return folder / f"{hashlib.blake2b(identity, digest_size=16).hexdigest()}.part"


def fetch(remote: Remote, file: RemoteFile, part: Path, patience: Patience, progress: Progress) -> Fetched:
    """Fill `part`. Raises SourceError when the source is gone for longer than patience lasts; what came stays."""
    attempt = transferred = 0
    while True:
        before = _size(part)
        try:
            transferred += _append(remote, file, part, patience, progress)
            break
        except SourceError as error:
            patience.check()
            attempt = 1 if _size(part) > before else attempt + 1
            if attempt >= patience.attempts:
                raise
            log.info("fetching %s is tried again: %s", file.path, error)
            patience.pause(attempt)
    if _size(part) != file.size:
        part.unlink()
        raise SourceError(f"{remote.name}: {file.path} came with a wrong size")
    with part.open("rb") as content:
        return Fetched(hashlib.file_digest(content, "sha256").hexdigest(), transferred)


def _append(remote: Remote, file: RemoteFile, part: Path, patience: Patience, progress: Progress) -> int:
    transferred, have = 0, _size(part)
    if have > file.size:
        part.unlink()
        have = 0
    start, chunks = remote.read(file, have)
    with part.open("ab") as target:
        target.truncate(start)
        have = start
        progress(file.path, have, file.size)
        for chunk in _bounded(chunks, file.size - start):
            target.write(chunk)
            target.flush()
            have += len(chunk)
            transferred += len(chunk)
            progress(file.path, have, file.size)
            patience.check()
    return transferred


def _bounded(chunks: Iterable[bytes], size: int) -> Iterable[bytes]:
    """A source that sends more than it said must not fill the disk."""
    for chunk in chunks:
        size -= len(chunk)
        if size < 0:
            raise SourceError("the source sends more than it listed")
        yield chunk


def _size(part: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return part.stat().st_size
    return 0
