"""Settings: one declaration gives the flag, the environment variable, the key in the file, and the help text."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import rich_click as click

PREFIX: Final = "KAIROS_"


def setting(flag: str, **attributes: Any) -> Callable[[Any], Any]:  # noqa: ANN401  (click's own attributes)
    """A click option that is also read from the environment, as KAIROS_ and its name in capitals."""
    variable = PREFIX + flag.split("/", maxsplit=1)[0].strip("-").replace("-", "_").upper()
    attributes.setdefault("show_default", not attributes.get("multiple", False))
    return click.option(flag, envvar=variable, show_envvar=True, **attributes)


def in_panel(title: str) -> Callable[..., Callable[[Any], Any]]:
    """`setting`, for those that stand under this title in the help and on the page of settings."""
    return functools.partial(setting, panel=title)


def settings(*declared: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several settings as one decorator, the first of them first in the help."""

    def declare(command: Any) -> Any:  # noqa: ANN401  (a command or a function, as click has it)
        for each in reversed(declared):
            command = each(command)
        return command

    return declare


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Make a TOML file's keys (the flags without dashes before them) the defaults of the command."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}") from error
    known = {name for option in context.command.params if (name := option.name) not in (None, parameter.name)}
    defaults = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(defaults.keys() - known):
        raise click.BadParameter(f"{path}: unknown setting '{unknown[0]}'; known are: {', '.join(sorted(known))}")
    context.default_map = {**(context.default_map or {}), **defaults}
    return path
