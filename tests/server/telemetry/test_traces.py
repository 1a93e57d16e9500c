"""Which requests are traced: settings, rates, parents; and Triton's trace files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
from engines.request import InferRequest
from server.telemetry.context import read_traceparent
from server.telemetry.traces import TraceOptions, Tracer
from tests.support.telemetry import PARENT, PARENT_SPAN, PARENT_TRACE, UNSAMPLED, report, request, response

OTEL = TraceOptions(mode="opentelemetry", level="TIMESTAMPS", rate=10)


class Spans:
    """Counts what it is asked to trace."""

    def __init__(self) -> None:
        self.begun: list[InferRequest] = []
        self.batches = 0
        self.closed = False

    def begin(self, request: InferRequest, began: float) -> Any:
        self.begun.append(request)
        return object()

    def batch(self, report: object) -> None:
        self.batches += 1

    def close(self) -> None:
        self.closed = True


def traced(tracer: Tracer, *requests: InferRequest) -> int:
    return sum(tracer.begin(each, 0.0) is not None for each in requests)


def draws(*numbers: float) -> Any:
    series: Iterator[float] = iter(numbers)
    return lambda: next(series)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        PARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-{PARENT_SPAN}-01",
        f"00-{PARENT_TRACE}-{'0' * 16}-01",
    ],
)
def test_what_is_no_traceparent_is_ignored(text: str) -> None:
    assert read_traceparent(text) is None


def test_a_traceparent_is_read() -> None:
    assert read_traceparent(PARENT) == (PARENT_TRACE, PARENT_SPAN, True, "")
    assert read_traceparent(UNSAMPLED) == (PARENT_TRACE, PARENT_SPAN, False, "")
    assert read_traceparent(f"{PARENT} a=1,b=2") == (PARENT_TRACE, PARENT_SPAN, True, "a=1,b=2")
    assert read_traceparent(PARENT.replace("00-", "01-", 1) + "-of-the-future") == read_traceparent(PARENT)


def test_nothing_is_traced_unless_somebody_asks_for_it() -> None:
    for tracer in (Tracer(TraceOptions()), Tracer(TraceOptions(level="TIMESTAMPS")), Tracer(OTEL)):
        assert not tracer.sampling
        assert traced(tracer, request(trace=PARENT)) == 0
        tracer.close()


def test_callers_that_trace_decide_for_their_requests() -> None:
    tracer = Tracer(OTEL, Spans(), draws())
    assert tracer.sampling
    assert traced(tracer, request(trace=PARENT), request(trace=UNSAMPLED)) == 1


def test_the_others_are_drawn() -> None:
    spans = Spans()
    tracer = Tracer(OTEL, spans, draws(0.09, 0.1, 0.5))
    assert traced(tracer, request(), request(), request(trace="junk")) == 1
    assert len(spans.begun) == 1


def test_without_parents_the_draw_decides_alone() -> None:
    options = TraceOptions(mode="opentelemetry", level="TIMESTAMPS", ratio=0.5, parent_based=False)
    tracer = Tracer(options, Spans(), draws(0.6, 0.4))
    assert traced(tracer, request(trace=PARENT), request(trace=UNSAMPLED)) == 1


def test_the_rate_changes_at_run_time_and_for_one_model_alone() -> None:
    tracer = Tracer(OTEL, Spans(), lambda: 0.3)
    assert traced(tracer, request()) == 0
    tracer.update({"trace_rate": ["1"]}, "fake")
    assert traced(tracer, request()) == 1
    assert tracer.current("fake")["trace_rate"] == ["1"]
    assert tracer.current()["trace_rate"] == ["10"]
    tracer.update({"trace_level": ["OFF"]})
    tracer.update({"trace_level": ["OFF"]}, "fake")
    assert not tracer.sampling


def test_a_ratio_from_the_environment_gives_way_to_a_rate() -> None:
    tracer = Tracer(TraceOptions(mode="opentelemetry", level="TIMESTAMPS", ratio=0.0), Spans(), lambda: 0.0)
    assert traced(tracer, request()) == 0
    tracer.update({"trace_rate": ["1"]})
    assert traced(tracer, request()) == 1
    tracer.update({"trace_rate": []})
    assert traced(tracer, request()) == 0


def test_a_count_runs_out() -> None:
    tracer = Tracer(OTEL, Spans())
    tracer.update({"trace_count": ["2"]})
    assert traced(tracer, *[request(trace=PARENT)] * 5) == 2
    assert tracer.current()["trace_count"] == ["0"]


def test_batches_go_to_the_spans_only_if_a_member_has_a_trace() -> None:
    spans = Spans()
    tracer = Tracer(OTEL, spans)
    tracer.observe(report())
    tracer.observe(report(traces=(PARENT,)))
    assert spans.batches == 1
    tracer.close()
    assert spans.closed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trace_mode": ["opentelemetry"]}, "needs an exporter"),
        ({"trace_mode": ["jaeger"]}, "must be one of"),
        ({"trace_file": ["/etc/passwd"]}, "when the server starts"),
        ({"trace_rate": ["0"]}, "whole number >= 1"),
        ({"trace_level": ["ALL"]}, "must be one of"),
        ({"colour": ["red"]}, "unknown"),
    ],
)
def test_bad_settings_are_refused_and_change_nothing(changes: dict[str, list[str]], reason: str) -> None:
    tracer = Tracer(TraceOptions())
    before = tracer.current()
    with pytest.raises(InvalidRequest, match=reason):
        tracer.update(changes)
    assert tracer.current() == before


def test_an_exporter_may_be_switched_to() -> None:
    tracer = Tracer(TraceOptions(level="TIMESTAMPS", rate=1), Spans())
    assert not tracer.sampling  # mode triton has no file to write
    tracer.update({"trace_mode": ["opentelemetry"]})
    assert tracer.sampling
    assert traced(tracer, request()) == 1


def test_one_in_so_many_answers_is_written_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    tracer = Tracer(TraceOptions(file=file, level="TIMESTAMPS", rate=2, log_frequency=1))
    for number in range(4):
        if (trace := tracer.begin(request(id=str(number)), 5.0)) is not None:
            trace.answered(response(), 5.02)
    tracer.close()
    first, second = (json.loads((tmp_path / f"trace.json.{index}").read_text()) for index in (0, 1))
    assert [event["request_id"] for event in (first[0], second[0])] == ["1", "3"]
    times = {stamp["name"]: stamp["ns"] for stamp in first[1]["timestamps"]}
    assert times["REQUEST_START"] == 5_000_000_000
    assert times["COMPUTE_START"] == 5_003_000_000
    assert times["REQUEST_END"] == 5_020_000_000
