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
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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
PARTS = ("loop", "others", "total")
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


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time of a server, to the nanosecond; in seconds, or in microseconds per request."""

    loop: float
    """Of the event loop's thread."""
    others: float
    """Of all other threads together, the watch's among them."""

    @property
    def total(self) -> float:
        """Of all."""
        return self.loop + self.others

    @classmethod
    def of(cls, server: Running) -> Cpu:
        """Used so far."""
        tasks = Path(f"/proc/{server.pid}/task").iterdir()
        used = {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}
        loop = used.pop(str(server.pid))
        return cls(loop, sum(used.values()))


async def turn(server: Running, call: grpc.aio.UnaryUnaryMultiCallable, body: bytes, requests: int) -> Cpu:
    """CPU microseconds per request of a closed loop."""
    left = requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(body, timeout=60)

    before = Cpu.of(server)
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await asyncio.sleep(SETTLE_S)
    after = Cpu.of(server)
    return Cpu((after.loop - before.loop) / requests * 1e6, (after.others - before.others) / requests * 1e6)


async def take_turns(
    server: Running, turns: int, requests: int
) -> tuple[dict[bool, list[Cpu]], watch_pb2.WatchedModel]:
    """CPU microseconds per request by form and turn; and what the watch says at the end."""
    body = request("tiny", WIDTH)
    found: dict[bool, list[Cpu]] = {False: [], True: []}
    async with grpc.aio.insecure_channel(server.url) as channel:
        call = channel.unary_unary(METHOD)
        await turn(server, call, body, 20 * requests)  # warms up, and gives the watch its baseline
        for index in range(turns):
            for tapped in (False, True) if index % 2 else (True, False):
                os.kill(server.pid, signal.SIGUSR2 if tapped else signal.SIGUSR1)
                found[tapped].append(await turn(server, call, body, requests))
        status = await WatchStub(channel).Status(watch_pb2.WatchStatusRequest())
    return found, status.models[0]


def measure(turns: int, requests: int, rate: float) -> tuple[dict[bool, list[Cpu]], watch_pb2.WatchedModel]:
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


def table(found: dict[bool, list[Cpu]], layer: float, rate: float) -> Iterator[str]:
    """Both forms, and the parts of the price."""
    without, with_it = ([each.total for each in found[form]] for form in (False, True))
    mean, median = statistics.mean, statistics.median
    price = median(a / b - 1 for a, b in zip(with_it, without, strict=True))
    thread = mean(each.others for each in found[True]) - mean(each.others for each in found[False])
    base = median(without)
    yield "| tiny model | server CPU per request, mean | median | price, mean | median |"
    yield "|---|---|---|---|---|"
    yield f"| not watched | {mean(without):.1f} us | {base:.1f} us | | |"
    ratio = mean(with_it) / mean(without) - 1
    both = f"{mean(with_it):.1f} us | {median(with_it):.1f} us | {ratio:+.1%} | {price:+.1%}"
    yield f"| watched, {rate:.0%} sampled | {both} |"
    yield f"| of that the tap, by itself | {layer:.2f} us | | {layer / base:+.1%} | |"
    yield f"| and the watch's thread | {thread:.2f} us | | {thread / base:+.1%} | |"


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
    lines = [
        f"Machine: {machine()}. {CALLERS} callers, {arguments.turns} turns of {arguments.requests} requests.",
        f"{status.sampled} of {status.answered} sampled, {status.dropped} dropped, {status.looks} looks.",
        "",
        *table(found, layer, arguments.rate),
    ]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
