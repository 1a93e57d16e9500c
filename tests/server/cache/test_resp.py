"""The lean Redis connection, against a server that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from server.cache.connection import Write
from server.cache.resp import Endpoint, RespConnection
from tests.server.cache.support import turns

Answer = Callable[[bytes], bytes | None]


class Script:
    """A server: `answer` turns what came in one read into what goes back; None hangs up."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.heard: list[bytes] = []
        self.connections = 0
        self.asked = asyncio.Event()

    def connect(self) -> ScriptedConnection:
        self.connections += 1
        return ScriptedConnection(self)


class ScriptedConnection(asyncio.Protocol):
    def __init__(self, script: Script) -> None:
        self._script = script

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._script.heard.append(data)
        self._script.asked.set()
        if (reply := self._script.answer(data)) is None:
            self._transport.close()
        else:
            self._transport.write(reply)


@contextlib.asynccontextmanager
async def scripted(
    answer: Answer, timeout_s: float = 5.0, **endpoint: object
) -> AsyncIterator[tuple[Script, RespConnection]]:
    script = Script(answer)
    server = await asyncio.get_running_loop().create_server(script.connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def find() -> Endpoint:
        return Endpoint(host="127.0.0.1", port=port, **endpoint)  # type: ignore[arg-type]

    connection = RespConnection(find, timeout_s)
    try:
        yield script, connection
    finally:
        await connection.close()
        await turns(20)  # until the server has seen that, too
        server.close()


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        await test

    asyncio.run(main())


def test_commands_and_their_replies() -> None:
    async def main() -> None:
        replies = {
            b"PING": b"+PONG\r\n",
            b"MGET": b"*2\r\n$3\r\none\r\n$-1\r\n",
            b"SCAN": b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n",
            b"NX": b"$-1\r\n",
            b"UNLINK": b"+OK\r\n-OOM command not allowed\r\n:1\r\n",
        }
        async with scripted(lambda data: next(reply for word, reply in replies.items() if word in data)) as (
            script,
            connection,
        ):
            await connection.ping()
            assert list(await connection.mget([b"a", b"b"])) == [b"one", None]
            assert await connection.add(b"lease", b"me", 250) is False
            outcomes = await connection.write([Write(b"a", b"1", 60_000), Write(b"b", b"2", 1), Write(b"c", None)])
            assert [str(outcome) for outcome in outcomes] == ["None", "OOM command not allowed", "None"]
            assert [name async for name in connection.scan(b"x:*")] == [b"a"]
            assert script.heard[1] == b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n"
            assert b"$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n$2\r\nPX\r\n$5\r\n60000\r\n" in script.heard[3]
            assert script.connections == 2

    run(main())


def test_an_error_instead_of_values_is_raised() -> None:
    async def main() -> None:
        async with scripted(lambda _: b"-NOAUTH Authentication required\r\n") as (_, connection):
            with pytest.raises(Exception, match="NOAUTH"):
                await connection.mget([b"a"])

    run(main())


def test_a_caller_who_leaves_takes_no_reply_with_him() -> None:
    async def main() -> None:
        async with scripted(lambda _: b"") as (script, connection):
            leaver = asyncio.ensure_future(connection.mget([b"a"]))
            await script.asked.wait()
            leaver.cancel()
            script.answer = lambda _: b"*1\r\n$4\r\nhis!\r\n*1\r\n$5\r\nmine!\r\n"
            assert await connection.mget([b"b"]) == [b"mine!"]

    run(main())


def test_a_connection_that_hangs_up_is_made_anew() -> None:
    async def main() -> None:
        async with scripted(lambda _: None) as (script, connection):
            with pytest.raises(ConnectionError):
                await connection.ping()
            script.answer = lambda _: b"+PONG\r\n"
            await connection.ping()
            assert script.connections == 2

    run(main())


def test_a_server_that_is_late_loses_its_connection() -> None:
    async def main() -> None:
        async with scripted(lambda _: b"", timeout_s=0.02) as (script, connection):
            with pytest.raises(TimeoutError, match=r"no reply within 0\.02 s"):
                await connection.ping()
            script.answer = lambda _: b"+PONG\r\n"
            await connection.ping()
            assert script.connections == 2

    run(main())


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400\r\n\r\n", b"+PONG\r\n+PONG\r\n"])
def test_a_server_that_is_out_of_step_is_left(nonsense: bytes) -> None:
    async def main() -> None:
        async with scripted(lambda _: nonsense) as (script, connection):
            with contextlib.suppress(ConnectionError):
                await connection.ping()
            script.answer = lambda _: b"+PONG\r\n"
            await connection.ping()
            assert script.connections == 2

    run(main())


def test_concurrent_callers_wait_for_one_connection() -> None:
    async def main() -> None:
        async with scripted(lambda data: b"+PONG\r\n" * data.count(b"PING")) as (script, connection):
            await asyncio.gather(*(connection.ping() for _ in range(10)))
            assert script.connections == 1

    run(main())


def test_every_connection_is_greeted_first() -> None:
    async def main() -> None:
        greeted = b"+OK\r\n+OK\r\n"
        async with scripted(
            lambda data: greeted if b"AUTH" in data else b"+PONG\r\n", user="u", password="p", db=3
        ) as (script, connection):
            await connection.ping()
            assert script.heard == [
                b"*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n", b"*1\r\n$4\r\nPING\r\n",
            ]  # fmt: skip

    run(main())


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b"-WRONGPASS invalid\r\n*1\r\n$6\r\nmaster\r\n", "WRONGPASS"),
        (b"+OK\r\n*1\r\n$5\r\nslave\r\n", "not the primary"),
    ],
)
def test_a_greeting_that_fails_is_the_callers_to_know(reply: bytes, complaint: str) -> None:
    async def main() -> None:
        async with scripted(lambda _: reply, password="p", primary=True) as (_, connection):
            with pytest.raises(Exception, match=complaint):
                await connection.ping()

    run(main())


def test_a_primary_that_was_demoted_is_left() -> None:
    async def main() -> None:
        async with scripted(lambda _: b"-READONLY You can't write against a read only replica.\r\n") as (
            script,
            connection,
        ):
            for number in (1, 2):
                (outcome,) = await connection.write([Write(b"a", b"1", 1)])
                assert "READONLY" in str(outcome)
                assert script.connections == number

    run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        async def find() -> Endpoint:
            return Endpoint(host="127.0.0.1", port=1)

        connection = RespConnection(find, 5.0)
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                await connection.ping()
        await connection.close()

    run(main())


def test_a_unix_socket(tmp_path: object) -> None:
    async def main() -> None:
        path = f"{tmp_path}/s"
        script = Script(lambda _: b"+PONG\r\n")
        server = await asyncio.get_running_loop().create_unix_server(script.connect, path)

        async def find() -> Endpoint:
            return Endpoint(path=path)

        connection = RespConnection(find, 5.0)
        await connection.ping()
        await connection.close()
        await turns(20)
        server.close()

    run(main())
