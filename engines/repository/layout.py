"""What lies in the model repositories: `<root>/<model>/<version>/...`, with `config.pbtxt` and labels beside.

Rule: nothing here understands a configuration or a graph; looking is all it does, and it never raises.
Promise: whatever changes in a version's files, or in the files beside the versions, changes its fingerprint.
Promise: links to folders outside the model's own are not followed, so that a look never wanders over the disk.
Ignored: names that start with a dot, version folders that are not positive integers, and plain files in a root.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from engines.errors import LoadFailed

CONFIG_FILE: Final = "config.pbtxt"
DUPLICATE: Final = "model appears in two or more repositories"

_MAX_VERSION_DIGITS: Final = 18
"""Versions travel as int64."""


MAX_ENTRIES: Final = 10_000
"""Files and folders that a model may have: the largest known have hundreds. A link to `/` would have millions."""


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version as it was seen."""

    number: int
    path: Path
    files: tuple[str, ...]
    """Names relative to `path`, with forward slashes, in order."""
    fingerprint: str
    """Over all that the version is made of, the files beside the version folders included."""

    def holds(self, name: str) -> bool:
        """Whether the file, or a folder of that name with something in it, is there."""
        return any(file == name or file.startswith(f"{name}/") for file in self.files)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model as it was seen."""

    name: str
    path: Path
    versions: Mapping[int, VersionFolder]


@dataclass(frozen=True, slots=True)
class Scan:
    """All repositories at one moment."""

    models: Mapping[str, ModelFolder] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    """Models that cannot be used at all, and why."""
    unreadable: Mapping[Path, str] = field(default_factory=dict)
    """Roots that could not be listed, and why. What they held before may well still be there."""


def scan(roots: Sequence[Path]) -> Scan:
    """Look at all roots."""
    models: dict[str, ModelFolder] = {}
    problems: dict[str, str] = {}
    unreadable: dict[Path, str] = {}
    for root in roots:
        try:
            folders = [(name, root / name) for name in _folders(root)]
        except OSError as error:
            unreadable[root] = error.strerror or str(error)
            continue
        for name, path in folders:
            if name in models or name in problems:
                models.pop(name, None)
                problems[name] = DUPLICATE
                continue
            try:
                models[name] = look(name, path)
            except OSError as error:
                problems[name] = f"the model folder cannot be read: {error.strerror or error}"
    return Scan(models, problems, unreadable)


def look(name: str, path: Path) -> ModelFolder:
    """Look at one model's folder. Raises OSError when it cannot be listed, or holds too much."""
    numbers = {number: folder for folder in _folders(path) if (number := version_of(folder))}
    walk = _Walk(path)
    beside = walk.stamps(path, skip=frozenset(numbers.values()))
    versions: dict[int, VersionFolder] = {}
    for number, folder in sorted(numbers.items()):
        stamps = walk.stamps(path / folder)
        fingerprint = hashlib.blake2b(repr((str(path / folder), beside, stamps)).encode(), digest_size=16).hexdigest()
        versions[number] = VersionFolder(number, path / folder, tuple(stamp[0] for stamp in stamps), fingerprint)
    return ModelFolder(name, path, versions)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be acted upon."""

    versions: Mapping[int, VersionFolder]
    """Versions whose files have come to rest."""
    kept: frozenset[int] = frozenset()
    """Serving versions whose files have changed or gone, but maybe not for good."""
    problem: str = ""


def settle(name: str, found: Scan, before: Scan | None, serving: Sequence[int]) -> Seen:
    """What two looks in a row agree on; with a first look only, all of it."""
    now, problem = _versions(name, found), found.problems.get(name, "")
    if before is None:
        return Seen(now, problem=problem)
    earlier = _versions(name, before)
    settled = {number: version for number, version in now.items() if earlier.get(number) == version}
    restless = frozenset(number for number in serving if number not in settled and (number in now or number in earlier))
    return Seen(settled, restless, problem)


def _versions(name: str, found: Scan) -> Mapping[int, VersionFolder]:
    folder = found.models.get(name)
    return {} if folder is None else folder.versions


def version_of(folder: str) -> int:
    """The version that a folder of this name holds; 0 for none. Leading zeros would make two names of one number."""
    if not (folder.isascii() and folder.isdigit()) or folder[0] == "0" or len(folder) > _MAX_VERSION_DIGITS:
        return 0
    return int(folder)


def resolve_inside(base: Path, name: str, what: str) -> Path:
    """The file `name` in the folder `base`; raises LoadFailed, naming `what`, when it leads anywhere else.

    `base` itself may be a symbolic link, as mounted volumes make them; a link below it must not lead out of it.
    """
    check_relative(name, what)
    try:
        path = (base / name).resolve()
        home = base.resolve()
    except (OSError, RuntimeError) as error:
        raise LoadFailed(f"{what}: '{name}' cannot be resolved: {error}") from error
    if not path.is_relative_to(home):
        raise LoadFailed(f"{what}: '{name}' leads out of the model's folder")
    return path


def check_relative(name: str, what: str) -> None:
    """Raise LoadFailed, naming `what`, unless the name is a relative path that stays below its folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise LoadFailed(f"{what}: {name!r} is not a relative path without '..'")


def write_model(into: Path, files: Mapping[str, bytes]) -> None:
    """Write a model's files, named relative to its folder. Raises LoadFailed before anything is written."""
    for name in files:
        check_relative(name, "file override")
    for name, content in files.items():
        path = into / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise LoadFailed(f"file override: '{name}' cannot be written: {error.strerror or error}") from error


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


class _Walk:
    """One look at a model's folder.

    The model's folder and its version folders may themselves be links, as mounted volumes make them; a link below them
    is followed as long as it stays in one of the two.
    """

    def __init__(self, folder: Path) -> None:
        self._homes = [folder.resolve()]
        self._left = MAX_ENTRIES

    def stamps(self, folder: Path, skip: frozenset[str] = frozenset()) -> list[tuple[str, int, int]]:
        """Name, size and modification time of every file below the folder, in order of names.

        Raises OSError once there are too many of them.
        """
        self._homes[1:] = [folder.resolve()]
        return sorted(self._walk(folder, "", skip, ()))

    def _walk(
        self, folder: Path, prefix: str, skip: frozenset[str], above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[str, int, int]]:
        """`above` holds the device and inode of each folder on the way here, so that links cannot lead in circles."""
        try:
            with os.scandir(folder) as listed:
                entries = [entry for entry in listed if not entry.name.startswith(".") and entry.name not in skip]
        except OSError:  # gone again, or not ours to read: whoever needs its files will say so
            return
        self._left -= len(entries)
        if self._left < 0:
            raise OSError(errno.EFBIG, f"it holds more than {MAX_ENTRIES} files and folders")
        for entry in entries:
            try:
                status = entry.stat()
            except (OSError, ValueError):
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns
                continue
            path, identity = folder / entry.name, (status.st_dev, status.st_ino)
            if identity not in above and (not entry.is_symlink() or self._holds(path)):
                yield from self._walk(path, f"{prefix}{entry.name}/", frozenset(), (*above, identity))

    def _holds(self, folder: Path) -> bool:
        try:
            return any(map(folder.resolve().is_relative_to, self._homes))
        except (OSError, RuntimeError):
            return False
