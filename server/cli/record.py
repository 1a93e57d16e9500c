"""`kairos record`: what a running server is asked, as a trace for `kairos simulate` and for load tests."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import grpc
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.channel import Address, with_server
from server.cli.values import duration
from server.pb import traffic_pb2 as pb
from server.pb.traffic_pb2_grpc import TrafficStub

_LINGER_S: Final = 1.0
"""The server sends arrivals a little late, together."""
_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True})
@with_server
@click.option("--model", required=True, help="Whose requests are recorded.")
@click.option("--version", default="", help="Only this version. Default: all that are loaded.")
@click.option("--for", "span", default="1m", help="How long: `90s`, `10m`, `1h`. Ctrl-C ends it before, and keeps it.")
@click.option("--output", "-o", type=_OUTPUT, default=Path("trace.jsonl"), help="The file to write; `-` to print.")
def record(server: Address, model: str, version: str, span: str, output: Path) -> None:
    """Record when requests reach a running server's scheduler, how many rows they have and how much time.

    One JSON line a request: `{"t": 0.0132, "rows": 1, "deadline": 0.05}`, with its priority and tenant where it has
    any. Contents and ids are not recorded, and what the cache answers never gets there.

    **Examples**

    - `kairos record --model digits --for 10m -o trace.jsonl`
    - `kairos simulate --trace trace.jsonl --cost 2ms+1.5ms --max-rows 16 --engines-for 0.99`
    """
    seconds = duration(span)
    request = pb.ArrivalsRequest(model=model, version=version)
    to_screen = str(output) == "-"
    with server.channel() as channel, sys.stdout if to_screen else output.open("w") as file:
        timeout = None if seconds == math.inf else seconds + _LINGER_S
        stream = TrafficStub(channel).Arrivals(request, timeout=timeout)  # type: ignore[no-untyped-call]
        signal.signal(signal.SIGINT, lambda *_: stream.cancel())  # an interrupt could cut a line in two
        try:
            count, dropped = _copy(stream, file, seconds, model)
        except grpc.RpcError as error:
            server.fail(error)
        finally:
            stream.cancel()
    told = f"{count} requests of {model}" + ("" if to_screen else f" in {output}")
    Console(stderr=True, highlight=False).print(told + (f"; {dropped} were dropped on the way" if dropped else ""))


def _copy(stream: Iterator[pb.ArrivalsResponse], file: IO[str], seconds: float, model: str) -> tuple[int, int]:
    """Write lines until the time is over, the server goes away or Ctrl-C; how many, and how many are missing."""
    columns = (BarColumn(), TextColumn("{task.fields[count]} requests"), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    count = dropped = 0
    next(stream)
    console.print(f"recording {model}; Ctrl-C ends it and keeps what there is")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None if seconds == math.inf else seconds, count=0)
        try:
            for message in stream:
                lines = [_line(arrival) for arrival in message.arrivals if arrival.seconds <= seconds]
                file.writelines(lines)
                file.flush()
                count += len(lines)
                dropped += message.dropped
                at = message.arrivals[-1].seconds if message.arrivals else 0.0
                progress.update(bar, completed=min(at, seconds), count=count)
                if at > seconds:
                    break
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
                raise
    return count, dropped


def _line(arrival: pb.RecordedArrival) -> str:
    left = arrival.deadline_seconds
    line: dict[str, object] = {
        "t": round(arrival.seconds, 6),
        "rows": arrival.rows,
        "deadline": None if left == math.inf else round(left, 6),
    }
    if arrival.priority:
        line["priority"] = arrival.priority
    if arrival.tenant:
        line["tenant"] = arrival.tenant
    return json.dumps(line) + "\n"
