"""Why a call is turned away. The text is what its caller reads, and never holds a credential."""

from __future__ import annotations


class AccessError(Exception):
    """The base of all refusals."""


class Unauthenticated(AccessError):
    """Nobody knows who calls: no credential, or one that is not good."""


class Denied(AccessError):
    """The caller is known, or needs not be, and may not do this."""


class Limited(AccessError):
    """The caller has had its share for now."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class BadPolicy(ValueError):
    """A policy, or a file that it names, that cannot be meant."""
