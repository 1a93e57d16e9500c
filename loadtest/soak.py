"""Mixed traffic for hours, with a watch over the server's memory, descriptors, threads and tasks.

`python loadtest/soak.py --seconds 14400 --picture soak.png`. Well-behaved callers and streams must all be answered,
while others cancel, ask nonsense, set deadlines that cannot be met, connect and vanish, and the model is swapped for
another again and again. At the end everybody leaves, and the server must have what it had after its first seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from support import kairos, machine, write_matmul_model
from traffic import CONFIG, MODEL, WIDTH, Sample, Tally, call_until, channel, draw, look, report, request, slope, watch

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

SETTLED_S = 3.0
"""How long the server gets after the last caller has left."""


async def stream_until(url: str, stop: asyncio.Event, tally: Tally) -> None:
    """Streams of 20 requests each."""

    async def messages() -> AsyncIterator[pb.ModelInferRequest]:
        for _ in range(20):
            yield request()

    async with channel(url) as connection:
        stub = GRPCInferenceServiceStub(connection)  # type: ignore[no-untyped-call]
        while not stop.is_set():
            tally.sent += 20
            async for answer in stub.ModelStreamInfer(messages()):
                if answer.error_message:
                    tally.ends["in the stream"] += 1
                    tally.texts[answer.error_message[:100]] += 1
                else:
                    tally.answered += 1
            await asyncio.sleep(0.05)


async def misbehave_until(url: str, stop: asyncio.Event, tally: Tally) -> None:
    """Calls that are cancelled, wrong, too late or unknown, each on a new connection now and then."""
    while not stop.is_set():
        async with channel(url) as connection:
            stub = GRPCInferenceServiceStub(connection)  # type: ignore[no-untyped-call]
            for turn in range(40):
                tally.sent += 1
                wrong = turn % 4 == 1
                message = request(width=WIDTH - 1) if wrong else request(model="nobody" if turn % 4 == 2 else MODEL)
                call = stub.ModelInfer(message, timeout=0.0005 if turn % 4 == 3 else 30)
                if turn % 4 == 0:
                    await asyncio.sleep(0)
                    call.cancel()
                try:
                    await call
                    tally.answered += 1
                except grpc.aio.AioRpcError as error:
                    tally.failed(error)
                except asyncio.CancelledError:
                    tally.ends["CANCELLED"] += 1
                await asyncio.sleep(0.01)


async def swap_until(url: str, models: Path, stop: asyncio.Event, swaps: int, pause_s: float) -> int:
    """Replace the served model by another form of it, `swaps` times or until `stop`; how often that was done."""
    config, done = models / MODEL / "config.pbtxt", 0
    async with channel(url) as connection:
        stub = GRPCInferenceServiceStub(connection)  # type: ignore[no-untyped-call]
        while not stop.is_set() and (swaps == 0 or done < swaps):
            done += 1
            config.write_text(CONFIG.replace("max_batch_size: 16", f"max_batch_size: {8 + done % 8}"))
            await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=MODEL), timeout=60)
            await asyncio.sleep(pause_s)
    return done


async def soak(url: str, metrics_url: str, pid: int, models: Path, options: argparse.Namespace) -> dict[str, object]:
    """The whole run; figures."""
    good, streams, bad = Tally(), Tally(), Tally()
    stop, watched = asyncio.Event(), asyncio.Event()
    samples: list[Sample] = []
    warm = asyncio.Event()
    asyncio.get_running_loop().call_later(2.0, warm.set)
    await asyncio.gather(call_until(url, warm, Tally()), stream_until(url, warm, Tally()))
    await asyncio.sleep(SETTLED_S)
    before = await asyncio.to_thread(look, pid, metrics_url, 0.0)
    interval_s = max(0.2, options.seconds / 600)
    watching = asyncio.ensure_future(watch(pid, metrics_url, watched, samples, interval_s))
    load = [asyncio.ensure_future(call_until(url, stop, good, pause_s=0.004)) for _ in range(options.callers)]
    load += [asyncio.ensure_future(call_until(url, stop, good, pause_s=0.2, rows=8)) for _ in range(2)]
    load += [asyncio.ensure_future(stream_until(url, stop, streams)) for _ in range(2)]
    load += [asyncio.ensure_future(misbehave_until(url, stop, bad)) for _ in range(2)]
    swapping = asyncio.ensure_future(swap_until(url, models, stop, options.swaps, options.swap_pause))
    if options.swaps:
        await swapping
    else:
        await asyncio.sleep(options.seconds)
    stop.set()
    swaps = await swapping
    await asyncio.gather(*load)
    watched.set()
    await watching
    await asyncio.sleep(SETTLED_S)
    after = await asyncio.to_thread(look, pid, metrics_url, 0.0)
    if options.picture is not None:
        draw(options.picture, f"{swaps} reloads, {good.sent + streams.sent + bad.sent} requests", samples)
    return {
        "machine": machine(), "transport": options.transport, "seconds": round(samples[-1].at_s), "swaps": swaps,
        "callers": good.as_dict(), "streams": streams.as_dict(), "misbehaving": bad.as_dict(),
        "lost": good.lost + streams.lost, "before": before, "after": after,
        "resident_mb_an_hour": round(slope(samples, lambda sample: sample.resident_mb), 1),
        "descriptors_an_hour": round(slope(samples, lambda sample: sample.descriptors), 1),
        "threads_an_hour": round(slope(samples, lambda sample: sample.threads), 1),
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--swaps", type=int, default=0, help="end after so many reloads, whatever the time")
    parser.add_argument("--swap-pause", type=float, default=2.0, help="seconds between two reloads")
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--transport", choices=["http2", "grpcio"], default="http2")
    parser.add_argument("--picture", type=Path, help="PNG to draw; needs the plots extra")
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_matmul_model(models / MODEL, width=WIDTH, layers=2, config=CONFIG)
        flags = ("--transport", options.transport, "--model-control-mode", "explicit", "--load-model", MODEL)
        with kairos(models, *flags, "--cache-dir", f"{folder}/cache", "--log-file", f"{folder}/log") as server:
            metrics_url = f"http://127.0.0.1:{server.metrics_port}/metrics"
            figures = asyncio.run(soak(server.url, metrics_url, server.pid, models, options))
    report(options.out, **figures)
    sys.exit(bool(figures["lost"]))


if __name__ == "__main__":
    main()
