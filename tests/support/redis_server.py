"""A real redis-server on free loopback ports, and a proxy to spoil its connections with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import redis

from tests.support.servers import wait_until


def binary(name: str = "redis-server") -> str:
    """Its path; where CI has none, that is a failure, elsewhere a reason to skip."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """One process; options are those of redis-server, without the dashes."""

    def __init__(self, folder: Path, *arguments: str, **options: object) -> None:
        self.port = free_port()
        self.folder = folder
        self._command = [binary(), *arguments]
        defaults = {"bind": "127.0.0.1", "port": self.port, "dir": folder, "save": "", "appendonly": "no"}
        for name, value in (defaults | options).items():
            self._command += [f"--{name.replace('_', '-')}", *str(value).split(" ")]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=2.0)

    def start(self) -> None:
        with (self.folder / f"redis-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self.listens, "a Redis that listens")

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / f"redis-{self.port}.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
        return False

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            if how in (signal.SIGKILL, signal.SIGTERM):
                self.process.wait(10.0)


@contextlib.contextmanager
def redis_server(folder: Path, *arguments: str, **options: object) -> Iterator[RedisServer]:
    """A server for the length of the block."""
    server = RedisServer(folder, *arguments, **options)
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Passes bytes on, late, or spoilt, or not at all."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.delay_s = 0.0
        self.flips_bytes = False
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset_all(self) -> None:
        """Break every connection as rudely as TCP allows."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        for source, target, back in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.create_task(self._pass_on(source, target, back))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if back and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if back and self.flips_bytes:
                    data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x5A]) + data[len(data) // 2 + 1 :]
                target.write(data)
                await target.drain()
        target.close()
