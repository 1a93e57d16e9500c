"""Puts a finished version into a repository in one step, so that a server that looks sees all of it or nothing.

Rule: everything is made in a folder whose name starts with a dot, which servers ignore, on the same file system.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engines.build.errors import BuildFailed
from engines.repository.layout import CONFIG_FILE, version_of

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ATTEMPTS: Final = 100


def check_name(name: str) -> None:
    """Raise BuildFailed unless the name makes a folder that servers take for a model."""
    if not _NAME.fullmatch(name):
        raise BuildFailed(f"'{name}' is no model name: letters, digits, '_', '-', '.', and neither '.' nor '-' first")


@contextlib.contextmanager
def workshop(repository: Path) -> Iterator[Path]:
    """A folder inside the repository that no server sees, gone when the block ends."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".build-", dir=repository))
    except OSError as error:
        raise BuildFailed(f"{repository} cannot be written to: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(version: Path, repository: Path, name: str) -> Path:
    """Move a staged version, and the configuration beside it where there is none yet; return where it is now."""
    model = repository / name
    config = version.parent / CONFIG_FILE
    if not model.exists():
        # The whole model at once, so that a version is never seen without its configuration.
        first = version.parent.parent / f"{name}.new"
        first.mkdir()
        shutil.copy2(config, first / CONFIG_FILE)
        version.rename(first / "1")
        with contextlib.suppress(OSError):  # somebody else made the model in the meantime
            first.rename(model)
            return model / "1"
        version = first / "1"
    if not (model / CONFIG_FILE).exists():
        fresh = version.parent / ".config"
        shutil.copy2(config, fresh)
        fresh.rename(model / CONFIG_FILE)
    for _ in range(_ATTEMPTS):
        target = model / str(_next_version(model))
        with contextlib.suppress(OSError):  # taken in the meantime
            version.rename(target)
            return target
    raise BuildFailed(f"{model} cannot be written to")


def _next_version(model: Path) -> int:
    with os.scandir(model) as entries:
        return max((version_of(entry.name) for entry in entries), default=0) + 1
