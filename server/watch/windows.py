"""The latest rows of a stream."""

from __future__ import annotations

import numpy as np

from server.watch.plan import Matrix


class Window:
    """A ring of the last `size` rows, each with its time. Rows older than `age_s` leave when `expire` is called."""

    def __init__(self, size: int, columns: int, age_s: float = 0.0) -> None:
        self.size = size
        self.age_s = age_s
        self._rows = np.empty((size, columns))
        self._times = np.empty(size)
        self._end = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether a row leaves for each that comes."""
        return self._count == self.size

    def push(self, rows: Matrix, times: Matrix) -> None:
        """Add rows, oldest first."""
        rows, times = rows[-self.size :], times[-self.size :]
        at = (self._end + np.arange(len(rows))) % self.size
        self._rows[at], self._times[at] = rows, times
        self._end = (self._end + len(rows)) % self.size
        self._count = min(self.size, self._count + len(rows))

    def expire(self, now: float) -> None:
        """Let rows go whose time is over."""
        if self.age_s > 0:
            self._count = int(np.count_nonzero(self._times[self._positions()] > now - self.age_s))

    def rows(self) -> Matrix:
        """A copy, oldest first."""
        return self._rows[self._positions()]

    def _positions(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return (self._end - self._count + np.arange(self._count)) % self.size
