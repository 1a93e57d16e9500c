"""Triton's trace files: the timestamps of sampled requests, as JSON, switched on and off by the TraceSetting RPC.

Where the file lies is decided at start only: whoever may call an RPC should not get to choose files to write.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from engines.errors import InvalidRequest
from engines.request import InferRequest, InferResponse

log = logging.getLogger(__name__)

LEVELS: Final = ("OFF", "TIMESTAMPS")
_Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """Which requests are traced."""

    file: Path | None = None
    """Where traces are written; with `log_frequency`, `.0`, `.1`, ... are appended. None: nothing is traced."""
    level: str = "OFF"
    """`OFF`, or `TIMESTAMPS` for the times of each phase."""
    rate: int = 1000
    """One in so many requests of a model is traced. 1: all."""
    count: int = -1
    """How many more requests are traced. -1: without end; 0: none."""
    log_frequency: int = 0
    """Start a new file after so many traces. 0: one file."""

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
        return {
            "trace_level": [self.level],
            "trace_rate": [str(self.rate)],
            "trace_count": [str(self.count)],
            "log_frequency": [str(self.log_frequency)],
            "trace_file": [str(self.file or "")],
            "trace_mode": ["triton"],
        }

    def _with(self, name: str, values: list[str], default: TraceOptions) -> TraceOptions:
        if name == "trace_level":
            return replace(self, level=_level(values) if values else default.level)
        if name == "trace_rate":
            return replace(self, rate=_whole(name, values, 1) if values else default.rate)
        if name == "trace_count":
            return replace(self, count=_whole(name, values, -1) if values else default.count)
        if name == "log_frequency":
            return replace(self, log_frequency=_whole(name, values, 0) if values else default.log_frequency)
        if name == "trace_file":
            raise InvalidRequest("trace_file is set when the server starts and cannot be changed by a call")
        if name == "trace_mode" and values in ([], ["triton"]):
            return self
        raise InvalidRequest(f"unknown or unsupported trace setting '{name}' = {values}")


@dataclass(slots=True)
class _Recorder:
    """The traces of one scope, and what is still to be written."""

    options: TraceOptions
    seen: int = 0
    written: int = 0
    events: list[_Event] = field(default_factory=list)


class Tracer:
    """Samples requests and writes their timestamps. Used from the event loop; files are written in a thread."""

    def __init__(self, options: TraceOptions) -> None:
        self._at_start = options
        self._global = _Recorder(options)
        self._models: dict[str, _Recorder] = {}
        self._next_id = 0
        self._files: dict[Path, list[_Event]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self.sampling = self._any_sampling()

    def update(self, changes: Mapping[str, Any], model: str = "") -> None:
        """Change settings of one model, or of all that have none of their own."""
        if not changes:
            return
        if model:
            recorder = self._models.get(model) or _Recorder(self._global.options)
            recorder.options = recorder.options.changed(changes, self._global.options)
            self._models[model] = recorder
        else:
            self._global.options = self._global.options.changed(changes, self._at_start)
        self.sampling = self._any_sampling()
        self._flush()

    def current(self, model: str = "") -> Mapping[str, Sequence[str]]:
        """The settings in force."""
        return self._recorder(model).options.as_settings()

    def record(self, request: InferRequest, response: InferResponse, began: float, ended: float) -> None:
        """Keep the request's timestamps, if it is its turn. Times are seconds on the event loop's clock."""
        recorder = self._recorder(request.model)
        options = recorder.options
        recorder.seen += 1
        if options.level == "OFF" or options.file is None or options.count == 0 or recorder.seen % options.rate:
            return
        if options.count > 0:
            recorder.options = replace(options, count=options.count - 1)
        self._next_id += 1
        identity: _Event = {
            "id": self._next_id,
            "model_name": request.model,
            "model_version": request.version,
            "request_id": request.id,
        }
        timestamps = [{"name": name, "ns": round(at * 1e9)} for name, at in _phases(response, began, ended)]
        file = options.file
        if options.log_frequency:
            file = file.with_name(f"{file.name}.{recorder.written // options.log_frequency}")
        recorder.written += 1
        self._files.setdefault(file, []).extend((identity, {"id": self._next_id, "timestamps": timestamps}))
        self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.shutdown()

    def _recorder(self, model: str) -> _Recorder:
        return self._models.get(model, self._global)

    def _any_sampling(self) -> bool:
        return any(
            recorder.options.level != "OFF" and recorder.options.file is not None
            for recorder in (self._global, *self._models.values())
        )

    def _flush(self) -> None:
        files, self._files = self._files, {}
        for file, events in files.items():
            self._writer.submit(_append, file, events)


def _phases(response: InferResponse, began: float, ended: float) -> list[tuple[str, float]]:
    timings = response.timings
    started = began + timings.queue_s
    gathered = started + timings.gather_s
    executed = gathered + timings.execute_s
    return [
        ("REQUEST_START", began),
        ("QUEUE_START", began),
        ("COMPUTE_START", started),
        ("COMPUTE_INPUT_END", gathered),
        ("COMPUTE_OUTPUT_START", executed),
        ("COMPUTE_END", executed + timings.scatter_s),
        ("REQUEST_END", ended),
    ]


def _append(file: Path, events: list[_Event]) -> None:
    """Add events to a file that is, after each step, a whole JSON array."""
    body = ",\n".join(json.dumps(event) for event in events)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("r+b" if file.exists() else "w+b") as stream:
            size = stream.seek(0, 2)
            if size < 2:
                stream.write(f"[\n{body}\n]".encode())
            else:
                stream.seek(size - 2)
                stream.write(f",\n{body}\n]".encode())
    except OSError as error:
        log.warning("traces cannot be written to %s: %s", file, error)


def _level(values: list[str]) -> str:
    level = values[-1].upper()
    if level not in LEVELS:
        raise InvalidRequest(f"trace_level must be one of {', '.join(LEVELS)}, not '{values[-1]}'")
    return level


def _whole(name: str, values: list[str], least: int) -> int:
    try:
        number = int(values[-1])
    except ValueError:
        number = least - 1
    if number < least:
        raise InvalidRequest(f"{name} must be a whole number >= {least}, not '{values[-1]}'")
    return number
