"""The reference client: grpc.aio, as a user's own would be. It costs the generator some 300 microseconds a call."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Sequence

import grpc

from loadtest.load.client import Body
from loadtest.load.http2 import DEADLINE_EXCEEDED

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


class GrpcAioClient:
    """Calls over several channels in turn, each with a connection of its own."""

    def __init__(self, address: str, bodies: Sequence[Body], connections: int = 1) -> None:
        # select() because its time-outs are finer than a millisecond
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._ended: list[tuple[int, int, float]] = []
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._bodies = bodies
        self._turn = 0
        self._wake: asyncio.Event = asyncio.Event()
        self._loop.run_until_complete(self._open(address, connections))

    async def _open(self, address: str, connections: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in range(connections)]
        async with asyncio.timeout(5.0):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        self._methods = [
            {path: channel.unary_unary(path, None, None) for path in {body.path for body in self._bodies}}
            for channel in self._channels
        ]

    def now(self) -> float:
        return time.monotonic()

    def start(self, call: int, body: int, deadline: float) -> None:
        """Begin a call on the next channel."""
        left = deadline - time.monotonic()
        if left <= 0.0:
            self._end(call, DEADLINE_EXCEEDED)
            return
        self._turn += 1
        what = self._bodies[body]
        method = self._methods[self._turn % len(self._methods)][what.path]
        self._calls[call] = self._loop.create_task(self._one(call, method, what, None if left == math.inf else left))

    async def _one(
        self, call: int, method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], body: Body, left_s: float | None
    ) -> None:
        try:
            await method(body.message, timeout=left_s, metadata=body.metadata or None)
        except grpc.aio.AioRpcError as error:
            self._end(call, int(error.code().value[0]))
        except asyncio.CancelledError:
            self._end(call, int(grpc.StatusCode.CANCELLED.value[0]))
        else:
            self._end(call, 0)

    def _end(self, call: int, code: int) -> None:
        self._ended.append((call, code, time.monotonic()))
        self._calls.pop(call, None)
        self._wake.set()

    def cancel(self, call: int) -> None:
        """Give a call up."""
        if call in self._calls:
            self._calls[call].cancel()

    def wait(self, until: float) -> Sequence[tuple[int, int, float]]:
        """Let the loop run until a call has ended or it is `until`."""
        self._loop.run_until_complete(self._until(until))
        ended, self._ended = self._ended, []
        return ended

    async def _until(self, until: float) -> None:
        await asyncio.sleep(0)
        if not self._ended and (left := until - time.monotonic()) > 0.0:
            self._wake.clear()
            timer = self._loop.call_later(left, self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def close(self) -> None:
        """Cancel what is in flight and close the channels."""
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        left = list(self._calls.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for channel in self._channels:
            await channel.close(None)
