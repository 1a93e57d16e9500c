"""What the watch sees of a request: its inputs and its answer, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.request import InferRequest, InferResponse


@dataclass(frozen=True, slots=True)
class Observation:
    """One answered request. Its tensors are views: who keeps rows longer than a moment copies them."""

    request: InferRequest
    response: InferResponse
    at: float
    """When it was answered, in seconds since 1970: joined with reports that come from other machines."""


class Sink(Protocol):
    """Takes what the tap took. Called on the watch's own thread, never on the event loop; it may block."""

    def observe(self, observations: Sequence[Observation]) -> None:
        """Take some of them, in order of their time."""
        ...

    def close(self) -> None:
        """Write what is left; nothing comes after."""
        ...
