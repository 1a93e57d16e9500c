"""The same calls, good and bad, to our transport and to grpcio's: clients must not see a difference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from server.transport.http2 import Options
from tests.support.transports import TRANSPORTS, serving

pytestmark = pytest.mark.integration

Outcome = tuple[Any, ...]
Scenario = Callable[[grpc.aio.Channel], Awaitable[Outcome]]


def _refuse(_: Any) -> bytes:
    raise ValueError("not for this serializer")


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def metadata(request: bytes, context: Any) -> bytes:
    await context.send_initial_metadata((("first", "1"), ("first-bin", b"\x00\xff"), ("first", "2")))
    context.set_trailing_metadata((("last", "1"), ("last-bin", b"\xfe\x00"), ("last", "2")))
    return repr(sorted((k, v) for k, v in context.invocation_metadata() if k.startswith("x-"))).encode()


async def raises(request: bytes, context: Any) -> bytes:
    context.set_trailing_metadata((("kept", "yes"),))
    raise KeyError("unforeseen é % \n")


async def raises_after_code(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("lost")
    raise KeyError("unforeseen")


async def aborts(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not é now 100% \t\n", (("why", "because"),))
    return b"never"


async def aborts_late(request: bytes, context: Any) -> bytes:
    await context.send_initial_metadata((("first", "1"),))
    context.set_trailing_metadata((("set", "before"),))
    context.set_details("said before")
    await context.abort(grpc.StatusCode.DATA_LOSS)
    return b"never"


async def sets_code(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.ALREADY_EXISTS)
    context.set_details("twice")
    return b"dropped"


async def ok_with_details(request: bytes, context: Any) -> bytes:
    context.set_details("all is well")
    return b"kept"


async def returns_none(request: bytes, context: Any) -> Any:
    return None


async def bad_metadata(request: bytes, context: Any) -> bytes:
    await context.send_initial_metadata((("Upper Case", "1"),))
    return b"sent"


async def head_twice(request: bytes, context: Any) -> bytes:
    await context.send_initial_metadata((("first", "1"),))
    await context.send_initial_metadata((("first", "1"),))
    return b"sent"


async def compressed(request: bytes, context: Any) -> bytes:
    context.set_compression(grpc.Compression.Gzip)
    return request


async def big(request: bytes, context: Any) -> bytes:
    return bytes(int(request))


async def sleeps(request: bytes, context: Any) -> bytes:
    await asyncio.sleep(60)
    return b"never"


def blocking(request: bytes, context: Any) -> bytes:
    context.send_initial_metadata((("first", "1"),))
    context.set_trailing_metadata((("last", "1"),))
    return request + b" on a thread"


def blocking_abort(request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.OUT_OF_RANGE, "from a thread")
    return b"never"


def blocking_stream(request: bytes, context: Any) -> Iterator[bytes]:
    for number in range(3):
        yield request + str(number).encode()


async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield str(number).encode()


async def count_by_write(request: bytes, context: Any) -> None:
    for number in range(int(request)):
        await context.write(str(number).encode())


async def stops_midway(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"one"
    await context.abort(grpc.StatusCode.ABORTED, "midway", (("where", "midway"),))


async def breaks_midway(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"one"
    raise RuntimeError("midway")


async def stops_at_once(request: bytes, context: Any) -> AsyncIterator[bytes]:
    context.set_code(grpc.StatusCode.UNAVAILABLE)
    context.set_details("nothing to say")
    return
    yield b""


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b",".join([request async for request in requests])


async def join_by_read(requests: AsyncIterator[bytes], context: Any) -> bytes:
    parts = []
    while (request := await context.read()) is not grpc.aio.EOF:
        parts.append(request)
    return b",".join(parts)


async def answers_early(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return await anext(requests)


async def parrot(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


UU, US = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
SU, SS = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
HANDLERS = {
    **{f.__name__: UU(f) for f in (echo, metadata, raises, raises_after_code, aborts, aborts_late)},
    **{f.__name__: UU(f) for f in (sets_code, ok_with_details, returns_none, bad_metadata, head_twice, compressed)},
    **{f.__name__: UU(f) for f in (big, sleeps, blocking, blocking_abort)},
    **{f.__name__: US(f) for f in (count, count_by_write, stops_midway, breaks_midway, stops_at_once)},
    "blocking_stream": US(blocking_stream),
    **{f.__name__: SU(f) for f in (join, join_by_read, answers_early)},
    "parrot": SS(parrot),
    "bad_request": UU(echo, request_deserializer=_refuse),
    "bad_response": UU(echo, response_serializer=_refuse),
}


async def _outcome(call: Any, replies: list[bytes]) -> Outcome:
    return (
        await call.code(), await call.details(), tuple(await call.initial_metadata() or ()),
        tuple(await call.trailing_metadata() or ()), replies,
    )  # fmt: skip


def unary(method: str, request: bytes = b"hello", **arguments: Any) -> Scenario:
    async def scenario(channel: grpc.aio.Channel) -> Outcome:
        call = channel.unary_unary(f"/test/{method}")(request, **arguments)
        try:
            replies = [await call]
        except grpc.aio.AioRpcError:
            replies = []
        return await _outcome(call, replies)

    return scenario


def server_stream(method: str, request: bytes, **arguments: Any) -> Scenario:
    async def scenario(channel: grpc.aio.Channel) -> Outcome:
        call = channel.unary_stream(f"/test/{method}")(request, **arguments)
        replies = []
        try:
            async for reply in call:
                replies.append(reply)  # noqa: PERF401 - what came before a failure counts
        except grpc.aio.AioRpcError:
            pass
        return await _outcome(call, replies)

    return scenario


def client_stream(method: str, *requests: bytes) -> Scenario:
    async def scenario(channel: grpc.aio.Channel) -> Outcome:
        call = channel.stream_unary(f"/test/{method}")(iter(requests))
        try:
            replies = [await call]
        except grpc.aio.AioRpcError:
            replies = []
        return await _outcome(call, replies)

    return scenario


async def ping_pong(channel: grpc.aio.Channel) -> Outcome:
    call = channel.stream_stream("/test/parrot")()
    replies = []
    for size in (1, 0, 70_000, 5, 300_000):
        await call.write(b"x" * size)
        replies.append(await call.read())
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return await _outcome(call, replies)


SMALL = Options(max_receive_message_bytes=1000, max_send_message_bytes=1000)
GZIP = Options(compression=grpc.Compression.Gzip)

SCENARIOS: dict[str, tuple[Scenario, Options | None]] = {
    "echo": (unary("echo"), None),
    "empty message": (unary("echo", b""), None),
    "message of 3 MB": (unary("echo", bytes(3_000_000)), None),
    "reply of 10 MB": (unary("big", b"10000000"), None),
    "metadata": (unary("metadata", metadata=(("x-a", "1"), ("x-b-bin", b"\x00\xff\x80"), ("x-a", "2"))), None),
    "exception": (unary("raises"), None),
    "exception after a code": (unary("raises_after_code"), None),
    "abort": (unary("aborts"), None),
    "abort after the head": (unary("aborts_late"), None),
    "code set": (unary("sets_code"), None),
    "details of OK": (unary("ok_with_details"), None),
    "bad metadata": (unary("bad_metadata"), None),
    "two heads": (unary("head_twice"), None),
    "no such method": (unary("no-such-method"), None),
    "request that does not parse": (unary("bad_request"), None),
    "response that does not serialize": (unary("bad_response"), None),
    "blocking": (unary("blocking"), None),
    "blocking abort": (unary("blocking_abort"), None),
    "blocking stream": (server_stream("blocking_stream", b"n"), None),
    "deadline": (unary("sleeps", timeout=0.05), None),
    "gzip request": (unary("echo", b"z" * 5000, compression=grpc.Compression.Gzip), None),
    "deflate request": (unary("echo", b"z" * 5000, compression=grpc.Compression.Deflate), None),
    "gzip reply": (unary("compressed", b"z" * 5000), None),
    "gzip server": (unary("echo", b"z" * 5000), GZIP),
    "request too large": (unary("echo", bytes(1001)), SMALL),
    "request just small enough": (unary("echo", bytes(1000)), SMALL),
    "reply too large": (unary("big", b"1001"), SMALL),
    "inflates too large": (unary("echo", bytes(100_000), compression=grpc.Compression.Gzip), SMALL),
    "stream": (server_stream("count", b"100"), None),
    "empty stream": (server_stream("count", b"0"), None),
    "stream by write": (server_stream("count_by_write", b"10"), None),
    "stream stops midway": (server_stream("stops_midway", b""), None),
    "stream breaks midway": (server_stream("breaks_midway", b""), None),
    "stream stops at once": (server_stream("stops_at_once", b""), None),
    "client stream": (client_stream("join", b"a", b"", b"c" * 100_000), None),
    "empty client stream": (client_stream("join"), None),
    "client stream by read": (client_stream("join_by_read", b"a", b"b"), None),
    "client stream answered early": (client_stream("answers_early", b"a", b"b", b"c"), None),
    "ping pong": (ping_pong, None),
}


async def observe(transport: str, scenario: Scenario, options: Options | None) -> Outcome:
    async with serving(TRANSPORTS[transport](options), HANDLERS) as channel:
        return await scenario(channel)


@pytest.mark.parametrize("name", SCENARIOS)
def test_same_outcome(name: str) -> None:
    scenario, options = SCENARIOS[name]
    ours = asyncio.run(observe("http2", scenario, options))
    theirs = asyncio.run(observe("grpcio", scenario, options))
    assert ours == theirs
