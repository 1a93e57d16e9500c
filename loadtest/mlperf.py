"""MLPerf LoadGen over the network: the Offline and Server scenarios, and Server/Offline, the score of a scheduler.

    python -m loadtest.mlperf --address 127.0.0.1:8001 --model digits --bound-ms 15

MLCommons' own LoadGen decides when queries are issued and judges the result; this is the system under test, which
passes them on by gRPC. Offline: all samples at once, answered as fast as it goes. Server: a Poisson process, of which
99 % must be answered within the bound; the highest rate that LoadGen calls VALID is searched for.
Runs here are short. The rules ask for 600 seconds and more and for accuracy runs: nothing here is a submission.
"""

from __future__ import annotations

import array
import math
import queue
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.console import Console
from rich.table import Table

from loadtest.load.client import Body, Http2Client
from loadtest.load.once import asking
from loadtest.load.plan import infer_body, infer_request
from loadtest.load.scenario import Kind, ScenarioError

MISSING: Final = "MLPerf LoadGen is missing: pip install 'kairos[load]'"
PERCENTILE: Final = 99
_SAMPLES: Final = 1024
"""Different samples; LoadGen draws from them."""
_TURN_S: Final = 0.0003
"""How long a query may wait for the client's thread to look: LoadGen issues from a thread of its own."""
_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What LoadGen said of a run."""

    valid: bool
    per_s: float
    """Samples a second."""
    p99_ms: float
    failed: int
    """Samples that were not answered with OK; LoadGen knows nothing of them, so any makes a run invalid."""


class Sender:
    """Passes LoadGen's samples on, `rows` of them in a request, at most `window` requests at a time."""

    def __init__(self, loadgen: Any, address: str, bodies: Sequence[Body], *, rows: int, window: float) -> None:  # noqa: ANN401 - a module without types
        self._loadgen = loadgen
        self._rows, self._window = rows, window
        self._bodies = len(bodies)
        self._client = Http2Client(address, bodies, 4)
        self._queue: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
        self._over = threading.Event()
        self.failed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen."""
        for start in range(0, len(samples), self._rows):
            self._queue.put([sample.id for sample in samples[start : start + self._rows]])

    def _run(self) -> None:
        client, out, number = self._client, dict[int, Sequence[int]](), 0
        while not self._over.is_set():
            while len(out) < self._window and (asked := self._next(idle=not out)):
                out[number] = asked
                client.start(number, number % self._bodies, client.now() + _DEADLINE_S)
                number += 1
            for call, code, _ in client.wait(client.now() + _TURN_S) if out else ():
                self._answered(out.pop(call), code)

    def _next(self, *, idle: bool) -> Sequence[int]:
        try:
            return self._queue.get(timeout=0.05) if idle else self._queue.get_nowait()
        except queue.Empty:
            return ()

    def _answered(self, samples: Sequence[int], code: int) -> None:
        """LoadGen waits for every sample, the failed ones included; they are counted here."""
        self.failed += len(samples) if code else 0
        nothing = array.array("B")
        self._loadgen.QuerySamplesComplete(
            [self._loadgen.QuerySampleResponse(sample, nothing.buffer_info()[0], 0) for sample in samples]
        )

    def close(self) -> None:
        """End the thread and the connections."""
        self._over.set()
        self._thread.join()
        self._client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model of a server, to be run by LoadGen."""

    address: str
    kind: Kind
    seconds: float
    bound_ms: float
    rows: int
    """Samples in a request of the Offline scenario."""

    def offline(self, expected: float) -> Outcome:
        """All at once."""
        loadgen, settings = _loadgen("Offline", self.seconds)
        settings.offline_expected_qps = expected
        return self._run(loadgen, settings, rows=self.rows, window=32)

    def server(self, rate: float) -> Outcome:
        """At that rate."""
        loadgen, settings = _loadgen("Server", self.seconds)
        settings.server_target_qps = rate
        settings.server_target_latency_ns = round(self.bound_ms * 1e6)
        settings.server_target_latency_percentile = PERCENTILE / 100
        return self._run(loadgen, settings, rows=1, window=math.inf)

    def _run(self, loadgen: Any, settings: Any, *, rows: int, window: float) -> Outcome:  # noqa: ANN401 - without types
        import numpy as np  # noqa: PLC0415

        metadata = asking(self.address)(self.kind)
        drawn = [
            infer_request(self.kind, metadata, rows, math.inf, np.random.default_rng(number)) for number in range(16)
        ]
        bodies = [infer_body(self.kind, request) for request in drawn]
        sender = Sender(loadgen, self.address, bodies, rows=rows, window=window)
        system = loadgen.ConstructSUT(sender.issue, lambda: None)
        library = loadgen.ConstructQSL(_SAMPLES, _SAMPLES, lambda _: None, lambda _: None)
        with tempfile.TemporaryDirectory() as folder:
            logs = loadgen.LogSettings()
            logs.log_output.outdir = folder
            logs.enable_trace = False
            loadgen.StartTestWithLogSettings(system, library, settings, logs)
            text = (Path(folder) / "mlperf_log_summary.txt").read_text()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
        sender.close()
        return outcome(text, sender.failed)


def _loadgen(scenario: str, seconds: float) -> tuple[Any, Any]:
    """The module, and settings of a performance run that is as short as was asked for."""
    try:
        import mlperf_loadgen as loadgen  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise click.ClickException(MISSING) from error
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(seconds * 1e3)
    settings.min_query_count = 1
    return loadgen, settings


def outcome(summary: str, failed: int) -> Outcome:
    """What LoadGen's summary says; ValueError where it says nothing."""
    rate = re.search(r"(?:Samples per second|Completed samples per second)\s*: ([\d.e+]+)", summary)
    p99 = re.search(r"99\.00 percentile latency \(ns\)\s*: (\d+)", summary)
    if rate is None or p99 is None:
        raise ValueError(f"not a summary of LoadGen's:\n{summary}")
    return Outcome("Result is : VALID" in summary and not failed, float(rate[1]), int(p99[1]) / 1e6, failed)


def search(bench: Bench, most: float, runs: int, console: Console) -> tuple[float, Outcome | None]:
    """The highest rate below `most` that is valid, by halving the interval `runs` times."""
    low, high = 0.0, most
    best: tuple[float, Outcome | None] = 0.0, None
    rate = most * 0.7
    for _ in range(runs):
        found = bench.server(rate)
        verdict = "VALID" if found.valid else "INVALID"
        console.print(f"Server at {rate:,.0f}/s: p99 {found.p99_ms:.2f} ms, {found.failed} failed: {verdict}")
        if found.valid:
            low, best = rate, (rate, found)
        else:
            high = rate
        rate = (low + high) / 2
        time.sleep(0.5)  # what an overloaded server still has in hand is not the next run's
    return best


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--address", default="127.0.0.1:8001", show_default=True, help="Where the server listens.")
@click.option("--model", default="digits", show_default=True)
@click.option("--bound-ms", type=float, default=15.0, show_default=True, help="p99 bound; ResNet-50's is 15 ms.")
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Least length of each run.")
@click.option("--runs", type=click.IntRange(1), default=6, show_default=True, help="Of the Server scenario.")
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True, help="Samples in an Offline request.")
def main(*, address: str, model: str, bound_ms: float, seconds: float, runs: int, rows: int) -> None:
    """Score a model with MLPerf LoadGen over gRPC: Offline, Server, and one divided by the other."""
    console = Console(highlight=False)
    bench = Bench(address=address, kind=Kind(model=model), seconds=seconds, bound_ms=bound_ms, rows=rows)
    try:
        first = bench.offline(1000.0)
        offline = bench.offline(first.per_s)  # LoadGen makes the query as large as was expected
    except (ScenarioError, OSError) as error:
        raise click.ClickException(str(error)) from None
    console.print(f"Offline: {offline.per_s:,.0f} samples/s, {offline.failed} failed")
    rate, server = search(bench, offline.per_s, runs, console)
    table = Table(box=None)
    for title in ("scenario", "samples/s", "p99", "bound"):
        table.add_column(title, justify="left" if title == "scenario" else "right")
    table.add_row("Offline", f"{offline.per_s:,.0f}", "", "")
    table.add_row("Server", f"{rate:,.0f}", f"{server.p99_ms:.2f} ms" if server else "none valid", f"{bound_ms:g} ms")
    table.add_row("[bold]Server/Offline[/]", f"[bold]{rate / offline.per_s:.3f}[/]", "", "")
    console.print(table)


if __name__ == "__main__":
    main(prog_name="python -m loadtest.mlperf")
