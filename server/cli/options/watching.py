"""What the server does about what it sees of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import rich_click as click

from server.cli.settings import in_panel, settings
from server.watch.trigger_file import TriggerOptions, read_triggers

declare: Final = in_panel("Watching models")

declared = settings(
    declare(
        "--triggers",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file of rules over drift, accuracy and outcomes, and what to do when they are raised.",
    ),
)


def trigger_options(values: dict[str, Any]) -> TriggerOptions | None:
    """What the file says. Raises BadTriggers."""
    return None if values["triggers"] is None else read_triggers(values["triggers"])
