"""Puts held-out handwritten digits through a running server and says how it did.

    python examples/demo.py --url 127.0.0.1:8001

First one call after another, then many at once, every call with a deadline of its own; all through Triton's
stock client. The batches that the server formed are read from its statistics. Exits with 1 when a call failed
otherwise than by missing its deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from rich import box
from rich.console import Console
from rich.table import Table

HELD_OUT = Path(__file__).resolve().parent / "digits" / "held_out.npz"
MODEL = "digits"
DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"

Samples = list[tuple[np.ndarray, int]]
"""Images [1,8,8] and what is written on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to send."""

    calls: int = 2000
    """Concurrent calls in all; the images are repeated as often as that needs."""
    callers: int = 32
    """Concurrent calls in flight at once."""
    deadline_s: float = 0.1
    """Deadline of each call, from its sending; the client gives up then and the server is told so."""


@dataclass(frozen=True, slots=True)
class Call:
    """How one call ended: an answer when `error` is empty."""

    seconds: float
    right: bool = False
    error: str = ""
    late: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """What came of one way of calling."""

    name: str
    seconds: float
    calls: tuple[Call, ...]

    @property
    def answered(self) -> list[Call]:
        return [call for call in self.calls if not call.error]

    @property
    def accuracy(self) -> float:
        """Share of the answers that were right."""
        return sum(call.right for call in self.calls) / max(1, len(self.answered))

    def share_within(self, seconds: float) -> float:
        """Share of all calls whose answer was here by then."""
        return sum(call.seconds <= seconds for call in self.answered) / len(self.calls)

    @property
    def calls_per_s(self) -> float:
        """Answers a second."""
        return len(self.answered) / self.seconds

    def percentile_s(self, percent: float) -> float:
        """Of the time to an answer; not a number when there was none."""
        times = [call.seconds for call in self.answered]
        return float(np.percentile(times, percent)) if times else float("nan")

    @property
    def failures(self) -> list[str]:
        """Texts of the errors that were not missed deadlines."""
        return [call.error for call in self.calls if call.error and not call.late]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the demonstration saw."""

    server: str
    plan: Plan
    alone: Phase
    together: Phase
    batches: dict[int, int]
    """How often the model ran with how many rows, while the concurrent calls lasted."""


def request(image: np.ndarray, plan: Plan) -> dict[str, object]:
    """Arguments of `infer`, which both of Triton's Python clients share."""
    tensor = triton.InferInput("image", [1, *image.shape], "FP32")
    tensor.set_data_from_numpy(image[None])
    return {
        "model_name": MODEL,
        "inputs": [tensor],
        "outputs": [triton.InferRequestedOutput("probabilities")],
        "client_timeout": plan.deadline_s,
    }


def answered(result: triton.InferResult, label: int, sent: float) -> Call:
    return Call(time.perf_counter() - sent, right=result.as_numpy("probabilities").argmax() == label)


def failed(error: triton.InferenceServerException, sent: float) -> Call:
    return Call(time.perf_counter() - sent, error=str(error), late=error.status() == DEADLINE_EXCEEDED)


def call_alone(client: triton.InferenceServerClient, samples: Samples, plan: Plan) -> Phase:
    """Send every image once, each after the answer to the last."""
    calls = []
    started = time.perf_counter()
    for image, label in samples:
        sent = time.perf_counter()
        try:
            calls.append(answered(client.infer(**request(image, plan)), label, sent))
        except triton.InferenceServerException as error:
            calls.append(failed(error, sent))
    return Phase("one by one", time.perf_counter() - started, tuple(calls))


async def call_together(url: str, samples: Samples, plan: Plan) -> Phase:
    """Keep `plan.callers` calls in flight until `plan.calls` have ended."""
    work = islice(cycle(samples), plan.calls)
    calls: list[Call] = []

    async def call_in_turn(client: triton_aio.InferenceServerClient) -> None:
        for image, label in work:
            sent = time.perf_counter()
            try:
                calls.append(answered(await client.infer(**request(image, plan)), label, sent))
            except triton.InferenceServerException as error:
                calls.append(failed(error, sent))

    async with triton_aio.InferenceServerClient(url) as client:
        await client.is_server_ready()  # connects, so that no deadline pays for it
        started = time.perf_counter()
        await asyncio.gather(*(call_in_turn(client) for _ in range(plan.callers)))
        return Phase(f"{plan.callers} at once", time.perf_counter() - started, tuple(calls))


def executions(client: triton.InferenceServerClient) -> dict[int, int]:
    """How often the model has run with how many rows, all its versions together."""
    counted: dict[int, int] = {}
    for version in client.get_inference_statistics(MODEL).model_stats:
        for batch in version.batch_stats:
            counted[batch.batch_size] = counted.get(batch.batch_size, 0) + batch.compute_infer.count
    return counted


def measure(url: str, plan: Plan) -> Report:
    """Run both phases against the server at `url`; InferenceServerException when there is none."""
    with np.load(HELD_OUT, allow_pickle=False) as held_out:
        samples = list(zip(held_out["images"].astype(np.float32), held_out["labels"].tolist(), strict=True))
    with triton.InferenceServerClient(url) as client:
        server = client.get_server_metadata()
        alone = call_alone(client, samples, plan)
        before = executions(client)
        together = asyncio.run(call_together(url, samples, plan))
        after = executions(client)
    return Report(
        server=f"{server.name} {server.version}",
        plan=plan,
        alone=alone,
        together=together,
        batches={rows: count - before.get(rows, 0) for rows, count in after.items()},
    )


def table(title: str, *columns: tuple[str, Literal["left", "right"]]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading, justify in columns:
        made.add_column(heading, justify=justify, no_wrap=True)
    return made


def phases_table(report: Report) -> Table:
    deadline_s = report.plan.deadline_s
    headings = ("correct", "answers/s", "p50", "p99", f"in {deadline_s * 1e3:g} ms")
    phases = table(
        f"{report.server}: handwritten digits that the model has never seen",
        ("calls", "left"),
        *((heading, "right") for heading in headings),
    )
    for phase in (report.alone, report.together):
        phases.add_row(
            f"{len(phase.calls):,}, {phase.name}",
            f"{phase.accuracy:.2%}",
            f"{phase.calls_per_s:,.0f}",
            f"{phase.percentile_s(50) * 1e3:.2f} ms",
            f"{phase.percentile_s(99) * 1e3:.2f} ms",
            f"{phase.share_within(deadline_s):.1%}",
        )
    return phases


def batches_table(report: Report) -> Table:
    """Show executions by rows, in classes whose upper ends are powers of two."""
    batches = table(
        f"Batches that the server formed from {report.together.name}",
        ("rows", "right"),
        ("executions", "right"),
        ("share of all rows", "left"),
    )
    classes: dict[int, list[tuple[int, int]]] = {}
    for rows, count in sorted(report.batches.items()):
        if count:
            classes.setdefault((rows - 1).bit_length(), []).append((rows, count))
    total = sum(rows * count for rows, count in report.batches.items())
    for bits, inside in classes.items():
        low, high = (1 << bits) // 2 + 1, 1 << bits
        share = sum(rows * count for rows, count in inside) / total
        batches.add_row(
            f"{low}-{high}" if low < high else str(high),
            f"{sum(count for _, count in inside):,}",
            f"{'█' * round(40 * share)} {share:.1%}",
        )
    return batches


def main() -> None:
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=plan.calls, help="concurrent calls in all (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=plan.callers, help="calls in flight (default: %(default)s)")
    parser.add_argument("--deadline-ms", type=float, default=plan.deadline_s * 1e3, help="(default: %(default)s)")
    chosen = parser.parse_args()
    plan = Plan(calls=chosen.calls, callers=chosen.callers, deadline_s=chosen.deadline_ms / 1e3)
    try:
        report = measure(chosen.url, plan)
    except triton.InferenceServerException as error:
        sys.exit(str(error))
    console = Console()
    console.print(phases_table(report), batches_table(report))
    if failures := report.alone.failures + report.together.failures:
        sys.exit(f"{len(failures):,} calls failed; the first: {failures[0]}")


if __name__ == "__main__":
    main()
