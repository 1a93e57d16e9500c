"""Errors of the seam as gRPC statuses: the one table, and what goes into the trailing metadata."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from grpc import StatusCode

from engines.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InferError,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    ModelNotReady,
    NotAllowed,
    NotFound,
    Overloaded,
    Unsupported,
    VersionNotFound,
)

STATUS: Final[Mapping[type[InferError], StatusCode]] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    Unsupported: StatusCode.UNIMPLEMENTED,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelNotReady: StatusCode.UNAVAILABLE,
    NotFound: StatusCode.NOT_FOUND,
    AlreadyExists: StatusCode.ALREADY_EXISTS,
    NotAllowed: StatusCode.UNAVAILABLE,
    LoadFailed: StatusCode.INTERNAL,
    Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    Cancelled: StatusCode.CANCELLED,
    Draining: StatusCode.UNAVAILABLE,
    EngineFailed: StatusCode.INTERNAL,
}
"""A class that is not here goes by its nearest base that is."""

TRITON: Final[Mapping[type[InferError], StatusCode]] = {
    **STATUS,
    ModelNotFound: StatusCode.INVALID_ARGUMENT,
    VersionNotFound: StatusCode.NOT_FOUND,
    Overloaded: StatusCode.UNAVAILABLE,
    DeadlineExceeded: StatusCode.UNAVAILABLE,
}
"""Where Triton answers otherwise. Beware: many clients take UNAVAILABLE as an invitation to try again at once."""


class StatusCodes(enum.Enum):
    """Which table the server answers by."""

    KAIROS = "kairos"
    TRITON = "triton"

    def code(self, error: InferError) -> StatusCode:
        """The status of an error."""
        table = STATUS if self is StatusCodes.KAIROS else TRITON
        return next((table[kind] for kind in type(error).__mro__ if kind in table), StatusCode.INTERNAL)


Metadata = tuple[tuple[str, str], ...]

RETRY_AT_MOST_S: Final = 3600.0
"""No hint is longer: clients read it as a 32-bit number of milliseconds."""

RETRYABLE: Final[Metadata] = (("retryable", "true"),)
"""The fault was not the request's: the same request may well succeed again, here later or on another replica now."""


def text_of(error: InferError, request_id: str = "") -> str:
    """What the caller reads."""
    return f"[request id: {request_id}] {error}" if request_id else str(error)


def trailers_of(error: InferError) -> Metadata:
    """Hints for clients that retry: whether it can help, and when to."""
    if isinstance(error, Overloaded):
        if error.retry_after_s is None:
            return RETRYABLE
        return (*RETRYABLE, *retry_after(error.retry_after_s))
    if isinstance(error, Draining) or (isinstance(error, EngineFailed) and error.retryable):
        return RETRYABLE
    return ()


def retry_after(wait_s: float) -> Metadata:
    """When to come back, as clients read it."""
    wait_ms = str(max(1, round(min(wait_s, RETRY_AT_MOST_S) * 1e3)))
    return (("retry-after-ms", wait_ms), ("grpc-retry-pushback-ms", wait_ms))
