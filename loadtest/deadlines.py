"""Goodput under overload, for real: open-loop Poisson requests over gRPC with true client deadlines.

    python loadtest/deadlines.py [--seconds 6] [--write]

One server, one model of at least 5 ms an execution under two names: with the `deadline` policy, and with `fifo`.
Its capacity is what a closed loop of callers without deadlines gets through, measured before and after each load.
Then requests arrive at 0.5 to 2.5
times that, whatever becomes of those before them; a third each has a short, a middle and a long deadline. Goodput
counts the answers that reached the client in time, as a share of capacity. `--write` puts the figures and the chart
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvloop
from rich.console import Console
from serving import METHOD, ONE_ENGINE, batches, request
from support import ROOT, Running, kairos, machine, write_matmul_model

from server.cli.charts import Panel, draw

WIDTH, LAYERS, MAX_ROWS = 2048, 12, 8
LOADS = (0.5, 1.0, 1.5, 2.5)
POLICIES = {"deadline": "DEADLINE", "fifo": "FIFO"}
CAPACITY_S = 2.0
DEADLINES = (4, 8, 16)
"""Times a full execution."""
PAGE = ROOT / "docs" / "performance.md"
IMAGE = ROOT / "docs" / "images" / "deadlines-grpc.png"


@dataclass(slots=True)
class Cell:
    """One policy at one load."""

    policy: str
    load: float
    seconds: float
    capacity: float = 0.0
    """Answers a second of the closed loop, mean of before and after this load: the machine may change its pace."""
    sent: int = 0
    latencies: list[float] = field(default_factory=list)
    """Of the answers that came in time."""
    codes: Counter[str] = field(default_factory=Counter)
    executed: int = 0
    refused_after: list[float] = field(default_factory=list)
    """Seconds until a caller was told that it was turned away."""

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return len(self.latencies) / self.seconds

    @property
    def waste(self) -> float:
        """Share of the executed rows whose answers were not in time."""
        return max(0.0, 1.0 - len(self.latencies) / max(1, self.executed))


async def capacity(server: Running, model: str, seconds: float) -> float:
    """Answers a second that a closed loop of callers without deadlines gets."""
    done = 0
    async with grpc.aio.insecure_channel(server.url) as channel:
        call, body = channel.unary_unary(METHOD), request(model, WIDTH)
        await asyncio.gather(*(call(body) for _ in range(4 * MAX_ROWS)))
        ends = time.perf_counter() + seconds

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < ends:
                await call(body)
                done += 1

        await asyncio.gather(*(caller() for _ in range(4 * MAX_ROWS)))
    return done / seconds


async def idle_latency(server: Running, model: str, requests: int) -> float:
    """Median seconds of single calls to an idle server."""
    taken = []
    async with grpc.aio.insecure_channel(server.url) as channel:
        call, body = channel.unary_unary(METHOD), request(model, WIDTH)
        for _ in range(requests):
            began = time.perf_counter()
            await call(body)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


async def open_loop(server: Running, cell: Cell, rate: float, full_s: float) -> None:
    """Poisson arrivals at `rate`; nobody waits for anybody."""
    rng = random.Random(round(cell.load * 100))
    async with grpc.aio.insecure_channel(server.url) as channel:
        call, body = channel.unary_unary(METHOD), request(cell.policy, WIDTH)

        async def one(deadline_s: float) -> None:
            began = time.perf_counter()
            try:
                await call(body, timeout=deadline_s)
            except grpc.aio.AioRpcError as error:
                cell.codes[error.code().name] += 1
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    cell.refused_after.append(time.perf_counter() - began)
            else:
                cell.latencies.append(time.perf_counter() - began)

        asked = []
        at = began = time.perf_counter()
        while at < began + cell.seconds:
            at += rng.expovariate(rate)
            if (left := at - time.perf_counter()) > 0.0:
                await asyncio.sleep(left)
            asked.append(asyncio.create_task(one(rng.choice(DEADLINES) * full_s)))
        cell.sent = len(asked)
        await asyncio.gather(*asked)


def executed(server: Running, model: str) -> int:
    """Rows that the model's engine has executed."""
    return sum(rows * count for rows, count in batches(server, model).items())


def measure(seconds: float, console: Console) -> tuple[float, list[Cell]]:
    """Latency of an idle server that does not batch, and all cells."""
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, policy in POLICIES.items():
            batching = f"dynamic_batching {{ policy: {policy} }}"
            config = f"max_batch_size: {MAX_ROWS} {ONE_ENGINE} {batching}"
            write_matmul_model(folder / model, width=WIDTH, layers=LAYERS, config=config)
        with kairos(folder) as server:
            uvloop.run(capacity(server, "deadline", 1.0))
            idle = uvloop.run(idle_latency(server, "fifo", 60))
            most = uvloop.run(capacity(server, "fifo", CAPACITY_S))
            for load in LOADS:
                pair = [Cell(model, load, seconds) for model in POLICIES]
                for cell in pair:
                    before = executed(server, cell.policy)
                    uvloop.run(open_loop(server, cell, load * most, MAX_ROWS / most))
                    cell.executed = executed(server, cell.policy) - before
                after = uvloop.run(capacity(server, "fifo", CAPACITY_S))
                for cell in pair:
                    cell.capacity = (most + after) / 2
                    console.print(row(cell), highlight=False)
                most = after
                cells += pair
    return idle, cells


def row(cell: Cell) -> str:
    """A line of the table."""
    told = f"{statistics.median(cell.refused_after) * 1e3:.1f} ms" if cell.refused_after else ""
    middle = f"{statistics.median(cell.latencies) * 1e3:.1f} ms" if cell.latencies else ""
    codes = ", ".join(f"{count} {name}" for name, count in sorted(cell.codes.items()))
    fields = [
        f"{cell.load:g}", cell.policy, f"{cell.sent / cell.seconds:.0f}/s", f"**{cell.goodput / cell.capacity:.3f}**",
        f"{cell.waste:.1%}", middle, told, codes,
    ]  # fmt: skip
    return f"| {' | '.join(fields)} |"


def report(idle: float, cells: list[Cell]) -> str:
    """Markdown."""
    half = next(cell for cell in cells if cell.policy == "deadline" and cell.load == 0.5)
    most = statistics.median(cell.capacity for cell in cells)
    full_ms = MAX_ROWS / most * 1e3
    deadlines = ", ".join(f"{times * full_ms:.0f}" for times in DEADLINES)
    setting = (
        f"One engine with one thread, batches of up to {MAX_ROWS} rows: capacity {most:.0f} answers/s "
        f"({full_ms:.1f} ms a full batch). Deadlines: {deadlines} ms, a third of the calls each."
    )
    median = statistics.median(half.latencies)
    calm = (
        f"One call at a time to the idle server takes {idle * 1e3:.1f} ms; at half load the median is "
        f"{median * 1e3:.1f} ms ({median / idle:.2f} times)."
    )
    return "\n".join(
        [
            f"Machine: {machine()}, shared with the client.",
            "",
            setting,
            "",
            "| load | policy | asked | goodput / capacity | rows in vain | p50 in time | refused after | other ends |",
            "|---|---|---|---|---|---|---|---|",
            *(row(cell) for cell in cells),
            "",
            calm,
            "",
            "![Goodput over gRPC](images/deadlines-grpc.png)",
        ]
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each cell")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/performance.md")
    options = parser.parse_args()
    idle, cells = measure(options.seconds, Console(width=160))
    text = report(idle, cells)
    print(text)
    if options.write:
        lines = {
            name: [(cell.load, cell.goodput / cell.capacity) for cell in cells if cell.policy == name]
            for name in POLICIES
        }
        bound = [(load, min(1.0, load)) for load in LOADS]
        panel = Panel("answered in time over gRPC, by load", lines, bound)
        draw(IMAGE, [panel], "load (1 = measured capacity)", "goodput / capacity", top=1.1)
        marked = re.compile(r"(<!-- deadlines benchmark -->\n).*(<!-- /deadlines benchmark -->)", re.DOTALL)
        PAGE.write_text(marked.sub(lambda found: f"{found[1]}{text}\n{found[2]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
