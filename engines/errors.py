"""Everything that can go wrong with an inference, as a closed set without transport words.

Rule: the text is what the caller reads; it names the model, the input or the limit that is at fault.
"""

from __future__ import annotations


class InferError(Exception):
    """The base of all errors that cross the seam."""


class InvalidRequest(InferError):
    """The request can never succeed as it stands: names, types, shapes, sizes or parameters are wrong."""


class TooLarge(InvalidRequest):
    """The request carries more rows or bytes than the model or the server takes."""


class Unsupported(InferError):
    """The request asks for something that exists in the protocol but not here."""


class ModelNotFound(InferError):
    """No model of that name."""


class VersionNotFound(ModelNotFound):
    """The model has no such version."""


class NotFound(InferError):
    """Something else that was named does not exist."""


class ModelNotReady(InferError):
    """The version exists but is loading, draining, unloaded or broken."""


class AlreadyExists(InferError):
    """Something of that name is there already."""


class NotAllowed(InferError):
    """The server runs in a mode in which this operation is closed."""


class LoadFailed(InferError):
    """A model version could not be brought up; the text says why."""


class Overloaded(InferError):
    """Shed: the queue is full, or the deadline cannot be met any more.

    `retry_after_s` is the server's estimate of when the same request would be taken; None when it has none.
    """

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(InferError):
    """The request's time was over before it ran."""


class Cancelled(InferError):
    """The caller left."""


class Draining(InferError):
    """The server is going away and takes no new work; another replica will answer."""


class EngineFailed(InferError):
    """The engine raised, returned nonsense or died while it ran the request.

    `retryable`: the fault was the engine's, not the request's, so the same request may well succeed again.
    """

    def __init__(self, text: str, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.retryable = retryable


class EngineDied(Exception):
    """Raised by `Engine.execute` when the engine can never run again; the pool puts a new one in its place."""


class EngineHung(EngineDied):
    """An execution took so much longer than it should that its engine was given up; its thread may still run."""
