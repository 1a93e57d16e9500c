"""How many bytes of requests and answers the process holds, and the bound above which requests are refused.

Rule: belongs to one event loop; nothing here waits. Whoever takes bytes gives them back exactly once.

What counts: a request from the moment its length is known until its handler has ended, an answer that its client leaves
no window for, and what a socket that takes no more still holds. What an engine makes of a request does not count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import Message

from engines.errors import Overloaded
from server.transport.status import trailers_of

TEXT: Final = "the server holds as many bytes of requests and answers as it may"
RETRY_AFTER_S: Final = 0.1
"""When to try again: nobody knows, but answers of that many bytes take some time to leave."""
TRAILERS: Final = trailers_of(Overloaded(TEXT, retry_after_s=RETRY_AFTER_S))


@dataclass(slots=True)
class Inflight:
    """The count of a whole server."""

    limit_bytes: int
    """Requests that would exceed it are refused. One request is always taken, whatever its size."""
    used_bytes: int = 0
    refused: int = 0
    """Requests that were."""

    def take(self, size: int) -> bool:
        """Count a request's bytes; False, and nothing counted, where it must be refused."""
        if self.used_bytes + size > self.limit_bytes and self.used_bytes > 0:
            self.refused += 1
            return False
        self.used_bytes += size
        return True

    def add(self, size: int) -> None:
        """Count bytes that are there and cannot be refused any more."""
        self.used_bytes += size

    def release(self, size: int) -> None:
        """They have left."""
        self.used_bytes -= size


class CountCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Counts the unary calls of grpcio's server, which tells nobody what it holds: from the handler to the status."""

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:  # noqa: ANN401  (a handler, which grpc has no type for)
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._counted(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _counted(self, behaviour: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        inflight = self._inflight

        async def counted(request: object, context: Any) -> object:  # noqa: ANN401  (a ServicerContext)
            held = _size(request)
            if not inflight.take(held):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TEXT, TRAILERS)

            def ended(_: object) -> None:
                inflight.release(held)

            context.add_done_callback(ended)
            response = await behaviour(request, context)
            size = _size(response)
            inflight.add(size)
            held += size
            return response

        return counted


def _size(message: object) -> int:
    """Its bytes on the wire. Handlers that read messages themselves have bytes, alone or with what they mean."""
    if isinstance(message, tuple):
        message = message[0]
    if isinstance(message, bytes):
        return len(message)
    return message.ByteSize() if isinstance(message, Message) else 0
