"""`kairos top`: what it makes of a server's metrics."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from server.cli.top import Recent, picture, top
from server.telemetry.scrape import Interval, read_scrape

MODULE = importlib.import_module("server.cli.top")  # the package has the command under this name
BEFORE = 'kairos_requests_total{model="m",version="1",outcome="in_deadline"} 0\nkairos_serving 1\n'
AFTER = """
kairos_info{release="1.2"} 1
kairos_serving 1
kairos_model_failed{model="n",version="1"} 1
kairos_requests_total{model="m",version="1",outcome="in_deadline"} 1940
kairos_requests_total{model="m",version="1",outcome="shed"} 60
kairos_requests_total{model="",version="",outcome="invalid"} 4
kairos_request_seconds_bucket{model="m",version="1",le="0.001"} 970
kairos_request_seconds_bucket{model="m",version="1",le="0.01"} 1940
kairos_request_seconds_bucket{model="m",version="1",le="+Inf"} 1940
kairos_batch_rows_sum{model="m",version="1"} 1455
kairos_batch_rows_count{model="m",version="1"} 485
kairos_batch_seconds_sum{model="m",version="1"} 1.5
kairos_answers_total{model="m",version="1",origin="engine"} 1455
kairos_answers_total{model="m",version="1",origin="cache"} 485
kairos_requests_in_flight{model="m",version="1"} 7
kairos_queue_requests{model="m",version="1"} 3
kairos_engines{model="m",version="1",state="busy"} 1
kairos_engines{model="m",version="1",state="missing"} 1
kairos_gpu_utilization_ratio{gpu="0",gpu_uuid="GPU-0"} 0.75
kairos_gpu_memory_used_bytes{gpu="0",gpu_uuid="GPU-0"} 2147483648
process_resident_memory_bytes 1048576
process_cpu_seconds_total 1
"""


def shown(before: str, after: str) -> str:
    now = Interval(read_scrape(before, 10.0), read_scrape(after, 12.0))
    recent = Recent()
    recent.add(now)
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(picture(now, recent))
    return capture.get()


def test_a_line_for_each_model_with_what_matters() -> None:
    text = shown(BEFORE, AFTER)
    (line,) = (line for line in text.splitlines() if "m:1" in line)
    expected = "m:1 █ 1,000 97.0 % 1.0 ms 9.8 ms 3.0 7 3 2 at 38% 1 missing 25% shed 30.0"  # no waits were counted
    assert line.split() == expected.split()


def test_the_server_in_a_few_figures() -> None:
    text = shown(BEFORE, AFTER)
    assert "kairos 1.2  serving" in text
    for figure in ("1,002", "0.50 cores", "1.0 MiB", "75%, 2.0 GiB"):
        assert figure in text
    assert "broken versions" in text


def test_an_idle_server_has_no_percentiles() -> None:
    text = shown(AFTER, AFTER)
    assert " nan" not in text
    assert "m:1" in text


def test_one_interval_can_be_printed_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = [BEFORE, AFTER]
    monkeypatch.setattr(MODULE, "fetch", lambda url, timeout_s: texts.pop(0))
    file = tmp_path / "top.svg"
    result = CliRunner().invoke(top, ["--once", "--interval", "0.1", "--svg", str(file)])
    assert result.exit_code == 0, result.output
    assert "m:1" in result.output
    assert file.read_text().startswith("<svg")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout_s: float) -> str:
        raise OSError("connection refused")

    monkeypatch.setattr(MODULE, "fetch", refuse)
    result = CliRunner().invoke(top, ["--once"])
    assert result.exit_code == 1
    assert "does not answer: connection refused" in result.output
