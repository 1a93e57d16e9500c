"""Keeps rollouts on disk, so that a restart neither forgets a step nor lets a candidate loose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from engines.errors import LoadFailed
from server.rollout.rollout import Rollout

FILE: Final = "rollouts.json"
_FORMAT: Final = "rollouts 1"
"""The only key of the file; another format would have another one."""


class RolloutStore:
    """One file, replaced as a whole: whoever reads it sees all of a state or all of the one before."""

    def __init__(self, folder: Path | None) -> None:
        """None: nothing is kept."""
        self._path = None if folder is None else folder / FILE

    def read(self, changed: Callable[[Rollout], None]) -> list[Rollout]:
        """What was written last.

        Raises LoadFailed when that cannot be read: without it a version that has proven nothing might answer.
        """
        if self._path is None:
            return []
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            return [Rollout.from_json(each, changed) for each in data[_FORMAT]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise LoadFailed(f"the rollouts in {self._path} cannot be read ({reason}); mend or remove it") from error

    def write(self, rollouts: Iterable[Rollout]) -> None:
        """Replace the file. Raises OSError.

        Blocks for as long as the disk takes, which is why it is done for changes of a stage or step only.
        """
        if self._path is None:
            return
        text = json.dumps({_FORMAT: [each.as_json() for each in rollouts]}, indent=1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}.tmp")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
