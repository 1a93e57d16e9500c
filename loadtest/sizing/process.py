"""A server under measurement: its CPU, its event loop's share of it and its memory, read from /proc."""

from __future__ import annotations

import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from loadtest.load.once import asking, run_once
from loadtest.load.plan import Encode, make
from loadtest.load.scenario import Scenario
from loadtest.sizing.study import Load
from loadtest.support import Running, process
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

READY: Final = re.compile(r"kairos is ready: gRPC (?P<url>\S+?), metrics port (?:(?P<metrics>\d+)|None)")
_ANSWERED: Final = "OK"
_COMMAND: Final = (sys.executable, "-m", "server", "serve")


class Look(NamedTuple):
    """Counters of a server at one moment."""

    cpu_s: float
    loop_s: float


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    running: Running

    @property
    def url(self) -> str:
        return self.running.url

    def look(self) -> Look:
        """CPU of all its threads and of its event loop, which is the first of them, in seconds."""
        first = str(self.running.pid)
        used = {each.name: _cpu_s(each) for each in Path(f"/proc/{first}/task").iterdir()}
        return Look(sum(used.values()), used[first])

    def rss_kib(self) -> float:
        """Memory in use, that shared with other processes included."""
        return self._rollup("Rss")

    def pss_kib(self) -> float:
        """Memory in use, of what is shared a fair part."""
        return self._rollup("Pss")

    def _rollup(self, name: str) -> float:
        text = Path(f"/proc/{self.running.pid}/smaps_rollup").read_text()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")))

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.running.pid}/task").iterdir()))

    def batches(self) -> tuple[int, int]:
        """Rows and executions so far, all models together."""
        with grpc.insecure_channel(self.url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            told = stub.ModelStatistics(pb.ModelStatisticsRequest())
        sizes = [
            (each.batch_size, each.compute_infer.count) for model in told.model_stats for each in model.batch_stats
        ]
        return sum(rows * count for rows, count in sizes), sum(count for _, count in sizes)

    def scrape(self) -> tuple[float, float]:
        """Milliseconds and KiB of one look at /metrics."""
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.running.metrics_port}/metrics", timeout=30) as page:
            size = len(page.read())
        return (time.perf_counter() - began) * 1e3, size / 1024


def _cpu_s(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0.0


@contextmanager
def kairos(repository: Path, *flags: str, port: int = 0) -> Iterator[Server]:
    """A server on loopback ports that finds no optimised graphs and leaves nothing behind."""
    with tempfile.TemporaryDirectory() as name:
        command = [
            *_COMMAND, "--model-repository", str(repository), "--grpc-port", str(port), "--metrics-port", "0",
            "--log-format", "text", "--log-file", f"{name}/log", "--cache-dir", f"{name}/cache",
            "--state-dir", f"{name}/state", *flags,
        ]  # fmt: skip
        with process(command, READY) as running:
            yield Server(running)


def load(
    part: str, x: float, servers: Sequence[Server], scenario: Scenario, *, name: str = "", encode: Encode | None = None
) -> Load:
    """Run the scenario against the servers, which share its address, and say what it cost them."""
    plan = make(scenario, asking(scenario.address), encode)
    alone = servers[0] if len(servers) == 1 else None
    batches, before = alone.batches() if alone else None, [server.look() for server in servers]
    result = run_once(scenario, plan=plan)
    used = [
        Look(*(now - then for now, then in zip(server.look(), was, strict=True)))
        for server, was in zip(servers, before, strict=True)
    ]
    rows_per_batch = None
    if alone and batches:
        rows, executions = (now - then for now, then in zip(alone.batches(), batches, strict=True))
        rows_per_batch = rows / max(1, executions)
    sent, cpu_s, latency = max(1, result["sent"]), sum(each.cpu_s for each in used), result["latency_ms"]
    return Load(
        part=part, name=name, x=x, answers_per_s=result["answers_per_s"], cpu_us=cpu_s / sent * 1e6,
        loop_us=sum(each.loop_s for each in used) / sent * 1e6, rows_per_batch=rows_per_batch,
        p50_ms=latency.get("p50"), p99_ms=latency.get("p99"),
        refused=1.0 - result["codes"].get(_ANSWERED, 0) / sent,
        least_share=min(each.cpu_s for each in used) / max(cpu_s, 1e-9) * len(used), faults=result["invalid_because"],
    )  # fmt: skip
