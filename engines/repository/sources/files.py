"""What a source has, file by file, before any of it is fetched.

Rule: nothing here talks to anybody. Names come from strangers: one that could lead out of its folder is never a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from engines.repository.layout import version_of

BESIDE: Final = ""
"""The unit of a model's files that belong to no version."""


class SourceError(Exception):
    """A source does not answer, or not as it should; the next try may well succeed. Its text is fit to be logged."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as a listing shows it."""

    path: str
    """Below the repository, with forward slashes: `NAME/VERSION/...` or `NAME/...`."""
    size: int
    mark: str
    """Differs whenever the contents do: an ETag, a generation, a time."""
    key: str = ""
    """What the source itself calls it."""


Unit: TypeAlias = Mapping[str, RemoteFile]
"""One version's files, or those beside the versions, by path."""
Listing: TypeAlias = Mapping[str, Mapping[str, Unit]]
"""Units by model and by version; see BESIDE."""


class Remote(Protocol):
    """A source. Methods block, may be called from several threads, and raise SourceError."""

    @property
    def name(self) -> str:
        """Says which source it is, without secrets."""
        ...

    def list(self) -> Sequence[RemoteFile]:
        """All files there are just now."""
        ...

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Contents from `start` on, or from 0 where the source cannot begin in the middle: where, and what."""
        ...

    def complete(self, model: Path) -> None:
        """Add to a model's folder, laid out but not yet seen, what follows from its files."""
        ...


def arrange(files: Iterable[RemoteFile]) -> tuple[Listing, tuple[str, ...]]:
    """Files by model and unit, and the names that were left out because they are unsafe or in each other's way."""
    listing: dict[str, dict[str, dict[str, RemoteFile]]] = {}
    refused: list[str] = []
    for file in files:
        parts = file.path.split("/")
        if any(part.startswith(".") and part not in (".", "..") for part in parts):
            continue  # hidden, as in folders
        if not is_safe(file.path) or len(parts) < 2:
            if len(parts) > 1:
                refused.append(file.path)
            continue
        unit = parts[1] if len(parts) > 2 and version_of(parts[1]) else BESIDE
        listing.setdefault(parts[0], {}).setdefault(unit, {})[file.path] = file
    for name in [name for name, units in listing.items() if _clash(units)]:
        del listing[name]
        refused.append(name)
    return listing, tuple(refused)


def is_safe(path: str) -> bool:
    """Whether the path, below any folder, stays below it on every file system."""
    return path.isprintable() and "\\" not in path and not any(part in ("", ".", "..") for part in path.split("/"))


def _clash(units: Mapping[str, Unit]) -> bool:
    """Object stores may have both `a` and `a/b`, which no folder can."""
    paths = {path for unit in units.values() for path in unit}
    return any(parent in paths for path in paths for parent in _parents(path))


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


_SECRETS: Final = re.compile(
    r"(?i)((?:sig|signature|credential|token|password|secret|account_?key|access_?key(?:_?id)?)[\"']?\s*[=:]\s*[\"']?)[^\s&\"',;]+"
)
_USERINFO: Final = re.compile(r"(//)[^/@\s]*:[^/@\s]*@")
_VARIABLES: Final = re.compile(r"(?i)SECRET|PASSWORD|TOKEN|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING")
_SHORTEST: Final = 6
"""Values shorter than this would blank out innocent words."""


def scrub(text: object, environment: Mapping[str, str] | None = None) -> str:
    """The text of an error without credentials: parameters of signed URLs, user names, and what the environment has."""
    cleaned = _USERINFO.sub(r"\1***@", _SECRETS.sub(r"\1***", str(text)))
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST and _VARIABLES.search(name):
            cleaned = cleaned.replace(value, "***")
    return cleaned
