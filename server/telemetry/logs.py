"""Log lines for people (on a terminal) or machines (JSON), and the LogSettings RPC that turns them up and down."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.logging import RichHandler

from engines.errors import InvalidRequest
from server.telemetry.context import REQUEST, read_traceparent

FORMATS: Final = ("auto", "text", "json", "rich")
ROOTS: Final = ("server", "engines")
"""The loggers that are ours; libraries keep to warnings."""

TELL_EVERY_S: Final = 60.0
"""How often standard error hears that lines are lost."""


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
    access_rate: int = 0
    """One in so many requests of a model gets a line when it ends. 0: none; 1: all."""

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
        handler.addFilter(_tell_request)
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


def _tell_request(record: logging.LogRecord) -> bool:
    """Let a line say which request it is about, if it is written on behalf of one."""
    request = REQUEST.get()
    if request is not None:
        record.model = request.model
        record.version = request.version
        if request.id:
            record.request_id = request.id
        if (trace := read_traceparent(request.trace)) is not None:
            record.trace_id = trace.trace_id
    return True


class TextFormatter(logging.Formatter):
    """Lines for people, with the request's model, identifier and trace at their end."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        """See Formatter.formatMessage."""
        line = super().formatMessage(record)
        told = record.__dict__
        if "model" not in told:
            return line
        rest = "".join(f" {name[:-3]}={told[name]}" for name in ("request_id", "trace_id") if name in told)
        return f"{line} [{told['model']}:{told['version']}{rest}]"


class _Json(JsonFormatter):
    """One object a line, its time in UTC."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """See Formatter.formatTime."""
        del datefmt
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _FileHandler(logging.FileHandler):
    """Says on standard error that lines are lost, when the disk is full: once in a while, not for each line."""

    _told_at = -math.inf

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002  (the name is logging's)
        """See Handler.handleError."""
        if time.monotonic() >= self._told_at + TELL_EVERY_S:
            self._told_at = time.monotonic()
            sys.stderr.write(f"kairos: lines of {self.baseFilename} are lost: {sys.exc_info()[1]}\n")


def _handler(options: LogOptions) -> logging.Handler:
    style = options.format
    if style == "auto":
        style = "rich" if options.file is None and sys.stderr.isatty() else "text"
    handler: logging.Handler
    if style == "rich" and options.file is None:
        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False, rich_tracebacks=True)
        handler.setFormatter(TextFormatter("{message}", style="{"))
        return handler
    handler = logging.StreamHandler() if options.file is None else _FileHandler(options.file)
    if style == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(_Json("{asctime}{levelname}{name}{message}", style="{", rename_fields=names))
    else:
        handler.setFormatter(TextFormatter("{asctime} {levelname:<7} {message}", style="{"))
    return handler
