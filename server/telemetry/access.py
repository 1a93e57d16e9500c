"""One log line for a request, for one in so many of them. Never its payload."""

from __future__ import annotations

import logging
from typing import Any, Final

from engines.request import InferRequest, InferResponse

log: Final = logging.getLogger("server.access")


class AccessLog:
    """Writes lines whose fields are attributes of the record, so that JSON has them as keys."""

    def __init__(self, rate: int) -> None:
        """Make it write for one in `rate` requests. 0: none; 1: all."""
        self._rate = rate
        self._seen = 0
        self.on = rate > 0

    def answered(self, request: InferRequest, response: InferResponse, seconds: float, now: float) -> None:
        """A request was answered after `seconds`."""
        if not self._turn():
            return
        timings = response.timings
        self._write(
            request,
            "in_deadline" if now <= request.deadline else "late",
            seconds,
            {
                "origin": response.origin.value,
                "queue_s": round(timings.queue_s, 6),
                "execute_s": round(timings.execute_s, 6),
            },
        )

    def failed(self, request: InferRequest, error: BaseException, outcome: str, seconds: float) -> None:
        """A request ended in an error after `seconds`."""
        if self._turn():
            self._write(request, outcome, seconds, {"error": str(error) or type(error).__name__})

    def _turn(self) -> bool:
        self._seen += 1
        return self._seen % self._rate == 0

    def _write(self, request: InferRequest, outcome: str, seconds: float, rest: dict[str, Any]) -> None:
        fields = {"outcome": outcome, "seconds": round(seconds, 6), "rows": request.rows, **rest}
        log.info("request %s after %.3f ms, %d row(s)", outcome, seconds * 1e3, request.rows, extra=fields)
