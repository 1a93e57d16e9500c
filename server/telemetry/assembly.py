"""All of telemetry put together for one server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from engines.inference import Inference
from engines.scheduling.report import BatchReport
from server.telemetry.access import AccessLog
from server.telemetry.exporter import Source, start_exporter
from server.telemetry.gpu import Gpus
from server.telemetry.meter import ModelMeter, UnroutedMeter
from server.telemetry.metered import MeteredInference
from server.telemetry.otel import Environment, open_exporter
from server.telemetry.process import LoadFailures, LoopLag, host_metrics
from server.telemetry.traces import Spans, TraceOptions, Tracer

NO_TRACING: Final = Environment()


class Telemetry:
    """What counts, traces and exports. Belongs to one event loop."""

    def __init__(
        self,
        traces: TraceOptions,
        access_rate: int,
        environment: Environment,
        code_of: Callable[[BaseException, str], int],
        release: str,
    ) -> None:
        """Make it with `code_of` for the gRPC status of an error and outcome, and the server's `release`."""
        self.unrouted = UnroutedMeter()
        self.load_failures = LoadFailures()
        self.tracer = Tracer(traces, _spans(environment, code_of, release))
        self._access_rate = access_rate
        self._lag = LoopLag()
        self._stop_exporter: Callable[[], None] = lambda: None

    @property
    def sees_each(self) -> bool:
        """Whether each request has to come by, not only be counted."""
        return self._access_rate > 0

    def around(self, model: Inference, meter: ModelMeter) -> Inference:
        """The layer that sees what becomes of a model's requests."""
        return MeteredInference(model, meter, self.tracer, AccessLog(self._access_rate))

    def observer(self, meter: ModelMeter) -> Callable[[BatchReport], None]:
        """What is to be called with each batch of a model."""

        def observe(report: BatchReport) -> None:
            meter.observe(report)
            self.tracer.observe(report)

        return observe

    def start(self, host: str, port: int, sources: Sequence[Source]) -> int:
        """Serve these and our own metrics; returns the port. Raises OSError when it is taken."""
        own: list[Source] = [self._lag.metrics, host_metrics]
        if (gpus := Gpus.found()) is not None:
            own.append(gpus.metrics)
        bound, self._stop_exporter = start_exporter(host, port, [*sources, *own])
        self._lag.start()
        return bound

    async def stop(self) -> None:
        """Send and write what is left, and stop serving metrics."""
        self._lag.stop()
        await asyncio.to_thread(self.tracer.close)
        await asyncio.to_thread(self._stop_exporter)


def _spans(environment: Environment, code_of: Callable[[BaseException, str], int], release: str) -> Spans | None:
    if not environment.tracing:
        return None
    from server.telemetry.spans import SpanMaker  # noqa: PLC0415  (the SDK takes its time to import)

    return SpanMaker(open_exporter(environment), code_of, {"service.version": release})
