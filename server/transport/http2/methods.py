"""Runs handlers: the four arities, asynchronous or blocking, and what becomes of their exceptions."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from server.transport.http2 import blocking
from server.transport.http2.call import Call, Unreadable
from server.transport.http2.metadata import InvalidMetadata

_log = logging.getLogger(__name__)

Run = Callable[[Call, Callable[..., Any]], Awaitable[None]]


class RpcMethodHandler(Protocol):
    """The fields of a `grpc.RpcMethodHandler` that matter here."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], Any] | None
    response_serializer: Callable[[Any], bytes] | None
    unary_unary: Callable[..., Any] | None
    unary_stream: Callable[..., Any] | None
    stream_unary: Callable[..., Any] | None
    stream_stream: Callable[..., Any] | None


class RequestIterator:
    """The requests of a call whose client streams, for `async for`."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> RequestIterator:
        return self

    def __anext__(self) -> Awaitable[Any]:
        return self._call.next_request()


class Method:
    """One method of a service, ready to serve calls."""

    __slots__ = ("_function", "_run", "deserialize", "handler", "serialize", "starts_at_once")

    def __init__(self, handler: RpcMethodHandler) -> None:
        self.handler = handler
        self.deserialize = handler.request_deserializer
        self.serialize = handler.response_serializer
        self.starts_at_once = handler.request_streaming
        """Whether a call begins with its head; else with its one, whole request."""
        arity = (handler.request_streaming, handler.response_streaming)
        function = getattr(handler, _ARITY_NAMES[arity])
        assert function is not None, f"the handler lacks {_ARITY_NAMES[arity]}"
        self._function: Callable[..., Any] = function
        self._run: Run = (_RUNS if _is_async(function) else blocking.RUNS)[arity]

    async def serve(self, call: Call) -> None:
        """Run the handler for `call` and end the call, whatever the handler does."""
        call.entered = True
        try:
            if not call.done():
                await self.run(call)
        except asyncio.CancelledError:
            call.finish(grpc.StatusCode.CANCELLED, "Cancelled by the server")
        except Exception as error:  # noqa: BLE001 - the handler is not ours; its client must have an answer
            fail(call, error)
        finally:
            call.settle()

    async def run(self, call: Call) -> None:
        """Run the handler for `call`; its exceptions come through."""
        await self._run(call, self._function)


class Intercepted(Method):
    """A method that is only known once interceptors have seen the call."""

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[Call], Awaitable[RpcMethodHandler | None]]) -> None:
        self.deserialize = None
        self.serialize = None
        self.starts_at_once = True
        self._find = find

    async def run(self, call: Call) -> None:
        handler = await self._find(call)
        if handler is None:
            call.finish(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        method = call.method = Method(handler)
        if not method.starts_at_once and not await call.wait_for_request():
            return
        await method.run(call)


def fail(call: Call, error: Exception) -> None:
    """Answer a handler's exception as grpc.aio does."""
    if error is call.aborted:
        return
    if isinstance(error, Unreadable):  # the client's fault, and not worth a line of the log each time
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        _log.debug("%r sent a message that cannot be read: %s", call, error)
    else:
        _log.error("Unexpected %s raised by %r", type(error).__name__, call, exc_info=error)
    if isinstance(error, InvalidMetadata):
        call.finish(grpc.StatusCode.INTERNAL, "Invalid metadata")
        return
    code = call.code()
    failed = code is None or code is grpc.StatusCode.OK
    call.finish(grpc.StatusCode.UNKNOWN if failed else code, f"Unexpected {type(error)}: {error}")


def _is_async(function: Callable[..., Any]) -> bool:
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004 - its code is looked at
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            return True
    return False


async def _unary_unary(call: Call, function: Callable[..., Any]) -> None:
    call.respond(await function(call.take_request(), call))


async def _stream_unary(call: Call, function: Callable[..., Any]) -> None:
    call.respond(await function(RequestIterator(call), call))


async def _unary_stream(call: Call, function: Callable[..., Any]) -> None:
    await _stream(call, function(call.take_request(), call))


async def _stream_stream(call: Call, function: Callable[..., Any]) -> None:
    await _stream(call, function(RequestIterator(call), call))


async def _stream(call: Call, replies: AsyncIterator[Any] | Awaitable[None]) -> None:
    """Send what a streaming handler yields, or wait for one that calls `context.write`."""
    if inspect.isasyncgen(replies):
        try:
            async for reply in replies:
                if call.push(reply):
                    await call.pause()
        finally:
            await replies.aclose()
    elif isinstance(replies, AsyncIterator):
        async for reply in replies:
            await call.write(reply)
    else:
        await replies
    call.finish()


_ARITY_NAMES: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}

_RUNS: Final[dict[tuple[bool, bool], Run]] = {
    (False, False): _unary_unary,
    (False, True): _unary_stream,
    (True, False): _stream_unary,
    (True, True): _stream_stream,
}
