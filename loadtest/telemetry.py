"""What telemetry costs: server CPU per request on a tiny model, without meters, with them, and with tracing.

    python loadtest/telemetry.py [--turns N] [--requests N] [--markdown FILE]

One server takes all forms in turn, hundreds of times, so that each comparison is with the same machine in the same
process. The price is the median over all turns of (CPU of the event loop's thread per request) / (the same without
meters), less one. The layer that meters is measured by itself as well, where nothing else disturbs it: its least CPU
time, encoding of spans included, and the share of the server's that this is.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from rich.console import Console
from serving import METHOD, request
from support import READY, Running, machine, process, write_matmul_model

from engines.inference import Inference
from engines.request import InferRequest, InferResponse, Timings
from engines.spec import ModelSpec
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.telemetry.access import AccessLog
from server.telemetry.meter import ModelMeter
from server.telemetry.metered import MeteredInference
from server.telemetry.spans import SpanMaker
from server.telemetry.traces import TraceOptions, Tracer

CALLERS = 64
SWITCHABLE = """
import signal
import server.__main__
from server.telemetry.assembly import Telemetry

metered = True

class Switch:
    def __init__(self, bare, layer):
        self.bare, self.layer = bare, layer

    def infer(self, request):
        return (self.layer if metered else self.bare).infer(request)

def set_metered(number, frame):
    global metered
    metered = number == signal.SIGUSR2

around, observer = Telemetry.around, Telemetry.observer

def switchable_observer(telemetry, meter):
    observe = observer(telemetry, meter)
    return lambda report: observe(report) if metered else None

Telemetry.around = lambda telemetry, model, meter: Switch(model, around(telemetry, model, meter))
Telemetry.observer = switchable_observer
signal.signal(signal.SIGUSR1, set_metered)
signal.signal(signal.SIGUSR2, set_metered)
server.__main__.main()
"""
"""A server whose meters are switched off by SIGUSR1 and on by SIGUSR2."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run the server."""

    name: str
    metered: bool
    trace_rate: int = 0
    """One in so many requests is traced. 0: tracing is off."""


FORMS = (
    Form("no meters", metered=False),
    Form("metrics", metered=True),
    Form("metrics; tracing is on, nothing sampled", metered=True, trace_rate=1_000_000_000),
    Form("metrics; 1 % traced", metered=True, trace_rate=100),
)
"""The first is what the others are compared with."""


class LoopThread(Running):
    """A server whose main thread's CPU time is read to the nanosecond."""

    def cpu_s(self) -> float:
        """Seconds of CPU that the event loop has used."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9


@contextmanager
def collector() -> Iterator[str]:
    """An OTLP receiver that forgets at once what it is told."""

    class Anything(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            del handler_call_details
            return grpc.unary_unary_rpc_method_handler(lambda *_: b"")

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[Anything()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"http://127.0.0.1:{port}"
        server.stop(None).wait()


async def take(server: Running, stub: GRPCInferenceServiceStub, form: Form) -> None:
    """Let the server take this form."""
    os.kill(server.pid, signal.SIGUSR2 if form.metered else signal.SIGUSR1)
    asked = pb.TraceSettingRequest()
    asked.settings["trace_level"].value.append("TIMESTAMPS" if form.trace_rate else "OFF")
    asked.settings["trace_rate"].value.append(str(form.trace_rate or 1))
    await stub.TraceSetting(asked)


async def cpu_us(server: Running, call: grpc.aio.UnaryUnaryMultiCallable, body: bytes, requests: int) -> float:
    """CPU microseconds per request of a closed loop."""
    left = requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(body, timeout=60)

    before = server.cpu_s()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return (server.cpu_s() - before) / requests * 1e6


async def take_turns(server: Running, turns: int, requests: int) -> dict[str, list[float]]:
    """CPU microseconds per request, by form and turn."""
    body = request("tiny", 16)
    found: dict[str, list[float]] = {form.name: [] for form in FORMS}
    async with grpc.aio.insecure_channel(server.url) as channel:
        stub, call = GRPCInferenceServiceStub(channel), channel.unary_unary(METHOD)
        await cpu_us(server, call, body, 10 * requests)  # warms up
        for turn in range(turns):
            first = turn % len(FORMS)
            for form in FORMS[first:] + FORMS[:first]:
                await take(server, stub, form)
                found[form.name].append(await cpu_us(server, call, body, requests))
    return found


def measure(turns: int, requests: int) -> dict[str, list[float]]:
    """Start a server, let it take turns, and end it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_matmul_model(folder / "tiny", width=16, layers=2, config="max_batch_size: 64")
        flags = ["serve", "--model-repository", str(folder), "--grpc-port", "0", "--metrics-port", "0"]
        with mock.patch.dict("os.environ", {"OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(collector())}):
            command = [sys.executable, "-c", SWITCHABLE, *flags, "--log-format", "text"]
            started = stack.enter_context(process(command, READY))
        return asyncio.run(take_turns(LoopThread(started.pid, started.url), turns, requests))


class Answer:
    """An Inference that takes no time."""

    def __init__(self) -> None:
        self._answer = InferResponse(model="tiny", version=1, outputs=(), timings=Timings(1e-4, 1e-5, 1e-4, 1e-5))

    async def infer(self, request: InferRequest) -> InferResponse:
        del request
        return self._answer


class Forget(SpanExporter):
    """An exporter that only does what costs: encoding."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


async def alone_us(layer: Inference, times: int = 5_000) -> float:
    """Least CPU microseconds of a call; the rest is the machine's."""
    asked = InferRequest(model="tiny", version=1, inputs=(), wanted=("y",), deadline=1e12)
    least = math.inf
    for _ in range(9):
        before = time.process_time()
        for _ in range(times):
            await layer.infer(asked)
        least = min(least, time.process_time() - before)
    return least / times * 1e6


async def layers_us() -> dict[str, float]:
    """What the layer adds to a request in each form, by itself: the server around it makes no noise here."""
    bare = await alone_us(Answer())
    found = {}
    for form in FORMS[1:]:
        level = "TIMESTAMPS" if form.trace_rate else "OFF"
        options = TraceOptions(mode="opentelemetry", level=level, rate=form.trace_rate or 1)
        tracer = Tracer(options, SpanMaker(Forget(), lambda *_: 0, {}))
        spec = ModelSpec(name="tiny", version=1, platform="", inputs=(), outputs=(), max_rows=64)
        found[form.name] = await alone_us(MeteredInference(Answer(), ModelMeter(spec), tracer, AccessLog(0))) - bare
        tracer.close()
    return found


def main() -> None:
    """Measure, print, and write the table of docs/performance.md if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--requests", type=int, default=400, help="requests in each form and turn")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    alone = asyncio.run(layers_us())
    found = measure(arguments.turns, arguments.requests)
    base = found["no meters"]
    whole = statistics.median(base)
    lines = [
        f"Machine: {machine()}. {CALLERS} callers, {arguments.turns} turns of {arguments.requests} requests.",
        "",
    ]
    lines += [
        "| tiny model | event loop's CPU per request, median | price, median | the layer alone | share of the server |"
    ]
    lines += ["|---|---|---|---|---|", f"| no meters | {whole:.1f} us | | | |"]
    for name, cells in found.items():
        if cells is base:
            continue
        price = statistics.median(cell / without - 1 for cell, without in zip(cells, base, strict=True))
        layer = alone[name]
        lines.append(
            f"| {name} | {statistics.median(cells):.1f} us | {price:+.1%} | {layer:.2f} us | {layer / whole:.1%} |"
        )
    Console().print("\n".join(lines), highlight=False, soft_wrap=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
