"""Log lines for people (on a terminal) or machines (JSON), and the LogSettings RPC that turns them up and down."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.logging import RichHandler

from engines.errors import InvalidRequest

FORMATS: Final = ("auto", "text", "json", "rich")
ROOTS: Final = ("server", "engines")
"""The loggers that are ours; libraries keep to warnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What is logged, and how it looks."""

    format: str = "auto"
    """`text` or `json` lines, `rich` colours; `auto`: rich on a terminal, text elsewhere."""
    file: Path | None = None
    """Where lines go. None: standard error."""
    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0
    """0: what an operator wants to read; 1 and up: what a developer does."""

    def allows(self, level: int) -> bool:
        """Whether a line of this level is written."""
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        return self.info if level >= logging.INFO else self.verbose > 0


class Logs:
    """The process's log settings."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options

    def install(self) -> None:
        """Send all log lines of the process the way the options say."""
        handler = _handler(self._options)
        handler.addFilter(lambda record: self._options.allows(record.levelno))
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        self._set_level()

    def update(self, changes: Mapping[str, Any], model: str = "") -> None:  # noqa: ARG002  (logs know no models)
        """Change settings under the protocol's names. Raises InvalidRequest for unknown ones and bad values."""
        options = self._options
        for name, value in changes.items():
            options = _changed(options, name, value)
        self._options = options
        self._set_level()

    def current(self, model: str = "") -> Mapping[str, Any]:  # noqa: ARG002
        """The settings in force, under the protocol's names."""
        options = self._options
        return {
            "log_file": str(options.file or ""),
            "log_info": options.info,
            "log_warning": options.warning,
            "log_error": options.error,
            "log_verbose_level": options.verbose,
            "log_format": options.format,
        }

    def _set_level(self) -> None:
        for name in ROOTS:
            logging.getLogger(name).setLevel(logging.DEBUG if self._options.verbose else logging.INFO)


def _changed(options: LogOptions, name: str, value: object) -> LogOptions:
    if name == "log_info" and isinstance(value, bool):
        return replace(options, info=value)
    if name == "log_warning" and isinstance(value, bool):
        return replace(options, warning=value)
    if name == "log_error" and isinstance(value, bool):
        return replace(options, error=value)
    if name == "log_verbose_level" and isinstance(value, int) and not isinstance(value, bool):
        return replace(options, verbose=value)
    if name in ("log_file", "log_format"):
        raise InvalidRequest(f"{name} is set when the server starts and cannot be changed by a call")
    raise InvalidRequest(f"unknown log setting or wrong type: '{name}' = {value!r}")


def _handler(options: LogOptions) -> logging.Handler:
    style = options.format
    if style == "auto":
        style = "rich" if options.file is None and sys.stderr.isatty() else "text"
    if style == "rich" and options.file is None:
        return RichHandler(console=Console(stderr=True), show_path=False, markup=False, rich_tracebacks=True)
    handler = logging.StreamHandler() if options.file is None else logging.FileHandler(options.file)
    if style == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("{asctime} {levelname:<7} {message}", style="{"))
    return handler
