"""The server on real sockets of this machine, with clients inside the test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from server.pb import grpc_service_pb2 as pb
from server.pb import grpc_service_pb2_grpc as pb_grpc
from server.transport.http2 import Limits, Options, PingLimits, Server, Turns, frames, hpack
from server.transport.http2.call import Call
from server.transport.http2.streams import Stream
from tests.support.certificates import Authority
from tests.support.http2_peer import GRPC, message, parse
from tests.support.transports import serving

UU = grpc.unary_unary_rpc_method_handler
US = grpc.unary_stream_rpc_method_handler
SS = grpc.stream_stream_rpc_method_handler


def run(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def echo_all(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


class Gate:
    """A handler that waits until it is let through, and notes how it ended."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.context: Any = None

    async def __call__(self, request: bytes, context: Any) -> bytes:
        self.context = context
        self.entered.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request


class Raw:
    """A client that writes frames by hand."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def greet(self, *settings: tuple[int, int]) -> None:
        self.writer.write(frames.PREFACE + frames.settings(settings))

    def request(self, stream_id: int, path: str = "/test/echo", *extra: hpack.Field, body: bytes | None = b"") -> None:
        fields = [(n.encode(), (path if n == ":path" else v).encode()) for n, v in GRPC]
        fields += extra
        self.writer.write(
            frames.headers(stream_id, hpack.encode(fields), end_stream=body is None, max_frame_size=16_384)
        )
        if body is not None:
            data = message(body)
            self.writer.write(frames.head(len(data), frames.DATA, frames.END_STREAM, stream_id) + data)

    async def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: its kind, flags, stream and payload."""
        head = await self.reader.readexactly(9)
        (frame,) = parse(b"\0\0\0" + head[3:])
        return frame.kind, frame.flags, frame.stream_id, await self.reader.readexactly(int.from_bytes(head[:3], "big"))

    async def until(self, kind: int) -> tuple[int, int, int, bytes]:
        while (frame := await self.frame())[0] != kind:
            pass
        return frame

    async def closed(self) -> None:
        """Wait until the server closed the connection."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionResetError:
            pass


async def start(options: Options | None = None, **handlers: Any) -> tuple[Server, int]:
    server = Server(options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers or {"echo": UU(echo)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


class Model(pb_grpc.GRPCInferenceServiceServicer):
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        reply = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=request.raw_input_contents)
        reply.outputs.add(name="OUT", datatype="FP32", shape=list(request.inputs[0].shape))
        return reply

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield pb.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))


def test_triton_clients_work() -> None:
    def infer(port: int) -> None:
        given = np.arange(8, dtype=np.float32).reshape(2, 4)
        tensor = tritonclient.grpc.InferInput("IN", [2, 4], "FP32")
        tensor.set_data_from_numpy(given)
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
        for compression in (None, "gzip", "deflate"):
            result = client.infer("m", [tensor], compression_algorithm=compression)
            assert (result.as_numpy("OUT") == given).all()
        replies: list[Any] = []
        client.start_stream(lambda result, error: replies.append(error or result.as_numpy("OUT")))
        for _ in range(3):
            client.async_stream_infer("m", [tensor])
        client.stop_stream()
        assert [np.array_equal(reply, given) for reply in replies] == [True] * 3
        client.close()

    async def scenario() -> None:
        server = Server()
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(Model(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await asyncio.to_thread(infer, port)
        await server.stop(None)

    run(scenario())


def test_health_and_reflection_servicers_run_unchanged() -> None:
    async def scenario() -> None:
        server = Server()
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        reflection.enable_server_reflection(["test.Service", reflection.SERVICE_NAME], server)
        async with serving(server) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await servicer.enter_graceful_shutdown()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
            listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
            answer = await listing.read()
            assert {s.name for s in answer.list_services_response.service} == {"test.Service", reflection.SERVICE_NAME}

    run(scenario())


def test_a_blocking_client_works() -> None:
    def calls(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert channel.unary_unary("/test/echo")(b"hello", timeout=5) == b"hello"
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/test/nothing")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    async def scenario() -> None:
        server, port = await start()
        await asyncio.to_thread(calls, port)
        await server.stop(None)

    run(scenario())


def test_a_cancelled_call_cancels_its_handler() -> None:
    async def scenario() -> None:
        gate = Gate()
        done: list[Any] = []
        async with serving(Server(), {"wait": UU(gate.__call__)}) as channel:
            call = channel.unary_unary("/test/wait")(b"")
            await gate.entered.wait()
            gate.context.add_done_callback(done.append)
            assert not gate.context.done()
            call.cancel()
            await gate.cancelled.wait()
        assert done == [gate.context]
        assert gate.context.cancelled()
        assert gate.context.done()

    run(scenario())


def test_a_lost_connection_cancels_its_calls() -> None:
    async def scenario() -> None:
        gate = Gate()
        server, port = await start(wait=UU(gate.__call__))
        async with Raw(port) as client:
            client.greet()
            client.request(1, "/test/wait")
            await gate.entered.wait()
        await gate.cancelled.wait()
        await server.stop(None)

    run(scenario())


def test_the_deadline_ends_the_call_and_its_handler() -> None:
    async def scenario() -> None:
        gate = Gate()
        server, port = await start(wait=UU(gate.__call__))
        async with Raw(port) as client:  # one that does not look at the deadline itself
            client.greet()
            client.request(1, "/test/wait", (b"grpc-timeout", b"50m"))
            await gate.entered.wait()
            assert gate.context.time_remaining() <= 0.05
            *_, trailers = await client.until(frames.HEADERS)
            fields = dict(hpack.Decoder(max_list_bytes=9999).decode(trailers))
            assert (fields[b"grpc-status"], fields[b"grpc-message"]) == (b"4", b"Deadline Exceeded")
            await gate.cancelled.wait()
            assert gate.context.time_remaining() == 0
            assert server.statistics().calls_expired == 1
        await server.stop(None)

    run(scenario())


def test_the_handler_runs_as_a_task_of_its_own() -> None:
    async def uses_the_task(request: bytes, context: Any) -> bytes:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            return await group.create_task(echo(request, context))

    async def scenario() -> None:
        async with serving(Server(), {"task": UU(uses_the_task)}) as channel:
            assert await channel.unary_unary("/test/task")(b"hello") == b"hello"

    run(scenario())


def test_stop_lets_running_calls_end_and_takes_no_new_ones() -> None:
    async def scenario() -> None:
        gate = Gate()
        server = Server()
        async with serving(server, {"wait": UU(gate.__call__)}) as channel:
            call = channel.unary_unary("/test/wait")(b"finished")
            await gate.entered.wait()
            stopping = asyncio.create_task(server.stop(10))
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test/wait")(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not stopping.done()
            gate.opened.set()
            assert await call == b"finished"
            await stopping
            assert not await server.wait_for_termination(0)
            assert repr(server) == "<Server [stopped | 0 connections | 0 calls]>"

    run(scenario())


@pytest.mark.parametrize("grace", [None, 0.05])
def test_stop_cancels_what_does_not_end(grace: float | None) -> None:
    async def scenario() -> None:
        gate = Gate()
        server = Server()
        async with serving(server, {"wait": UU(gate.__call__)}) as channel:
            call = channel.unary_unary("/test/wait")(b"")
            await gate.entered.wait()
            await server.stop(grace)
            assert gate.cancelled.is_set()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(scenario())


def test_a_second_stop_has_less_patience() -> None:
    async def scenario() -> None:
        gate = Gate()
        server = Server()
        async with serving(server, {"wait": UU(gate.__call__)}) as channel:
            call = channel.unary_unary("/test/wait")(b"")
            await gate.entered.wait()
            patient = asyncio.create_task(server.stop(1000))
            await asyncio.sleep(0)
            await server.stop(None)
            await patient
            assert await call.code() is grpc.StatusCode.UNAVAILABLE

    run(scenario())


def test_waiting_for_termination_times_out() -> None:
    async def scenario() -> None:
        server, _ = await start()
        assert await server.wait_for_termination(0.01)
        await server.stop(None)

    run(scenario())


def test_calls_beyond_the_limit_are_refused() -> None:
    async def scenario() -> None:
        gate = Gate()
        server = Server(Options(max_concurrent_calls=1))
        async with serving(server, {"wait": UU(gate.__call__)}) as channel:
            call = channel.unary_unary("/test/wait")(b"first")
            await gate.entered.wait()
            refused = channel.unary_unary("/test/wait")(b"second")
            assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            gate.opened.set()
            assert await call == b"first"

    run(scenario())


def test_interceptors_wrap_every_call() -> None:
    class Stamp(grpc.aio.ServerInterceptor):
        def __init__(self, name: str, seen: list[str]) -> None:
            self.name = name
            self.seen = seen

        async def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
            self.seen.append(f"{self.name} {details.method}")
            return await continuation(details)

    async def scenario() -> None:
        seen: list[str] = []
        server = Server(interceptors=[Stamp("outer", seen), Stamp("inner", seen)])
        async with serving(server, {"echo": UU(echo)}) as channel:
            assert await channel.unary_unary("/test/echo")(b"hello") == b"hello"
            assert await channel.unary_unary("/test/none")(b"").code() is grpc.StatusCode.UNIMPLEMENTED
        assert seen == ["outer /test/echo", "inner /test/echo", "outer /test/none", "inner /test/none"]

    run(scenario())


def test_a_stream_waits_for_a_client_that_does_not_read() -> None:
    made = 0

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield bytes(10_000)

    async def scenario() -> None:
        server, port = await start(flood=US(flood))
        async with Raw(port) as client:
            client.greet((frames.INITIAL_WINDOW_SIZE, 100_000))
            client.request(1, "/test/flood")
            for _ in range(7):
                await client.until(frames.DATA)
            before = -1
            while made != before:  # until it has stopped making more
                before = made
                for _ in range(10):
                    await asyncio.sleep(0)
            assert made <= 20
            assert server.statistics().queued_bytes < 100_000
        await server.stop(None)

    run(scenario())


def test_a_full_socket_stops_a_stream_however_wide_its_windows() -> None:
    made = 0

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal made
        while made < 10_000:
            made += 1
            yield bytes(10_000)

    async def scenario() -> None:
        server, port = await start(flood=US(flood))
        async with Raw(port) as client:
            client.greet((frames.INITIAL_WINDOW_SIZE, frames.MAX_WINDOW))
            client.writer.write(frames.window_update(0, 2**30))
            client.request(1, "/test/flood")
            before = -1
            while made == 0 or made != before:  # until it has stopped making more
                before = made
                for _ in range(200):
                    await asyncio.sleep(0)
            assert made < 5_000  # what the sockets hold, and half a megabyte
            assert server.statistics().queued_bytes < 200_000
        await server.stop(None)

    run(scenario())


def test_a_client_that_takes_nothing_is_dropped() -> None:
    async def big(request: bytes, context: Any) -> bytes:
        return bytes(1_000_000)

    async def scenario() -> None:
        server, port = await start(Options(send_timeout_s=0.1), big=UU(big))
        async with Raw(port) as client:
            client.greet((frames.INITIAL_WINDOW_SIZE, 0))
            client.request(1, "/test/big")
            await client.closed()
        assert server.statistics().queued_bytes == 0
        await server.stop(None)

    run(scenario())


def test_a_client_that_says_nothing_is_dropped() -> None:
    async def scenario() -> None:
        server, port = await start(Options(handshake_timeout_s=0.1))
        async with Raw(port) as client:
            await client.closed()
        await server.stop(None)

    run(scenario())


@pytest.mark.parametrize("whole_frame", [False, True])
def test_a_client_that_never_finishes_its_headers_is_dropped(whole_frame: bool) -> None:
    async def scenario() -> None:
        server, port = await start(Options(frame_timeout_s=0.1))
        async with Raw(port) as client:
            client.greet()
            block = hpack.encode([(n.encode(), v.encode()) for n, v in GRPC])
            begun = frames.head(len(block), frames.HEADERS, 0, 1) + block
            client.writer.write(begun if whole_frame else begun[:-1])
            await client.closed()
        await server.stop(None)

    run(scenario())


def test_a_silent_client_is_pinged_and_a_dead_one_dropped() -> None:
    async def scenario() -> None:
        server, port = await start(Options(keepalive_interval_s=0.05, keepalive_timeout_s=0.05))
        async with Raw(port) as client:
            client.greet()
            _, _, _, payload = await client.until(frames.PING)
            client.writer.write(frames.ping(payload, ack=True))
            await client.until(frames.PING)
            await client.closed()
        await server.stop(None)

    run(scenario())


def test_old_connections_are_drained() -> None:
    async def scenario() -> None:
        gate = Gate()
        server, port = await start(
            Options(max_connection_age_s=0.05, max_connection_age_grace_s=0.05), wait=UU(gate.__call__)
        )
        async with Raw(port) as client:
            client.greet()
            client.request(1, "/test/wait")
            await client.until(frames.GOAWAY)
            await gate.cancelled.wait()
            await client.closed()
        await server.stop(None)

    run(scenario())


def test_idle_connections_are_drained() -> None:
    async def scenario() -> None:
        server, port = await start(Options(max_connection_idle_s=0.05, keepalive_timeout_s=0.05))
        async with Raw(port) as client:
            client.greet()
            await client.until(frames.GOAWAY)
            await client.closed()
        await server.stop(None)

    run(scenario())


def test_connections_beyond_the_limit_are_closed() -> None:
    async def scenario() -> None:
        server, port = await start(Options(max_connections=1))
        async with Raw(port) as first, Raw(port) as second:
            first.greet()
            await first.until(frames.SETTINGS)
            await second.closed()
            assert server.statistics().connections == 1
        await server.stop(None)

    run(scenario())


def test_connections_beyond_an_addresss_limit_are_closed_and_room_is_made_again() -> None:
    async def scenario() -> None:
        server, port = await start(Options(max_connections_per_host=1))
        async with Raw(port) as first:
            first.greet()
            await first.until(frames.SETTINGS)
            async with Raw(port) as second:
                await second.closed()
            assert server.statistics().connections == 1
            first.writer.write_eof()
            await first.closed()
        async with Raw(port) as third:
            third.greet()
            await third.until(frames.SETTINGS)
        await server.stop(None)

    run(scenario())


def test_a_request_that_dribbles_in_is_given_up() -> None:
    async def scenario() -> None:
        gate = Gate()
        server, port = await start(Options(request_timeout_s=0.1), gate=UU(gate), all=SS(echo_all))
        async with Raw(port) as client:
            client.greet()
            client.request(1, "/test/gate", body=b"whole")  # it has arrived, and may take as long as it likes
            await gate.entered.wait()
            for stream_id, path in ((3, b"/test/all"), (5, b"/test/gate")):  # a stream may pause
                fields = [(n.encode(), path if n == ":path" else v.encode()) for n, v in GRPC]
                block = hpack.encode(fields)
                client.writer.write(frames.headers(stream_id, block, end_stream=False, max_frame_size=16_384))
                client.writer.write(frames.head(3, frames.DATA, 0, stream_id) + b"\0\0\0")
            _, _, stream_id, _ = await client.until(frames.HEADERS)
            assert stream_id == 5
            gate.opened.set()
            assert (await client.until(frames.HEADERS))[2] == 1
        await server.stop(None)

    run(scenario())


def test_too_many_pings_end_the_connection_with_the_words_clients_know() -> None:
    async def scenario() -> None:
        limits = Limits(pings=PingLimits(min_interval_s=1000, max_strikes=0))
        server, port = await start(Options(limits=limits))
        async with Raw(port) as client:
            client.greet()
            client.writer.write(frames.ping(bytes(8), ack=False) * 2)
            _, _, _, payload = await client.until(frames.GOAWAY)
            assert payload.endswith(b"too_many_pings")
            await client.closed()
        await server.stop(None)
        assert server.statistics().connection_errors == {"ENHANCE_YOUR_CALM": 1}

    run(scenario())


@pytest.mark.parametrize(
    ("method", "content_type", "status"), [("GET", "application/grpc", "405"), ("POST", "application/json", "415")]
)
def test_strangers_are_answered_in_plain_http(method: str, content_type: str, status: str) -> None:
    async def scenario() -> None:
        server, port = await start()
        async with Raw(port) as client:
            client.greet()
            fields = {**dict(GRPC), ":method": method, "content-type": content_type}
            block = hpack.encode([(n.encode(), v.encode()) for n, v in fields.items()])
            client.writer.write(frames.headers(1, block, end_stream=True, max_frame_size=16_384))
            *_, head = await client.until(frames.HEADERS)
            assert hpack.Decoder(max_list_bytes=9999).decode(head)[0] == (b":status", status.encode())
            *_, body = await client.until(frames.DATA)
            assert b"gRPC" in body
        await server.stop(None)

    run(scenario())


def test_statistics_count_what_happened() -> None:
    async def scenario() -> None:
        gate = Gate()
        server = Server()
        async with serving(server, {"echo": UU(echo), "wait": UU(gate.__call__)}) as channel:
            for _ in range(3):
                await channel.unary_unary("/test/echo")(bytes(1000))
            call = channel.unary_unary("/test/wait")(b"")
            await gate.entered.wait()
            now = server.statistics()
            assert (now.connections, now.streams, now.calls, now.calls_started) == (1, 1, 1, 4)
            assert now.received_bytes > 3000
            call.cancel()
            await gate.cancelled.wait()
            assert server.statistics().resets == {"CANCEL": 1}
        assert server.statistics().connections == 0
        assert server.statistics().received_bytes >= now.received_bytes

    run(scenario())


def test_unix_sockets(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def peer(request: bytes, context: Any) -> bytes:
            seen.append(context.peer())
            return request

        path = tmp_path / "kairos.sock"
        server = Server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"peer": UU(peer)}),))
        assert server.add_insecure_port(f"unix:{path}") == 1
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            assert await channel.unary_unary("/test/peer")(b"hello") == b"hello"
        await server.stop(None)
        assert seen == ["unix:"]
        assert not path.exists()

    run(scenario())


def test_two_servers_share_a_port() -> None:
    async def scenario() -> None:
        options = Options(reuse_port=True)
        first, port = await start(options)
        second = Server(options)
        assert second.add_insecure_port(f"127.0.0.1:{port}") == port
        await second.start()
        await first.stop(None)
        await second.stop(None)

    run(scenario())


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError, match="Failed to bind"):
        Server().add_insecure_port(f"127.0.0.1:{taken.getsockname()[1]}")


class Secure:
    """A server behind TLS whose one method tells who called."""

    def __init__(self, authority: Authority, **tls: bool) -> None:
        self.authority = authority
        self.tls = tls
        self.identities: list[Any] = []

    async def whoami(self, request: bytes, context: Any) -> bytes:
        self.identities.append((context.peer_identity_key(), context.peer_identities()))
        return context.auth_context()["transport_security_type"][0]

    async def start(self) -> tuple[Server, int]:
        server = Server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"whoami": UU(self.whoami)}),))
        port = server.add_secure_port("127.0.0.1:0", self.authority.server_options(**self.tls))
        await server.start()
        return server, port

    async def call(self, port: int, credentials: grpc.ChannelCredentials) -> bytes:
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            reply: bytes = await channel.unary_unary("/test/whoami")(bytes(100_000), timeout=5)
            return reply


def test_tls() -> None:
    async def scenario() -> None:
        secure = Secure(Authority())
        server, port = await secure.start()
        credentials = grpc.ssl_channel_credentials(secure.authority.certificate)
        assert await secure.call(port, credentials) == b"ssl"
        assert secure.identities == [(None, None)]
        await server.stop(None)

    run(scenario())


def test_mutual_tls_names_the_client() -> None:
    async def scenario() -> None:
        authority = Authority()
        secure = Secure(authority, ask_clients=True)
        server, port = await secure.start()
        known = grpc.ssl_channel_credentials(authority.certificate, authority.client_key, authority.client_chain)
        assert await secure.call(port, known) == b"ssl"
        assert secure.identities == [("x509_subject_alternative_name", [b"client.test"])]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await secure.call(port, grpc.ssl_channel_credentials(authority.certificate))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await server.stop(None)

    run(scenario())


def test_tls_clients_must_ask_for_h2() -> None:
    async def scenario() -> None:
        secure = Secure(Authority())
        server, port = await secure.start()
        context = ssl.create_default_context(cadata=secure.authority.certificate.decode())
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context, family=socket.AF_INET)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await server.stop(None)

    run(scenario())


def test_never_is_spelt_infinity() -> None:
    assert Options().max_connection_age_s == math.inf


def test_a_call_that_is_over_lets_go_of_what_its_handler_had_before_its_deadline_comes() -> None:
    held: ContextVar[memoryview] = ContextVar("held")
    gone: list[weakref.ref[memoryview]] = []

    async def hold(request: bytes, context: Any) -> bytes:
        view = memoryview(request)
        held.set(view)
        gone.append(weakref.ref(view))
        return b""

    async def scenario() -> None:
        async with serving(Server(), {"hold": UU(hold)}) as channel:
            for _ in range(3):
                await channel.unary_unary("/test/hold")(bytes(100), timeout=1000)
            await asyncio.sleep(0)
            assert [reference() for reference in gone] == [None] * 3

    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()


async def lined_up(turns: Turns, calls: int) -> None:
    """Wait until so many calls are in line."""
    while len(turns._line) < calls:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0)


def test_calls_leave_nothing_to_the_collector() -> None:
    """Not those that are answered, nor those that are turned away before their handler begins."""

    async def scenario() -> None:
        turns = Turns(b"/test/echo", soon=lambda _: None)
        async with serving(Server(Options(turns=turns)), {"echo": UU(echo)}) as channel:
            call = channel.unary_unary("/test/echo")
            for _ in range(3):
                assert await call(b"answered") == b"answered"
            turns._allowed = 0.0
            waits = asyncio.ensure_future(call(b"turned away"))
            await lined_up(turns, 1)
            turns._line.pop()[2].turn_away()
            with pytest.raises(grpc.aio.AioRpcError):
                await waits
            await asyncio.sleep(0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            gc.set_debug(0)
            assert not [each for each in gc.garbage if isinstance(each, Call | Stream)]

    gc.collect()
    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()
        gc.garbage.clear()


def test_more_than_the_loop_can_answer_is_refused_unread_and_told() -> None:
    told: list[None] = []
    soon: list[Callable[[], None]] = []
    turns = Turns(b"/test/echo", lambda: told.append(None), soon=soon.append)
    turns._allowed = 1

    async def scenario() -> None:
        server = Server(Options(turns=turns))
        async with serving(server, {"echo": UU(echo), "other": UU(echo)}) as channel:
            call = channel.unary_unary("/test/echo")
            assert await call(b"first", timeout=5) == b"first"
            waits = asyncio.ensure_future(call(b"second", timeout=5))
            await lined_up(turns, 1)
            turns._ran, turns._ran_s = 1.0, 100.0
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"third", timeout=6)
            no_hurry = asyncio.ensure_future(call(b"no hurry"))
            await lined_up(turns, 2)
            soon.pop()()
            turns._allowed = 2
            soon.pop()()
            assert (await waits, await no_hurry) == (b"second", b"no hurry")
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = dict(refused.value.trailing_metadata() or ())
            assert (trailers["retryable"], trailers["retry-after-ms"]) == ("true", "20")
            assert await channel.unary_unary("/test/other")(b"always") == b"always"
        assert len(told) == 1

    run(scenario())
