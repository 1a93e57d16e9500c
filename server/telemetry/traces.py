"""Which requests are traced, and where their traces go: Triton's trace files, or OpenTelemetry.

The TraceSetting RPC changes everything here but where files lie: whoever may call an RPC should not get to choose
files to write.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from engines.errors import InferError, InvalidRequest
from engines.request import InferRequest, InferResponse
from engines.scheduling.report import BatchReport
from server.telemetry.context import read_traceparent
from server.telemetry.meter import outcome_of
from server.telemetry.tracefiles import FileTrace, TraceFiles

LEVELS: Final = ("OFF", "TIMESTAMPS")
MODES: Final = ("triton", "opentelemetry")


class Trace(Protocol):
    """A request that is being traced."""

    @property
    def request(self) -> InferRequest:
        """What goes on to the layers below, its `trace` pointing to this trace."""
        ...

    @property
    def trace_id(self) -> str:
        """What exemplars point to; empty when nobody else can look it up."""
        ...

    def answered(self, response: InferResponse, now: float) -> None: ...
    def failed(self, error: BaseException, outcome: str, now: float) -> None: ...


Attributes: TypeAlias = Mapping[str, str | int | float | bool]


class Step(NamedTuple):
    """Something that was done for a request; times are seconds on the event loop's clock."""

    name: str
    began: float
    ended: float
    attributes: Attributes


class Spans(Protocol):
    """Makes OpenTelemetry spans of requests and batches."""

    def begin(self, request: InferRequest, began: float) -> Trace: ...
    def batch(self, report: BatchReport) -> None: ...
    def note(self, request: InferRequest, step: Step) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """Which requests are traced."""

    mode: str = "triton"
    """`triton`: timestamps go to `file`; `opentelemetry`: spans go to the exporter."""
    file: Path | None = None
    """Where mode triton writes; with `log_frequency`, `.0`, `.1`, ... are appended. None: nothing is written."""
    level: str = "OFF"
    """`OFF`, or `TIMESTAMPS` for the times of each phase."""
    rate: int = 1000
    """One in so many requests of a model is traced. 1: all."""
    ratio: float | None = None
    """Mode opentelemetry: share of the requests that is traced, where one in `rate` cannot say it."""
    parent_based: bool = True
    """Mode opentelemetry: whether callers that trace decide for their requests."""
    count: int = -1
    """How many more requests are traced. -1: without end; 0: none."""
    log_frequency: int = 0
    """Mode triton: start a new file after so many traces. 0: one file."""

    def changed(self, changes: Mapping[str, Sequence[str]], default: TraceOptions) -> TraceOptions:
        """With these settings changed; an empty list puts the default back.

        Raises InvalidRequest for unknown settings and bad values.
        """
        result = self
        for name, values in changes.items():
            result = result._with(name, [str(value) for value in values], default)
        return result

    def as_settings(self) -> dict[str, list[str]]:
        """Under the protocol's names."""
        rate = self.rate if not self.ratio else max(1, round(1 / self.ratio))
        return {
            "trace_level": [self.level],
            "trace_rate": [str(rate)],
            "trace_count": [str(self.count)],
            "log_frequency": [str(self.log_frequency)],
            "trace_file": [str(self.file or "")],
            "trace_mode": [self.mode],
        }

    @property
    def share(self) -> float:
        """Share of the requests that is traced."""
        return 1.0 / self.rate if self.ratio is None else self.ratio

    def _with(self, name: str, values: list[str], default: TraceOptions) -> TraceOptions:
        if name == "trace_level":
            return replace(self, level=_one_of(name, values[-1].upper(), LEVELS) if values else default.level)
        if name == "trace_rate":
            if not values:
                return replace(self, rate=default.rate, ratio=default.ratio)
            return replace(self, rate=_whole(name, values, 1), ratio=None)
        if name == "trace_count":
            return replace(self, count=_whole(name, values, -1) if values else default.count)
        if name == "log_frequency":
            return replace(self, log_frequency=_whole(name, values, 0) if values else default.log_frequency)
        if name == "trace_mode":
            return replace(self, mode=_one_of(name, values[-1], MODES) if values else default.mode)
        if name == "trace_file":
            raise InvalidRequest("trace_file is set when the server starts and cannot be changed by a call")
        raise InvalidRequest(f"unknown or unsupported trace setting '{name}' = {values}")


@dataclass(slots=True)
class _Scope:
    """The settings of one model, or of all that have none of their own, and how far they have got."""

    options: TraceOptions
    seen: int = 0
    begun: int = 0


class Tracer:
    """Decides at the start of a request whether it is traced. Used from the event loop."""

    def __init__(
        self, options: TraceOptions, spans: Spans | None = None, draw: Callable[[], float] = random.random
    ) -> None:
        """Make it with `spans` for mode opentelemetry, and `draw` for numbers in [0, 1) that decide."""
        self._at_start = options
        self._all = _Scope(options)
        self._models: dict[str, _Scope] = {}
        self._files = TraceFiles()
        self._spans = spans
        self._draw = draw
        self.sampling = self._any_sampling()
        """Whether `begin` has anything to decide."""

    def update(self, changes: Mapping[str, Any], model: str = "") -> None:
        """Change settings of one model, or of all that have none of their own. Raises InvalidRequest."""
        if not changes:
            return
        scope = self._models.get(model, _Scope(self._all.options)) if model else self._all
        options = scope.options.changed(changes, self._all.options if model else self._at_start)
        if options.mode == "opentelemetry" and self._spans is None:
            raise InvalidRequest("trace_mode 'opentelemetry' needs an exporter, which the server was started without")
        scope.options = options
        if model:
            self._models[model] = scope
        self.sampling = self._any_sampling()

    def current(self, model: str = "") -> Mapping[str, Sequence[str]]:
        """The settings in force."""
        return self._models.get(model, self._all).options.as_settings()

    def begin(self, request: InferRequest, now: float) -> Trace | None:
        """The request's trace, if it is to have one."""
        scope = self._models.get(request.model, self._all)
        options = scope.options
        if options.level == "OFF" or options.count == 0:
            return None
        if options.mode == "opentelemetry":
            if self._spans is None or not self._sampled(request.trace, options):
                return None
            self._spend(scope)
            return self._spans.begin(request, now)
        scope.seen += 1
        if options.file is None or scope.seen % options.rate:
            return None
        self._spend(scope)
        file = options.file
        if options.log_frequency:
            file = file.with_name(f"{file.name}.{(scope.begun - 1) // options.log_frequency}")
        return FileTrace(request, now, partial(self._files.write, file))

    def refused(self, request: InferRequest, error: InferError, now: float) -> None:
        """A request was turned away before it reached a model; as much of it as is known."""
        if (trace := self.begin(request, now)) is not None:
            trace.failed(error, outcome_of(error), now)

    def note(self, request: InferRequest, name: str, began: float, ended: float, attributes: Attributes) -> None:
        """A layer has done something for a request; if that is traced, it gets a span below the request's."""
        if self._spans is not None:
            self._spans.note(request, Step(name, began, ended, attributes))

    def observe(self, report: BatchReport) -> None:
        """A batch has run; those of its members that are traced get a span for it."""
        if self._spans is not None and report.traces:
            self._spans.batch(report)

    def close(self) -> None:
        """Write what is left; takes a few seconds when an exporter does not answer."""
        self._files.close()
        if self._spans is not None:
            self._spans.close()

    def _sampled(self, traceparent: str, options: TraceOptions) -> bool:
        if traceparent and options.parent_based and (parent := read_traceparent(traceparent)) is not None:
            return parent.sampled
        return self._draw() < options.share

    def _spend(self, scope: _Scope) -> None:
        scope.begun += 1
        if scope.options.count > 0:
            scope.options = replace(scope.options, count=scope.options.count - 1)

    def _any_sampling(self) -> bool:
        return any(
            scope.options.level != "OFF"
            and (scope.options.file is not None if scope.options.mode == "triton" else self._spans is not None)
            for scope in (self._all, *self._models.values())
        )


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise InvalidRequest(f"{name} must be one of {', '.join(known)}, not '{value}'")
    return value


def _whole(name: str, values: list[str], least: int) -> int:
    try:
        number = int(values[-1])
    except ValueError:
        number = least - 1
    if number < least:
        raise InvalidRequest(f"{name} must be a whole number >= {least}, not '{values[-1]}'")
    return number
