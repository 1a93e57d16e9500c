"""A digest that changes when a model's answers may change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 1 << 20


def digest_files(files: Iterable[Path], *also: bytes) -> str:
    """Hex BLAKE2b over the contents of the files, in order, and of `also`; names and places do not matter."""
    digest = hashlib.blake2b(digest_size=20)
    for content in also:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    for path in files:
        size = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()
