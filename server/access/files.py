"""Notices that files have changed, however they were replaced: written over, renamed, or a link turned elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

_Stamp: TypeAlias = tuple[int, int, int, int] | None


class FileWatch:
    """Compares files with how they were at the last look."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._seen = self._stamps()

    def changed(self) -> bool:
        """Whether any of them is not as it was at the last look."""
        stamps = self._stamps()
        before, self._seen = self._seen, stamps
        return stamps != before

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116  (links are followed: volumes are swapped by turning one)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
