"""What watching costs: server CPU per request on a tiny model, with a tap at 10 % sampling and a monitor, and without.

    python loadtest/watch.py [--turns N] [--requests N] [--rate SHARE] [--markdown FILE]

One server takes both forms in turn, so that each comparison is with the same machine in the same process. CPU is that
of all its threads, the watch's own included, until what was sampled has been looked at. The tap's part on the event
loop is measured by itself as well.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console
from serving import METHOD, request
from support import READY, Running, machine, process, write_matmul_model

from engines.request import InferRequest, InferResponse
from engines.tensor import DType, from_array
from server.pb import watch_pb2
from server.pb.watch_pb2_grpc import WatchStub
from server.watch.tap import Tap, TapOptions, TappedInference, TapThread

CALLERS = 64
WIDTH = 16
SETTLE_S = 0.3
"""After each turn, until the watch's thread has nothing left to do."""
SWITCHABLE = """
import signal
import server.__main__
from server.watch.tap import TappedInference

tapped = True
infer = TappedInference.infer

def set_tapped(number, frame):
    global tapped
    tapped = number == signal.SIGUSR2

def switchable(layer, request):
    return infer(layer, request) if tapped else layer._inner.infer(request)

TappedInference.infer = switchable
signal.signal(signal.SIGUSR1, set_tapped)
signal.signal(signal.SIGUSR2, set_tapped)
server.__main__.main()
"""
"""A server whose taps are switched off by SIGUSR1 and on by SIGUSR2."""


def cpu_s(server: Running) -> float:
    """Seconds of CPU that all threads have used, to the nanosecond."""
    tasks = Path(f"/proc/{server.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def turn(server: Running, call: grpc.aio.UnaryUnaryMultiCallable, body: bytes, requests: int) -> float:
    """CPU seconds of a closed loop."""
    left = requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(body, timeout=60)

    before = cpu_s(server)
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await asyncio.sleep(SETTLE_S)
    return cpu_s(server) - before


async def take_turns(
    server: Running, turns: int, requests: int
) -> tuple[dict[bool, list[float]], watch_pb2.WatchedModel]:
    """CPU microseconds per request by form and turn; and what the watch says at the end."""
    body = request("tiny", WIDTH)
    found: dict[bool, list[float]] = {False: [], True: []}
    async with grpc.aio.insecure_channel(server.url) as channel:
        call = channel.unary_unary(METHOD)
        await turn(server, call, body, 20 * requests)  # warms up, and gives the watch its baseline
        for index in range(turns):
            for tapped in (False, True) if index % 2 else (True, False):
                os.kill(server.pid, signal.SIGUSR2 if tapped else signal.SIGUSR1)
                found[tapped].append(await turn(server, call, body, requests) / requests * 1e6)
        status = await WatchStub(channel).Status(watch_pb2.WatchStatusRequest())
    return found, status.models[0]


def measure(turns: int, requests: int, rate: float) -> tuple[dict[bool, list[float]], watch_pb2.WatchedModel]:
    """Start a server, let it take turns, and end it."""
    config = f"max_batch_size: 64\nwatch {{ enable: true sample_rate: {rate} learn_rows: 500 }}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_matmul_model(folder / "tiny", width=WIDTH, layers=2, config=config)
        flags = ["serve", "--model-repository", str(folder), "--grpc-port", "0", "--metrics-port", "0"]
        command = [sys.executable, "-c", SWITCHABLE, *flags, "--log-format", "text"]
        server = stack.enter_context(process(command, READY))
        return asyncio.run(take_turns(server, turns, requests))


class Answer:
    """An Inference that takes no time."""

    def __init__(self, response: InferResponse) -> None:
        self._response = response

    async def infer(self, request: InferRequest) -> InferResponse:
        del request
        return self._response


async def alone_us(rate: float, times: int = 20_000) -> float:
    """Least CPU microseconds that the layer adds to a request on the event loop."""
    row = from_array("x", DType.FP32, np.zeros((1, WIDTH), np.float32))
    asked = InferRequest(model="tiny", version=1, inputs=(row,), wanted=("y",))
    answer = Answer(InferResponse(model="tiny", version=1, outputs=(row,)))
    thread = TapThread(gather_s=3600)
    tap = Tap([], TapOptions(rate=rate), thread)
    least = []
    for layer in (answer, TappedInference(answer, tap)):
        best = math.inf
        for _ in range(9):
            before = time.process_time()
            for _ in range(times):
                await layer.infer(asked)
            best = min(best, time.process_time() - before)
            tap.hand_out()
        least.append(best / times * 1e6)
    thread.close(10)
    return least[1] - least[0]


def main() -> None:
    """Measure, print, and write the table of docs/watching.md if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--requests", type=int, default=3000, help="requests in each form and turn")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the requests that is sampled")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    layer = asyncio.run(alone_us(arguments.rate))
    found, status = measure(arguments.turns, arguments.requests, arguments.rate)
    without, with_it = statistics.mean(found[False]), statistics.mean(found[True])
    price = statistics.median(a / b - 1 for a, b in zip(found[True], found[False], strict=True))
    lines = [
        f"Machine: {machine()}. {CALLERS} callers, {arguments.turns} turns of {arguments.requests} requests.",
        f"{status.sampled} of {status.answered} sampled, {status.dropped} dropped, {status.looks} looks.",
        "",
        "| tiny model | server CPU per request, mean | median |",
        "|---|---|---|",
        f"| not watched | {without:.1f} us | {statistics.median(found[False]):.1f} us |",
        f"| watched, {arguments.rate:.0%} sampled | {with_it:.1f} us | {statistics.median(found[True]):.1f} us |",
        f"| price | {with_it / without - 1:+.1%} | {price:+.1%} |",
        f"| of that the tap, on the event loop | {layer:.2f} us | |",
    ]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
