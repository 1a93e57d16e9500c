"""What is measured, question by question. Each part starts servers of its own and yields figures as they come.

Rule: one thing grows in each part; all else is as small as it can be.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from statistics import median
from typing import Final

import grpc

from loadtest.deadlines import CALM_CHANNELS, CALM_SIZE, ONE_ENGINE, write_convolution_model
from loadtest.load.client import Body
from loadtest.load.plan import infer_body
from loadtest.load.scenario import Kind, Scenario
from loadtest.load.schedule import Arrivals
from loadtest.sizing.connections import Crowd, certificates
from loadtest.sizing.models import TINY, write_slice, write_tile, write_tiny
from loadtest.sizing.process import Server, kairos, load
from loadtest.sizing.study import LARGE_KIB, Base, Found, Idle, Load, Models
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

BUSY: Final = 64
"""Callers of a busy server."""
DEADLINE_MS: Final = 25
_PAYLOAD_CALLERS: Final = 8
_IDLE_S: Final = 1.0
_SCRAPES: Final = 5
_WARM_S: Final = 0.4
_MOST_TLS: Final = 1000
"""Encrypted connections; the client that opens them takes its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured."""

    callers: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)
    kib: Sequence[float] = (0.25, 4, 64, LARGE_KIB, 4096)
    loads: Sequence[float] = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
    connections: Sequence[int] = (0, 100, 1000, 4000)
    models: Sequence[int] = (1, 10, 50, 100, 200)
    several: Sequence[int] = (1, 2)
    """Instances of a model, and processes on a port."""
    closed_s: float = 2.0
    open_s: float = 4.0
    rounds: int = 2
    """Of the closed loops of callers and payloads, which the cost model rests on."""
    turns: int = 30
    turn_s: float = 0.2
    """Length of each turn of a comparison."""


def closed(url: str, callers: int, seconds: float, *kinds: Kind, connections: int = 0) -> Scenario:
    """So many callers who wait for their answers, over 8 connections unless it is said."""
    return Scenario(
        requests=kinds or (Kind(model=TINY),), address=url, seconds=seconds,
        arrivals=Arrivals(kind="closed", callers=callers), connections=connections or min(8, callers),
    )  # fmt: skip


def warm(server: Server, *kinds: Kind) -> None:
    """Let the first calls, which cost more, be over."""
    load("", 0, [server], closed(server.url, 8, _WARM_S, *kinds))


@contextmanager
def tiny() -> Iterator[Server]:
    """A server with one tiny model, after its first calls."""
    with tempfile.TemporaryDirectory() as name:
        write_tiny(Path(name))
        with kairos(Path(name)) as server:
            warm(server)
            yield server


def by_callers(options: Options) -> Iterator[Found]:
    """Where memory begins; then what many at a time save."""
    with tiny() as server:
        yield Base(rss_kib=server.rss_kib(), pss_kib=server.pss_kib())
        for _ in range(options.rounds):
            for callers in options.callers:
                yield load("callers", callers, [server], closed(server.url, callers, options.closed_s))


def by_payload(options: Options) -> Iterator[Load]:
    """Bytes into the server, in messages and in shared memory; and bytes out of it."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for kib in options.kib:
            write_slice(Path(name), f"in-{kib:g}", round(kib * 256))
        write_tile(Path(name), "out", LARGE_KIB * 256)
        server = stack.enter_context(kairos(Path(name)))
        regions = {kib: stack.enter_context(region(server.url, round(kib * 1024))) for kib in options.kib}
        for number in range(options.rounds):
            for kib in options.kib:
                kind = Kind(model=f"in-{kib:g}", inputs=4)
                asked = closed(server.url, _PAYLOAD_CALLERS, options.closed_s, kind)
                if not number:
                    warm(server, kind)
                yield load("payload", kib, [server], asked, name="message")
                yield load("payload", kib, [server], asked, name="shared", encode=pointing_to(regions[kib]))
            answers = closed(server.url, _PAYLOAD_CALLERS, options.closed_s, Kind(model="out", inputs=4))
            yield load("payload", LARGE_KIB, [server], answers, name="answer")


@contextmanager
def region(url: str, size: int) -> Iterator[SharedMemory]:
    """Shared memory that the server knows."""
    memory = SharedMemory(create=True, size=size)
    try:
        with grpc.insecure_channel(url) as channel:
            asked = pb.SystemSharedMemoryRegisterRequest(name=memory.name, key=f"/{memory.name}", byte_size=size)
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            stub.SystemSharedMemoryRegister(asked)
        yield memory
    finally:
        memory.close()
        memory.unlink()


def pointing_to(memory: SharedMemory) -> Callable[[Kind, pb.ModelInferRequest], Body]:
    """Requests whose one input lies there."""

    def encode(kind: Kind, request: pb.ModelInferRequest) -> Body:
        parameters = request.inputs[0].parameters
        parameters["shared_memory_region"].string_param = memory.name
        parameters["shared_memory_byte_size"].int64_param = len(request.raw_input_contents[0])
        del request.raw_input_contents[:]
        return infer_body(kind, request)

    return encode


def by_load(options: Options) -> Iterator[Load]:
    """Latency of Poisson arrivals by the share of capacity that they ask for, without deadlines and with one."""
    with tiny() as server:
        top = load("capacity", BUSY, [server], closed(server.url, BUSY, options.closed_s))
        yield top
        for share in options.loads:
            for name, deadline in (("without", {}), ("with", {str(DEADLINE_MS): 1.0})):
                asked = Scenario(
                    requests=(Kind(model=TINY, deadline_ms=deadline),), address=server.url, seconds=options.open_s,
                    arrivals=Arrivals(rate=share * top.answers_per_s), connections=8,
                )  # fmt: skip
                yield load("load", share, [server], asked, name=name)


def by_connections(options: Options) -> Iterator[Found]:
    """Connections that only stand there, and calls beside them; then the same calls over more connections."""
    with tiny() as server:
        with Crowd() as crowd:
            for idle in _crowded(server, crowd, options.connections):
                yield idle
                asked = closed(server.url, 8, options.closed_s)
                yield load("beside idle", idle.connections, [server], asked)
        for connections in (1, 8, BUSY):
            yield load(
                "over", connections, [server], closed(server.url, BUSY, options.closed_s, connections=connections)
            )
    with tempfile.TemporaryDirectory() as name, certificates() as issued:
        write_tiny(Path(name))
        with kairos(Path(name), *issued.flags) as server, Crowd(issued) as crowd:
            yield from _crowded(server, crowd, [count for count in options.connections if count <= _MOST_TLS])


def _crowded(server: Server, crowd: Crowd, sizes: Sequence[int]) -> Iterator[Idle]:
    for connections in sizes:
        before, opened = server.look(), connections - len(crowd)
        crowd.grow(server.url, connections)
        after, rss_kib = server.look(), server.rss_kib()
        time.sleep(_IDLE_S)
        yield Idle(
            connections=connections, tls=crowd.encrypted, rss_kib=rss_kib,
            opening_us=(after.cpu_s - before.cpu_s) / max(1, opened) * 1e6,
            cores=(server.look().cpu_s - after.cpu_s) / _IDLE_S,
        )  # fmt: skip


def by_models(options: Options) -> Iterator[Found]:
    """Memory, time to load and metrics of more and more models; then the same traffic, spread over all of them."""
    for count in options.models:
        with tempfile.TemporaryDirectory() as models:
            names = [f"tiny-{number}" for number in range(count)]
            for name in names:
                write_tiny(Path(models), name)
            file_kib = (Path(models) / names[0] / "1/model.onnx").stat().st_size / 1024
            began = time.monotonic()
            with kairos(Path(models)) as server:
                ready_s = time.monotonic() - began
                kinds = [Kind(model=name, inputs=1) for name in names]
                warm(server, *kinds)
                rss_kib, threads = server.rss_kib(), server.threads()
                yield load("models", count, [server], closed(server.url, BUSY, options.closed_s, *kinds))
                scrapes = [server.scrape() for _ in range(_SCRAPES)]
            yield Models(
                models=count, rss_kib=rss_kib, file_kib=file_kib, ready_s=ready_s, threads=threads,
                scrape_ms=median(each for each, _ in scrapes), scrape_kib=scrapes[-1][1],
            )  # fmt: skip


def by_instances(options: Options) -> Iterator[Load]:
    """Engines of one thread each, on a model whose rows cost the same alone and in a batch."""
    for count in options.several:
        with tempfile.TemporaryDirectory() as name:
            config = f"max_batch_size: 8 {ONE_ENGINE.replace('count: 1', f'count: {count}')}"
            write_convolution_model(Path(name) / "even", config)
            kind = Kind(model="even", inputs=2, shapes={"x": [CALM_CHANNELS, CALM_SIZE, CALM_SIZE]})
            with kairos(Path(name)) as server:
                warm(server, kind)
                yield load("lone call", count, [server], closed(server.url, 1, options.closed_s, kind))
                yield load("instances", count, [server], closed(server.url, 32, options.closed_s, kind))


def by_processes(options: Options) -> Iterator[Load]:
    """Processes that share a port; the kernel deals out connections, not calls."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        write_tiny(Path(name))
        servers: list[Server] = []
        for count in options.several:
            while len(servers) < count:
                port = int(servers[0].url.rpartition(":")[2]) if servers else 0
                servers.append(stack.enter_context(kairos(Path(name), "--reuse-port", port=port)))
            url = servers[0].url
            load("", 0, servers, closed(url, BUSY, _WARM_S, connections=16))
            yield load("processes", count, servers, closed(url, BUSY, options.closed_s, connections=16))


def rows_of(options: Options) -> dict[str, int]:
    """How many figures each part yields, for a progress bar."""
    plain = len(options.connections)
    tls = len([count for count in options.connections if count <= _MOST_TLS])
    return {
        "callers": 1 + options.rounds * len(options.callers),
        "payload": options.rounds * (2 * len(options.kib) + 1),
        "load": 1 + 2 * len(options.loads),
        "connections": 2 * plain + tls + 3,
        "models": 2 * len(options.models),
        "instances": 2 * len(options.several),
        "processes": len(options.several),
    }


PARTS: Final[dict[str, Callable[[Options], Iterator[Found]]]] = {
    "callers": by_callers,
    "payload": by_payload,
    "load": by_load,
    "connections": by_connections,
    "models": by_models,
    "instances": by_instances,
    "processes": by_processes,
}
