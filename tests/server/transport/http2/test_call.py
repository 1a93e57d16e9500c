"""Calls on the protocol core, without a socket: what clients are answered, what is held for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import grpc.aio
import pytest

from server.transport.http2 import Limits, Options, frames
from server.transport.http2.call import Call
from server.transport.http2.deadlines import Deadlines
from server.transport.http2.dispatch import Dispatcher
from server.transport.http2.requests import RequestHead
from server.transport.http2.streams import Receiver, Stream
from server.transport.http2.tls import INSECURE
from server.transport.inflight import Inflight
from tests.support.http2_peer import Peer, message

UU = grpc.unary_unary_rpc_method_handler
SU = grpc.stream_unary_rpc_method_handler
SS = grpc.stream_stream_rpc_method_handler


class Host(Peer):
    """A client and the session that hosts its calls."""

    def __init__(self, options: Options | None = None, **handlers: Any) -> None:
        self.options = options or Options()
        self.peer = "ipv4:127.0.0.1:1"
        self.loop = asyncio.get_running_loop()
        self.deadlines: Deadlines[Call] = Deadlines()
        self.dispatcher = Dispatcher()
        self.dispatcher.register("test", handlers)
        self.calls: list[Call] = []
        self.settled: list[Call] = []
        super().__init__(self.options.limits)
        self.connection.sender.inflight = self.options.inflight

    def accept(self, stream: Stream, head: RequestHead, ended: bool) -> Receiver:  # type: ignore[override] # real calls
        return self.dispatcher.accept(self, stream, head, ended)  # type: ignore[arg-type] # enough of a host

    def auth_context(self) -> Any:
        return INSECURE

    def running_calls(self) -> int:
        return len(self.calls) - len(self.settled)

    def call_expires(self, call: Call, when: float) -> None:
        self.deadlines.add(when, call)

    def call_started(self, call: Call) -> None:
        self.calls.append(call)

    def call_settled(self, call: Call) -> None:
        self.settled.append(call)

    def statuses(self) -> list[dict[str, str]]:
        """The header blocks sent since the last time."""
        return [dict(self.decoder.decode(f.payload)) for f in self.read() if f.kind == frames.HEADERS]


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def swallow(requests: AsyncIterator[bytes], context: Any) -> bytes:
    async for _ in requests:
        pass
    return b""


async def deaf(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def run(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario

    asyncio.run(bounded())


@pytest.mark.parametrize(
    ("extra", "code", "text"),
    [
        (("grpc-timeout", "soon"), 13, "malformed grpc-timeout: soon"),
        (("x-bin", "!!!"), 13, "metadata x-bin is not base64"),
        (("grpc-encoding", "snappy"), 12, "grpc-encoding snappy is not supported"),
        (("x-long", "x" * 20_000), 8, "received metadata exceeds the limit"),
    ],
)
def test_heads_that_no_servicer_sees(extra: tuple[str, str], code: int, text: str) -> None:
    async def scenario() -> None:
        host = Host(echo=UU(echo))
        host.request(1, extra)
        (status,) = host.statuses()
        assert (status["grpc-status"], status["grpc-message"]) == (str(code), text)
        assert host.calls == []
        if extra[0] == "grpc-encoding":
            assert status["grpc-accept-encoding"] == "identity, deflate, gzip"

    run(scenario())


@pytest.mark.parametrize(
    ("body", "code"), [(b"", 12), (message(b"a") * 2, 12), (message(b"abc")[:-1], 13), (b"\x00\x00", 13)]
)
def test_a_unary_request_is_exactly_one_message(body: bytes, code: int) -> None:
    async def scenario() -> None:
        host = Host(echo=UU(echo))
        host.request(1)
        host.data(1, body, end_stream=True)
        await turns()
        assert [status["grpc-status"] for status in host.statuses()] == [str(code)]
        assert host.connection.buffered_bytes == 0

    run(scenario())


def test_a_message_longer_than_the_window_is_granted_at_once() -> None:
    async def scenario() -> None:
        host = Host(Options(limits=Limits(stream_window_bytes=65_535)), echo=UU(echo))
        host.request(1)
        host.data(1, message(bytes(300_000))[:1000])
        (update,) = host.read()
        assert (update.kind, update.stream_id) == (frames.WINDOW_UPDATE, 1)
        granted = 65_535 - 1000 + int.from_bytes(update.payload, "big")
        assert granted == 300_005 - 1000
        for _ in range(30):
            host.data(1, bytes(10_000)[: min(10_000, granted)])
            granted -= min(10_000, granted)
        host.data(1, b"", end_stream=True)
        await turns()
        assert host.settled == host.calls != []

    run(scenario())


def test_the_window_opens_as_the_handler_reads() -> None:
    async def scenario() -> None:
        host = Host(Options(limits=Limits(stream_window_bytes=65_535)), echo=SU(swallow))
        host.request(1)
        sent = 0
        for _ in range(100):
            host.data(1, message(bytes(2_000)))
            sent += 2_005
            await turns()
        granted = sum(int.from_bytes(f.payload, "big") for f in host.read() if f.kind == frames.WINDOW_UPDATE)
        assert 65_535 // 2 <= 65_535 + granted - sent <= 65_535
        assert host.connection.buffered_bytes == 0
        host.connection.lost()
        await turns()

    run(scenario())


def test_a_handler_that_does_not_read_stops_its_client() -> None:
    async def scenario() -> None:
        host = Host(Options(limits=Limits(stream_window_bytes=65_535)), echo=SS(deaf))
        host.request(1)
        for _ in range(32):
            host.data(1, message(bytes(2_000)))
            await turns()
        assert [f.kind for f in host.read()] == []
        assert host.connection.buffered_bytes == 32 * 2_000
        host.connection.lost()
        await turns()
        assert host.connection.buffered_bytes == 0
        assert host.settled == host.calls

    run(scenario())


def test_requests_beyond_the_servers_bytes_are_refused_as_soon_as_their_length_is_known() -> None:
    async def scenario() -> None:
        inflight = Inflight(1_000)
        hosts = [Host(Options(inflight=inflight), echo=UU(echo)) for _ in range(2)]
        hosts[0].request(1)
        hosts[0].data(1, message(bytes(900))[:6])  # says so many, sends one byte
        assert inflight.used_bytes == 900
        hosts[1].request(1)
        hosts[1].data(1, message(bytes(200)), end_stream=True)
        (status,) = hosts[1].statuses()
        assert (status["grpc-status"], status["retryable"], status["retry-after-ms"]) == ("8", "true", "100")
        assert (inflight.used_bytes, inflight.refused) == (900, 1)
        hosts[0].data(1, bytes(899), end_stream=True)
        await turns()
        assert [status.get("grpc-status") for status in hosts[0].statuses()] == [None, "0"]
        assert inflight.used_bytes == 0
        hosts[1].request(3)
        hosts[1].data(3, message(bytes(5_000)), end_stream=True)  # one is always taken
        await turns()
        assert [status.get("grpc-status") for status in hosts[1].statuses()] == [None, "0"]
        assert inflight.used_bytes == 0
        for host in hosts:
            host.connection.lost()

    run(scenario())


def test_a_request_counts_until_its_handler_has_ended_though_its_client_left() -> None:
    async def scenario() -> None:
        inflight, done = Inflight(1_000), asyncio.Event()

        async def stubborn(request: bytes, context: Any) -> bytes:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await done.wait()
            return b""

        host = Host(Options(inflight=inflight), echo=UU(stubborn))
        host.request(1)
        host.data(1, message(bytes(700)), end_stream=True)
        await turns()
        host.connection.lost()
        await turns()
        assert inflight.used_bytes == 700
        done.set()
        await turns()
        assert inflight.used_bytes == 0

    run(scenario())


def test_an_answer_counts_until_its_client_makes_room_for_it() -> None:
    async def scenario() -> None:
        async def large(request: bytes, context: Any) -> bytes:
            return bytes(100_000)

        inflight = Inflight(1_000)
        host = Host(Options(inflight=inflight), echo=UU(large))
        host.request(1)
        host.data(1, message(b"x"), end_stream=True)
        await turns()
        assert inflight.used_bytes == 100_005 - 65_535 == host.connection.sender.queued_bytes
        host.request(3)
        host.data(3, message(b"x"), end_stream=True)
        assert [status.get("grpc-status") for status in host.statuses()] == [None, "8"]
        for stream_id in (0, 1):
            host.write(frames.window_update(stream_id, 100_000))
        assert host.connection.sender.queued_bytes == 0
        assert inflight.used_bytes == 0
        host.request(5)
        host.data(5, message(b"x"), end_stream=True)
        await turns()
        assert inflight.used_bytes > 0
        host.connection.lost()
        assert inflight.used_bytes == 0

    run(scenario())


def test_what_a_stream_has_not_read_counts() -> None:
    async def scenario() -> None:
        inflight = Inflight(100_000)
        host = Host(Options(inflight=inflight), echo=SS(deaf))
        host.request(1)
        host.data(1, message(bytes(2_000)) * 3)
        assert inflight.used_bytes == 6_000
        host.data(1, message(bytes(200_000))[:6])
        (status,) = host.statuses()
        assert status["grpc-status"] == "8"
        assert inflight.used_bytes == 0
        host.connection.lost()
        await turns()
        reader = Host(Options(inflight=inflight), echo=SU(swallow))
        reader.request(1)
        reader.data(1, message(bytes(2_000)) * 3)
        await turns()
        assert inflight.used_bytes == 0
        reader.connection.lost()
        await turns()

    run(scenario())


def test_request_bytes_held_for_one_connection_are_bounded() -> None:
    async def scenario() -> None:
        limits = Limits(max_buffered_bytes=10_000_000, connection_window_bytes=2**30)
        host = Host(Options(limits=limits), echo=UU(echo))
        for stream_id in (1, 3, 5):
            host.request(stream_id)
            host.data(stream_id, message(bytes(4_000_000))[:6])  # says four megabytes, sends one byte
        (status,) = host.statuses()
        assert status["grpc-status"] == "8"
        assert host.connection.buffered_bytes == 8_000_000
        host.data(5, b"more")
        assert set(host.connection.streams) == {1, 3}
        host.connection.lost()
        assert host.connection.buffered_bytes == 0

    run(scenario())


def test_a_call_that_is_cancelled_before_its_handler_began_is_settled() -> None:
    async def scenario() -> None:
        host = Host(echo=UU(echo))
        host.request(1)
        host.data(1, message(b"hello"), end_stream=True)
        host.write(frames.rst_stream(1, 8))
        assert host.connection.lingering == 1
        await turns()
        assert host.settled == host.calls
        assert host.connection.lingering == 0

    run(scenario())


def test_a_cancelled_call_lingers_until_its_handler_ends() -> None:
    async def scenario() -> None:
        may_end = asyncio.Event()

        async def slow_to_leave(request: bytes, context: Any) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                await may_end.wait()
            return b""

        host = Host(Options(limits=Limits(max_concurrent_streams=1)), echo=UU(slow_to_leave))
        host.request(1)
        host.data(1, message(b""), end_stream=True)
        await turns()
        host.write(frames.rst_stream(1, 8))
        await turns()
        host.request(3)
        assert [f.kind for f in host.read()] == [frames.RST_STREAM]
        may_end.set()
        await turns()
        host.request(5)
        assert list(host.connection.streams) == [5]

    run(scenario())


def test_the_context_ends_a_call_once() -> None:
    async def scenario() -> None:
        contexts: list[Call] = []

        async def keeps(request: bytes, context: Call) -> bytes:
            contexts.append(context)
            return request

        host = Host(echo=UU(keeps))
        host.request(1)
        host.data(1, message(b"hello"), end_stream=True)
        await turns()
        (context,) = contexts
        assert context.done()
        assert not context.cancelled()
        assert not context.cancel()
        with pytest.raises(asyncio.CancelledError):
            await context.write(b"more")
        late: list[Any] = []
        context.add_done_callback(late.append)
        await turns()
        assert late == [context]
        assert repr(context) == "<Call /test/echo [over]>"

    run(scenario())


def test_a_broken_done_callback_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        order: list[str] = []

        async def registers(request: bytes, context: Call) -> bytes:
            context.add_done_callback(lambda _: 1 / 0)  # type: ignore[arg-type, return-value] # meant to fail
            context.add_done_callback(lambda _: order.append("second"))
            return request

        host = Host(echo=UU(registers))
        host.request(1)
        host.data(1, message(b"hello"), end_stream=True)
        await turns()
        assert order == ["second"]
        assert host.settled == host.calls
        assert "a done callback" in caplog.text

    run(scenario())


def test_cancel_from_the_handlers_side() -> None:
    async def scenario() -> None:
        async def gives_up(request: bytes, context: Call) -> bytes:
            assert context.cancel()
            await asyncio.Event().wait()
            return b""

        host = Host(echo=UU(gives_up))
        host.request(1)
        host.data(1, message(b""), end_stream=True)
        await turns()
        assert host.statuses()[0]["grpc-status"] == "1"
        assert host.settled == host.calls

    run(scenario())


def test_deadlines_are_forgotten_with_their_calls() -> None:
    async def scenario() -> None:
        host = Host(echo=UU(echo))
        for stream_id in range(1, 1000, 2):
            host.request(stream_id, ("grpc-timeout", "1H"))
            host.data(stream_id, message(b""), end_stream=True)
            await turns(2)
        assert len(host.deadlines) < 200

    run(scenario())
