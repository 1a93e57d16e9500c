"""Writes docs/settings.md from the declarations of `kairos serve`: `python docs/make_settings.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from server.cli.serve import serve

PAGE: Final = Path(__file__).with_name("settings.md")

HEAD: Final = """# Settings of `kairos serve`

<!-- Written by docs/make_settings.py from the declarations in server/cli/options/. -->

Each setting can be given as a flag, as an environment variable, or in a TOML file (`--config FILE`), where its key is
the flag without the dashes in front: `grpc-port = 9001`, `model-repository = ["/models"]`, `allow-metrics = false`.
A flag wins over the environment, the environment over the file, the file over the default. Keys that are not known
are refused. Settings that may be repeated are lists in the file; in the environment folders are separated by colons,
names by spaces. The `OTEL_*` variables of OpenTelemetry are read, too.
"""


def page() -> str:
    """The whole page."""
    options = [option for option in serve.params if isinstance(option, click.Option)]
    panels: dict[str, list[click.Option]] = {}
    for option in options:
        panels.setdefault(getattr(option, "panel", None) or "Other", []).append(option)
    return "\n".join([HEAD, *(_section(title, members) for title, members in panels.items())])


def _section(title: str, options: Iterable[click.Option]) -> str:
    lines = [f"## {title}", "", "| flag | environment | takes | default | meaning |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(_cells(option)) + " |" for option in options]
    return "\n".join([*lines, ""])


def _cells(option: click.Option) -> list[str]:
    flag = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    help_text = " ".join((option.help or "").split()).replace("|", "\\|")
    return [flag, f"`{option.envvar}`", _takes(option), _default(option), help_text]


def _takes(option: click.Option) -> str:
    kind: Any = option.type
    if option.secondary_opts:
        text = "yes or no"
    elif isinstance(kind, click.Choice):
        text = ", ".join(f"`{choice}`" for choice in kind.choices)
    elif isinstance(kind, click.IntRange | click.FloatRange):
        number = "whole number" if isinstance(kind, click.IntRange) else "number"
        text = f"{number} from {kind.min}" + ("" if kind.max is None else f" to {kind.max}")
    elif isinstance(kind, click.Path):
        text = "folder" if kind.dir_okay else "file"
    else:
        text = kind.name
    return text + (", may be repeated" if option.multiple else "")


def _default(option: click.Option) -> str:
    if option.required:
        return "must be given"
    if isinstance(option.show_default, str):
        return option.show_default if " " in option.show_default else f"`{option.show_default}`"
    if option.secondary_opts:
        return "yes" if option.default else "no"
    if option.multiple or option.default is None or not isinstance(option.default, str | int | float):
        return "none"
    return f"`{option.default}`"


if __name__ == "__main__":
    PAGE.write_text(page())
