"""What is being worked on, for whoever writes a log line or a span meanwhile."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final, NamedTuple

from engines.request import InferRequest

REQUEST: Final[ContextVar[InferRequest | None]] = ContextVar("request", default=None)
"""The request of this task, from the moment it reached its model's stack."""
METHOD: Final[ContextVar[str]] = ContextVar("method", default="ModelInfer")
"""The RPC that it came by."""

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class TraceParent(NamedTuple):
    """A caller's place in a trace."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    state: str = ""
    """What tracing systems on the way have added (tracestate)."""


def read_traceparent(text: str) -> TraceParent | None:
    """What a W3C traceparent says, and the tracestate that may follow after a space; None when it is none."""
    found = _TRACEPARENT.match(text)
    if found is None:
        return None
    return TraceParent(found[1], found[2], bool(int(found[3], 16) & 1), text.partition(" ")[2])
