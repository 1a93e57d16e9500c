"""Which callers a canary gets.

Promises: the side depends on the key and the salt alone, so that a caller stays on one side, on every replica and after
each restart. A greater share only adds callers: nobody who has the candidate is sent back.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Final

from engines.request import InferRequest
from server.rollout.context import SPLIT

AUTO: Final = "auto"
TENANT: Final = "tenant"
ID: Final = "id"
PARAMETER: Final = "parameter:"
METADATA: Final = "metadata:"

_SCALE: Final = 2.0**-64


def check_split(by: str) -> str:
    """Raise ValueError unless this says what to split by; returns it."""
    known = by in (AUTO, TENANT, ID) or any(by.startswith(kind) and by != kind for kind in (PARAMETER, METADATA))
    if not known:
        raise ValueError(f"'{by}' is nothing to split by: auto, tenant, id, parameter:NAME or metadata:NAME")
    return by


def metadata_key(by: str) -> str:
    """The metadata key that the transport has to look up; empty when there is none."""
    return by.removeprefix(METADATA).lower() if by.startswith(METADATA) else ""


class Splitter:
    """Gives each request its place in [0, 1); a canary with share s has those below s."""

    def __init__(self, by: str, salt: str) -> None:
        """`salt`: makes one rollout's first callers others than the next one's."""
        self._by = check_split(by)
        self._key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
        self._nameless = itertools.count()

    def place(self, request: InferRequest) -> float:
        """Where the request stands; one that brings no key stands for itself."""
        return self.place_of(self._key_of(request) or f"\0{next(self._nameless)}")

    def place_of(self, key: str) -> float:
        """Where a caller stands, evenly spread: 64 bits of a keyed BLAKE2b."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, key=self._key).digest()
        return (int.from_bytes(digest) >> 11 << 11) * _SCALE  # 53 bits: a float holds them exactly, and none is 1

    def _key_of(self, request: InferRequest) -> str:
        by = self._by
        if by == AUTO:
            return request.tenant or request.id
        if by == TENANT:
            return request.tenant
        if by == ID:
            return request.id
        if by.startswith(PARAMETER):
            return str(request.parameters.get(by.removeprefix(PARAMETER), ""))
        return SPLIT.get()
