"""Known vulnerabilities from a copy of a database, for machines that cannot ask one.

The copy is in the format of OSV (https://ossf.github.io/osv-schema): a folder of .json files, or a .zip of them, as OSV
exports for PyPI.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Told:
    """What a copy has to say."""

    read: int
    """Advisories about packages of PyPI. 0: this is no copy."""
    newest: str
    """When the last of them was changed; a copy knows nothing that is younger."""
    findings: list[str]


def vulnerable(copy: Path, versions: Mapping[str, str], ignored: Collection[str]) -> Told:
    """Advisories that these versions are affected by, but for those whose id or alias is ignored."""
    read, newest, findings = 0, "", []
    for advisory in _all(copy):
        affected = [each for each in advisory.get("affected", ()) if each["package"]["ecosystem"] == "PyPI"]
        if not affected or "withdrawn" in advisory:
            continue
        read += 1
        newest = max(newest, advisory.get("modified", ""))
        names = {advisory["id"], *advisory.get("aliases", ())}
        if names & set(ignored):
            continue
        hit = {_canonical(each["package"]["name"]) for each in affected if _is_affected(each, versions)}
        findings += [f"{name} {versions[name]}: {', '.join(sorted(names))}" for name in sorted(hit)]
    return Told(read, newest, findings)


def _all(copy: Path) -> Iterator[dict[str, Any]]:
    if copy.is_dir():
        for path in sorted(copy.rglob("*.json")):
            yield json.loads(path.read_bytes())
        return
    with zipfile.ZipFile(copy) as packed:
        for name in packed.namelist():
            if name.endswith(".json"):
                yield json.loads(packed.read(name))


def _is_affected(affected: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
    version = versions.get(_canonical(affected["package"]["name"]))
    if version is None:
        return False
    if version in affected.get("versions", ()):
        return True
    ranges = (each["events"] for each in affected.get("ranges", ()) if each["type"] == "ECOSYSTEM")
    return any(_within(events, Version(version)) for events in ranges)


def _within(events: list[dict[str, str]], version: Version) -> bool:
    """As the schema has it; where a limit is no version, rather once too often than not at all."""
    inside = False
    try:
        for at, kind in sorted((Version(text), kind) for event in events for kind, text in event.items()):
            if kind == "introduced" and at <= version:
                inside = True
            elif (kind == "fixed" and at <= version) or (kind == "last_affected" and at < version):
                inside = False
    except InvalidVersion:
        return True
    return inside


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
