"""`kairos watch`: whether a server's models still see the world that they were made for."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import rich_click as click
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from server.cli.channel import Address, fail, with_server
from server.cli.watch_report import write_report
from server.pb import watch_pb2 as pb
from server.pb.watch_pb2_grpc import WatchStub

_model = click.option("--model", default="", help="Only this model. Default: all.")
_timeout = click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait for it.")
_WORST = 5


@click.group()
def watch() -> None:
    """See whether models still get what they were made for, and how sure they are of their answers."""


@watch.command()
@with_server
@_model
@_timeout
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.option("--exit-code", is_flag=True, help="End with status 2 while there is an alarm.")
def status(*, server: Address, model: str, timeout: float, as_json: bool, exit_code: bool) -> None:
    """What the watch says now: each signal, and the columns that moved most."""
    with server.calling(WatchStub) as stub:
        found = stub.Status(pb.WatchStatusRequest(model=model, details=True), timeout=timeout)
    if as_json:
        click.echo(json_format.MessageToJson(found, always_print_fields_with_no_presence=True))
    else:
        console = Console(highlight=False)
        if not found.models:
            console.print("no loaded model has watch { enable: true }")
        for each in found.models:
            _print(console, each)
    if exit_code and any(reading.alarm for each in found.models for reading in each.readings):
        sys.exit(2)


@watch.command()
@with_server
@_model
@_timeout
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .html, or .png (needs the `plots` extra).",
)
def report(server: Address, model: str, timeout: float, output: Path) -> None:
    """Draw distributions side by side with the baseline's, and the scores over time."""
    if output.suffix not in (".html", ".png"):
        raise click.BadParameter("must end with .html or .png", param_hint="--output")
    with server.calling(WatchStub) as stub:
        found = stub.Status(pb.WatchStatusRequest(model=model, details=True), timeout=timeout)
    if not found.models:
        fail("no loaded model has watch { enable: true }")
    try:
        write_report(found.models, output)
    except (ImportError, OSError) as error:
        fail(str(error))
    click.echo(f"written {output}")


def _print(console: Console, model: pb.WatchedModel) -> None:
    console.print(
        f"[bold]{model.name}[/] version {model.version}: {model.state}; {model.note}\n"
        f"  baseline {model.reference_rows} rows, window {model.window_rows} rows, {model.looks} looks; "
        f"{model.sampled} of {model.answered} requests sampled, {model.dropped} dropped"
    )
    if not model.readings:
        return
    table = Table("  signal", "value", "p-value", "rows", "", box=None, pad_edge=False)
    for reading in model.readings:
        verdict = "[bold red]ALARM[/]" if reading.alarm else "[green]ok[/]"
        tested = not math.isnan(reading.p_value)
        table.add_row(
            f"  {reading.signal}",
            f"{reading.value:.3f}",
            f"{reading.p_value:.2g}" if tested else "",
            str(reading.samples),
            verdict if tested else "",
        )
    console.print(table)
    moved = [column for column in model.columns if column.p_value <= model.alarm_p_value]
    for column in sorted(moved, key=lambda column: -column.psi)[:_WORST]:
        console.print(
            f"  [red]{column.name}[/] moved: PSI {column.psi:.2f}, "
            f"distance {column.distance:.2f}, {column.missing:.0%} missing"
        )
    if len(moved) > _WORST:
        console.print(f"  and {len(moved) - _WORST} more columns; see `kairos watch report`")
