"""What a call costs the server: our HTTP/2 transport and grpcio's, side by side in one run.

    python loadtest/transport.py                      # the table, in about four minutes
    python loadtest/transport.py --seconds 1 --quick  # a look
    python loadtest/transport.py --markdown docs/performance.md

Each server is a process of its own that echoes ModelInfer; the load comes from this process over 127.0.0.1. The
figure is the server's CPU time, user and system, divided by its calls, which other work on the machine disturbs
less than wall time. Both servers run on uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

from server.pb import grpc_service_pb2 as pb
from server.pb import grpc_service_pb2_grpc as pb_grpc
from server.transport.http2 import Options, Server, frames

TRANSPORTS: Final = ("http2", "grpcio")
INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_UNLIMITED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_ROUNDS: Final = 7
_MARK: Final = "<!-- transport benchmark: written by loadtest/transport.py -->"


class Echo(pb_grpc.GRPCInferenceServiceServicer):
    """Answers each tensor with itself: all that is left is the transport and protobuf."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ANN401, ARG002, N802 - as generated
        reply = pb.ModelInferResponse(model_name=request.model_name)
        reply.raw_output_contents.extend(request.raw_input_contents)
        return reply

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, N802 - as generated
        async for request in requests:
            yield pb.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))


async def serve(transport: str) -> None:
    """Serve until SIGTERM; the port is written to standard output."""
    server: Any = Server(Options()) if transport == "http2" else grpc.aio.server(options=_UNLIMITED)
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(None)


class Peer:
    """A server process under measurement."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        command = [sys.executable, __file__, "--serve", transport]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def cpu_s(self) -> float:
        """CPU time used so far, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_mb(self) -> float:
        """Memory in use."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Load:
    """One way to call."""

    name: str
    callers: int
    connections: int = 1
    size_bytes: int = 256
    deadlines: bool = False
    traces: bool = False
    stream: bool = False

    def request(self) -> bytes:
        message = pb.ModelInferRequest(model_name="echo", raw_input_contents=[b"\x05" * self.size_bytes])
        return message.SerializeToString()

    def arguments(self) -> dict[str, Any]:
        """What varies from call to call."""
        arguments: dict[str, Any] = {}
        if self.deadlines:
            arguments["timeout"] = random.uniform(1.0, 30.0)
        if self.traces:
            trace, span = random.getrandbits(128), random.getrandbits(64)
            arguments["metadata"] = (("traceparent", f"00-{trace:032x}-{span:016x}-01"),)
        return arguments


@dataclass(frozen=True, slots=True)
class Cost:
    """What a load did to a server."""

    cpu_us: float
    rate: float


def channels(peer: Peer, count: int) -> list[grpc.aio.Channel]:
    """`count` connections to `peer`, each of its own."""
    options = [*_UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
    return [grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}", options=options) for _ in range(count)]


async def _unary_caller(channel: grpc.aio.Channel, load: Load, until: float) -> int:
    call = channel.unary_unary(INFER)
    request = load.request()
    done = 0
    while time.monotonic() < until:
        await call(request, **load.arguments())
        done += 1
    return done


async def _stream_caller(channel: grpc.aio.Channel, load: Load, until: float) -> int:
    call = channel.stream_stream(STREAM)()
    request = load.request()
    done = 0
    while time.monotonic() < until:
        await call.write(request)
        await call.read()
        done += 1
    await call.done_writing()
    return done


async def measure(peer: Peer, load: Load, seconds: float) -> Cost:
    """Call in a closed loop for `seconds`, after a warm-up of a third of that."""
    opened = channels(peer, load.connections)
    caller: Callable[..., Awaitable[int]] = _stream_caller if load.stream else _unary_caller

    async def run(run_s: float) -> int:
        until = time.monotonic() + run_s
        return sum(await asyncio.gather(*(caller(opened[i % len(opened)], load, until) for i in range(load.callers))))

    await run(seconds / 3)
    cpu_s, began = peer.cpu_s(), time.monotonic()
    calls = await run(seconds)
    cost = Cost((peer.cpu_s() - cpu_s) / calls * 1e6, calls / (time.monotonic() - began))
    for channel in opened:
        await channel.close()
    return cost


async def latency_ms(peer: Peer, rate: float, seconds: float) -> tuple[float, float]:
    """p50 and p99 of calls that start at `rate` a second whatever becomes of them."""
    (channel,) = channels(peer, 1)
    call = channel.unary_unary(INFER)
    request = Load("", 1).request()
    taken: list[float] = []

    async def one(due: float) -> None:
        await call(request)
        taken.append(time.monotonic() - due)

    began = time.monotonic()
    async with asyncio.TaskGroup() as calls:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            calls.create_task(one(due))
    await channel.close()
    taken.sort()
    return taken[len(taken) // 2] * 1e3, taken[int(len(taken) * 0.99)] * 1e3


def idle_connections_mb(peer: Peer, count: int) -> float:
    """What `count` greeted connections without calls add to the server's memory."""
    before = peer.resident_mb()
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", peer.port))
        connection.sendall(frames.PREFACE + frames.settings(()))
        opened.append(connection)
    for connection in opened:
        while frames.SETTINGS_ACK not in connection.recv(4096):
            pass
    added = peer.resident_mb() - before
    for connection in opened:
        connection.close()
    return added


def loads(*, quick: bool) -> list[Load]:
    """What is measured."""
    callers = (1, 64) if quick else (1, 8, 64, 128)
    unary = [Load("unary 256 B", n) for n in callers]
    unary += [Load("unary 256 B", n, connections=32) for n in callers if n >= 32]
    unary += [Load("unary 256 B, deadlines", n, deadlines=True) for n in callers]
    unary += [Load("unary 256 B, deadlines and traces", n, deadlines=True, traces=True) for n in callers]
    unary += [
        Load("unary 256 B, deadlines and traces", n, connections=32, deadlines=True, traces=True)
        for n in callers
        if n >= 32
    ]
    streams = [Load("stream message 256 B", n, stream=True) for n in ((16,) if quick else (1, 16, 64))]
    large = [Load("unary 600 KB", n, size_bytes=600_000) for n in ((4,) if quick else (1, 4))]
    return unary + streams + large


def _row(load: Load, ours: Cost, theirs: Cost) -> str:
    cells = (
        load.name, str(load.callers), str(load.connections), f"{ours.cpu_us:.0f}", f"{theirs.cpu_us:.0f}",
        f"{ours.cpu_us / theirs.cpu_us:.2f}", f"{ours.rate:,.0f}", f"{theirs.rate:,.0f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


async def report(seconds: float, *, quick: bool) -> AsyncIterator[str]:
    """The lines of the table, as they come."""
    peers = {transport: Peer(transport) for transport in TRANSPORTS}
    try:
        yield "| calls | callers | connections | http2 us | grpcio us | ratio | http2 calls/s | grpcio calls/s |"
        yield "|---|---|---|---|---|---|---|---|"
        rate = 0.0
        for load in loads(quick=quick):
            costs = [await measure(peers[transport], load, seconds) for transport in TRANSPORTS]
            if load == Load("unary 256 B", 64):
                rate = costs[1].rate / 2
            yield _row(load, *costs)
        yield ""
        yield "| | http2 | grpcio |"
        yield "|---|---|---|"
        times = await _latencies(peers, rate, seconds)
        for name, index in (("p50", 0), ("p99", 1)):
            cells = " | ".join(f"{time_ms[index]:.2f} ms" for time_ms in times)
            yield f"| {name} at {rate:,.0f} calls/s, half of what grpcio can take | {cells} |"
    finally:
        for peer in peers.values():
            peer.close()
    cells = " | ".join(f"{_idle_mb(transport):.1f} MB" for transport in TRANSPORTS)
    yield f"| memory of 1,000 idle connections | {cells} |"


async def _latencies(peers: dict[str, Peer], rate: float, seconds: float) -> list[tuple[float, float]]:
    """p50 and p99 of each transport: medians over rounds in which they take turns, since neighbours make noise."""
    rounds = [[await latency_ms(peers[transport], rate, seconds) for transport in TRANSPORTS] for _ in range(_ROUNDS)]
    return [
        (statistics.median(times[0] for times in runs), statistics.median(times[1] for times in runs))
        for runs in zip(*rounds, strict=True)
    ]


def _idle_mb(transport: str) -> float:
    """`idle_connections_mb` of a fresh server."""
    peer = Peer(transport)
    try:
        return idle_connections_mb(peer, 1000)
    finally:
        peer.close()


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return (
        f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, grpcio {grpc.__version__}, "
        f"uvloop {uvloop.__version__}"
    )


def _write(path: Path, lines: list[str], command: str) -> None:
    """Put the table into `path`, in place of the one that an earlier run left there."""
    section = "\n".join([_MARK, "", f"{_machine()}; `{command}`.", "", *lines, "", _MARK])
    before, _, rest = path.read_text().partition(_MARK)
    path.write_text(before + section + rest.partition(_MARK)[2])


async def main(arguments: argparse.Namespace) -> None:
    """Run what the command line asks for."""
    if arguments.serve:
        await serve(arguments.serve)
        return
    lines = []
    async for line in report(arguments.seconds, quick=arguments.quick):
        print(line, flush=True)
        lines.append(line)
    if arguments.markdown:
        _write(arguments.markdown, lines, f"python loadtest/transport.py --seconds {arguments.seconds:g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each load runs")
    parser.add_argument("--quick", action="store_true", help="fewer loads")
    parser.add_argument("--markdown", type=Path, help="the file that keeps the table, between its two marks")
    parser.add_argument("--serve", choices=TRANSPORTS, help=argparse.SUPPRESS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    uvloop.run(main(parser.parse_args()))
