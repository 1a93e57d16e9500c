"""Both clients against grpcio's own server, in this process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from loadtest.load.aio import GrpcAioClient
from loadtest.load.client import Body, Client, Http2Client

PATIENCE_S = 30.0


class Server:
    """Echoes; fails with the status whose number is asked for; hangs until it is let go."""

    def __init__(self, **options: int) -> None:
        self.let_go = threading.Event()
        self.received: list[int] = []
        self.timeouts: list[float | None] = []
        self.metadata: list[dict[str, Any]] = []
        handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(self, name)) for name in ("echo", "fail", "hang")}
        self.server = grpc.server(ThreadPoolExecutor(8), options=list(options.items()))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.received.append(len(request))
        self.timeouts.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        return request

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        code = next(code for code in grpc.StatusCode if code.value[0] == int(request))
        context.abort(code, "as asked for")
        raise AssertionError

    def hang(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.let_go.wait(PATIENCE_S)
        return b"late"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.let_go.set()
    made.server.stop(None).wait()


BODIES = [
    Body("/test/echo", b"hello", (("tenant", "a"),)),
    Body("/test/echo", b"x" * 1_000_000),
    Body("/test/fail", b"8"),
    Body("/test/hang", b""),
    Body("/test/echo", b""),
]
CLIENTS = {"http2": Http2Client, "grpc.aio": GrpcAioClient}


@pytest.fixture(params=sorted(CLIENTS))
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    made: Any = CLIENTS[request.param](server.address, BODIES, 2)
    yield made
    made.close()


def ends(client: Client, calls: int) -> dict[int, int]:
    """The statuses of so many calls."""
    found: dict[int, int] = {}
    until = time.monotonic() + PATIENCE_S
    while len(found) < calls and time.monotonic() < until:
        found |= {call: code for call, code, _ in client.wait(until)}
    return found


def test_calls_are_answered(client: Client, server: Server) -> None:
    for call in range(100):
        client.start(call, 0, math.inf)
    assert ends(client, 100) == dict.fromkeys(range(100), 0)
    assert server.received == [5] * 100
    assert server.metadata[99]["tenant"] == "a"
    assert server.timeouts[99] is None or server.timeouts[99] > 1e6


def test_large_messages_wait_for_the_servers_flow_control(client: Client, server: Server) -> None:
    for call in range(8):
        client.start(call, 1, math.inf)
    client.start(8, 0, math.inf)
    assert ends(client, 9) == dict.fromkeys(range(9), 0)
    assert sorted(server.received) == [5] + [1_000_000] * 8


def test_an_empty_message_is_an_answer(client: Client) -> None:
    client.start(0, 4, math.inf)
    assert ends(client, 1) == {0: 0}


def test_statuses_come_through(client: Client) -> None:
    client.start(0, 2, math.inf)
    assert ends(client, 1) == {0: grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}


def test_the_server_learns_the_deadline(client: Client, server: Server) -> None:
    client.start(0, 0, client.now() + 20.0)
    assert ends(client, 1) == {0: 0}
    (left,) = server.timeouts
    assert left is not None
    assert 1.0 < left < 21.0  # grpcio rounds it up


def test_a_deadline_ends_a_call_on_this_side_too(client: Client) -> None:
    client.start(0, 3, client.now() + 0.05)
    client.start(1, 3, client.now() - 1.0)
    assert ends(client, 2) == dict.fromkeys(range(2), grpc.StatusCode.DEADLINE_EXCEEDED.value[0])


def test_a_call_can_be_given_up(client: Client) -> None:
    client.start(0, 3, math.inf)
    client.wait(client.now() + 0.01)
    client.cancel(0)
    client.cancel(77)
    assert ends(client, 1) == {0: grpc.StatusCode.CANCELLED.value[0]}


def test_waiting_ends_in_time(client: Client) -> None:
    client.start(0, 3, math.inf)
    assert not client.wait(client.now() + 0.02)


def test_a_lost_connection_ends_its_calls_and_is_opened_again() -> None:
    first = Server()
    client = Http2Client(first.address, BODIES, 1)
    client.start(0, 3, math.inf)
    client.wait(client.now() + 0.05)
    first.let_go.set()
    first.server.stop(None).wait()
    assert ends(client, 1)[0] in {0, grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.CANCELLED.value[0]}
    client.start(1, 0, math.inf)
    assert ends(client, 1) == {1: grpc.StatusCode.UNAVAILABLE.value[0]}
    client.close()


def test_no_more_calls_at_a_time_than_the_server_allows() -> None:
    made = Server(**{"grpc.max_concurrent_streams": 3})
    client = Http2Client(made.address, BODIES, 1)
    for call in range(20):
        client.start(call, 0, math.inf)
    assert ends(client, 20) == dict.fromkeys(range(20), 0)
    client.close()
    made.server.stop(None).wait()


def test_nobody_there_is_an_os_error() -> None:
    made = Server()
    made.server.stop(None).wait()
    with pytest.raises(OSError):
        Http2Client(made.address, BODIES)
