"""What the transport tells a canary of a call, beside the request itself."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

SPLIT: Final[ContextVar[str]] = ContextVar("split", default="")
"""The value of the metadata key that a rollout splits callers by; set only while there is such a rollout."""
