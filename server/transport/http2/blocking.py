"""Runs handlers written for blocking gRPC: each on a thread, with a context that may be used from there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn, TypeVar

import grpc

from server.transport.http2.call import EOF, Call
from server.transport.http2.metadata import MetadataLike

_T = TypeVar("_T")
_END: Final = object()


class BlockingContext:
    """The context of a blocking handler: what sends or ends something is done on the event loop and awaited.

    The rest of the surface only reads or sets a field of the call, and goes to the call directly.
    """

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the call's own attributes
        return getattr(self._call, name)

    def is_active(self) -> bool:
        return not self._call.done()

    def cancel(self) -> bool:
        return self._on_loop(self._call.cancel)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._call.done():
            return False
        self._on_loop(self._call.add_done_callback, lambda _: callback())
        return True

    def send_initial_metadata(self, initial_metadata: MetadataLike) -> None:
        self._on_loop(self._call.send_head, initial_metadata)

    def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: MetadataLike = ()) -> NoReturn:
        self._on_loop(self._call.abort_nowait, code, details, trailing_metadata)
        raise AssertionError("abort returned")

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self.abort(status.code, status.details, status.trailing_metadata or ())

    def _on_loop(self, function: Callable[..., _T], *args: object) -> _T:
        async def invoke() -> _T:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(invoke(), self._loop).result()


class BlockingRequests:
    """The requests of a call whose client streams, for a handler that iterates on its thread."""

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop

    def __iter__(self) -> BlockingRequests:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - whatever the method's deserializer makes
        message = asyncio.run_coroutine_threadsafe(self._call.read(), self._loop).result()
        if message is EOF:
            raise StopIteration
        return message


async def _unary_response(call: Call, function: Callable[..., Any], requests: object) -> None:
    context = BlockingContext(call, asyncio.get_running_loop())
    response = await asyncio.to_thread(function, requests, context)
    if call.aborted is None:
        call.respond(response)


async def _stream_response(call: Call, function: Callable[..., Any], requests: object) -> None:
    context = BlockingContext(call, asyncio.get_running_loop())
    replies: Iterator[Any] = iter(await asyncio.to_thread(function, requests, context))
    while (reply := await asyncio.to_thread(next, replies, _END)) is not _END:
        await call.write(reply)
    call.finish()


async def _unary_unary(call: Call, function: Callable[..., Any]) -> None:
    await _unary_response(call, function, call.take_request())


async def _stream_unary(call: Call, function: Callable[..., Any]) -> None:
    await _unary_response(call, function, BlockingRequests(call, asyncio.get_running_loop()))


async def _unary_stream(call: Call, function: Callable[..., Any]) -> None:
    await _stream_response(call, function, call.take_request())


async def _stream_stream(call: Call, function: Callable[..., Any]) -> None:
    await _stream_response(call, function, BlockingRequests(call, asyncio.get_running_loop()))


RUNS: Final[dict[tuple[bool, bool], Callable[[Call, Callable[..., Any]], Awaitable[None]]]] = {
    (False, False): _unary_unary,
    (False, True): _unary_stream,
    (True, False): _stream_unary,
    (True, True): _stream_stream,
}
"""How to run a handler, by whether requests stream and whether responses do."""
