"""What the response cache gives and costs.

    python loadtest/cache.py [--markdown FILE]

Closed loops of a grpc.aio client, each configuration in turn within each round, medians over the rounds, since the
machine may be busy with other things:

1. Repeat-heavy traffic, Zipf over 10,000 inputs: cache off, memory, memory and Redis.
2. The cost of a hit in memory, against a server on the same transport that only echoes.
3. Traffic without a single repetition: what the cache costs where it cannot help.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from rich.console import Console
from support import READY, ROOT, Running, kairos, machine, process, write_matmul_model

from server.pb import cache_pb2, cache_pb2_grpc
from server.pb import grpc_service_pb2 as pb

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
INPUTS: Final = 10_000
WIDTH, LAYERS = 1024, 32
"""About a millisecond a row on one core."""
ENGINE: Final = "instance_group { count: 1 } parameters { key: 'intra_op_thread_count' value { string_value: '1' } }"


@dataclass(frozen=True, slots=True)
class Load:
    """What a closed loop of callers saw."""

    rate: float
    """Answers a second."""
    p50_s: float
    p99_s: float
    cpu_us: float
    """Server CPU per request, microseconds."""


class Questions:
    """Serialised requests of one row, made when needed, each unlike all others."""

    def __init__(self, width: int, seed: int) -> None:
        self._rand = np.random.default_rng(seed)
        message = pb.ModelInferRequest(model_name="model")
        message.inputs.add(name="x", datatype="FP32", shape=[1, width])
        self._width = width
        self._head = message.SerializeToString()

    def make(self) -> bytes:
        """The next one."""
        row = self._rand.standard_normal(self._width).astype(np.float32).tobytes()
        return self._head + pb.ModelInferRequest(raw_input_contents=[row]).SerializeToString()

    def zipf(self, count: int, exponent: float) -> list[bytes]:
        """Repeat-heavy traffic."""
        inputs = [self.make() for _ in range(INPUTS)]
        weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(INPUTS)))
        return random.Random(1).choices(inputs, cum_weights=weights, k=count)


async def closed_loop(server: Running, bodies: Sequence[bytes], callers: int) -> Load:
    """So many callers, each sending the next request when it has the answer to its last."""
    async with grpc.aio.insecure_channel(server.url) as channel:
        call = channel.unary_unary(METHOD)
        left = iter(bodies)
        took: list[float] = []

        async def caller() -> None:
            for body in left:
                began = time.perf_counter()
                await call(body, timeout=60)
                took.append(time.perf_counter() - began)

        cpu_before, began = server.cpu_s(), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        seconds, cpu_s = time.perf_counter() - began, server.cpu_s() - cpu_before
    took.sort()
    count = len(took)
    return Load(count / seconds, took[count // 2], took[count * 99 // 100], cpu_s / count * 1e6)


def flush(server: Running) -> None:
    """Begin with nothing remembered."""
    with grpc.insecure_channel(server.url) as channel:
        cache_pb2_grpc.CacheStub(channel).Flush(cache_pb2.CacheFlushRequest())


def hit_rate(server: Running) -> float:
    """Share of the requests so far that were not executed."""
    with grpc.insecure_channel(server.url) as channel:
        found = cache_pb2_grpc.CacheStub(channel).Statistics(cache_pb2.CacheStatisticsRequest())
    if not found.models:
        return 0.0
    line = found.models[0]
    hits = line.memory_hits + line.redis_hits + line.shared
    return hits / (hits + line.misses)


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of our own on a free loopback port; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [shutil.which("redis-server") or "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            child.kill()


@contextmanager
def servers(folder: Path, width: int, layers: int) -> Iterator[dict[str, Running]]:
    """The same model without a cache, with memory, and with memory and Redis."""
    for name, cached in (("off", "false"), ("on", "true")):
        config = f"max_batch_size: 64 {ENGINE} response_cache {{ enable: {cached} }}"
        write_matmul_model(folder / name / "model", width=width, layers=layers, config=config)
    with ExitStack() as stack:
        url = stack.enter_context(redis_server())
        yield {
            "cache off": stack.enter_context(kairos(folder / "off")),
            "memory": stack.enter_context(kairos(folder / "on")),
            "memory and Redis": stack.enter_context(kairos(folder / "on", "--redis-url", url)),
        }


def rounds(
    running: dict[str, Running],
    count: int,
    callers: int,
    traffic: Callable[[int], Sequence[bytes]],
    *,
    fresh: bool = True,
) -> dict[str, list[Load]]:
    """Each server in turn, several times; `traffic` is told the number of the round. `fresh`: with empty caches."""
    found: dict[str, list[Load]] = {name: [] for name in running}
    for number in range(count):
        bodies = traffic(number)
        for name, server in running.items():
            if fresh:
                flush_if_any(server)
            found[name].append(asyncio.run(closed_loop(server, bodies, callers)))
    return found


def flush_if_any(server: Running) -> None:
    """Flush, unless it is a server that only echoes."""
    try:
        flush(server)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise


def median(loads: Sequence[Load]) -> Load:
    """Field by field."""
    return Load(*(statistics.median(getattr(load, name) for load in loads) for name in Load.__slots__))


def against(found: dict[str, list[Load]], name: str, base: str, field: str) -> float:
    """Median over the rounds of the ratio within a round."""
    pairs = zip(found[name], found[base], strict=True)
    return statistics.median(getattr(one, field) / getattr(other, field) for one, other in pairs)


def repeats(folder: Path, count: int, requests: int, callers: int) -> list[str]:
    """Part 1."""
    with servers(folder, WIDTH, LAYERS) as running:
        bodies = Questions(WIDTH, seed=1).zipf(requests, 1.0)
        rounds(running, 1, callers, lambda _: bodies)
        found = rounds(running, count, callers, lambda _: bodies, fresh=False)
        rates = {name: hit_rate(server) for name, server in running.items()}  # the first round included
    lines = [
        f"| Zipf(1.0) over {INPUTS:,} inputs, {callers} callers | not executed | answers/s | p50 | p99 | server CPU |",
        "|---|---|---|---|---|---|",
    ]
    for name, loads in found.items():
        load = median(loads)
        lines.append(
            f"| {name} | {rates[name]:.1%} | {load.rate:,.0f} | {load.p50_s * 1e3:.1f} ms | "
            f"{load.p99_s * 1e3:.1f} ms | {load.cpu_us:.0f} us |"
        )
    return lines


def hits(folder: Path, count: int, requests: int, callers: Sequence[int]) -> list[str]:
    """Part 2."""
    write_matmul_model(
        folder / "model", width=64, layers=1, config=f"max_batch_size: 64 {ENGINE} response_cache {{ enable: true }}"
    )
    body = Questions(64, seed=2).make()
    lines = [
        "| one input of 256 bytes | callers | bare echo, server CPU | hit in memory, server CPU | ratio |",
        "|---|---|---|---|---|",
    ]
    for transport, script in (("http2", "bare_http2_echo.py"), ("grpcio", "bare_echo.py")):
        echo = process([sys.executable, str(ROOT / "loadtest" / script)], READY)
        with echo as bare, kairos(folder, "--transport", transport) as server:
            running = {"echo": bare, "hit": server}
            for each in callers:
                rounds(running, 1, each, lambda _: [body] * (requests // 5))
                found = rounds(running, count, each, lambda _: [body] * requests, fresh=False)
                ratio = against(found, "hit", "echo", "cpu_us")
                base, hit = median(found["echo"]).cpu_us, median(found["hit"]).cpu_us
                lines.append(f"| {transport} | {each} | {base:.0f} us | {hit:.0f} us | {ratio:.2f} |")
    return lines


def misses(folder: Path, count: int, requests: int, callers: int) -> list[str]:
    """Part 3."""
    lines = [
        f"| no repetitions, {callers} callers | model | answers/s | against off | server CPU | against off |",
        "|---|---|---|---|---|---|",
    ]
    for label, width, layers in (("tiny", 16, 2), ("0.1 ms", 512, 16), ("1 ms", WIDTH, LAYERS)):
        questions = Questions(width, seed=3)
        with servers(folder / str(width), width, layers) as running:
            found = rounds(running, count, callers, lambda _, q=questions: [q.make() for _ in range(requests)])
        for name, loads in found.items():
            load = median(loads)
            rate, cpu = (against(found, name, "cache off", field) for field in ("rate", "cpu_us"))
            lines.append(f"| {name} | {label} | {load.rate:,.0f} | {rate:.3f} | {load.cpu_us:.0f} us | {cpu:.3f} |")
    return lines


def main() -> None:
    """Measure, print, and write the section of docs/performance.md if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6_000, help="requests a cell")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    given = parser.parse_args()
    console = Console(highlight=False)
    parts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts.append([f"Machine: {machine()}."])
        with console.status("repetitions ..."):
            parts.append(repeats(folder / "repeats", given.rounds, given.requests, given.callers))
        with console.status("hits ..."):
            parts.append(hits(folder / "hits", given.rounds, given.requests, (1, 8, 64)))
        with console.status("no repetitions ..."):
            parts.append(misses(folder / "misses", given.rounds, given.requests, given.callers))
    text = "\n\n".join("\n".join(lines) for lines in parts) + "\n"
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
