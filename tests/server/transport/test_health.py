"""HealthService: several watchers, one after the other or side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from server.transport.health import NOT_SERVING, SERVING, UNKNOWN, HealthService


class Aborted(Exception):
    pass


class Call:
    async def abort(self, code: StatusCode, details: str = "") -> NoReturn:
        raise Aborted(code)


def ask(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def status(watch: AsyncIterator[Any]) -> int:
    return int((await anext(watch)).status)


def test_a_watcher_who_leaves_does_not_take_the_others_along() -> None:
    async def main() -> None:
        health = HealthService()
        watches = [health.Watch(ask("m"), Call()) for _ in range(3)]
        assert [await status(watch) for watch in watches] == [UNKNOWN] * 3
        health.set("m", serving=True)
        assert [await status(watch) for watch in watches] == [SERVING] * 3
        await watches[0].aclose()
        waiting = asyncio.ensure_future(status(watches[1]))
        health.set("other", serving=False)
        await asyncio.sleep(0)
        assert not waiting.done()  # nothing has changed for this one
        health.set("m", serving=False)
        assert await waiting == await status(watches[2]) == NOT_SERVING
        health.set("m", serving=None)
        assert await status(watches[2]) == UNKNOWN

    asyncio.run(main())


def test_watches_end_with_their_last_word() -> None:
    async def main() -> None:
        health = HealthService()
        health.set("", serving=True)
        watch = health.Watch(ask(""), Call())
        assert await status(watch) == SERVING
        health.set("", serving=False)
        health.close()
        assert await status(watch) == NOT_SERVING
        with pytest.raises(Aborted, match="UNAVAILABLE"):
            await status(watch)
        late = health.Watch(ask(""), Call())
        assert await status(late) == NOT_SERVING
        with pytest.raises(Aborted):
            await status(late)

    asyncio.run(main())


def test_check() -> None:
    async def main() -> None:
        health = HealthService()
        health.set("m", serving=False)
        assert (await health.Check(ask("m"), Call())).status == NOT_SERVING
        with pytest.raises(Aborted, match="NOT_FOUND"):
            await health.Check(ask("nowhere"), Call())

    asyncio.run(main())
