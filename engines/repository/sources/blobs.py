"""Files on the local disk by the digest of their contents, within a bound.

Rules: a blob is written elsewhere and renamed, so it is whole or not there. Repositories hold blobs by hard links:
the file system counts who uses one, across all servers that share the cache, and outlives each of them.
Promise: what is linked is never thrown away, even when that breaks the bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)


class Blobs:
    """See the module. All methods block on the disk and raise OSError."""

    def __init__(self, folder: Path, max_bytes: int, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock_ns = clock_ns

    def has(self, digest: str) -> bool:
        """Whether the contents are there."""
        return self._path(digest).is_file()

    def path(self, digest: str) -> Path:
        """Where they are; not to be written to."""
        return self._path(digest)

    def take(self, part: Path, digest: str) -> None:
        """Make a finished file a blob; `part` is gone afterwards."""
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            part.unlink()
            return
        part.chmod(0o444)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)

    def link(self, digest: str, target: Path) -> None:
        """Put the file there, and note that it was used; the time of its last change stays as it is."""
        path = self._path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.utime(path, ns=(self._clock_ns(), path.stat().st_mtime_ns))
        target.hardlink_to(path)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """For the length of the block nobody throws anything away: what is taken will soon be linked."""
        with self._lock(fcntl.LOCK_SH):
            yield

    def trim(self) -> int:
        """Throw away what was not used for longest until the bound is kept; returns how many bytes stay.

        Does nothing while somebody works.
        """
        try:
            with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                return self._trim()
        except BlockingIOError:
            return self.size_bytes()

    def size_bytes(self) -> int:
        """How much there is."""
        return sum(path.stat().st_size for path in self._all())

    def _trim(self) -> int:
        found = [(path.stat(), path) for path in self._all()]
        total = sum(status.st_size for status, _ in found)
        idle = sorted((status.st_atime_ns, path, status.st_size) for status, path in found if status.st_nlink == 1)
        for _, path, size in idle:
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        if total > self._max_bytes:
            log.warning("models in use take %d bytes of the source cache, more than its bound", total)
        return total

    def _all(self) -> Iterator[Path]:
        return self._folder.glob("??/*")

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        with locked(self._folder / "lock", how):
            yield


@contextlib.contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock file; other processes and other holders in this one wait."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("ab") as file:
        fcntl.flock(file, how)
        yield
