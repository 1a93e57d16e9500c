from __future__ import annotations

import pytest
from rich.console import Console

from loadtest.load.scenario import Kind
from loadtest.mlperf import Bench, Outcome, outcome, search

SUMMARY = """
Scenario : Server
Completed samples per second    : 1234.50
Result is : {}
99.00 percentile latency (ns)   : 2500000
"""


@pytest.mark.parametrize(("said", "failed", "valid"), [("VALID", 0, True), ("INVALID", 0, False), ("VALID", 3, False)])
def test_a_summary_is_read_and_failures_spoil_it(said: str, failed: int, valid: bool) -> None:
    assert outcome(SUMMARY.format(said), failed) == Outcome(valid, 1234.5, 2.5, failed)


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not a summary"):
        outcome("nothing", 0)


def test_the_highest_valid_rate_is_closed_in_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.mlperf.time.sleep", lambda _: None)
    monkeypatch.setattr(Bench, "server", lambda self, rate: Outcome(rate <= 640.0, rate, 1.0, 0))
    bench = Bench(address="", kind=Kind(model="m"), seconds=1.0, bound_ms=1.0, rows=1)
    rate, best = search(bench, 1000.0, 8, Console(quiet=True))
    assert best is not None
    assert 620.0 < rate <= 640.0
