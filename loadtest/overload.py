"""Offers far more bytes than the server may hold, and never reads: `python loadtest/overload.py --seconds 180`.

Memory must stay bounded. Callers send requests of a quarter of a megabyte, ten times as many at once as fit into
`--max-inflight-mb`; beside them, deaf clients ask for answers and leave no window for them. One polite caller tries
again when it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import grpc
import hpack
from onnx import TensorProto, helper, save
from support import kairos, machine
from traffic import CONFIG, Sample, Tally, channel, draw, look, report, request, watch

from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.transport.http2 import frames

WIDTH = 65_536
MODEL = "echo"
FACTOR = 16
"""Memory over what counts: a request is there as it came, parsed, gathered, and as the answer in as many forms."""


def write_echo(folder: Path) -> None:
    """`y = x` on rows of a quarter of a megabyte."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], MODEL, tensors[:1], tensors[1:])
    (folder / MODEL / "1").mkdir(parents=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(made, folder / MODEL / "1" / "model.onnx")
    (folder / MODEL / "config.pbtxt").write_text(CONFIG)


async def shout_until(url: str, stop: asyncio.Event, tally: Tally, at_once: int) -> None:
    """One connection with so many calls at a time, and no manners."""
    message = request(1, MODEL, WIDTH)
    async with channel(url) as connection:
        stub = GRPCInferenceServiceStub(connection)  # type: ignore[no-untyped-call]

        async def one() -> None:
            while not stop.is_set():
                tally.sent += 1
                try:
                    await stub.ModelInfer(message, timeout=30)
                    tally.answered += 1
                except grpc.aio.AioRpcError as error:
                    tally.failed(error)

        await asyncio.gather(*(one() for _ in range(at_once)))


async def never_read(url: str, stop: asyncio.Event, tally: Tally, calls: int) -> None:
    """A client whose windows are closed from the start: its answers stay with the server."""
    host, port = url.split(":")
    body = request(1, MODEL, WIDTH).SerializeToString()
    message = b"\0" + len(body).to_bytes(4, "big") + body
    head = [
        (":method", "POST"), (":scheme", "http"), (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip
    while not stop.is_set():
        _, writer = await asyncio.open_connection(host, int(port))
        encoder = hpack.Encoder()
        writer.write(frames.PREFACE + frames.settings(((frames.INITIAL_WINDOW_SIZE, 0),)))
        for number in range(calls):
            stream_id = 2 * number + 1
            writer.write(frames.headers(stream_id, encoder.encode(head), end_stream=False, max_frame_size=16_384))
            for start in range(0, len(message), 16_384):
                piece = message[start : start + 16_384]
                last = start + 16_384 >= len(message)
                writer.write(frames.head(len(piece), frames.DATA, int(last), stream_id) + piece)
            tally.sent += 1
        try:
            async with asyncio.timeout(10):
                await writer.drain()
                await stop.wait()
        except (TimeoutError, ConnectionError):
            pass
        writer.transport.abort()


async def polite_until(url: str, stop: asyncio.Event, tally: Tally) -> None:
    """Does what a refusal says: tries again, a little later, until it is answered."""
    message = request(1, MODEL, WIDTH)
    async with channel(url) as connection:
        stub = GRPCInferenceServiceStub(connection)  # type: ignore[no-untyped-call]
        while not stop.is_set():
            tally.sent += 1
            try:
                await stub.ModelInfer(message, timeout=30)
                tally.answered += 1
            except grpc.aio.AioRpcError as error:
                tally.failed(error)
                hints = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
                await asyncio.sleep(int(hints.get("retry-after-ms", "100")) / 1000)


async def overload(
    url: str, metrics_url: str, pid: int, options: argparse.Namespace, samples: list[Sample]
) -> dict[str, object]:
    """The whole run; figures."""
    stop, watched = asyncio.Event(), asyncio.Event()
    loud, deaf, polite = Tally(), Tally(), Tally()
    before = await asyncio.to_thread(look, pid, metrics_url, 0.0)
    watching = asyncio.ensure_future(watch(pid, metrics_url, watched, samples, max(0.1, options.seconds / 600)))
    at_once = 10 * options.inflight_mb * 4 // options.connections
    load = [asyncio.ensure_future(shout_until(url, stop, loud, at_once)) for _ in range(options.connections)]
    load += [asyncio.ensure_future(never_read(url, stop, deaf, 40)) for _ in range(options.deaf)]
    load.append(asyncio.ensure_future(polite_until(url, stop, polite)))
    await asyncio.sleep(options.seconds)
    stop.set()
    await asyncio.gather(*load)
    await asyncio.sleep(2.0)
    watched.set()
    await watching
    after = await asyncio.to_thread(look, pid, metrics_url, 0.0)
    peak = max(sample.resident_mb for sample in samples)
    return {
        "machine": machine(), "transport": options.transport, "seconds": options.seconds,
        "inflight_mb": options.inflight_mb, "offered_at_once_mb": at_once * options.connections // 4,
        "loud": loud.as_dict(), "deaf_sent": deaf.sent, "polite": polite.as_dict(),
        "resident_before_mb": round(before.resident_mb), "resident_peak_mb": round(peak),
        "resident_after_mb": round(after.resident_mb),
        "peak_over_limit": round((peak - before.resident_mb) / options.inflight_mb, 2),
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--inflight-mb", type=int, default=64)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--deaf", type=int, default=8, help="connections that never read")
    parser.add_argument("--transport", choices=["http2", "grpcio"], default="http2")
    parser.add_argument("--picture", type=Path, help="PNG to draw; needs the plots extra")
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_echo(models)
        flags = ("--transport", options.transport, "--max-inflight-mb", str(options.inflight_mb))
        with kairos(models, *flags, "--exit-timeout-secs", "2", "--log-file", f"{folder}/log") as server:
            metrics_url = f"http://127.0.0.1:{server.metrics_port}/metrics"
            figures = asyncio.run(overload(server.url, metrics_url, server.pid, options, samples))
    if options.picture is not None:
        base = float(str(figures["resident_before_mb"]))
        bound = [("the start, and sixteen times what may be held", base + FACTOR * options.inflight_mb)]
        draw(
            options.picture, f"ten times {options.inflight_mb} MiB offered, {options.deaf} deaf clients", samples, bound
        )
    report(options.out, **figures)
    sys.exit(not 0 < float(str(figures["peak_over_limit"])) < FACTOR)


if __name__ == "__main__":
    main()
