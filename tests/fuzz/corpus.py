"""Inputs that are kept, as files under tests/fuzz/corpus, named by what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from tests.fuzz.target import Target

FOLDER: Final = Path(__file__).with_name("corpus")


def kept(target: Target) -> list[bytes]:
    """The seeds, and what earlier runs found worth keeping, findings that were fixed among them."""
    folder = FOLDER / target.name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [*target.seeds(), *(path.read_bytes() for path in files)]


def name_of(data: bytes) -> str:
    """The file name of an input."""
    return hashlib.sha256(data).hexdigest()[:16]
