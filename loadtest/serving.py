"""What serving costs: engine throughput against the bare engine, and server CPU per request.

    python loadtest/serving.py [--markdown FILE]

Two questions, each answered as a ratio within one run, since the machine may be busy with other things:

1. A model whose single execution takes at least 5 ms, 64 callers: how much of the bare engine's limit arrives? The
   limit is ONNX Runtime alone in a process of its own, one thread, at the very batch sizes that the server formed.
2. A tiny model: how much CPU does the server use for each request, next to a grpc.aio server that only echoes?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table
from support import READY, ROOT, Running, kairos, machine, process, write_matmul_model

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

METHOD = "/inference.GRPCInferenceService/ModelInfer"
HEAVY_WIDTH, HEAVY_LAYERS = 2048, 12
ONE_ENGINE = "instance_group { count: 1 } parameters { key: 'intra_op_thread_count' value { string_value: '1' } }"

# Runs in a process of its own, so that nothing of the server's is in the way.
BARE = """
import sys, time, json, numpy, onnxruntime
settings = onnxruntime.SessionOptions(); settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], settings)
sizes = json.loads(sys.argv[2]); seconds = {}
for rows in sizes:
    inputs = {"x": numpy.random.default_rng(0).standard_normal((rows, int(sys.argv[3]))).astype("f4")}
    session.run(None, inputs); best = []
    for _ in range(5):
        began = time.perf_counter(); session.run(None, inputs); best.append(time.perf_counter() - began)
    seconds[rows] = sorted(best)[2]
print(json.dumps(seconds))
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What a closed loop of callers saw."""

    callers: int
    requests: int
    seconds: float
    cpu_us: float
    """Server CPU per request, microseconds."""


async def closed_loop(server: Running, body: bytes, callers: int, requests: int) -> Load:
    """So many callers, each sending its next request when it has the answer to the last."""
    async with grpc.aio.insecure_channel(server.url) as channel:
        call = channel.unary_unary(METHOD)
        await call(body)
        left = requests

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await call(body, timeout=60)

        cpu_before, began = server.cpu_s(), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        seconds, cpu_s = time.perf_counter() - began, server.cpu_s() - cpu_before
    return Load(callers, requests, seconds, cpu_s / requests * 1e6)


def request(model: str, width: int) -> bytes:
    """A serialised request of one row."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, width])
    message.raw_input_contents.append(np.linspace(-1, 1, width, dtype=np.float32).tobytes())
    return message.SerializeToString()


def batches(server: Running, model: str) -> dict[int, int]:
    """How many batches of each size the server has formed."""
    with grpc.insecure_channel(server.url) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelStatistics(pb.ModelStatisticsRequest(name=model))
    return {batch.batch_size: batch.compute_infer.count for batch in answer.model_stats[0].batch_stats}


def executing_s(server: Running, model: str) -> float:
    """Seconds that the model's engine has spent executing."""
    with grpc.insecure_channel(server.url) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelStatistics(pb.ModelStatisticsRequest(name=model))
    return sum(batch.compute_infer.ns for batch in answer.model_stats[0].batch_stats) / 1e9


@dataclass(frozen=True, slots=True)
class Round:
    """One comparison of the server with the bare engine."""

    served: float
    """Rows a second through the server."""
    bare: float
    """Rows a second of the engine alone, at the batch sizes that the server formed."""
    busy: float
    """Share of the time that the server's engine was executing."""
    mean_batch: float
    single_s: float
    """One execution of one row, bare."""

    @property
    def ratio(self) -> float:
        return self.served / self.bare


def engine_rounds(folder: Path, requests: int, rounds: int) -> list[Round]:
    """Server and bare engine in turns, so that both see the same machine."""
    config = f"max_batch_size: 64 {ONE_ENGINE}"
    write_matmul_model(folder / "heavy", width=HEAVY_WIDTH, layers=HEAVY_LAYERS, config=config)
    found = []
    with kairos(folder) as server:
        before: dict[int, int] = {}
        for _ in range(rounds):
            executed_s = executing_s(server, "heavy")
            load = asyncio.run(closed_loop(server, request("heavy", HEAVY_WIDTH), 64, requests))
            busy = (executing_s(server, "heavy") - executed_s) / load.seconds
            after = batches(server, "heavy")
            formed = {rows: count - before.get(rows, 0) for rows, count in after.items() if count > before.get(rows, 0)}
            before = after
            seconds = bare_seconds(folder / "heavy/1/model.onnx", sorted({1, *formed}))
            rows = sum(size * count for size, count in formed.items())
            bare = rows / sum(seconds[size] * count for size, count in formed.items())
            found.append(Round(load.requests / load.seconds, bare, busy, rows / sum(formed.values()), seconds[1]))
    return found


def bare_seconds(model: Path, sizes: Sequence[int]) -> dict[int, float]:
    """Median seconds of an execution by rows, in a process of its own."""
    command = [sys.executable, "-c", BARE, str(model), json.dumps(sizes), str(HEAVY_WIDTH)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {int(rows): took for rows, took in json.loads(output).items()}


def cpu_per_request(folder: Path, callers: Sequence[int], requests: int) -> dict[str, list[Load]]:
    """Closed loops against Kairos on both transports, and against the bare echo."""
    write_matmul_model(folder / "tiny", width=16, layers=2, config="max_batch_size: 64")
    body = request("tiny", 16)
    echo = process([sys.executable, str(ROOT / "loadtest/bare_echo.py")], READY)
    servers = {
        "grpc.aio, bare echo": echo,
        "kairos, http2": kairos(folder, "--transport", "http2"),
        "kairos, grpcio": kairos(folder, "--transport", "grpcio"),
    }
    found = {}
    for name, starting in servers.items():
        with starting as server:
            asyncio.run(closed_loop(server, body, 8, requests // 10))
            found[name] = [asyncio.run(closed_loop(server, body, count, requests)) for count in callers]
    return found


def main() -> None:
    """Measure, print, and write the section of docs/performance.md if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="requests a cell on the tiny model")
    parser.add_argument("--heavy-requests", type=int, default=2_000, help="requests on the 5 ms model")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as heavy, tempfile.TemporaryDirectory() as tiny:
        with console.status("engine throughput through the server ..."):
            rounds = engine_rounds(Path(heavy), arguments.heavy_requests, 3)
        with console.status("server CPU per request ..."):
            cells = cpu_per_request(Path(tiny), (1, 8, 64), arguments.requests)
    middle = sorted(rounds, key=lambda each: each.ratio)[len(rounds) // 2]
    lines = [
        f"Machine: {machine()}.",
        "",
        f"| engine throughput, 64 callers, median of {len(rounds)} rounds | |",
        "|---|---|",
        f"| one execution of one row, bare | {middle.single_s * 1e3:.1f} ms |",
        f"| mean batch formed | {middle.mean_batch:.1f} rows |",
        f"| bare engine at the batch sizes formed | {middle.bare:.0f} rows/s |",
        f"| through the server | {middle.served:.0f} rows/s |",
        f"| **ratio** | **{middle.ratio:.3f}** ({', '.join(f'{each.ratio:.3f}' for each in rounds)}) |",
        f"| share of the time the server's engine was executing | {middle.busy:.3f} |",
        "",
        "| server CPU per request, tiny model | 1 caller | 8 callers | 64 callers |",
        "|---|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(f"{cell.cpu_us:.0f} us ({cell.requests / cell.seconds:,.0f}/s)" for cell in row)
            + " |"
            for name, row in cells.items()
        ),
    ]
    table = Table("server", "callers", "answers/s", "CPU us/request", "against the bare echo")
    for name, row in cells.items():
        for cell, base in zip(row, cells["grpc.aio, bare echo"], strict=True):
            rate = f"{cell.requests / cell.seconds:,.0f}"
            table.add_row(name, str(cell.callers), rate, f"{cell.cpu_us:.0f}", f"{cell.cpu_us / base.cpu_us:.2f}")
    console.print(table)
    for each in rounds:
        console.print(
            f"engine throughput: {each.served:.0f} of {each.bare:.0f} rows/s = {each.ratio:.3f}, "
            f"executing {each.busy:.1%} of the time, batches of {each.mean_batch:.1f}",
            highlight=False,
        )
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
