"""`kairos rollout`: lead a model of a running server from one version to the next."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any, Final

import rich_click as click
from google.protobuf import json_format
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.cli.channel import Address, with_server
from server.cli.values import duration
from server.pb import rollout_pb2 as pb
from server.pb.rollout_pb2_grpc import RolloutStub

_timeout = click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for an answer.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

_COLOURS: Final = {"WAITING": "yellow", "SHADOW": "cyan", "CANARY": "blue", "PROMOTED": "green"}
_ENDS: Final = frozenset((pb.PROMOTED, pb.ROLLED_BACK, pb.ABORTED))
_LAST: Final = 8
"""Entries of the history that are shown."""


@click.group()
def rollout() -> None:
    """Lead a model of a running server from its stable version to a candidate, and back by itself if need be.

    The candidate first gets **copies** of requests (shadow), whose answers are compared and thrown away; then a growing
    **share** of the callers that name no version (canary). It is rolled back as soon as it is proven to fail more
    often, to be slower or to answer otherwise than allowed, and promoted when it has passed all steps. Requests that
    name a version get that version throughout.

    **A way that lets no unproven version answer**

    - `kairos rollout start digits 2` while version 2 is not loaded yet: version 1 stays the default
    - put version 2 into the repository (mode *poll*), or restart the server (mode *none*); in mode *explicit* the start
      has loaded it
    - `kairos rollout status --watch`
    """


@rollout.command()
@click.argument("model")
@click.argument("candidate", type=click.IntRange(min=1))
@click.option(
    "--stable",
    type=click.IntRange(min=1),
    default=None,
    help="The version to come from. Default: the one that answers now.",
)
@click.option(
    "--steps",
    default="0,1,5,25,50,100",
    show_default=True,
    help="Shares of the default traffic in percent, growing; a 0 first: copies only.",
)
@click.option(
    "--step-time", default="60s", show_default=True, help="Shortest stay on a step, such as `90s` or `300ms`."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Fewest answers of the candidate on each step (of comparisons, where it sees copies only).",
)
@click.option(
    "--split-by",
    default="auto",
    show_default=True,
    help="What makes a caller, who then stays on one side: `tenant`, `id` (of the request), `parameter:NAME`, "
    "`metadata:NAME`; `auto`: the tenant, else the id.",
)
@click.option("--salt", default="", help="Change it to begin with other callers. Default: model and candidate.")
@click.option(
    "--max-error-increase",
    default=0.01,
    show_default=True,
    help="How much more often than the stable version it may fail; 1: no limit.",
)
@click.option(
    "--max-latency-ratio",
    default=1.5,
    show_default=True,
    help="How many times as slow its median may be; `inf`: no limit.",
)
@click.option(
    "--latency-slack", default="500us", show_default=True, help="Longer by no more than this is never too slow."
)
@click.option(
    "--min-agreement",
    default=0.9,
    show_default=True,
    help="Share of compared requests on which both must agree; 0: no limit.",
)
@click.option(
    "--compare-output",
    default="",
    help="The output with a score for each class. Default: recognised by name or labels.",
)
@click.option(
    "--tolerance",
    nargs=2,
    type=float,
    default=(1e-3, 1e-2),
    show_default=True,
    help="Absolute and relative; for models that do not classify.",
)
@click.option(
    "--shadow-sample",
    default=0.1,
    show_default=True,
    help="Share of requests that are copied to the other version; 0: none.",
)
@click.option("--no-retry", is_flag=True, help="Do not ask the stable version for what the candidate fails.")
@click.option("--no-signals", is_flag=True, help="Do not roll back for alarms of drift or outcomes.")
@with_server
@_timeout
@_json
def start(**values: Any) -> None:  # noqa: ANN401  (click hands over the options by name)
    """Begin to lead MODEL to version CANDIDATE, which need not be loaded yet.

    From now on version `--stable` answers whoever names none, also when the candidate is loaded later, also after a
    restart (with the server's `--state-dir`).

    **Examples**

    - `kairos rollout start digits 2`
    - `kairos rollout start digits 2 --steps 10,50,100 --step-time 10s --min-agreement 0.95`
    - `kairos rollout start digits 2 --split-by metadata:x-user --shadow-sample 0.5`
    """
    request = _request(values)
    with values["server"].calling(RolloutStub) as stub:
        _show(stub.Start(request, timeout=values["timeout"]), as_json=values["as_json"])


@rollout.command()
@click.argument("model", default="")
@click.option("--watch", is_flag=True, help="Go on showing it until all rollouts have ended, or Ctrl-C.")
@with_server
@_timeout
@_json
def status(model: str, watch: bool, server: Address, timeout: float, as_json: bool) -> None:
    """How the rollouts of all models, or of MODEL, stand and why. Ends with status 3 when one was rolled back."""
    request = pb.RolloutStatusRequest(model=model)
    with server.calling(RolloutStub) as stub:
        found = stub.Status(request, timeout=timeout)
        if as_json:
            click.echo(_as_json(found))
        elif watch:
            console = Console(highlight=False)
            with Live(draw(found.rollouts), console=console, refresh_per_second=4) as live:
                while not found.rollouts or any(each.stage not in _ENDS for each in found.rollouts):
                    time.sleep(0.5)
                    found = stub.Status(request, timeout=timeout)
                    live.update(draw(found.rollouts))
            if not console.is_terminal:
                console.line()
        else:
            Console(highlight=False).print(draw(found.rollouts))
    sys.exit(3 if any(each.stage == pb.ROLLED_BACK for each in found.rollouts) else 0)


@rollout.command()
@click.argument("model")
@with_server
@_timeout
@_json
def promote(model: str, server: Address, timeout: float, as_json: bool) -> None:
    """Make the candidate of MODEL the default at once, whatever step it is on."""
    with server.calling(RolloutStub) as stub:
        _show(stub.Promote(pb.RolloutPromoteRequest(model=model), timeout=timeout), as_json=as_json)


@rollout.command()
@click.argument("model")
@click.option("--forget", is_flag=True, help="Also let go of the default: the highest version answers again.")
@with_server
@_timeout
@_json
def abort(model: str, forget: bool, server: Address, timeout: float, as_json: bool) -> None:
    """Take MODEL back to its stable version at once.

    The stable version stays the default, though the candidate is higher; `--forget` gives that up, also for a rollout
    that has ended.
    """
    with server.calling(RolloutStub) as stub:
        _show(stub.Abort(pb.RolloutAbortRequest(model=model, forget=forget), timeout=timeout), as_json=as_json)


def shares(text: str) -> tuple[float, ...]:
    """Shares between 0 and 1 from `0,1,5,25,50,100`. Raises click.BadParameter."""
    try:
        return tuple(float(each.strip().removesuffix("%")) / 100 for each in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of percentages, such as 0,1,5,25,50,100") from None


def _request(values: dict[str, Any]) -> pb.RolloutStartRequest:
    """What the options say; a 0 that is meant is written as a negative number, since 0 leaves the choice open."""

    def meant(value: float) -> float:
        return value or -1.0

    absolute, relative = values["tolerance"]
    return pb.RolloutStartRequest(
        model=values["model"], candidate=values["candidate"], stable=values["stable"] or 0,
        steps=shares(values["steps"]), step_seconds=meant(duration(values["step_time"])), samples=values["samples"],
        split_by=values["split_by"], salt=values["salt"],
        no_retry=values["no_retry"], no_signals=values["no_signals"],
        limits=pb.RolloutLimits(
            error_increase=values["max_error_increase"], latency_ratio=values["max_latency_ratio"],
            latency_slack_seconds=meant(duration(values["latency_slack"])), agreement=meant(values["min_agreement"]),
        ),
        comparing=pb.RolloutComparing(
            output=values["compare_output"], absolute=meant(absolute), relative=meant(relative)
        ),
        shadowing=pb.RolloutShadowing(sample=meant(values["shadow_sample"])),
    )  # fmt: skip


def draw(rollouts: Any) -> RenderableType:  # noqa: ANN401  (a repeated field)
    """All of them, one panel each."""
    if not rollouts:
        return Text("no model has a rollout; `kairos rollout start MODEL VERSION` begins one")
    return Group(*(_panel(each) for each in rollouts))


def _panel(state: pb.RolloutState) -> Panel:
    stage = pb.RolloutStage.Name(state.stage)
    colour = _COLOURS.get(stage, "red")
    parts: list[RenderableType] = []
    if state.stage not in _ENDS:
        parts.append(_steps(state))
    parts.append(_figures(state))
    if state.reason:
        parts.append(Text(state.reason, style="bold"))
    for entry in state.history[-_LAST:]:
        at = datetime.fromtimestamp(entry.at).astimezone()
        parts.append(Text(f"{at:%H:%M:%S}  {entry.text}", style="dim"))
    title = (
        f"[bold]{state.model}[/] {state.stable} → {state.candidate}  [{colour}]{stage.replace('_', ' ')}[/]  "
        f"{state.share * 100:g} % of the default traffic"
    )
    return Panel(Group(*parts), title=title, title_align="left", border_style=colour)


def _steps(state: pb.RolloutState) -> Table:
    """Where it is on its way, and how long it has been there."""
    line = Text()
    for number, share in enumerate(state.steps):
        text = f" {share * 100:g} % " if share else " copies "
        style = "reverse bold" if number == state.step else "green" if number < state.step else "dim"
        line.append(text, style=style).append(" ")
    table = Table.grid(padding=(0, 2))
    done = min(1.0, state.step_elapsed_seconds / state.step_seconds) if state.step_seconds else 1.0
    stayed = f"{state.step_elapsed_seconds:.0f} of {state.step_seconds:g} s"
    table.add_row(line, ProgressBar(total=1.0, completed=done, width=20), stayed)
    return table


def _figures(state: pb.RolloutState) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("on this step", "requests", "failed", "p50", "p99"):
        table.add_column(heading, justify="left" if heading == "on this step" else "right")
    for name, arm in (
        (f"stable {state.stable}", state.stable_arm),
        (f"candidate {state.candidate}", state.candidate_arm),
    ):
        failed = f"{arm.failures / arm.requests:.2%}" if arm.requests else ""
        times = (f"{each * 1e3:.3g} ms" if each else "" for each in (arm.p50_seconds, arm.p99_seconds))
        table.add_row(name, f"{arm.requests:,}", failed, *times)
    agreed = f"{state.agreement:.2%} of {state.compared:,} agree" if state.compared else "none yet"
    table.caption = (
        f"compared: {agreed}, asked for {state.limits.agreement:.0%}\n"
        f"copies dropped: {state.copies_dropped + state.copies_refused:,}   retried: {state.retries:,}"
    )
    table.caption_justify = "left"
    return table


def _show(state: pb.RolloutState, *, as_json: bool) -> None:
    if as_json:
        click.echo(_as_json(state))
    else:
        Console(highlight=False).print(_panel(state))


def _as_json(message: Any) -> str:  # noqa: ANN401
    return json_format.MessageToJson(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )
