"""Triton's trace files: the timestamps of sampled requests, as JSON."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

from engines.request import InferRequest, InferResponse

log = logging.getLogger(__name__)

_END: Final = b"\n]"
"""Of a file that has traces."""

_Event: TypeAlias = dict[str, Any]


class FileTrace:
    """One request on its way into a trace file; one that fails leaves no trace."""

    trace_id: Final = ""

    def __init__(
        self, request: InferRequest, began: float, write: Callable[[FileTrace, InferResponse, float], None]
    ) -> None:
        self.request = request
        self.began = began
        self._write = write

    def answered(self, response: InferResponse, now: float) -> None:
        """See Trace.answered."""
        self._write(self, response, now)

    def failed(self, error: BaseException, outcome: str, now: float) -> None:
        """See Trace.failed."""


class TraceFiles:
    """Writes traces in a thread of its own. Used from the event loop."""

    def __init__(self) -> None:
        self._next_id = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="traces")

    def write(self, file: Path, trace: FileTrace, response: InferResponse, ended: float) -> None:
        """Add one trace. Times are seconds on the event loop's clock."""
        self._next_id += 1
        request = trace.request
        identity: _Event = {
            "id": self._next_id,
            "model_name": request.model,
            "model_version": request.version,
            "request_id": request.id,
        }
        timestamps = [{"name": name, "ns": round(at * 1e9)} for name, at in _phases(response, trace.began, ended)]
        self._writer.submit(_append, file, [identity, {"id": self._next_id, "timestamps": timestamps}])

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()


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
        with file.open("r+b" if file.exists() else "w+b", buffering=0) as stream:
            size = stream.seek(0, 2)
            _add(stream, size, f"[\n{body}\n]" if size < 2 else f",\n{body}\n]")
    except OSError as error:
        log.warning("traces cannot be written to %s: %s", file, error)


def _add(stream: io.FileIO, size: int, text: str) -> None:
    """Put the text in place of the array's end. A disk that takes only a part of it gets the end back."""
    data = text.encode()
    start = max(0, size - len(_END))
    stream.seek(start)
    try:
        written = stream.write(data)
    except OSError:
        written = 0
    if written < len(data):
        stream.truncate(start)
        stream.seek(start)
        stream.write(_END if size else b"")
        raise OSError(errno.ENOSPC, "there is no room for a trace")
