"""Goodput under overload, for real: open-loop Poisson requests over gRPC with true client deadlines.

    python -m loadtest.deadlines [--seconds 6] [--write]

One server, one model of at least 5 ms an execution under two names: with the `deadline` policy, and with `fifo`.
Its capacity is what a closed loop of callers without deadlines gets through, measured before and after each load.
Then requests arrive at 0.5 to 2.5 times that, whatever becomes of those before them; a third each has a short, a middle
and a long deadline. Goodput counts the answers that reached the client in time, from the moment they were due, as a
share of capacity. A second model, whose rows cost as much together as alone, shows what half of its load adds to the
latency of an idle server. `--write` puts the figures and the chart into docs/performance.md.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from rich.console import Console

from loadtest.load.client import Body, Http2Client
from loadtest.load.generator import ClosedLoop, OpenLoop, Record, Shot, run
from loadtest.marks import put
from loadtest.support import ROOT, Running, kairos, machine, write_matmul_model
from server.cli.charts import Panel, draw
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

WIDTH, LAYERS, MAX_ROWS = 2048, 12, 8
LOADS = (0.5, 1.0, 1.5, 2.5)
POLICIES = {"deadline": "DEADLINE", "fifo": "FIFO"}
CAPACITY_S = 2.0
DEADLINES = (4, 8, 16)
"""Times a full execution."""
METHOD = "/inference.GRPCInferenceService/ModelInfer"
ONE_ENGINE = "instance_group { count: 1 } parameters { key: 'intra_op_thread_count' value { string_value: '1' } }"
OK = 0
NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
DRAIN_S = 5.0
SLIP_S = 0.005
CALM_SIZE, CALM_CHANNELS, CALM_LAYERS, CALM_ROUNDS = 48, 32, 10, 5
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


def request(model: str, shape: Sequence[int]) -> bytes:
    """A serialised request of one row."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, *shape])
    message.raw_input_contents.append(np.linspace(-1, 1, math.prod(shape), dtype=np.float32).tobytes())
    return message.SerializeToString()


def write_convolution_model(folder: Path, config: str) -> None:
    """Convolutions on a picture: a row keeps the processor busy by itself, so that batches save nothing."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(CALM_LAYERS):
        weight = rng.standard_normal((CALM_CHANNELS, CALM_CHANNELS, 3, 3)).astype(np.float32) / (3 * CALM_CHANNELS**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        names = ["x" if layer == 0 else f"r{layer - 1}", f"w{layer}"]
        nodes.append(helper.make_node("Conv", names, [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], ["y" if layer == CALM_LAYERS - 1 else f"r{layer}"]))
    shape: list[str | int | None] = ["N", CALM_CHANNELS, CALM_SIZE, CALM_SIZE]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, folder.name, tensors[:1], tensors[1:], weights)
    (folder / "1").mkdir(parents=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(made, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(config)


class Loader:
    """Calls to one model, from a client that costs the machine little beside the server."""

    def __init__(self, server: Running, model: str, body: bytes) -> None:
        self.model = model
        self._client = Http2Client(server.url, [Body(METHOD, body)], connections=2)

    def closed(self, callers: int, seconds: float) -> tuple[float, float]:
        """Answers a second of a closed loop of callers without deadlines, and their median seconds."""
        record = run(self._client, ClosedLoop([Shot(0.0, 0)], callers, seconds), self._client.now(), DRAIN_S)
        answered = [latency for latency, code in zip(record.latency, record.code, strict=True) if code == OK]
        return len(answered) / seconds, statistics.median(answered)

    def opened(self, rate: float, seconds: float, deadlines_s: Sequence[float], seed: int) -> Record:
        """Poisson arrivals at `rate`; nobody waits for anybody, and each of the deadlines is as frequent."""
        rng = random.Random(seed)
        shots, at = [], 0.0
        while (at := at + rng.expovariate(rate)) < seconds:
            shots.append(Shot(at, 0, deadline_s=rng.choice(deadlines_s)))
        record = run(self._client, OpenLoop(shots), self._client.now(), DRAIN_S)
        if (slip := statistics.quantiles(record.slip, n=100)[-1]) > SLIP_S:
            print(f"the client was late: one call in a hundred started {slip * 1e3:.1f} ms after its time or later")
        return record


def open_loop(loader: Loader, cell: Cell, rate: float, full_s: float) -> None:
    """Fill the cell."""
    deadlines_s = [times * full_s for times in DEADLINES]
    record = loader.opened(rate, cell.seconds, deadlines_s, round(cell.load * 100))
    cell.sent = len(record)
    for latency, code, deadline_s in zip(record.latency, record.code, record.deadline_s, strict=True):
        name = NAMES.get(code, str(code))
        if code == OK and latency <= deadline_s:
            cell.latencies.append(latency)
        else:
            cell.codes["late" if code == OK else name] += 1
        if name == "RESOURCE_EXHAUSTED":
            cell.refused_after.append(latency)


def executed(server: Running, model: str) -> int:
    """Rows that the model's engine has executed."""
    with grpc.insecure_channel(server.url) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model))
    return sum(batch.batch_size * batch.compute_infer.count for batch in answer.model_stats[0].batch_stats)


def measure(seconds: float, console: Console) -> list[Cell]:
    """All cells."""
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, policy in POLICIES.items():
            batching = f"dynamic_batching {{ policy: {policy} }}"
            config = f"max_batch_size: {MAX_ROWS} {ONE_ENGINE} {batching}"
            write_matmul_model(folder / model, width=WIDTH, layers=LAYERS, config=config)
        with kairos(folder) as server:
            loaders = {model: Loader(server, model, request(model, [WIDTH])) for model in POLICIES}
            fifo = loaders["fifo"]
            for loader in loaders.values():
                loader.closed(4 * MAX_ROWS, 1.0)
            most, _ = fifo.closed(4 * MAX_ROWS, CAPACITY_S)
            for load in LOADS:
                pair = [Cell(model, load, seconds) for model in POLICIES]
                for cell in pair:
                    before = executed(server, cell.policy)
                    open_loop(loaders[cell.policy], cell, load * most, MAX_ROWS / most)
                    cell.executed = executed(server, cell.policy) - before
                after, _ = fifo.closed(4 * MAX_ROWS, CAPACITY_S)
                for cell in pair:
                    cell.capacity = (most + after) / 2
                    console.print(row(cell), highlight=False)
                most = after
                cells += pair
    return cells


def calm(seconds: float) -> str:
    """What half of its load adds to the latency of a server whose model gains nothing from batches."""
    ratios, lines = [], []
    with tempfile.TemporaryDirectory() as name:
        config = f"max_batch_size: {MAX_ROWS} {ONE_ENGINE}"
        write_convolution_model(Path(name) / "even", config)
        body = request("even", [CALM_CHANNELS, CALM_SIZE, CALM_SIZE])
        with kairos(Path(name)) as server:
            loader = Loader(server, "even", body)
            loader.closed(1, 1.0)
            for seed in range(CALM_ROUNDS):
                _, idle = loader.closed(1, seconds / 3)
                most, _ = loader.closed(4 * MAX_ROWS, seconds / 3)
                record = loader.opened(most / 2, seconds, [math.inf], seed)
                half = statistics.median(record.latency)
                ratios.append(half / idle)
                lines.append((idle, most, half))
    idle, most, half = sorted(lines, key=lambda line: line[2] / line[0])[CALM_ROUNDS // 2]
    return (
        f"A model whose rows each cost as much in a batch as alone, one engine: a single call to the idle server takes "
        f"{idle * 1e3:.1f} ms, at half of the {most:.0f} answers/s that it can give the median is {half * 1e3:.1f} ms, "
        f"{statistics.median(ratios):.2f} times (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})."
    )


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


def report(cells: list[Cell], calmly: str) -> str:
    """Markdown."""
    most = statistics.median(cell.capacity for cell in cells)
    full_ms = MAX_ROWS / most * 1e3
    deadlines = ", ".join(f"{times * full_ms:.0f}" for times in DEADLINES)
    setting = (
        f"One engine with one thread, batches of up to {MAX_ROWS} rows: capacity {most:.0f} answers/s "
        f"({full_ms:.1f} ms a full batch). Deadlines: {deadlines} ms, a third of the calls each."
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
            calmly,
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
    cells = measure(options.seconds, Console(width=160))
    text = report(cells, calm(options.seconds))
    print(text)
    if options.write:
        lines = {
            name: [(cell.load, cell.goodput / cell.capacity) for cell in cells if cell.policy == name]
            for name in POLICIES
        }
        bound = [(load, min(1.0, load)) for load in LOADS]
        panel = Panel("answered in time over gRPC, by load", lines, bound)
        draw(IMAGE, [panel], "load (1 = measured capacity)", "goodput / capacity", top=1.1)
        PAGE.write_text(put(PAGE.read_text(), "deadlines benchmark", text))


if __name__ == "__main__":
    main()
