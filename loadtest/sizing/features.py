"""What features cost: servers with and without, in turns of a fraction of a second, as ratios within each turn.

TLS is asked for with grpc.aio, since the generator's own client speaks none; both sides of that ratio are.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import numpy as np

from loadtest.load.client import Body, Http2Client
from loadtest.load.generator import ClosedLoop, Shot, run
from loadtest.load.plan import INFER, infer_body, infer_request
from loadtest.load.scenario import Kind
from loadtest.sizing.connections import certificates
from loadtest.sizing.models import TINY, WIDTH, write_slice, write_tiny
from loadtest.sizing.parts import Options
from loadtest.sizing.process import Server, kairos
from loadtest.sizing.study import LARGE_KIB, TLS, TLS_LARGE, Price
from server.access.tokens import digest_of, new_token
from server.pb import cache_pb2, cache_pb2_grpc
from server.pb import grpc_service_pb2 as pb

CALLERS: Final = 32
UNLIKE: Final = 30_000
"""Requests that differ: more than a turn sends, so that none comes twice within one."""
LARGE: Final = "large"
_DRAIN_S: Final = 5.0
_POLICY: Final = """
[callers.jobs]
token_sha256 = ["{digest}"]
roles = ["jobs"]
[roles.jobs]
allow = ["infer"]
"""
METRICS: Final = "metrics not served"
TOKEN: Final = "access policy and bearer token"
CACHE: Final = "response cache, nothing comes twice"
PRICES: Final = (METRICS, TOKEN, CACHE, TLS, TLS_LARGE)


@dataclass(frozen=True, slots=True)
class Side:
    """A server and how it is called for a turn; returns the calls that were made."""

    server: Server
    call: Callable[[float], int]
    before: Callable[[], None] = lambda: None
    """Done before each turn, and not counted."""

    def cpu_us(self, seconds: float) -> float:
        """CPU microseconds of the server for each call."""
        self.before()
        before = self.server.look().cpu_s
        calls = self.call(seconds)
        return (self.server.look().cpu_s - before) / max(1, calls) * 1e6


def in_turns(without: Side, others: Mapping[str, Side], turns: int, seconds: float) -> Iterator[Price]:
    """All sides again and again, each turn beginning with another; the first turn only warms up."""
    sides = {"": without, **others}
    rounds = []
    for turn in range(turns + 1):
        names = list(sides)
        first = turn % len(names)
        rounds.append({name: sides[name].cpu_us(seconds) for name in [*names[first:], *names[:first]]})
    for name in others:
        ratios = [found[name] / found[""] for found in rounds[1:]]
        yield Price(name=name, without_us=float(np.median([found[""] for found in rounds[1:]])), ratios=ratios)


def prices(options: Options) -> Iterator[Price]:
    """All of them."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, token = Path(name), new_token()
        (folder / "policy.toml").write_text(_POLICY.format(digest=digest_of(token).hex()))
        write_tiny(folder / "plain")
        write_tiny(folder / "cached", more="response_cache { enable: true }")
        bodies = unlike(UNLIKE, Kind(model=TINY))
        guarded = unlike(UNLIKE, Kind(model=TINY, metadata={"authorization": f"Bearer {token}"}))
        started = {
            "": (kairos(folder / "plain"), bodies),
            METRICS: (kairos(folder / "plain", "--no-allow-metrics"), bodies),
            TOKEN: (kairos(folder / "plain", "--access-policy", str(folder / "policy.toml")), guarded),
            CACHE: (kairos(folder / "cached"), bodies),
        }
        sides = {}
        for key, (starting, asked) in started.items():
            server = stack.enter_context(starting)
            client = Http2Client(server.url, asked, connections=8)
            stack.callback(client.close)
            sides[key] = light(server, client, len(asked))
        cached = sides[CACHE].server
        sides[CACHE] = dataclasses.replace(sides[CACHE], before=lambda: forget(cached))
        without = sides.pop("")
        yield from in_turns(without, sides, options.turns, options.turn_s)
    yield from _encryption(options)


def unlike(count: int, kind: Kind, width: int = WIDTH) -> list[Body]:
    """So many requests of one row, no two the same."""
    told = pb.ModelMetadataResponse(name=kind.model)
    told.inputs.add(name="x", datatype="FP32", shape=[-1, width])
    random = np.random.default_rng(1)
    return [infer_body(kind, infer_request(kind, told, 1, math.inf, random)) for _ in range(count)]


def light(server: Server, client: Http2Client, bodies: int) -> Side:
    """A closed loop of the generator's client in this process; no request comes twice in a turn."""
    shots = [Shot(0.0, number) for number in range(bodies)]

    def call(seconds: float) -> int:
        record = run(client, ClosedLoop(shots, CALLERS, seconds), client.now(), _DRAIN_S)
        if any(record.code) or len(record) > bodies:
            raise RuntimeError(f"{len(record)} calls ended with the statuses {sorted(set(record.code))}")
        return len(record)

    return Side(server, call)


def forget(server: Server) -> None:
    """Empty the response cache."""
    with grpc.insecure_channel(server.url) as channel:
        stub = cache_pb2_grpc.CacheStub(channel)  # type: ignore[no-untyped-call]
        stub.Flush(cache_pb2.CacheFlushRequest())


def _encryption(options: Options) -> Iterator[Price]:
    """TLS, for small requests and for large ones."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        write_tiny(Path(name))
        write_slice(Path(name), LARGE, LARGE_KIB * 256)
        issued = stack.enter_context(certificates())
        plain = stack.enter_context(kairos(Path(name)))
        secret = stack.enter_context(kairos(Path(name), *issued.flags))
        for title, model, width, callers in ((TLS, TINY, WIDTH, 16), (TLS_LARGE, LARGE, LARGE_KIB * 256, 4)):
            body = unlike(1, Kind(model=model), width)[0].message
            believed = grpc.ssl_channel_credentials(issued.authority)
            sides = (reference(plain, None, body, callers), reference(secret, believed, body, callers))
            yield from in_turns(sides[0], {title: sides[1]}, options.turns, options.turn_s)


def reference(server: Server, credentials: grpc.ChannelCredentials | None, body: bytes, callers: int) -> Side:
    """A closed loop of grpc.aio, on one connection that is new in each turn."""

    async def loop(seconds: float) -> int:
        calls = 0
        opened = (
            grpc.aio.insecure_channel(server.url)
            if credentials is None
            else grpc.aio.secure_channel(f"localhost:{server.url.rpartition(':')[2]}", credentials)
        )
        async with opened as channel:
            method = channel.unary_unary(INFER, None, None)
            until = time.monotonic() + seconds

            async def caller() -> None:
                nonlocal calls
                while time.monotonic() < until:
                    await method(body, timeout=30)
                    calls += 1

            await asyncio.gather(*(caller() for _ in range(callers)))
        return calls

    return Side(server, lambda seconds: asyncio.run(loop(seconds)))
