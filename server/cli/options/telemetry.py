"""What is measured, logged and traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import rich_click as click

from server.cli.settings import in_panel, settings
from server.telemetry.logs import FORMATS, LogOptions
from server.telemetry.otel import Environment
from server.telemetry.traces import LEVELS, MODES, TraceOptions

declare: Final = in_panel("Metrics, logs and traces")

declared = settings(
    declare(
        "--metrics-port",
        default=8002,
        type=click.IntRange(0, 65535),
        help="Port for /metrics. 0: any free one.",
    ),
    declare(
        "--allow-metrics/--no-allow-metrics",
        default=True,
        type=bool,
        help="Whether to serve /metrics at all.",
    ),
    declare(
        "--log-format",
        type=click.Choice(FORMATS),
        default="auto",
        help="`auto` is for people on a terminal.",
    ),
    declare(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where lines go. Default: standard error.",
    ),
    declare(
        "--log-verbose",
        default=0,
        type=click.IntRange(min=0),
        help="1 and up: what a developer wants to read.",
    ),
    declare(
        "--log-info/--no-log-info",
        default=True,
        type=bool,
        help="Whether to log what is normal.",
    ),
    declare(
        "--trace-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File for request traces, as JSON.",
    ),
    declare(
        "--access-log",
        default=0,
        type=click.IntRange(min=0),
        help="Log one in so many requests. 0: none; 1: all.",
    ),
    declare(
        "--trace-mode",
        type=click.Choice(MODES),
        show_default="opentelemetry if OTEL_* variables name an exporter, else triton",
        help="Where traces go: `triton` to the trace file, `opentelemetry` to the exporter.",
    ),
    declare(
        "--trace-level",
        type=click.Choice(LEVELS),
        show_default="TIMESTAMPS in mode opentelemetry, else OFF",
        help="What is traced; TraceSetting changes it.",
    ),
    declare(
        "--trace-rate",
        default=1000,
        type=click.IntRange(min=1),
        help="One in so many requests is traced.",
    ),
    declare(
        "--trace-count",
        default=-1,
        type=click.IntRange(min=-1),
        help="How many are traced. -1: without end.",
    ),
)


def log_options(values: dict[str, Any]) -> LogOptions:
    """The settings of the log."""
    return LogOptions(
        format=values["log_format"],
        file=values["log_file"],
        info=values["log_info"],
        verbose=values["log_verbose"],
        access_rate=values["access_log"],
    )


def trace_options(values: dict[str, Any], otel: Environment) -> TraceOptions:
    """The settings of traces. Raises ValueError for a mode that has nowhere to send them."""
    mode = values["trace_mode"] or ("opentelemetry" if otel.tracing else "triton")
    if mode == "opentelemetry" and not otel.tracing:
        raise ValueError("trace mode opentelemetry needs an exporter: set OTEL_EXPORTER_OTLP_ENDPOINT")
    return TraceOptions(
        mode=mode,
        file=values["trace_file"],
        level=values["trace_level"] or ("TIMESTAMPS" if mode == "opentelemetry" else "OFF"),
        rate=values["trace_rate"],
        ratio=otel.ratio,
        parent_based=otel.parent_based,
        count=values["trace_count"],
    )
