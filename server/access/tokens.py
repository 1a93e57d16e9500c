"""Bearer tokens: 256 random bits each, kept as SHA-256. A slow hash would only slow us: there is nothing to guess."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeVar

from server.access.errors import BadPolicy

T = TypeVar("T")

PREFIX: Final = "kairos_"
"""Begins each of our tokens, so that scanners for leaked secrets know them."""

_TOKEN_BYTES: Final = 32
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def new_token() -> str:
    """A token that nobody had before."""
    return PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class TokenTable(Generic[T]):
    """Whose tokens there are, by their digests.

    The look-up goes by the digest of what a caller sent, which the caller cannot steer: how long it takes tells
    nothing of the tokens that are kept.
    """

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        """Digests as hexadecimal text. Raises BadPolicy for anything else, and for one that two owners have."""
        found: dict[bytes, T] = {}
        for text, owner in entries:
            if not _DIGEST.fullmatch(text):
                raise BadPolicy("token_sha256 takes 64 hexadecimal digits, as `kairos token new` prints them")
            digest = bytes.fromhex(text)
            if digest in found:
                raise BadPolicy(f"one token belongs to two callers (its digest begins with {text[:8]})")
            found[digest] = owner
        self._owners: Mapping[bytes, tuple[bytes, T]] = {digest: (digest, owner) for digest, owner in found.items()}

    def owner(self, digest: bytes) -> T | None:
        """Whose token has this digest."""
        entry = self._owners.get(digest)
        return entry[1] if entry is not None and hmac.compare_digest(entry[0], digest) else None
