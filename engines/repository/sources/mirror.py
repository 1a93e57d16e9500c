"""A local folder that follows a remote repository, version by version.

Rules: `steady` and `plan` decide, from listings alone; everything else moves files. A model's folder is a link to a
generation of it, made beside and put in place by one rename: whoever looks sees the old or the new, configuration and
versions together.
Promises: a version whose files still come is not shown. What cannot be fetched, or is not what its manifest says,
leaves in place what was there. A version that has gone from two listings in a row is taken away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engines.repository.layout import version_of
from engines.repository.sources import manifest
from engines.repository.sources.blobs import Blobs, locked
from engines.repository.sources.fetch import Patience, Progress, fetch, part_of
from engines.repository.sources.files import Listing, Remote, RemoteFile, SourceError, Unit, arrange

log = logging.getLogger(__name__)

STATE: Final = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorOptions:
    """What a mirror obeys."""

    keys: Sequence[bytes] = ()
    """Public keys, one of which must have signed each version; none: signatures are not looked at."""
    parallel: int = 4
    """Files fetched at the same time."""
    settle_s: float = 1.0
    """Before anything new is taken at the start: seconds between the two listings that must agree. 0: one will do."""


@dataclass(slots=True)
class MirrorStatistics:
    """Counts since the start."""

    syncs: int = 0
    failures: int = 0
    """Looks that ended because the source did not answer."""
    fetched_bytes: int = 0
    fetched_files: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Versions that are there but not taken, as NAME/VERSION, and why."""


@dataclass(slots=True)
class Stored:
    """A remote file as it was taken."""

    file: RemoteFile
    sha256: str


def steady(now: Unit | None, before: Unit | None, taken: Unit | None) -> Unit | None:
    """What two listings in a row say of a unit, or else what was `taken` before; None for none."""
    return now if now == before else taken


def plan(now: Listing, before: Listing, taken: Listing) -> Listing:
    """How the mirror should look."""
    wanted: dict[str, Mapping[str, Unit]] = {}
    for name in sorted({*now, *before, *taken}):
        looks = [listing.get(name, {}) for listing in (now, before, taken)]
        units = {unit: steady(*(look.get(unit) for look in looks)) for unit in sorted(set().union(*looks))}
        if chosen := {unit: files for unit, files in units.items() if files is not None}:
            wanted[name] = chosen
    return wanted


class Mirror:
    """One source and its folder. One thread at a time; processes that share the folder take turns."""

    def __init__(
        self, remote: Remote, home: Path, blobs: Blobs, options: MirrorOptions, patience: Patience, progress: Progress
    ) -> None:
        self.remote = remote
        self.statistics = MirrorStatistics()
        self._options = options
        self._patience = patience
        self._progress = progress
        self._blobs = blobs
        identity = repr((remote.name, sorted(options.keys))).encode()
        self._home = home / hashlib.blake2b(identity, digest_size=12).hexdigest()
        self.root = self._home / "models"
        """A repository as the layout has it."""
        self._before: Listing | None = None
        self._refused: dict[str, Unit] = {}
        self._leaving: set[Path] = set()
        """Generations that the look under way has replaced."""

    def __repr__(self) -> str:
        counted = self.statistics
        return f"<Mirror {self.remote.name} [{counted.syncs} looks, {counted.failures} failed]>"

    def prepare(self) -> None:
        """Make the folder, empty if it is new."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def holds(self) -> bool:
        """Whether it has been filled before."""
        return (self._home / STATE).exists()

    def sync(self) -> bool:
        """Look at the source, and follow it; returns whether anything changed. Raises SourceError or OSError."""
        self.prepare()
        self.statistics.syncs += 1
        try:
            with locked(self._home / "lock"), self._blobs.working():
                changed = self._follow()
        except SourceError:
            self.statistics.failures += 1
            raise
        self._blobs.trim()
        return changed

    def _follow(self) -> bool:
        state = self._read_state()
        taken = {
            name: {u: {p: s.file for p, s in files.items()} for u, files in us.items()} for name, us in state.items()
        }
        now = self.look()
        if self._before is None:
            self._before = now
            if now != taken and self._options.settle_s > 0:
                self._patience.stopped.wait(self._options.settle_s)
                now = self.look()
        wanted = plan(now, self._before, taken)
        self._before = now
        changed, trouble = False, None
        for name in sorted({*wanted, *taken}):
            if wanted.get(name) == taken.get(name):
                continue
            try:
                units = self._fetch_model(name, wanted.get(name, {}), state.get(name, {}))
                changed = self._show(name, units, state) or changed
            except SourceError as error:
                trouble = error
            except OSError as error:  # a full disk, or a name that this file system does not take
                trouble = SourceError(f"{self.remote.name}: '{name}' cannot be kept: {error.strerror or error}")
        self._clean(wanted)
        if trouble is not None:
            raise trouble
        return changed

    def look(self) -> Listing:
        """What the source has just now. Raises SourceError after some tries."""
        attempt = 1
        while True:
            try:
                listing, left_out = arrange(self.remote.list())
                break
            except SourceError as error:
                self._patience.check()
                if attempt >= self._patience.attempts:
                    raise
                log.info("%s is asked again: %s", self.remote.name, error)
                self._patience.pause(attempt)
                attempt += 1
        here = {f"{name}/{unit}".rstrip("/") for name, units in listing.items() for unit in units}
        for subject in self.statistics.refused.keys() - here - set(left_out):
            del self.statistics.refused[subject]
        for path in left_out:
            self._refuse(path, "the name is unsafe, or two names are in each other's way")
        return listing

    # One model

    def _fetch_model(
        self, name: str, wanted: Mapping[str, Unit], had: Mapping[str, Mapping[str, Stored]]
    ) -> dict[str, Mapping[str, Stored]]:
        """The model's units as they should be shown; those that are refused as they were."""
        units: dict[str, Mapping[str, Stored]] = {}
        for unit, files in wanted.items():
            subject = f"{name}/{unit}" if unit else name
            old = had.get(unit)
            if old is not None and _files(old) == files:
                units[unit] = old
                continue
            if self._refused.get(subject) != files:
                try:
                    units[unit] = self._fetch_unit(subject, files, old or {})
                    self._refused.pop(subject, None)
                    self.statistics.refused.pop(subject, None)
                    continue
                except manifest.Refused as error:
                    self._refused[subject] = files
                    self._refuse(subject, str(error))
            if old is not None:
                units[unit] = old
        return units

    def _fetch_unit(self, subject: str, files: Unit, old: Mapping[str, Stored]) -> Mapping[str, Stored]:
        prefix = f"{subject}/"
        names = {path.removeprefix(prefix): file for path, file in files.items()}
        first: dict[str, Stored] = {name: self._fetch(names[name], old, "") for name in manifest.FIRST if name in names}
        paths = {name: self._blobs.path(stored.sha256) for name, stored in first.items()}
        sums = manifest.expected(paths, subject, self._options.keys)
        if sums:
            manifest.check_complete(names, sums, signed=bool(self._options.keys))
        rest = [(name, file) for name, file in names.items() if name not in first]
        with ThreadPoolExecutor(self._options.parallel, "kairos-fetch") as threads:
            fetched = list(threads.map(lambda each: self._fetch(each[1], old, sums.get(each[0], "")), rest))
        found = first | {name: stored for (name, _), stored in zip(rest, fetched, strict=True)}
        for name, digest in sums.items():
            if found[name].sha256 != digest:
                raise manifest.Refused(f"'{name}' is not what the manifest says")
        return {stored.file.path: stored for stored in found.values()}

    def _fetch(self, file: RemoteFile, old: Mapping[str, Stored], digest: str) -> Stored:
        known = old.get(file.path)
        if known is not None and known.file == file and self._blobs.has(known.sha256):
            return known
        if digest and self._blobs.has(digest):
            return Stored(file, digest)
        self._patience.check()
        parts = self._home / "parts"
        parts.mkdir(exist_ok=True)
        part = part_of(file, parts)
        got = fetch(self.remote, file, part, self._patience, self._progress)
        self.statistics.fetched_bytes += got.transferred
        self.statistics.fetched_files += 1
        self._blobs.take(part, got.sha256)
        return Stored(file, got.sha256)

    def _refuse(self, subject: str, reason: str) -> None:
        if self.statistics.refused.get(subject) != reason:
            log.error("%s: %r is not taken: %s", self.remote.name, subject, reason)
        self.statistics.refused[subject] = reason

    # The folder

    def _show(
        self, name: str, units: dict[str, Mapping[str, Stored]], state: dict[str, dict[str, Mapping[str, Stored]]]
    ) -> bool:
        """Put the model's folder in place, or take it away when no version is left; returns whether it changed."""
        if not any(version_of(unit) for unit in units):
            units = {}
        if units == state.get(name, {}):
            return False
        link = self.root / name
        old = link.resolve() if link.is_symlink() else None
        if units:
            self._build(name, units).rename(link)
            state[name] = units
        else:
            link.unlink(missing_ok=True)
            state.pop(name, None)
        self._write_state(state)
        if old is not None:
            self._leaving.add(old)
        return True

    def _build(self, name: str, units: Mapping[str, Mapping[str, Stored]]) -> Path:
        """A new generation of the model, and a link to it that waits to be renamed."""
        digest = hashlib.blake2b(repr((name, units)).encode(), digest_size=8).hexdigest()
        generation = self._home / "generations" / name / digest
        shutil.rmtree(generation, ignore_errors=True)
        for files in units.values():
            for path, stored in files.items():
                self._blobs.link(stored.sha256, generation / path.removeprefix(f"{name}/"))
        self.remote.complete(generation)
        waiting = self._home / "waiting"
        waiting.unlink(missing_ok=True)
        waiting.symlink_to(generation)
        return waiting

    def _clean(self, wanted: Listing) -> None:
        """Forget unfinished files that nobody wants any more, and what was shown before the last look.

        What this look has replaced stays until the next: somebody may be loading it just now.
        """
        parts = self._home / "parts"
        files = (file for units in wanted.values() for unit in units.values() for file in unit.values())
        kept = {part_of(file, parts) for file in files}
        for part in parts.glob("*.part"):
            if part not in kept:
                part.unlink()
        kept = {link.resolve() for link in self.root.iterdir()} | self._leaving
        for generation in (self._home / "generations").resolve().glob("*/*"):
            if generation not in kept:
                shutil.rmtree(generation, ignore_errors=True)
        self._leaving.clear()

    def _read_state(self) -> dict[str, dict[str, Mapping[str, Stored]]]:
        """What is shown; what is there but was never written down is made anew."""
        try:
            plain = json.loads((self._home / STATE).read_bytes())
            state: dict[str, dict[str, Mapping[str, Stored]]] = {
                name: {
                    unit: {path: Stored(RemoteFile(path, *about[:3]), about[3]) for path, about in files.items()}
                    for unit, files in units.items()
                }
                for name, units in plain.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, IndexError):
            return {}
        return {name: units for name, units in state.items() if (self.root / name).is_dir()}

    def _write_state(self, state: Mapping[str, Mapping[str, Mapping[str, Stored]]]) -> None:
        plain = {
            name: {
                unit: {path: (s.file.size, s.file.mark, s.file.key, s.sha256) for path, s in files.items()}
                for unit, files in units.items()
            }
            for name, units in state.items()
        }
        fresh = self._home / f"{STATE}.new"
        fresh.write_text(json.dumps(plain), encoding="utf-8")
        fresh.rename(self._home / STATE)


def _files(stored: Mapping[str, Stored]) -> Unit:
    return {path: each.file for path, each in stored.items()}
