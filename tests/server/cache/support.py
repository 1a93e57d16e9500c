"""What the cache's tests share: a spec, requests, an Inference under control, a Redis without Redis."""

from __future__ import annotations

import asyncio
import fnmatch
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor
from server.cache.connection import Write

SPEC = ModelSpec(
    name="double", version=1, platform="fake", max_rows=8, digest="00ff",
    inputs=(TensorSpec("IN", DType.UINT8, (-1,)),), outputs=(TensorSpec("OUT", DType.UINT8, (-1,)),),
)  # fmt: skip


def request(data: bytes = b"abc", *, deadline: float = math.inf, **rest: Any) -> InferRequest:
    return InferRequest(
        model="double", version=1, wanted=("OUT",), deadline=deadline, **rest,
        inputs=(Tensor("IN", DType.UINT8, (1, len(data)), data),),
    )  # fmt: skip


def answer(asked: InferRequest) -> InferResponse:
    """What the model makes of it: everything twice."""
    data = bytes(asked.inputs[0].data) * 2
    batch = memoryview(b"neighbour" + data + b"neighbour")
    outputs = (Tensor("OUT", DType.UINT8, (1, len(data)), batch[9 : 9 + len(data)]),)
    return InferResponse(model=asked.model, version=asked.version, outputs=outputs, id=asked.id)


def data_of(response: InferResponse) -> bytes:
    return bytes(response.outputs[0].data)


class ControlledInference:
    """Executes when told to, or at once; remembers what it was asked and what was withdrawn."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.asked: list[InferRequest] = []
        self.withdrawn: list[InferRequest] = []
        self.waiting: list[tuple[InferRequest, asyncio.Future[InferResponse]]] = []

    async def infer(self, asked: InferRequest) -> InferResponse:
        self.asked.append(asked)
        if self.at_once:
            return answer(asked)
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        self.waiting.append((asked, future))
        try:
            return await future
        except asyncio.CancelledError:
            self.withdrawn.append(asked)
            self.waiting = [waiting for waiting in self.waiting if waiting[1] is not future]
            raise

    def finish(self, index: int = 0) -> None:
        asked, future = self.waiting.pop(index)
        if not future.done():
            future.set_result(answer(asked))

    def fail(self, error: Exception, index: int = 0) -> None:
        _, future = self.waiting.pop(index)
        if not future.done():
            future.set_exception(error)


class FakeConnection:
    """A Redis in a dictionary. `fails` breaks everything; `delay_s` makes it slow."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.trips: list[tuple[bytes, ...]] = []
        self.writes: list[Sequence[Write]] = []
        self.ttls_ms: dict[bytes, int] = {}
        self.fails: Exception | None = None
        self.refuses: Exception | None = None
        self.delay_s = 0.0
        self.pings = 0
        self.closed = False
        self.on_mget: Callable[[], None] = lambda: None

    async def _reach(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.fails is not None:
            raise self.fails

    async def ping(self) -> None:
        self.pings += 1
        await self._reach()

    async def mget(self, names: Sequence[bytes]) -> Sequence[bytes | None]:
        self.trips.append(tuple(names))
        await self._reach()
        self.on_mget()
        return [self.data.get(name) for name in names]

    async def write(self, writes: Sequence[Write]) -> Sequence[Exception | None]:
        self.writes.append(writes)
        await self._reach()
        if self.refuses is not None:
            return [self.refuses] * len(writes)
        for name, value, ttl_ms in writes:
            if value is None:
                self.data.pop(name, None)
            else:
                self.data[name] = value
                self.ttls_ms[name] = ttl_ms
        return [None] * len(writes)

    async def add(self, name: bytes, value: bytes, ttl_ms: int) -> bool:
        await self._reach()
        if name in self.data:
            return False
        self.data[name] = value
        self.ttls_ms[name] = ttl_ms
        return True

    async def scan(self, pattern: bytes) -> AsyncIterator[bytes]:
        await self._reach()
        for name in list(self.data):
            if fnmatch.fnmatchcase(name, pattern):
                yield name

    async def close(self) -> None:
        self.closed = True


async def turns(count: int = 8) -> None:
    """Let everyone who can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)
