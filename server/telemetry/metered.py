"""The outermost layer around a model: sees every request that reached the stack, and how it ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from engines.inference import Inference
from engines.request import InferRequest, InferResponse
from server.telemetry.access import AccessLog
from server.telemetry.context import REQUEST
from server.telemetry.meter import ModelMeter, Outcome, outcome_of
from server.telemetry.traces import Trace, Tracer

SKEW_S: Final = 0.005
SKEW_SHARE: Final = 0.1
"""A caller who leaves with no more than this of its time left, whichever is longer, has run out of time."""


class MeteredInference:
    """Counts, traces and logs the requests of an Inference."""

    def __init__(
        self,
        inner: Inference,
        meter: ModelMeter,
        tracer: Tracer,
        access: AccessLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it with a `clock` that shows the same time as the event loop's."""
        self._inner = inner
        self._meter = meter
        self._tracer = tracer
        self._access = access
        self._clock = clock

    async def infer(self, request: InferRequest) -> InferResponse:
        """See Inference.infer."""
        meter, clock = self._meter, self._clock
        began = clock()
        trace = None
        if self._tracer.sampling and (trace := self._tracer.begin(request, began)) is not None:
            request = trace.request
        REQUEST.set(request)
        meter.in_flight += 1
        try:
            response = await self._inner.infer(request)
        except BaseException as error:
            self._failed(request, error, trace, began)
            raise
        finally:
            meter.in_flight -= 1
        now = clock()
        meter.answered(request, response, now - began, now)
        if trace is not None:
            trace.answered(response, now)
            if trace.trace_id:
                meter.exemplify(response, trace.trace_id, now - began)
        if self._access.on:
            self._access.answered(request, response, now - began, now)
        return response

    def _failed(self, request: InferRequest, error: BaseException, trace: Trace | None, began: float) -> None:
        now = self._clock()
        outcome = outcome_of(error)
        if outcome is Outcome.CANCELLED and is_over(began, now, request.deadline):
            outcome = Outcome.EXPIRED
        self._meter.failed(outcome, now - began)
        if trace is not None:
            trace.failed(error, outcome, now)
        if self._access.on:
            self._access.failed(request, error, outcome, now - began)


def is_over(began: float, now: float, deadline: float) -> bool:
    """Whether a withdrawn request was given up for its deadline: by our transport, or by its caller.

    A caller's time runs from the sending, ours from the arrival, so that its word comes a little before our alarm.
    """
    return deadline < math.inf and deadline - now <= max(SKEW_S, SKEW_SHARE * (deadline - began))
