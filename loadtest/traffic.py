"""What long runs share: callers that count every request, and a watch over the server's memory and handles."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

WIDTH: Final = 64
MODEL: Final = "mlp"
CONFIG: Final = (
    "max_batch_size: 16\ninstance_group { count: 1 kind: KIND_CPU }\n"
    'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
)


@dataclass(slots=True)
class Tally:
    """What became of requests; `sent` is the sum of all others once everybody has left."""

    sent: int = 0
    answered: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """Those that were not answered, by status code, `CANCELLED` by the caller's own wish included."""
    texts: Counter[str] = field(default_factory=Counter)
    """What the statuses said."""

    @property
    def lost(self) -> int:
        """Requests that ended otherwise than by an answer."""
        return sum(self.ends.values())

    def failed(self, error: grpc.aio.AioRpcError) -> None:
        """Note how a request ended."""
        self.ends[error.code().name] += 1
        self.texts[str(error.details())[:100]] += 1

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return {"sent": self.sent, "answered": self.answered, "ends": dict(self.ends), "texts": dict(self.texts)}


def request(rows: int = 1, model: str = MODEL, width: int = WIDTH) -> pb.ModelInferRequest:
    """Rows of ones."""
    body = np.ones((rows, width), np.float32).tobytes()
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[body])
    message.inputs.add(name="x", datatype="FP32", shape=[rows, width])
    return message


def channel(url: str) -> grpc.aio.Channel:
    """A connection of its own, without any retry but gRPC's transparent one."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    options += [("grpc.max_send_message_length", -1)]
    return grpc.aio.insecure_channel(url, options=options)


async def call_until(
    url: str, stop: asyncio.Event, tally: Tally, *, pause_s: float = 0.0, rows: int = 1, timeout_s: float = 30.0
) -> None:
    """One caller: a request at a time until `stop`."""
    message = request(rows)
    async with channel(url) as connection:
        stub = GRPCInferenceServiceStub(connection)  # type: ignore[no-untyped-call]
        while not stop.is_set():
            tally.sent += 1
            try:
                await stub.ModelInfer(message, timeout=timeout_s)
                tally.answered += 1
            except grpc.aio.AioRpcError as error:
                tally.failed(error)
            if pause_s:
                await asyncio.sleep(pause_s)


@dataclass(frozen=True, slots=True)
class Sample:
    """A server process at one time."""

    at_s: float
    resident_mb: float
    descriptors: int
    threads: int
    tasks: int
    """Of the event loop; -1 when /metrics did not answer."""


def look(pid: int, metrics_url: str | None, began: float) -> Sample:
    """One look at a process."""
    proc = Path(f"/proc/{pid}")
    status = (proc / "status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    threads = int(status.split("Threads:")[1].split()[0])
    tasks = -1
    if metrics_url is not None:
        try:
            with urllib.request.urlopen(metrics_url, timeout=5) as page:
                text = page.read().decode()
            tasks = int(float(next(line.split()[1] for line in text.splitlines() if line.startswith("kairos_tasks "))))
        except (OSError, StopIteration):
            tasks = -1
    return Sample(time.monotonic() - began, resident, len(list((proc / "fd").iterdir())), threads, tasks)


async def watch(
    pid: int, metrics_url: str | None, stop: asyncio.Event, samples: list[Sample], interval_s: float = 1.0
) -> None:
    """Look again and again, until `stop`."""
    began = time.monotonic()
    while not stop.is_set():
        samples.append(await asyncio.to_thread(look, pid, metrics_url, began))
        try:
            async with asyncio.timeout(interval_s):
                await stop.wait()
        except TimeoutError:
            continue


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """How much a value grows an hour: the median slope between all pairs (Theil, Sen), which ignores outliers.

    The first third is left out: caches fill, and the allocator finds its size.
    """
    settled = samples[len(samples) // 3 :]
    pairs = [(a, b) for position, a in enumerate(settled) for b in settled[position + 1 :]]
    if len(pairs) > 20_000:
        pairs = random.Random(0).sample(pairs, 20_000)
    slopes = sorted((value(b) - value(a)) / (b.at_s - a.at_s) for a, b in pairs if b.at_s > a.at_s)
    return 3600 * slopes[len(slopes) // 2] if slopes else 0.0


def draw(path: Path, title: str, samples: Sequence[Sample], bounds: Sequence[tuple[str, float]] = ()) -> None:
    """Memory, descriptors, threads and tasks over time; `bounds` are levels of memory worth a line."""
    import matplotlib as mpl  # noqa: PLC0415  (an extra: needed for pictures only)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    at = [sample.at_s / 60 for sample in samples]
    figure, (memory, handles) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    memory.plot(at, [sample.resident_mb for sample in samples], color="tab:blue", label="resident")
    for name, level in bounds:
        memory.axhline(level, color="tab:red", linestyle="--", linewidth=1, label=name)
    memory.set(ylabel="MiB", title=title)
    memory.set_ylim(bottom=0)
    memory.legend(loc="lower right")
    for name in ("descriptors", "threads", "tasks"):
        handles.plot(at, [getattr(sample, name) for sample in samples], label=name)
    handles.set(xlabel="minutes", ylabel="count")
    handles.set_ylim(bottom=0)
    handles.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(path: Path | None, **figures: object) -> None:
    """Print the figures as JSON, and write them beside the picture."""
    text = json.dumps(figures, indent=2, default=asdict)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
