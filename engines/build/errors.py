"""Why a build ends without a new version."""

from __future__ import annotations


class BuildFailed(Exception):
    """What was asked for cannot be built; the text says why and, where there is one, what to do about it."""


class Refused(BuildFailed):
    """It was built, measured, and found not good enough to be published."""
