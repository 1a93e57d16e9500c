"""`kairos triggers`: check a file of rules, and see what became of events."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import rich_click as click
from rich.console import Console
from rich.table import Table

from server.cli.channel import fail
from server.cli.options.models import default_state_dir
from server.watch.trigger_actions import make_actions
from server.watch.trigger_file import BadTriggers, read_triggers
from server.watch.trigger_state import read_deliveries
from server.watch.triggers import Rule


@click.group()
def triggers() -> None:
    """Check a file of trigger rules, and see what became of the events that they led to."""


@triggers.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """Say whether a server would take this file, and how it reads it."""
    try:
        options = read_triggers(file)
        with ThreadPoolExecutor(1) as threads:
            make_actions(options, threads)
    except BadTriggers as error:
        fail(str(error))
    table = Table("rule", "model", "raised when", "cleared when", "actions", box=None, pad_edge=False)
    for rule in options.rules:
        table.add_row(rule.name, rule.model or "each", *_told(rule), ", ".join(rule.actions))
    Console(highlight=False).print(table)


@triggers.command()
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_state_dir,
    envvar="KAIROS_STATE_DIR",
    show_default="~/.local/state/kairos",
    help="The server's; it may be running.",
)
@click.option("--last", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
def log(state_dir: Path, last: int) -> None:
    """The latest events, and how their deliveries stand."""
    try:
        found = read_deliveries(state_dir)[:last]
    except OSError as error:
        fail(str(error))
    table = Table(
        "time", "event", "rule", "model", "value", "action", "status", "tries", "error", box=None, pad_edge=False
    )
    for each in found:
        event = each.event
        table.add_row(
            f"{datetime.fromtimestamp(event.at, UTC):%Y-%m-%d %H:%M:%S}Z", event.id[:12], event.rule,
            f"{event.model}:{event.version}", f"{event.value:.4g}", each.action, each.status.value, str(each.attempts),
            each.error,
        )  # fmt: skip
    Console(highlight=False).print(table)


def _told(rule: Rule) -> tuple[str, str]:
    """A rule in words: when it is raised, and when it is cleared."""
    if rule.alarm:
        return f"{rule.signal} is an alarm{_times(rule.raise_after)}", f"it is none{_times(rule.clear_after)}"
    what = f"{rule.aggregate} of {rule.window_s:g} s of {rule.signal}" if rule.window_s else rule.signal
    less = rule.below == rule.threshold
    clear = rule.threshold if math.isnan(rule.clear) else rule.clear
    return (
        f"{what} {'<' if less else '>'} {rule.threshold:g}{_times(rule.raise_after)}",
        f"{'>=' if less else '<='} {clear:g}{_times(rule.clear_after)}",
    )


def _times(count: int) -> str:
    return f", {count} times" if count > 1 else ""
